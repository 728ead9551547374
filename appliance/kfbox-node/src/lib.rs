//! Pods to OCI containers on one Linux machine: what a kubelet and a container runtime do, for one node.
//!
//! Architecture Invariant: the daemon never forks. Containers are created by a program of their own, [`kfbox_shim`].

pub mod devices;
pub mod dns;
pub mod images;
pub mod network;
pub mod node;
pub mod oci;
pub mod pod;
pub mod process;
pub mod program;
pub mod quantity;
pub mod registry;
pub mod runtime;
pub mod sandbox;
pub mod services;
pub mod usage;
pub mod volumes;

pub use kfbox_shim::{self as shim, cgroup};

pub use devices::{
    DevicesConfig, GpuReport,
    gpu::{GpuConfig, MigStrategy},
};
pub use node::{EvictionConfig, ImageGcConfig, LogOptions, LogStream, Node, NodeConfig, NodeError};
pub use runtime::{ExecSession, TerminalSize};
pub use shim::frames::Outcome;
pub use usage::{ContainerUsage, Figures, NodeUsage, PodUsage};
