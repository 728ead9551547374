//! The type of each step of an expression, and what does not fit (cel-go `checker/checker.go`).

use super::{
    signatures::{overloads, type_named},
    types::{Solver, Type, field},
};
use crate::cel::{
    Cel, calls,
    eval::Meter,
    lower::{Call, Each, Fold, Gathers, Node, TypeName},
};
use kube_cel::cel::objects::Key;
use std::collections::HashMap;

/// What the names of an expression stand for.
#[derive(Debug, Default, Clone)]
pub struct Names {
    pub variables: Vec<(String, Type)>,
    /// Members of `variables`.
    pub composed: Vec<(String, Type)>,
}

impl Names {
    fn find(list: &[(String, Type)], name: &str) -> Type {
        list.iter().find(|(n, _)| n == name).map_or(Type::Dyn, |(_, kind)| kind.clone())
    }
}

/// Errors past this many are not told, as upstream.
const MISTAKES: usize = 100;

#[derive(Debug)]
pub struct Inferred {
    pub result: Type,
    pub mistakes: Vec<(*const Node, String)>,
    /// By address, for as long as the tree is borrowed.
    kinds: HashMap<*const Node, Type>,
    solver: Solver,
    /// False where something was taken for `dyn` for want of knowledge.
    pub sure: bool,
}

impl Inferred {
    /// The type of a step.
    pub fn kind(&mut self, node: &Node) -> Type {
        match self.kinds.get(&std::ptr::from_ref(node)).cloned() {
            Some(kind) => self.solver.resolve(&kind, true),
            None => Type::Dyn,
        }
    }
}

pub fn infer(root: &Node, slots: usize, names: &Names) -> Inferred {
    let mut walk = Walk {
        names,
        solver: Solver::default(),
        locals: vec![Type::Dyn; slots],
        kinds: HashMap::new(),
        mistakes: Vec::new(),
        in_format: 0,
        unsure: false,
    };
    let result = walk.node(root);
    let result = walk.solver.resolve(&result, true);
    let sure = walk.solver.is_sure() && !walk.unsure;
    Inferred { result, mistakes: walk.mistakes, kinds: walk.kinds, solver: walk.solver, sure }
}

struct Walk<'a> {
    names: &'a Names,
    solver: Solver,
    locals: Vec<Type>,
    kinds: HashMap<*const Node, Type>,
    mistakes: Vec<(*const Node, String)>,
    /// Lists of mixed types are for `format`.
    in_format: usize,
    unsure: bool,
}

fn constant(value: &Cel) -> Type {
    match value {
        Cel::Null => Type::Null,
        Cel::Bool(_) => Type::Bool,
        Cel::Int(_) => Type::Int,
        Cel::UInt(_) => Type::Uint,
        Cel::Float(_) => Type::Double,
        Cel::String(_) => Type::String,
        Cel::Bytes(_) => Type::Bytes,
        Cel::Opaque(value) => match value.downcast_ref::<TypeName>() {
            Some(TypeName(name)) => Type::Of(type_named(name).into()),
            None => Type::Dyn,
        },
        _ => Type::Dyn,
    }
}

