//! The expressions that compiled pipelines contain: trigger conditions (`inputs.parameter_values['x'] == 'heads'`) and
//! parameter selectors (`parseJson(string_value)["a"]`), a part of CEL with upstream's `parseJson`
//! (`backend/src/v2/expression/expression.go`). Numbers are numbers: CEL's int and double compare with each other.
//! Invariant: evaluation ends, on any input, in time linear in the expression's length times its values' size.

use serde_json::{Map, Value};

/// Nesting that no compiled pipeline reaches and the stack easily holds.
const MAX_DEPTH: usize = 64;
const MAX_LENGTH: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("at character {at}: {why}")]
    Syntax { at: usize, why: String },
    #[error("{0}")]
    Evaluation(String),
}

type Result<T> = std::result::Result<T, ExpressionError>;

fn failed<T>(why: impl Into<String>) -> Result<T> {
    Err(ExpressionError::Evaluation(why.into()))
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Number(f64),
    Symbol(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Literal(Value),
    Name(String),
    List(Vec<Node>),
    Index(Box<Node>, Box<Node>),
    Call(String, Vec<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(&'static str, Box<Node>, Box<Node>),
    Choose(Box<Node>, Box<Node>, Box<Node>),
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression(Node);

/// The two-character symbols come first, so that `==` is not read as two `=`.
const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]", ".", ",", "?", ":",
];

fn tokenize(source: &str) -> Result<Vec<(usize, Token)>> {
    let syntax = |at: usize, why: &str| ExpressionError::Syntax { at: at + 1, why: why.to_owned() };
    if source.len() > MAX_LENGTH {
        return Err(syntax(MAX_LENGTH, "the expression is too long"));
    }
    let chars: Vec<char> = source.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let start = at;
        if c.is_whitespace() {
            at += 1;
        } else if c == '\'' || c == '"' {
            at += 1;
            let mut text = String::new();
            loop {
                match chars.get(at) {
                    None => return Err(syntax(start, "the string has no end")),
                    Some(&q) if q == c => break,
                    Some('\\') => {
                        at += 1;
                        text.push(match chars.get(at) {
                            Some('n') => '\n',
                            Some('t') => '\t',
                            Some('r') => '\r',
                            Some(&other) => other,
                            None => return Err(syntax(start, "the string has no end")),
                        });
                    }
                    Some(&other) => text.push(other),
                }
                at += 1;
            }
            at += 1;
            tokens.push((start, Token::Text(text)));
        } else if c.is_ascii_digit() {
            while chars.get(at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '.') {
                at += 1;
            }
            let text: String = chars[start..at].iter().collect();
            let number = text.trim_end_matches(['u', 'U']).parse().map_err(|_| syntax(start, "this is no number"))?;
            tokens.push((start, Token::Number(number)));
        } else if c.is_alphabetic() || c == '_' {
            while chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                at += 1;
            }
            tokens.push((start, Token::Name(chars[start..at].iter().collect())));
        } else {
            let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let symbol = SYMBOLS
                .iter()
                .find(|s| rest.starts_with(**s))
                .ok_or_else(|| syntax(at, "this character has no meaning here"))?;
            at += symbol.len();
            tokens.push((start, Token::Symbol(symbol)));
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn syntax<T>(&self, why: impl Into<String>) -> Result<T> {
        let at = self.tokens.get(self.at).map_or(self.end, |(at, _)| *at) + 1;
        Err(ExpressionError::Syntax { at, why: why.into() })
    }

    fn take(&mut self, symbols: &[&'static str]) -> Option<&'static str> {
        let Some((_, Token::Symbol(found))) = self.tokens.get(self.at) else { return None };
        let found = symbols.iter().find(|s| *s == found)?;
        self.at += 1;
        Some(found)
    }

    fn expect(&mut self, symbol: &'static str) -> Result<()> {
        if self.take(&[symbol]).is_some() { Ok(()) } else { self.syntax(format!("`{symbol}` is missing")) }
    }

    fn expression(&mut self) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.syntax("the expression is nested too deeply");
        }
        let condition = self.binary(0)?;
        let node = if self.take(&["?"]).is_some() {
            let yes = self.expression()?;
            self.expect(":")?;
            Node::Choose(Box::new(condition), Box::new(yes), Box::new(self.expression()?))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn binary(&mut self, level: usize) -> Result<Node> {
        const LEVELS: &[&[&str]] =
            &[&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];
        let Some(symbols) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            let symbol = if let Some(symbol) = self.take(symbols) {
                symbol
            } else if level == 2 && matches!(self.tokens.get(self.at), Some((_, Token::Name(n))) if n == "in") {
                self.at += 1;
                "in"
            } else {
                return Ok(left);
            };
            let right = self.binary(level + 1)?;
            left = Node::Binary(symbol, Box::new(left), Box::new(right));
        }
    }

    fn unary(&mut self) -> Result<Node> {
        let mut prefixes = Vec::new();
        while let Some(symbol) = self.take(&["!", "-"]) {
            prefixes.push(symbol);
            if prefixes.len() > MAX_DEPTH {
                return self.syntax("the expression is nested too deeply");
            }
        }
        let mut node = self.postfix()?;
        for symbol in prefixes.into_iter().rev() {
            node = if symbol == "!" { Node::Not(Box::new(node)) } else { Node::Negate(Box::new(node)) };
        }
        Ok(node)
    }

    fn postfix(&mut self) -> Result<Node> {
        let mut node = self.primary()?;
        let mut length = 0;
        loop {
            length += 1;
            if length > MAX_DEPTH {
                return self.syntax("the expression is nested too deeply");
            }
            if self.take(&["."]).is_some() {
                let Some((_, Token::Name(name))) = self.tokens.get(self.at).cloned() else {
                    return self.syntax("a field's name is missing");
                };
                self.at += 1;
                if self.take(&["("]).is_some() {
                    let mut arguments = vec![node];
                    arguments.extend(self.list(")")?);
                    node = Node::Call(name, arguments);
                } else {
                    node = Node::Index(Box::new(node), Box::new(Node::Literal(Value::String(name))));
                }
            } else if self.take(&["["]).is_some() {
                let index = self.expression()?;
                self.expect("]")?;
                node = Node::Index(Box::new(node), Box::new(index));
            } else {
                return Ok(node);
            }
        }
    }

    fn list(&mut self, close: &'static str) -> Result<Vec<Node>> {
        let mut items = Vec::new();
        if self.take(&[close]).is_some() {
            return Ok(items);
        }
        loop {
            items.push(self.expression()?);
            if self.take(&[close]).is_some() {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    fn primary(&mut self) -> Result<Node> {
        if self.take(&["("]).is_some() {
            let node = self.expression()?;
            self.expect(")")?;
            return Ok(node);
        }
        if self.take(&["["]).is_some() {
            return Ok(Node::List(self.list("]")?));
        }
        let Some((_, token)) = self.tokens.get(self.at).cloned() else {
            return self.syntax("a value is missing");
        };
        self.at += 1;
        Ok(match token {
            Token::Text(text) => Node::Literal(Value::String(text)),
            Token::Number(number) => Node::Literal(number.into()),
            Token::Name(name) => match name.as_str() {
                "true" => Node::Literal(Value::Bool(true)),
                "false" => Node::Literal(Value::Bool(false)),
                "null" => Node::Literal(Value::Null),
                _ if self.take(&["("]).is_some() => Node::Call(name, self.list(")")?),
                _ => Node::Name(name),
            },
            Token::Symbol(symbol) => {
                self.at -= 1;
                return self.syntax(format!("`{symbol}` cannot stand here"));
            }
        })
    }
}

impl Expression {
    pub fn parse(source: &str) -> Result<Self> {
        let tokens = tokenize(source)?;
        let mut parser = Parser { tokens, at: 0, end: source.chars().count(), depth: 0 };
        let node = parser.expression()?;
        if parser.at < parser.tokens.len() {
            return parser.syntax("the expression should have ended");
        }
        Ok(Self(node))
    }

    /// Evaluates with `names` in scope.
    pub fn evaluate(&self, names: &Map<String, Value>) -> Result<Value> {
        evaluate(&self.0, names)
    }
}

/// Whether a task runs: `condition` over the task's input parameters.
pub fn condition(source: &str, parameters: &Map<String, Value>) -> Result<bool> {
    let parameters = Value::Object(parameters.clone());
    // Upstream's ExecutorInput has both field names; compiled pipelines use the first.
    let inputs =
        Map::from_iter([("parameter_values".to_owned(), parameters.clone()), ("parameters".to_owned(), parameters)]);
    let names = Map::from_iter([("inputs".to_owned(), Value::Object(inputs))]);
    match Expression::parse(source)?.evaluate(&names)? {
        Value::Bool(yes) => Ok(yes),
        other => failed(format!("the condition should be true or false, and is {other}")),
    }
}

/// A part of a parameter: `selector` over the value, which it names by its kind and always also as `string_value`.
pub fn select(value: &Value, selector: &str) -> Result<Value> {
    let kind = match value {
        Value::Null => "null_value",
        Value::Bool(_) => "bool_value",
        Value::Number(_) => "number_value",
        Value::String(_) => "string_value",
        Value::Array(_) => "list_value",
        Value::Object(_) => "struct_value",
    };
    let mut names = Map::from_iter([(kind.to_owned(), value.clone())]);
    names.insert("string_value".into(), Value::String(super::value::text(value)));
    Expression::parse(selector)?.evaluate(&names)
}

fn evaluate(node: &Node, names: &Map<String, Value>) -> Result<Value> {
    Ok(match node {
        Node::Literal(value) => value.clone(),
        Node::Name(name) => match names.get(name) {
            Some(value) => value.clone(),
            None => return failed(format!("`{name}` is not known here")),
        },
        Node::List(items) => Value::Array(items.iter().map(|n| evaluate(n, names)).collect::<Result<_>>()?),
        Node::Index(of, index) => return index_into(evaluate(of, names)?, &evaluate(index, names)?),
        Node::Call(name, arguments) => {
            let arguments = arguments.iter().map(|n| evaluate(n, names)).collect::<Result<Vec<_>>>()?;
            return call(name, &arguments);
        }
        Node::Not(of) => Value::Bool(!truth(&evaluate(of, names)?)?),
        Node::Negate(of) => (-number(&evaluate(of, names)?)?).into(),
        Node::Choose(condition, yes, no) => {
            let chosen = if truth(&evaluate(condition, names)?)? { yes } else { no };
            return evaluate(chosen, names);
        }
        Node::Binary("&&", left, right) => {
            Value::Bool(truth(&evaluate(left, names)?)? && truth(&evaluate(right, names)?)?)
        }
        Node::Binary("||", left, right) => {
            Value::Bool(truth(&evaluate(left, names)?)? || truth(&evaluate(right, names)?)?)
        }
        Node::Binary(symbol, left, right) => {
            return binary(symbol, &evaluate(left, names)?, &evaluate(right, names)?);
        }
    })
}

fn truth(value: &Value) -> Result<bool> {
    value.as_bool().map_or_else(|| failed(format!("{value} is neither true nor false")), Ok)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().map_or_else(|| failed(format!("{value} is no number")), Ok)
}

fn index_into(of: Value, index: &Value) -> Result<Value> {
    match (of, index) {
        (Value::Object(mut map), Value::String(key)) => {
            map.remove(key).map_or_else(|| failed(format!("there is no `{key}`")), Ok)
        }
        (Value::Array(mut items), index) => {
            let at = index.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole and not negative; a cast saturates"
            )]
            match at.map(|f| f as usize) {
                Some(at) if at < items.len() => Ok(items.swap_remove(at)),
                _ => failed(format!("the list has {} items, and item {index} was asked for", items.len())),
            }
        }
        (of, index) => failed(format!("{of} has no {index}")),
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => left == right,
    }
}

fn binary(symbol: &str, left: &Value, right: &Value) -> Result<Value> {
    Ok(match symbol {
        "==" => Value::Bool(same(left, right)),
        "!=" => Value::Bool(!same(left, right)),
        "in" => match right {
            Value::Array(items) => Value::Bool(items.iter().any(|item| same(item, left))),
            Value::Object(map) => Value::Bool(left.as_str().is_some_and(|key| map.contains_key(key))),
            other => return failed(format!("{other} holds nothing")),
        },
        "<" | "<=" | ">" | ">=" => {
            let order = match (left, right) {
                (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
                _ => None,
            };
            let Some(order) = order else { return failed(format!("{left} and {right} cannot be compared")) };
            Value::Bool(match symbol {
                "<" => order.is_lt(),
                "<=" => order.is_le(),
                ">" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        "+" => match (left, right) {
            (Value::String(a), Value::String(b)) => Value::String(format!("{a}{b}")),
            (Value::Array(a), Value::Array(b)) => Value::Array(a.iter().chain(b).cloned().collect()),
            _ => (number(left)? + number(right)?).into(),
        },
        "-" => (number(left)? - number(right)?).into(),
        "*" => (number(left)? * number(right)?).into(),
        "/" | "%" if number(right)? == 0.0 => return failed("division by zero"),
        "/" => (number(left)? / number(right)?).into(),
        _ => (number(left)? % number(right)?).into(),
    })
}

fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let wrong = || failed(format!("`{name}` cannot take {}", Value::Array(arguments.to_vec())));
    Ok(match (name, arguments) {
        ("int" | "uint", [value]) => match value {
            Value::Number(n) => n.as_f64().map_or(Value::Null, |f| f.trunc().into()),
            Value::String(text) => match text.trim().parse::<i64>() {
                Ok(whole) => whole.into(),
                Err(_) => return failed(format!("`{text}` is no integer")),
            },
            Value::Bool(yes) => i64::from(*yes).into(),
            _ => return wrong(),
        },
        ("double", [value]) => match value {
            Value::Number(_) => value.clone(),
            Value::String(text) => match text.trim().parse::<f64>() {
                Ok(number) => number.into(),
                Err(_) => return failed(format!("`{text}` is no number")),
            },
            _ => return wrong(),
        },
        ("bool", [value]) => match value {
            Value::Bool(_) => value.clone(),
            Value::String(text) => match text.as_str() {
                "true" | "True" | "TRUE" | "t" | "1" => Value::Bool(true),
                "false" | "False" | "FALSE" | "f" | "0" => Value::Bool(false),
                _ => return failed(format!("`{text}` is neither true nor false")),
            },
            _ => return wrong(),
        },
        ("string", [value]) => {
            let mut value = value.clone();
            super::value::normalize(&mut value);
            Value::String(super::value::text(&value))
        }
        ("parseJson", [Value::String(text)]) => match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                return failed(format!(
                    "parseJson: `{}` is no JSON: {error}",
                    text.chars().take(80).collect::<String>()
                ));
            }
        },
        ("size", [Value::String(text)]) => text.chars().count().into(),
        ("size", [Value::Array(items)]) => items.len().into(),
        ("size", [Value::Object(map)]) => map.len().into(),
        ("contains", [Value::String(text), Value::String(part)]) => Value::Bool(text.contains(part.as_str())),
        ("startsWith", [Value::String(text), Value::String(part)]) => Value::Bool(text.starts_with(part.as_str())),
        ("endsWith", [Value::String(text), Value::String(part)]) => Value::Bool(text.ends_with(part.as_str())),
        (
            "int" | "uint" | "double" | "bool" | "string" | "parseJson" | "size" | "contains" | "startsWith"
            | "endsWith",
            _,
        ) => {
            return wrong();
        }
        _ => return failed(format!("there is no function `{name}`")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holds(source: &str, parameters: Value) -> Result<bool> {
        condition(source, parameters.as_object().unwrap())
    }

    #[test]
    fn conditions_as_the_sdk_writes_them() {
        let p = json!({"pipelinechannel--flip-coin-Output": "heads", "n": 3, "x": 0.5, "yes": true, "s": "7"});
        assert!(holds("inputs.parameter_values['pipelinechannel--flip-coin-Output']\n == 'heads'", p.clone()).unwrap());
        assert!(
            !holds("!(inputs.parameter_values['pipelinechannel--flip-coin-Output'] == 'heads')", p.clone()).unwrap()
        );
        assert!(
            holds("int(inputs.parameter_values['n']) >= 3 && inputs.parameter_values['x'] < 1", p.clone()).unwrap()
        );
        assert!(holds("inputs.parameter_values['yes'] == true", p.clone()).unwrap());
        assert!(holds("int(inputs.parameter_values['s']) == 7 || false", p.clone()).unwrap());
        assert!(holds("!(inputs.parameter_values['n'] == 3) && !(inputs.parameter_values['n'] == 4) || (inputs.parameter_values['n'] == 3)", p).unwrap());
    }

    #[test]
    fn a_selector_reaches_into_a_value_of_any_kind() {
        let item = json!({"B_b": ["A"], "A_a": "heads"});
        assert_eq!(select(&item, r#"parseJson(string_value)["A_a"]"#).unwrap(), json!("heads"));
        assert_eq!(select(&json!(item.to_string()), r#"parseJson(string_value)["B_b"]"#).unwrap(), json!(["A"]));
        assert_eq!(select(&item, "struct_value.B_b[0]").unwrap(), json!("A"));
        let missing = select(&item, r#"parseJson(string_value)["C"]"#).unwrap_err();
        assert!(missing.to_string().contains("`C`"));
    }

    #[test]
    fn data_is_never_read_as_an_expression() {
        let p = json!({"x": "' || true || '"});
        assert!(!holds("inputs.parameter_values['x'] == 'a'", p).unwrap());
    }

    #[test]
    fn nonsense_is_an_error_with_its_place() {
        for (source, part) in
            [("1 +", "missing"), ("a b", "ended"), ("'x", "no end"), ("1 == ;", "character 6"), ("f(", "missing")]
        {
            let error = Expression::parse(source).unwrap_err().to_string();
            assert!(error.contains(part), "{source}: {error}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
        assert!(Expression::parse(&"(".repeat(10_000)).is_err());
        assert!(Expression::parse(&"!".repeat(10_000)).is_err());
        assert!(holds("1", json!({})).is_err());
        assert!(holds("inputs.parameter_values['gone'] == 1", json!({})).is_err());
    }
}
