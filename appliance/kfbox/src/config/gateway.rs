//! `[gateway]`: where it listens, its certificate, and who signs in where.

use super::{acme::Acme, loopback, wrong};
use clap::ValueEnum;
use kfbox_base::journal::Room;
use kfbox_gateway::{ClientConfig, ConnectorConfig, TlsSource};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    pub address: SocketAddr,
    /// How browsers reach the box, when that differs from the address.
    pub external_url: Option<String>,
    pub tls: Tls,
    /// Tokens for a user name and a password, for scripts that follow Dex's `passwordConnector`.
    pub password_grant: bool,
    /// Whose passwords those are, as Dex's setting of that name: `local` or an LDAP connector's id. Naming one is enough.
    #[serde(alias = "passwordConnector")]
    pub password_connector: Option<String>,
    /// Applications that sign their users in here: `[[gateway.clients]]`.
    pub clients: Vec<ClientConfig>,
    /// Who vouches for people besides the passwords here: `[[gateway.connectors]]`.
    pub connectors: Vec<ConnectorConfig>,
    pub access_log: AccessLog,
}

/// Who asked for which path, in `access.log` in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    pub enabled: bool,
    /// A file of this size is put aside (`access.log.1` and so on) and a new one begun.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub files: usize,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { enabled: true, max_bytes: 8 << 20, files: 4 }
    }
}

impl AccessLog {
    /// None where there is to be no log.
    pub fn room(&self) -> Option<Room> {
        let Self { enabled, max_bytes, files } = *self;
        enabled.then_some(Room { max_bytes, files })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub mode: TlsMode,
    /// With `files`: the certificate and its chain in PEM.
    pub certificate: Option<PathBuf>,
    /// With `files`: the key in PEM.
    pub key: Option<PathBuf>,
    /// With `self-signed`: host names and addresses besides this machine's own. With `acme`: those of the certificate,
    /// the first of which is the box's own.
    pub names: Vec<String>,
    /// With `acme`: which server, and how it is shown that the names are ours.
    pub acme: Acme,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Plain HTTP: for loopback, or behind a proxy that does TLS
    #[default]
    Off,
    /// A certificate of an authority that the box keeps; clients trust it by `kfbox trust`
    SelfSigned,
    /// Files of your own
    Files,
    /// A certificate that an ACME server gives and renews: `[gateway.tls.acme]`
    Acme,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            address: loopback(8080),
            external_url: None,
            tls: Tls::default(),
            password_grant: false,
            password_connector: None,
            clients: Vec::new(),
            connectors: Vec::new(),
            access_log: AccessLog::default(),
        }
    }
}

