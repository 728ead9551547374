//! `kfbox user`.

use super::{Output, UserCommand};
use crate::{
    control::{Client, ImportedUser, NewUser, UserChange, UserRow},
    failure::{Code, Failure},
};
use anyhow::Context as _;
use comfy_table::{Table, presets};
use kfbox_api::names::ADMIN_GROUP;
use serde_json::Value;
use std::{
    io::{BufRead, IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A configuration of a few thousand people is far smaller.
const LARGEST_IMPORT: u64 = 16 << 20;

pub async fn run(data_dir: PathBuf, command: UserCommand) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    let change = async |change: UserChange| client.post::<UserRow>("/v1/users/change", &change).await;
    match command {
        UserCommand::Add { email, groups, admin } => {
            let new = NewUser { email, password: read_password()?, groups: with_admin(groups, admin) };
            let user: UserRow = client.post("/v1/users", &new).await?;
            println!("added {}, with the namespace {}", user.email, user.namespace);
        }
        UserCommand::Passwd { email } => {
            let new = NewUser { email, password: read_password()?, groups: Vec::new() };
            let _: Value = client.post("/v1/users/password", &new).await?;
            println!("changed the password of {}; their sessions have ended", new.email);
        }
        UserCommand::Groups { email, groups, admin } => {
            let groups = Some(with_admin(groups, admin));
            let user = change(UserChange { email, disabled: None, groups }).await?;
            let groups = if user.groups.is_empty() { "no group".into() } else { user.groups.join(", ") };
            println!("{} is in {groups}; their sessions have ended", user.email);
        }
        UserCommand::Disable { email } => {
            let user = change(UserChange { email, disabled: Some(true), groups: None }).await?;
            println!("disabled {}; their sessions have ended, and their tokens do not work", user.email);
        }
        UserCommand::Enable { email } => {
            let user = change(UserChange { email, disabled: Some(false), groups: None }).await?;
            println!("enabled {}", user.email);
        }
        UserCommand::Remove { email } => {
            let user: UserRow = client.delete(&format!("/v1/users?id={}", super::encode(&email))).await?;
            println!("removed {}", user.email);
            println!(
                "  The namespace {0} and its data are kept; to delete them: kubectl delete profile {0}",
                user.namespace
            );
        }
        UserCommand::Import { file } => return import(&client, &file).await,
        UserCommand::List { output } => {
            let users: Vec<UserRow> = client.get("/v1/users").await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&users)?),
                Output::Table => println!("{}", table(&users)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn with_admin(mut groups: Vec<String>, admin: bool) -> Vec<String> {
    if admin && !groups.iter().any(|g| g == ADMIN_GROUP) {
        groups.push(ADMIN_GROUP.into());
    }
    groups
}

fn table(users: &[UserRow]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["USER", "STATE", "NAMESPACE", "GROUPS", "CREATED"]);
    for user in users {
        let state = match (user.disabled, user.departed) {
            (true, _) => "disabled",
            (false, true) => "gone from directory",
            (false, false) => "active",
        };
        let created = super::moment(user.created);
        table.add_row([user.email.as_str(), state, &user.namespace, &user.groups.join(","), &created]);
    }
    table
}

/// Each person on a line of its own; those who cannot be added do not keep the others out.
async fn import(client: &Client, file: &Path) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(LARGEST_IMPORT).read_to_string(&mut text)
    } else {
        let open = std::fs::File::open(file);
        open.with_context(|| format!("cannot open {}", file.display()))?.take(LARGEST_IMPORT).read_to_string(&mut text)
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    let mut code = ExitCode::SUCCESS;
    #[expect(clippy::disallowed_methods, reason = "the file says which variables hold hashes, as it does for Dex")]
    let variable = |name: &str| std::env::var(name).ok();
    for found in dex_users(&text, variable)? {
        match found {
            Ok(user) => match client.post::<UserRow>("/v1/users/import", &user).await {
                Ok(added) => println!("added {}, with the namespace {}", added.email, added.namespace),
                Err(error) if error.downcast_ref::<Failure>().is_some_and(|f| f.code == Code::NotRunning) => {
                    return Err(error);
                }
                Err(error) => {
                    eprintln!("not added: {}: {error}", user.email);
                    code = ExitCode::FAILURE;
                }
            },
            Err(why) => {
                eprintln!("not added: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// `staticPasswords` of Dex's configuration, bare or as `config.yaml` of a ConfigMap. A hash stands in the file, or in
/// the environment variable that `hashFromEnv` names. Source: dexidp/dex `cmd/dex/config.go`.
fn dex_users(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Vec<Result<ImportedUser, String>>> {
    let nobody = || {
        Failure::new(
            Code::General,
            "the file has no staticPasswords",
            "give the configuration of Dex, or the ConfigMap that holds it as config.yaml",
        )
    };
    let file: Value = serde_yaml::from_str(text).context("the file is no YAML")?;
    let inner = match file.pointer("/data/config.yaml").and_then(Value::as_str) {
        Some(inner) => serde_yaml::from_str(inner).context("the ConfigMap's config.yaml is no YAML")?,
        None => file,
    };
    let listed = inner.get("staticPasswords").and_then(Value::as_array).ok_or_else(nobody)?;
    let user = |entry: &Value| {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        let email = text("email");
        if email.is_empty() {
            return Err("an entry of staticPasswords has no email".into());
        }
        let hash = match (text("hash"), text("hashFromEnv")) {
            (hash, _) if !hash.is_empty() => hash,
            (_, name) if !name.is_empty() => variable(&name)
                .filter(|hash| !hash.is_empty())
                .ok_or_else(|| format!("{email}: the environment variable {name} holds no hash"))?,
            _ => return Err(format!("{email}: neither hash nor hashFromEnv is given")),
        };
        let groups = entry.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
        let groups = groups.iter().filter_map(Value::as_str).map(String::from).collect();
        Ok(ImportedUser { email, hash, groups })
    };
    Ok(listed.iter().map(user).collect())
}

/// One line of standard input; the terminal does not echo it.
fn read_password() -> anyhow::Result<String> {
    let input = std::io::stdin();
    let mut line = String::new();
    if input.is_terminal() {
        eprint!("Password: ");
        let before = nix::sys::termios::tcgetattr(&input)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(nix::sys::termios::LocalFlags::ECHO);
        nix::sys::termios::tcsetattr(&input, nix::sys::termios::SetArg::TCSANOW, &hidden)?;
        let read = input.lock().read_line(&mut line);
        nix::sys::termios::tcsetattr(&input, nix::sys::termios::SetArg::TCSANOW, &before)?;
        eprintln!();
        read?;
    } else {
        input.lock().read_line(&mut line)?;
    }
    let password = line.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() {
        return Err(
            Failure::new(Code::General, "no password was given", "type it, or pipe it to standard input").into()
        );
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEX: &str = "\
issuer: http://dex.auth.svc.cluster.local:5556/dex
staticPasswords:
- {email: ann@example.com, hash: $2y$12$abc, username: ann, groups: [team]}
- {email: bob@example.com, hashFromEnv: BOB}
- {email: eve@example.com, hashFromEnv: EVE}
- {hash: $2y$12$abc}
";

    #[test]
    fn dex_users_are_found_bare_and_in_a_config_map() {
        let indented = DEX.replace('\n', "\n    ");
        let wrapped = format!("kind: ConfigMap\ndata:\n  config.yaml: |\n    {indented}");
        for text in [DEX, &wrapped] {
            let found = dex_users(text, |name| (name == "BOB").then(|| "$2a$10$xyz".into())).unwrap();
            let good: Vec<_> = found.iter().flatten().map(|u| (u.email.as_str(), u.hash.as_str())).collect();
            assert_eq!(good, [("ann@example.com", "$2y$12$abc"), ("bob@example.com", "$2a$10$xyz")]);
            assert_eq!(found[0].as_ref().ok().map(|u| u.groups.clone()), Some(vec!["team".to_owned()]));
            let bad: Vec<String> = found.into_iter().filter_map(Result::err).collect();
            assert!(bad[0].contains("EVE") && bad[1].contains("no email"), "{bad:?}");
        }
        for text in ["a: b", "- x", ": :", ""] {
            assert!(dex_users(text, |_| None).is_err(), "{text:?}");
        }
    }
}
