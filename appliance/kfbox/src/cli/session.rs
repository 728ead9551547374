//! `kfbox session`.

use super::{Output, SessionCommand};
use crate::control::{Client, SessionRow};
use comfy_table::{Table, presets};
use serde_json::Value;
use std::{path::PathBuf, process::ExitCode};

pub async fn run(data_dir: PathBuf, command: SessionCommand) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    match command {
        SessionCommand::List { user, output } => {
            let path =
                user.map_or_else(|| "/v1/sessions".into(), |u| format!("/v1/sessions?user={}", super::encode(&u)));
            let rows: Vec<SessionRow> = client.get(&path).await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
                Output::Table => println!("{}", table(&rows)),
            }
        }
        SessionCommand::Revoke { ids } => {
            for id in ids {
                let _: Value = client.delete(&format!("/v1/sessions?id={}", super::encode(&id))).await?;
                println!("ended {id}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[SessionRow]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["ID", "USER", "SIGNED IN", "EXPIRES", "FROM", "BROWSER"]);
    for row in rows {
        let (created, expires) = (super::moment(row.created), super::moment(row.expires));
        table.add_row([&row.id, &row.email, &created, &expires, &row.address, &row.agent]);
    }
    table
}
