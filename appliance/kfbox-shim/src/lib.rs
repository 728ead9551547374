//! The program that runs one container, and the records and frames by which it and the node understand each other.
//!
//! It is a program of its own, small and without shared libraries, because every container has one: what starting it and
//! keeping it costs is paid for each. The node carries it inside and writes it out where it starts.
//!
//! Guarantees: the log follows the CRI log format; `exit.json` appears atomically and exactly once; the process ends
//! right after. Assumptions: it is entered before any thread exists, because libcontainer uses raw `clone3` and changes
//! the working directory.
//! Upstream: <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>

#[cfg(feature = "program")]
mod attach;
pub mod cgroup;
#[cfg(feature = "program")]
mod container;
#[cfg(feature = "program")]
mod exec;
#[cfg(feature = "program")]
mod fds;
pub mod frames;
pub mod kept;
#[cfg(feature = "program")]
mod log;
#[cfg(feature = "program")]
mod namespaces;
#[cfg(feature = "program")]
mod pause;
#[cfg(feature = "program")]
mod program;
pub mod records;
#[cfg(feature = "program")]
mod stage;
pub mod timestamp;
pub mod users;

#[cfg(feature = "program")]
pub use program::shim_main;
#[cfg(feature = "program")]
use program::{ShimError, describe};
