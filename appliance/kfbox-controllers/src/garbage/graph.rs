//! Who owns whom. Pure: changes come in, uids to look at come out.

use super::discovery::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

#[derive(Debug, Clone)]
pub struct Node {
    pub resource: Arc<Resource>,
    pub namespace: Option<String>,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

impl Node {
    fn of(resource: Arc<Resource>, meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        Self {
            resource,
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// It waits for its dependents to go.
    pub fn waits(&self) -> bool {
        self.deleting && self.foreground
    }
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Whether a dependent asks `uid` to wait for it.
    pub fn is_blocked(&self, uid: &str) -> bool {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|d| self.nodes.get(d))
            .any(|dependent| dependent.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
    }

    /// Takes an object as it is now; the uids to look at.
    pub fn apply(&mut self, resource: &Arc<Resource>, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let node = Node::of(resource.clone(), meta);
        let mut look = Vec::new();
        let before = self.nodes.get(&uid).map(|n| n.owners.clone()).unwrap_or_default();
        for owner in before.iter().filter(|o| node.owners.iter().all(|n| n.uid != o.uid)) {
            self.unlink(&owner.uid, &uid);
            // One that waited for this object may be free now.
            if self.nodes.get(&owner.uid).is_some_and(Node::waits) {
                look.push(owner.uid.clone());
            }
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            match self.nodes.get(&owner.uid) {
                Some(owner_node) if owner_node.waits() => {
                    look.push(owner.uid.clone());
                    look.push(uid.clone());
                }
                Some(_) => {}
                None => look.push(uid.clone()),
            }
        }
        if node.owners != before && !node.owners.is_empty() {
            look.push(uid.clone());
        }
        if node.deleting && (node.foreground || node.orphan) {
            look.push(uid.clone());
            if node.foreground {
                look.extend(self.dependents(&uid));
            }
        }
        self.nodes.insert(uid, node);
        look.sort();
        look.dedup();
        look
    }

    /// The object is gone; the uids to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut look = self.dependents(uid);
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(Node::waits) {
                look.push(owner.uid.clone());
            }
        }
        look
    }

    /// The uids of a kind, to find what a new list no longer has.
    pub fn of_resource(&self, id: &str) -> HashSet<String> {
        self.nodes.iter().filter(|(_, n)| n.resource.id() == id).map(|(uid, _)| uid.clone()).collect()
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    #[cfg(test)]
    pub fn links(&self) -> usize {
        self.dependents.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use kube::discovery::ApiResource;
    use serde_json::{Value, json};

    fn resource() -> Arc<Resource> {
        let api = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        Arc::new(Resource { api, namespaced: true, delete_collection: true })
    }

    fn meta(uid: &str, owners: &[(&str, bool)], more: Value) -> ObjectMeta {
        let owners: Vec<Value> = owners
            .iter()
            .map(|(uid, block)| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": block }))
            .collect();
        let mut value = json!({ "name": uid, "namespace": "n", "uid": uid, "ownerReferences": owners });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object(value)
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let (mut graph, kind) = (Graph::default(), resource());
        assert!(graph.apply(&kind, &meta("owner", &[], json!({}))).is_empty());
        assert_eq!(graph.apply(&kind, &meta("child", &[("owner", false)], json!({}))), ["child"]);
        assert_eq!(graph.remove("owner"), ["child"]);
        // Its owner is unknown now: each news of it asks for a look.
        assert_eq!(graph.apply(&kind, &meta("child", &[("owner", false)], json!({}))), ["child"]);
        graph.remove("child");
        assert_eq!(graph.links(), 0);
        assert!(graph.remove("child").is_empty());
    }

    #[test]
    fn an_owner_in_the_foreground_waits_for_those_that_block_it() {
        let (mut graph, kind) = (Graph::default(), resource());
        graph.apply(&kind, &meta("owner", &[], json!({})));
        graph.apply(&kind, &meta("a", &[("owner", true)], json!({})));
        graph.apply(&kind, &meta("b", &[("owner", false)], json!({})));
        let leaving = json!({ "deletionTimestamp": at(0).to_string(), "finalizers": [FOREGROUND] });
        assert_eq!(graph.apply(&kind, &meta("owner", &[], leaving)), ["a", "b", "owner"]);
        assert!(graph.is_blocked("owner"));
        assert_eq!(graph.remove("a"), ["owner"]);
        assert!(!graph.is_blocked("owner"));
        assert_eq!(graph.apply(&kind, &meta("b", &[], json!({}))), ["owner"]);
    }
}
