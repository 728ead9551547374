//! Containers on this machine: real shims, real pods through the API. Needs root on Debian 12 with `busybox-static`.

mod debug;
mod devices;
mod disk;
mod gpu;
mod lab;
mod leaks;
mod limits;
mod nfs;
mod pods;
mod registry;
mod shims;
mod users;
mod world;
