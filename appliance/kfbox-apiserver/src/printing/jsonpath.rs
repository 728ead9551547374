//! The JSONPath of `additionalPrinterColumns`: fields, quoted names, indexes, slices, wildcards and filters by equality.
//! Upstream: <https://kubernetes.io/docs/reference/kubectl/jsonpath/>.

use serde_json::Value;

/// Steps of a path; longer ones than this are refused.
const MAX_STEPS: usize = 64;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Wildcard,
    Filter { path: Vec<String>, equal: bool, value: Value },
    Exists(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path(Vec<Step>);

pub(super) fn parse(source: &str) -> Option<Path> {
    let mut rest = source.trim();
    rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(rest);
    rest = rest.strip_prefix('$').unwrap_or(rest);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() >= MAX_STEPS {
            return None;
        }
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            steps.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            if rest.starts_with('[') {
                continue;
            }
            let mut name = String::new();
            let mut chars = rest.char_indices();
            let mut end = rest.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    // A dot in a name is written `\.`.
                    '\\' => name.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    c => name.push(c),
                }
            }
            rest = &rest[end..];
            match name.as_str() {
                "" => return None,
                "*" => steps.push(Step::Wildcard),
                _ => steps.push(Step::Field(name)),
            }
        }
    }
    Some(Path(steps))
}

/// The end of a bracket, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if c == q => quote = None,
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    let inner = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    inner('\'').or_else(|| inner('"'))
}

fn bracket(text: &str) -> Option<Step> {
    if text == "*" {
        return Some(Step::Wildcard);
    }
    if let Some(name) = unquote(text) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let names = |path: &str| -> Option<Vec<String>> {
            let path = path.trim().strip_prefix('@')?;
            Some(path.split('.').filter(|p| !p.is_empty()).map(ToOwned::to_owned).collect())
        };
        for (operator, equal) in [("==", true), ("!=", false)] {
            if let Some((left, right)) = filter.split_once(operator) {
                let right = right.trim();
                let value = match unquote(right) {
                    Some(text) => Value::from(text),
                    None => serde_json::from_str(right).ok()?,
                };
                return Some(Step::Filter { path: names(left)?, equal, value });
            }
        }
        return names(filter).map(Step::Exists);
    }
    if let Some((from, to)) = text.split_once(':') {
        let bound = |t: &str| if t.trim().is_empty() { Some(None) } else { t.trim().parse().ok().map(Some) };
        return Some(Step::Slice(bound(from)?, bound(to)?));
    }
    text.parse().ok().map(Step::Index)
}

fn at(items: &[Value], index: i64) -> Option<&Value> {
    let count = i64::try_from(items.len()).ok()?;
    let index = if index < 0 { count + index } else { index };
    usize::try_from(index).ok().and_then(|i| items.get(i))
}

impl Path {
    pub(super) fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![root];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                match (step, value) {
                    (Step::Field(name), value) => next.extend(value.get(name)),
                    (Step::Index(index), Value::Array(items)) => next.extend(at(items, *index)),
                    (Step::Slice(from, to), Value::Array(items)) => {
                        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
                        let bound = |i: i64| if i < 0 { (count + i).max(0) } else { i.min(count) };
                        let (from, to) = (bound(from.unwrap_or(0)), bound(to.unwrap_or(count)));
                        next.extend((from..to).filter_map(|i| at(items, i)));
                    }
                    (Step::Wildcard, Value::Array(items)) => next.extend(items),
                    (Step::Wildcard, Value::Object(map)) => next.extend(map.values()),
                    (Step::Filter { path, equal, value: wanted }, Value::Array(items)) => {
                        next.extend(
                            items
                                .iter()
                                .filter(|item| deep(item, path).is_some_and(|found| (found == wanted) == *equal)),
                        );
                    }
                    (Step::Exists(path), Value::Array(items)) => {
                        next.extend(items.iter().filter(|item| deep(item, path).is_some()));
                    }
                    _ => {}
                }
            }
            found = next;
        }
        found
    }
}

fn deep<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}
