//! `kfbox gpu`: which accelerators there are, who has them, and why one cannot be had.

use super::Output;
use crate::control::{Client, GpuRow, Gpus};
use comfy_table::{Table, presets};
use std::{path::PathBuf, process::ExitCode};

pub async fn run(data_dir: PathBuf, output: Output) -> anyhow::Result<ExitCode> {
    let gpus: Gpus = Client::new(&data_dir).get("/v1/gpus").await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&gpus)?),
        Output::Table => {
            if !gpus.gpus.is_empty() {
                println!("{}", table(&gpus.gpus));
            }
            for (vendor, why) in &gpus.absent {
                println!("{vendor}: {why}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[GpuRow]) -> Table {
    let mut table = Table::new();
    let header = ["VENDOR", "INDEX", "NAME", "MEMORY", "RESOURCE", "HEALTH", "PODS", "DRIVER", "ID"];
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        let health = if row.fault.is_empty() { "ok" } else { &row.fault };
        let pods = if row.held_by.is_empty() { "-".to_owned() } else { row.held_by.join(" ") };
        let memory = format!("{} MiB", row.memory_bytes >> 20);
        let (vendor, name, driver) = (row.vendor.as_str(), row.name.as_str(), row.driver.as_str());
        table.add_row([vendor, &row.index, name, &memory, &row.resource, health, &pods, driver, &row.id]);
    }
    table
}
