//! Where in the text a step of an expression stands. The parser keeps no places, and they are asked for only when
//! something is wrong: then the words of the text and the tree are gone through side by side.

use super::super::lower::{Each, Fold, Node};
use super::super::{Cel, lower::TypeName};
use std::fmt::Write as _;

struct Word<'a> {
    at: usize,
    text: &'a str,
    /// `true`, numbers, texts.
    constant: bool,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

fn words(source: &str) -> Vec<Word<'_>> {
    let (bytes, mut at, mut out) = (source.as_bytes(), 0, Vec::new());
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let next = bytes.get(at + 1).copied();
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if source[at..].starts_with("//") {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
            continue;
        }
        let prefix = bytes[at..].iter().take(2).take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
        let mut constant = false;
        if let Some(quote @ (b'"' | b'\'')) = bytes.get(at + prefix).copied() {
            at = text_end(source, at + prefix, quote, bytes[start..start + prefix].iter().any(|b| b | 32 == b'r'));
            constant = true;
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            at += source[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(source.len() - at);
            constant = matches!(&source[start..at], "true" | "false" | "null");
        } else if byte.is_ascii_digit() || (byte == b'.' && next.is_some_and(|b| b.is_ascii_digit())) {
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                let exponent = matches!(bytes[at], b'e' | b'E') && !source[start..at].starts_with("0x");
                at += 1;
                if exponent && matches!(bytes.get(at), Some(b'+' | b'-')) {
                    at += 1;
                }
            }
            constant = true;
        } else {
            let pair = next
                .is_some_and(|n| matches!((byte, n), (b'=' | b'!' | b'<' | b'>', b'=') | (b'&', b'&') | (b'|', b'|')));
            at += if pair { 2 } else { source[at..].chars().next().map_or(1, char::len_utf8) };
        }
        out.push(Word { at: start, text: &source[start..at], constant });
    }
    out
}

fn text_end(source: &str, open: usize, quote: u8, raw: bool) -> usize {
    let bytes = source.as_bytes();
    let triple = bytes.get(open + 1) == Some(&quote) && bytes.get(open + 2) == Some(&quote);
    let mut at = open + if triple { 3 } else { 1 };
    while at < bytes.len() {
        if bytes[at] == b'\\' && !raw {
            at += 2;
        } else if bytes[at] == quote && !triple {
            return at + 1;
        } else if triple && bytes[at..].starts_with(&[quote; 3]) {
            return at + 3;
        } else {
            at += 1;
        }
    }
    // An escape may have led past the end or into a character.
    (at.min(bytes.len())..=bytes.len()).find(|at| source.is_char_boundary(*at)).unwrap_or(bytes.len())
}

/// Finds nodes by their addresses.
pub struct Places<'a> {
    words: Vec<Word<'a>>,
    next: usize,
    wanted: Vec<*const Node>,
    found: Vec<Option<usize>>,
}

/// The byte at which each of the nodes stands.
pub fn places(source: &str, root: &Node, wanted: Vec<*const Node>) -> Vec<usize> {
    let found = vec![None; wanted.len()];
    let mut places = Places { words: words(source), next: 0, wanted, found };
    places.node(root);
    places.found.into_iter().map(|at| at.unwrap_or(0)).collect()
}

/// The first place where a name stands that is no member of something.
pub fn place_of_name(source: &str, name: &str) -> usize {
    let words = words(source);
    let first = name.split('.').next().unwrap_or(name);
    let member = |at: usize| at > 0 && words[at - 1].text == ".";
    let call = |at: usize| words.get(at + 1).is_some_and(|w| w.text == "(");
    let all = || (0..words.len()).filter(|at| words[*at].text == first);
    match all().find(|at| !member(*at)).or_else(|| all().find(|at| call(*at))) {
        // Calls stand at their parenthesis.
        Some(at) if call(at) => words[at + 1].at,
        Some(at) => words[at].at,
        None => words.iter().find(|w| w.text == name.rsplit('.').next().unwrap_or(name)).map_or(0, |w| w.at),
    }
}

