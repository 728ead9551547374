//! Which components are up. `kfbox up`, `kfbox status`, the dashboard and systemd all read the same snapshot.

use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Instant};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    Ready,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    pub name: String,
    pub state: State,
    /// What it is doing, or why it failed; empty when there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Milliseconds from registration to ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// The registry. Cloning shares it.
#[derive(Clone)]
pub struct Readiness {
    state: Arc<watch::Sender<Vec<ComponentStatus>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(Vec::new())) }
    }
}

impl Readiness {
    /// Registers a component as starting. Names appear in the order of registration.
    pub fn component(&self, name: impl Into<String>) -> Component {
        let name = name.into();
        self.state.send_modify(|all| {
            all.retain(|c| c.name != name);
            all.push(ComponentStatus {
                name: name.clone(),
                state: State::Starting,
                message: String::new(),
                took_ms: None,
            });
        });
        Component { readiness: self.clone(), name, since: Instant::now() }
    }

    pub fn snapshot(&self) -> Vec<ComponentStatus> {
        self.state.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Vec<ComponentStatus>> {
        self.state.subscribe()
    }

    /// True once at least one component is registered and all are ready.
    pub fn is_ready(&self) -> bool {
        let all = self.state.borrow();
        !all.is_empty() && all.iter().all(|c| c.state == State::Ready)
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut ComponentStatus)) {
        self.state.send_modify(|all| {
            if let Some(status) = all.iter_mut().find(|c| c.name == name) {
                change(status);
            }
        });
    }
}

/// One component's own handle on its status.
pub struct Component {
    readiness: Readiness,
    name: String,
    since: Instant,
}

impl Component {
    /// Still starting; says at what.
    pub fn progress(&self, message: impl Into<String>) {
        let message = message.into();
        self.readiness.update(&self.name, |c| c.message = message);
    }

    pub fn ready(&self) {
        let took = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.readiness.update(&self.name, |c| {
            c.state = State::Ready;
            c.message.clear();
            c.took_ms.get_or_insert(took);
        });
    }

    pub fn failed(&self, why: impl Into<String>) {
        let why = why.into();
        self.readiness.update(&self.name, |c| {
            c.state = State::Failed;
            c.message = why;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_component_is() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        let (a, b) = (readiness.component("a"), readiness.component("b"));
        a.ready();
        assert!(!readiness.is_ready());
        b.failed("no disk");
        assert_eq!(readiness.snapshot()[1].message, "no disk");
        b.ready();
        assert!(readiness.is_ready());
    }
}
