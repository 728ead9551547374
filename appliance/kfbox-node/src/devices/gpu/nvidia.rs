//! NVIDIA's cards by NVML, which is loaded when there is one.
//!
//! A card's critical errors (Xid events) make it unhealthy until the daemon starts again, but for those that a program
//! causes for itself. Upstream: <https://docs.nvidia.com/deploy/xid-errors/>, <https://docs.nvidia.com/deploy/nvml-api/>

use super::super::LOOK_AGAIN;
use super::{DRIVER, Gpu, GpuConfig, MigStrategy, Mount, NVIDIA, instances::Instances, read_only, text, under};
use nvml_wrapper::{Device, Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

const LIBRARY: &str = "libnvidia-ml.so.1";
/// What every card needs beside its own node, where the driver made it.
pub const COMMON: [&str; 4] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];
/// A fault of the program, not of the card: graphics exception, page fault, stopped channel, clean-up, video exception,
/// context switch time-out.
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];
/// Where distributions put the driver's libraries.
const LIBRARIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
];
const PROGRAMS: [&str; 3] = ["/usr/bin/nvidia-smi", "/usr/bin/nvidia-debugdump", "/usr/bin/nvidia-cuda-mps-control"];

/// NVML, and what it has told of faults.
#[derive(Debug)]
pub struct Watch {
    nvml: Nvml,
    library: PathBuf,
    /// By a card's id.
    faults: Mutex<BTreeMap<String, String>>,
}

impl Watch {
    /// Loads the library and asks the driver. Blocking.
    pub fn open(config: &GpuConfig) -> Result<Self, String> {
        let library = config.library.clone().unwrap_or_else(|| LIBRARY.into());
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(|error| match error {
            NvmlError::LibloadingError(_) => format!("no NVIDIA driver ({} cannot be loaded)", library.display()),
            other => format!("the NVIDIA driver does not answer: {other}"),
        })?;
        Ok(Self { nvml, library, faults: Mutex::default() })
    }

    /// Waits for events until `stop` says so, and calls `look` after each that changed a card's health, and now and then. Fails
    /// when the driver has no events to give. Blocking.
    pub fn follow(&self, stop: impl Fn() -> bool, look: impl Fn()) -> Result<(), NvmlError> {
        const WAIT_MS: u32 = 500;
        let mut set = self.nvml.create_event_set()?;
        for index in 0..self.nvml.device_count()? {
            let events = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
            set = self.nvml.device_by_index(index)?.register_events(events, set).map_err(|error| error.error)?;
        }
        let mut looked = Instant::now();
        while !stop() {
            if looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                look();
            }
            let event = match set.wait(WAIT_MS) {
                Ok(event) => event,
                Err(NvmlError::Timeout) => continue,
                Err(error) => return Err(error),
            };
            let Some(fault) = fault_of(event.event_data, event.event_type) else { continue };
            let Ok(id) = event.device.uuid() else { continue };
            tracing::error!(gpu = id, fault, "a GPU is ill; it is given to nobody until kfbox starts again");
            self.faults.lock().entry(id).or_insert(fault);
            look();
        }
        Ok(())
    }
}

fn fault_of(xid: Option<XidError>, kind: EventTypes) -> Option<String> {
    match xid {
        Some(XidError::Value(number)) if OF_PROGRAMS.contains(&number) => None,
        Some(XidError::Value(number)) => Some(format!("Xid {number}")),
        Some(XidError::Unknown) => Some("an unknown Xid".into()),
        None if kind.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => Some("uncorrected memory error".into()),
        None => None,
    }
}

/// Blocking.
pub fn look(config: &GpuConfig, watch: Option<&Watch>) -> Result<Vec<Gpu>, String> {
    let opened;
    let watch = match watch {
        Some(watch) => watch,
        None => {
            opened = Watch::open(config)?;
            &opened
        }
    };
    let asked = |error: NvmlError| format!("the NVIDIA driver does not answer: {error}");
    let driver = watch.nvml.sys_driver_version().map_err(asked)?;
    let instances = Instances::open(watch.library.as_os_str());
    let mut gpus = Vec::new();
    for index in 0..watch.nvml.device_count().map_err(asked)? {
        match card(config, watch, index, &driver, instances.as_ref()) {
            Ok(found) => gpus.extend(found),
            // A card that has fallen off the bus must not hide the others.
            Err(error) => tracing::warn!(index, %error, "a GPU does not answer"),
        }
    }
    if gpus.is_empty() { Err(format!("the NVIDIA driver {driver} knows no card that answers")) } else { Ok(gpus) }
}

