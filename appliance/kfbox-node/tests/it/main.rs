//! Containers on this machine: real shims, real pods through the API. Needs root on Debian 12 with `busybox-static`.

mod debug;
mod leaks;
mod limits;
mod pods;
mod shims;
mod world;
