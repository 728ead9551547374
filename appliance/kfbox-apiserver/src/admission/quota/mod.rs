//! ResourceQuota: what would take a namespace beyond a quota is refused, and each quota's status says what is used.
//!
//! Guarantees: a quota is never exceeded, however many writes race: what is used is what the store holds plus what was
//! admitted and is still being written, counted under one lock a namespace. Nothing drifts, since no counter is kept; what
//! is deleted is free for others at once. Upstream keeps the count in the quota's status instead, with a write to it before
//! each other write: <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

mod ledger;
mod status;
mod usage;

pub use ledger::{Charge, Quotas};
#[cfg(test)]
pub use status::settled;
pub use status::{after_write, start};

use super::{
    Request,
    amounts::{self, Amounts, Quantity},
};
use crate::{object::meta, status::ApiError};
use ledger::Write;
use serde_json::Value;
use std::sync::Arc;
use usage::{Facts, Tracks, missing};

/// Their number is bounded by their age, so no quota speaks of them.
const IGNORED: &str = "events";

/// Whether a write of this kind can cost anything.
fn can_cost(tracks: &Tracks, request: &Request) -> bool {
    matches!(
        (tracks, request.subresource, request.old),
        (_, "", None) | (Tracks::Services | Tracks::Claims, "", Some(_)) | (Tracks::Pods, "resize", Some(_))
    )
}

/// Takes what the object costs from every quota that means it. The charge must be held until the write is answered.
pub fn charge(request: &Request, object: &Value) -> Result<Option<Charge>, ApiError> {
    let call = request.call;
    let (namespace, collection) = (call.namespace(), &*call.resource.collection);
    let tracks = Tracks::of_collection(collection);
    if namespace.is_empty() || collection == IGNORED || !can_cost(&tracks, request) {
        return Ok(None);
    }
    let store = &call.core.store;
    let quotas = store.list("resourcequotas", Some(namespace), None, None)?.objects;
    if quotas.is_empty() {
        return Ok(None);
    }
    let now = chrono::Utc::now().timestamp();
    let facts = Arc::new(Facts::of(&tracks, object));
    let before = request.old.map(|old| Facts::of(&tracks, old));

    let mut concerned: Vec<(Value, Amounts)> = Vec::new();
    for quota in quotas.iter().map(|quota| quota.value()) {
        let mut hard = amounts::of(&quota["spec"]["hard"]);
        hard.retain(|name, _| Tracks::of(name).as_ref() == Some(&tracks));
        if hard.is_empty() || !facts.is_in(&quota) {
            continue;
        }
        if tracks == Tracks::Pods
            && let Some(why) = missing(object, hard.keys())
        {
            return Err(request.forbid(format!("failed quota: {}: {why}", meta(&quota, "name"))));
        }
        concerned.push((quota, hard));
    }

    let ledger = call.core.quotas.of(namespace);
    let mut open = ledger.lock();
    let mut costs = false;
    for (quota, hard) in &concerned {
        let old = before.as_ref().filter(|old| old.is_in(quota)).map(|old| old.at(now)).unwrap_or_default();
        let requested: Amounts = facts
            .at(now)
            .into_iter()
            .filter(|(name, _)| hard.contains_key(name))
            .map(|(name, amount)| {
                let had = old.get(&name).copied().unwrap_or(Quantity::ZERO);
                (name, amount.beyond(had))
            })
            .filter(|(_, amount)| !amount.is_zero())
            .collect();
        if requested.is_empty() {
            continue;
        }
        costs = true;
        let used = open.used(store, namespace, quota, requested.keys(), now, Write::Also);
        let exceeded = |name: &String| {
            let total = used.get(name).copied().unwrap_or(Quantity::ZERO).plus(requested[name]);
            hard.get(name).is_some_and(|limit| total > *limit)
        };
        let over: Vec<&String> = requested.keys().filter(|name| exceeded(name)).collect();
        if !over.is_empty() {
            let masked = |list: &Amounts| {
                let part = over.iter().filter_map(|name| Some(((*name).clone(), *list.get(*name)?))).collect();
                amounts::listed(&part)
            };
            return Err(request.forbid(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                meta(quota, "name"),
                masked(&requested),
                masked(&used),
                masked(hard)
            )));
        }
    }
    if !costs || call.dry_run {
        return Ok(None);
    }
    let id = open.expect(collection, object, request.old, facts);
    drop(open);
    Ok(Some(Charge::new(ledger, id)))
}
