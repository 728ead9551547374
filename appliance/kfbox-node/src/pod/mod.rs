//! A pod's life on this node.

pub mod admit;
pub mod adopt;
pub mod check;
pub mod context;
pub mod downward;
pub mod env;
pub mod events;
pub mod launch;
pub mod objects;
pub mod plan;
pub mod probe;
pub mod publish;
pub mod record;
pub mod resize;
pub mod status;
pub mod stop;
mod tls;
pub mod users;
pub mod worker;
