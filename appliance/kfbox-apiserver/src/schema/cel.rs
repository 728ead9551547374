//! `x-kubernetes-validations`: CEL rules of custom resources, transition rules included.
//!
//! Upstream: <https://kubernetes.io/docs/reference/using-api/cel/> and
//! `apiextensions-apiserver/pkg/apiserver/schema/cel`.
//!
//! Assumption: the interpreter has no cost meter, so the time for one object's rules is bounded here between rules;
//! one rule's work is bounded by the size of its expression and of the object.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;

use super::check::type_word;
use super::field::{FieldError, Reason, join};
use super::{Additional, Link, Node, Type};

/// The parser recurses; no rule seen in practice nests a tenth as deep, and a few thousand levels would end the stack.
const MAX_NESTING: usize = 60;
/// Every operator may be a level of the syntax tree, over which parser and interpreter recurse.
const MAX_OPERATORS: usize = 500;
/// Upstream's own limit is on cost; the longest rules of known CRDs have some hundred characters.
const MAX_EXPRESSION: usize = 16 << 10;
/// After this long on one object the remaining rules fail closed.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Time given to the rules of one object, counted from the first rule.
#[derive(Default)]
pub struct Budget(Option<Instant>);

/// One compiled rule.
pub struct Rule {
    source: Box<str>,
    program: Program,
    message: Option<Box<str>>,
    message_source: Option<Box<str>>,
    message_expression: Option<Program>,
    reason: Reason,
    field_path: Option<Box<str>>,
    uses_old: bool,
    optional_old: bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Equal text means equal rules: schemas are shared by it.
        f.debug_tuple("Rule")
            .field(&(&self.source, &self.message, &self.message_source, self.reason))
            .field(&(&self.field_path, self.optional_old))
            .finish()
    }
}

fn compile(source: &str) -> Result<Program, String> {
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
            b'.' | b'+' | b'-' | b'*' | b'/' | b'%' | b'?' | b'!' | b'<' | b'>' | b'=' => operators += 1,
            _ => {}
        }
    }
    if deepest > MAX_NESTING || operators > MAX_OPERATORS {
        return Err("expression is too complex".to_owned());
    }
    guarded(|| Program::compile(source).map_err(|error| error.to_string()))
        .unwrap_or_else(|| Err("the expression cannot be parsed".to_owned()))
}

/// Parser and interpreter take tens of kilobytes of stack for each level of an expression, which a runtime's worker
/// does not have. Only touched pages of this stack become memory.
const STACK: usize = 128 << 20;

/// Runs `work` on a thread of its own with a deep stack; none where no thread can be had or the work panicked.
pub(super) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK).spawn_scoped(scope, work);
        thread.ok().and_then(|thread| thread.join().ok())
    })
}

/// The interpreter is young; a rule that makes it panic fails instead of ending the request's task.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

thread_local! {
    /// All functions, registered once a thread: rules run in scopes below.
    static FUNCTIONS: Context<'static> = Context::default().with_all();
}

