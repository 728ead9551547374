//! The most that an evaluation may cost, before it runs (cel-go `checker/cost.go`, apiserver `pkg/cel/library/cost.go`).
//!
//! Upstream refuses rules by these figures, so each of them is part of the API: `tests.rs` holds those of upstream's
//! own tests.

use super::{
    infer::Inferred,
    signatures::{CIDR, IP},
    types::{Decl, Form, Type},
};
use crate::cel::{
    Cel,
    lower::{Call, Each, Fold, Gathers, Node, TypeName},
};
use std::sync::Arc;

const LIST: u64 = 10;
const MAP: u64 = 30;
const MESSAGE: u64 = 40;
const CHECK: u64 = 350_000;
/// Parts of a unit for a character looked at, and for a character of a pattern.
const CHARACTER: f64 = 0.1;
const PATTERN: f64 = 0.25;
const FORMAT_PATTERN: f64 = 128.0;
const FORMAT_SIZE: u64 = 64;
/// Letters of a number or an instant as a text.
const NUMBER: u64 = 64;

/// Elements or characters, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    least: u64,
    most: u64,
}

const UNKNOWN: Size = Size { least: 0, most: u64::MAX };

impl Size {
    const fn of(n: u64) -> Self {
        Self { least: n, most: n }
    }

    fn either(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }

    fn plus(self, other: Self) -> Self {
        Self { least: self.least.saturating_add(other.least), most: self.most.saturating_add(other.most) }
    }

    fn times(self, other: Self) -> Self {
        Self { least: self.least.saturating_mul(other.least), most: self.most.saturating_mul(other.most) }
    }

    /// The most that it costs to walk over it.
    fn walk(self, factor: f64) -> u64 {
        times(self.most, factor)
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "upstream works with doubles, too; the cast saturates and no factor is negative"
)]
fn times(n: u64, factor: f64) -> u64 {
    (n as f64 * factor).ceil() as u64
}

/// The sizes of what a literal, or what was gathered, has inside.
#[derive(Debug, Clone, Copy)]
struct Inside {
    list: bool,
    key: Size,
    value: Size,
}

/// The way to a declaration. Upstream takes the first step of any way for the name of the variable.
#[derive(Debug, Clone, Default)]
enum Way {
    #[default]
    Nowhere,
    At(Option<Arc<Decl>>),
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Items,
    Values,
    Keys,
    /// Of a list, of which nothing is declared.
    Indices,
    Field(&'a str),
}

#[derive(Debug, Clone)]
struct Estimate {
    cost: u64,
    size: Option<Size>,
    inside: Option<Inside>,
    way: Way,
    kind: Type,
}

#[derive(Debug, Clone, Default)]
struct Local {
    way: Way,
    size: Option<Size>,
    inside: Option<Inside>,
}

pub fn most(root: &Node, slots: usize, inferred: &mut Inferred, declared: &Arc<Decl>) -> u64 {
    Walk { inferred, root: declared, locals: vec![Local::default(); slots] }.node(root).cost
}

struct Walk<'a> {
    inferred: &'a mut Inferred,
    root: &'a Arc<Decl>,
    locals: Vec<Local>,
}

fn sum(parts: &[Estimate]) -> u64 {
    parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.cost))
}

fn sized(part: &Estimate) -> Size {
    part.size.unwrap_or(UNKNOWN)
}

impl Estimate {
    /// Whether the value may be of such a type, as far as is known.
    fn may_be(&self, wanted: impl Fn(&Type) -> bool) -> bool {
        matches!(self.kind, Type::Dyn | Type::Param(_)) || wanted(&self.kind)
    }

    fn may_be_text(&self) -> bool {
        self.may_be(|kind| matches!(kind, Type::String | Type::Bytes))
    }

    fn is_list(&self) -> bool {
        match self.inside {
            Some(inside) => inside.list,
            None => matches!(self.kind, Type::List(_)),
        }
    }
}

