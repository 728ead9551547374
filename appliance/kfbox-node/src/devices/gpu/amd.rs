//! AMD's cards, as the kernel's compute driver lists them.
//! Upstream: <https://docs.kernel.org/gpu/amdgpu/index.html>, and the topology below `/sys/class/kfd`.

use super::{AMD, Gpu, GpuConfig, text, under};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const TOPOLOGY: &str = "/sys/class/kfd/kfd/topology/nodes";
const KFD: &str = "/dev/kfd";

/// Blocking.
pub fn look(config: &GpuConfig) -> Result<Vec<Gpu>, String> {
    let topology = under(&config.root, Path::new(TOPOLOGY));
    let nodes =
        fs::read_dir(&topology).map_err(|_| "the amdgpu driver is not loaded (no /sys/class/kfd)".to_owned())?;
    let mut numbers: Vec<u32> = nodes.flatten().filter_map(|node| node.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let mut gpus = Vec::new();
    for number in numbers {
        let folder = topology.join(number.to_string());
        // Processors are nodes too, without an id.
        let id = text(&folder.join("gpu_id")).filter(|id| !id.is_empty() && id != "0");
        let (Some(id), Some(properties)) = (id, text(&folder.join("properties"))) else { continue };
        let properties: BTreeMap<&str, u64> = properties
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(k, v)| Some((k, v.trim().parse().ok()?)))
            .collect();
        let Some(minor) = properties.get("drm_render_minor").filter(|minor| **minor > 0) else { continue };
        let unique = properties.get("unique_id").filter(|id| **id > 0);
        let card = format!("renderD{minor}");
        let device = under(&config.root, Path::new("/sys/class/drm")).join(&card).join("device");
        let mut nodes = vec![PathBuf::from(KFD), Path::new("/dev/dri").join(&card)];
        let siblings = fs::read_dir(device.join("drm")).into_iter().flatten().flatten();
        nodes.extend(siblings.filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("card"))?;
            Some(Path::new("/dev/dri").join(name))
        }));
        let missing = nodes.iter().find(|node| !under(&config.root, node).exists());
        gpus.push(Gpu {
            vendor: "amd",
            index: gpus.len().to_string(),
            id: unique.map_or_else(|| format!("AMD-{id}"), |unique| format!("AMD-{unique:016x}")),
            name: text(&device.join("product_name"))
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "AMD GPU".into()),
            memory_bytes: text(&device.join("mem_info_vram_total")).and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
            driver: text(&under(&config.root, Path::new("/sys/module/amdgpu/version"))).unwrap_or_default(),
            pci: fs::read_link(&device)
                .ok()
                .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
                .unwrap_or_default(),
            resource: AMD.into(),
            fault: missing.map(|node| format!("{} is missing", node.display())).unwrap_or_default(),
            nodes,
        });
    }
    if gpus.is_empty() { Err("the amdgpu driver knows no card".into()) } else { Ok(gpus) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_read_from_the_kernels_topology() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, content: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let config = GpuConfig { root: dir.path().into(), ..GpuConfig::default() };
        assert!(look(&config).unwrap_err().contains("amdgpu"));
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        file(&format!("{nodes}/0/gpu_id"), "0\n");
        file(&format!("{nodes}/0/properties"), "cpu_cores_count 8\n");
        assert!(look(&config).is_err());
        file(&format!("{nodes}/1/gpu_id"), "51140\n");
        file(&format!("{nodes}/1/properties"), "simd_count 208\ndrm_render_minor 128\nunique_id 6735\n");
        file("sys/class/drm/renderD128/device/product_name", "Instinct MI210\n");
        file("sys/class/drm/renderD128/device/mem_info_vram_total", "68702699520\n");
        file("sys/class/drm/renderD128/device/drm/card0/dev", "226:0\n");
        file("dev/kfd", "");
        file("dev/dri/renderD128", "");
        let sick = look(&config).unwrap();
        assert_eq!(sick[0].fault, "/dev/dri/card0 is missing");
        file("dev/dri/card0", "");
        let found = look(&config).unwrap();
        assert_eq!(
            (found.len(), found[0].id.as_str(), found[0].name.as_str()),
            (1, "AMD-0000000000001a4f", "Instinct MI210")
        );
        assert_eq!((found[0].memory_bytes, found[0].fault.as_str()), (68_702_699_520, ""));
        assert_eq!(found[0].nodes, ["/dev/kfd", "/dev/dri/renderD128", "/dev/dri/card0"].map(PathBuf::from));
    }
}
