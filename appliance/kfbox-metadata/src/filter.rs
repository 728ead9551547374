//! `filter_query`: the conditions of a listing, translated to SQL with every literal bound as a parameter.
//!
//! The language is that of ML Metadata (`ListOperationOptions.filter_query`): comparisons, `IN`, `LIKE`, `IS [NOT] NULL`,
//! `AND`, `OR`, `NOT` and parentheses over attributes, `properties.NAME.TYPE`, `custom_properties.NAME.TYPE`,
//! `contexts_ALIAS.*`, `events_ALIAS.*`, `parent_contexts_ALIAS.*`, `child_contexts_ALIAS.*`. One alias stands for one
//! neighbour throughout a query. Anything else is refused by name.

use crate::{Error, node::Kind, proto};
use rusqlite::types::Value;
use std::collections::BTreeMap;

/// Longer queries and deeper nesting are not written by people, and cost stack and parser time.
const MAX_LENGTH: usize = 16 * 1024;
const MAX_DEPTH: usize = 64;

/// A condition on a row `n` of `node`, to be put after `AND`.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub sql: String,
    pub parameters: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A path of names joined by dots.
    Path(Vec<String>),
    Text(String),
    Int(i64),
    Float(f64),
    Symbol(&'static str),
    Word(&'static str),
}

const WORDS: [&str; 9] = ["AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "TRUE", "FALSE"];

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("Invalid `filter_query`: {why}"))
}

pub(crate) fn parse(kind: Kind, query: &str) -> Result<Filter, Error> {
    if query.len() > MAX_LENGTH {
        return Err(invalid(format!("it is longer than {MAX_LENGTH} bytes")));
    }
    let mut parser = Parser {
        kind,
        tokens: tokens(query)?,
        at: 0,
        depth: 0,
        sql: String::new(),
        parameters: Vec::new(),
        aliases: BTreeMap::new(),
    };
    parser.either()?;
    if let Some(token) = parser.tokens.get(parser.at) {
        return Err(invalid(format!("unexpected {}", shown(token))));
    }
    // The joins come first in the text, but hold no parameters: the order of those is that of the condition.
    let joins: String = parser.aliases.iter().map(|(alias, join)| join.sql(alias)).collect();
    Ok(Filter {
        sql: format!("EXISTS (SELECT 1 FROM (SELECT 1) {joins} WHERE {})", parser.sql),
        parameters: parser.parameters,
    })
}

fn shown(token: &Token) -> String {
    match token {
        Token::Path(path) => path.join("."),
        Token::Text(text) => format!("'{text}'"),
        Token::Int(n) => n.to_string(),
        Token::Float(n) => n.to_string(),
        Token::Symbol(s) | Token::Word(s) => (*s).to_owned(),
    }
}

fn tokens(query: &str) -> Result<Vec<Token>, Error> {
    let mut found = Vec::new();
    let mut chars = query.char_indices().peekable();
    while let Some(&(at, c)) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '\'' | '"' => found.push(Token::Text(quoted(&mut chars, at)?)),
            '`' => found.push(Token::Path(path(&mut chars)?)),
            c if c.is_alphabetic() || c == '_' => {
                let path = path(&mut chars)?;
                let word = match path.as_slice() {
                    [single] => WORDS.into_iter().find(|w| w.eq_ignore_ascii_case(single)),
                    _ => None,
                };
                found.push(word.map_or(Token::Path(path), Token::Word));
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' || c == '.' => {
                let mut text = String::new();
                while let Some(&(_, c)) = chars.peek() {
                    let sign = (c == '-' || c == '+') && (text.is_empty() || text.ends_with(['e', 'E']));
                    if !(c.is_ascii_alphanumeric() || c == '.' || sign) {
                        break;
                    }
                    text.push(c);
                    chars.next();
                }
                let number = text.parse().map(Token::Int).or_else(|_| text.parse().map(Token::Float));
                found.push(number.map_err(|_| invalid(format!("{text} at {} is not a number", at + 1)))?);
            }
            _ => {
                let two = [("!=", "<>"), ("<>", "<>"), ("<=", "<="), (">=", ">=")];
                let one = ["=", "<", ">", "(", ")", ","];
                if let Some((text, symbol)) = two.into_iter().find(|(text, _)| query[at..].starts_with(text)) {
                    for _ in text.chars() {
                        chars.next();
                    }
                    found.push(Token::Symbol(symbol));
                } else if let Some(symbol) = one.into_iter().find(|s| query[at..].starts_with(s)) {
                    chars.next();
                    found.push(Token::Symbol(symbol));
                } else {
                    return Err(invalid(format!("unexpected {c:?} at {}", at + 1)));
                }
            }
        }
    }
    Ok(found)
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn quoted(chars: &mut Chars<'_>, at: usize) -> Result<String, Error> {
    let end = chars.next().map(|(_, c)| c);
    let mut text = String::new();
    loop {
        match chars.next().map(|(_, c)| c) {
            None => return Err(invalid(format!("the text that starts at {} is not closed", at + 1))),
            c if c == end => return Ok(text),
            Some('\\') => match chars.next().map(|(_, c)| c) {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(c) => text.push(c),
                None => {}
            },
            Some(c) => text.push(c),
        }
    }
}