impl Places<'_> {
    /// Goes on past the next such word and tells where it was.
    fn eat(&mut self, wanted: impl Fn(&Word<'_>) -> bool) -> Option<usize> {
        let found = self.words[self.next..].iter().position(wanted)? + self.next;
        self.next = found + 1;
        Some(self.words[found].at)
    }

    fn text(&mut self, text: &str) -> Option<usize> {
        self.eat(|word| word.text == text && !word.constant)
    }

    fn name(&mut self) -> Option<usize> {
        self.eat(|word| is_name(word.text) && !word.constant)
    }

    fn dotted(&mut self, name: &str) -> Option<usize> {
        let mut first = None;
        for part in name.split('.') {
            let at = self.text(part);
            first = first.or(at);
        }
        first
    }

    fn node(&mut self, node: &Node) {
        let at = match node {
            Node::Literal(Cel::Opaque(value)) => {
                value.downcast_ref::<TypeName>().and_then(|TypeName(name)| self.dotted(name))
            }
            Node::Literal(_) => self.eat(|word| word.constant),
            Node::Variable(name) => self.dotted(name),
            Node::Composed(name) => {
                self.text("variables");
                let dot = self.text(".");
                self.text(name);
                dot
            }
            Node::Local(_) => self.name(),
            Node::Select { operand, test: true, .. } => {
                self.text("has");
                let open = self.text("(");
                self.node(operand);
                self.text(".");
                self.name();
                open
            }
            Node::Select { operand, .. } => {
                self.node(operand);
                let dot = self.text(".");
                self.eat(|word| is_name(word.text));
                dot
            }
            Node::Index { operand, index, .. } => {
                self.node(operand);
                let open = self.text("[");
                self.node(index);
                open
            }
            Node::And(a, b) => self.pair(a, "&&", b),
            Node::Or(a, b) => self.pair(a, "||", b),
            Node::Not(inner) => {
                let at = self.text("!");
                self.node(inner);
                at
            }
            Node::Negate(inner) => {
                let at = self.text("-");
                self.node(inner);
                at
            }
            Node::Lenient(inner) => {
                self.node(inner);
                None
            }
            Node::Conditional(parts) => {
                self.node(&parts[0]);
                let at = self.text("?");
                self.node(&parts[1]);
                self.text(":");
                self.node(&parts[2]);
                at
            }
            Node::Equal { sides, negated } => self.pair(&sides[0], if *negated { "!=" } else { "==" }, &sides[1]),
            Node::Order(order, sides) => self.pair(&sides[0], order.sign(), &sides[1]),
            Node::Arithmetic(sign, sides) => {
                let mut text = [0; 4];
                self.pair(&sides[0], sign.encode_utf8(&mut text), &sides[1])
            }
            Node::In(sides) => self.pair(&sides[0], "in", &sides[1]),
            Node::Call(call) => {
                let mut arguments = call.arguments.iter();
                if call.member
                    && let Some(target) = arguments.next()
                {
                    self.node(target);
                    self.text(".");
                }
                self.dotted(&call.name);
                let open = self.text("(");
                arguments.for_each(|argument| self.node(argument));
                open
            }
            Node::List(items) => {
                let open = self.text("[");
                items.iter().for_each(|(item, _)| self.node(item));
                open
            }
            Node::Map(entries) => {
                let open = self.text("{");
                for (key, value, _) in entries {
                    self.node(key);
                    self.text(":");
                    self.node(value);
                }
                open
            }
            Node::Struct(name, entries) => {
                self.dotted(name);
                let open = self.text("{");
                for (_, value, _) in entries {
                    self.text(":");
                    self.node(value);
                }
                open
            }
            Node::Append { item, .. } => {
                self.node(item);
                None
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Each(each) => self.each(each),
            Node::OptionalMap { operand, body, .. } => self.bound(operand, 1, &[body]),
            Node::SortBy { operand, key, .. } => self.bound(operand, 1, &[key]),
        };
        for (wanted, found) in self.wanted.iter().zip(&mut self.found) {
            if std::ptr::eq(*wanted, node) && found.is_none() {
                *found = at;
            }
        }
    }

    fn pair(&mut self, a: &Node, sign: &str, b: &Node) -> Option<usize> {
        self.node(a);
        let at = self.text(sign);
        self.node(b);
        at
    }

    /// `operand.macro(names.., bodies..)`.
    fn bound(&mut self, operand: &Node, names: usize, bodies: &[&Node]) -> Option<usize> {
        self.node(operand);
        self.text(".");
        self.name();
        let open = self.text("(");
        for _ in 0..names {
            self.name();
        }
        bodies.iter().for_each(|body| self.node(body));
        open
    }

    fn each(&mut self, each: &Each) -> Option<usize> {
        let mut bodies: Vec<&Node> = each.filter.iter().collect();
        bodies.push(&each.body);
        self.bound(&each.range, 2, &bodies)
    }

    /// Of what the parser made of a macro, only the arguments stand in the text.
    fn fold(&mut self, fold: &Fold) -> Option<usize> {
        let own = |node: &Node| matches!(node, Node::Local(slot) if *slot == fold.accumulator);
        let mut bodies: Vec<&Node> = Vec::new();
        match &fold.step {
            Node::And(a, b) | Node::Or(a, b) if own(a) => bodies.push(b),
            Node::Append { item, .. } => bodies.push(item),
            Node::Conditional(parts) if own(&parts[2]) => {
                bodies.push(&parts[0]);
                if let Node::Append { item, .. } = &parts[1] {
                    // `filter` adds the element itself, which the text does not say again.
                    self.node(&fold.range);
                    self.text(".");
                    let filter = self.words.get(self.next).is_some_and(|word| word.text == "filter");
                    self.name();
                    let open = self.text("(");
                    self.name();
                    self.node(&parts[0]);
                    if !filter {
                        self.node(item);
                    }
                    return open;
                }
            }
            other => bodies.push(other),
        }
        self.bound(&fold.range, 1, &bodies)
    }
}

/// One error as upstream's compiler shows it: place, line, pointer.
pub fn shown(source: &str, at: usize, message: &str) -> String {
    let at = (0..=at.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0);
    let start = source[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = source[start..].lines().next().unwrap_or_default();
    let before: Vec<char> = source[start..at].chars().collect();
    let number = source[..start].matches('\n').count() + 1;
    let mut out =
        format!("ERROR: <input>:{number}:{}: {message}\n | {}\n | ", before.len() + 1, line.replace('\t', " "));
    for letter in &before {
        out.push(if letter.is_ascii() { '.' } else { '\u{ff0e}' });
    }
    let wide = source[at..].starts_with(|c: char| !c.is_ascii());
    let _ = write!(out, "{}", if wide { '\u{ff3e}' } else { '^' });
    out
}
