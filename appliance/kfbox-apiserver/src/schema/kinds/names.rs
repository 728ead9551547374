//! The forms of names, keys and labels. Upstream: apimachinery `pkg/util/validation` and `pkg/api/validate/content`; the
//! messages are upstream's, since clients and people look for them.
//!
//! Guarantee: a rule gives every way in which the text is wrong, in upstream's order; none where it is right.

pub(super) const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const UNDERSCORED: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const ENVIRONMENT: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// What is wrong with a text.
pub(super) type Faults = Vec<String>;

/// One of the rules below.
pub(super) type Rule = fn(&str) -> Faults;

fn checked<const N: usize>(faults: [Option<String>; N]) -> Faults {
    faults.into_iter().flatten().collect()
}

fn longer(text: &str, limit: usize) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} characters"))
}

/// Where upstream counts bytes and says so.
fn longer_bytes(text: &str, limit: usize) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} bytes"))
}

fn unless(holds: bool, why: &str) -> Option<String> {
    (!holds).then(|| why.to_owned())
}

/// Begins and ends with `edge`, `inner` or `edge` between.
fn framed(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b))
        && bytes.iter().all(|b| edge(*b) || inner(*b))
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    framed(text, lower, |b| b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_name_part(text: &str) -> bool {
    framed(text, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

pub(super) fn dns_label(text: &str) -> Faults {
    let why = if is_subdomain(text) { "must not contain dots" } else { LABEL };
    checked([longer(text, 63), unless(is_label(text), why)])
}

pub(super) fn dns_1035_label(text: &str) -> Faults {
    let holds = is_label(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    checked([longer(text, 63), unless(holds, LABEL_1035)])
}

pub(super) fn dns_subdomain(text: &str) -> Faults {
    checked([longer(text, 253), unless(is_subdomain(text), SUBDOMAIN)])
}

pub(super) fn dns_subdomain_with_underscore(text: &str) -> Faults {
    let part = |part: &str| framed(part.strip_prefix('_').unwrap_or(part), lower, |b| matches!(b, b'-' | b'_'));
    checked([longer(text, 253), unless(text.split('.').all(part), UNDERSCORED)])
}

pub(super) fn wildcard_subdomain(text: &str) -> Faults {
    checked([longer(text, 253), unless(text.strip_prefix("*.").is_some_and(is_subdomain), WILDCARD)])
}

/// Names that may be one segment of a path: RBAC roles.
pub(super) fn path_segment(text: &str) -> Faults {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%'].into_iter().filter(|c| text.contains(*c)).map(|c| format!("may not contain '{c}'")).collect()
}

pub(super) fn label_value(text: &str) -> Faults {
    checked([longer_bytes(text, 63), unless(text.is_empty() || is_name_part(text), VALUE)])
}

/// `prefix/name` or `name`.
pub(super) fn qualified(text: &str) -> Faults {
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        ["", name] => {
            faults.push("prefix part must be non-empty".to_owned());
            name
        }
        [prefix, name] => {
            faults.extend(dns_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else {
        faults.extend(longer_bytes(name, 63).map(|why| format!("name part {why}")));
    }
    faults.extend(unless(is_name_part(name), NAME_PART).map(|why| format!("name part {why}")));
    faults
}

/// As [`qualified`], where case does not matter: keys of annotations, names of drivers.
pub(super) fn qualified_any_case(text: &str) -> Faults {
    qualified(&text.to_lowercase())
}

/// Keys of ConfigMaps and Secrets.
pub(super) fn config_key(text: &str) -> Faults {
    let holds = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let place = match text {
        "." | ".." => Some(format!("must not be '{text}'")),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    };
    checked([longer(text, 253), unless(holds, CONFIG_KEY), place])
}

/// Names of ports.
pub(super) fn port_name(text: &str) -> Faults {
    let charset = !text.is_empty() && text.bytes().all(|b| lower(b) || b == b'-');
    checked([
        longer(text, 15),
        unless(charset, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        unless(text.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        unless(!text.contains("--"), "must not contain consecutive hyphens"),
        unless(!text.starts_with('-') && !text.ends_with('-'), "must not begin or end with a hyphen"),
    ])
}

pub(super) fn environment_variable(text: &str) -> Faults {
    checked([
        unless(!text.is_empty(), "environment variable name must be non-empty"),
        unless(text.chars().all(|c| (' '..='~').contains(&c) && c != '='), ENVIRONMENT),
    ])
}

pub(super) fn http_header(text: &str) -> Faults {
    let holds = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    checked([unless(holds, HEADER)])
}

/// `25%`.
pub(super) fn percent(text: &str) -> Faults {
    let holds = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    checked([unless(holds, PERCENT)])
}

/// What of a `generateName` must hold as a name: upstream lets a last dash pass, since letters follow it.
pub(super) fn prefix(text: &str) -> String {
    let mut name = text.to_owned();
    if name.len() > 1 && name.ends_with('-') {
        let kept = name.char_indices().rev().nth(1).map_or(0, |(at, _)| at);
        name.truncate(kept);
        name.push('a');
    }
    name
}
