//! `kfbox status` and `kfbox version`.

use crate::control::{Client, Status};
use chrono::{DateTime, Utc};
use comfy_table::{Table, presets};
use kfbox_base::readiness::State;
use kfbox_gateway::AcmeStatus;
use std::{path::PathBuf, process::ExitCode};

pub async fn status(data_dir: PathBuf, json: bool) -> anyhow::Result<ExitCode> {
    let status: Status = Client::new(&data_dir).get("/v1/status").await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", table(&status));
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn table(status: &Status) -> String {
    let mut text = format!(
        "kfbox {} ({}), process {}, up {}, {:.0} MiB resident\n\n",
        status.version,
        if status.ready { "ready" } else { "not ready" },
        status.pid,
        duration(status.uptime_seconds),
        status.resident_bytes as f64 / f64::from(1 << 20),
    );
    let mut components = Table::new();
    components.load_style(presets::NOTHING).set_header(["COMPONENT", "STATE", "READY AFTER", "MESSAGE"]);
    for c in &status.components {
        let state = match c.state {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Failed => "FAILED",
        };
        let took = c.took_ms.map_or_else(String::new, |ms| format!("{:.2} s", ms as f64 / 1000.0));
        components.add_row([c.name.clone(), state.into(), took, c.message.clone()]);
    }
    text.push_str(&format!("{components}\n\n"));
    let mut addresses = Table::new();
    addresses.load_style(presets::NOTHING);
    for (name, address) in &status.addresses {
        addresses.add_row([name, address]);
    }
    text.push_str(&format!("{addresses}\n"));
    if let Some(certificate) = &status.certificate {
        text.push_str(&format!("\n{}", tell(certificate)));
    }
    text
}

/// How the certificate from an ACME server stands, in a line or two, with a next step where something is wrong.
fn tell(certificate: &AcmeStatus) -> String {
    let at = |time: &DateTime<Utc>| time.format("%Y-%m-%d %H:%M UTC").to_string();
    let mut text = format!("certificate of {}: ", certificate.names.join(", "));
    text += &match &certificate.until {
        Some(until) if *until <= Utc::now() => format!("ENDED at {}", at(until)),
        Some(until) => format!("until {}", at(until)),
        None => "none yet, the box uses one of its own".to_owned(),
    };
    if let Some(next) = &certificate.next {
        let again = if certificate.failures > 0 { "tried again" } else { "renewed" };
        let when = if *next <= Utc::now() { "now".to_owned() } else { format!("at {}", at(next)) };
        text += &format!(
            ", {} {when}",
            if certificate.until.is_none() && certificate.failures == 0 { "ordered" } else { again }
        );
    }
    text.push('\n');
    if certificate.failures > 0 {
        text +=
            &format!("  failed {}x: {}\n  next: {}\n", certificate.failures, certificate.error, certificate.next_step);
    }
    text
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

pub fn version() {
    println!("kfbox {}", env!("CARGO_PKG_VERSION"));
    println!("Kubernetes API v1.36, Kubeflow Pipelines API v2beta1, ML Metadata 1.17, S3");
}
