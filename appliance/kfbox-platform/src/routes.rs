//! Ways through the gateway to the Services of people's namespaces, as VirtualServices and HTTPRoutes describe them, and
//! AuthorizationPolicies narrow them.
//!
//! Guarantees: a namespace's objects give paths below `/WORD/NAMESPACE` alone, and lead to its own pods alone; what of an
//! object does not count is said in its status. Deciding (the modules that read) is apart from watching and writing.

mod authentication;
mod backends;
mod definitions;
mod http_route;
mod policy;
mod read;
mod virtual_service;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub(crate) use definitions::ALL as DEFINITIONS;
pub use policy::Asked;
pub use read::HeaderChanges;

use backends::Backends;
use chrono::{SecondsFormat, Utc};
use definitions::{AUTHORIZATION_POLICY, Definition, GATEWAY, HTTP_ROUTE, REQUEST_AUTHENTICATION, VIRTUAL_SERVICE};
use futures::{StreamExt as _, future::BoxFuture};
use http::HeaderValue;
use kfbox_base::{BoxError, Tasks};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        reflector::{Store, store::Writer},
        watcher,
    },
};
use parking_lot::RwLock;
use policy::Policy;
use read::{Problems, Way};
use serde_json::{Value, json};
use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};
use virtual_service::Place;

/// Changes that are looked at together.
const TOGETHER: usize = 256;
/// A status that could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);
/// The name of this part in statuses.
const CONTROLLER: &str = "kfbox.local/gateway";
const ACCEPTED: &str = "Accepted";
const UNSUPPORTED: &str = "Unsupported";
/// A status holds the beginning of what is to be said.
const LONGEST_MESSAGE: usize = 2000;

/// What routes must know of the box.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Hosts by which browsers reach the gateway.
    pub hosts: Vec<String>,
    /// First parts of paths that are the platform's.
    pub reserved: Vec<String>,
    /// Of the gateway's own tokens.
    pub issuer: String,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub namespace: String,
    pub service: String,
    pub port: Option<u16>,
    pub path: String,
    pub host: Option<HeaderValue>,
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    pub timeout: Duration,
}

/// The Service that a route leads to.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    pub port: Option<u16>,
}

impl Route {
    pub fn to(&self) -> To<'_> {
        To { namespace: &self.namespace, service: &self.service, port: self.port }
    }
}

#[derive(Default)]
struct Table {
    /// By namespace: exact paths first, then the longest.
    ways: HashMap<String, Vec<Way>>,
    policies: HashMap<String, Arc<Vec<Policy>>>,
}

/// A cloneable handle on what is known now.
#[derive(Clone)]
pub struct Routes {
    table: Arc<RwLock<Table>>,
    backends: Arc<Backends>,
}

impl Routes {
    pub(crate) fn new(client: Client) -> Self {
        Self { table: Arc::default(), backends: Arc::new(Backends::new(client)) }
    }

    /// Follows the cluster's objects until shutdown; their definitions must be there.
    pub(crate) fn follow(self, client: Client, config: Config, tasks: &Tasks) {
        let shutdown = tasks.shutdown();
        tasks.essential("routes", async move {
            tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                ended = follow(client, config, &self) => ended,
            }
        });
    }

    pub fn find(&self, path: &str) -> Option<Route> {
        let namespace = path.split('/').nth(2)?;
        let table = self.table.read();
        let ways = table.ways.get(namespace)?;
        let (way, rest) = ways.iter().find_map(|way| Some((way, way.path.rest(path)?)))?;
        Some(Route {
            namespace: way.namespace.clone(),
            service: way.service.clone(),
            port: way.port,
            path: way.rewritten(path, rest),
            host: way.host.clone(),
            request: way.request.clone(),
            response: way.response.clone(),
            timeout: way.timeout,
        })
    }

    /// Whether the policies of the route's namespace let the request pass.
    pub async fn admits(&self, to: To<'_>, asked: Asked<'_>) -> bool {
        let Some(policies) = self.table.read().policies.get(to.namespace).cloned() else { return true };
        let found = self.backends.find(to, false).await;
        // Without the Service's labels every policy counts.
        let none = std::collections::BTreeMap::new();
        policy::admits(&policies, found.as_ref().map_or(&none, |found| &found.labels), asked)
    }

    /// A pod of the route's Service, and whether it speaks HTTP/2. The error is for the person.
    pub async fn backend(&self, to: To<'_>, again: bool) -> Result<(SocketAddr, bool), String> {
        let found = self.backends.find(to, again).await?;
        let address = self.backends.next(&found).ok_or("no pod is ready")?;
        Ok((address, found.http2))
    }
}

