//! `[gateway.tls.acme]`: a certificate from an ACME server (RFC 8555), public or a lab's own.

use super::gateway::host_of;
use kfbox_gateway::{AcmeChallenge, AcmeConfig};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};
use url::Url;

/// More names belong into more certificates: Let's Encrypt takes a hundred.
const MOST_NAMES: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Acme {
    /// The server's directory.
    pub directory: String,
    /// E-mail addresses that the server may write to.
    pub contact: Vec<String>,
    /// That you agree to the server's terms. Nobody else can say so: without it nothing is ordered.
    pub terms_agreed: bool,
    /// `tls-alpn-01` (on port 443, by the gateway itself) or `http-01` (on port 80, by `http_address`).
    pub challenge: AcmeChallenge,
    /// A listener for plain HTTP: answers `http-01`, and leads everybody else to https.
    pub http_address: Option<SocketAddr>,
    /// The id of an account that the server's people know (external account binding), and the file of its key.
    pub eab_key_id: Option<String>,
    pub eab_hmac_file: Option<PathBuf>,
    /// Authorities to trust besides the machine's, in PEM: of a server in the lab.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            contact: Vec::new(),
            terms_agreed: false,
            challenge: AcmeChallenge::default(),
            http_address: None,
            eab_key_id: None,
            eab_hmac_file: None,
            ca_bundle: None,
        }
    }
}

impl Acme {
    /// What is wrong with it, for these names and this address of the box.
    pub(super) fn validate(&self, names: &[String], external_url: Option<&str>) -> Result<(), String> {
        let say = |text: String| Err(format!("gateway.tls: {text}"));
        if !self.terms_agreed {
            return say(format!(
                "acme.terms_agreed must be true: read the terms that {} names and agree to them",
                self.directory
            ));
        }
        match Url::parse(&self.directory) {
            Ok(url) if url.scheme() == "https" && url.host().is_some() => {}
            _ => return say(format!("acme.directory {:?} must be an https:// address", self.directory)),
        }
        if names.is_empty() || names.len() > MOST_NAMES {
            return say(format!("mode \"acme\" needs 1 to {MOST_NAMES} `names` for the certificate"));
        }
        if let Some(bad) = names.iter().find(|name| !is_name(name)) {
            return say(format!(
                "names: {bad:?} must be a host name in lower case (not *.NAME, which needs a DNS challenge) or an address"
            ));
        }
        if let Some(twice) = names.iter().enumerate().find(|(n, name)| names[..*n].contains(name)) {
            return say(format!("names: {:?} is there twice", twice.1));
        }
        let outside = external_url.and_then(|url| url.strip_prefix("https://"));
        let outside = outside.and_then(|rest| rest.split('/').next()).map(host_of);
        if let Some(host) = outside.filter(|host| !names.iter().any(|n| n.eq_ignore_ascii_case(host))) {
            return say(format!(
                "the host of gateway.external_url, {host}, is not among `names`: browsers would refuse"
            ));
        }
        if let Some(bad) = self.contact.iter().find(|c| !is_address(c)) {
            return say(format!("acme.contact: {bad:?} must be an e-mail address"));
        }
        if self.challenge == AcmeChallenge::Http && self.http_address.is_none() {
            return say("acme.challenge \"http-01\" needs `http_address`, such as 0.0.0.0:80".into());
        }
        match (&self.eab_key_id, &self.eab_hmac_file) {
            (Some(_), None) | (None, Some(_)) => {
                say("acme.eab_key_id and acme.eab_hmac_file are needed both, or neither".into())
            }
            (Some(id), _) if id.is_empty() => say("acme.eab_key_id is empty".into()),
            _ => Ok(()),
        }
    }

