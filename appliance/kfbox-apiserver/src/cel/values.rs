//! Values: from JSON and back, equality and order across types.

use super::{Cel, CelError, eval::Meter};
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use serde_json::{Number, Value};
use std::{cmp::Ordering, collections::HashMap, sync::Arc};

/// Without a schema: strings stay strings, whole numbers are ints, members keep their names.
pub fn from_json(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => number(n),
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(from_json).collect())),
        Value::Object(members) => map(members.iter().map(|(k, v)| (k.clone(), from_json(v)))),
    }
}

pub fn number(n: &Number) -> Cel {
    match (n.as_i64(), n.as_u64()) {
        (Some(i), _) => Cel::Int(i),
        (None, Some(u)) => Cel::UInt(u),
        _ => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
    }
}

pub fn map(members: impl Iterator<Item = (String, Cel)>) -> Cel {
    let map: HashMap<Key, Cel> = members.map(|(k, v)| (Key::String(Arc::new(k)), v)).collect();
    Cel::Map(Map { map: Arc::new(map) })
}

pub fn text(text: impl Into<String>) -> Cel {
    Cel::String(Arc::new(text.into()))
}

/// What JSON can say of a value; maps need strings for keys.
pub fn to_json(value: &Cel) -> Option<Value> {
    Some(match value {
        Cel::Null => Value::Null,
        Cel::Bool(b) => Value::Bool(*b),
        Cel::Int(i) => (*i).into(),
        Cel::UInt(u) => (*u).into(),
        Cel::Float(f) => Value::Number(Number::from_f64(*f)?),
        Cel::String(s) => Value::String(s.as_str().to_owned()),
        Cel::Bytes(b) => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(b.as_slice()).into()
        }
        Cel::Timestamp(at) => at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
        Cel::List(items) => Value::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Cel::Map(map) => {
            let mut out = serde_json::Map::with_capacity(map.map.len());
            for (key, value) in map.map.iter() {
                let Key::String(key) = key else { return None };
                out.insert(key.as_str().to_owned(), to_json(value)?);
            }
            Value::Object(out)
        }
        _ => return None,
    })
}

/// `optional.of(value)` or `optional.none()`.
pub fn optional(value: Option<Cel>) -> Cel {
    Cel::Opaque(Arc::new(match value {
        Some(value) => OptionalValue::of(value),
        None => OptionalValue::none(),
    }))
}

/// Some if it is an optional value; inside, what that holds.
pub fn as_optional(value: &Cel) -> Option<Option<&Cel>> {
    match value {
        Cel::Opaque(opaque) => opaque.downcast_ref::<OptionalValue>().map(OptionalValue::value),
        _ => None,
    }
}

pub fn key(value: &Cel) -> Option<Key> {
    Some(match value {
        Cel::String(s) => Key::String(s.clone()),
        Cel::Int(i) => Key::Int(*i),
        Cel::UInt(u) => Key::Uint(*u),
        Cel::Bool(b) => Key::Bool(*b),
        // Whole numbers are the same key whatever their type.
        Cel::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => {
            #[expect(clippy::cast_possible_truncation, reason = "whole and in range, as the guard says")]
            let whole = *f as i64;
            Key::Int(whole)
        }
        _ => return None,
    })
}

pub fn shown(key: &Key) -> String {
    match key {
        Key::Int(i) => i.to_string(),
        Key::Uint(u) => u.to_string(),
        Key::Bool(b) => b.to_string(),
        Key::String(s) => s.as_str().to_owned(),
    }
}