impl Walk<'_> {
    fn step(&self, way: &Way, step: Step<'_>) -> Way {
        let Way::At(at) = way else { return Way::At(Some(self.root.clone())) };
        Way::At(at.as_ref().and_then(|decl| match (step, &decl.form) {
            (Step::Items | Step::Values, Form::List(item) | Form::Map(item)) => Some(item.clone()),
            (Step::Keys, Form::Map(_)) => Some(Decl::text()),
            (Step::Field(name), Form::Object(fields)) => fields.get(name).cloned(),
            _ => None,
        }))
    }

    /// What is known of a value: what was reckoned, else what is declared, else what its type says.
    fn estimate(&mut self, node: &Node, cost: u64, way: Way, reckoned: Option<Size>) -> Estimate {
        let kind = self.inferred.kind(node);
        let declared = match &way {
            Way::At(Some(decl)) => Some(Size { least: 0, most: decl.most }),
            _ => None,
        };
        let size = reckoned.or(declared).or_else(|| kind.is_scalar().then(|| Size::of(1)));
        Estimate { cost, size, inside: None, way, kind }
    }

    fn all<'n>(&mut self, nodes: impl IntoIterator<Item = &'n Node>) -> Vec<Estimate> {
        nodes.into_iter().map(|node| self.node(node)).collect()
    }

    fn node(&mut self, node: &Node) -> Estimate {
        match node {
            Node::Literal(Cel::Opaque(value)) if value.downcast_ref::<TypeName>().is_some() => {
                self.estimate(node, 1, Way::At(Some(self.root.clone())), None)
            }
            Node::Literal(value) => {
                let size = match value {
                    Cel::String(text) => text.chars().count() as u64,
                    Cel::Bytes(bytes) => bytes.len() as u64,
                    _ => 1,
                };
                self.estimate(node, 0, Way::Nowhere, Some(Size::of(size)))
            }
            Node::Variable(_) | Node::Composed(_) => self.estimate(node, 1, Way::At(Some(self.root.clone())), None),
            Node::Local(slot) => {
                let local = self.locals[*slot].clone();
                let mut found = self.estimate(node, 1, local.way, None);
                found.size = found.size.or(local.size);
                found.inside = local.inside;
                found
            }
            Node::Select { operand, test: true, .. } => {
                let operand = self.node(operand);
                self.estimate(node, operand.cost, Way::Nowhere, None)
            }
            Node::Select { operand, optional: true, .. } => {
                let operand = self.node(operand);
                self.estimate(node, operand.cost.saturating_add(1), Way::Nowhere, None)
            }
            Node::Select { operand, key, .. } => {
                let operand = self.node(operand);
                let more = u64::from(matches!(
                    operand.kind,
                    Type::Map(..) | Type::Object(..) | Type::Library(_) | Type::Message(_) | Type::Param(_)
                ));
                let way = match key {
                    kube_cel::cel::objects::Key::String(name) => self.step(&operand.way, Step::Field(name)),
                    _ => Way::At(None),
                };
                self.estimate(node, operand.cost.saturating_add(more), way, None)
            }
            Node::Index { operand, index, optional } => {
                let parts = self.all([&**operand, &**index]);
                let cost = sum(&parts).saturating_add(1);
                if *optional {
                    return self.estimate(node, cost, Way::Nowhere, None);
                }
                let way = match parts[0].kind {
                    Type::Optional(_) => Way::Nowhere,
                    _ => self.step(&parts[0].way, Step::Items),
                };
                let size = parts[0].inside.map(|inside| inside.value);
                self.estimate(node, cost, way, size)
            }
            Node::And(a, b) | Node::Or(a, b) => {
                let parts = self.all([&**a, &**b]);
                self.estimate(node, sum(&parts), Way::Nowhere, None)
            }
            Node::Not(inner) | Node::Negate(inner) | Node::Lenient(inner) => {
                let inner = self.node(inner);
                self.estimate(node, inner.cost.saturating_add(1), Way::Nowhere, None)
            }
            Node::Conditional(parts) => {
                let parts = self.all(&parts[..]);
                let cost = parts[0].cost.saturating_add(parts[1].cost.max(parts[2].cost));
                let size = sized(&parts[1]).either(sized(&parts[2]));
                let mut found = self.estimate(node, cost, Way::Nowhere, Some(size));
                found.inside = either(parts[1].inside, parts[2].inside);
                found
            }
            Node::Equal { sides, .. } => {
                let parts = self.all(&sides[..]);
                let cost = sum(&parts).saturating_add(equality(node, &parts));
                self.estimate(node, cost, Way::Nowhere, None)
            }
            Node::Order(_, sides) => {
                let parts = self.all(&sides[..]);
                let smaller = sized(&parts[0]).most.min(sized(&parts[1]).most);
                let texts = parts[0].may_be_text() && parts[1].may_be_text();
                let known = texts && !parts.iter().all(|part| matches!(part.kind, Type::Dyn));
                let own = match (texts, known) {
                    (true, true) => times(smaller, CHARACTER),
                    (true, false) => times(smaller, CHARACTER).max(1),
                    _ => 1,
                };
                self.estimate(node, sum(&parts).saturating_add(own), Way::Nowhere, None)
            }
            Node::Arithmetic('+', sides) => {
                let parts = self.all(&sides[..]);
                self.add(node, &parts)
            }
            Node::Arithmetic(_, sides) => {
                let parts = self.all(&sides[..]);
                self.estimate(node, sum(&parts).saturating_add(1), Way::Nowhere, None)
            }
            Node::In(sides) => {
                let parts = self.all(&sides[..]);
                let own = match parts[1].kind {
                    Type::Map(..) => 1,
                    Type::List(_) => sized(&parts[1]).most,
                    _ => sized(&parts[1]).most.max(1),
                };
                self.estimate(node, sum(&parts).saturating_add(own), Way::Nowhere, None)
            }
            Node::Call(call) => self.call(node, call),
            Node::List(items) => {
                let parts = self.all(items.iter().map(|(item, _)| item));
                let value = parts.iter().map(sized).reduce(Size::either).unwrap_or(Size::of(0));
                let size = Size::of(parts.len() as u64);
                let mut found = self.estimate(node, sum(&parts).saturating_add(LIST), Way::Nowhere, Some(size));
                found.inside = Some(Inside { list: true, key: Size::of(1), value });
                found
            }
            Node::Map(entries) => {
                let (keys, values) = (
                    self.all(entries.iter().map(|(key, _, _)| key)),
                    self.all(entries.iter().map(|(_, value, _)| value)),
                );
                let cost = sum(&keys).saturating_add(sum(&values)).saturating_add(MAP);
                let union = |parts: &[Estimate]| parts.iter().map(sized).reduce(Size::either).unwrap_or(Size::of(0));
                let mut found = self.estimate(node, cost, Way::Nowhere, Some(Size::of(entries.len() as u64)));
                found.inside = Some(Inside { list: false, key: union(&keys), value: union(&values) });
                found
            }
            Node::Struct(_, entries) => {
                let parts = self.all(entries.iter().map(|(_, value, _)| value));
                self.estimate(node, sum(&parts).saturating_add(MESSAGE), Way::Nowhere, None)
            }
            Node::Append { accumulator, item } => {
                let item = self.node(item);
                self.append(node, *accumulator, &item)
            }
            Node::Fold(fold) => self.fold(node, fold),
            Node::Each(each) => self.each(node, each),
            Node::OptionalMap { operand, slot, body, flat } => {
                let operand = self.node(operand);
                self.locals[*slot] = Local::default();
                let body = self.node(body);
                // hasValue(), and the more of none() and of() around a binding of value().
                let value = operand.cost.saturating_add(1);
                let some = body.cost.saturating_add(value).saturating_add(LIST + u64::from(!*flat));
                self.estimate(node, value.saturating_add(some), Way::Nowhere, None)
            }
            Node::SortBy { operand, slot, key } => {
                let operand = self.node(operand);
                self.bind_element(*slot, &operand);
                let key = self.node(key);
                let step = key.cost.saturating_add(LIST + 2);
                let cost =
                    sized(&operand).most.saturating_mul(step).saturating_add(operand.cost).saturating_add(LIST + 5);
                let mut found = self.estimate(node, cost, Way::Nowhere, operand.size);
                found.inside = operand.inside;
                found
            }
        }
    }

    fn add(&mut self, node: &Node, parts: &[Estimate]) -> Estimate {
        let (a, b) = (sized(&parts[0]), sized(&parts[1]));
        let both = a.plus(b);
        let texts = parts[0].may_be_text() && parts[1].may_be_text();
        let lists = parts.iter().all(|part| part.may_be(|kind| matches!(kind, Type::List(_))));
        let sure = parts.iter().any(|part| !matches!(part.kind, Type::Dyn));
        let own = match (texts, sure) {
            (true, true) => both.walk(CHARACTER),
            (true, false) => both.walk(CHARACTER).max(1),
            _ => 1,
        };
        let size = (texts || lists).then_some(both);
        let mut found = self.estimate(node, sum(parts).saturating_add(own), Way::Nowhere, size);
        found.inside = either(parts[0].inside, parts[1].inside);
        found
    }

    /// The list of a loop with one element more: the loop's list, a literal of one, and a sum.
    fn append(&mut self, node: &Node, accumulator: usize, item: &Estimate) -> Estimate {
        let own = self.locals[accumulator].clone();
        let size = own.size.unwrap_or(UNKNOWN).plus(Size::of(1));
        let mut found = self.estimate(node, item.cost.saturating_add(LIST + 2), Way::Nowhere, Some(size));
        found.inside = either(own.inside, Some(Inside { list: true, key: Size::of(1), value: sized(item) }));
        found
    }

    fn bind_element(&mut self, slot: usize, range: &Estimate) {
        let list = range.is_list();
        let way = self.step(&range.way, if list { Step::Items } else { Step::Keys });
        let size = range.inside.map(|inside| if list { inside.value } else { inside.key });
        self.locals[slot] = Local { way, size, inside: None };
    }

    fn fold(&mut self, node: &Node, fold: &Fold) -> Estimate {
        let range = self.node(&fold.range);
        let start = self.node(&fold.start);
        self.locals[fold.accumulator] = Local { way: start.way.clone(), size: start.size, inside: start.inside };
        self.bind_element(fold.item, &range);
        let condition = self.node(&fold.condition);
        let step = self.node(&fold.step);
        let result = self.node(&fold.result);
        let round = condition.cost.saturating_add(step.cost);
        let count = sized(&range);
        let cost = [start.cost, result.cost, count.most.saturating_mul(round)]
            .into_iter()
            .fold(range.cost, u64::saturating_add);
        let gathers = matches!(fold.start, Node::List(_) | Node::Map(_));
        let mut found = self.estimate(node, cost, Way::Nowhere, if gathers { Some(count) } else { start.size });
        found.inside = if gathers { step.inside } else { None };
        found
    }

    /// Upstream makes loops of one variable's kind of these macros; the figures are those of what it makes.
    fn each(&mut self, node: &Node, each: &Each) -> Estimate {
        let range = self.node(&each.range);
        let list = range.is_list();
        let way = self.step(&range.way, if list { Step::Indices } else { Step::Keys });
        self.locals[each.first] = Local { way, size: range.inside.map(|i| i.key), inside: None };
        let way = self.step(&range.way, if list { Step::Items } else { Step::Values });
        self.locals[each.second] = Local { way, size: range.inside.map(|i| i.value), inside: None };
        let filter = each.filter.as_ref().map_or(0, |filter| self.node(filter).cost);
        let body = self.node(&each.body);
        let count = sized(&range);
        // What a round costs beside the body, and start and end of the loop.
        let (round, ends, kept) = match each.gathers {
            Gathers::All => (3, 1, false),
            Gathers::Exists => (4, 1, false),
            Gathers::ExistsOne => (2, 2, false),
            Gathers::List => (LIST + 2, LIST + 1, true),
            Gathers::Map => (3, MAP + 1, true),
            Gathers::Entries => (2, MAP + 1, true),
        };
        let round = body.cost.saturating_add(filter).saturating_add(round);
        let cost = count.most.saturating_mul(round).saturating_add(range.cost).saturating_add(ends);
        let mut found = self.estimate(node, cost, Way::Nowhere, kept.then_some(count));
        if kept {
            let list = each.gathers == Gathers::List;
            let value = if each.gathers == Gathers::Entries { UNKNOWN } else { sized(&body) };
            found.inside = Some(Inside { list, key: UNKNOWN, value: Size { least: 0, ..value } });
        }
        found
    }

    fn call(&mut self, node: &Node, call: &Call) -> Estimate {
        let parts = self.all(&call.arguments[..]);
        let (target, arguments) = if call.member { parts.split_at(1) } else { parts.split_at(0) };
        if let ("dyn", [argument]) = (&*call.name, arguments) {
            let mut found = self.estimate(node, argument.cost.saturating_add(1), Way::Nowhere, argument.size);
            found.inside = argument.inside;
            return found;
        }
        let (own, mut size) = self.function(&call.name, target.first(), arguments);
        if let ("split", Some(Node::Literal(Cel::Int(limit)))) = (&*call.name, call.arguments.get(2)) {
            // As unsigned as upstream takes it: a negative limit is none.
            size = Some(Size { least: 0, most: limit.cast_unsigned() });
        }
        self.estimate(node, sum(&parts).saturating_add(own), Way::Nowhere, size)
    }

    /// The size of a list's elements, and whether they are texts.
    fn elements(&self, list: &Estimate) -> Option<(Size, bool)> {
        let Type::List(item) = &list.kind else { return None };
        let known = match (&list.way, self.step(&list.way, Step::Items)) {
            (Way::At(_), Way::At(Some(decl))) => Some(Size { least: 0, most: decl.most }),
            _ => None,
        };
        Some((known.unwrap_or(UNKNOWN), matches!(**item, Type::String | Type::Bytes)))
    }

    fn function(&self, name: &str, target: Option<&Estimate>, arguments: &[Estimate]) -> (u64, Option<Size>) {
        let argument = |at: usize| arguments.get(at).map_or(UNKNOWN, sized);
        let first = argument(0);
        let searched =
            |text: Size, pattern: Size| text.plus(Size::of(1)).walk(CHARACTER).saturating_mul(pattern.walk(PATTERN));
        // Addresses are of four or sixteen bytes; two are compared.
        let addresses = times(32, CHARACTER);
        let parsed = |at: usize| match arguments.get(at).map(|a| &a.kind) {
            Some(Type::Library(IP | CIDR)) => 0,
            _ => argument(at).walk(CHARACTER),
        };
        let Some(target) = target else {
            return match name {
                "url" | "jsonpatch.escapeKey" => (first.walk(CHARACTER), Some(first)),
                "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                    (first.walk(CHARACTER), None)
                }
                "ip.isCanonical" => (first.walk(2.0 * CHARACTER), None),
                "strings.quote" => {
                    let size = Size {
                        least: first.least.saturating_add(2),
                        most: first.most.saturating_mul(2).saturating_add(2),
                    };
                    (first.walk(CHARACTER), Some(size))
                }
                "bytes" if arguments[..].first().is_some_and(|a| a.may_be(|k| matches!(k, Type::String))) => {
                    (first.walk(CHARACTER).max(1), Some(Size { most: first.most.saturating_mul(4), ..first }))
                }
                // Upstream takes the text of a number for one of any size, and so refuses the example of its own
                // documentation; a number is short.
                "string" if arguments.first().is_some_and(|a| a.kind.is_scalar()) => {
                    (1, Some(Size { least: 1, most: NUMBER }))
                }
                "string" if arguments.first().is_some_and(|a| a.may_be(|k| matches!(k, Type::Bytes))) => {
                    (first.walk(CHARACTER).max(1), Some(Size { least: first.least / 4, ..first }))
                }
                _ => (1, None),
            };
        };
        let own = sized(target);
        match name {
            "check" => (CHECK, None),
            "fieldSelector" | "labelSelector" => (first.walk(1.0), None),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match self.elements(target) {
                Some((item, true)) => (own.most.saturating_mul(item.walk(CHARACTER).saturating_add(1)), None),
                Some((_, false)) => (own.most, None),
                None => (own.walk(CHARACTER), None),
            },
            "lowerAscii" | "upperAscii" | "substring" | "trim" => (own.walk(CHARACTER), Some(own)),
            "replace" => (own.walk(2.0 * CHARACTER), Some(replaced(own, first, argument(1)))),
            "split" => (own.walk(2.0 * CHARACTER), Some(Size { least: 0, most: own.most })),
            "join" => {
                let mut size = self.elements(target).map_or(Size::of(0), |(item, _)| own.times(item));
                if !arguments.is_empty() {
                    let between = Size { least: own.least.saturating_sub(1), most: own.most.saturating_sub(1) };
                    size = size.plus(first.times(between));
                }
                (size.walk(CHARACTER), Some(size))
            }
            "find" | "findAll" => (searched(own, first), Some(Size { least: 0, most: own.most })),
            "matches" => (searched(own, first), None),
            "contains" => (own.walk(CHARACTER).saturating_mul(first.walk(CHARACTER)), None),
            "startsWith" | "endsWith" => (first.walk(CHARACTER), None),
            "format" => (own.walk(CHARACTER), None),
            "containsIP" => (addresses.saturating_add(parsed(0)), None),
            "containsCIDR" => (addresses.saturating_add(times(16, CHARACTER) + 1).saturating_add(parsed(0)), None),
            "validate" => (times(first.walk(CHARACTER), FORMAT_PATTERN * PATTERN), None),
            _ => (1, None),
        }
    }
}

