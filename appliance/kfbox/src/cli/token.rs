//! `kfbox token` and `kfbox credentials`.

use super::{NewTokenArgs, Output, TokenArgs, TokenCommand, TokenScope};
use crate::control::{Client, S3Credentials, TokenRequest, TokenResponse, TokenRow};
use comfy_table::{Table, presets};
use serde_json::Value;
use std::{path::PathBuf, process::ExitCode, time::Duration};

pub async fn run(data_dir: PathBuf, args: TokenArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&data_dir);
    match args.command {
        None => create(&client, args.new).await?,
        Some(TokenCommand::Create(new)) => create(&client, new).await?,
        Some(TokenCommand::List { user, output }) => {
            let path = user.map_or_else(|| "/v1/tokens".into(), |u| format!("/v1/tokens?user={}", super::encode(&u)));
            let rows: Vec<TokenRow> = client.get(&path).await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
                Output::Table => println!("{}", table(&rows)),
            }
        }
        Some(TokenCommand::Revoke { ids }) => {
            for id in ids {
                let _: Value = client.delete(&format!("/v1/tokens?id={}", super::encode(&id))).await?;
                println!("revoked {id}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, new: NewTokenArgs) -> anyhow::Result<()> {
    let scopes = new.scope.iter().map(|scope| match scope {
        TokenScope::Platform => "platform".to_owned(),
        TokenScope::Kubernetes => "kubernetes".to_owned(),
    });
    let request = TokenRequest {
        user: new.user,
        name: new.name,
        expires_in_seconds: new.expires.as_secs(),
        scopes: scopes.collect(),
    };
    let response: TokenResponse = client.post("/v1/tokens", &request).await?;
    println!("{}", response.token);
    Ok(())
}

fn table(rows: &[TokenRow]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["ID", "USER", "NAME", "SCOPES", "CREATED", "EXPIRES"]);
    for row in rows {
        let expires = row.expires.map_or_else(|| "never".into(), super::moment);
        let created = super::moment(row.created);
        table.add_row([&row.id, &row.email, &row.name, &row.scopes.join(","), &created, &expires]);
    }
    table
}

pub async fn credentials(data_dir: PathBuf, namespace: Option<String>, json: bool) -> anyhow::Result<ExitCode> {
    let path = match namespace {
        Some(namespace) => format!("/v1/credentials/s3?namespace={namespace}"),
        None => "/v1/credentials/s3".into(),
    };
    let found: S3Credentials = Client::new(&data_dir).get(&path).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("export AWS_ENDPOINT_URL_S3={}", found.endpoint);
        println!("export AWS_DEFAULT_REGION={}", found.region);
        println!("export AWS_ACCESS_KEY_ID={}", found.access_key);
        println!("export AWS_SECRET_ACCESS_KEY={}", found.secret_key);
        println!("# Your part of the store: s3://{}/{}", found.bucket, found.prefix);
        if let Some(bucket) = &found.own_bucket {
            println!("# A bucket of your own: s3://{bucket}");
        }
        println!("# For pods, and good here too: {}", found.endpoint_for_pods);
    }
    Ok(ExitCode::SUCCESS)
}

/// `90m`, `12h`, `30d`, or plain seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration such as 90m, 12h or 30d"))?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        other => return Err(format!("unknown unit {other:?}: use s, m, h or d")),
    };
    match number.checked_mul(unit) {
        Some(0) | None => Err(format!("{text:?} is out of range")),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(2_592_000)));
        for wrong in ["", "h", "0h", "5w", "-1h", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
