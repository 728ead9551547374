//! Walking an expression, with a meter that ends it.

use super::{
    Cel, CelError, Expression, PER_CALL_LIMIT, calls,
    lower::{Each, Fold, Gathers, Node, Order},
    values::{arithmetic, as_optional, compare, equal, key, optional, shown, size, text_cost},
};
use kube_cel::cel::objects::{Key, Map};
use std::{cmp::Ordering, collections::HashMap, sync::Arc};

/// Where an expression finds what it names.
pub trait Variables {
    fn get(&self, name: &str) -> Option<Cel>;

    /// A member of `variables`, which costs what it costs to work out.
    fn composed(&self, name: &str, _meter: &mut Meter) -> Result<Cel, CelError> {
        Err(CelError::NoSuchKey(name.to_owned()))
    }
}

impl Variables for [(&str, Cel)] {
    fn get(&self, name: &str) -> Option<Cel> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone())
    }
}

/// What may still be spent, in upstream's units: about one for each step, a tenth for each character looked at.
#[derive(Debug)]
pub struct Meter {
    spent: u64,
    limit: u64,
}

impl Meter {
    pub fn new(limit: u64) -> Self {
        Self { spent: 0, limit }
    }

    pub fn charge(&mut self, cost: u64) -> Result<(), CelError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit { Err(CelError::Cost) } else { Ok(()) }
    }

    pub fn spent(&self) -> u64 {
        self.spent
    }
}

/// An evaluation's outcome, and what it cost.
#[derive(Debug)]
pub struct Evaluation {
    pub result: Result<Cel, CelError>,
    pub cost: u64,
}

impl Expression {
    /// Evaluates within the limit of one call.
    pub fn evaluate(&self, variables: &(impl Variables + ?Sized)) -> Evaluation {
        let mut meter = Meter::new(PER_CALL_LIMIT);
        let result = self.evaluate_metered(variables, &mut meter);
        Evaluation { result, cost: meter.spent() }
    }

    pub fn evaluate_metered(&self, variables: &(impl Variables + ?Sized), meter: &mut Meter) -> Result<Cel, CelError> {
        let mut walk = Walk { variables, slots: vec![Ok(Cel::Null); self.slots], meter };
        walk.node(&self.root)
    }
}

struct Walk<'a, V: ?Sized> {
    variables: &'a V,
    /// A loop goes on over errors, so its variables may hold one.
    slots: Vec<Result<Cel, CelError>>,
    meter: &'a mut Meter,
}

fn boolean(value: Cel) -> Result<bool, CelError> {
    match value {
        Cel::Bool(b) => Ok(b),
        _ => Err(CelError::NoSuchOverload),
    }
}

