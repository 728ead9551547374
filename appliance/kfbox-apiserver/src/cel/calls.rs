//! Functions: what they cost, those done here because the library's are wrong, slow or without bounds, and the way to the
//! library's (apiserver `pkg/cel/library`, cel-go `ext`).

use super::{
    Cel, CelError, authorizer,
    eval::Meter,
    guarded,
    lower::{Call, MAX_ARGUMENTS, argument_name, type_of},
    values::{as_optional, equal, optional, size, text, text_cost},
};
use kube_cel::{
    KubeCelExt as _,
    cel::{Context, ExecutionError},
};
use std::sync::Arc;

/// All functions by name, and the type of their result where it is always the same.
#[rustfmt::skip]
const KNOWN: &[(&str, &str)] = &[
    // the language itself
    ("size", "int"), ("contains", "bool"), ("startsWith", "bool"), ("endsWith", "bool"), ("matches", "bool"), ("type", ""),
    ("dyn", ""), ("bool", "bool"), ("bytes", "bytes"), ("double", "double"), ("duration", "duration"), ("int", "int"),
    ("string", "string"), ("timestamp", "timestamp"), ("uint", "uint"), ("getFullYear", "int"), ("getMonth", "int"),
    ("getDayOfYear", "int"), ("getDayOfMonth", "int"), ("getDate", "int"), ("getDayOfWeek", "int"), ("getHours", "int"),
    ("getMinutes", "int"), ("getSeconds", "int"), ("getMilliseconds", "int"),
    ("optional.none", ""), ("optional.of", ""), ("optional.ofNonZeroValue", ""), ("value", ""), ("hasValue", "bool"), ("or", ""),
    ("orValue", ""),
    // strings
    ("charAt", "string"), ("indexOf", "int"), ("lastIndexOf", "int"), ("lowerAscii", "string"), ("upperAscii", "string"),
    ("replace", "string"), ("split", "list"), ("substring", "string"), ("trim", "string"), ("join", "string"),
    ("format", "string"), ("strings.quote", "string"), ("reverse", ""),
    // lists, sets
    ("isSorted", "bool"), ("sum", ""), ("min", ""), ("max", ""), ("slice", "list"), ("sort", "list"), ("flatten", "list"),
    ("distinct", "list"), ("first", ""), ("last", ""), ("lists.range", "list"), ("sets.contains", "bool"),
    ("sets.equivalent", "bool"), ("sets.intersects", "bool"),
    // Kubernetes
    ("find", "string"), ("findAll", "list"), ("url", ""), ("isURL", "bool"), ("getScheme", "string"), ("getHost", "string"),
    ("getHostname", "string"), ("getPort", "string"), ("getEscapedPath", "string"), ("getQuery", "map"), ("quantity", ""),
    ("isQuantity", "bool"), ("isInteger", "bool"), ("asInteger", "int"), ("asApproximateFloat", "double"), ("sign", "int"),
    ("add", ""), ("sub", ""), ("isGreaterThan", "bool"), ("isLessThan", "bool"), ("compareTo", "int"), ("ip", ""),
    ("isIP", "bool"), ("ip.isCanonical", "bool"), ("family", "int"), ("isLoopback", "bool"), ("isUnspecified", "bool"),
    ("isLinkLocalMulticast", "bool"), ("isLinkLocalUnicast", "bool"), ("isGlobalUnicast", "bool"), ("cidr", ""),
    ("isCIDR", "bool"), ("containsIP", "bool"), ("containsCIDR", "bool"), ("prefixLength", "int"), ("masked", ""),
    ("format.dns1123Label", ""), ("format.dns1123Subdomain", ""), ("format.dns1035Label", ""),
    ("format.dns1035LabelPrefix", ""), ("format.dns1123LabelPrefix", ""), ("format.dns1123SubdomainPrefix", ""),
    ("format.qualifiedName", ""), ("format.labelValue", ""), ("format.uri", ""), ("format.uuid", ""), ("format.byte", ""),
    ("format.date", ""), ("format.datetime", ""), ("format.named", ""), ("validate", ""), ("semver", ""),
    ("isSemver", "bool"), ("major", "int"), ("minor", "int"), ("patch", "int"), ("jsonpatch.escapeKey", "string"),
    // the authorizer
    ("path", ""), ("group", ""), ("serviceAccount", ""), ("resource", ""), ("subresource", ""), ("namespace", ""), ("name", ""),
    ("fieldSelector", ""), ("labelSelector", ""), ("check", ""), ("allowed", "bool"), ("reason", "string"), ("error", "string"),
    ("errored", "bool"),
];

