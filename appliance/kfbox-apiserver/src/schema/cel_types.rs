//! Rules of a definition that is written: their types, and what they may cost at most.
//!
//! Guarantee: what was stored stays as it is. A version that an update leaves alone is not looked at, and an error that
//! the stored schema has, too, is none of the update's.
//!
//! Upstream: `apiextensions-apiserver/pkg/apis/apiextensions/validation`, `pkg/apiserver/schema/cel/compilation.go`,
//! apiserver `pkg/cel/common/schemas.go`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cel::{Rule, escape};
use super::crd::RULES;
use super::field::{FieldError, index, join, key};
use super::{Additional, Link, ListType, Node, Type};
use crate::cel::check::{Decl, Form, Names, Type as Kind};

/// What one rule, and all rules of a version together, may cost; upstream's.
const RULE_LIMIT: u64 = 10_000_000;
const VERSION_LIMIT: u64 = 100_000_000;
/// The largest request of upstream, from which sizes follow where none are declared.
const REQUEST: u64 = 3 << 20;
/// Names of objects; a generated one ends in at least one letter more.
const NAME: u64 = 253;
/// Types of built-in kinds refer to each other in rings.
const DEPTH: usize = 40;

/// The declaration of what is at a node; none where rules see nothing of it.
fn declare(node: &Node, root: bool) -> Option<Arc<Decl>> {
    declared(node, root, DEPTH * 4, &mut Vec::new())
}

/// The declaration of a kind as it is served, with all its metadata.
pub fn declare_kind(node: &Node) -> Option<Arc<Decl>> {
    declared(node, false, DEPTH, &mut Vec::new())
}

/// As [`declare`] for a value of an OpenAPI schema.
#[cfg(test)]
pub fn declare_value(schema: &Value) -> Arc<Decl> {
    let whole = super::from_crd(&json!({"type": "object", "properties": {"f": schema}})).expect("a sound schema");
    let node = whole.root().property("f").expect("it was just given").link.node();
    declare(node, false).expect("it is of a type that rules see")
}

fn texts(node: &Node) -> u64 {
    let rules = node.rules.as_deref();
    if let Some(most) = rules.and_then(|rules| rules.max_length) {
        return most.saturating_mul(4);
    }
    let words = rules.and_then(|rules| rules.one_of.as_deref()).unwrap_or_default();
    match words {
        [] => REQUEST - 2,
        words => words.iter().filter_map(Value::as_str).map(|word| word.len() as u64).max().unwrap_or(0),
    }
}

fn declared(node: &Node, root: bool, depth: usize, rings: &mut Vec<u32>) -> Option<Arc<Decl>> {
    let open = || Some(Decl::scalar(Kind::Dyn, 0, 2));
    let Some(depth) = depth.checked_sub(1) else { return open() };
    let mut follow = |link: &Link| match link {
        Link::Shared(child) => declared(child, child.embedded, depth, rings),
        Link::Builtin(at) if rings.contains(at) => open(),
        Link::Builtin(at) => {
            rings.push(*at);
            let child = link.node();
            let found = declared(child, child.embedded, depth, rings);
            rings.pop();
            found
        }
    };
    let rules = node.rules.as_deref();
    match node.kind {
        Type::IntOrString => {
            let most = rules.and_then(|rules| rules.max_length).map_or(REQUEST - 2, |most| most.saturating_mul(4));
            Some(Decl::scalar(Kind::Dyn, most, 1))
        }
        Type::Quantity => open(),
        Type::Any => None,
        Type::Boolean => Some(Decl::scalar(Kind::Bool, 0, 4)),
        Type::Number => Some(Decl::scalar(Kind::Double, 0, 1)),
        Type::Integer => Some(Decl::scalar(Kind::Int, 0, 1)),
        Type::String => Some(match node.format.as_deref() {
            Some("byte") => {
                let most = rules.and_then(|rules| rules.max_length).unwrap_or(REQUEST - 2);
                Decl::scalar(Kind::Bytes, most, 2)
            }
            Some("duration") => Decl::scalar(Kind::Duration, 32, 3),
            Some("date") => Decl::scalar(Kind::Timestamp, 12, 12),
            Some("date-time") => Decl::scalar(Kind::Timestamp, 32, 21),
            _ => Decl::scalar(Kind::String, texts(node), 2),
        }),
        Type::Array => {
            let item = follow(node.items.as_ref()?)?;
            let fit = (REQUEST - 2) / (item.least_bytes + 1);
            Some(Decl::list(item, rules.and_then(|rules| rules.max_items).unwrap_or(fit)))
        }
        Type::Object => {
            if let Additional::Map(link) = &node.additional {
                let item = follow(link)?;
                let fit = (REQUEST - 2) / (item.least_bytes + 6);
                return Some(Decl::map(item, rules.and_then(|rules| rules.max_properties).unwrap_or(fit)));
            }
            let (mut fields, mut least) = (std::collections::BTreeMap::new(), 2);
            for property in &node.properties {
                let Some(child) = follow(&property.link) else { continue };
                if node.required.contains(&property.name) && property.default.is_none() {
                    least += property.name.len() as u64 + child.least_bytes + 4;
                }
                fields.insert(escape(&property.name).into(), child);
            }
            if root {
                add_metadata(node, &mut fields);
            }
            Some(Arc::new(Decl { form: Form::Object(fields), most: 0, least_bytes: least }))
        }
    }
}

