//! Which instances of a card a MIG device is: two numbers that NVML knows and `nvml-wrapper` does not ask for.
//! Upstream: <https://docs.nvidia.com/deploy/nvml-api/group__nvmlMultiInstanceGPU.html>
#![expect(unsafe_code, reason = "two functions of a C library; their types are those of nvml.h")]

use nvml_wrapper::Device;
use std::{
    ffi::OsStr,
    os::raw::{c_int, c_uint, c_void},
};

type Ask = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;

/// The library, loaded once more: the loader counts, and gives the same one.
pub struct Instances(libloading::Library);

impl Instances {
    pub fn open(library: &OsStr) -> Option<Self> {
        // SAFETY: NVML is loaded already; its initialisers ran then.
        unsafe { libloading::Library::new(library) }.ok().map(Self)
    }

    /// The GPU instance and the compute instance.
    pub fn of(&self, device: &Device<'_>) -> Option<(u32, u32)> {
        Some((
            self.ask(device, b"nvmlDeviceGetGpuInstanceId\0")?,
            self.ask(device, b"nvmlDeviceGetComputeInstanceId\0")?,
        ))
    }

    fn ask(&self, device: &Device<'_>, name: &[u8]) -> Option<u32> {
        let mut number = 0;
        // SAFETY: both functions have this type; the handle lives as long as the device.
        let status = unsafe {
            let ask: libloading::Symbol<'_, Ask> = self.0.get(name).ok()?;
            ask(device.handle().cast(), &raw mut number)
        };
        (status == 0).then_some(number)
    }
}
