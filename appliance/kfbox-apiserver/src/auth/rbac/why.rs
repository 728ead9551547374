//! Why something is allowed, in upstream's words (`plugin/pkg/auth/authorizer/rbac`): for the audit log.

use super::{Rbac, Rule, Subject, is_master};
use kfbox_base::{ResourceAttributes, UserInfo};

/// What is asked about.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    Resource(&'a ResourceAttributes),
    Path { verb: &'a str, path: &'a str },
}

impl Asked<'_> {
    fn allowed_by(&self, rule: &Rule) -> bool {
        match self {
            Self::Resource(wanted) => rule.allows(wanted),
            Self::Path { verb, path } => rule.allows_url(verb, path),
        }
    }
}

impl Rbac {
    /// The binding that allows it; empty when none is needed or none does.
    pub fn why(&self, user: &UserInfo, asked: Asked<'_>) -> String {
        if is_master(user) {
            return String::new();
        }
        let namespace = match asked {
            Asked::Resource(wanted) => &*wanted.namespace,
            Asked::Path { .. } => "",
        };
        let index = self.index.read();
        let subjects = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().map(|g| Subject::Group(g.clone())));
        for subject in subjects {
            let Some(namespaces) = index.by_subject.get(&subject) else { continue };
            for scope in std::iter::once("").chain((!namespace.is_empty()).then_some(namespace)) {
                for name in namespaces.get(scope).into_iter().flatten() {
                    let Some(bound) = index.bindings.get(&(scope.to_owned(), name.clone())) else { continue };
                    let rules = index.effective(&bound.role);
                    if !rules.is_some_and(|rules| rules.iter().any(|rule| asked.allowed_by(rule))) {
                        continue;
                    }
                    let role = if bound.role.0.is_empty() { "ClusterRole" } else { "Role" };
                    let binding = match scope {
                        "" => format!("ClusterRoleBinding {name:?}"),
                        scope => format!("RoleBinding {:?}", format!("{name}/{scope}")),
                    };
                    let to = match (&subject, user.service_account()) {
                        (Subject::User(_), Some((namespace, name))) => {
                            format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
                        }
                        (Subject::User(name), None) => format!("User {name:?}"),
                        (Subject::Group(name), _) => format!("Group {name:?}"),
                    };
                    return format!("RBAC: allowed by {binding} of {role} {:?} to {to}", bound.role.1);
                }
            }
        }
        String::new()
    }
}
