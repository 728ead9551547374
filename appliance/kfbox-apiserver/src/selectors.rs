//! Label and field selectors (apimachinery `pkg/labels`, `pkg/fields`).

use crate::{
    resources::Resource,
    status::ApiError,
    store::{Object, SECOND_CLUSTER_IP, selectable_fields},
};

/// What an object must satisfy to be seen.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Vec<LabelRule>,
    fields: Vec<FieldRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LabelRule {
    key: String,
    test: LabelTest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTest {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

#[derive(Debug, Clone)]
struct FieldRule {
    source: FieldSource,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone)]
enum FieldSource {
    Name,
    Namespace,
    /// Index into [`selectable_fields`].
    Indexed(usize),
    /// A field that a CRD declared selectable, looked up in the object itself.
    Path(String),
}

impl Selector {
    pub fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiError> {
        let bad = |what: &str, text: &str, why: String| {
            ApiError::bad_request(format!("unable to parse {what} selector {text:?}: {why}"))
        };
        Ok(Self {
            labels: labels
                .map(|text| parse_labels(text).map_err(|why| bad("label", text, why)))
                .transpose()?
                .unwrap_or_default(),
            fields: fields.map(|text| parse_fields(resource, text)).transpose()?.unwrap_or_default(),
        })
    }

    /// Only the object of this name: what a watch or deletion of one object asks for.
    pub fn named(mut self, name: &str) -> Self {
        self.fields.push(FieldRule { source: FieldSource::Name, equal: true, value: name.into() });
        self
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.labels.iter().all(|rule| rule.test.holds(object.label(&rule.key)))
            && self.fields.iter().all(|rule| {
                let is = match &rule.source {
                    FieldSource::Name => *object.key.name == *rule.value,
                    FieldSource::Namespace => *object.key.namespace == *rule.value,
                    FieldSource::Indexed(at) => object.fields.get(*at).is_some_and(|v| **v == *rule.value),
                    FieldSource::Path(path) => crate::store::field(&object.value(), path) == rule.value,
                };
                is == rule.equal
            })
    }
}

impl LabelTest {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(values) => value.is_none_or(|v| !values.iter().any(|x| x == v)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Above(bound) => number().is_some_and(|v| v > *bound),
            Self::Below(bound) => number().is_some_and(|v| v < *bound),
        }
    }
}

/// A `metav1.LabelSelector` on labels.
pub fn matches(selector: &serde_json::Value, labels: &std::collections::BTreeMap<String, String>) -> bool {
    let equal = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(k, v)| labels.get(k).map(String::as_str) == v.as_str());
    equal
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|rule| {
            let values = rule["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned));
            let test = match rule["operator"].as_str() {
                Some("In") => LabelTest::In(values.collect()),
                Some("NotIn") => LabelTest::NotIn(values.collect()),
                Some("Exists") => LabelTest::Exists,
                Some("DoesNotExist") => LabelTest::Absent,
                _ => return false,
            };
            test.holds(rule["key"].as_str().and_then(|k| labels.get(k)).map(String::as_str))
        })
}

/// Splits at commas outside parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_labels(text: &str) -> Result<Vec<LabelRule>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    requirements(text).into_iter().map(|r| parse_label(r.trim())).collect()
}

fn parse_label(text: &str) -> Result<LabelRule, String> {
    let rule = |key: &str, test| {
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
            return Err(format!("found {key:?}, expected a label key"));
        }
        Ok(LabelRule { key: key.to_owned(), test })
    };
    let value = |v: &str| {
        let v = v.trim();
        let fits = v.len() <= 63 && v.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if fits { Ok(v.to_owned()) } else { Err(format!("{v:?} is not a label value")) }
    };
    if let Some(key) = text.strip_prefix('!') {
        return rule(key, LabelTest::Absent);
    }
    if let Some((head, set)) = text.split_once('(') {
        let set = set.trim_end().strip_suffix(')').ok_or("expected ')'")?;
        let values = set.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => rule(key, LabelTest::In(values)),
            (Some(key), Some("notin"), None) => rule(key, LabelTest::NotIn(values)),
            _ => Err(format!("found {head:?}, expected KEY in or KEY notin")),
        };
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, v)) = text.split_once(operator) {
            let values = vec![value(v)?];
            return rule(key, if equal { LabelTest::In(values) } else { LabelTest::NotIn(values) });
        }
    }
    let number = |v: &str| v.trim().parse().map_err(|_| format!("{v:?} is not an integer"));
    if let Some((key, v)) = text.split_once('>') {
        return rule(key, LabelTest::Above(number(v)?));
    }
    if let Some((key, v)) = text.split_once('<') {
        return rule(key, LabelTest::Below(number(v)?));
    }
    rule(text, LabelTest::Exists)
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRule>, ApiError> {
    let mut rules = Vec::new();
    for part in split_fields(text) {
        if part.is_empty() {
            continue;
        }
        let (key, equal, value) = if let Some((k, v)) = part.split_once("!=") {
            (k, false, v)
        } else if let Some((k, v)) = part.split_once("==") {
            (k, true, v)
        } else if let Some((k, v)) = part.split_once('=') {
            (k, true, v)
        } else {
            let why = format!("invalid selector: '{text}'; can't understand '{part}'");
            return Err(ApiError::bad_request(format!("unable to parse field selector {text:?}: {why}")));
        };
        let source = field_source(resource, key).ok_or_else(|| {
            ApiError::bad_request(if resource.custom.is_some() || selectable_fields(&resource.collection).is_empty() {
                format!("field label not supported: {key}")
            } else {
                format!("field label not supported: {key} for {}", resource.kind)
            })
        })?;
        rules.push(FieldRule { source, equal, value: unescape(value) });
    }
    Ok(rules)
}

fn field_source(resource: &Resource, key: &str) -> Option<FieldSource> {
    match key {
        "metadata.name" => return Some(FieldSource::Name),
        "metadata.namespace" => return Some(FieldSource::Namespace),
        _ => {}
    }
    if let Some(custom) = &resource.custom {
        let declared = custom.selectable_fields.iter().any(|f| f.strip_prefix('.').unwrap_or(f) == key);
        return declared.then(|| FieldSource::Path(key.to_owned()));
    }
    // events.k8s.io calls the same field by another name.
    let key =
        if &*resource.collection == "events" { key.replace("regarding.", "involvedObject.") } else { key.to_owned() };
    selectable_fields(&resource.collection)
        .iter()
        .position(|f| *f == key && *f != SECOND_CLUSTER_IP)
        .map(FieldSource::Indexed)
}

/// Splits at commas that no backslash precedes.
fn split_fields(text: &str) -> Vec<&str> {
    let (mut start, mut escaped, mut parts) = (0, false, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_follow_the_grammar() {
        let holds = |text: &str, value: Option<&str>| {
            parse_labels(text).unwrap().iter().all(|r| r.key == "a" && r.test.holds(value))
        };
        for (text, value, expected) in [
            ("a=b", Some("b"), true),
            ("a==b", Some("c"), false),
            ("a != b", None, true),
            ("a in (b, c)", Some("c"), true),
            ("a in (b, c)", None, false),
            ("a notin (b,c)", None, true),
            ("a", Some(""), true),
            ("!a", Some(""), false),
            ("a>3", Some("4"), true),
            ("a<3", Some("x"), false),
            ("a,a in (b),a!=c", Some("b"), true),
        ] {
            assert_eq!(holds(text, value), expected, "{text} on {value:?}");
        }
        for bad in ["a in (b", "a b c", "=b", "a in b", "a=b,,", "a=$"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }
}