    /// What the gateway needs of it. `None`: never for what was validated.
    pub(super) fn server(self, names: Vec<String>) -> Option<AcmeConfig> {
        let Self { directory, contact, terms_agreed, challenge, http_address: _, eab_key_id, eab_hmac_file, ca_bundle } =
            self;
        let directory = Url::parse(&directory).ok().filter(|_| terms_agreed)?;
        let external = eab_key_id.zip(eab_hmac_file);
        Some(AcmeConfig { directory, contact, names, challenge, external, ca_bundle, first_retry: None })
    }

    pub(super) fn files(&mut self) -> [&mut Option<PathBuf>; 2] {
        [&mut self.eab_hmac_file, &mut self.ca_bundle]
    }
}

fn is_name(name: &str) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_string() == name;
    }
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label =
        |l: &str| !l.is_empty() && l.len() <= 63 && l.chars().all(fine) && !l.starts_with('-') && !l.ends_with('-');
    name.len() <= 253 && name.split('.').all(label)
}

fn is_address(contact: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | ',' | ':');
    contact.split_once('@').is_some_and(|(who, host)| !who.is_empty() && host.contains('.')) && !contact.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::super::gateway::Gateway;
    use kfbox_gateway::TlsSource;
    use std::path::Path;

    const FINE: &str =
        "[tls]\nmode = \"acme\"\nnames = [\"lab.example\", \"10.0.0.7\"]\n[tls.acme]\nterms_agreed = true\n";

    fn parse(text: &str) -> Result<Gateway, String> {
        let gateway: Gateway = toml::from_str(text).map_err(|e| e.to_string())?;
        gateway.validate().map_err(|e| e.to_string())?;
        Ok(gateway)
    }

    #[test]
    fn a_server_is_taken_with_its_names_and_the_box_is_known_by_the_first() {
        let text = format!("{FINE}directory = \"https://ca.lab/dir\"\neab_key_id = \"k\"\neab_hmac_file = \"/h\"\n");
        let gateway = parse(&text).unwrap();
        let bound = "0.0.0.0:8443".parse().unwrap();
        let Some(TlsSource::Acme { names, acme, .. }) = gateway.tls_source(Path::new("/pki"), bound, "box") else {
            panic!("no source");
        };
        assert_eq!(acme.names, ["lab.example", "10.0.0.7"]);
        assert_eq!(names, ["lab.example", "10.0.0.7", "box"], "of the box's own until then");
        assert_eq!(acme.external, Some(("k".into(), "/h".into())));
        assert_eq!(gateway.url(bound), "https://lab.example:8443");
        assert_eq!(gateway.url("0.0.0.0:443".parse().unwrap()), "https://lab.example");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let with = |more: &str| parse(&format!("{FINE}{more}\n"));
        let names = |names: &str| parse(&FINE.replace("\"lab.example\", \"10.0.0.7\"", names));
        for (outcome, said) in [
            (parse(&FINE.replace("true", "false")), "terms_agreed"),
            (with("directory = \"http://ca.lab/dir\""), "https://"),
            (with("directory = \"ca.lab\""), "https://"),
            (names(""), "names"),
            (names("\"*.lab.example\""), "DNS"),
            (names("\"Lab.example\""), "lower case"),
            (names("\"lab_.example\""), "host name"),
            (names("\"a.example\", \"a.example\""), "twice"),
            (with("contact = [\"ops\"]"), "e-mail"),
            (with("contact = [\"ops@lab.example?cc=x@y.example\"]"), "e-mail"),
            (with("challenge = \"http-01\""), "http_address"),
            (with("challenge = \"dns-01\""), "dns-01"),
            (with("eab_key_id = \"k\""), "both"),
            (with("agreed = true"), "agreed"),
            (parse(&format!("external_url = \"https://other.example\"\n{FINE}")), "other.example"),
            (parse(&format!("external_url = \"http://lab.example\"\n{FINE}")), "https://"),
            (parse(&FINE.replace("\"acme\"", "\"self-signed\"")), "only"),
            (parse(&FINE.replace("[tls.acme]", "key = \"/k\"\n[tls.acme]")), "files"),
        ] {
            let error = outcome.expect_err(said);
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