/// Every object has these, of which rules may see the names.
fn add_metadata(node: &Node, fields: &mut std::collections::BTreeMap<Box<str>, Arc<Decl>>) {
    for name in ["apiVersion", "kind"] {
        fields.insert(name.into(), Decl::scalar(Kind::String, REQUEST - 2, 2));
    }
    let given = node.property("metadata").map(|property| property.link.node());
    let name = |name: &str, most: u64| {
        let own = given.and_then(|metadata| metadata.property(name)).and_then(|p| p.link.node().rules.as_deref());
        let most = own.and_then(|rules| rules.max_length).map_or(most, |own| own.min(most));
        Decl::scalar(Kind::String, most * 4, 2)
    };
    let metadata = Decl::object([("name", name("name", NAME)), ("generateName", name("generateName", NAME - 1))]);
    fields.insert("metadata".into(), metadata);
}

/// An error, and the rule in which it is.
pub struct Finding {
    pub error: FieldError,
    pub rule: Box<str>,
}

/// What is wrong with the rules of one version.
pub fn check(root: &Node, path: &str) -> Vec<Finding> {
    let mut walk = Walk { found: Vec::new(), total: 0, dearest: Vec::new() };
    let place = Place { path: path.to_owned(), declared: None, scope: false, times: Some(1), uncorrelated: None };
    walk.node(root, &place, true);
    walk.finish(path)
}

/// Where the walk is.
struct Place {
    path: String,
    /// Once a rule is met, declarations follow from its own.
    declared: Option<Arc<Decl>>,
    scope: bool,
    /// How often there may be a value here; none if nothing bounds it.
    times: Option<u64>,
    /// The list or map whose elements of before and after are not known to belong together.
    uncorrelated: Option<String>,
}

struct Walk {
    found: Vec<Finding>,
    total: u64,
    dearest: Vec<(u64, String)>,
}

impl Walk {
    fn say(&mut self, rule: &str, error: FieldError) {
        // A hostile schema could hold thousands; a hundred tell a person enough.
        if self.found.len() < 100 {
            self.found.push(Finding { error, rule: rule.into() });
        }
    }

    fn node(&mut self, node: &Node, place: &Place, root: bool) {
        let rules = node.rules.as_deref().map(|rules| &*rules.cel).unwrap_or_default();
        let scope = place.scope || !rules.is_empty();
        let declared = match &place.declared {
            Some(known) => Some(known.clone()),
            None if scope => declare(node, root || node.embedded),
            None => None,
        };
        self.children(node, place, declared.as_ref(), scope);
        for (at, rule) in rules.iter().enumerate() {
            let at = index(&join(&place.path, RULES), at);
            match &declared {
                Some(declared) => self.rule(rule, &at, declared, place),
                None => {
                    let why = "failed to convert to declType for CEL validation rules";
                    self.say(rule.source(), FieldError::internal(&join(&place.path, RULES), why));
                }
            }
        }
    }

