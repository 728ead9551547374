//! `kfbox user`.

use super::UserCommand;
use crate::{
    control::Client,
    failure::{Code, Failure},
};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::{
    io::{BufRead, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

pub async fn run(data_dir: PathBuf, command: UserCommand) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    match command {
        UserCommand::Add { email } => {
            let password = read_password()?;
            let _: Value = client.post("/v1/users", &json!({"email": email, "password": password})).await?;
            println!("added {email}");
        }
        UserCommand::Passwd { email } => {
            let password = read_password()?;
            let _: Value = client.post("/v1/users/password", &json!({"email": email, "password": password})).await?;
            println!("changed the password of {email}; their sessions have ended");
        }
        UserCommand::List => {
            let users: Vec<Value> = client.get("/v1/users").await?;
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["USER", "STATE"]);
            for user in users {
                let state = if user["disabled"] == true { "disabled" } else { "active" };
                table.add_row([user["email"].as_str().unwrap_or_default(), state]);
            }
            println!("{table}");
        }
    }
    Ok(ExitCode::SUCCESS)
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
