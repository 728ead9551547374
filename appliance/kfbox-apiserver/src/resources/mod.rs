//! What the API serves: one table of built-in resources, and the custom ones that CRDs add while the server runs.
//! Discovery, routing and storage all read this.

mod builtin;
pub mod crd;

use crate::schema::Schema;
use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};
use tokio::sync::watch;

/// One resource in one version.
#[derive(Debug, Clone)]
pub struct Resource {
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
    pub list_kind: Box<str>,
    pub plural: Box<str>,
    pub singular: Box<str>,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Verbs,
    pub subresources: Vec<Subresource>,
    /// The collection in the store: `pods`, `deployments.apps`.
    pub collection: Box<str>,
    /// The version objects are stored in.
    pub storage_version: Box<str>,
    /// `metadata.generation` is kept.
    pub generation: bool,
    pub custom: Option<Custom>,
}

/// What a CRD says of one version.
#[derive(Debug, Clone)]
pub struct Custom {
    pub schema: LazySchema,
    /// `additionalPrinterColumns`.
    pub columns: Value,
    pub status: bool,
    /// The definition is being deleted.
    pub terminating: bool,
    /// `subresources.scale`.
    pub scale: Option<ScalePaths>,
    pub selectable_fields: Vec<String>,
    pub deprecation: Option<String>,
    /// Other versions than the stored one are a webhook's work.
    pub conversion: Option<Arc<crate::conversion::Conversion>>,
}

/// A version's schema, compiled when it is first needed: a box has dozens of definitions, some of a megabyte, and uses
/// few of them.
#[derive(Clone)]
pub struct LazySchema {
    /// The definition, shared with the store.
    crd: Bytes,
    version: Box<str>,
    made: OnceLock<Arc<Schema>>,
}

impl LazySchema {
    pub fn new(crd: Bytes, version: &str) -> Self {
        Self { crd, version: version.into(), made: OnceLock::new() }
    }

    pub fn get(&self) -> &Arc<Schema> {
        self.made.get_or_init(|| {
            // Checked when the definition was written.
            let crd: Value = serde_json::from_slice(&self.crd).unwrap_or_default();
            crate::schema::from_crd_version(&crd, &self.version).unwrap_or_else(|errors| {
                let crd = crate::object::meta(&crd, "name");
                tracing::warn!(crd, version = %self.version, ?errors, "a stored schema cannot be read");
                Schema::open()
            })
        })
    }
}

impl std::fmt::Debug for LazySchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazySchema").field("version", &self.version).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct ScalePaths {
    pub spec: String,
    pub status: String,
    pub selector: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbs {
    All,
    /// Namespaces: everything but deletecollection.
    NoCollection,
    /// Reviews and bindings: nothing is stored.
    Create,
    /// Nothing but reading.
    Read,
}

impl Verbs {
    pub fn list(self) -> &'static [&'static str] {
        match self {
            Self::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Self::NoCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
            Self::Create => &["create"],
            Self::Read => &["get", "list"],
        }
    }

    pub fn allows(self, verb: &str) -> bool {
        self.list().contains(&verb)
    }
}

#[derive(Debug, Clone)]
pub struct Subresource {
    pub name: Box<str>,
    pub verbs: &'static [&'static str],
    /// Group, version and kind of its objects; the group and version are empty when they are the resource's.
    pub object: (&'static str, &'static str, Box<str>),
}

impl Resource {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| &*s.name == name)
    }

    pub fn schema(&self) -> Option<Arc<Schema>> {
        match &self.custom {
            Some(custom) => Some(custom.schema.get().clone()),
            None => crate::schema::builtin(&self.group, &self.version, &self.kind),
        }
    }

    /// `GROUP/VERSION, Kind=KIND` hashed as upstream does for discovery.
    pub fn storage_version_hash(&self) -> String {
        use base64::Engine as _;
        use sha2::Digest as _;
        // Events of either group are stored as the core group's.
        let group = if &*self.collection == "events" { "" } else { &*self.group };
        let hash = sha2::Sha256::digest(format!("{group}/{}/{}", self.storage_version, self.kind));
        base64::engine::general_purpose::STANDARD.encode(&hash[..8])
    }
}

type GroupVersionResource = (Box<str>, Box<str>, Box<str>);

/// An immutable view: requests use the one that was current when they arrived.
#[derive(Debug, Default)]
pub struct Registry {
    /// Groups in order of preference, each with its versions in order of preference.
    pub groups: Vec<Group>,
    index: HashMap<GroupVersionResource, Arc<Resource>>,
}

