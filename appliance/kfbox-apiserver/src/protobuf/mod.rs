//! Request bodies in `application/vnd.kubernetes.protobuf`, which kubectl and controllers in Go send for built-in kinds:
//! read into the JSON they stand for. Answers are always JSON, which those clients take.
//!
//! Guarantee: bytes that are not such a message are an error, never a panic and never more memory than a small multiple
//! of the body. Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::LazyLock};

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// Deeper than any built-in kind nests.
const DEPTH: usize = 48;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the body does not begin as a protobuf body of Kubernetes does")]
    Magic,
    #[error("the protobuf body breaks off or is malformed")]
    Malformed,
    #[error("kind {kind:?} of {api_version:?} is not known in protobuf; send application/json")]
    Kind { api_version: String, kind: String },
    #[error("the protobuf body nests too deeply")]
    Depth,
}

use DecodeError::Malformed;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Integer,
    Double,
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// JSON in a field.
    Embedded,
    /// A message that only wraps a list of strings.
    Items,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    kind: Kind,
    pointer: bool,
    list: bool,
    map: bool,
    inline: bool,
    /// Kept even when empty.
    always: bool,
}

type Message = HashMap<u32, Field>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let mut messages: HashMap<&'static str, Message> = HashMap::new();
    let mut current = "";
    for line in include_str!("generated/messages.txt").lines() {
        if let Some(name) = line.strip_prefix('@') {
            current = name;
        } else if !line.starts_with('#')
            && let Some((number, field)) = field(line)
        {
            messages.entry(current).or_default().insert(number, field);
        }
    }
    messages
});

fn field(line: &'static str) -> Option<(u32, Field)> {
    let mut words = line.split(' ');
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let flags = words.next().unwrap_or_default();
    let kind = match kind {
        "s" => Kind::Text,
        "b" => Kind::Bool,
        "i" => Kind::Integer,
        "f" => Kind::Double,
        "y" => Kind::Bytes,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "duration" => Kind::Duration,
        "quantity" => Kind::Quantity,
        "intorstring" => Kind::IntOrString,
        "raw" | "fields" => Kind::Embedded,
        "items" => Kind::Items,
        message => Kind::Message(message),
    };
    let has = |flag: &str| flags.contains(flag);
    let field =
        Field { name, kind, pointer: has("*"), list: has("[]"), map: has("{}"), inline: has("^"), always: has("!") };
    Some((number, field))
}

