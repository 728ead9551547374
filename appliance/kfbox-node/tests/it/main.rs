//! Containers on this machine: real shims, real pods through the API. Needs root on Debian 12 with `busybox-static`.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is all tests")]

mod pods;
mod shims;
mod world;
