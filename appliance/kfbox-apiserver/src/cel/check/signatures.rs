//! What operators and functions take and yield (cel-go `common/stdlib`, `ext`; apiserver `pkg/cel/library`).
//!
//! A row is a name and its overloads; a type before the dot is that of the target. Single capitals are parameters.

use super::types::{Solver, Type};
use std::{collections::HashMap, sync::LazyLock};

#[rustfmt::skip]
const ROWS: &[(&str, &str)] = &[
    ("_?_:_", "(bool, A, A) A"), ("!_", "(bool) bool"), ("-_", "(double) double; (int) int"),
    ("_==_", "(A, A) bool"), ("_!=_", "(A, A) bool"), ("_<_", ORDER), ("_<=_", ORDER), ("_>_", ORDER), ("_>=_", ORDER),
    ("_+_", "(bytes, bytes) bytes; (double, double) double; (duration, duration) duration; \
        (duration, timestamp) timestamp; (timestamp, duration) timestamp; (int, int) int; (list(A), list(A)) list(A); \
        (string, string) string; (uint, uint) uint"),
    ("_-_", "(double, double) double; (duration, duration) duration; (int, int) int; \
        (timestamp, duration) timestamp; (timestamp, timestamp) duration; (uint, uint) uint"),
    ("_*_", "(double, double) double; (int, int) int; (uint, uint) uint"),
    ("_/_", "(double, double) double; (int, int) int; (uint, uint) uint"),
    ("_%_", "(int, int) int; (uint, uint) uint"),
    ("@in", "(A, list(A)) bool; (A, map(A, B)) bool"),
    ("_[_]", "(list(A), int) A; (map(A, B), A) B; (optional(list(V)), int) optional(V); \
        (optional(map(K, V)), K) optional(V)"),
    ("_[?_]", "(list(V), int) optional(V); (optional(list(V)), int) optional(V); (map(K, V), K) optional(V); \
        (optional(map(K, V)), K) optional(V)"),
    // The language itself.
    ("size", "(bytes) int; bytes.() int; (list(A)) int; list(A).() int; (map(A, B)) int; map(A, B).() int; (string) int; \
        string.() int"),
    ("contains", "string.(string) bool"), ("endsWith", "string.(string) bool"), ("startsWith", "string.(string) bool"),
    ("matches", "(string, string) bool; string.(string) bool"),
    ("type", "(A) type(A)"), ("dyn", "(A) dyn"), ("bool", "(bool) bool; (string) bool"),
    ("bytes", "(bytes) bytes; (string) bytes"),
    ("double", "(double) double; (int) double; (string) double; (uint) double"),
    ("duration", "(duration) duration; (string) duration"),
    ("int", "(int) int; (double) int; (duration) int; (string) int; (timestamp) int; (uint) int"),
    ("string", "(string) string; (bool) string; (bytes) string; (double) string; (duration) string; (int) string; \
        (timestamp) string; (uint) string; (ip) string; (cidr) string"),
    ("timestamp", "(timestamp) timestamp; (int) timestamp; (string) timestamp"),
    ("uint", "(uint) uint; (double) uint; (int) uint; (string) uint"),
    ("getFullYear", CALENDAR), ("getMonth", CALENDAR), ("getDayOfYear", CALENDAR), ("getDayOfMonth", CALENDAR),
    ("getDate", CALENDAR), ("getDayOfWeek", CALENDAR), ("getHours", CLOCK), ("getMinutes", CLOCK), ("getSeconds", CLOCK),
    ("getMilliseconds", CLOCK),
    ("optional.none", "() optional(V)"), ("optional.of", "(V) optional(V)"),
    ("optional.ofNonZeroValue", "(V) optional(V)"), ("value", "optional(V).() V"), ("hasValue", "optional(V).() bool"),
    ("or", "optional(V).(optional(V)) optional(V)"), ("orValue", "optional(V).(V) V"),
    // Texts.
    ("charAt", "string.(int) string"),
    ("indexOf", "string.(string) int; string.(string, int) int; list(A).(A) int"),
    ("lastIndexOf", "string.(string) int; string.(string, int) int; list(A).(A) int"),
    ("lowerAscii", "string.() string"), ("upperAscii", "string.() string"), ("trim", "string.() string"),
    ("replace", "string.(string, string) string; string.(string, string, int) string"),
    ("split", "string.(string) list(string); string.(string, int) list(string)"),
    ("substring", "string.(int) string; string.(int, int) string"),
    ("join", "list(string).() string; list(string).(string) string"),
    ("format", "string.(list(dyn)) string"), ("strings.quote", "(string) string"),
    ("reverse", "string.() string; list(T).() list(T)"),
    // Lists and sets.
    ("isSorted", "list(int).() bool; list(uint).() bool; list(double).() bool; list(bool).() bool; \
        list(duration).() bool; list(timestamp).() bool; list(string).() bool; list(bytes).() bool"),
    ("sum", "list(int).() int; list(uint).() uint; list(double).() double; list(duration).() duration"),
    ("min", EXTREME), ("max", EXTREME), ("slice", "list(T).(int, int) list(T)"),
    ("sort", "list(int).() list(int); list(uint).() list(uint); list(double).() list(double); list(bool).() list(bool); \
        list(duration).() list(duration); list(timestamp).() list(timestamp); list(string).() list(string); \
        list(bytes).() list(bytes)"),
    ("flatten", "list(list(T)).() list(T); list(dyn).(int) list(dyn)"), ("distinct", "list(T).() list(T)"),
    ("first", "list(V).() optional(V)"), ("last", "list(V).() optional(V)"), ("lists.range", "(int) list(int)"),
    ("sets.contains", "(list(T), list(T)) bool"), ("sets.equivalent", "(list(T), list(T)) bool"),
    ("sets.intersects", "(list(T), list(T)) bool"),
    // Kubernetes.
    ("find", "string.(string) string"), ("findAll", "string.(string) list(string); string.(string, int) list(string)"),
    ("url", "(string) url"), ("isURL", "(string) bool"), ("getScheme", "url.() string"), ("getHost", "url.() string"),
    ("getHostname", "url.() string"), ("getPort", "url.() string"), ("getEscapedPath", "url.() string"),
    ("getQuery", "url.() map(string, list(string))"),
    ("quantity", "(string) quantity"), ("isQuantity", "(string) bool"), ("sign", "(quantity) int; quantity.() int"),
    ("isInteger", "quantity.() bool"), ("asInteger", "quantity.() int"), ("asApproximateFloat", "quantity.() double"),
    ("add", "quantity.(quantity) quantity; quantity.(int) quantity"),
    ("sub", "quantity.(quantity) quantity; quantity.(int) quantity"),
    ("isGreaterThan", "quantity.(quantity) bool; semver.(semver) bool"),
    ("isLessThan", "quantity.(quantity) bool; semver.(semver) bool"),
    ("compareTo", "quantity.(quantity) int; semver.(semver) int"),
    ("ip", "(string) ip; cidr.() ip"), ("isIP", "(string) bool"), ("ip.isCanonical", "(string) bool"),
    ("family", "ip.() int"), ("isLoopback", "ip.() bool"), ("isUnspecified", "ip.() bool"),
    ("isLinkLocalMulticast", "ip.() bool"), ("isLinkLocalUnicast", "ip.() bool"), ("isGlobalUnicast", "ip.() bool"),
    ("cidr", "(string) cidr"), ("isCIDR", "(string) bool"), ("containsIP", "cidr.(string) bool; cidr.(ip) bool"),
    ("containsCIDR", "cidr.(string) bool; cidr.(cidr) bool"), ("prefixLength", "cidr.() int"), ("masked", "cidr.() cidr"),
    ("format.dns1123Label", "() format"), ("format.dns1123Subdomain", "() format"), ("format.dns1035Label", "() format"),
    ("format.dns1035LabelPrefix", "() format"), ("format.dns1123LabelPrefix", "() format"),
    ("format.dns1123SubdomainPrefix", "() format"), ("format.qualifiedName", "() format"),
    ("format.labelValue", "() format"), ("format.uri", "() format"), ("format.uuid", "() format"),
    ("format.byte", "() format"), ("format.date", "() format"), ("format.datetime", "() format"),
    ("format.named", "(string) optional(format)"), ("validate", "format.(string) optional(list(string))"),
    ("semver", "(string) semver; (string, bool) semver"), ("isSemver", "(string) bool; (string, bool) bool"),
    ("major", "semver.() int"), ("minor", "semver.() int"), ("patch", "semver.() int"),
    ("jsonpatch.escapeKey", "(string) string"),
    // The authorizer.
    ("path", "authorizer.(string) pathcheck"), ("group", "authorizer.(string) groupcheck"),
    ("serviceAccount", "authorizer.(string, string) authorizer"), ("resource", "groupcheck.(string) resourcecheck"),
    ("subresource", "resourcecheck.(string) resourcecheck"), ("namespace", "resourcecheck.(string) resourcecheck"),
    ("name", "resourcecheck.(string) resourcecheck"), ("fieldSelector", "resourcecheck.(string) resourcecheck"),
    ("labelSelector", "resourcecheck.(string) resourcecheck"),
    ("check", "pathcheck.(string) decision; resourcecheck.(string) decision"), ("allowed", "decision.() bool"),
    ("reason", "decision.() string"), ("error", "decision.() string"), ("errored", "decision.() bool"),
];

