//! `kfbox token` and `kfbox credentials`.

use crate::control::{Client, S3Credentials, TokenRequest, TokenResponse};
use std::{path::PathBuf, process::ExitCode, time::Duration};

pub async fn create(
    data_dir: PathBuf,
    user: Option<String>,
    name: String,
    expires: Duration,
) -> anyhow::Result<ExitCode> {
    let request = TokenRequest { user, name, expires_in_seconds: expires.as_secs() };
    let response: TokenResponse = Client::new(&data_dir).post("/v1/tokens", &request).await?;
    println!("{}", response.token);
    Ok(ExitCode::SUCCESS)
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