/// The kinds that are watched, routes before what depends on them.
const WATCHED: [&Definition; 5] =
    [&VIRTUAL_SERVICE, &HTTP_ROUTE, &AUTHORIZATION_POLICY, &REQUEST_AUTHENTICATION, &GATEWAY];

async fn follow(client: Client, config: Config, routes: &Routes) -> Result<(), BoxError> {
    let mut stores: Vec<(&Definition, Store<DynamicObject>)> = Vec::new();
    let mut streams: Vec<futures::stream::BoxStream<'static, ()>> = Vec::new();
    for definition in WATCHED {
        let resource = definition.resource();
        let writer = Writer::<DynamicObject>::new(resource.clone());
        stores.push((definition, writer.as_reader()));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let watch = watcher(api, watcher::Config::default()).modify(forget_managed_fields).default_backoff();
        let changes = kube::runtime::reflector::reflector(writer, watch).filter_map(|change| async move {
            change.inspect_err(|error| tracing::debug!(%error, "the watch of routes is tried again")).ok().map(drop)
        });
        streams.push(changes.boxed());
    }
    let mut changes = futures::stream::select_all(streams).ready_chunks(TOGETHER);
    let mut unwritten = false;
    loop {
        tokio::select! {
            changed = changes.next() => if changed.is_none() {
                return Err("the watches of routes ended".into());
            },
            () = tokio::time::sleep(AGAIN), if unwritten => {}
        }
        let (table, statuses) = read_all(&config, &stores);
        *routes.table.write() = table;
        unwritten = false;
        for status in statuses {
            unwritten |= !write(&client, status).await;
        }
    }
}

fn forget_managed_fields(object: &mut DynamicObject) {
    object.metadata.managed_fields = None;
}

/// What is to be said in an object's status.
struct Said {
    definition: &'static Definition,
    namespace: String,
    name: String,
    status: Value,
}