fn path(chars: &mut Chars<'_>) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    loop {
        match chars.peek().copied() {
            Some((at, '`')) => names.push(quoted(chars, at)?),
            _ => {
                let mut name = String::new();
                while let Some(&(_, c)) = chars.peek() {
                    if !(c.is_alphanumeric() || c == '_') {
                        break;
                    }
                    name.push(c);
                    chars.next();
                }
                names.push(name);
            }
        }
        if chars.peek().map(|(_, c)| *c) != Some('.') {
            return Ok(names);
        }
        chars.next();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Context(Kind),
    Event(Kind),
    Parent,
    Child,
}

impl Join {
    /// Neighbours are of the same namespace by construction; the condition here keeps it so whatever the tables hold.
    fn sql(self, alias: &str) -> String {
        let node = |link: String, id: &str| {
            format!(
                " LEFT JOIN {link} LEFT JOIN node {alias} ON {alias}.kind = 3 AND {alias}.id = {alias}_l.{id} \
                 AND {alias}.namespace = n.namespace"
            )
        };
        match self {
            Self::Context(_) => {
                node(format!("member {alias}_l ON {alias}_l.kind = n.kind AND {alias}_l.node = n.id"), "context")
            }
            Self::Parent => node(format!("parent {alias}_l ON {alias}_l.child = n.id"), "parent"),
            Self::Child => node(format!("parent {alias}_l ON {alias}_l.parent = n.id"), "child"),
            Self::Event(kind) => format!(" LEFT JOIN event {alias} ON {alias}.{} = n.id", kind.noun()),
        }
    }
}

/// The number of an enumeration's value, from its name.
type Names = fn(&str) -> Option<i32>;

/// What a path stands for: its SQL and, for enumerations, the names of its values.
struct Operand {
    sql: String,
    parameter: Option<Value>,
    names: Option<Names>,
}

