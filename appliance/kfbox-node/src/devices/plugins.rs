//! Device plugins: programs of a device's maker that tell by a socket which devices there are.
//!
//! Guarantees: a plugin that is gone has no healthy devices; its sockets are looked for in the plugins' folder alone.
//! Upstream: <https://github.com/kubernetes/kubelet/tree/master/pkg/apis/deviceplugin/v1beta1>

use super::{
    DeviceError, Devices,
    edits::{DeviceNode, Edits, Mount},
    registration,
};
use hyper_util::rt::TokioIo;
use kfbox_base::Tasks;
use prost::Message;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

mod proto {
    tonic::include_proto!("v1beta1");
}

use proto::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
    device_plugin_client::DevicePluginClient,
};

const VERSION: &str = "v1beta1";
/// Upstream's name of our socket, by which plugins know the folder.
const SOCKET: &str = "kubelet.sock";
/// As the kubelet waits for a plugin to answer its first connection, and before a container starts.
const CONNECT: Duration = Duration::from_secs(10);
const PRE_START: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// A plugin that hangs must not hold up every pod.
const ALLOCATE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
}

impl Devices {
    /// Listens for plugins. Sockets of an earlier daemon's life are removed: their plugins look for that and register anew.
    pub fn listen(&self, tasks: &Tasks) -> Result<(), DeviceError> {
        let folder = self.inner.config.plugins_dir.clone();
        let file = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DeviceError::File { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(file(&folder))?;
        for entry in fs::read_dir(&folder).map_err(file(&folder))?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let path = folder.join(SOCKET);
        let listener = UnixListener::bind(&path).map_err(file(&path))?;
        let service = Registrations { devices: self.clone(), tasks: tasks.clone(), folder };
        let (service, shutdown, tasks) = (Arc::new(service), tasks.shutdown(), tasks.clone());
        tasks.clone().spawn("device-plugins", async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.cancelled() => return,
                };
                let Ok((stream, _)) = stream else {
                    // Too many open files: nothing says when that is over.
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                let (service, shutdown) = (service.clone(), shutdown.clone());
                tasks.spawn("device-plugin-registration", async move {
                    let served = registration::serve(stream, |message| {
                        let service = service.clone();
                        async move { service.register(&message).map(|()| Empty {}.encode_to_vec()) }
                    });
                    tokio::select! {
                        result = served => if let Err(error) = result {
                            tracing::warn!(%error, "a device plugin's registration");
                        },
                        () = shutdown.cancelled() => {}
                    }
                });
            }
        });
        Ok(())
    }
}

struct Registrations {
    devices: Devices,
    tasks: Tasks,
    folder: PathBuf,
}

