//! `kfbox image`.

use super::{ImageCommand, Output, progress::Layers};
use crate::{
    control::{Client, ImageRequest, ImageRow, Progress},
    failure::{Code, Failure},
};
use comfy_table::{Table, presets};
use http::Method;
use std::{path::PathBuf, process::ExitCode};

pub async fn run(data_dir: PathBuf, command: ImageCommand) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    match command {
        ImageCommand::Load { path, name } => {
            let path = path.canonicalize().map_err(|e| {
                Failure::new(
                    Code::General,
                    format!("{}: {e}", path.display()),
                    "name an OCI archive, OCI layout or `docker save` file",
                )
            })?;
            let request = ImageRequest { path: path.display().to_string(), name };
            follow(&client, "/v1/images/import", &request).await
        }
        ImageCommand::Pull { name } => {
            follow(&client, "/v1/images/pull", &ImageRequest { path: String::new(), name: Some(name) }).await
        }
        ImageCommand::List { output } => {
            let rows: Vec<ImageRow> = client.get("/v1/images").await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
                Output::Table => println!("{}", table(&rows)),
            }
            Ok(ExitCode::SUCCESS)
        }
        ImageCommand::Remove { names } => {
            for name in names {
                let _: serde_json::Value = client.delete(&format!("/v1/images?name={}", super::encode(&name))).await?;
                println!("removed {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn follow(client: &Client, path: &str, request: &ImageRequest) -> anyhow::Result<ExitCode> {
    let mut lines = client.lines::<Progress>(Method::POST, path, Some(request)).await?;
    let mut bars = Layers::new();
    while let Some(event) = lines.next().await? {
        match event {
            Progress::Layer { .. } => bars.show(&event),
            Progress::Done { images } => {
                for image in images {
                    println!("{}  {}", image.name, image.id);
                }
                return Ok(ExitCode::SUCCESS);
            }
            Progress::Error { message } => {
                return Err(Failure::new(Code::General, message, "").into());
            }
        }
    }
    Err(Failure::new(Code::General, "the daemon ended the connection", "`kfbox logs` shows why").into())
}

fn table(rows: &[ImageRow]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["IMAGE", "ID", "SIZE", "CREATED"]);
    for row in rows {
        let id: String = row.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1} MiB", row.size_bytes as f64 / f64::from(1 << 20));
        table.add_row([row.name.clone(), id, size, row.created.clone().unwrap_or_default()]);
    }
    table
}
