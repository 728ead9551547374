//! The configurations of admission in memory, compiled, as the store has them now.

use crate::{
    admission::{
        policies::{self, MutatingPolicy, Policy},
        webhooks::{self, Hook},
    },
    object::meta,
    schema::FieldError,
    status::ApiError,
    store::Store,
    verbs::Call,
};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};

pub const MUTATING_WEBHOOKS: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
pub const VALIDATING_WEBHOOKS: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";
pub const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
pub const POLICY_BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";
pub const MUTATIONS: &str = "mutatingadmissionpolicies.admissionregistration.k8s.io";
pub const MUTATION_BINDINGS: &str = "mutatingadmissionpolicybindings.admissionregistration.k8s.io";

/// Objects of these configure admission, and pass it.
pub fn is_configuration(collection: &str) -> bool {
    [MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS, POLICIES, POLICY_BINDINGS, MUTATIONS, MUTATION_BINDINGS]
        .contains(&collection)
}

/// One state of all configurations, each list in the order of names.
#[derive(Default)]
pub struct Configs {
    pub mutating: Vec<Arc<Hook>>,
    pub validating: Vec<Arc<Hook>>,
    pub policies: Vec<Arc<Policy>>,
    pub mutations: Vec<Arc<MutatingPolicy>>,
}

impl Configs {
    pub fn is_empty(&self) -> bool {
        self.mutating.is_empty() && self.mutations.is_empty() && !self.validates()
    }

    pub fn validates(&self) -> bool {
        !self.validating.is_empty() || !self.policies.is_empty()
    }
}

/// The current configurations.
#[derive(Default)]
pub struct Dynamic {
    current: RwLock<Arc<Configs>>,
    /// What was compiled, by collection, name and revision, so that a write compiles only what it changed.
    made: Mutex<Compiled>,
}

/// By collection and name: the revision, and what became of it.
type Compiled = HashMap<(&'static str, String), (u64, Made)>;

#[derive(Clone)]
enum Made {
    Hooks(Arc<[Arc<Hook>]>),
    Policy(Arc<policies::Definition>),
    Mutation(Arc<policies::MutationDefinition>),
    Binding(Arc<policies::Binding>),
}

impl Dynamic {
    pub fn current(&self) -> Arc<Configs> {
        self.current.read().clone()
    }

    /// Brings everything to the state of the store. Callers hold the lock of effects, so the newest state wins.
    pub fn load(&self, store: &Store) {
        // Expressions need a deep stack to be compiled; a machine without a thread for it keeps what it had.
        match crate::cel::on_deep_stack(|| self.read(store)) {
            Some(configs) => *self.current.write() = Arc::new(configs),
            None => tracing::error!("the configurations of admission cannot be compiled at present"),
        }
    }

    fn read(&self, store: &Store) -> Configs {
        let mut before = self.made.lock();
        let mut after = HashMap::new();
        let mut all = |collection: &'static str, make: fn(&Value) -> Made| -> Vec<(String, Made)> {
            let Ok(snapshot) = store.list(collection, None, None, None) else { return Vec::new() };
            snapshot
                .objects
                .iter()
                .map(|object| {
                    let key = (collection, object.key.name.to_string());
                    let made = match before.get(&key) {
                        Some((revision, made)) if *revision == object.revision => made.clone(),
                        _ => make(&object.value()),
                    };
                    after.insert(key.clone(), (object.revision, made.clone()));
                    (key.1, made)
                })
                .collect()
        };
        let hooks = |made: Vec<(String, Made)>| -> Vec<Arc<Hook>> {
            let lists =
                made.into_iter().filter_map(|(_, made)| if let Made::Hooks(hooks) = made { Some(hooks) } else { None });
            lists.flat_map(|hooks| hooks.to_vec()).collect()
        };
        let bindings = |made: Vec<(String, Made)>| -> Vec<Arc<policies::Binding>> {
            made.into_iter().filter_map(|(_, made)| if let Made::Binding(b) = made { Some(b) } else { None }).collect()
        };
        let mutating = hooks(all(MUTATING_WEBHOOKS, |object| Made::Hooks(webhooks::parse(object).into())));
        let validating = hooks(all(VALIDATING_WEBHOOKS, |object| Made::Hooks(webhooks::parse(object).into())));
        let bound = bindings(all(POLICY_BINDINGS, |object| Made::Binding(Arc::new(policies::Binding::parse(object)))));
        let mutation_bound =
            bindings(all(MUTATION_BINDINGS, |object| Made::Binding(Arc::new(policies::Binding::parse(object)))));
        let of = |name: &str, bindings: &[Arc<policies::Binding>]| -> Vec<Arc<policies::Binding>> {
            bindings.iter().filter(|binding| binding.policy == name).cloned().collect()
        };
        let definitions = all(POLICIES, |object| Made::Policy(Arc::new(policies::Definition::parse(object))));
        // A policy acts through its bindings alone.
        let validations = definitions.into_iter().filter_map(|(name, made)| match (made, of(&name, &bound)) {
            (Made::Policy(definition), bindings) if !bindings.is_empty() => {
                Some(Arc::new(Policy { definition, bindings }))
            }
            _ => None,
        });
        let validations = validations.collect();
        let mutations = all(MUTATIONS, |object| Made::Mutation(Arc::new(policies::MutationDefinition::parse(object))));
        let mutations = mutations.into_iter().filter_map(|(name, made)| match (made, of(&name, &mutation_bound)) {
            (Made::Mutation(definition), bindings) if !bindings.is_empty() => {
                Some(Arc::new(MutatingPolicy { definition, bindings }))
            }
            _ => None,
        });
        let configs = Configs { mutating, validating, policies: validations, mutations: mutations.collect() };
        *before = after;
        configs
    }
}

/// Refuses configurations that cannot work: above all expressions that do not compile.
pub fn check(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let part =
        |value: &Value| if value["webhooks"].is_null() { value["spec"].clone() } else { value["webhooks"].clone() };
    // What was stored before a rule existed may be changed in other respects.
    if old.is_some_and(|old| part(old) == part(object)) {
        return Ok(());
    }
    let errors: Vec<FieldError> = match &*call.resource.collection {
        MUTATING_WEBHOOKS | VALIDATING_WEBHOOKS => webhooks::errors(object),
        POLICIES => policies::definition_errors(object),
        MUTATIONS => policies::mutation_errors(object),
        POLICY_BINDINGS => policies::binding_errors(object, true),
        MUTATION_BINDINGS => policies::binding_errors(object, false),
        _ => Vec::new(),
    };
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&call.resource.group, &call.resource.kind, meta(object, "name"), &errors))
}