    fn children(&mut self, node: &Node, place: &Place, declared: Option<&Arc<Decl>>, scope: bool) {
        let bounds = node.rules.as_deref();
        let (named, elements) = match (node.kind, &node.additional) {
            (Type::Object, Additional::Map(_)) => (Some(1), bounds.and_then(|bounds| bounds.max_properties)),
            (Type::Array, _) => (Some(1), bounds.and_then(|bounds| bounds.max_items)),
            _ => (Some(1), Some(1)),
        };
        let times = |factor: Option<u64>| Some(place.times?.saturating_mul(factor?));
        let child = |path: String, declared: Option<Arc<Decl>>, factor, correlated: bool| {
            let uncorrelated = match &place.uncorrelated {
                None if !correlated => Some(place.path.clone()),
                known => known.clone(),
            };
            Place { path, declared, scope, times: times(factor), uncorrelated }
        };
        if let Additional::Map(link) = &node.additional {
            let own = declared.and_then(|decl| match &decl.form {
                Form::Map(item) => Some(item.clone()),
                _ => None,
            });
            let place = child(join(&place.path, "additionalProperties"), own, elements, true);
            self.node(link.node(), &place, false);
        }
        for property in &node.properties {
            // Built-in metadata has no rules.
            let Link::Shared(link) = &property.link else { continue };
            let own = declared.and_then(|decl| match &decl.form {
                Form::Object(fields) => fields.get(escape(&property.name).as_str()).cloned(),
                _ => None,
            });
            let path = key(&join(&place.path, "properties"), &property.name);
            let place = child(path, own, named, !node.atomic);
            self.node(link, &place, false);
        }
        if let Some(link) = &node.items {
            let own = declared.and_then(|decl| match &decl.form {
                Form::List(item) => Some(item.clone()),
                _ => None,
            });
            let place = child(join(&place.path, "items"), own, elements, node.list == Some(ListType::Map));
            self.node(link.node(), &place, false);
        }
    }

    fn rule(&mut self, rule: &Rule, at: &str, declared: &Arc<Decl>, place: &Place) {
        let source = rule.source();
        let (field, message) = (join(at, "rule"), join(at, "messageExpression"));
        let shown = json!({
            "Rule": source, "Message": rule.message.as_deref().unwrap_or_default(),
            "MessageExpression": rule.message_source.as_deref().unwrap_or_default(), "Reason": rule.reason_given,
            "FieldPath": rule.field_path.as_deref().unwrap_or_default(), "OptionalOldSelf": rule.optional_old_given,
        });
        let this = declared.named("selfType");
        let old = if rule.optional_old { Kind::optional(this.clone()) } else { this.clone() };
        let names = Names { variables: vec![("self".into(), this), ("oldSelf".into(), old)], composed: Vec::new() };
        let times = place.times.unwrap_or(REQUEST / (declared.least_bytes + 1));
        match rule.program.check_sized(&names, Some(declared)) {
            Err(why) => {
                self.say(source, FieldError::invalid(&field, &shown, &format!("compilation failed: {why}")));
                return;
            }
            Ok(checked) if !checked.is_one_of(&["bool"]) => {
                self.say(source, FieldError::invalid(&field, &shown, "cel expression must evaluate to a bool"));
                return;
            }
            Ok(checked) => self.cost(source, &field, "estimated rule cost", checked.most().saturating_mul(times)),
        }
        if let Some(expression) = &rule.message_expression {
            match expression.check_sized(&names, Some(declared)) {
                Err(why) => {
                    let why = format!("messageExpression compilation failed: {why}");
                    self.say(source, FieldError::invalid(&message, &shown, &why));
                }
                Ok(checked) if !checked.is_one_of(&["string"]) => {
                    let why = "messageExpression must evaluate to a string";
                    self.say(source, FieldError::invalid(&message, &shown, why));
                }
                Ok(checked) => self.cost(source, &message, "estimated messageExpression cost", checked.most()),
            }
        }
        match (&place.uncorrelated, rule.uses_old) {
            (Some(within), true) => {
                let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
                self.say(source, FieldError::invalid(&field, &Value::from(source), &why));
            }
            (_, false) if rule.optional_old_given.is_some() => {
                let given = Value::from(rule.optional_old);
                let why = "may not be set if oldSelf is not used in rule";
                self.say(source, FieldError::invalid(&join(at, "optionalOldSelf"), &given, why));
            }
            _ => {}
        }
    }

    fn cost(&mut self, rule: &str, field: &str, what: &str, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost > RULE_LIMIT {
            self.say(rule, FieldError::forbidden(field, &too_dear(what, cost, RULE_LIMIT)));
        }
        if cost >= VERSION_LIMIT / 100 {
            self.dearest.push((cost, field.to_owned()));
            self.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.dearest.truncate(4);
        }
    }

    fn finish(mut self, path: &str) -> Vec<Finding> {
        if self.total > VERSION_LIMIT {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            for (_, field) in std::mem::take(&mut self.dearest) {
                self.say("", FieldError::forbidden(&field, why));
            }
            let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            self.say("", FieldError::forbidden(path, &too_dear(what, self.total, VERSION_LIMIT)));
        }
        self.found
    }
}

#[expect(clippy::cast_precision_loss, reason = "a factor for people to read")]
fn too_dear(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}