fn card(
    config: &GpuConfig,
    watch: &Watch,
    index: u32,
    driver: &str,
    instances: Option<&Instances>,
) -> Result<Vec<Gpu>, NvmlError> {
    let device = watch.nvml.device_by_index(index)?;
    let id = device.uuid()?;
    let node = PathBuf::from(format!("/dev/nvidia{}", device.minor_number()?));
    let missing = (!under(&config.root, &node).exists()).then(|| format!("{} is missing", node.display()));
    let card = Gpu {
        vendor: "nvidia",
        index: index.to_string(),
        name: device.name()?,
        memory_bytes: device.memory_info().map_or(0, |memory| memory.total),
        driver: driver.to_owned(),
        pci: device.pci_info().map_or_else(|_| String::new(), |pci| pci.bus_id),
        resource: NVIDIA.into(),
        fault: watch.faults.lock().get(&id).cloned().or(missing).unwrap_or_default(),
        nodes: vec![node],
        id,
    };
    // A card that cannot be divided says that it is not supported.
    let divided = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    if !divided || config.mig == MigStrategy::None {
        return Ok(vec![card]);
    }
    let mut parts = Vec::new();
    for part in 0..device.mig_device_count()? {
        match device.mig_device_by_index(part) {
            Ok(instance) => parts.extend(self::part(config, &card, &instance, part, instances)),
            // Places that no instance has.
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parts)
}

fn part(
    config: &GpuConfig,
    card: &Gpu,
    device: &Device<'_>,
    number: u32,
    instances: Option<&Instances>,
) -> Option<Gpu> {
    let (id, name) = (device.uuid().ok()?, device.name().ok()?);
    let profile = name.split_once(" MIG ").map_or("unknown", |(_, profile)| profile);
    let resource = match config.mig {
        // As upstream: `1g.10gb+me` has a character that a resource's name may not have.
        MigStrategy::Mixed => format!("nvidia.com/mig-{}", profile.replace('+', ".")),
        _ => NVIDIA.into(),
    };
    let mut nodes = card.nodes.clone();
    let mut fault = card.fault.clone();
    match instances.and_then(|instances| instances.of(device)).and_then(|ids| capabilities(config, card, ids)) {
        Some(more) => nodes.extend(more),
        None if fault.is_empty() => fault = "the driver does not say which capabilities open this instance".into(),
        None => {}
    }
    Some(Gpu {
        index: format!("{}:{number}", card.index),
        id,
        memory_bytes: device.memory_info().map_or(0, |memory| memory.total),
        resource,
        fault,
        nodes,
        name,
        ..card.clone()
    })
}

/// The device nodes by which the driver lets a process use an instance.
fn capabilities(config: &GpuConfig, card: &Gpu, (gpu, compute): (u32, u32)) -> Option<[PathBuf; 2]> {
    let minor = card.nodes.first()?.to_str()?.strip_prefix("/dev/nvidia")?;
    let folder = format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{gpu}");
    let node = |file: String| {
        let text = text(&under(&config.root, Path::new(&file)))?;
        let number = text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:"))?.trim().parse::<u32>().ok()?;
        Some(PathBuf::from(format!("/dev/nvidia-caps/nvidia-cap{number}")))
    };
    Some([node(format!("{folder}/access"))?, node(format!("{folder}/ci{compute}/access"))?])
}

/// The driver's libraries and programs of this version, under every name that they have on the host.
pub fn driver_files(root: &Path, version: &str) -> Vec<Mount> {
    let ours =
        |name: &str| ["libcuda", "libnvidia-", "libnvcuvid", "libnvoptix"].iter().any(|start| name.starts_with(start));
    let mut mounts: BTreeMap<PathBuf, Mount> = BTreeMap::new();
    for folder in LIBRARIES {
        for entry in fs::read_dir(under(root, Path::new(folder))).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(file) = fs::canonicalize(entry.path()) else { continue };
            let is_version =
                file.file_name().and_then(OsStr::to_str).is_some_and(|real| real.ends_with(&format!(".so.{version}")));
            if ours(&name) && is_version {
                let place = Path::new(DRIVER).join("lib64").join(&name);
                mounts.entry(place.clone()).or_insert_with(|| read_only(file, place));
            }
        }
    }
    for program in PROGRAMS.map(|program| under(root, Path::new(program))) {
        if let (true, Some(name)) = (program.is_file(), program.file_name()) {
            let place = Path::new(DRIVER).join("bin").join(name);
            mounts.insert(place.clone(), read_only(program, place));
        }
    }
    mounts.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_own_fault_is_none_of_the_card() {
        let xid = |number| fault_of(Some(XidError::Value(number)), EventTypes::CRITICAL_XID_ERROR);
        assert_eq!((xid(31), xid(13)), (None, None));
        assert_eq!(xid(79).as_deref(), Some("Xid 79"));
        assert!(fault_of(None, EventTypes::DOUBLE_BIT_ECC_ERROR).is_some());
        assert_eq!(fault_of(None, EventTypes::PSTATE_CHANGE), None);
    }

    #[test]
    fn the_drivers_files_are_those_of_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let libraries = dir.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        for name in ["libcuda.so.550.1", "libnvidia-ml.so.550.1", "libcuda.so.470.9", "libssl.so.3"] {
            fs::write(libraries.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("libcuda.so.550.1", libraries.join("libcuda.so.1")).unwrap();
        fs::write(dir.path().join("usr/bin/nvidia-smi"), "").unwrap();
        let found = driver_files(dir.path(), "550.1");
        let names: Vec<&str> = found.iter().filter_map(|m| m.container_path.to_str()).collect();
        assert_eq!(
            names,
            [
                "/usr/local/nvidia/bin/nvidia-smi",
                "/usr/local/nvidia/lib64/libcuda.so.1",
                "/usr/local/nvidia/lib64/libcuda.so.550.1",
                "/usr/local/nvidia/lib64/libnvidia-ml.so.550.1",
            ]
        );
        assert!(found.iter().all(|mount| mount.options.contains(&"ro".to_owned())));
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        let config = GpuConfig { library: Some("/nowhere/libnvidia-ml.so.1".into()), ..GpuConfig::default() };
        assert!(look(&config, None).unwrap_err().starts_with("no NVIDIA driver"));
    }
}
