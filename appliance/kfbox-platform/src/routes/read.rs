//! Reading what people wrote: each field is known, or told as not supported. Pure functions.

use http::{HeaderName, HeaderValue};
use serde_json::Value;
use std::time::Duration;

/// What is wrong or has no effect, in words; where it is comes first.
pub type Problems = Vec<String>;

/// How long a Service may take when its route does not say.
pub const TIMEOUT: Duration = Duration::from_secs(300);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Parts of paths, headers and rules of one object; each request looks at them.
const LONGEST_PATH: usize = 512;
const MOST_HEADERS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// Ends at the end of a part: `/a` is not `/ab`.
    Prefix(String),
}

impl PathMatch {
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) => text,
        }
    }

    /// What follows the matched part.
    pub fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self {
            Self::Exact(text) => (path == text).then_some(""),
            Self::Prefix(text) => {
                let rest = path.strip_prefix(text.as_str())?;
                (text.ends_with('/') || rest.is_empty() || rest.starts_with('/')).then_some(rest)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite {
    /// The matched part is replaced.
    Prefix(String),
    Full(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// A way as an object describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub namespace: String,
    /// Kind and name of the object.
    pub from: String,
    pub path: PathMatch,
    pub rewrite: Option<Rewrite>,
    pub host: Option<HeaderValue>,
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub timeout: Duration,
    pub service: String,
    pub port: Option<u16>,
}

impl Way {
    /// The path that the Service sees; `rest` is what follows the match.
    pub fn rewritten(&self, path: &str, rest: &str) -> String {
        match &self.rewrite {
            None => path.to_owned(),
            Some(Rewrite::Full(full)) => full.clone(),
            Some(Rewrite::Prefix(prefix)) => {
                let joined = match (prefix.ends_with('/'), rest.starts_with('/')) {
                    (true, true) => format!("{prefix}{}", &rest[1..]),
                    (false, false) if !rest.is_empty() && !prefix.is_empty() => format!("{prefix}/{rest}"),
                    _ => format!("{prefix}{rest}"),
                };
                if joined.starts_with('/') { joined } else { format!("/{joined}") }
            }
        }
    }
}

/// Tells every field that is not known here. What has no effect but does no harm is in `idle`.
pub fn only(value: &Value, at: &str, known: &[&str], idle: &[&str], problems: &mut Problems) -> bool {
    let Some(object) = value.as_object() else { return true };
    let mut fine = true;
    for (name, value) in object {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value == &serde_json::json!({});
        if known.contains(&name.as_str()) || empty {
            continue;
        }
        let harmless = idle.contains(&name.as_str());
        fine &= harmless;
        problems.push(format!("{at}.{name} {}", if harmless { "has no effect here" } else { "is not supported" }));
    }
    fine
}

pub fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// A path that a namespace may have: `/WORD/NAMESPACE` and what is below, where WORD is not the platform's. So no namespace
/// can have another's paths, nor the platform's own.
pub fn own_path(path: &str, namespace: &str, reserved: &[String]) -> Result<(), String> {
    let mut parts = path.split('/');
    let (root, word, second) = (parts.next(), parts.next().unwrap_or_default(), parts.next());
    if root != Some("") || word.is_empty() || second != Some(namespace) {
        return Err(format!("the path {path:?} must begin with /WORD/{namespace}, where WORD is yours to choose"));
    }
    if reserved.iter().any(|r| r == word) {
        return Err(format!("the path {path:?} is the platform's: choose another word than {word:?}"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    let dots = path.split('/').any(|part| matches!(part, "." | ".."));
    if path.len() > LONGEST_PATH || !path.chars().all(plain) || dots || path.contains("//") {
        return Err(format!("the path {path:?} has encoded, empty or dot parts, or is too long"));
    }
    Ok(())
}

/// A path that a Service may be asked for.
pub fn rewrite_path(path: &str) -> Result<String, String> {
    let fine = path.starts_with('/') || path.is_empty();
    let dots = path.split('/').any(|part| matches!(part, "." | ".."));
    if !fine
        || dots
        || path.len() > LONGEST_PATH
        || path.parse::<http::uri::PathAndQuery>().is_err() && !path.is_empty()
    {
        return Err(format!("{path:?} is not a path"));
    }
    if path.contains(['?', '#']) { Err(format!("{path:?} has more than a path")) } else { Ok(path.to_owned()) }
}

/// What Go reads as a duration, as far as people write it: `300s`, `5m`, `1h30m`, `250ms`. Zero is no limit of its own.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 300s");
    let (mut rest, mut total) = (text, 0.0_f64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(wrong()),
            };
        rest = &rest[end..];
    }
    match Duration::try_from_secs_f64(total) {
        Ok(Duration::ZERO) => Ok(LONGEST_TIMEOUT),
        Ok(found) => Ok(found.min(LONGEST_TIMEOUT)),
        Err(_) => Err(wrong()),
    }
}

/// Headers that say who somebody is, where a message ends, or what counts for all of the gateway's origin.
fn is_reserved(name: &HeaderName) -> bool {
    const PREFIXES: [&str; 7] =
        ["kubeflow-", "x-auth-", "x-forwarded-", "x-remote-", "impersonate-", "proxy-", "sec-websocket-"];
    const NAMES: [&str; 12] = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "forwarded",
        "host",
        "keep-alive",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|p| name.as_str().starts_with(p))
}

pub fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let value = HeaderValue::from_str(value).map_err(|_| format!("the value of the header {name:?}"))?;
    Ok((header_name(name)?, value))
}

pub fn header_name(name: &str) -> Result<HeaderName, String> {
    let found: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
    if is_reserved(&found) { Err(format!("the header {name:?} is not for routes to change")) } else { Ok(found) }
}

/// Either form of changes: Istio's maps, the Gateway API's lists of `name` and `value`.
pub fn header_changes(value: &Value, at: &str) -> Result<HeaderChanges, String> {
    let place = |e: String| format!("{at}: {e}");
    let pairs = |value: &Value| -> Result<Vec<_>, String> {
        match value {
            Value::Object(map) => map.iter().map(|(n, v)| header(n, v.as_str().unwrap_or_default())).collect(),
            list => items(list).iter().map(|p| header(text(p, "name"), text(p, "value"))).collect(),
        }
    };
    let changes = HeaderChanges {
        set: pairs(&value["set"]).map_err(place)?,
        add: pairs(&value["add"]).map_err(place)?,
        remove: items(&value["remove"])
            .iter()
            .map(|n| header_name(n.as_str().unwrap_or_default()))
            .collect::<Result<_, _>>()
            .map_err(place)?,
    };
    if changes.set.len() + changes.add.len() + changes.remove.len() > MOST_HEADERS {
        return Err(format!("{at}: more than {MOST_HEADERS} headers"));
    }
    Ok(changes)
}

pub fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}