struct Parser {
    kind: Kind,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    sql: String,
    parameters: Vec<Value>,
    /// SQL alias (made by us, never the user's text) to its join; found again by the user's own name.
    aliases: BTreeMap<String, Join>,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn either(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(invalid("it is nested too deeply"));
        }
        self.all()?;
        while self.take(&Token::Word("OR")) {
            self.sql.push_str(" OR ");
            self.all()?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn all(&mut self) -> Result<(), Error> {
        self.term()?;
        while self.take(&Token::Word("AND")) {
            self.sql.push_str(" AND ");
            self.term()?;
        }
        Ok(())
    }

    fn term(&mut self) -> Result<(), Error> {
        while self.take(&Token::Word("NOT")) {
            self.sql.push_str("NOT ");
        }
        if self.take(&Token::Symbol("(")) {
            self.sql.push('(');
            self.either()?;
            if !self.take(&Token::Symbol(")")) {
                return Err(invalid("a parenthesis is not closed"));
            }
            self.sql.push(')');
            return Ok(());
        }
        match self.next() {
            Some(Token::Path(path)) => {
                let operand = self.operand(&path)?;
                self.comparison(&path, operand)
            }
            Some(other) => Err(invalid(format!("expected the name of an attribute, found {}", shown(&other)))),
            None => Err(invalid("it ends where a condition should be")),
        }
    }

    fn comparison(&mut self, path: &[String], operand: Operand) -> Result<(), Error> {
        self.sql.push('(');
        self.sql.push_str(&operand.sql);
        self.parameters.extend(operand.parameter.clone());
        let negated = self.take(&Token::Word("NOT"));
        match self.next() {
            Some(Token::Symbol(symbol @ ("=" | "<>" | "<" | ">" | "<=" | ">="))) if !negated => {
                self.sql.push_str(symbol);
                self.literal(path, &operand)?;
            }
            Some(Token::Word("IS")) if !negated => {
                let not = self.take(&Token::Word("NOT"));
                if !self.take(&Token::Word("NULL")) {
                    return Err(invalid("IS is followed by NULL or NOT NULL"));
                }
                self.sql.push_str(if not { " IS NOT NULL" } else { " IS NULL" });
            }
            Some(Token::Word("LIKE")) => {
                self.sql.push_str(if negated { " NOT LIKE " } else { " LIKE " });
                self.literal(path, &operand)?;
            }
            Some(Token::Word("IN")) => {
                self.sql.push_str(if negated { " NOT IN (" } else { " IN (" });
                if !self.take(&Token::Symbol("(")) {
                    return Err(invalid("IN is followed by a list in parentheses"));
                }
                loop {
                    self.literal(path, &operand)?;
                    if !self.take(&Token::Symbol(",")) {
                        break;
                    }
                    self.sql.push(',');
                }
                if !self.take(&Token::Symbol(")")) {
                    return Err(invalid("the list after IN is not closed"));
                }
                self.sql.push(')');
            }
            _ => return Err(invalid(format!("{} is not followed by a comparison", path.join(".")))),
        }
        self.sql.push(')');
        Ok(())
    }

    fn literal(&mut self, path: &[String], operand: &Operand) -> Result<(), Error> {
        let value = match (self.next(), operand.names) {
            (Some(Token::Path(name)), Some(names)) if name.len() == 1 => names(&name[0])
                .map(|n| Value::Integer(n.into()))
                .ok_or_else(|| invalid(format!("{} has no value {}", path.join("."), name[0])))?,
            (Some(Token::Text(name)), Some(names)) => names(&name)
                .map(|n| Value::Integer(n.into()))
                .ok_or_else(|| invalid(format!("{} has no value {name}", path.join("."))))?,
            (Some(Token::Text(text)), None) => Value::Text(text),
            (Some(Token::Int(n)), _) => Value::Integer(n),
            (Some(Token::Float(n)), None) => Value::Real(n),
            (Some(Token::Word("TRUE")), None) => Value::Integer(1),
            (Some(Token::Word("FALSE")), None) => Value::Integer(0),
            (Some(other), _) => {
                return Err(invalid(format!("{} cannot be compared with {}", path.join("."), shown(&other))));
            }
            (None, _) => return Err(invalid("it ends where a value should be")),
        };
        self.sql.push('?');
        self.parameters.push(value);
        Ok(())
    }

    fn operand(&mut self, path: &[String]) -> Result<Operand, Error> {
        let unknown = || invalid(format!("Unrecognized name: {}", path.join(".")));
        match path {
            [attribute] => self.attribute("n", self.kind, attribute).ok_or_else(unknown),
            [group, name, column] if group == "properties" || group == "custom_properties" => {
                if !["int_value", "double_value", "string_value", "bool_value"].contains(&column.as_str()) {
                    return Err(unknown());
                }
                let custom = i32::from(group == "custom_properties");
                Ok(Operand {
                    sql: format!(
                        "(SELECT {column} FROM property p WHERE p.kind = n.kind AND p.node = n.id \
                         AND p.custom = {custom} AND p.name = ?)"
                    ),
                    parameter: Some(Value::Text(name.clone())),
                    names: None,
                })
            }
            [neighbour, attribute] => {
                let (join, prefix) = match self.kind {
                    Kind::Artifact | Kind::Execution if neighbour.starts_with("contexts_") => {
                        (Join::Context(self.kind), "c")
                    }
                    Kind::Artifact | Kind::Execution if neighbour.starts_with("events_") => {
                        (Join::Event(self.kind), "e")
                    }
                    Kind::Context if neighbour.starts_with("parent_contexts_") => (Join::Parent, "p"),
                    Kind::Context if neighbour.starts_with("child_contexts_") => (Join::Child, "d"),
                    _ => return Err(unknown()),
                };
                // The user's name becomes part of an SQL name only as hexadecimal digits.
                let hex: String = neighbour.bytes().map(|b| format!("{b:02x}")).collect();
                let alias = format!("{prefix}_{hex}");
                let operand = match join {
                    Join::Event(_) => event_attribute(&alias, attribute),
                    _ => self.attribute(&alias, Kind::Context, attribute),
                };
                self.aliases.insert(alias, join);
                operand.ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }

    fn attribute(&self, table: &str, kind: Kind, name: &str) -> Option<Operand> {
        let column = match (name, kind) {
            ("id" | "name" | "external_id", _) => format!("{table}.{name}"),
            ("type_id", _) => format!("{table}.type"),
            ("type", _) => format!("(SELECT t.name FROM type t WHERE t.id = {table}.type)"),
            ("uri", Kind::Artifact) => format!("{table}.uri"),
            ("state", Kind::Artifact) | ("last_known_state", Kind::Execution) => format!("{table}.state"),
            ("create_time_since_epoch", _) => format!("{table}.created"),
            ("last_update_time_since_epoch", _) => format!("{table}.updated"),
            _ => return None,
        };
        let names: Option<Names> = match name {
            "state" => Some(|n| proto::artifact::State::from_str_name(n).map(|s| s as i32)),
            "last_known_state" => Some(|n| proto::execution::State::from_str_name(n).map(|s| s as i32)),
            _ => None,
        };
        Some(Operand { sql: column, parameter: None, names })
    }
}

fn event_attribute(alias: &str, name: &str) -> Option<Operand> {
    let (column, names): (&str, Option<Names>) = match name {
        "artifact_id" => ("artifact", None),
        "execution_id" => ("execution", None),
        "milliseconds_since_epoch" => ("time", None),
        "type" => ("type", Some(|n| proto::event::Type::from_str_name(n).map(|t| t as i32))),
        _ => return None,
    };
    Some(Operand { sql: format!("{alias}.{column}"), parameter: None, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_the_query_never_reaches_the_sql() {
        for query in [
            "name = 'x'' OR 1=1 --'",
            "contexts_a.name = \"'; DROP TABLE node; --\"",
            "properties.`a' OR 1=1 --`.int_value > 3",
            "`contexts_x; DROP`.name = 'q'",
        ] {
            if let Ok(filter) = parse(Kind::Artifact, query) {
                assert!(!filter.sql.contains("DROP") && !filter.sql.contains("--"), "{}", filter.sql);
                assert!(!filter.parameters.is_empty());
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for query in [
            "",
            "bogus = 1",
            "uri = 'x",
            "id =",
            "id = 1 id = 2",
            "state = NOWHERE",
            "(id = 1",
            "id IN 1",
            "contexts_a.uri = 'x'",
            "events_a.name = 'x'",
            "properties.a.json = 1",
            "id == 1",
            "id = 1; SELECT",
        ] {
            assert!(matches!(parse(Kind::Artifact, query), Err(Error::InvalidArgument(_))), "{query}");
        }
        assert!(parse(Kind::Context, "events_a.type = INPUT").is_err());
        assert!(parse(Kind::Artifact, &format!("{}id = 1{}", "(".repeat(99), ")".repeat(99))).is_err());
    }
}