const ORDER: &str = "(bool, bool) bool; (int, int) bool; (int, double) bool; (int, uint) bool; (uint, uint) bool; \
    (uint, double) bool; (uint, int) bool; (double, double) bool; (double, int) bool; (double, uint) bool; \
    (string, string) bool; (bytes, bytes) bool; (timestamp, timestamp) bool; (duration, duration) bool";
const CALENDAR: &str = "timestamp.() int; timestamp.(string) int";
const CLOCK: &str = "timestamp.() int; timestamp.(string) int; duration.() int";
const EXTREME: &str = "list(int).() int; list(uint).() uint; list(double).() double; list(bool).() bool; \
    list(duration).() duration; list(timestamp).() timestamp; list(string).() string; list(bytes).() bytes";

/// Names of the libraries' types, as rows and as errors write them.
const LIBRARY: [(&str, &str); 11] = [
    ("quantity", "kubernetes.Quantity"),
    ("url", "kubernetes.URL"),
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("format", "kubernetes.NamedFormat"),
    ("semver", "kubernetes.Semver"),
    ("authorizer", "kubernetes.authorization.Authorizer"),
    ("pathcheck", "kubernetes.authorization.PathCheck"),
    ("groupcheck", "kubernetes.authorization.GroupCheck"),
    ("resourcecheck", "kubernetes.authorization.ResourceCheck"),
    ("decision", "kubernetes.authorization.Decision"),
];

