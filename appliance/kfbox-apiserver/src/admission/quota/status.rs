//! The statuses of quotas: what is allowed and what is used, brought up to date after every write in their namespace, and
//! every few minutes for what changes by time alone. Admission does not read them; people and controllers do.

use super::{IGNORED, ledger::Write, usage::Tracks};
use crate::{
    admission::amounts,
    handle::own_call,
    object::meta,
    server::Core,
    status::ApiError,
    verbs::{self, Modification},
};
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc, time::Duration};

/// Upstream's `--resource-quota-sync-period`.
const RESYNC: Duration = Duration::from_secs(300);

/// After a write that failed, for example since the disk is full.
const RETRY: Duration = Duration::from_secs(2);

pub fn after_write(core: &Core, collection: &str, namespace: &str) {
    if namespace.is_empty() || collection == IGNORED {
        return;
    }
    let quotas = core.store.list("resourcequotas", Some(namespace), None, None);
    if collection == "resourcequotas" || quotas.is_ok_and(|quotas| !quotas.objects.is_empty()) {
        core.quotas.mark(namespace);
    }
}

pub fn start(core: &Arc<Core>) {
    let (weak, quotas, shutdown) = (Arc::downgrade(core), core.quotas.clone(), core.shutdown.clone());
    core.tasks.essential("resource-quotas", async move {
        // The first tick comes at once: what was written just before a crash.
        let mut resync = tokio::time::interval(RESYNC);
        let mut retry = false;
        loop {
            let again = async { if retry { tokio::time::sleep(RETRY).await } else { std::future::pending().await } };
            let all = tokio::select! {
                () = shutdown.cancelled() => return Ok::<_, Infallible>(()),
                _ = resync.tick() => true,
                () = quotas.wake.notified(), if !retry => false,
                () = again => false,
            };
            let Some(core) = weak.upgrade() else {
                shutdown.cancelled().await;
                return Ok(());
            };
            if all && let Ok(every) = core.store.list("resourcequotas", None, None, None) {
                every.objects.iter().for_each(|quota| quotas.mark(&quota.key.namespace));
            }
            retry = false;
            for namespace in quotas.take_marked() {
                if let Err(error) = refresh(&core, &namespace).await {
                    tracing::warn!(namespace = &*namespace, %error, "the statuses of quotas were not written");
                    quotas.mark(&namespace);
                    retry = true;
                }
            }
        }
    });
}

async fn refresh(core: &Arc<Core>, namespace: &str) -> Result<(), ApiError> {
    let stored = core.store.list("resourcequotas", Some(namespace), None, None)?.objects;
    if stored.is_empty() {
        core.quotas.forget(namespace);
        return Ok(());
    }
    for quota in stored {
        let value = quota.value();
        if is_current(&value, &status(core, &value)) {
            continue;
        }
        let Some(resource) = core.resources.current().find("", "v1", "resourcequotas").cloned() else { break };
        let mut call = own_call(core, resource, namespace, &quota.key.name);
        call.target.subresource = "status".into();
        let how = Modification { subresource: "status", track: true, replace: false };
        let written = verbs::modify(&call, &how, |old| {
            let mut new = old.clone();
            new["status"] = status(core, old);
            Ok(new)
        });
        match written.await {
            // Deleted meanwhile, or written so often that the next round is due anyway.
            Err(error) if matches!(error.reason(), "NotFound" | "Conflict") => {}
            result => drop(result?),
        }
    }
    Ok(())
}

fn status(core: &Core, quota: &Value) -> Value {
    let hard = &quota["spec"]["hard"];
    let registry = core.resources.current();
    let is_served = |collection: &str| registry.all().any(|r| r.namespaced && *r.collection == *collection);
    let names: Vec<&String> = hard
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .filter(|name| match Tracks::of(name) {
            Some(Tracks::Count(collection)) => collection != IGNORED && is_served(&collection),
            other => other.is_some(),
        })
        .collect();
    let namespace = meta(quota, "namespace");
    let now = chrono::Utc::now().timestamp();
    let ledger = core.quotas.of(namespace);
    let used = ledger.lock().used(&core.store, namespace, quota, names.into_iter(), now, Write::Not);
    let mut status = json!({"used": amounts::to_value(&used)});
    if hard.is_object() {
        status["hard"] = hard.clone();
    }
    status
}

fn is_current(quota: &Value, status: &Value) -> bool {
    ["hard", "used"].iter().all(|part| amounts::of(&quota["status"][part]) == amounts::of(&status[part]))
}

/// Waits until a quota's status is what it should be; for tests.
#[cfg(test)]
pub async fn settled(core: &Arc<Core>, namespace: &str, name: &str) -> Value {
    let (_, mut watcher) = core.store.list_and_watch("resourcequotas", Some(namespace));
    loop {
        let quota = core
            .store
            .get("resourcequotas", &crate::store::Key::new(namespace, name))
            .map(|q| q.value())
            .unwrap_or_default();
        if is_current(&quota, &status(core, &quota)) && quota["status"].is_object() {
            return quota;
        }
        watcher.next().await.ok();
    }
}
