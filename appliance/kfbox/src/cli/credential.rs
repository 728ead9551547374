//! `kfbox credential`: signs somebody in through the device flow and prints an ExecCredential, as kubectl asks of a
//! credential plugin (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>).
//!
//! Guarantees: tokens go to the issuer's own origin alone, and over plain HTTP to this machine alone; what is kept is
//! readable by its owner only; of many kubectls at once one signs in and the others use what it got, so that a refresh
//! token is never used twice.

use super::CredentialArgs;
use crate::failure::{Code, Failure};
use anyhow::{Context, bail};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use kfbox_gateway::web::WebClient;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use url::{Host, Url};

const SCOPE: &str = "openid email groups profile offline_access";
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// A token that ends this soon is not handed out: the request that it is for may take a while.
const MARGIN: i64 = 60;

/// What is kept of a sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    id_token: String,
    #[serde(default)]
    refresh_token: Option<String>,
}

pub async fn run(args: CredentialArgs) -> anyhow::Result<ExitCode> {
    let cache = args.cache.clone().map_or_else(default_cache, Ok)?;
    DirBuilder::new().recursive(true).mode(0o700).create(&cache).with_context(|| cache.display().to_string())?;
    let name = hex::encode(&Sha256::digest(format!("{}\n{}", args.issuer, args.client_id))[..16]);
    let path = cache.join(format!("{name}.json"));
    let kept = read(&path);
    if !args.sign_out
        && let Some(kept) = kept.filter(Kept::holds)
    {
        return print(&kept);
    }
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path.with_extension("lock"))?;
    let _lock = tokio::task::spawn_blocking(move || Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e))
        .await?
        .context("cannot lock the kept sign-in")?;
    let authority = args.ca_data.as_deref().map(|data| STANDARD.decode(data)).transpose();
    let authority = authority.context("--ca-data is not base64")?;
    let issuer = Issuer::discover(&args, authority.as_deref()).await?;
    if args.sign_out {
        if let Some(refresh) = read(&path).and_then(|kept| kept.refresh_token) {
            issuer.revoke(&refresh).await?;
        }
        let _ = fs::remove_file(&path);
        eprintln!("signed out of {}", args.issuer);
        return Ok(ExitCode::SUCCESS);
    }
    // Another kubectl may have been faster.
    let kept = read(&path);
    if let Some(kept) = kept.as_ref().filter(|k| k.holds()) {
        return print(kept);
    }
    let refreshed = match kept.and_then(|k| k.refresh_token) {
        Some(token) => issuer.refresh(&token).await?,
        None => None,
    };
    let got = match refreshed {
        Some(kept) => kept,
        None => issuer.sign_in().await?,
    };
    write(&path, &got)?;
    print(&got)
}

/// Beside kubectl's own cache.
fn default_cache() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("KUBECACHEDIR").or_else(|| set("HOME").map(|home| home.join(".kube/cache")));
    Ok(cache.context("neither KUBECACHEDIR nor HOME is set; name a folder: --cache DIR")?.join("kfbox-oidc"))
}

fn read(path: &Path) -> Option<Kept> {
    // What cannot be read is as good as nothing: signing in again mends it.
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, kept: &Kept) -> anyhow::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path).with_context(|| path.display().to_string())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Kept {
    fn of(answer: &Value) -> Option<Self> {
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        Some(Self { id_token: text("id_token")?, refresh_token: text("refresh_token") })
    }

    /// The token's last second, as it says itself: the box checks it, this only saves asking in vain.
    fn ends(&self) -> Option<i64> {
        let payload = URL_SAFE_NO_PAD.decode(self.id_token.split('.').nth(1)?).ok()?;
        serde_json::from_slice::<Value>(&payload).ok()?["exp"].as_i64()
    }

    fn holds(&self) -> bool {
        self.ends().is_some_and(|ends| ends > now() + MARGIN)
    }
}

#[expect(clippy::disallowed_methods, reason = "how kubectl tells a plugin what it wants")]
fn print(kept: &Kept) -> anyhow::Result<ExitCode> {
    let asked: Value =
        std::env::var("KUBERNETES_EXEC_INFO").ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    let version = asked["apiVersion"].as_str().unwrap_or("client.authentication.k8s.io/v1");
    let ends = chrono::DateTime::from_timestamp(kept.ends().unwrap_or_default() - MARGIN, 0).unwrap_or_default();
    let credential = json!({
        "apiVersion": version,
        "kind": "ExecCredential",
        "status": {
            "token": kept.id_token,
            "expirationTimestamp": ends.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        },
    });
    println!("{credential}");
    Ok(ExitCode::SUCCESS)
}

struct Issuer {
    web: WebClient,
    client: String,
    token: Url,
    device: Url,
    revocation: Option<Url>,
}