pub const IP: &str = "net.IP";
pub const CIDR: &str = "net.CIDR";
pub const AUTHORIZER: Type = Type::Library("kubernetes.authorization.Authorizer");
pub const RESOURCE_CHECK: Type = Type::Library("kubernetes.authorization.ResourceCheck");

#[derive(Debug)]
pub struct Overload {
    pub member: bool,
    arguments: Vec<Type>,
    result: Type,
    parameters: usize,
}

impl Overload {
    /// Arguments and result with parameters of their own.
    pub fn instance(&self, solver: &mut Solver) -> (Vec<Type>, Type) {
        if self.parameters == 0 {
            return (self.arguments.clone(), self.result.clone());
        }
        let own: Vec<Type> = (0..self.parameters).map(|_| solver.fresh()).collect();
        (self.arguments.iter().map(|kind| rename(kind, &own)).collect(), rename(&self.result, &own))
    }
}

fn rename(kind: &Type, own: &[Type]) -> Type {
    match kind {
        Type::Param(n) => own[*n].clone(),
        Type::List(item) => Type::list(rename(item, own)),
        Type::Map(key, value) => Type::map(rename(key, own), rename(value, own)),
        Type::Optional(held) => Type::optional(rename(held, own)),
        Type::Of(of) => Type::Of(rename(of, own).into()),
        other => other.clone(),
    }
}

/// None for a function that is not in the table.
pub fn overloads(name: &str) -> Option<&'static [Overload]> {
    static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
        ROWS.iter().map(|(name, row)| (*name, row.split(';').filter_map(|text| read(text.trim())).collect())).collect()
    });
    TABLE.get(name).map(Vec::as_slice)
}

/// The type of which this is the name as a value: `string`, `google.protobuf.Timestamp`.
pub fn type_named(name: &str) -> Type {
    match name {
        "null_type" => Type::Null,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        _ => match LIBRARY.iter().find(|(_, full)| *full == name) {
            Some((_, full)) => Type::Library(full),
            None => Reader::new(name).kind().unwrap_or(Type::Dyn),
        },
    }
}

fn read(text: &str) -> Option<Overload> {
    let mut reader = Reader::new(text);
    let mut arguments = Vec::new();
    let member = !text.starts_with('(');
    if member {
        arguments.push(reader.kind()?);
        reader.eat('.').then_some(())?;
    }
    reader.eat('(').then_some(())?;
    while !reader.eat(')') {
        arguments.push(reader.kind()?);
        reader.eat(',');
    }
    let result = reader.kind()?;
    Some(Overload { member, arguments, result, parameters: reader.parameters.len() })
}

struct Reader<'a> {
    rest: &'a str,
    /// In their order.
    parameters: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    fn new(rest: &'a str) -> Self {
        Self { rest, parameters: Vec::new() }
    }

    fn eat(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn kind(&mut self) -> Option<Type> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let mut inner = Vec::new();
        if matches!(word, "list" | "map" | "optional" | "type") && self.eat('(') {
            while !self.eat(')') {
                inner.push(self.kind()?);
                self.eat(',');
            }
        }
        Some(match (word, &mut inner[..]) {
            ("dyn", _) => Type::Dyn,
            ("bool", _) => Type::Bool,
            ("int", _) => Type::Int,
            ("uint", _) => Type::Uint,
            ("double", _) => Type::Double,
            ("string", _) => Type::String,
            ("bytes", _) => Type::Bytes,
            ("duration", _) => Type::Duration,
            ("timestamp", _) => Type::Timestamp,
            ("list", [item]) => Type::list(item.clone()),
            ("map", [key, value]) => Type::map(key.clone(), value.clone()),
            ("optional", [held]) => Type::optional(held.clone()),
            ("type", [of]) => Type::Of(of.clone().into()),
            _ if word.len() == 1 => {
                let known = self.parameters.iter().position(|name| *name == word);
                Type::Param(known.unwrap_or_else(|| {
                    self.parameters.push(word);
                    self.parameters.len() - 1
                }))
            }
            _ => Type::Library(LIBRARY.iter().find(|(short, _)| *short == word)?.1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_read_and_each_function_has_one() {
        for (name, row) in ROWS {
            assert_eq!(overloads(name).unwrap().len(), row.split(';').count(), "{name}");
        }
        let missing: Vec<_> = crate::cel::calls::names().into_iter().filter(|n| overloads(n).is_none()).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }
}