impl Registrations {
    fn register(&self, message: &[u8]) -> Result<(), Status> {
        let request = RegisterRequest::decode(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let RegisterRequest { version, endpoint, resource_name, options } = request;
        if version != VERSION {
            let why = format!(
                "requested API version {version:?} is not supported by kubelet. Supported version is [\"{VERSION}\"]"
            );
            return Err(Status::invalid_argument(why));
        }
        if !is_extended(&resource_name) {
            return Err(Status::invalid_argument(format!("the ResourceName {resource_name:?} is invalid")));
        }
        let plain = Path::new(&endpoint).file_name().is_some_and(|name| name == endpoint.as_str());
        if !plain || endpoint == SOCKET {
            return Err(Status::invalid_argument(format!("the endpoint {endpoint:?} is not a plugin's socket here")));
        }
        let (devices, socket) = (self.devices.clone(), self.folder.join(endpoint));
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn(format!("device-plugin/{resource_name}"), async move {
            tokio::select! {
                () = follow(&devices, &resource_name, &socket, options) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(())
    }
}

/// A name that a pod may ask for: of a domain, and not of Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let word = |text: &str| {
        !text.is_empty()
            && text.len() <= 63
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || domain.starts_with("requests.");
    !own && domain.len() <= 253 && domain.split('.').all(word) && word(rest)
}

/// Hears what a plugin says until it is gone.
async fn follow(devices: &Devices, resource: &str, socket: &Path, options: Option<DevicePluginOptions>) {
    let plugin = match connect(socket, options).await {
        Ok(plugin) => plugin,
        Err(error) => {
            tracing::warn!(resource, socket = %socket.display(), error, "a device plugin registered but does not answer");
            return;
        }
    };
    let mut client = plugin.client.clone();
    let generation = match devices.registered(resource, plugin) {
        Ok(generation) => generation,
        Err(error) => return tracing::error!(resource, %error, "a device plugin cannot be taken note of"),
    };
    tracing::info!(resource, "a device plugin is there");
    let result: Result<(), Status> = async {
        let mut lists = client.list_and_watch(Empty {}).await?.into_inner();
        while let Some(list) = lists.next().await {
            let all = list?.devices.into_iter().map(|device| (device.id, device.health == "Healthy"));
            devices.listed(resource, generation, all.collect());
        }
        Ok(())
    }
    .await;
    devices.lost(resource, generation);
    let why = result.err().map_or_else(String::new, |status| status.message().to_owned());
    tracing::warn!(resource, why, "a device plugin is gone; its devices are given to nobody");
}

async fn connect(socket: &Path, options: Option<DevicePluginOptions>) -> Result<Plugin, String> {
    let path = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The address is not looked at: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://device-plugin").connect_timeout(CONNECT);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))?;
    let mut client = DevicePluginClient::new(channel);
    let options = match options {
        Some(options) => options,
        None => {
            let asked = tokio::time::timeout(CONNECT, client.get_device_plugin_options(Empty {})).await;
            asked.map_err(|_| "no answer".to_owned())?.map_err(|status| status.to_string())?.into_inner()
        }
    };
    Ok(Plugin { client, options })
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {}", chain(cause)))
}

fn failed(status: &Status) -> DeviceError {
    DeviceError::Plugin { code: format!("{:?}", status.code()), message: status.message().to_owned() }
}

fn late() -> DeviceError {
    DeviceError::Plugin { code: "DeadlineExceeded".into(), message: "the plugin did not answer".into() }
}

impl Plugin {
    /// Which of the free devices the plugin would rather give; none where it has no wish, or none that can be kept.
    pub async fn preferred(&self, free: &[String], must: &[String], count: usize) -> Option<Vec<String>> {
        if !self.options.get_preferred_allocation_available {
            return None;
        }
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_i_ds: free.to_vec(),
                must_include_device_i_ds: must.to_vec(),
                allocation_size: i32::try_from(count).ok()?,
            }],
        };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(ALLOCATE, client.get_preferred_allocation(request)).await.ok()?.ok()?;
        let mut ids = answer.into_inner().container_responses.into_iter().next()?.device_i_ds;
        ids.sort();
        ids.dedup();
        (ids.len() == count && ids.iter().all(|id| free.contains(id))).then_some(ids)
    }

    /// Takes devices, and says what a container with them needs.
    pub async fn allocate(&self, ids: &[String]) -> Result<Edits, DeviceError> {
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids.to_vec() }] };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(ALLOCATE, client.allocate(request)).await.map_err(|_| late())?;
        let answers = answer.map_err(|status| failed(&status))?.into_inner().container_responses;
        let found = answers.into_iter().next().ok_or_else(|| DeviceError::Plugin {
            code: "Internal".into(),
            message: "No containers return in allocation response".into(),
        })?;
        Ok(edits(found))
    }

    pub async fn before_start(&self, ids: &[String]) -> Result<(), DeviceError> {
        if !self.options.pre_start_required {
            return Ok(());
        }
        let request = PreStartContainerRequest { devices_ids: ids.to_vec() };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(PRE_START, client.pre_start_container(request)).await.map_err(|_| late())?;
        answer.map(drop).map_err(|status| failed(&status))
    }
}

fn edits(answer: ContainerAllocateResponse) -> Edits {
    let mounts = answer.mounts.into_iter().map(|mount| Mount {
        host_path: mount.host_path.into(),
        container_path: mount.container_path.into(),
        options: vec![if mount.read_only { "ro" } else { "rw" }.into()],
        kind: None,
    });
    let nodes = answer.devices.into_iter().map(|device| DeviceNode {
        path: device.container_path.into(),
        host_path: Some(device.host_path.into()),
        permissions: Some(device.permissions).filter(|p| !p.is_empty()),
        ..DeviceNode::default()
    });
    Edits {
        env: answer.envs.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        mounts: mounts.collect(),
        device_nodes: nodes.collect(),
        cdi: answer.cdi_devices.into_iter().map(|device| device.name).collect(),
        ..Edits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_of_somebodys_domain() {
        for good in ["nvidia.com/gpu", "example.org/a.b_c-9", "x/y"] {
            assert!(is_extended(good), "{good}");
        }
        for bad in ["gpu", "kubernetes.io/gpu", "a.kubernetes.io/gpu", "nvidia.com/", "/gpu", "a/b/c", "a..b/c", "a/-c"]
        {
            assert!(!is_extended(bad), "{bad}");
        }
    }
}
