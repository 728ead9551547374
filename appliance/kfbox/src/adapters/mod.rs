//! Where row-2 crates meet: each file implements a trait of one crate over the others. No logic of its own lives here.

pub mod artifacts;
pub mod authorizer;
pub mod dashboard;
pub mod departures;
pub mod identity;
pub mod kubelet;
pub mod lineage;
pub mod metadata_access;
pub mod namespace_stores;
pub mod namespaces;
pub mod outside_stores;
pub mod people;
pub mod pipeline_packages;
pub mod pod_identity;
pub mod signing;
pub mod user_routes;
