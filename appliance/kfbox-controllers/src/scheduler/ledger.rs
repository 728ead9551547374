//! What each node's pods ask for, kept as they come and go, so that a decision reads sums and parses nothing. Invariant: a
//! node's sums are those of its pods in the ledger; a pod is on one node at most.

use super::{
    fit::{self, HostPort, Requests},
    storage,
    terms::{self, Term},
};
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// A pod that takes room on a node.
pub struct Held {
    pub pod: Arc<Pod>,
    pub node: String,
    pub requests: Requests,
    pub ports: Vec<HostPort>,
    pub claims: Vec<String>,
    /// Whom it keeps off its topology domain.
    pub repels: Vec<Term>,
    /// Decided by us, not yet seen bound.
    assumed: bool,
}

impl Held {
    fn new(pod: &Arc<Pod>, node: &str, assumed: bool) -> Self {
        Self {
            pod: pod.clone(),
            node: node.to_owned(),
            requests: fit::requests(pod),
            ports: fit::host_ports(pod),
            claims: storage::claim_names(pod),
            repels: terms::required(pod, true),
            assumed,
        }
    }

    pub fn priority(&self) -> i32 {
        fit::priority(&self.pod)
    }
}

#[derive(Default)]
struct OnNode {
    pods: HashSet<String>,
    used: Requests,
}

#[derive(Default)]
pub struct Ledger {
    held: HashMap<String, Held>,
    nodes: HashMap<String, OnNode>,
    repelling: HashSet<String>,
    with_ports: HashSet<String>,
    /// Pods for which others were pre-empted, and where: their room is not given to those of lower priority.
    nominated: HashMap<String, Held>,
}

impl Ledger {
    /// Takes the pod as it is now; whether it takes room.
    pub fn observe(&mut self, pod: &Arc<Pod>) -> bool {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if pods::is_finished(pod) {
            self.remove(&uid);
            self.nominated.remove(&uid);
            return false;
        }
        // Without a node after we assumed one: the binding is still under way.
        if let Some(node) = pods::node(pod) {
            self.nominated.remove(&uid);
            match self.held.get_mut(&uid).filter(|h| h.pod.spec == pod.spec && h.node == node) {
                // Requests are parsed once; a changed status does not change them.
                Some(held) => {
                    held.pod = pod.clone();
                    held.assumed = false;
                }
                None => self.insert(uid, Held::new(pod, node, false)),
            }
        } else if !self.is_assumed(&uid) {
            // As an earlier run left it.
            match pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).filter(|n| !n.is_empty()) {
                Some(node) if self.nominated.get(&uid).is_none_or(|h| h.node != node || h.pod.spec != pod.spec) => {
                    self.nominated.insert(uid, Held::new(pod, node, true));
                }
                _ => {}
            }
        }
        true
    }

    fn insert(&mut self, uid: String, held: Held) {
        self.remove(&uid);
        let node = self.nodes.entry(held.node.clone()).or_default();
        node.pods.insert(uid.clone());
        for (resource, amount) in &held.requests {
            *node.used.entry(resource.clone()).or_default() += amount;
        }
        if !held.repels.is_empty() {
            self.repelling.insert(uid.clone());
        }
        if !held.ports.is_empty() {
            self.with_ports.insert(uid.clone());
        }
        self.held.insert(uid, held);
    }

    fn remove(&mut self, uid: &str) {
        let Some(held) = self.held.remove(uid) else { return };
        self.repelling.remove(uid);
        self.with_ports.remove(uid);
        let Some(node) = self.nodes.get_mut(&held.node) else { return };
        node.pods.remove(uid);
        for (resource, amount) in &held.requests {
            if let Some(used) = node.used.get_mut(resource) {
                *used -= amount;
            }
        }
        if node.pods.is_empty() {
            self.nodes.remove(&held.node);
        }
    }

    pub fn forget(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.remove(uid);
        self.nominated.remove(uid);
    }

    pub fn assume(&mut self, pod: &Arc<Pod>, node: &str) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.nominated.remove(&uid);
        self.insert(uid, Held::new(pod, node, true));
    }

    pub fn unassume(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.remove(uid);
        }
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.held.get(uid).is_some_and(|h| h.assumed)
    }

    pub fn nominate(&mut self, pod: &Arc<Pod>, node: &str) {
        self.nominated.insert(pod.metadata.uid.clone().unwrap_or_default(), Held::new(pod, node, true));
    }

    /// Whether the pod had a nomination.
    pub fn withdraw(&mut self, uid: &str) -> bool {
        self.nominated.remove(uid).is_some()
    }

    pub fn nominated(&self) -> impl Iterator<Item = &Held> {
        self.nominated.values()
    }

    pub fn used(&self, node: &str, resource: &str) -> i128 {
        self.nodes.get(node).and_then(|n| n.used.get(resource)).copied().unwrap_or(0)
    }

    pub fn count(&self, node: &str) -> usize {
        self.nodes.get(node).map_or(0, |n| n.pods.len())
    }

    pub fn get(&self, uid: &str) -> Option<&Held> {
        self.held.get(uid)
    }

    pub fn on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Held> + use<'a> {
        self.nodes.get(node).into_iter().flat_map(|n| &n.pods).filter_map(|uid| self.held.get(uid))
    }

    pub fn all(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// Pods that keep others off.
    pub fn repelling(&self) -> impl Iterator<Item = &Held> {
        self.repelling.iter().filter_map(|uid| self.held.get(uid))
    }

    pub fn with_ports(&self) -> impl Iterator<Item = &Held> {
        self.with_ports.iter().filter_map(|uid| self.held.get(uid))
    }
}
