//! A pod's life on this node.

pub mod downward;
pub mod env;
pub mod objects;