/// Compiled patterns are bounded so that a rule cannot eat the daemon's memory; the engine is linear in time.
const PATTERN_SIZE: usize = 4 << 20;

/// Digits after the point that `format` may be asked for.
const PRECISION: usize = 100;

/// Powers of ten past what any quantity of Kubernetes says; the library would count them out.
const EXPONENT: i32 = 18;

pub fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|(known, _)| *known == name)
}

pub fn pattern(source: &str) -> Result<regex::Regex, CelError> {
    regex::RegexBuilder::new(source)
        .size_limit(PATTERN_SIZE)
        .dfa_size_limit(1 << 20)
        .build()
        .map_err(|error| CelError::failed(format!("error parsing regexp: {error}")))
}

/// What it costs to walk over a value with all its parts.
fn traverse(value: &Cel, meter: &mut Meter) -> Result<(), CelError> {
    match value {
        Cel::String(_) | Cel::Bytes(_) => meter.charge(text_cost(size(value))),
        Cel::List(items) => {
            meter.charge(items.len() as u64)?;
            items.iter().try_for_each(|item| traverse(item, meter))
        }
        Cel::Map(map) => {
            meter.charge(map.map.len() as u64)?;
            map.map.values().try_for_each(|value| traverse(value, meter))
        }
        _ => Ok(()),
    }
}

pub fn call(call: &Call, arguments: &[Cel], meter: &mut Meter) -> Result<Cel, CelError> {
    meter.charge(1)?;
    if let Some(Cel::Opaque(target)) = arguments.first()
        && let Some(result) = authorizer::call(&call.name, &**target, &arguments[1..], meter)
    {
        return result;
    }
    if let Some(result) = native(call, arguments, meter) {
        return result;
    }
    for argument in arguments {
        traverse(argument, meter)?;
    }
    check(&call.name, arguments)?;
    let result = library(call, arguments)?;
    // The library answers with the format or null, upstream with an optional value.
    let result = match (&*call.name, result) {
        ("format.named", Cel::Null) => optional(None),
        ("format.named", found) => optional(Some(found)),
        (_, result) => result,
    };
    meter.charge(text_cost(size(&result)))?;
    Ok(result)
}

