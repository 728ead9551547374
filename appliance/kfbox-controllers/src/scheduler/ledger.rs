//! What each node's pods ask for, kept as they come and go, so that a decision sums numbers and parses nothing.

use super::fit::{self, Requests};
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use std::{collections::HashMap, sync::Arc};

/// A pod that takes room on a node.
pub struct Held {
    pub pod: Arc<Pod>,
    pub node: String,
    pub requests: Requests,
    pub ports: Vec<fit::HostPort>,
    /// Decided by us, not yet seen bound.
    assumed: bool,
}

#[derive(Default)]
pub struct Ledger {
    held: HashMap<String, Held>,
}

impl Ledger {
    /// Takes the pod as it is now; whether it takes room.
    pub fn observe(&mut self, pod: &Arc<Pod>) -> bool {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if pods::is_finished(pod) {
            self.held.remove(&uid);
            return false;
        }
        // Without a node after we assumed one: the binding is still under way.
        if let Some(node) = pods::node(pod) {
            let same = self.held.get(&uid).filter(|h| h.pod.spec == pod.spec && h.node == node);
            // Requests are parsed once; a changed status does not change them.
            let (requests, ports) = match same {
                Some(held) => (held.requests.clone(), held.ports.clone()),
                None => (fit::requests(pod), fit::host_ports(pod)),
            };
            let held = Held { pod: pod.clone(), node: node.to_owned(), requests, ports, assumed: false };
            self.held.insert(uid, held);
        }
        true
    }

    pub fn forget(&mut self, pod: &Pod) {
        self.held.remove(pod.metadata.uid.as_deref().unwrap_or_default());
    }

    pub fn assume(&mut self, pod: &Arc<Pod>, node: &str) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let held = Held {
            pod: pod.clone(),
            node: node.into(),
            requests: fit::requests(pod),
            ports: fit::host_ports(pod),
            assumed: true,
        };
        self.held.insert(uid, held);
    }

    pub fn unassume(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.held.remove(uid);
        }
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.held.get(uid).is_some_and(|h| h.assumed)
    }

    pub fn on_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Held> {
        self.held.values().filter(move |h| h.node == node)
    }

    pub fn all(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }
}