impl Rule {
    /// Compiles one entry of `x-kubernetes-validations` at `path` of the CRD.
    pub(super) fn parse(entry: &Value, path: &str) -> Result<Rule, FieldError> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let source = text("rule").unwrap_or_default().trim();
        if source.is_empty() {
            return Err(FieldError::required(&join(path, "rule"), ""));
        }
        let at = join(path, "rule");
        let program = compile(source).map_err(|detail| {
            FieldError::invalid(&at, &Value::String(source.to_owned()), &format!("compilation failed: {detail}"))
        })?;
        let message_expression = match text("messageExpression") {
            Some(expression) => Some(compile(expression).map_err(|detail| {
                FieldError::invalid(
                    &join(path, "messageExpression"),
                    &Value::String(expression.to_owned()),
                    &format!("messageExpression compilation failed: {detail}"),
                )
            })?),
            None => None,
        };
        let uses_old = program.references().has_variable("oldSelf");
        let reason = match text("reason") {
            Some("FieldValueRequired") => Reason::FieldValueRequired,
            Some("FieldValueForbidden") => Reason::FieldValueForbidden,
            Some("FieldValueDuplicate") => Reason::FieldValueDuplicate,
            _ => Reason::FieldValueInvalid,
        };
        Ok(Rule {
            source: source.into(),
            program,
            message: text("message").map(Into::into),
            message_source: text("messageExpression").map(Into::into),
            message_expression,
            reason,
            field_path: text("fieldPath").map(Into::into),
            uses_old,
            optional_old: entry.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    fn explain(&self, context: &Context<'_>) -> String {
        if let Some(expression) = &self.message_expression
            && let Some(Ok(Cel::String(text))) = guarded(|| expression.execute(context))
            && !text.trim().is_empty()
            && !text.contains('\n')
        {
            return text.trim().to_owned();
        }
        match &self.message {
            Some(message) => message.trim().to_owned(),
            None => format!("failed rule: {}", self.source),
        }
    }
}

/// Runs the rules of one node. Transition rules run only where there is an old value.
#[expect(clippy::too_many_arguments, reason = "one call site, all of it the validator's state")]
pub(super) fn evaluate(
    node: &Node,
    rules: &[Rule],
    value: &Value,
    old: Option<&Value>,
    unchanged: bool,
    path: &str,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    if rules.is_empty() || (unchanged && !rules.iter().any(|r| r.uses_old)) {
        return;
    }
    let started = *budget.0.get_or_insert_with(Instant::now);
    FUNCTIONS.with(|functions| {
        let mut context = functions.new_inner_scope();
        context.add_variable_from_value("self", to_cel(node, value));
        let old_cel = old.filter(|o| !o.is_null()).map(|o| to_cel(node, o));
        for rule in rules {
            if rule.uses_old {
                match (&old_cel, rule.optional_old) {
                    // Optional values of the interpreter are built by its own function; an absent one is `optional.none()`.
                    (None, true) => {
                        let Some(none) = optional(None) else { continue };
                        context.add_variable_from_value("oldSelf", none);
                    }
                    (Some(value), true) => {
                        let Some(some) = optional(Some(value.clone())) else { continue };
                        context.add_variable_from_value("oldSelf", some);
                    }
                    (None, false) => continue,
                    (Some(value), false) => context.add_variable_from_value("oldSelf", value.clone()),
                }
            } else if unchanged {
                continue;
            }
            let shown = Value::String(type_word(value).to_owned());
            if started.elapsed() > MAX_TIME {
                errors.push(FieldError::invalid(
                    path,
                    &shown,
                    "validation rules took too long and the rest was not evaluated",
                ));
                return;
            }
            let detail = match guarded(|| rule.program.execute(&context)) {
                Some(Ok(Cel::Bool(true))) => continue,
                Some(Ok(Cel::Bool(false))) => rule.explain(&context),
                Some(Ok(_)) => format!("rule: {} must evaluate to a bool", rule.source),
                Some(Err(error)) => format!("rule evaluation error: {error}: {}", rule.source),
                None => format!("rule cannot be evaluated: {}", rule.source),
            };
            let at = match &rule.field_path {
                Some(relative) if relative.starts_with('.') => join(path, &relative[1..]),
                Some(relative) => format!("{path}{relative}"),
                None => path.to_owned(),
            };
            errors.push(match rule.reason {
                Reason::FieldValueRequired => FieldError::required(&at, &detail),
                Reason::FieldValueForbidden => FieldError::forbidden(&at, &detail),
                Reason::FieldValueDuplicate => FieldError::duplicate(&at, &shown),
                _ => FieldError::invalid(&at, &shown, &detail),
            });
        }
    });
}

fn optional(value: Option<Cel>) -> Option<Cel> {
    let mut context = Context::default();
    let source = match value {
        Some(value) => {
            context.add_variable_from_value("value", value);
            "optional.of(value)"
        }
        None => "optional.none()",
    };
    Program::compile(source).ok()?.execute(&context).ok()
}

const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Property names as rules spell them.
pub(super) fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

fn to_cel(node: &Node, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            _ if node.kind == Type::Number => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
            (Some(i), _) => Cel::Int(i),
            (None, Some(u)) => Cel::UInt(u),
            _ => Cel::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => typed_text(node, text),
        Value::Array(items) => {
            let unknown = Node::of(Type::Any);
            let item = node.item().unwrap_or(&unknown);
            Cel::List(Arc::new(items.iter().map(|i| to_cel(item, i)).collect()))
        }
        Value::Object(map) => {
            let unknown = Node::of(Type::Any);
            let is_map = node.properties.is_empty() && !matches!(node.additional, Additional::Closed);
            let mut out = HashMap::with_capacity(map.len());
            for (name, child) in map {
                let (child_node, name) = match node.property(name) {
                    Some(property) => (property.link.node(), escape(name)),
                    None => match &node.additional {
                        Additional::Map(Link::Shared(inner)) => (inner.as_ref(), name.clone()),
                        Additional::Map(link) => (link.node(), name.clone()),
                        _ => (&unknown, if is_map { name.clone() } else { escape(name) }),
                    },
                };
                out.insert(Key::String(Arc::new(name)), to_cel(child_node, child));
            }
            Cel::Map(Map { map: Arc::new(out) })
        }
    }
}

fn typed_text(node: &Node, text: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    if node.kind != Type::String {
        return plain();
    }
    match node.format.as_deref() {
        Some("date-time") => chrono::DateTime::parse_from_rfc3339(text).map_or_else(|_| plain(), Cel::Timestamp),
        Some("byte") => base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_or_else(|_| plain(), |bytes| Cel::Bytes(Arc::new(bytes))),
        Some("duration") => {
            let mut context = Context::default();
            context.add_variable_from_value("text", plain());
            match Program::compile("duration(text)").map(|p| p.execute(&context)) {
                Ok(Ok(value)) => value,
                _ => plain(),
            }
        }
        _ => plain(),
    }
}
