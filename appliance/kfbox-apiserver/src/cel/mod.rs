//! CEL as Kubernetes speaks it: one language for the rules of CRDs, match conditions and admission policies.
//!
//! Guarantees: an expression is refused when it is written if it names a variable or function that does not exist; its
//! evaluation is metered in upstream's cost units and ended when they are spent, whatever it loops over; nothing here
//! does I/O.
//! Assumption: the parser and the functions of Kubernetes' libraries come from `kube-cel`; walking the tree is done here,
//! because the interpreter of that crate copies what it selects and cannot be stopped.
//!
//! Upstream: <https://kubernetes.io/docs/reference/using-api/cel/>, apiserver `pkg/cel`, `pkg/apis/cel/config.go`.

mod authorizer;
mod calls;
pub mod check;
mod eval;
mod lower;
mod values;

pub use authorizer::Authorizer;
pub use eval::{Meter, Variables};
pub use values::{from_json, optional, to_json};

use std::sync::Arc;

/// A value of the language.
pub type Cel = kube_cel::cel::Value;

/// What one evaluation may cost; upstream calls it about a tenth of a second.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all rules of one custom resource, or one binding of a policy, may cost together.
pub const BUDGET: u64 = 10_000_000;
/// What all match conditions of one webhook or binding may cost together.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;
/// What upstream says when a budget is spent.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The longest rules of known CRDs have some hundred characters.
const MAX_EXPRESSION: usize = 16 << 10;
/// The parser recurses; no rule seen in practice nests a tenth as deep, and a few thousand levels would end the stack.
const MAX_NESTING: usize = 60;
/// Every operator may be a level of the syntax tree, over which parser and evaluation recurse.
const MAX_OPERATORS: usize = 500;
/// The parser takes tens of kilobytes of stack for each level of an expression, which a runtime's worker does not have.
/// Only touched pages of this stack become memory.
const STACK: usize = 128 << 20;

/// Why an evaluation has no value. The texts are upstream's, which the rules of many CRDs are debugged by.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CelError {
    #[error("no such key: {0}")]
    NoSuchKey(String),
    #[error("no such overload")]
    NoSuchOverload,
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    #[error("{0}")]
    Failed(String),
    /// Nothing makes up for this one: no `||` and no `?:`.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
}

impl CelError {
    fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }
}

/// A compiled expression. Cheap to clone.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    root: Arc<lower::Node>,
    /// How many variables its loops need.
    slots: usize,
    uses: Arc<[Box<str>]>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

/// What an expression may refer to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope<'a> {
    pub variables: &'a [&'a str],
    /// Members of `variables`, as far as they are declared before this expression. None where there is no such thing.
    pub composed: Option<&'a [String]>,
    /// `Object{...}`, `JSONPatch{...}`: what mutations are written with.
    pub types: bool,
}

impl Expression {
    pub fn compile(source: &str, scope: &Scope<'_>) -> Result<Self, String> {
        let source = source.trim();
        check_size(source)?;
        let parse = || {
            let parser = kube_cel::cel::parser::Parser::default().enable_optional_syntax(true);
            parser.parse(source).map_err(|error| error.to_string())
        };
        let parsed = guarded(parse).unwrap_or_else(|| Err("the expression cannot be parsed".to_owned()))?;
        let (root, slots, uses) = lower::lower(&parsed, scope)?;
        Ok(Self { source: source.into(), root: Arc::new(root), slots, uses: uses.into() })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it names this variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.uses.iter().any(|name| &**name == variable)
    }
}

fn check_size(source: &str) -> Result<(), String> {
    if source.len() > MAX_EXPRESSION {
        return Err(format!("expression is longer than {MAX_EXPRESSION} bytes"));
    }
    let (mut depth, mut deepest, mut operators) = (0_usize, 0, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'?' | b'!' | b'<' | b'>' | b'=' | b'&' | b'|' => operators += 1,
            _ => {}
        }
    }
    if deepest > MAX_NESTING || operators > MAX_OPERATORS {
        return Err("expression is too complex".to_owned());
    }
    Ok(())
}

/// The library is young; what makes it panic fails instead of ending the request's task.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

/// Runs `work` on a thread of its own with a deep stack; none where no thread can be had or the work panicked.
pub fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    let run = || {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK).spawn_scoped(scope, work);
            thread.ok().and_then(|thread| thread.join().ok())
        })
    };
    // What waits on this runtime's worker goes on elsewhere: an evaluation may take a second.
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(run)
        }
        _ => run(),
    }
}

#[cfg(test)]
mod tests;
