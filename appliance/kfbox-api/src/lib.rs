//! What the parts of kfbox agree on by name: custom resource types, labels, annotations, role names, condition
//! constants. Architecture Invariant: no I/O and no async here; a type in this crate is exactly what is on the wire.

#[cfg(test)]
mod bundles;
pub mod names;
pub mod pipelines;
pub mod profile;
pub mod snapshots;

pub use profile::{Profile, ProfileSpec, ProfileStatus};
