//! From the parser's tree to the one that is evaluated: names are resolved once, loops become nodes of their own, and
//! what does not exist is refused here.

use super::{
    Cel, Scope, calls, guarded,
    values::{self, text},
};
use kube_cel::cel::{
    IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, LiteralValue, operators as op},
    objects::{Key, Opaque},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

/// A step of evaluation.
pub enum Node {
    Literal(Cel),
    Variable(Box<str>),
    /// A member of `variables`.
    Composed(Box<str>),
    /// A loop's variable.
    Local(usize),
    Select {
        operand: Box<Node>,
        key: Key,
        /// `has()`.
        test: bool,
        optional: bool,
    },
    Index {
        operand: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    /// `@not_strictly_false`: errors count as true, so that a later element may decide.
    Lenient(Box<Node>),
    Conditional(Box<[Node; 3]>),
    Equal {
        sides: Box<[Node; 2]>,
        negated: bool,
    },
    Order(Order, Box<[Node; 2]>),
    Arithmetic(char, Box<[Node; 2]>),
    In(Box<[Node; 2]>),
    Call(Box<Call>),
    /// Elements, and whether each is optional.
    List(Box<[(Node, bool)]>),
    Map(Entries),
    /// A message by its name, which is a map to evaluation.
    Struct(Box<str>, Entries),
    /// Adds to the list that a loop gathers, in place.
    Append {
        accumulator: usize,
        item: Box<Node>,
    },
    Fold(Box<Fold>),
    Each(Box<Each>),
    /// `optMap` and `optFlatMap`.
    OptionalMap {
        operand: Box<Node>,
        slot: usize,
        body: Box<Node>,
        flat: bool,
    },
    SortBy {
        operand: Box<Node>,
        slot: usize,
        key: Box<Node>,
    },
}

/// Keys and values, and whether each entry is optional.
pub type Entries = Box<[(Node, Node, bool)]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Order {
    pub fn sign(self) -> &'static str {
        match self {
            Order::Less => "<",
            Order::LessEqual => "<=",
            Order::Greater => ">",
            Order::GreaterEqual => ">=",
        }
    }
}

/// A function with its arguments, the target first if it has one.
pub struct Call {
    pub name: Box<str>,
    pub arguments: Box<[Node]>,
    /// The first argument stands before the name.
    pub member: bool,
    /// The same call with variables for arguments, for the library's functions.
    pub shim: IdedExpr,
    /// A pattern that is written out is compiled once.
    pub pattern: Option<regex::Regex>,
}

/// The macros of one variable.
pub struct Fold {
    pub range: Node,
    pub start: Node,
    pub accumulator: usize,
    pub item: usize,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
}

