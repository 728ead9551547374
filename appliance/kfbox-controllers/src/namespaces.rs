//! Namespaces that are being deleted: empties them, then lets them go. Invariant: the finalizer `kubernetes` is dropped
//! only after a fresh look at all kinds found nothing left. Upstream:
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/>.

use crate::{
    cache,
    context::{Context, Registered},
    garbage::discovery::{self, Resource},
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PostParams, PropagationPolicy},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const WORKERS: usize = 4;
const FINALIZER: &str = "kubernetes";
/// Pods take their grace period; look again soon, as people wait for `kubectl delete namespace`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<String>::new();
    let q = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new.filter(|n| n.metadata.deletion_timestamp.is_some()) {
            q.add(namespace.metadata.name.clone().unwrap_or_default());
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("namespace", WORKERS, shutdown, move |name| reconcile(context.clone(), name)).await
    };
    ("namespace", Box::pin(run))
}

/// What is left in a namespace: objects by kind, and objects by finalizer.
#[derive(Default)]
struct Left {
    kinds: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.kinds.is_empty() && self.failures.is_empty()
    }
}

fn api(context: &Context, resource: &Resource, namespace: &str) -> Api<PartialObjectMeta<DynamicObject>> {
    Api::namespaced_with(context.client.clone(), namespace, &resource.api)
}

/// Asks for the deletion of all objects of the kind there, and notes what stays.
async fn empty(context: &Context, resource: &Resource, namespace: &str, left: &mut Left) {
    let api = api(context, resource, namespace);
    let name =
        format!("{}.{}", resource.api.plural, if resource.api.group.is_empty() { "core" } else { &resource.api.group });
    let list = async {
        let before = api.list_metadata(&ListParams::default()).await?;
        let pending: Vec<_> = before.items.iter().filter(|o| o.metadata.deletion_timestamp.is_none()).collect();
        if pending.is_empty() {
            return Ok(before);
        }
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        if resource.delete_collection {
            api.delete_collection(&params, &ListParams::default()).await?;
        } else {
            for object in pending {
                match api.delete(object.metadata.name.as_deref().unwrap_or_default(), &params).await {
                    Ok(_) => {}
                    Err(error) if write::is_missing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        api.list_metadata(&ListParams::default()).await
    };
    match list.await {
        Ok(list) => {
            if !list.items.is_empty() {
                left.kinds.insert(name, list.items.len());
            }
            for finalizer in list.items.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
                *left.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        // The kind went away, and its objects with it.
        Err(error) if write::is_missing(&error) => {}
        Err(error) => left.failures.push(format!("{name}: {error}")),
    }
}

/// Pods go first: what they mount, and what keeps others off them, outlives them.
async fn empty_all(context: &Context, resources: &[Arc<Resource>], namespace: &str, left: &mut Left) {
    let is_pods = |r: &Resource| r.api.group.is_empty() && r.api.plural == "pods";
    for resource in resources.iter().filter(|r| is_pods(r)) {
        empty(context, resource, namespace, left).await;
    }
    if !left.is_nothing() {
        return;
    }
    for resource in resources.iter().filter(|r| r.namespaced && !is_pods(r)) {
        empty(context, resource, namespace, left).await;
    }
}

async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(namespace) = caches.namespaces.get("", &name).filter(|n| n.metadata.deletion_timestamp.is_some()) else {
        return Ok(Outcome::Done);
    };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Outcome::Done);
    }
    let known = context.resources.borrow().clone();
    let mut left = Left::default();
    empty_all(&context, &known, &name, &mut left).await;
    if left.is_nothing() {
        let fresh: Vec<Arc<Resource>> = discovery::discover(&context.client).await?.into_iter().map(Arc::new).collect();
        empty_all(&context, &fresh, &name, &mut left).await;
    }
    let status = {
        let mut status = namespace.status.clone().unwrap_or_default();
        status.phase = Some("Terminating".into());
        status.conditions = Some(conditions(&status.conditions.unwrap_or_default(), &left, Timestamp::now()));
        status
    };
    if !left.is_nothing() {
        let old = namespace.status.clone().unwrap_or_default();
        write::status_of(&context.client, &caches.namespaces, &*namespace, &old, &status).await?;
        return Ok(Outcome::Again(LOOK_AGAIN));
    }
    finalize(&context, &name, cache::uid(&*namespace)).await?;
    Ok(Outcome::Done)
}

/// Drops our finalizer, by the subresource that alone may.
async fn finalize(context: &Context, name: &str, uid: &str) -> Result<(), WriteError> {
    let api = Api::<Namespace>::all(context.client.clone());
    let Some(mut live) = api.get_opt(name).await?.filter(|n| n.metadata.uid.as_deref() == Some(uid)) else {
        return Ok(());
    };
    if let Some(finalizers) = live.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    match api.replace_subresource("finalize", name, &PostParams::default(), &live).await {
        Ok(_) => Ok(()),
        Err(error) if write::is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn conditions(old: &[NamespaceCondition], left: &Left, now: Timestamp) -> Vec<NamespaceCondition> {
    let count = |map: &BTreeMap<String, usize>, form: &dyn Fn(&String, usize) -> String| {
        map.iter().map(|(name, n)| form(name, *n)).collect::<Vec<_>>().join(", ")
    };
    let contents = count(&left.kinds, &|kind, n| format!("{kind} has {n} resource instances"));
    let finalizers = count(&left.finalizers, &|finalizer, n| format!("{finalizer} in {n} resource instances"));
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if left.failures.is_empty() {
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            )
        } else {
            (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    left.failures.len(),
                    left.failures.join(", ")
                ),
            )
        },
        if contents.is_empty() {
            ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {contents}"),
            )
        },
        if finalizers.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {finalizers}"),
            )
        },
    ];
    all.into_iter()
        .map(|(kind, yes, reason, message)| {
            let value = if yes { "True" } else { "False" };
            let since =
                old.iter().find(|c| c.type_ == kind && c.status == value).and_then(|c| c.last_transition_time.clone());
            NamespaceCondition {
                type_: kind.into(),
                status: value.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::at;

    #[test]
    fn conditions_say_what_is_left_and_since_when() {
        let mut left = Left::default();
        left.kinds.insert("pods.core".into(), 2);
        left.finalizers.insert("example.org/hold".into(), 1);
        let first = conditions(&[], &left, at(0));
        let remaining = first.iter().find(|c| c.type_ == "NamespaceContentRemaining").unwrap();
        assert_eq!(
            (remaining.status.as_str(), remaining.message.as_deref()),
            ("True", Some("Some resources are remaining: pods.core has 2 resource instances"))
        );
        let second = conditions(&first, &left, at(9));
        assert_eq!(first, second);
        let done = conditions(&second, &Left::default(), at(20));
        assert!(done.iter().all(|c| c.status == "False"));
        assert_eq!(done[3].last_transition_time, Some(Time(at(20))));
    }
}
