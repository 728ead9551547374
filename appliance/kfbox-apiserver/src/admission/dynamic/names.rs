//! The types of what policies and match conditions may name (apiserver `pkg/admission/plugin/cel/compile.go`).

use crate::cel::{
    Expression, Scope,
    check::{AUTHORIZER, Checked, Decl, Names, RESOURCE_CHECK, Type, placed},
    on_deep_stack,
};
use std::sync::{Arc, LazyLock};

fn dynamic() -> Arc<Decl> {
    Decl::scalar(Type::Dyn, 0, 2)
}

/// `request`.
fn request() -> Arc<Decl> {
    let text = Decl::text;
    let kind = || Decl::object([("group", text()), ("version", text()), ("kind", text())]);
    let resource = || Decl::object([("group", text()), ("version", text()), ("resource", text())]);
    let user = Decl::object([
        ("username", text()),
        ("uid", text()),
        ("groups", Decl::list(text(), 0)),
        ("extra", Decl::map(Decl::list(text(), 0), 0)),
    ]);
    Decl::object([
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        ("userInfo", user),
        ("dryRun", Decl::scalar(Type::Bool, 0, 4)),
        ("options", dynamic()),
    ])
}

/// `namespaceObject`. Its times are texts to evaluation, and instants to upstream: either spelling passes.
fn namespace() -> Arc<Decl> {
    let text = Decl::text;
    let texts = || Decl::list(text(), 0);
    let number = || Decl::scalar(Type::Int, 0, 1);
    let condition = Decl::object([
        ("status", text()),
        ("type", text()),
        ("lastTransitionTime", dynamic()),
        ("message", text()),
        ("reason", text()),
    ]);
    let metadata = Decl::object([
        ("name", text()),
        ("generateName", text()),
        ("namespace", text()),
        ("labels", Decl::map(text(), 0)),
        ("annotations", Decl::map(text(), 0)),
        // Upstream writes it so; the object says `uid`.
        ("UID", text()),
        ("uid", text()),
        ("creationTimestamp", dynamic()),
        ("deletionGracePeriodSeconds", number()),
        ("deletionTimestamp", dynamic()),
        ("generation", number()),
        ("resourceVersion", text()),
        ("finalizers", texts()),
    ]);
    Decl::object([
        ("metadata", metadata),
        ("spec", Decl::object([("finalizers", texts())])),
        ("status", Decl::object([("conditions", Decl::list(condition, 0)), ("phase", text())])),
    ])
}

/// Names with their types; `object` and `oldObject` are of the given one, else of any.
pub fn typed(object: Option<Type>) -> Names {
    static KNOWN: LazyLock<(Type, Type)> =
        LazyLock::new(|| (request().named("kubernetes.AdmissionRequest"), namespace().named("kubernetes.Namespace")));
    let object = object.unwrap_or(Type::Dyn);
    let (request, namespace) = KNOWN.clone();
    let variables = [
        ("object", object.clone()),
        ("oldObject", object),
        ("request", request),
        ("namespaceObject", namespace),
        ("authorizer", AUTHORIZER),
        ("authorizer.requestResource", RESOURCE_CHECK),
    ];
    Names { variables: variables.map(|(name, kind)| (name.to_owned(), kind)).to_vec(), composed: Vec::new() }
}

/// Compiles and checks what is about to be stored; the error is what upstream says. Without kinds it may yield anything.
pub fn compile(source: &str, scope: &Scope<'_>, names: &Names, kinds: &[&str]) -> Result<Checked, String> {
    let compiled = on_deep_stack(|| {
        let expression = Expression::compile(source, scope).map_err(|error| placed(source, &error))?;
        expression.check(names)
    });
    let checked = compiled
        .unwrap_or_else(|| Err("the expression cannot be parsed".to_owned()))
        .map_err(|error| format!("compilation failed: {error}"))?;
    if kinds.is_empty() || checked.is_one_of(kinds) {
        return Ok(checked);
    }
    Err(match kinds {
        [one] => format!("must evaluate to {one} but got {}", checked.kind),
        many => format!("must evaluate to one of [{}] but got {}", many.join(" "), checked.kind),
    })
}