impl Issuer {
    async fn discover(args: &CredentialArgs, authority: Option<&[u8]>) -> anyhow::Result<Self> {
        let issuer = &args.issuer;
        if !may_carry_tokens(issuer) {
            let message = format!("{issuer} is not https, and not on this machine");
            return Err(Failure::new(Code::General, message, "serve the box with `kfbox up --tls`").into());
        }
        let web = WebClient::new(authority)?;
        let text = issuer.as_str().trim_end_matches('/');
        let document =
            web.get(&format!("{text}/.well-known/openid-configuration").parse()?).await.map_err(|error| {
                let next = "check that kfbox runs there, and its certificate (`kfbox kubeconfig --oidc` again)";
                Failure::new(Code::General, format!("cannot sign in at {issuer}: {error}"), next)
            })?;
        if document["issuer"].as_str() != Some(text) {
            bail!("{issuer} says that it is the issuer {}", document["issuer"]);
        }
        let endpoint = |name: &str| -> anyhow::Result<Url> {
            let url: Url = document[name].as_str().with_context(|| format!("{issuer} names no {name}"))?.parse()?;
            if url.origin() != issuer.origin() {
                bail!("{issuer} names a {name} on another host, {url}: nothing is sent there");
            }
            Ok(url)
        };
        Ok(Self {
            web,
            client: args.client_id.clone(),
            token: endpoint("token_endpoint")?,
            device: endpoint("device_authorization_endpoint")?,
            revocation: endpoint("revocation_endpoint").ok(),
        })
    }

    /// `None` when the sign-in has ended and must be made anew.
    async fn refresh(&self, token: &str) -> anyhow::Result<Option<Kept>> {
        let pairs = [("grant_type", "refresh_token"), ("client_id", &self.client), ("refresh_token", token)];
        let (status, answer) = self.web.post(&self.token, &pairs, None).await?;
        if status.is_success() {
            return Ok(Some(Kept::of(&answer).context("the box sent no ID token")?));
        }
        match answer["error"].as_str() {
            Some("invalid_grant" | "unauthorized_client" | "invalid_scope") => Ok(None),
            _ => bail!("the sign-in cannot be renewed: {}", words(&answer)),
        }
    }

    async fn sign_in(&self) -> anyhow::Result<Kept> {
        let (status, begun) =
            self.web.post(&self.device, &[("client_id", &self.client), ("scope", SCOPE)], None).await?;
        if !status.is_success() {
            bail!("cannot begin to sign in: {}", words(&begun));
        }
        let text =
            |name: &str| begun[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in the answer"));
        let (code, user_code) = (text("device_code")?, text("user_code")?);
        let page = text("verification_uri_complete").or_else(|_| text("verification_uri"))?;
        eprintln!(
            "To sign in, open\n\n    {}\n\nand let the program in that shows {}",
            shown(&page),
            shown(&user_code)
        );
        let ends = Instant::now() + Duration::from_secs(begun["expires_in"].as_u64().unwrap_or(300));
        let mut interval = Duration::from_secs(begun["interval"].as_u64().unwrap_or(5).clamp(1, 60));
        let pairs = [("grant_type", DEVICE_GRANT), ("client_id", &*self.client), ("device_code", &*code)];
        while Instant::now() < ends {
            tokio::time::sleep(interval).await;
            let (status, answer) = self.web.post(&self.token, &pairs, None).await?;
            if status.is_success() {
                return Kept::of(&answer).context("the box sent no ID token");
            }
            match answer["error"].as_str() {
                Some("authorization_pending") => {}
                Some("slow_down") => interval += Duration::from_secs(5),
                _ => bail!("not signed in: {}", words(&answer)),
            }
        }
        bail!("nobody signed in within the time that the code is good for")
    }

    async fn revoke(&self, token: &str) -> anyhow::Result<()> {
        let Some(url) = &self.revocation else { return Ok(()) };
        let (status, answer) = self.web.post(url, &[("client_id", &self.client), ("token", token)], None).await?;
        if !status.is_success() {
            bail!("the sign-in cannot be revoked: {}", words(&answer));
        }
        Ok(())
    }
}

/// https anywhere; plain HTTP only to this machine.
fn may_carry_tokens(url: &Url) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && here)
}

/// What another machine said, fit for a terminal.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

fn words(answer: &Value) -> String {
    let found = ["error_description", "error"].iter().find_map(|name| answer[*name].as_str());
    shown(found.unwrap_or("the answer makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_kept_privately_and_only_while_they_hold() {
        use std::os::unix::fs::PermissionsExt as _;
        let token = |ends: i64| Kept {
            id_token: format!("e30.{}.x", URL_SAFE_NO_PAD.encode(json!({"exp": ends}).to_string())),
            refresh_token: None,
        };
        assert!(token(now() + 3600).holds() && !token(now() + 30).holds());
        let broken = Kept { id_token: "nonsense".into(), refresh_token: None };
        assert!(!broken.holds());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, &broken).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path), Some(broken));
        fs::write(&path, "half").unwrap();
        assert_eq!(read(&path), None);
    }

    #[test]
    fn tokens_travel_over_https_or_not_at_all() {
        for (url, fine) in [
            ("https://lab.example/dex", true),
            ("http://127.0.0.1:8080/dex", true),
            ("http://localhost:8080/dex", true),
            ("http://[::1]/dex", true),
            ("http://lab.example/dex", false),
            ("http://127.0.0.1.evil.example/dex", false),
            ("ftp://127.0.0.1/dex", false),
        ] {
            assert_eq!(may_carry_tokens(&url.parse().unwrap()), fine, "{url}");
        }
        assert_eq!(shown("a\u{1b}[2Jb"), "a[2Jb");
    }
}