impl Walk<'_> {
    fn wrong(&mut self, at: &Node, why: String) {
        if self.mistakes.len() < MISTAKES {
            self.mistakes.push((at, why));
        }
    }

    fn mismatch(&mut self, at: &Node, wanted: &Type, found: &Type) {
        let (wanted, found) = (self.solver.resolve(wanted, true), self.solver.resolve(found, true));
        self.wrong(at, format!("expected type '{wanted}' but found '{found}'"));
    }

    fn must_be(&mut self, at: &Node, wanted: &Type, found: &Type) {
        if !self.solver.assignable(std::slice::from_ref(found), std::slice::from_ref(wanted)) {
            self.mismatch(at, wanted, found);
        }
    }

    fn node(&mut self, node: &Node) -> Type {
        let kind = self.inner(node);
        self.kinds.insert(node, kind.clone());
        kind
    }

    fn inner(&mut self, node: &Node) -> Type {
        match node {
            Node::Literal(value) => constant(value),
            Node::Variable(name) => Names::find(&self.names.variables, name),
            Node::Composed(name) => Names::find(&self.names.composed, name),
            Node::Local(slot) => self.locals[*slot].clone(),
            Node::Select { operand, key, test, optional } => {
                let operand = self.node(operand);
                let found = self.select(node, &operand, key, *optional);
                if *test { Type::Bool } else { found }
            }
            Node::Index { operand, index, optional } => {
                let arguments = vec![self.node(operand), self.node(index)];
                self.apply(node, if *optional { "_[?_]" } else { "_[_]" }, false, arguments)
            }
            Node::And(a, b) | Node::Or(a, b) => {
                for side in [a, b] {
                    let kind = self.node(side);
                    self.must_be(side, &Type::Bool, &kind);
                }
                Type::Bool
            }
            Node::Not(inner) => {
                let inner = self.node(inner);
                self.apply(node, "!_", false, vec![inner])
            }
            Node::Negate(inner) => {
                let inner = self.node(inner);
                self.apply(node, "-_", false, vec![inner])
            }
            Node::Lenient(inner) => {
                self.node(inner);
                Type::Bool
            }
            Node::Conditional(parts) => {
                let arguments = parts.iter().map(|part| self.node(part)).collect();
                self.apply(node, "_?_:_", false, arguments)
            }
            Node::Equal { sides, negated } => self.binary(node, if *negated { "_!=_" } else { "_==_" }, sides),
            Node::Order(order, sides) => self.binary(node, &format!("_{}_", order.sign()), sides),
            Node::Arithmetic(sign, sides) => self.binary(node, &format!("_{sign}_"), sides),
            Node::In(sides) => self.binary(node, "@in", sides),
            Node::Call(call) => self.call(node, call),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct(name, entries) => {
                for (_, value, _) in entries {
                    self.node(value);
                }
                Type::Message((&**name).into())
            }
            Node::Append { accumulator, item } => {
                let item = self.node(item);
                let arguments = vec![self.locals[*accumulator].clone(), Type::list(item)];
                self.apply(node, "_+_", false, arguments)
            }
            Node::Fold(fold) => self.fold(fold),
            Node::Each(each) => self.each(node, each),
            Node::OptionalMap { operand, slot, body, flat } => self.optional_map(node, operand, *slot, body, *flat),
            Node::SortBy { operand, slot, key } => {
                let list = self.node(operand);
                self.locals[*slot] = self.element(operand, &list, false).1;
                self.node(key);
                list
            }
        }
    }

    fn binary(&mut self, node: &Node, name: &str, sides: &[Node; 2]) -> Type {
        let arguments = vec![self.node(&sides[0]), self.node(&sides[1])];
        self.apply(node, name, false, arguments)
    }

    /// Both sides of an optional are gone through alike: past an optional value everything is optional.
    fn select(&mut self, at: &Node, operand: &Type, key: &Key, optional: bool) -> Type {
        let Key::String(name) = key else { return Type::Dyn };
        let operand = self.solver.resolve(operand, false);
        let (target, past) = match &operand {
            Type::Optional(held) => ((**held).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(decl, owner) => match field(decl, owner, name) {
                Some(kind) => kind,
                None => {
                    self.wrong(at, format!("undefined field '{name}'"));
                    Type::Dyn
                }
            },
            Type::Library(_) => {
                self.wrong(at, format!("undefined field '{name}'"));
                Type::Dyn
            }
            Type::Param(_) => {
                self.solver.assignable(&[Type::Dyn], std::slice::from_ref(&target));
                Type::Dyn
            }
            Type::Dyn => Type::Dyn,
            Type::Message(_) => {
                self.unsure = true;
                Type::Dyn
            }
            other => {
                self.wrong(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        if past || optional { Type::optional(found) } else { found }
    }

    /// What a function or operator yields for these arguments, the target first.
    fn apply(&mut self, at: &Node, name: &str, member: bool, arguments: Vec<Type>) -> Type {
        let Some(overloads) = overloads(name) else {
            self.unsure = true;
            return Type::Dyn;
        };
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|overload| overload.member == member) {
            let (wanted, yields) = overload.instance(&mut self.solver);
            if !self.solver.assignable(&arguments, &wanted) {
                continue;
            }
            let yields = self.solver.resolve(&yields, false);
            result = Some(match result {
                None => yields,
                Some(known) if super::types::same(&known, &yields) => known,
                Some(_) => Type::Dyn,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> = arguments.iter().map(|kind| self.solver.resolve(kind, true).to_string()).collect();
            let (target, rest) = if member { shown.split_at(1) } else { shown.split_at(0) };
            let target = target.first().map(|target| format!("{target}.")).unwrap_or_default();
            let why = format!("found no matching overload for '{name}' applied to '{target}({})'", rest.join(", "));
            self.wrong(at, why);
            Type::Dyn
        })
    }

    fn call(&mut self, node: &Node, call: &Call) -> Type {
        let formats = usize::from(&*call.name == "format");
        self.in_format += formats;
        let arguments = call.arguments.iter().map(|argument| self.node(argument)).collect();
        self.in_format -= formats;
        if let ("duration" | "timestamp", [literal @ Node::Literal(text @ Cel::String(_))]) =
            (&*call.name, &call.arguments[..])
            && calls::call(call, std::slice::from_ref(text), &mut Meter::new(crate::cel::PER_CALL_LIMIT)).is_err()
        {
            self.wrong(literal, format!("invalid {} argument", call.name));
        }
        self.apply(node, &call.name, call.member, arguments)
    }

    /// An element marked `?` adds what it holds.
    fn held(&mut self, at: &Node, kind: Type, marked: bool) -> Type {
        if !marked {
            return kind;
        }
        match self.solver.resolve(&kind, false) {
            Type::Optional(held) => (*held).clone(),
            Type::Dyn => Type::Dyn,
            other => {
                self.mismatch(at, &Type::optional(other.clone()), &other);
                other
            }
        }
    }

    /// Elements of a literal have one type; in a format's arguments they may have several.
    fn join(&mut self, at: &Node, known: Option<Type>, next: Type) -> Type {
        let Some(known) = known else { return next };
        match self.solver.join(&known, &next) {
            Some(both) => both,
            None => {
                if self.in_format == 0 {
                    self.mismatch(at, &known, &next);
                }
                Type::Dyn
            }
        }
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Type {
        let mut joined = None;
        for (item, marked) in items {
            let kind = self.node(item);
            let kind = self.held(item, kind, *marked);
            joined = Some(self.join(item, joined, kind));
        }
        let item = joined.unwrap_or_else(|| self.solver.fresh());
        Type::list(self.solver.resolve(&item, false))
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Type {
        let (mut keys, mut values) = (None, None);
        for (key, value, marked) in entries {
            let kind = self.node(key);
            keys = Some(self.join(key, keys, kind));
            let kind = self.node(value);
            let kind = self.held(value, kind, *marked);
            values = Some(self.join(value, values, kind));
        }
        let key = keys.unwrap_or_else(|| self.solver.fresh());
        let value = values.unwrap_or_else(|| self.solver.fresh());
        let whole = Type::map(key, value);
        self.solver.resolve(&whole, false)
    }

    /// Key and value of what a loop runs over; with one variable that of a list is its value, that of a map its key.
    fn element(&mut self, range: &Node, kind: &Type, pairs: bool) -> (Type, Type) {
        match self.solver.resolve(kind, false) {
            Type::List(item) => (Type::Int, (*item).clone()),
            Type::Map(key, value) => ((*key).clone(), if pairs { (*value).clone() } else { (*key).clone() }),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            open @ Type::Param(_) => {
                self.solver.assignable(&[Type::Dyn], &[open]);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.wrong(range, why);
                (Type::Dyn, Type::Dyn)
            }
        }
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let range = self.node(&fold.range);
        let start = self.node(&fold.start);
        let (_, item) = self.element(&fold.range, &range, false);
        self.locals[fold.accumulator] = start.clone();
        self.locals[fold.item] = item;
        let condition = self.node(&fold.condition);
        self.must_be(&fold.condition, &Type::Bool, &condition);
        let step = self.node(&fold.step);
        self.must_be(&fold.step, &start, &step);
        let result = self.node(&fold.result);
        self.solver.resolve(&result, false)
    }

    fn each(&mut self, node: &Node, each: &Each) -> Type {
        let range = self.node(&each.range);
        let (first, second) = self.element(&each.range, &range, true);
        self.locals[each.first] = first.clone();
        self.locals[each.second] = second;
        if let Some(filter) = &each.filter {
            let kind = self.node(filter);
            self.must_be(filter, &Type::Bool, &kind);
        }
        let body = self.node(&each.body);
        match each.gathers {
            Gathers::All | Gathers::Exists | Gathers::ExistsOne => {
                self.must_be(&each.body, &Type::Bool, &body);
                Type::Bool
            }
            Gathers::List => Type::list(body),
            Gathers::Map => Type::map(first, body),
            Gathers::Entries => match self.solver.resolve(&body, false) {
                found @ (Type::Map(..) | Type::Dyn) => found,
                other => {
                    let why = format!(
                        "found no matching overload for 'cel.@mapInsert' applied to '(map(dyn, dyn), {other})'"
                    );
                    self.wrong(node, why);
                    Type::Dyn
                }
            },
        }
    }

    fn optional_map(&mut self, node: &Node, operand: &Node, slot: usize, body: &Node, flat: bool) -> Type {
        let operand = self.node(operand);
        let held = self.apply(node, "value", true, vec![operand]);
        self.locals[slot] = held;
        let mapped = self.node(body);
        if !flat {
            return Type::optional(mapped);
        }
        let none = self.solver.fresh();
        self.apply(node, "_?_:_", false, vec![Type::Bool, mapped, Type::optional(none)])
    }
}
