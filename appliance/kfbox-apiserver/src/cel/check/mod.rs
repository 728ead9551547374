//! Static checking: types before an expression runs, and the most that it may cost.
//!
//! Guarantees: bounded work for any expression; where a type is not sure, the expression passes, since evaluation
//! checks again. Messages are worded as upstream's compiler words them, since clients and people match on them.
//!
//! Upstream: <https://kubernetes.io/docs/reference/using-api/cel/#type-checking>, cel-go `checker`, apiserver
//! `pkg/cel/library/cost.go`.

mod cost;
mod infer;
mod place;
mod signatures;
mod types;

pub use infer::Names;
pub use place::shown;
pub use signatures::{AUTHORIZER, RESOURCE_CHECK};
pub use types::{Decl, Form, Type};

use super::Expression;
use std::sync::Arc;

/// An expression whose parts fit together.
#[derive(Debug)]
pub struct Checked {
    pub kind: Type,
    /// Whether the type is known to the checker rather than taken for `dyn`.
    sure: bool,
    most: u64,
}

impl Checked {
    /// Whether it yields one of these and nothing else; what is not sure passes.
    pub fn is_one_of(&self, kinds: &[&str]) -> bool {
        let is = |wanted: &str| match (wanted, &self.kind) {
            // Patches of mutating policies: what is in them is checked when they are applied.
            ("Object" | "list(JSONPatch)", Type::Dyn) => true,
            ("Object", Type::Message(name)) => name.split('.').next() == Some("Object"),
            ("list(JSONPatch)", Type::List(item)) => match &**item {
                Type::Message(name) => &**name == "JSONPatch",
                item => matches!(item, Type::Dyn),
            },
            (wanted, kind) => kind.to_string() == wanted,
        };
        !self.sure || kinds.iter().any(|kind| is(kind))
    }

    /// The most that an evaluation may cost, for an object of the declared sizes.
    pub fn most(&self) -> u64 {
        self.most
    }
}

impl Expression {
    /// Checks the types. The error lists all that is wrong, each with its place in the text.
    pub fn check(&self, names: &Names) -> Result<Checked, String> {
        self.check_sized(names, None)
    }

    /// `sizes`: the declaration of `self`, from which the cost is estimated.
    pub fn check_sized(&self, names: &Names, sizes: Option<&Arc<Decl>>) -> Result<Checked, String> {
        let mut inferred = infer::infer(&self.root, self.slots, names);
        if !inferred.mistakes.is_empty() {
            let wanted = inferred.mistakes.iter().map(|(at, _)| *at).collect();
            let at = place::places(&self.source, &self.root, wanted);
            let mut all: Vec<(usize, &String)> = at.into_iter().zip(inferred.mistakes.iter().map(|(_, m)| m)).collect();
            all.sort_by_key(|(at, _)| *at);
            let all: Vec<String> = all.into_iter().map(|(at, why)| shown(&self.source, at, why)).collect();
            return Err(all.join("\n"));
        }
        let most = sizes.map_or(0, |sizes| cost::most(&self.root, self.slots, &mut inferred, sizes));
        Ok(Checked { kind: inferred.result, sure: inferred.sure, most })
    }
}

/// An error of compilation with its place, if it names what is not there.
pub fn placed(source: &str, error: &str) -> String {
    let source = source.trim();
    let quoted = error.strip_prefix("undeclared reference to '").or_else(|| error.strip_prefix("undefined field '"));
    match quoted.and_then(|rest| rest.split('\'').next()) {
        Some(name) => shown(source, place::place_of_name(source, name), error),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests;