fn either(a: Option<Inside>, b: Option<Inside>) -> Option<Inside> {
    let (a, b) = (a?, b?);
    Some(Inside { list: a.list, key: a.key.either(b.key), value: a.value.either(b.value) })
}

/// `==` and `!=`: the shorter side is walked over.
fn equality(node: &Node, parts: &[Estimate]) -> u64 {
    let smaller = sized(&parts[0]).most.min(sized(&parts[1]).most);
    if let (Node::Equal { negated: false, .. }, Type::Library(a), Type::Library(b)) =
        (node, &parts[0].kind, &parts[1].kind)
        && a == b
    {
        return match *a {
            "kubernetes.NamedFormat" => times(FORMAT_SIZE, CHARACTER),
            "kubernetes.URL" => times(parts[1].size.map_or(1, |size| size.most), CHARACTER),
            _ => 1,
        };
    }
    times(smaller, CHARACTER)
}

/// The size of a text after replacing: as many of the shortest by the longest as there is room for.
fn replaced(own: Size, old: Size, new: Size) -> Size {
    let (count, kept) = if old.least == 0 {
        (own.most.saturating_add(1), own.most)
    } else if new.most <= old.least {
        (0, own.most)
    } else {
        (own.most.div_ceil(old.least), 0)
    };
    let (fewest, least) = if old.most == 0 {
        (own.least.saturating_add(1), own.least)
    } else if old.most <= new.least {
        (0, own.least)
    } else {
        (own.least.div_ceil(old.most), 0)
    };
    Size {
        least: fewest.saturating_mul(new.least).saturating_add(least),
        most: count.saturating_mul(new.most).saturating_add(kept),
    }
}
