//! `x-kubernetes-validations`: CEL rules of custom resources, transition rules included.
//!
//! Guarantee: the rules of one object together cost no more than upstream's budget, whatever they and the object are.
//! Upstream: <https://kubernetes.io/docs/reference/using-api/cel/> and
//! `apiextensions-apiserver/pkg/apiserver/schema/cel`.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use kube_cel::cel::objects::{Key, Map};
use serde_json::Value;

use super::check::type_word;
use super::field::{FieldError, Reason, join};
use super::{Additional, Link, Node, Type};
use crate::cel::{BUDGET, Cel, CelError, Expression, OUT_OF_BUDGET, Scope, check::placed, optional};

/// The longest message that an expression may make; a longer one gives way to the rule's text.
const MAX_MESSAGE: usize = 5 << 10;

/// What the rules of one object may still cost.
pub struct Budget(Option<u64>);

impl Default for Budget {
    fn default() -> Self {
        Self(Some(BUDGET))
    }
}

impl Budget {
    /// False when this was too much; then nothing is left for others either.
    fn pay(&mut self, cost: u64) -> bool {
        self.0 = self.0.and_then(|left| left.checked_sub(cost));
        self.0.is_some()
    }
}

/// One compiled rule.
pub struct Rule {
    source: Box<str>,
    pub(super) program: Expression,
    pub(super) message: Option<Box<str>>,
    pub(super) message_source: Option<Box<str>>,
    pub(super) message_expression: Option<Expression>,
    reason: Reason,
    pub(super) reason_given: Option<Box<str>>,
    pub(super) field_path: Option<Box<str>>,
    pub(super) uses_old: bool,
    pub(super) optional_old: bool,
    pub(super) optional_old_given: Option<bool>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Equal text means equal rules: schemas are shared by it.
        f.debug_tuple("Rule")
            .field(&(&self.source, &self.message, &self.message_source, self.reason))
            .field(&(&self.field_path, &self.reason_given, self.optional_old_given))
            .finish()
    }
}

impl Rule {
    /// Compiles one entry of `x-kubernetes-validations` at `path` of the CRD.
    pub(super) fn parse(entry: &Value, path: &str) -> Result<Rule, FieldError> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let source = text("rule").unwrap_or_default().trim();
        if source.is_empty() {
            return Err(FieldError::required(&join(path, "rule"), ""));
        }
        let scope = Scope { variables: &["self", "oldSelf"], ..Scope::default() };
        let program = Expression::compile(source, &scope).map_err(|detail| {
            let detail = format!("compilation failed: {}", placed(source, &detail));
            FieldError::invalid(&join(path, "rule"), &Value::String(source.to_owned()), &detail)
        })?;
        let message_expression = match text("messageExpression") {
            Some(expression) => Some(Expression::compile(expression, &scope).map_err(|detail| {
                FieldError::invalid(
                    &join(path, "messageExpression"),
                    &Value::String(expression.to_owned()),
                    &format!("messageExpression compilation failed: {}", placed(expression, &detail)),
                )
            })?),
            None => None,
        };
        let uses_old = program.uses("oldSelf");
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
            reason_given: text("reason").map(Into::into),
            field_path: text("fieldPath").map(Into::into),
            uses_old,
            optional_old: entry.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
            optional_old_given: entry.get("optionalOldSelf").and_then(Value::as_bool),
        })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    fn named(&self) -> &str {
        self.message.as_deref().map_or(&*self.source, str::trim)
    }

    fn explain(&self, variables: &[(&str, Cel)], budget: &mut Budget) -> String {
        if let Some(expression) = &self.message_expression {
            let evaluation = expression.evaluate(variables);
            if budget.pay(evaluation.cost)
                && let Ok(Cel::String(text)) = evaluation.result
                && !text.trim().is_empty()
                && !text.contains('\n')
                && text.len() <= MAX_MESSAGE
            {
                return text.trim().to_owned();
            }
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
    if rules.is_empty() || budget.0.is_none() || (unchanged && !rules.iter().any(|r| r.uses_old)) {
        return;
    }
    let shown = Value::String(type_word(value).to_owned());
    let this = to_cel(node, value);
    let old = old.filter(|o| !o.is_null()).map(|o| to_cel(node, o));
    for rule in rules {
        let old_self = match (rule.uses_old, &old, rule.optional_old) {
            (false, ..) if unchanged => continue,
            (true, None, false) => continue,
            (_, old, true) => Some(optional(old.clone())),
            (_, old, false) => old.clone(),
        };
        let mut variables = vec![("self", this.clone())];
        variables.extend(old_self.map(|old| ("oldSelf", old)));
        let evaluation = rule.program.evaluate(&variables[..]);
        if !budget.pay(evaluation.cost) {
            errors.push(FieldError::invalid(path, &shown, OUT_OF_BUDGET));
            return;
        }
        let detail = match evaluation.result {
            Ok(Cel::Bool(true)) => continue,
            Ok(Cel::Bool(false)) => rule.explain(&variables, budget),
            Ok(_) => format!("rule: {} must evaluate to a bool", rule.source),
            Err(error @ CelError::Cost) => {
                budget.0 = None;
                let detail = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                    rule.named()
                );
                errors.push(FieldError::invalid(path, &shown, &detail));
                return;
            }
            Err(error @ CelError::NoSuchOverload) => format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                rule.named()
            ),
            Err(error) => format!("{error} evaluating rule: {}", rule.named()),
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
            for (own_name, child) in map {
                let (child_node, name) = match node.property(own_name) {
                    Some(property) => (property.link.node(), escape(own_name)),
                    None => match &node.additional {
                        Additional::Map(Link::Shared(inner)) => (inner.as_ref(), own_name.clone()),
                        Additional::Map(link) => (link.node(), own_name.clone()),
                        _ => (&unknown, if is_map { own_name.clone() } else { escape(own_name) }),
                    },
                };
                let value = to_cel(child_node, child);
                // Rules may spell a reserved word either way where the grammar takes it for a name: `self.namespace`.
                if name != *own_name && RESERVED.contains(&own_name.as_str()) {
                    out.insert(Key::String(Arc::new(own_name.clone())), value.clone());
                }
                out.insert(Key::String(Arc::new(name)), value);
            }
            Cel::Map(Map { map: Arc::new(out) })
        }
    }
}

thread_local! {
    /// The language's own parser of durations.
    static DURATION: Expression = Expression::compile("duration(text)", &Scope { variables: &["text"], ..Scope::default() })
        .expect("this expression is well formed");
}

fn typed_text(node: &Node, text: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    if node.kind != Type::String {
        return plain();
    }
    match node.format.as_deref() {
        Some("date") => chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            .and_then(|day| day.and_hms_opt(0, 0, 0))
            .map_or_else(plain, |at| Cel::Timestamp(at.and_utc().fixed_offset())),
        Some("date-time") => chrono::DateTime::parse_from_rfc3339(text).map_or_else(|_| plain(), Cel::Timestamp),
        Some("byte") => base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_or_else(|_| plain(), |bytes| Cel::Bytes(Arc::new(bytes))),
        Some("duration") => {
            DURATION.with(|parse| parse.evaluate(&[("text", plain())][..]).result.unwrap_or_else(|_| plain()))
        }
        _ => plain(),
    }
}