fn characters(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

/// None where the library is asked.
fn native(call: &Call, arguments: &[Cel], meter: &mut Meter) -> Option<Result<Cel, CelError>> {
    let result = match (&*call.name, arguments) {
        ("size", [Cel::String(s)]) => meter.charge(text_cost(s.len() as u64)).map(|()| Cel::Int(characters(s))),
        ("size", [Cel::List(_) | Cel::Map(_) | Cel::Bytes(_)]) => {
            Ok(Cel::Int(i64::try_from(size(&arguments[0])).unwrap_or(i64::MAX)))
        }
        ("size", _) => Err(CelError::NoSuchOverload),
        ("startsWith", [Cel::String(s), Cel::String(part)]) => {
            meter.charge(text_cost(part.len() as u64)).map(|()| Cel::Bool(s.starts_with(part.as_str())))
        }
        ("endsWith", [Cel::String(s), Cel::String(part)]) => {
            meter.charge(text_cost(part.len() as u64)).map(|()| Cel::Bool(s.ends_with(part.as_str())))
        }
        ("contains", [Cel::String(s), Cel::String(part)]) => {
            meter.charge(text_cost((s.len() + part.len()) as u64)).map(|()| Cel::Bool(s.contains(part.as_str())))
        }
        ("startsWith" | "endsWith" | "contains", _) => Err(CelError::NoSuchOverload),
        ("matches" | "find", [Cel::String(s), Cel::String(source)]) => {
            search(call, s, source, meter).map(|pattern| match &*call.name {
                "matches" => Cel::Bool(pattern.is_match(s)),
                _ => text(pattern.find(s).map(|m| m.as_str()).unwrap_or_default()),
            })
        }
        ("findAll", [Cel::String(s), Cel::String(source), limit @ ..]) => find_all(call, s, source, limit, meter),
        ("matches" | "find" | "findAll", _) => Err(CelError::NoSuchOverload),
        ("type", [value]) => Ok(type_of(value)),
        ("dyn", [value]) => Ok(value.clone()),
        ("bool", [Cel::Bool(b)]) => Ok(Cel::Bool(*b)),
        ("bool", [Cel::String(s)]) => match s.as_str() {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Cel::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Cel::Bool(false)),
            _ => Err(CelError::failed("type conversion error from 'string' to 'bool'")),
        },
        ("string", [Cel::Bool(b)]) => Ok(text(b.to_string())),
        ("replace", [Cel::String(s), Cel::String(old), Cel::String(new), limit @ ..]) => {
            replace(s, old, new, limit, meter)
        }
        ("join", [Cel::List(items), separator @ ..]) => join(items, separator, meter),
        ("lists.range", [Cel::Int(n)]) => range(*n, meter),
        ("distinct", [Cel::List(items)]) => distinct(items, meter),
        ("optional.none", []) => Ok(optional(None)),
        ("optional.of", [value]) => Ok(optional(Some(value.clone()))),
        ("optional.ofNonZeroValue", [value]) => Ok(optional((!value.is_zero()).then(|| value.clone()))),
        ("hasValue", [value]) => match as_optional(value) {
            Some(held) => Ok(Cel::Bool(held.is_some())),
            None => Err(CelError::NoSuchOverload),
        },
        ("value", [value]) => match as_optional(value) {
            Some(Some(held)) => Ok(held.clone()),
            Some(None) => Err(CelError::failed("optional.none() dereference")),
            None => Err(CelError::NoSuchOverload),
        },
        ("or" | "orValue", [value, other]) => match as_optional(value) {
            Some(Some(held)) => Ok(if &*call.name == "or" { value.clone() } else { held.clone() }),
            Some(None) => Ok(other.clone()),
            None => Err(CelError::NoSuchOverload),
        },
        _ => return None,
    };
    Some(result)
}

/// The pattern of a search, paid for: text times a quarter of the pattern.
fn search<'c>(
    call: &'c Call,
    searched: &str,
    source: &str,
    meter: &mut Meter,
) -> Result<std::borrow::Cow<'c, regex::Regex>, CelError> {
    let states = (source.len() as u64).div_ceil(4);
    meter.charge(text_cost(searched.len() as u64 + 1).saturating_mul(states.max(1)))?;
    match &call.pattern {
        Some(pattern) => Ok(std::borrow::Cow::Borrowed(pattern)),
        None => {
            // Compiling takes far longer than a short search.
            meter.charge(100)?;
            pattern(source).map(std::borrow::Cow::Owned)
        }
    }
}

