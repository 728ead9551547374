//! `kfbox kubeconfig`.

use crate::control::{Client, Status};
use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kfbox_gateway::COMMAND_LINE_CLIENT;
use serde_json::{Value, json};
use std::{
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

pub async fn run(
    data_dir: PathBuf,
    output: Option<PathBuf>,
    merge: Option<PathBuf>,
    oidc: bool,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    let mut ours: Value = client.get("/v1/kubeconfig").await?;
    if oidc {
        let status: Status = client.get("/v1/status").await?;
        let authority = status.url.starts_with("https:").then(|| super::trust::authority(&data_dir)).flatten();
        ours = with_sign_in(&ours, &status.url, authority.as_deref());
    }
    if let Some(path) = output {
        write_private(&path, &serde_yaml::to_string(&ours)?)?;
        println!("wrote {}", path.display());
    } else if let Some(path) = merge {
        #[expect(clippy::disallowed_methods, reason = "kubectl's own rule for where its configuration lies")]
        let path = if path.as_os_str().is_empty() {
            let first = |list: String| list.split(':').find(|p| !p.is_empty()).map(PathBuf::from);
            std::env::var("KUBECONFIG")
                .ok()
                .and_then(first)
                .or_else(|| std::env::var("HOME").ok().map(|home| Path::new(&home).join(".kube/config")))
                .context("neither KUBECONFIG nor HOME is set; name a file: --merge FILE")?
        } else {
            path
        };
        let theirs = match std::fs::read_to_string(&path) {
            Ok(text) => serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        let merged = merge_into(theirs, &ours);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        write_private(&path, &serde_yaml::to_string(&merged)?)?;
        println!("merged into {}; the current context is {}", path.display(), merged["current-context"]);
    } else {
        print!("{}", serde_yaml::to_string(&ours)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The same cluster, but whoever uses the file signs in as themselves: it holds no secret and can be given to people.
/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>
fn with_sign_in(ours: &Value, url: &str, authority: Option<&str>) -> Value {
    const NAME: &str = "kfbox-oidc";
    let issuer = format!("{}/dex", url.trim_end_matches('/'));
    let mut args = vec!["credential".to_owned(), "--issuer".into(), issuer];
    args.extend(["--client-id".into(), COMMAND_LINE_CLIENT.into()]);
    if let Some(pem) = authority {
        args.extend(["--ca-data".into(), STANDARD.encode(pem)]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": ours["clusters"],
        "users": [{"name": NAME, "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "kfbox",
            "args": args,
            "env": null,
            "interactiveMode": "IfAvailable",
            "provideClusterInfo": false,
            "installHint": "kfbox must be on the PATH: it signs you in to the box",
        }}}],
        "contexts": [{"name": NAME, "context": {"cluster": "kfbox", "user": NAME}}],
        "current-context": NAME,
        "preferences": {},
    })
}

/// Replaces entries of the same name, keeps all others and all unknown fields, and switches to our context.
fn merge_into(theirs: Value, ours: &Value) -> Value {
    let mut merged = if theirs.is_object() { theirs } else { json!({"apiVersion": "v1", "kind": "Config"}) };
    for list in ["clusters", "users", "contexts"] {
        let mut entries = merged[list].as_array().cloned().unwrap_or_default();
        for entry in ours[list].as_array().into_iter().flatten() {
            entries.retain(|e| e["name"] != entry["name"]);
            entries.push(entry.clone());
        }
        merged[list] = entries.into();
    }
    merged["current-context"] = ours["current-context"].clone();
    merged
}

/// Whole or not at all, and only for its owner: it holds a key.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    // A name of this process's own: two that write the same file at once must not take each other's away.
    let temporary = path.with_extension(format!("kfbox-tmp-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_for_people_holds_no_secret() {
        let ours = json!({
            "clusters": [{"name": "kfbox", "cluster": {"server": "https://x", "certificate-authority-data": "CA"}}],
            "users": [{"name": "kfbox", "user": {"client-key-data": "secret"}}]
        });
        let given = with_sign_in(&ours, "https://lab.example/", Some("PEM"));
        assert!(!given.to_string().contains("secret"));
        assert_eq!(given["clusters"], ours["clusters"]);
        let args = &given["users"][0]["user"]["exec"]["args"];
        assert_eq!((&args[2], &args[6]), (&json!("https://lab.example/dex"), &json!("UEVN")));
    }

    #[test]
    fn merging_keeps_other_clusters_and_replaces_ours() {
        let theirs = json!({
            "clusters": [{"name": "work", "cluster": {}}, {"name": "kfbox", "cluster": {"server": "old"}}],
            "contexts": [{"name": "work", "context": {}}], "current-context": "work", "preferences": {"colors": true}
        });
        let ours = json!({
            "clusters": [{"name": "kfbox", "cluster": {"server": "new"}}], "users": [{"name": "kfbox"}],
            "contexts": [{"name": "kfbox"}], "current-context": "kfbox"
        });
        let merged = merge_into(theirs, &ours);
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["clusters"][1]["cluster"]["server"], "new");
        assert_eq!(merged["current-context"], "kfbox");
        assert_eq!(merged["preferences"]["colors"], true);
        assert_eq!(merge_into(merged.clone(), &ours), merged);
    }
}