/// How much of it there is to walk over: characters, bytes, members; one for the rest.
pub fn size(value: &Cel) -> u64 {
    let size = match value {
        Cel::String(s) => s.len(),
        Cel::Bytes(b) => b.len(),
        Cel::List(l) => l.len(),
        Cel::Map(m) => m.map.len(),
        _ => 1,
    };
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// A tenth of a unit a character, rounded up.
pub fn text_cost(size: u64) -> u64 {
    size.div_ceil(10)
}

pub fn equal(a: &Cel, b: &Cel, meter: &mut Meter) -> Result<bool, CelError> {
    meter.charge(1)?;
    Ok(match (a, b) {
        (Cel::String(a), Cel::String(b)) => {
            meter.charge(text_cost(a.len().min(b.len()) as u64))?;
            a == b
        }
        (Cel::Bytes(a), Cel::Bytes(b)) => {
            meter.charge(text_cost(a.len().min(b.len()) as u64))?;
            a == b
        }
        (Cel::List(a), Cel::List(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Cel::Map(a), Cel::Map(b)) => {
            if a.map.len() != b.map.len() {
                return Ok(false);
            }
            for (key, left) in a.map.iter() {
                match b.get(key) {
                    Some(right) if equal(left, right, meter)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Cel::Opaque(x), Cel::Opaque(y)) => match (as_optional(a), as_optional(b)) {
            (Some(None), Some(None)) => true,
            (Some(Some(a)), Some(Some(b))) => equal(a, b, meter)?,
            (None, None) => x.opaque_eq(&**y),
            _ => false,
        },
        (Cel::Null, Cel::Null) => true,
        (Cel::Bool(a), Cel::Bool(b)) => a == b,
        (Cel::Duration(a), Cel::Duration(b)) => a == b,
        (Cel::Timestamp(a), Cel::Timestamp(b)) => a == b,
        _ => numbers(a, b) == Some(Ordering::Equal),
    })
}

pub fn compare(a: &Cel, b: &Cel, meter: &mut Meter) -> Result<Ordering, CelError> {
    match (a, b) {
        (Cel::String(a), Cel::String(b)) => {
            meter.charge(text_cost(a.len().min(b.len()) as u64))?;
            Ok(a.cmp(b))
        }
        (Cel::Bytes(a), Cel::Bytes(b)) => {
            meter.charge(text_cost(a.len().min(b.len()) as u64))?;
            Ok(a.cmp(b))
        }
        (Cel::Bool(a), Cel::Bool(b)) => Ok(a.cmp(b)),
        (Cel::Duration(a), Cel::Duration(b)) => Ok(a.cmp(b)),
        (Cel::Timestamp(a), Cel::Timestamp(b)) => Ok(a.cmp(b)),
        _ => numbers(a, b).ok_or(CelError::NoSuchOverload),
    }
}

/// Numbers compare by value across their types; none for NaN and for what is no number.
#[expect(clippy::cast_precision_loss, reason = "a comparison with a double is one of doubles, as upstream")]
fn numbers(a: &Cel, b: &Cel) -> Option<Ordering> {
    Some(match (a, b) {
        (Cel::Int(a), Cel::Int(b)) => a.cmp(b),
        (Cel::UInt(a), Cel::UInt(b)) => a.cmp(b),
        (Cel::Float(a), Cel::Float(b)) => a.partial_cmp(b)?,
        (Cel::Int(a), Cel::UInt(b)) => u64::try_from(*a).map_or(Ordering::Less, |a| a.cmp(b)),
        (Cel::UInt(a), Cel::Int(b)) => u64::try_from(*b).map_or(Ordering::Greater, |b| a.cmp(&b)),
        (Cel::Int(a), Cel::Float(b)) => (*a as f64).partial_cmp(b)?,
        (Cel::Float(a), Cel::Int(b)) => a.partial_cmp(&(*b as f64))?,
        (Cel::UInt(a), Cel::Float(b)) => (*a as f64).partial_cmp(b)?,
        (Cel::Float(a), Cel::UInt(b)) => a.partial_cmp(&(*b as f64))?,
        _ => return None,
    })
}

/// `+ - * / %`.
pub fn arithmetic(operator: char, a: &Cel, b: &Cel, meter: &mut Meter) -> Result<Cel, CelError> {
    let overflow =
        |unsigned: bool| CelError::failed(if unsigned { "unsigned integer overflow" } else { "integer overflow" });
    let outside = || CelError::failed("duration overflow");
    let zero = || CelError::failed(if operator == '%' { "modulus by zero" } else { "division by zero" });
    Ok(match (operator, a, b) {
        ('/' | '%', Cel::Int(_), Cel::Int(0)) | ('/' | '%', Cel::UInt(_), Cel::UInt(0)) => return Err(zero()),
        (_, Cel::Int(a), Cel::Int(b)) => Cel::Int(
            match operator {
                '+' => a.checked_add(*b),
                '-' => a.checked_sub(*b),
                '*' => a.checked_mul(*b),
                '/' => a.checked_div(*b),
                _ => a.checked_rem(*b),
            }
            .ok_or_else(|| overflow(false))?,
        ),
        (_, Cel::UInt(a), Cel::UInt(b)) => Cel::UInt(
            match operator {
                '+' => a.checked_add(*b),
                '-' => a.checked_sub(*b),
                '*' => a.checked_mul(*b),
                '/' => a.checked_div(*b),
                _ => a.checked_rem(*b),
            }
            .ok_or_else(|| overflow(true))?,
        ),
        ('+', Cel::Float(a), Cel::Float(b)) => Cel::Float(a + b),
        ('-', Cel::Float(a), Cel::Float(b)) => Cel::Float(a - b),
        ('*', Cel::Float(a), Cel::Float(b)) => Cel::Float(a * b),
        ('/', Cel::Float(a), Cel::Float(b)) => Cel::Float(a / b),
        ('+', Cel::String(a), Cel::String(b)) => {
            meter.charge(text_cost((a.len() + b.len()) as u64))?;
            text([a.as_str(), b.as_str()].concat())
        }
        ('+', Cel::Bytes(a), Cel::Bytes(b)) => {
            meter.charge(text_cost((a.len() + b.len()) as u64))?;
            Cel::Bytes(Arc::new([a.as_slice(), b.as_slice()].concat()))
        }
        ('+', Cel::List(a), Cel::List(b)) => {
            meter.charge((a.len() + b.len()) as u64)?;
            Cel::List(Arc::new(a.iter().chain(b.iter()).cloned().collect()))
        }
        ('+', Cel::Timestamp(at), Cel::Duration(by)) | ('+', Cel::Duration(by), Cel::Timestamp(at)) => {
            Cel::Timestamp(at.checked_add_signed(*by).ok_or_else(|| CelError::failed("timestamp overflow"))?)
        }
        ('-', Cel::Timestamp(at), Cel::Duration(by)) => {
            Cel::Timestamp(at.checked_sub_signed(*by).ok_or_else(|| CelError::failed("timestamp overflow"))?)
        }
        ('-', Cel::Timestamp(a), Cel::Timestamp(b)) => Cel::Duration(a.signed_duration_since(b)),
        ('+', Cel::Duration(a), Cel::Duration(b)) => Cel::Duration(a.checked_add(b).ok_or_else(outside)?),
        ('-', Cel::Duration(a), Cel::Duration(b)) => Cel::Duration(a.checked_sub(b).ok_or_else(outside)?),
        _ => return Err(CelError::NoSuchOverload),
    })
}