impl Gateway {
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let Tls { mode, certificate, key, names, acme } = &self.tls;
        if *mode == TlsMode::Acme {
            acme.validate(names, self.external_url.as_deref()).map_err(wrong)?;
        } else if *acme != Acme::default() {
            return Err(wrong("gateway.tls.acme is used with mode \"acme\" only".to_owned()).into());
        }
        let AccessLog { max_bytes, files, .. } = self.access_log;
        if max_bytes < 64 << 10 || files == 0 {
            let message = format!(
                "gateway.access_log: max_bytes {max_bytes} must be at least 65536 and files {files} at least 1; \
                 `enabled = false` turns the access log off"
            );
            return Err(wrong(message).into());
        }
        let files = certificate.is_some() && key.is_some();
        let message = match mode {
            TlsMode::Files if !files => "gateway.tls: mode \"files\" needs `certificate` and `key`",
            TlsMode::Off | TlsMode::SelfSigned | TlsMode::Acme if certificate.is_some() || key.is_some() => {
                "gateway.tls: `certificate` and `key` are used with mode \"files\" only"
            }
            TlsMode::SelfSigned | TlsMode::Files | TlsMode::Acme
                if self.external_url.as_ref().is_some_and(|u| !u.starts_with("https://")) =>
            {
                "gateway.external_url must begin with https:// when gateway.tls is on"
            }
            _ => return Ok(()),
        };
        Err(wrong(message.to_owned()).into())
    }

    pub fn tls_on(&self) -> bool {
        self.tls.mode != TlsMode::Off
    }

    /// How browsers reach the box; `bound` is where it listens.
    pub fn url(&self, bound: SocketAddr) -> String {
        let scheme = if self.tls_on() { "https" } else { "http" };
        let named = || match (self.tls.mode, self.tls.names.first()) {
            // Its certificate is for the names alone.
            (TlsMode::Acme, Some(name)) => {
                let host = if name.contains(':') { format!("[{name}]") } else { name.clone() };
                let port = bound.port();
                if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") }
            }
            _ => format!("{scheme}://{bound}"),
        };
        self.external_url.clone().unwrap_or_else(named)
    }

    /// Where the certificate comes from. `pki` is the folder of a self-signed one's authority, `host` this machine's
    /// name.
    pub fn tls_source(&self, pki: &Path, bound: SocketAddr, host: &str) -> Option<TlsSource> {
        let Tls { mode, certificate, key, names, acme } = self.tls.clone();
        let wanted = names.clone();
        match mode {
            TlsMode::Off => None,
            TlsMode::SelfSigned | TlsMode::Acme => {
                let mut names = names;
                names.push(host.to_owned());
                if !bound.ip().is_unspecified() {
                    names.push(bound.ip().to_string());
                }
                let outside = self.external_url.as_deref().and_then(|u| u.strip_prefix("https://"));
                let outside = outside.and_then(|rest| rest.split('/').next());
                names.extend(outside.map(|authority| host_of(authority).to_owned()));
                let folder = pki.to_owned();
                Some(match (mode, acme.server(wanted)) {
                    (TlsMode::Acme, Some(acme)) => TlsSource::Acme { folder, names, acme },
                    _ => TlsSource::SelfSigned { folder, names },
                })
            }
            TlsMode::Files => {
                Some(TlsSource::Files { certificate: certificate.unwrap_or_default(), key: key.unwrap_or_default() })
            }
        }
    }
}

/// The host of `HOST[:PORT]`, an IPv6 address without its brackets.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Gateway, String> {
        let gateway: Gateway = toml::from_str(text).map_err(|e| e.to_string())?;
        gateway.validate().map_err(|e| e.to_string())?;
        Ok(gateway)
    }

    #[test]
    fn clients_are_written_as_dex_has_them_or_in_the_files_own_spelling() {
        let text = "password_grant = true\n\
            [[clients]]\nid = \"a\"\nsecret = \"0123456789abcdef\"\nredirectURIs = [\"https://a.example/cb\"]\n\
            [[clients]]\nid = \"b\"\npublic = true\nredirect_uris = [\"http://localhost:8000\"]\n\
            grants = [\"authorization_code\", \"device_code\"]\nscopes = [\"openid\"]\nconnectors = [\"local\"]\n";
        let gateway = parse(text).unwrap();
        assert_eq!(gateway.clients[0].redirect_uris, ["https://a.example/cb"]);
        assert_eq!(gateway.clients[1].grants.as_ref().map(Vec::len), Some(2));
        assert!(!format!("{gateway:?}").contains("0123456789abcdef"), "secrets are not shown");
        assert!(!toml::to_string(&gateway).unwrap().contains("0123456789abcdef"));
        assert!(parse("[[clients]]\nid = \"a\"\nredirect = []\n").unwrap_err().contains("redirect"));
    }

    #[test]
    fn tls_needs_what_it_needs() {
        assert!(parse("[tls]\nmode = \"files\"\ncertificate = \"/c\"").unwrap_err().contains("needs"));
        assert!(parse("[tls]\nmode = \"self-signed\"\nkey = \"/k\"").unwrap_err().contains("only"));
        assert!(parse("external_url = \"http://x\"\n[tls]\nmode = \"self-signed\"").unwrap_err().contains("https"));
        assert!(parse("[tls]\nmode = \"on\"").is_err());
        let gateway = parse("external_url = \"https://lab.example:8443/\"\n[tls]\nmode = \"self-signed\"").unwrap();
        let bound = "127.0.0.1:8443".parse().unwrap();
        let Some(TlsSource::SelfSigned { names, .. }) = gateway.tls_source(Path::new("/pki"), bound, "box") else {
            panic!("no source");
        };
        assert_eq!(names, ["box", "127.0.0.1", "lab.example"]);
        assert_eq!(host_of("[::1]:8443"), "::1");
        assert_eq!(Gateway::default().url(bound), "http://127.0.0.1:8443");
    }
}