fn read_all(config: &Config, stores: &[(&'static Definition, Store<DynamicObject>)]) -> (Table, Vec<Said>) {
    let (mut table, mut said) = (Table::default(), Vec::new());
    let mut policies: HashMap<String, Vec<Policy>> = HashMap::new();
    for (definition, store) in stores {
        let mut objects = store.state();
        // The oldest is first where two want the same path.
        objects.sort_by_key(|o| (o.creation_timestamp().map(|t| t.0), o.name_any()));
        for object in objects {
            let (Some(namespace), name) = (object.namespace(), object.name_any()) else { continue };
            let spec = &object.data["spec"];
            let place = Place { namespace: &namespace, name: &name, hosts: &config.hosts, reserved: &config.reserved };
            let (accepted, problems) = match definition.kind {
                "VirtualService" | "HTTPRoute" => {
                    let reader = if definition.kind == "HTTPRoute" { http_route::read } else { virtual_service::read };
                    let (ways, problems) = reader(place, spec);
                    let accepted = !ways.is_empty();
                    table.ways.entry(namespace.clone()).or_default().extend(ways);
                    (accepted, problems)
                }
                "AuthorizationPolicy" => {
                    let (policy, problems) = policy::read(spec);
                    policies.entry(namespace.clone()).or_default().push(policy);
                    // Routes were read before.
                    let routed = table.ways.get(&namespace).is_some_and(|ways| !ways.is_empty());
                    (true, policy::reach(problems, &namespace, routed))
                }
                "RequestAuthentication" => (true, authentication::read(&config.issuer, spec)),
                _ => (false, vec!["gateways are the box's own: this object has no effect".to_owned()]),
            };
            let conditions = conditions(&object, definition, accepted, &problems);
            if let Some(status) = status_of(&object, definition, spec, &namespace, conditions) {
                said.push(Said { definition, namespace, name, status });
            }
        }
    }
    table.ways.values_mut().for_each(|ways| order(ways));
    table.policies = policies.into_iter().map(|(namespace, list)| (namespace, Arc::new(list))).collect();
    (table, said)
}

/// The first that fits is taken.
fn order(ways: &mut [Way]) {
    let exact = |w: &Way| matches!(w.path, read::PathMatch::Exact(_));
    ways.sort_by_key(|w| (!exact(w), std::cmp::Reverse(w.path.text().len())));
}

/// The conditions as they should be, with the times of those that are so already.
fn conditions(object: &DynamicObject, definition: &Definition, accepted: bool, problems: &Problems) -> Vec<Value> {
    let message: String = problems.join("; ").chars().take(LONGEST_MESSAGE).collect();
    let old = match definition.kind {
        "HTTPRoute" => own_parents(&object.data["status"]).first().map(|p| p["conditions"].clone()).unwrap_or_default(),
        _ => object.data["status"]["conditions"].clone(),
    };
    let condition = |kind: &str, yes: bool, reason: &str, message: &str| {
        let status = if yes { "True" } else { "False" };
        let before = read::items(&old).iter().find(|c| c["type"] == kind && c["status"] == status);
        let since = before.and_then(|c| c["lastTransitionTime"].as_str().map(str::to_owned));
        let since = since.unwrap_or_else(|| Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true));
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
               "observedGeneration": object.metadata.generation.unwrap_or(0)})
    };
    let mut all = vec![match accepted {
        true => condition(ACCEPTED, true, "Accepted", ""),
        false => condition(ACCEPTED, false, "UnsupportedValue", &message),
    }];
    if definition.kind == "HTTPRoute" {
        all.push(match accepted {
            true => condition("ResolvedRefs", true, "ResolvedRefs", ""),
            false => condition("ResolvedRefs", false, "UnsupportedValue", &message),
        });
    }
    if !problems.is_empty() {
        all.push(condition(UNSUPPORTED, true, "NotHonoured", &message));
    }
    all
}

fn own_parents(status: &Value) -> Vec<Value> {
    read::items(&status["parents"]).iter().filter(|p| p["controllerName"] == CONTROLLER).cloned().collect()
}

/// The patch that makes the status right; `None` if it is.
fn status_of(
    object: &DynamicObject,
    definition: &Definition,
    spec: &Value,
    namespace: &str,
    conditions: Vec<Value>,
) -> Option<Value> {
    let status = &object.data["status"];
    if definition.kind == "HTTPRoute" {
        let parents = read::items(&spec["parentRefs"]).iter().filter(|r| http_route::is_parent(r, namespace));
        let wanted: Vec<Value> =
            parents.map(|r| json!({"parentRef": r, "controllerName": CONTROLLER, "conditions": conditions})).collect();
        if own_parents(status) == wanted {
            return None;
        }
        let others = read::items(&status["parents"]).iter().filter(|p| p["controllerName"] != CONTROLLER).cloned();
        return Some(json!({"status": {"parents": others.chain(wanted).collect::<Vec<_>>()}}));
    }
    let ours = |c: &Value| c["type"] == ACCEPTED || c["type"] == UNSUPPORTED;
    let found = read::items(&status["conditions"]);
    if found.iter().filter(|c| ours(c)).eq(conditions.iter()) {
        return None;
    }
    let others = found.iter().filter(|c| !ours(c)).cloned();
    Some(json!({"status": {"conditions": others.chain(conditions).collect::<Vec<_>>()}}))
}

fn write(client: &Client, said: Said) -> BoxFuture<'_, bool> {
    Box::pin(async move {
        let Said { definition, namespace, name, status } = said;
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &definition.resource());
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await {
            Ok(_) => true,
            Err(kube::Error::Api(error)) if error.code == 404 => true,
            Err(error) => {
                tracing::warn!(%error, namespace, name, kind = definition.kind, "a status cannot be written; it is tried again");
                false
            }
        }
    })
}
