//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules in CEL, bound to parameters.
//!
//! Guarantees: a policy acts through its bindings alone; what all expressions of one binding and parameter may cost is
//! bounded; an error is a denial unless `failurePolicy` is `Ignore`.
//!
//! Upstream: <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>, apiserver
//! `pkg/admission/plugin/policy`.

mod config;
mod evaluate;
mod mutate;
mod params;
mod status;
mod types;
mod validate;

pub use config::{
    Binding, Definition, MutatingPolicy, MutationDefinition, Policy, binding_errors, definition_errors, mutation_errors,
};
pub use mutate::{Round, mutate};
pub use status::after_write;
pub use validate::validate;