#[derive(Debug)]
pub struct Group {
    pub name: Box<str>,
    pub versions: Vec<GroupVersion>,
}

#[derive(Debug)]
pub struct GroupVersion {
    pub version: Box<str>,
    pub resources: Vec<Arc<Resource>>,
}

impl Registry {
    pub fn new(custom: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut registry = Self::default();
        for resource in builtin::resources() {
            registry.add(resource.clone());
        }
        let builtin_groups = registry.groups.len();
        let mut custom: Vec<_> = custom.into_iter().collect();
        custom.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        for resource in custom {
            registry.add(resource);
        }
        for resource in builtin::metrics() {
            registry.add(resource.clone());
        }
        for group in &mut registry.groups[builtin_groups..] {
            group.versions.sort_by_key(|v| std::cmp::Reverse(version_priority(&v.version)));
        }
        registry
    }

    fn add(&mut self, resource: Arc<Resource>) {
        let group = match self.groups.iter().position(|g| g.name == resource.group) {
            Some(at) => &mut self.groups[at],
            None => {
                self.groups.push(Group { name: resource.group.clone(), versions: Vec::new() });
                let last = self.groups.len() - 1;
                &mut self.groups[last]
            }
        };
        match group.versions.iter_mut().find(|v| v.version == resource.version) {
            Some(version) => version.resources.push(resource.clone()),
            None => group
                .versions
                .push(GroupVersion { version: resource.version.clone(), resources: vec![resource.clone()] }),
        }
        self.index.insert((resource.group.clone(), resource.version.clone(), resource.plural.clone()), resource);
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.index.get(&(group.into(), version.into(), plural.into()))
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| &*g.name == name)
    }

    pub fn group_version(&self, group: &str, version: &str) -> Option<&GroupVersion> {
        self.group(group)?.versions.iter().find(|v| &*v.version == version)
    }

    /// The resource in the version that is preferred, or the one served if only one is.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.group(group)?.versions.iter().flat_map(|v| &v.resources).find(|r| &*r.plural == plural)
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.group_version(group, version)?.resources.iter().find(|r| &*r.kind == kind)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.iter().flat_map(|g| &g.versions).flat_map(|v| &v.resources)
    }
}

/// The registry as it changes; custom resources by the name of their CRD.
pub struct Resources {
    current: RwLock<Arc<Registry>>,
    changed: watch::Sender<u64>,
    custom: parking_lot::Mutex<BTreeMap<String, Vec<Arc<Resource>>>>,
}

impl Resources {
    pub fn new() -> Self {
        Self {
            current: RwLock::new(Arc::new(Registry::new([]))),
            changed: watch::Sender::new(0),
            custom: parking_lot::Mutex::default(),
        }
    }

    pub fn current(&self) -> Arc<Registry> {
        self.current.read().clone()
    }

    /// Tells of each change of what is served.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces what one CRD serves; nothing removes it.
    pub fn set_custom(&self, crd: &str, resources: Vec<Arc<Resource>>) {
        self.set_all_custom([(crd.to_owned(), resources)]);
    }

    pub fn set_all_custom(&self, changes: impl IntoIterator<Item = (String, Vec<Arc<Resource>>)>) {
        let mut custom = self.custom.lock();
        for (crd, resources) in changes {
            if resources.is_empty() {
                custom.remove(&crd);
            } else {
                custom.insert(crd, resources);
            }
        }
        *self.current.write() = Arc::new(Registry::new(custom.values().flatten().cloned()));
        self.changed.send_modify(|changes| *changes += 1);
    }
}

/// Whether a group belongs to Kubernetes itself, so that no definition may add to it.
pub fn is_builtin_group(group: &str) -> bool {
    builtin::resources().iter().chain(builtin::metrics()).any(|r| &*r.group == group)
}

/// Kubernetes' order of versions: GA over beta over alpha, higher numbers first, anything else last by name
/// (apimachinery `pkg/version`).
pub fn version_priority(version: &str) -> (u8, u32, u32, std::cmp::Reverse<String>) {
    let parsed = (|| {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (3, 0),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(n), _) => (2, n.parse().ok()?),
                (_, Some(n)) => (1, n.parse().ok()?),
                _ => return None,
            },
        };
        Some((stage, major, minor))
    })();
    match parsed {
        Some((stage, major, minor)) => (stage, major, minor, std::cmp::Reverse(String::new())),
        None => (0, 0, 0, std::cmp::Reverse(version.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut versions =
            vec!["foo10", "v1", "v11alpha2", "foo1", "v10beta3", "v3beta1", "v12alpha1", "v2", "v10", "v11beta2"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
        );
    }
}