/// The macros of two variables: index and value of a list, key and value of a map.
pub struct Each {
    pub range: Node,
    pub first: usize,
    pub second: usize,
    pub filter: Option<Node>,
    pub body: Node,
    pub gathers: Gathers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gathers {
    All,
    Exists,
    ExistsOne,
    List,
    Map,
    Entries,
}

/// The name of a type as a value: what `type()` yields.
#[derive(Debug, PartialEq, Eq)]
pub struct TypeName(pub Box<str>);

impl Opaque for TypeName {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

const TYPES: [&str; 14] = [
    "bool",
    "bytes",
    "double",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "int",
    "list",
    "map",
    "net.CIDR",
    "net.IP",
    "null_type",
    "string",
    "type",
    "uint",
];

pub fn lower(root: &IdedExpr, scope: &Scope<'_>) -> Result<(Node, usize, Vec<Box<str>>), String> {
    let mut lower = Lower { scope: *scope, locals: Vec::new(), slots: 0, uses: BTreeSet::new() };
    let node = lower.node(root)?;
    Ok((node, lower.slots, lower.uses.into_iter().collect()))
}

struct Lower<'a> {
    scope: Scope<'a>,
    /// Names of the loops around the present place, innermost last; the place in this list is the slot.
    locals: Vec<String>,
    slots: usize,
    uses: BTreeSet<Box<str>>,
}

impl Lower<'_> {
    fn node(&mut self, expression: &IdedExpr) -> Result<Node, String> {
        Ok(match &expression.expr {
            Expr::Unspecified => return Err("the expression cannot be parsed".into()),
            Expr::Literal(literal) => Node::Literal(constant(literal)),
            Expr::Ident(name) => self.identifier(name)?,
            Expr::Select(select) => {
                if let Some(node) = self.qualified(&select.operand, &select.field, select.test)? {
                    return Ok(node);
                }
                Node::Select {
                    operand: Box::new(self.node(&select.operand)?),
                    key: Key::String(Arc::new(select.field.clone())),
                    test: select.test,
                    optional: false,
                }
            }
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    items.push((self.node(element)?, list.optional_indices.contains(&at)));
                }
                Node::List(items.into())
            }
            Expr::Map(map) => Node::Map(self.entries(&map.entries)?),
            Expr::Struct(literal) => {
                let name = literal.type_name.as_str();
                let known =
                    self.scope.types && (name == "JSONPatch" || name == "Object" || name.starts_with("Object."));
                if !known {
                    return Err(format!("undeclared reference to '{name}' (in container '')"));
                }
                if name == "JSONPatch" {
                    for entry in &literal.entries {
                        if let EntryExpr::StructField(field) = &entry.expr
                            && !matches!(&*field.field, "op" | "path" | "from" | "value")
                        {
                            return Err(format!("undefined field '{}'", field.field));
                        }
                    }
                }
                Node::Struct(name.into(), self.entries(&literal.entries)?)
            }
            Expr::Comprehension(fold) => self.fold(fold)?,
            Expr::Call(call) => self.call(call)?,
        })
    }

    fn boxed(&mut self, expression: &IdedExpr) -> Result<Box<Node>, String> {
        self.node(expression).map(Box::new)
    }

    fn pair(&mut self, call: &CallExpr) -> Result<Box<[Node; 2]>, String> {
        Ok(Box::new([self.node(&call.args[0])?, self.node(&call.args[1])?]))
    }

    fn entries(&mut self, entries: &[IdedEntryExpr]) -> Result<Entries, String> {
        entries
            .iter()
            .map(|entry| match &entry.expr {
                EntryExpr::StructField(field) => {
                    Ok((Node::Literal(text(field.field.clone())), self.node(&field.value)?, field.optional))
                }
                EntryExpr::MapEntry(entry) => Ok((self.node(&entry.key)?, self.node(&entry.value)?, entry.optional)),
            })
            .collect()
    }

    fn identifier(&mut self, name: &str) -> Result<Node, String> {
        if let Some(slot) = self.locals.iter().rposition(|local| local == name) {
            return Ok(Node::Local(slot));
        }
        if self.scope.variables.contains(&name) {
            self.uses.insert(name.into());
            return Ok(Node::Variable(name.into()));
        }
        if TYPES.contains(&name) {
            return Ok(Node::Literal(Cel::Opaque(Arc::new(TypeName(name.into())))));
        }
        Err(format!("undeclared reference to '{name}' (in container '')"))
    }

    /// `variables.x`, `authorizer.requestResource` and type names with dots: what looks like a member and is none.
    fn qualified(&mut self, operand: &IdedExpr, field: &str, test: bool) -> Result<Option<Node>, String> {
        let Some(path) = dotted(operand) else { return Ok(None) };
        if self.locals.contains(&path) {
            return Ok(None);
        }
        if let (Some(composed), "variables") = (self.scope.composed, path.as_str()) {
            if !composed.iter().any(|name| name == field) {
                return Err(format!("undefined field '{field}'"));
            }
            self.uses.insert("variables".into());
            return Ok(Some(if test { Node::Literal(Cel::Bool(true)) } else { Node::Composed(field.into()) }));
        }
        let whole = format!("{path}.{field}");
        if !test && self.scope.variables.contains(&whole.as_str()) {
            self.uses.insert(whole.as_str().into());
            return Ok(Some(Node::Variable(whole.into())));
        }
        if !test && TYPES.contains(&whole.as_str()) {
            return Ok(Some(Node::Literal(Cel::Opaque(Arc::new(TypeName(whole.into()))))));
        }
        Ok(None)
    }

    /// Lowers `body` with these names in scope, and tells their slots.
    fn within<T>(
        &mut self,
        names: &[&str],
        body: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<(usize, T), String> {
        let first = self.locals.len();
        self.locals.extend(names.iter().map(|n| (*n).to_owned()));
        self.slots = self.slots.max(self.locals.len());
        let body = body(self);
        self.locals.truncate(first);
        Ok((first, body?))
    }

    fn fold(&mut self, fold: &ComprehensionExpr) -> Result<Node, String> {
        let range = self.node(&fold.iter_range)?;
        let start = self.node(&fold.accu_init)?;
        let (accumulator, (condition, step, result)) = self.within(&[&fold.accu_var, &fold.iter_var], |lower| {
            Ok((lower.node(&fold.loop_cond)?, lower.step(&fold.loop_step, &fold.accu_var)?, lower.node(&fold.result)?))
        })?;
        Ok(Node::Fold(Box::new(Fold { range, start, accumulator, item: accumulator + 1, condition, step, result })))
    }

    /// The step of `map` and `filter` adds one element; by itself that would copy the list each time.
    fn step(&mut self, step: &IdedExpr, accumulator: &str) -> Result<Node, String> {
        let Expr::Call(call) = &step.expr else { return self.node(step) };
        match (call.func_name.as_str(), &call.args[..]) {
            (op::ADD, [list, added]) => {
                if let (Expr::Ident(name), Expr::List(added)) = (&list.expr, &added.expr)
                    && name == accumulator
                    && let [item] = &added.elements[..]
                    && let Some(slot) = self.locals.iter().rposition(|local| local == name)
                {
                    return Ok(Node::Append { accumulator: slot, item: self.boxed(item)? });
                }
                self.node(step)
            }
            (op::CONDITIONAL, [condition, yes, no]) => {
                Ok(Node::Conditional(Box::new([self.node(condition)?, self.step(yes, accumulator)?, self.node(no)?])))
            }
            _ => self.node(step),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, String> {
        if let Some(node) = self.operator(call)? {
            return Ok(node);
        }
        if let Some(target) = &call.target
            && let Some(node) = self.macros(call, target)?
        {
            return Ok(node);
        }
        self.function(call)
    }

    fn operator(&mut self, call: &CallExpr) -> Result<Option<Node>, String> {
        if call.target.is_some() {
            return Ok(None);
        }
        Ok(Some(match (call.func_name.as_str(), &call.args[..]) {
            (op::CONDITIONAL, [a, b, c]) => Node::Conditional(Box::new([self.node(a)?, self.node(b)?, self.node(c)?])),
            (op::LOGICAL_AND, [a, b]) => Node::And(self.boxed(a)?, self.boxed(b)?),
            (op::LOGICAL_OR, [a, b]) => Node::Or(self.boxed(a)?, self.boxed(b)?),
            (op::LOGICAL_NOT, [a]) => Node::Not(self.boxed(a)?),
            (op::NEGATE, [a]) => Node::Negate(self.boxed(a)?),
            (op::NOT_STRICTLY_FALSE, [a]) => Node::Lenient(self.boxed(a)?),
            (op::EQUALS, [_, _]) => Node::Equal { sides: self.pair(call)?, negated: false },
            (op::NOT_EQUALS, [_, _]) => Node::Equal { sides: self.pair(call)?, negated: true },
            (op::LESS, [_, _]) => Node::Order(Order::Less, self.pair(call)?),
            (op::LESS_EQUALS, [_, _]) => Node::Order(Order::LessEqual, self.pair(call)?),
            (op::GREATER, [_, _]) => Node::Order(Order::Greater, self.pair(call)?),
            (op::GREATER_EQUALS, [_, _]) => Node::Order(Order::GreaterEqual, self.pair(call)?),
            (op::ADD, [_, _]) => Node::Arithmetic('+', self.pair(call)?),
            (op::SUBSTRACT, [_, _]) => Node::Arithmetic('-', self.pair(call)?),
            (op::MULTIPLY, [_, _]) => Node::Arithmetic('*', self.pair(call)?),
            (op::DIVIDE, [_, _]) => Node::Arithmetic('/', self.pair(call)?),
            (op::MODULO, [_, _]) => Node::Arithmetic('%', self.pair(call)?),
            (op::IN, [_, _]) => Node::In(self.pair(call)?),
            (op::INDEX, [a, b]) => Node::Index { operand: self.boxed(a)?, index: self.boxed(b)?, optional: false },
            (op::OPT_INDEX, [a, b]) => Node::Index { operand: self.boxed(a)?, index: self.boxed(b)?, optional: true },
            (op::OPT_SELECT, [a, field]) => {
                let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                    return Err("unsupported optional field selection".into());
                };
                Node::Select {
                    operand: self.boxed(a)?,
                    key: Key::String(Arc::new(field.inner().to_owned())),
                    test: false,
                    optional: true,
                }
            }
            _ => return Ok(None),
        }))
    }

    /// The macros that the parser does not know.
    fn macros(&mut self, call: &CallExpr, target: &IdedExpr) -> Result<Option<Node>, String> {
        let simple = |argument: &IdedExpr| match &argument.expr {
            Expr::Ident(name) => Ok(name.clone()),
            _ => Err("argument must be a simple name".to_owned()),
        };
        let gathers = match (call.func_name.as_str(), call.args.len()) {
            ("all", 3) => Gathers::All,
            ("exists", 3) => Gathers::Exists,
            ("existsOne" | "exists_one", 3) => Gathers::ExistsOne,
            ("transformList", 3 | 4) => Gathers::List,
            ("transformMap", 3 | 4) => Gathers::Map,
            ("transformMapEntry", 3 | 4) => Gathers::Entries,
            ("optMap" | "optFlatMap", 2) => {
                let (operand, name) = (self.boxed(target)?, simple(&call.args[0])?);
                let (slot, body) = self.within(&[&name], |lower| lower.boxed(&call.args[1]))?;
                return Ok(Some(Node::OptionalMap { operand, slot, body, flat: call.func_name == "optFlatMap" }));
            }
            ("sortBy", 2) => {
                let (operand, name) = (self.boxed(target)?, simple(&call.args[0])?);
                let (slot, key) = self.within(&[&name], |lower| lower.boxed(&call.args[1]))?;
                return Ok(Some(Node::SortBy { operand, slot, key }));
            }
            _ => return Ok(None),
        };
        let range = self.node(target)?;
        let (one, two) = (simple(&call.args[0])?, simple(&call.args[1])?);
        let (first, (filter, body)) = self.within(&[&one, &two], |lower| {
            let filter = (call.args.len() == 4).then(|| lower.node(&call.args[2])).transpose()?;
            Ok((filter, lower.node(&call.args[call.args.len() - 1])?))
        })?;
        Ok(Some(Node::Each(Box::new(Each { range, first, second: first + 1, filter, body, gathers }))))
    }

    fn function(&mut self, call: &CallExpr) -> Result<Node, String> {
        let mut target = call.target.as_deref();
        let mut name = call.func_name.clone();
        if let Some(prefix) = target.and_then(dotted)
            && !self.locals.contains(&prefix)
            && !self.scope.variables.contains(&prefix.as_str())
        {
            let whole = format!("{prefix}.{name}");
            if calls::is_known(&whole) {
                (target, name) = (None, whole);
            }
        }
        if !calls::is_known(&name) {
            return Err(format!("undeclared reference to '{name}' (in container '')"));
        }
        let mut arguments = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = target {
            arguments.push(self.node(target)?);
        }
        for argument in &call.args {
            arguments.push(self.node(argument)?);
        }
        let pattern = match (&*name, arguments.last()) {
            ("matches" | "find" | "findAll", Some(Node::Literal(Cel::String(pattern)))) => {
                Some(calls::pattern(pattern).map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let member = target.is_some();
        let shim = shim(&name, member, arguments.len());
        Ok(Node::Call(Box::new(Call { name: name.into(), arguments: arguments.into(), member, shim, pattern })))
    }
}

/// `a.b.c` as text.
fn dotted(expression: &IdedExpr) -> Option<String> {
    match &expression.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", dotted(&select.operand)?, select.field)),
        _ => None,
    }
}

/// The names under which a function of the library finds its arguments.
pub fn argument_name(at: usize) -> &'static str {
    static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| (0..MAX_ARGUMENTS).map(|n| format!("@{n}")).collect());
    NAMES.get(at).map_or("@more", String::as_str)
}

/// No function has as many; a call with more finds its last ones undeclared.
pub const MAX_ARGUMENTS: usize = 16;

fn shim(name: &str, member: bool, count: usize) -> IdedExpr {
    let ident = |name: &str| IdedExpr { id: 0, expr: Expr::Ident(name.to_owned()) };
    let (target, func_name, skip) = match name.split_once('.') {
        Some((prefix, rest)) => (Some(Box::new(ident(prefix))), rest, 0),
        None if member => (Some(Box::new(ident(argument_name(0)))), name, 1),
        None => (None, name, 0),
    };
    let args = (skip..count).map(|at| ident(argument_name(at))).collect();
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: func_name.to_owned(), target, args }) }
}

fn constant(literal: &LiteralValue) -> Cel {
    guarded(|| Cel::try_from(literal.to_val().as_ref()).ok()).flatten().unwrap_or(Cel::Null)
}

/// What `type()` says of a value.
pub fn type_of(value: &Cel) -> Cel {
    let name = match value {
        Cel::Bool(_) => "bool",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Null => "null_type",
        Cel::Duration(_) => "google.protobuf.Duration",
        Cel::Timestamp(_) => "google.protobuf.Timestamp",
        _ if values::as_optional(value).is_some() => "optional_type",
        Cel::Opaque(opaque) => opaque.runtime_type_name(),
        Cel::Function(..) => "type",
    };
    Cel::Opaque(Arc::new(TypeName(name.into())))
}