/// The object of a body, with its `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let mut wire = Wire(body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, datum)) = wire.next()? {
        match (number, datum) {
            (1, Datum::Bytes(meta)) => {
                let mut meta = Wire(meta);
                while let Some((number, datum)) = meta.next()? {
                    match (number, datum) {
                        (1, Datum::Bytes(text)) => api_version = string(text)?,
                        (2, Datum::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Datum::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = message_name(&api_version, &kind);
    let Some((name, _)) = MESSAGES.get_key_value(name.as_str()) else {
        return Err(DecodeError::Kind { api_version, kind });
    };
    let mut object = message(name, raw, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(object.into())
}

/// `core/v1.Pod`: the Go package of a group is its first label.
fn message_name(api_version: &str, kind: &str) -> String {
    // Of every group and version.
    if matches!(
        kind,
        "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "GetOptions" | "ListOptions"
    ) || (kind == "Status" && api_version == "v1")
    {
        return format!("meta/v1.{kind}");
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("core", api_version));
    format!("{}/{version}.{kind}", group.split('.').next().unwrap_or_default())
}

fn message(name: &'static str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, DecodeError> {
    if depth > DEPTH {
        return Err(DecodeError::Depth);
    }
    let fields = MESSAGES.get(name);
    let mut out = Map::new();
    let mut wire = Wire(bytes);
    while let Some((number, datum)) = wire.next()? {
        let Some(field) = fields.and_then(|f| f.get(&number)) else { continue };
        if field.map {
            let Datum::Bytes(entry) = datum else { return Err(Malformed) };
            let (key, value) = map_entry(field.kind, entry, depth)?;
            if let Some(map) = out.entry(field.name).or_insert_with(|| json!({})).as_object_mut() {
                map.insert(key, value);
            }
            continue;
        }
        let value = scalar(field.kind, datum, depth)?;
        if field.inline {
            if let Value::Object(members) = value {
                out.extend(members);
            }
        } else if field.list {
            if let Some(list) = out.entry(field.name).or_insert_with(|| json!([])).as_array_mut() {
                list.push(value);
            }
        } else if field.pointer || (field.always && !value.is_null()) || !is_empty(&value) {
            out.insert(field.name.into(), value);
        }
    }
    Ok(out)
}

/// What Go leaves out of JSON: the encoding writes fields that are not pointers even when they say nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn map_entry(kind: Kind, entry: &[u8], depth: usize) -> Result<(String, Value), DecodeError> {
    let (mut key, mut value) = (String::new(), None);
    let mut wire = Wire(entry);
    while let Some((number, datum)) = wire.next()? {
        match (number, datum) {
            (1, Datum::Bytes(text)) => key = string(text)?,
            (2, datum) => value = Some(scalar(kind, datum, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None if matches!(kind, Kind::Text | Kind::Bytes | Kind::Quantity) => "".into(),
        None => Value::Null,
    };
    Ok((key, value))
}

fn scalar(kind: Kind, datum: Datum<'_>, depth: usize) -> Result<Value, DecodeError> {
    Ok(match (kind, datum) {
        (Kind::Text, Datum::Bytes(text)) => string(text)?.into(),
        (Kind::Bool, Datum::Varint(n)) => (n != 0).into(),
        (Kind::Integer, Datum::Varint(n)) => n.cast_signed().into(),
        (Kind::Double, Datum::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (Kind::Bytes, Datum::Bytes(bytes)) => {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            STANDARD.encode(bytes).into()
        }
        (Kind::Time, Datum::Bytes(bytes)) => time(bytes, SecondsFormat::Secs)?,
        (Kind::MicroTime, Datum::Bytes(bytes)) => time(bytes, SecondsFormat::Micros)?,
        (Kind::Quantity, Datum::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Datum::Bytes(text)) => string(text)?.into(),
            _ => "0".into(),
        },
        (Kind::Duration, Datum::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Datum::Varint(nanos)) => format!("{}ns", nanos.cast_signed()).into(),
            _ => "0s".into(),
        },
        (Kind::IntOrString, Datum::Bytes(bytes)) => match (first(bytes, 1)?, first(bytes, 2)?, first(bytes, 3)?) {
            (Some(Datum::Varint(1)), _, Some(Datum::Bytes(text))) => string(text)?.into(),
            (_, Some(Datum::Varint(n)), _) => n.cast_signed().into(),
            _ => 0.into(),
        },
        (Kind::Embedded, Datum::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Datum::Bytes(json)) if !json.is_empty() => serde_json::from_slice(json).map_err(|_| Malformed)?,
            _ => Value::Null,
        },
        (Kind::Items, Datum::Bytes(bytes)) => {
            let mut items = Vec::new();
            let mut wire = Wire(bytes);
            while let Some((number, datum)) = wire.next()? {
                if let (1, Datum::Bytes(text)) = (number, datum) {
                    items.push(string(text)?.into());
                }
            }
            Value::Array(items)
        }
        (Kind::Message(name), Datum::Bytes(bytes)) => message(name, bytes, depth + 1)?.into(),
        _ => return Err(Malformed),
    })
}

fn first(bytes: &[u8], wanted: u32) -> Result<Option<Datum<'_>>, DecodeError> {
    let mut wire = Wire(bytes);
    while let Some((number, datum)) = wire.next()? {
        if number == wanted {
            return Ok(Some(datum));
        }
    }
    Ok(None)
}

/// Null for the zero time.
fn time(bytes: &[u8], precision: SecondsFormat) -> Result<Value, DecodeError> {
    let varint = |number| match first(bytes, number) {
        Ok(Some(Datum::Varint(n))) => Ok(Some(n.cast_signed())),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    let Some(seconds) = varint(1)? else { return Ok(Value::Null) };
    let nanos = u32::try_from(varint(2)?.unwrap_or(0)).map_err(|_| Malformed)?;
    let at: DateTime<Utc> = DateTime::from_timestamp(seconds, nanos).ok_or(Malformed)?;
    Ok(at.to_rfc3339_opts(precision, true).into())
}

fn string(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed)
}

/// A field's value as it is on the wire.
enum Datum<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn next(&mut self) -> Result<Option<(u32, Datum<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        let datum = match tag & 7 {
            0 => Datum::Varint(self.varint()?),
            1 => Datum::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Datum::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Datum::Fixed32
            }
            _ => return Err(Malformed),
        };
        Ok(Some((number, datum)))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Upstream's samples hold one object in both encodings.
    #[test]
    fn golden_objects_read_the_same_in_both_encodings() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kubernetes/golden");
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        let (mut compared, mut unknown) = (0, 0);
        for path in entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "pb")) {
            let Ok(json) = std::fs::read(path.with_extension("json")) else { continue };
            let expected: Value = serde_json::from_slice(&json).unwrap();
            match decode(&std::fs::read(&path).unwrap()) {
                Ok(decoded) => {
                    assert_eq!(decoded, expected, "{}", path.display());
                    compared += 1;
                }
                Err(DecodeError::Kind { .. }) => unknown += 1,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        assert!(compared > 30, "only {compared} compared, {unknown} of other versions");
    }

    #[test]
    fn broken_bodies_are_errors() {
        let pod = [MAGIC, b"\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x06\x0a\x04\x0a\x02ab"].concat();
        assert_eq!(decode(&pod).unwrap(), json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ab"}}));
        for end in 0..pod.len() - 1 {
            if let Ok(value) = decode(&pod[..end]) {
                assert!(value["metadata"]["name"].is_null(), "{value}");
            }
        }
        assert_eq!(decode(b"{}"), Err(DecodeError::Magic));
        let nested = (0..2000).fold(Vec::new(), |inner: Vec<u8>, _| {
            let mut length = inner.len();
            let mut out = vec![0x0a];
            while length >= 0x80 {
                out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
                length >>= 7;
            }
            out.push(u8::try_from(length).unwrap());
            out.extend(inner);
            out
        });
        let body = [MAGIC, b"\x0a\x09\x0a\x02v1\x12\x03Pod", &nested].concat();
        drop(decode(&body));
    }
}
