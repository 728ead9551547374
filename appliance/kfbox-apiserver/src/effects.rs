//! What follows from a write inside this process: the statuses of quotas, the RBAC index and the served custom resources.
//! The last two are brought to the newest state under one lock, so that writes finishing out of order end up the same.

use crate::{aggregation, crds, flow, server::Core, store::Object, verbs::Call};

pub const CRDS: &str = "customresourcedefinitions.apiextensions.k8s.io";

const RBAC: [(&str, &str); 4] = [
    ("roles.rbac.authorization.k8s.io", "Role"),
    ("rolebindings.rbac.authorization.k8s.io", "RoleBinding"),
    ("clusterroles.rbac.authorization.k8s.io", "ClusterRole"),
    ("clusterrolebindings.rbac.authorization.k8s.io", "ClusterRoleBinding"),
];

/// Reads everything at start.
pub fn load(core: &Core) {
    for (collection, _) in RBAC {
        if let Ok(snapshot) = core.store.list(collection, None, None, None) {
            snapshot.objects.iter().for_each(|o| core.rbac.observe(&o.value()));
        }
    }
    core.flow.configure(&core.store);
    if let Ok(snapshot) = core.store.list(CRDS, None, None, None) {
        let served = snapshot.objects.iter().map(|o| (o.key.name.to_string(), crds::served(o)));
        core.resources.set_all_custom(served);
    }
    core.dynamic.load(&core.store);
}

pub fn after_write(call: &Call, object: &Object) {
    let core = &call.core;
    let collection = &*call.resource.collection;
    let key = &object.key;
    crate::admission::quota::after_write(core, collection, &key.namespace);
    if let Some((_, kind)) = RBAC.iter().find(|(c, _)| *c == collection) {
        let _order = core.effects.lock();
        match core.store.get(collection, key) {
            Some(current) => core.rbac.observe(&current.value()),
            None => core.rbac.forget(kind, &key.namespace, &key.name),
        }
    } else if matches!(collection, flow::SCHEMAS | flow::LEVELS) {
        let _order = core.effects.lock();
        core.flow.configure(&core.store);
    } else if crate::admission::dynamic::is_configuration(collection) {
        let _order = core.effects.lock();
        core.dynamic.load(&core.store);
        crate::admission::policies::after_write(call, object);
    } else if collection == aggregation::COLLECTION {
        let _order = core.effects.lock();
        core.aggregation.observe(core, &key.name);
    } else if collection == CRDS {
        let _order = core.effects.lock();
        let current = core.store.get(collection, key);
        core.resources.set_custom(&key.name, current.as_deref().map(crds::served).unwrap_or_default());
        if current.is_some_and(|crd| crate::object::is_deleting(&crd.value())) {
            crds::clean_up(core, &key.name);
        }
    }
}