fn find_all(call: &Call, s: &str, source: &str, limit: &[Cel], meter: &mut Meter) -> Result<Cel, CelError> {
    let limit = match limit {
        [] => usize::MAX,
        [Cel::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
        _ => return Err(CelError::NoSuchOverload),
    };
    let pattern = search(call, s, source, meter)?;
    let found: Vec<Cel> = pattern.find_iter(s).take(limit).map(|m| text(m.as_str())).collect();
    meter.charge(found.len() as u64)?;
    Ok(Cel::List(Arc::new(found)))
}

fn replace(s: &str, old: &str, new: &str, limit: &[Cel], meter: &mut Meter) -> Result<Cel, CelError> {
    let limit = match limit {
        [] => usize::MAX,
        [Cel::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
        _ => return Err(CelError::NoSuchOverload),
    };
    meter.charge(text_cost(s.len() as u64))?;
    let count = if old.is_empty() { s.chars().count() + 1 } else { s.matches(old).count() }.min(limit);
    // Paid for before it is made: a replacement may be as long as the text itself, at every letter.
    meter.charge(text_cost((s.len() as u64).saturating_add((count as u64).saturating_mul(new.len() as u64))))?;
    Ok(text(s.replacen(old, new, count)))
}

fn join(items: &[Cel], separator: &[Cel], meter: &mut Meter) -> Result<Cel, CelError> {
    let separator = match separator {
        [] => "",
        [Cel::String(s)] => s.as_str(),
        _ => return Err(CelError::NoSuchOverload),
    };
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let Cel::String(part) = item else { return Err(CelError::NoSuchOverload) };
        meter.charge(1 + text_cost((part.len() + separator.len()) as u64))?;
        parts.push(part.as_str());
    }
    Ok(text(parts.join(separator)))
}

fn range(n: i64, meter: &mut Meter) -> Result<Cel, CelError> {
    meter.charge(u64::try_from(n).unwrap_or(0))?;
    Ok(Cel::List(Arc::new((0..n).map(Cel::Int).collect())))
}

fn distinct(items: &[Cel], meter: &mut Meter) -> Result<Cel, CelError> {
    let mut out: Vec<Cel> = Vec::new();
    'items: for item in items {
        for seen in &out {
            if equal(item, seen, meter)? {
                continue 'items;
            }
        }
        out.push(item.clone());
    }
    Ok(Cel::List(Arc::new(out)))
}

/// Arguments that would make a function of the library work without end.
fn check(name: &str, arguments: &[Cel]) -> Result<(), CelError> {
    match (name, arguments) {
        ("format", [Cel::String(format), ..]) => {
            let mut digits = format.split('%').skip(1).filter_map(|verb| verb.strip_prefix('.')).map(|verb| {
                let end = verb.find(|c: char| !c.is_ascii_digit()).unwrap_or(verb.len());
                verb[..end].parse::<usize>().unwrap_or(if end == 0 { 0 } else { usize::MAX })
            });
            if digits.any(|n| n > PRECISION) {
                return Err(CelError::failed(format!("precision in a format may not be above {PRECISION}")));
            }
        }
        ("quantity" | "isQuantity", [Cel::String(quantity)]) => {
            let exponent = quantity.rsplit_once(['e', 'E']).and_then(|(_, e)| e.parse::<i64>().ok()).unwrap_or(0);
            if exponent.abs() > i64::from(EXPONENT) || quantity.len() > 64 {
                return Err(CelError::failed(
                    "quantities must match the regular expression \
                    '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                ));
            }
        }
        // These compare every element with every other.
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [a, b])
            if size(a).saturating_mul(size(b)) > super::PER_CALL_LIMIT =>
        {
            return Err(CelError::Cost);
        }
        _ => {}
    }
    Ok(())
}

thread_local! {
    /// All functions, registered once a thread: calls run in scopes below.
    static FUNCTIONS: Context<'static> = Context::default().with_all();
}

fn library(call: &Call, arguments: &[Cel]) -> Result<Cel, CelError> {
    if arguments.len() > MAX_ARGUMENTS {
        return Err(CelError::NoSuchOverload);
    }
    let outcome = guarded(|| {
        FUNCTIONS.with(|functions| {
            let mut scope = functions.new_inner_scope();
            for (at, argument) in arguments.iter().enumerate() {
                scope.add_variable_from_value(argument_name(at), argument.clone());
            }
            scope.resolve(&call.shim)
        })
    });
    match outcome {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(failure(error)),
        None => Err(CelError::failed(format!("{}() cannot be evaluated", call.name))),
    }
}

fn failure(error: ExecutionError) -> CelError {
    match error {
        ExecutionError::FunctionError { message, .. } => CelError::Failed(message),
        ExecutionError::NoSuchOverload
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UndeclaredReference(_)
        | ExecutionError::InvalidArgumentCount { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. } => CelError::NoSuchOverload,
        ExecutionError::NoSuchKey(key) => CelError::NoSuchKey(key.to_string()),
        other => CelError::Failed(other.to_string()),
    }
}

#[cfg(test)]
pub fn names() -> Vec<&'static str> {
    KNOWN.iter().map(|(name, _)| *name).collect()
}
