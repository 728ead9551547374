//! The `authorizer` of policies: asks RBAC from within an expression (apiserver `pkg/cel/library/authz.go`).

use super::{Cel, CelError, eval::Meter, values::text};
use crate::auth::Rbac;
use kfbox_base::{Decision, ResourceAttributes, UserInfo};
use kube_cel::cel::objects::Opaque;
use std::sync::Arc;

/// Upstream's price, which allows two checks an expression.
const CHECK_COST: u64 = 350_000;

#[derive(Clone)]
pub struct Authorizer {
    rbac: Arc<Rbac>,
    user: UserInfo,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("user", &self.user.username).finish_non_exhaustive()
    }
}

impl PartialEq for Authorizer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rbac, &other.rbac) && self.user.username == other.user.username
    }
}
impl Eq for Authorizer {}

impl Opaque for Authorizer {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PathCheck(Authorizer, String);

impl Opaque for PathCheck {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.PathCheck"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupCheck(Authorizer, String);

impl Opaque for GroupCheck {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.GroupCheck"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResourceCheck(Authorizer, ResourceAttributes);

impl Opaque for ResourceCheck {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.ResourceCheck"
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    allowed: bool,
    reason: String,
}

impl Opaque for Verdict {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

fn opaque(value: impl Opaque) -> Cel {
    Cel::Opaque(Arc::new(value))
}

impl Authorizer {
    pub fn new(rbac: Arc<Rbac>, user: UserInfo) -> Self {
        Self { rbac, user }
    }

    pub fn value(&self) -> Cel {
        opaque(self.clone())
    }

    /// `authorizer.requestResource`: the resource that the request is for.
    pub fn request_resource(&self, attributes: ResourceAttributes) -> Cel {
        opaque(ResourceCheck(self.clone(), attributes))
    }

    fn decided(decision: Decision) -> Cel {
        opaque(match decision {
            Decision::Allow => Verdict { allowed: true, reason: String::new() },
            Decision::Deny(reason) => Verdict { allowed: false, reason },
        })
    }
}

/// None where the target is nothing of these, so that another function of the name is meant.
pub fn call(name: &str, target: &dyn Opaque, arguments: &[Cel], meter: &mut Meter) -> Option<Result<Cel, CelError>> {
    let mut words = Vec::with_capacity(arguments.len());
    for argument in arguments {
        match argument {
            Cel::String(word) => words.push(word.as_str()),
            _ => words.push("\0"),
        }
    }
    if let Some(authorizer) = target.downcast_ref::<Authorizer>() {
        return Some(match (name, &words[..]) {
            (_, words) if words.contains(&"\0") => Err(CelError::NoSuchOverload),
            ("path", [""]) => Err(CelError::failed("path must not be empty")),
            ("path", [path]) => Ok(opaque(PathCheck(authorizer.clone(), (*path).to_owned()))),
            ("group", [group]) => Ok(opaque(GroupCheck(authorizer.clone(), (*group).to_owned()))),
            ("serviceAccount", [namespace, name]) => service_account(authorizer, namespace, name),
            _ => Err(CelError::NoSuchOverload),
        });
    }
    if let Some(check) = target.downcast_ref::<PathCheck>() {
        return Some(match (name, &words[..]) {
            ("check", [verb]) if *verb != "\0" => meter
                .charge(CHECK_COST)
                .map(|()| Authorizer::decided(check.0.rbac.authorize_url(&check.0.user, verb, &check.1))),
            _ => Err(CelError::NoSuchOverload),
        });
    }
    if let Some(check) = target.downcast_ref::<GroupCheck>() {
        return Some(match (name, &words[..]) {
            ("resource", [""]) => Err(CelError::failed("resource must not be empty")),
            ("resource", [resource]) if *resource != "\0" => Ok(opaque(ResourceCheck(
                check.0.clone(),
                ResourceAttributes {
                    group: check.1.clone(),
                    resource: (*resource).to_owned(),
                    ..ResourceAttributes::default()
                },
            ))),
            _ => Err(CelError::NoSuchOverload),
        });
    }
    if let Some(check) = target.downcast_ref::<ResourceCheck>() {
        return Some(resource(check, name, &words, meter));
    }
    let verdict = target.downcast_ref::<Verdict>()?;
    Some(match (name, &words[..]) {
        ("allowed", []) => Ok(Cel::Bool(verdict.allowed)),
        ("reason", []) => Ok(text(verdict.reason.clone())),
        ("errored", []) => Ok(Cel::Bool(false)),
        ("error", []) => Ok(text("")),
        _ => Err(CelError::NoSuchOverload),
    })
}

fn service_account(authorizer: &Authorizer, namespace: &str, name: &str) -> Result<Cel, CelError> {
    if !crate::schema::is_dns_subdomain(name) {
        return Err(CelError::failed("Invalid service account name"));
    }
    if !crate::schema::is_dns_subdomain(namespace) || namespace.contains('.') || namespace.len() > 63 {
        return Err(CelError::failed("Invalid service account namespace"));
    }
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    let user = UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), groups);
    Ok(opaque(Authorizer { rbac: authorizer.rbac.clone(), user }))
}

fn resource(check: &ResourceCheck, name: &str, words: &[&str], meter: &mut Meter) -> Result<Cel, CelError> {
    let [word] = words else { return Err(CelError::NoSuchOverload) };
    if *word == "\0" {
        return Err(CelError::NoSuchOverload);
    }
    let mut next = check.clone();
    let word = (*word).to_owned();
    match name {
        "subresource" => next.1.subresource = word,
        "namespace" => next.1.namespace = word,
        "name" => next.1.name = word,
        // RBAC looks at no selectors: they narrow a request and change no answer.
        "fieldSelector" | "labelSelector" => meter.charge(word.len() as u64)?,
        "check" => {
            meter.charge(CHECK_COST)?;
            next.1.verb = word;
            return Ok(Authorizer::decided(check.0.rbac.authorize(&check.0.user, &next.1)));
        }
        _ => return Err(CelError::NoSuchOverload),
    }
    Ok(opaque(next))
}
