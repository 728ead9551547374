//! How long a request may take that is not meant to last: a minute, as upstream's `--request-timeout`, or less where the
//! client says so. It is also what ends a body that is sent a byte at a time.

use crate::{request::Query, status::ApiError};
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(60);

/// The work's outcome, unless it takes longer than it may. What was begun by then may still happen.
pub async fn within<T>(query: &Query, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let allowed = match query.get("timeout") {
        None => LONGEST,
        Some(text) => match duration(text) {
            Some(Duration::ZERO) => LONGEST,
            Some(asked) => asked.min(LONGEST),
            None => {
                return Err(ApiError::bad_request(format!("invalid timeout specified in the request URL - {text:?}")));
            }
        },
    };
    let late = |_| ApiError::timeout("request did not complete within the allotted timeout");
    tokio::time::timeout(allowed, work).await.map_err(late)?
}

/// A duration as Go writes it: `90s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if text == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("90s", Some(90_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("500ms", Some(500)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-3s", None),
            ("1e9s", None),
            ("1x", None),
            ("9999999999999999999999h", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up() {
        for (query, patience) in [("", 60), ("timeout=5s", 5), ("timeout=1h", 60), ("timeout=0s", 60)] {
            let start = tokio::time::Instant::now();
            let query = Query::parse(Some(query)).unwrap();
            let error = within::<()>(&query, std::future::pending()).await.unwrap_err();
            assert_eq!((error.code().as_u16(), start.elapsed().as_secs()), (504, patience));
        }
        let query = Query::parse(Some("timeout=soon")).unwrap();
        assert_eq!(within(&query, async { Ok(()) }).await.unwrap_err().code(), 400);
    }
}