impl<V: Variables + ?Sized> Walk<'_, V> {
    fn node(&mut self, node: &Node) -> Result<Cel, CelError> {
        match node {
            Node::Literal(value) => Ok(value.clone()),
            Node::Variable(name) => {
                self.meter.charge(1)?;
                self.variables.get(name).ok_or_else(|| CelError::failed(format!("no such attribute(s): {name}")))
            }
            Node::Composed(name) => {
                self.meter.charge(1)?;
                self.variables.composed(name, self.meter)
            }
            Node::Local(slot) => {
                self.meter.charge(1)?;
                self.slots[*slot].clone()
            }
            Node::Select { operand, key, test, optional } => {
                let operand = self.node(operand)?;
                self.meter.charge(1)?;
                select(&operand, key, *test, *optional)
            }
            Node::Index { operand, index: at, optional } => {
                let operand = self.node(operand)?;
                let at = self.node(at)?;
                self.meter.charge(1)?;
                index(&operand, &at, *optional)
            }
            Node::And(left, right) => self.logical(left, right, false),
            Node::Or(left, right) => self.logical(left, right, true),
            Node::Not(inner) => {
                self.meter.charge(1)?;
                Ok(Cel::Bool(!boolean(self.node(inner)?)?))
            }
            Node::Negate(inner) => {
                self.meter.charge(1)?;
                match self.node(inner)? {
                    Cel::Int(i) => i.checked_neg().map(Cel::Int).ok_or_else(|| CelError::failed("integer overflow")),
                    Cel::Float(f) => Ok(Cel::Float(-f)),
                    Cel::Duration(d) => Ok(Cel::Duration(-d)),
                    _ => Err(CelError::NoSuchOverload),
                }
            }
            Node::Lenient(inner) => match self.node(inner) {
                Err(CelError::Cost) => Err(CelError::Cost),
                Ok(Cel::Bool(false)) => Ok(Cel::Bool(false)),
                _ => Ok(Cel::Bool(true)),
            },
            Node::Conditional(parts) => {
                let condition = boolean(self.node(&parts[0])?)?;
                self.node(&parts[if condition { 1 } else { 2 }])
            }
            Node::Equal { sides, negated } => {
                let (a, b) = (self.node(&sides[0])?, self.node(&sides[1])?);
                Ok(Cel::Bool(equal(&a, &b, self.meter)? != *negated))
            }
            Node::Order(order, sides) => {
                let (a, b) = (self.node(&sides[0])?, self.node(&sides[1])?);
                self.meter.charge(1)?;
                let is = compare(&a, &b, self.meter)?;
                Ok(Cel::Bool(match order {
                    Order::Less => is == Ordering::Less,
                    Order::LessEqual => is != Ordering::Greater,
                    Order::Greater => is == Ordering::Greater,
                    Order::GreaterEqual => is != Ordering::Less,
                }))
            }
            Node::Arithmetic(operator, sides) => {
                let (a, b) = (self.node(&sides[0])?, self.node(&sides[1])?);
                self.meter.charge(1)?;
                arithmetic(*operator, &a, &b, self.meter)
            }
            Node::In(sides) => {
                let (item, container) = (self.node(&sides[0])?, self.node(&sides[1])?);
                self.contains(&item, &container)
            }
            Node::Call(call) => {
                let mut arguments = Vec::with_capacity(call.arguments.len());
                for argument in &call.arguments {
                    arguments.push(self.node(argument)?);
                }
                calls::call(call, &arguments, self.meter)
            }
            Node::List(items) => {
                self.meter.charge(10)?;
                let mut out = Vec::with_capacity(items.len());
                for (item, is_optional) in items {
                    let value = self.node(item)?;
                    out.extend(if *is_optional { held(value)? } else { Some(value) });
                }
                Ok(Cel::List(Arc::new(out)))
            }
            Node::Map(entries) | Node::Struct(_, entries) => {
                self.meter.charge(if matches!(node, Node::Map(_)) { 30 } else { 40 })?;
                let mut out = HashMap::with_capacity(entries.len());
                for (name, value, is_optional) in entries {
                    let name = self.node(name)?;
                    let name = key(&name).ok_or_else(|| CelError::failed("unsupported key type"))?;
                    let value = self.node(value)?;
                    if let Some(value) = if *is_optional { held(value)? } else { Some(value) }
                        && out.insert(name.clone(), value).is_some()
                    {
                        return Err(CelError::failed(format!("insert failed: key '{}' already exists", shown(&name))));
                    }
                }
                Ok(Cel::Map(Map { map: Arc::new(out) }))
            }
            Node::Append { accumulator, item } => {
                let item = self.node(item)?;
                self.meter.charge(1)?;
                let list = std::mem::replace(&mut self.slots[*accumulator], Ok(Cel::Null))?;
                let Cel::List(mut list) = list else { return Err(CelError::NoSuchOverload) };
                Arc::make_mut(&mut list).push(item);
                Ok(Cel::List(list))
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Each(each) => self.each(each),
            Node::OptionalMap { operand, slot, body, flat } => {
                let operand = self.node(operand)?;
                self.meter.charge(1)?;
                match as_optional(&operand) {
                    None => Err(CelError::NoSuchOverload),
                    Some(None) => Ok(optional(None)),
                    Some(Some(value)) => {
                        self.slots[*slot] = Ok(value.clone());
                        let mapped = self.node(body)?;
                        Ok(if *flat { mapped } else { optional(Some(mapped)) })
                    }
                }
            }
            Node::SortBy { operand, slot, key } => {
                let Cel::List(items) = self.node(operand)? else { return Err(CelError::NoSuchOverload) };
                let mut keyed = Vec::with_capacity(items.len());
                for item in items.iter() {
                    self.slots[*slot] = Ok(item.clone());
                    keyed.push((self.node(key)?, item.clone()));
                }
                Ok(Cel::List(Arc::new(self.sorted(keyed)?)))
            }
        }
    }

    fn sorted(&mut self, mut keyed: Vec<(Cel, Cel)>) -> Result<Vec<Cel>, CelError> {
        // Sorting compares a list of n about n log n times.
        let length = keyed.len() as u64;
        self.meter.charge(length.saturating_mul(u64::from(length.max(2).ilog2())))?;
        let mut failed = None;
        keyed.sort_by(|(a, _), (b, _)| match compare(a, b, self.meter) {
            Ok(order) => order,
            Err(error) => {
                failed.get_or_insert(error);
                Ordering::Equal
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
        }
    }

    /// `&&` and `||`: the side that decides makes up for an error of the other.
    fn logical(&mut self, left: &Node, right: &Node, decides: bool) -> Result<Cel, CelError> {
        let left = self.node(left).and_then(boolean);
        match left {
            Err(CelError::Cost) => return Err(CelError::Cost),
            Ok(value) if value == decides => return Ok(Cel::Bool(decides)),
            _ => {}
        }
        let right = self.node(right).and_then(boolean);
        match (left, right) {
            (_, Err(CelError::Cost)) => Err(CelError::Cost),
            (_, Ok(value)) if value == decides => Ok(Cel::Bool(decides)),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            (Ok(_), Ok(value)) => Ok(Cel::Bool(value)),
        }
    }

    fn contains(&mut self, item: &Cel, container: &Cel) -> Result<Cel, CelError> {
        self.meter.charge(1)?;
        Ok(Cel::Bool(match container {
            Cel::List(items) => {
                for candidate in items.iter() {
                    if equal(item, candidate, self.meter)? {
                        return Ok(Cel::Bool(true));
                    }
                }
                false
            }
            Cel::Map(map) => {
                self.meter.charge(text_cost(size(item)))?;
                key(item).is_some_and(|key| map.get(&key).is_some())
            }
            _ => return Err(CelError::NoSuchOverload),
        }))
    }

    /// What a loop runs over: the elements of a list, the keys of a map.
    fn items(&mut self, range: &Node) -> Result<Vec<(Cel, Cel)>, CelError> {
        match self.node(range)? {
            Cel::List(items) => {
                let place = |at: usize| Cel::Int(i64::try_from(at).unwrap_or(i64::MAX));
                Ok(items.iter().enumerate().map(|(at, item)| (place(at), item.clone())).collect())
            }
            Cel::Map(map) => {
                // In order, so that the same object always gets the same answer.
                let mut entries: Vec<(&Key, &Cel)> = map.map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                Ok(entries.into_iter().map(|(key, value)| (Cel::from(key), value.clone())).collect())
            }
            _ => Err(CelError::NoSuchOverload),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Result<Cel, CelError> {
        let over_keys = |items: Vec<(Cel, Cel)>, is_map: bool| -> Vec<Cel> {
            items.into_iter().map(|(key, value)| if is_map { key } else { value }).collect()
        };
        let range = self.node(&fold.range)?;
        let is_map = matches!(range, Cel::Map(_));
        let items = self.items(&Node::Literal(range))?;
        self.meter.charge(items.len() as u64)?;
        self.slots[fold.accumulator] = self.node(&fold.start);
        for item in over_keys(items, is_map) {
            self.slots[fold.item] = Ok(item);
            if !boolean(self.node(&fold.condition)?)? {
                break;
            }
            let step = self.node(&fold.step);
            let over = match &step {
                Err(CelError::Cost) => return Err(CelError::Cost),
                // Only `all` and `exists` go on: a later element may decide.
                Err(_) => !matches!(fold.condition, Node::Lenient(_)),
                Ok(_) => false,
            };
            self.slots[fold.accumulator] = step;
            if over {
                break;
            }
        }
        self.node(&fold.result)
    }

    fn each(&mut self, each: &Each) -> Result<Cel, CelError> {
        let items = self.items(&each.range)?;
        self.meter.charge(items.len() as u64)?;
        let (mut error, mut count) = (None, 0_u64);
        let (mut list, mut map) = (Vec::new(), HashMap::new());
        for (first, second) in items {
            self.slots[each.first] = Ok(first.clone());
            self.slots[each.second] = Ok(second);
            if let Some(filter) = &each.filter
                && !boolean(self.node(filter)?)?
            {
                continue;
            }
            let value = self.node(&each.body);
            match (each.gathers, value) {
                (_, Err(CelError::Cost)) => return Err(CelError::Cost),
                (Gathers::All | Gathers::Exists, Err(why)) => error = error.or(Some(why)),
                (_, Err(why)) => return Err(why),
                (Gathers::All | Gathers::Exists, Ok(value)) => match boolean(value) {
                    Ok(value) if value == (each.gathers == Gathers::Exists) => return Ok(Cel::Bool(value)),
                    Ok(_) => {}
                    Err(why) => error = error.or(Some(why)),
                },
                (Gathers::ExistsOne, Ok(value)) => count += u64::from(boolean(value)?),
                (Gathers::List, Ok(value)) => list.push(value),
                (Gathers::Map, Ok(value)) => {
                    map.insert(key(&first).ok_or(CelError::NoSuchOverload)?, value);
                }
                (Gathers::Entries, Ok(Cel::Map(entry))) => {
                    for (name, value) in entry.map.iter() {
                        if map.insert(name.clone(), value.clone()).is_some() {
                            let why = format!("insert failed: key '{}' already exists", shown(name));
                            return Err(CelError::failed(why));
                        }
                    }
                }
                (Gathers::Entries, Ok(_)) => return Err(CelError::NoSuchOverload),
            }
        }
        match (each.gathers, error) {
            (_, Some(error)) => Err(error),
            (Gathers::All, None) => Ok(Cel::Bool(true)),
            (Gathers::Exists, None) => Ok(Cel::Bool(false)),
            (Gathers::ExistsOne, None) => Ok(Cel::Bool(count == 1)),
            (Gathers::List, None) => Ok(Cel::List(Arc::new(list))),
            (Gathers::Map | Gathers::Entries, None) => Ok(Cel::Map(Map { map: Arc::new(map) })),
        }
    }
}

/// What an element marked `?` adds: nothing for an absent value.
fn held(value: Cel) -> Result<Option<Cel>, CelError> {
    as_optional(&value).map(|held| held.cloned()).ok_or(CelError::NoSuchOverload)
}

fn select(operand: &Cel, key: &Key, test: bool, is_optional: bool) -> Result<Cel, CelError> {
    if let Some(inner) = as_optional(operand) {
        // Past an optional value everything is optional.
        let found = inner.map(|inner| select(inner, key, test, true)).transpose()?;
        return Ok(match found {
            Some(found) => found,
            None if test => Cel::Bool(false),
            None => optional(None),
        });
    }
    let Cel::Map(map) = operand else { return Err(CelError::NoSuchOverload) };
    let found = map.map.get(key);
    match (found, test, is_optional) {
        (found, true, _) => Ok(Cel::Bool(found.is_some())),
        (found, false, true) => Ok(optional(found.cloned())),
        (Some(found), false, false) => Ok(found.clone()),
        (None, false, false) => Err(CelError::NoSuchKey(shown(key))),
    }
}

fn index(operand: &Cel, at: &Cel, is_optional: bool) -> Result<Cel, CelError> {
    if let Some(inner) = as_optional(operand) {
        return inner.map_or_else(|| Ok(optional(None)), |inner| index(inner, at, true));
    }
    let place = key(at).ok_or(CelError::NoSuchOverload)?;
    let found = match operand {
        Cel::Map(map) => map.get(&place).cloned().ok_or_else(|| CelError::NoSuchKey(shown(&place))),
        Cel::List(items) => {
            let wanted = match place {
                Key::Int(i) => i,
                Key::Uint(u) => i64::try_from(u).unwrap_or(i64::MAX),
                _ => return Err(CelError::NoSuchOverload),
            };
            let found = usize::try_from(wanted).ok().and_then(|at| items.get(at)).cloned();
            found.ok_or(CelError::OutOfBounds(wanted))
        }
        _ => return Err(CelError::NoSuchOverload),
    };
    if is_optional { Ok(optional(found.ok())) } else { found }
}
