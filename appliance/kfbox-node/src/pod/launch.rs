//! From a pod's spec to a running container: sandbox and volumes, image, specification, shim.

use super::{
    context::Context,
    env::{self, EnvError, Variables},
    events::Level,
    objects,
    record::{self, full_name, uid},
};
use crate::{
    devices::DeviceError,
    images::{Auths, Image, ImageName, Owner, PullError, REGISTRY_HOST, SHARED, normalize, owner_name, silent},
    network::{HostPort, NetworkError, PodNetworkSpec},
    oci::{
        self, Bind, ImageDefaults, PodNamespaces,
        identity::{Accounts, IdentityError, identity},
        resources, users,
    },
    registry,
    runtime::{Handle, RuntimeError, Stage},
    sandbox::{self, SandboxError},
    services::policy::{Admission, NotProgrammed},
    shim::{
        kept,
        records::{self, Exit, Overlay, SHIM_CONFIG, ShimConfig, Started},
    },
    volumes::{self, Brought, PodDirs, ReadyVolumes, Tokens, VolumeError},
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret};
use kube::Api;
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// The cgroup beside the containers' own; a container's is named `NAME.ATTEMPT`, so none is called this.
const PAUSE: &str = "pause";
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("Failed to create pod sandbox: {0}")]
    Network(#[from] NetworkError),
    #[error("Failed to create pod sandbox: {0}")]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("cannot read objects of the pod: {0}")]
    Api(#[from] kube::Error),
    #[error("image volume \"{volume}\": {failure}")]
    Image { volume: String, failure: ImageFailure },
    #[error("Failed to create pod sandbox: {0}")]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Devices(#[from] DeviceError),
    #[error("Failed to create pod sandbox: {0}")]
    Policies(#[from] NotProgrammed),
    #[error("the preparation was interrupted")]
    Interrupted,
}

impl PrepareError {
    /// The reason that upstream's event has.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Network(_) | Self::Sandbox(_) | Self::Runtime(_) | Self::Policies(_) | Self::Interrupted => {
                "FailedCreatePodSandBox"
            }
            // Upstream's reason of every failed allocation.
            Self::Devices(_) => "UnexpectedAdmissionError",
            Self::Volume(_) | Self::Api(_) | Self::Image { .. } => "FailedMount",
        }
    }
}

/// What a pod's containers are started into.
#[derive(Debug)]
pub struct Prepared {
    pub namespaces: PodNamespaces,
    pub shm: PathBuf,
    /// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` on the host.
    pub files: [PathBuf; 3],
    /// Of each family; in the host's network the node's.
    pub ips: Vec<IpAddr>,
    pub volumes: ReadyVolumes,
    pub tokens: Tokens,
    /// The host's id of the pod's root, where the pod has users of its own.
    pub first_user: Option<u32>,
    /// Of its address to the network policies; None in the host's network.
    pub admission: Option<Admission>,
}

async fn blocking<T: Send + 'static, E: Send + 'static>(
    interrupted: E,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(interrupted),
    }
}

pub async fn prepare(ctx: &Arc<Context>, pod: &Arc<Pod>) -> Result<Prepared, PrepareError> {
    let uid = uid(pod).to_owned();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let references = objects::references(pod);
    private_folders(&ctx.dirs(&uid))?;
    ctx.devices.allocate(pod).await?;
    let network = async {
        let own = own_users(ctx, pod).await?;
        let (first, namespace) = own.map_or((None, None), |(first, namespace)| (Some(first), Some(namespace)));
        let spec = PodNetworkSpec { host_network, hostname: sandbox::hostname(pod), namespace };
        Ok::<_, PrepareError>((ctx.network.attach(&uid, &spec).await?, first))
    };
    let objects = async { Ok(objects::fetch(&ctx.client, &namespace, &references).await?) };
    let tokens = async { Ok(volumes::issue_tokens(&ctx.client, pod).await?) };
    let run_volumes = ctx.dirs(&uid).run.join("volumes");
    let volumes = async {
        let volumes::Claimed { folders, mut shares } = volumes::resolve_claims(&ctx.client, pod).await?;
        shares.extend(volumes::nfs::of_pod(pod));
        let shares = volumes::nfs::mount_all(&ctx.nfs, &run_volumes, shares).await?;
        Ok::<_, PrepareError>((folders, shares))
    };
    let ((network, first_user), objects, tokens, (claims, shares), images) =
        tokio::try_join!(network, objects, tokens, volumes, image_volumes(ctx, pod))?;

    let brought = Brought { claims, images, shares };
    let layers: Vec<PathBuf> = brought.images.values().flatten().cloned().collect();
    if !layers.is_empty() {
        ctx.layers.lock().insert(uid.clone(), layers);
    }
    let ips = if host_network { ctx.host_ips.clone() } else { network.addresses() };
    if !host_network {
        ctx.network.expose(&uid, network.ip, host_ports(pod)).await?;
    }
    let (dirs, around, dns) = (ctx.dirs(&uid), ctx.surroundings(&ips), ctx.dns.clone());
    let admission = async {
        match host_network {
            true => Ok(None),
            false => Ok(Some(ctx.policies.admit(pod, &network).await?)),
        }
    };
    let (pod, context, netns) = (pod.clone(), ctx.clone(), network.netns_path.clone());
    let files = blocking(PrepareError::Interrupted, move || {
        let (mut namespaces, shm) = sandbox::namespaces(&pod, &dirs.run, netns)?;
        namespaces.pid = shared_processes(&context, &pod)?;
        let files = sandbox::files(&pod, &dirs.data, &ips, &dns)?;
        let volumes = volumes::prepare(&pod, &dirs, &brought)?;
        volumes::fill(&pod, &dirs, &around, &objects, &tokens)?;
        Ok(Prepared { namespaces, shm, files, ips, volumes, tokens, first_user, admission: None })
    });
    let (prepared, admission) = tokio::try_join!(files, admission)?;
    Ok(Prepared { admission, ..prepared })
}

fn private_folders(dirs: &PodDirs) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File { volume: String::new(), path: dirs.data.clone(), source };
    private_folder(&dirs.data).and_then(|()| private_folder(&dirs.run)).map_err(failed)
}

/// The user namespace of a pod that asks for one: the host's id of its root, and the network namespace that belongs to it.
async fn own_users(ctx: &Arc<Context>, pod: &Arc<Pod>) -> Result<Option<(u32, PathBuf)>, PrepareError> {
    if !sandbox::own_users(pod) {
        return Ok(None);
    }
    let (ctx, pod) = (ctx.clone(), pod.clone());
    blocking(PrepareError::Interrupted, move || {
        let dirs = ctx.dirs(uid(&pod));
        let first = ctx.user_blocks.of(uid(&pod)).map_err(|error| RuntimeError::Users(error.to_string()))?;
        let network = ctx.runtime.own_users(&dirs.run.join("ns"), first, &sandbox::hostname(&pod))?;
        Ok(Some((first, network)))
    })
    .await
}

/// What the pod's containers want of the host's ports.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    let containers = pod.spec.iter().flat_map(record::containers);
    let ports = containers.flat_map(|(_, c)| c.ports.clone().unwrap_or_default());
    let mut all: Vec<HostPort> = ports
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => "udp",
                Some("SCTP") => "sctp",
                _ => "tcp",
            };
            let address = port.host_ip.and_then(|ip| ip.parse().ok()).filter(|ip: &Ipv4Addr| !ip.is_unspecified());
            let (port, target) = (number(port.host_port?)?, number(port.container_port)?);
            Some(HostPort { protocol, address, port, target })
        })
        .collect();
    all.dedup();
    all
}

/// The process namespace that the pod's containers share, if they do. Blocking.
fn shared_processes(ctx: &Context, pod: &Pod) -> Result<Option<PathBuf>, RuntimeError> {
    if !pod.spec.as_ref().and_then(|s| s.share_process_namespace).unwrap_or(false) {
        return Ok(None);
    }
    let cgroup = format!("{}/{PAUSE}", ctx.cgroup(uid(pod)));
    ctx.runtime.shared_processes(&ctx.dirs(uid(pod)).run.join("ns"), &cgroup).map(Some)
}

/// Fetches the pod's objects again and writes what changed. Returns the tokens, renewed.
pub async fn refresh(ctx: &Arc<Context>, pod: &Arc<Pod>, ips: &[IpAddr]) -> Result<Tokens, PrepareError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let references = objects::references(pod);
    let objects = objects::fetch(&ctx.client, &namespace, &references).await?;
    let tokens = volumes::issue_tokens(&ctx.client, pod).await?;
    let (dirs, around, pod) = (ctx.dirs(uid(pod)), ctx.surroundings(ips), pod.clone());
    blocking(PrepareError::Interrupted, move || {
        volumes::fill(&pod, &dirs, &around, &objects, &tokens)?;
        Ok(tokens)
    })
    .await
}

/// The layers of image volumes, by volume.
async fn image_volumes(ctx: &Arc<Context>, pod: &Arc<Pod>) -> Result<BTreeMap<String, Vec<PathBuf>>, PrepareError> {
    let mut found = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(source) = &volume.image else { continue };
        let failed = |failure| PrepareError::Image { volume: volume.name.clone(), failure };
        let name = source.reference.clone().unwrap_or_default();
        let (_, layers) = ensure_image(ctx, pod, None, &name, source.pull_policy.as_deref()).await.map_err(failed)?;
        found.insert(volume.name.clone(), layers);
    }
    Ok(found)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageFailure {
    /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
    pub reason: &'static str,
    pub message: String,
}

/// The image, pulled if the policy says so, and its layers, topmost first.
pub async fn ensure_image(
    ctx: &Arc<Context>,
    pod: &Arc<Pod>,
    container: Option<&str>,
    name: &str,
    policy: Option<&str>,
) -> Result<(Image, Vec<PathBuf>), ImageFailure> {
    let failure = |reason, message: String| ImageFailure { reason, message };
    let full = normalize(name).map_err(|error| {
        let message = format!("Failed to apply default image tag \"{name}\": {error}");
        ctx.events.pod(pod, container, Level::Warning, "InspectFailed", message.clone());
        failure("InvalidImageName", message)
    })?;
    let latest = full.ends_with(":latest");
    let policy = policy.filter(|p| !p.is_empty()).unwrap_or(if latest { "Always" } else { "IfNotPresent" });
    let own = match ctx.images.target(name).filter(registry::is_own) {
        Some(target) => {
            Some(own_image(ctx, pod, target).await.map_err(|error| pull_failed(ctx, pod, container, name, &error))?)
        }
        None => None,
    };
    let (here, auths, withheld) = match &own {
        Some((owner, target)) => (ctx.images.resolve_own(owner, target), Auths::default(), false),
        None => present_for(ctx, pod, name, policy).await,
    };
    // What the registry on this machine holds is present on the machine.
    let policy = if policy == "Never" && own.is_some() { "IfNotPresent" } else { policy };
    let present = || format!("Container image \"{name}\" already present on machine");
    let image = match (policy, here) {
        ("Never", None) => {
            let message = match withheld {
                true => format!(
                    "Container image \"{name}\" was pulled with credentials that this pod does not have, and its pull policy \
                     is Never"
                ),
                false => format!("Container image \"{name}\" is not present with pull policy of Never"),
            };
            ctx.events.pod(pod, container, Level::Warning, "ErrImageNeverPull", message.clone());
            return Err(failure("ErrImageNeverPull", message));
        }
        ("Always", here) => match pull(ctx, pod, container, name, own.as_ref(), &auths).await {
            Ok(image) => image,
            Err(error) => match here {
                // Without its registry, a laboratory goes on with the image it was given.
                Some(image) if matches!(error, PullError::Disabled { .. } | PullError::Unreachable { .. }) => {
                    ctx.events.pod(pod, container, Level::Normal, "Pulled", present());
                    image
                }
                _ => return Err(pull_failed(ctx, pod, container, name, &error)),
            },
        },
        (_, Some(image)) => {
            ctx.events.pod(pod, container, Level::Normal, "Pulled", present());
            image
        }
        (_, None) => {
            let pulled = pull(ctx, pod, container, name, own.as_ref(), &auths).await;
            pulled.map_err(|error| pull_failed(ctx, pod, container, name, &error))?
        }
    };
    match ctx.images.snapshot(&image).await {
        Ok(snapshot) => Ok((image, snapshot.lower_dirs)),
        Err(error) => Err(failure("ErrImagePull", format!("image {name}: {error}"))),
    }
}

fn pull_failed(ctx: &Context, pod: &Pod, container: Option<&str>, name: &str, error: &PullError) -> ImageFailure {
    let message = format!("Failed to pull image \"{name}\": {error}");
    ctx.events.pod(pod, container, Level::Warning, "Failed", message);
    ctx.events.pod(pod, container, Level::Warning, "Failed", "Error: ErrImagePull");
    ImageFailure { reason: "ErrImagePull", message: error.to_string() }
}

async fn pull(
    ctx: &Arc<Context>,
    pod: &Arc<Pod>,
    container: Option<&str>,
    name: &str,
    own: Option<&(Owner, ImageName)>,
    auths: &Auths,
) -> Result<Image, PullError> {
    ctx.events.pod(pod, container, Level::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let began = Instant::now();
    let image = match own {
        Some((owner, target)) => ctx.images.pull_own(owner, target, silent()).await?,
        None => ctx.images.pull(name, auths, silent()).await?,
    };
    let took = Duration::from_millis(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    let message = format!(
        "Successfully pulled image \"{name}\" in {took:?} ({took:?} including waiting). Image size: {} bytes.",
        image.size
    );
    ctx.events.pod(pod, container, Level::Normal, "Pulled", message);
    Ok(image)
}

/// The image if it is here and the pod may have it, the pod's credentials where they matter, and whether it is here and
/// withheld: a copy that somebody else's credentials brought is no way around the registry.
async fn present_for(ctx: &Context, pod: &Pod, name: &str, policy: &str) -> (Option<Image>, Auths, bool) {
    let here = ctx.images.resolve(name).filter(|image| is_for(pod, image));
    let anybodys = here
        .as_ref()
        .is_some_and(|image| ctx.images.may_use(name, image, &Auths::default()) || is_pushed_for(pod, image));
    let auths = if anybodys && policy != "Always" { Auths::default() } else { pull_secrets(ctx, pod).await };
    match here {
        Some(image) if !anybodys && !ctx.images.may_use(name, &image, &auths) => (None, auths, true),
        here => (here, auths, false),
    }
}

/// Whose an image of the embedded registry is, if the pod may have it: it is of the pod's own namespace or for everybody, or
/// a secret of the pod's opens it.
async fn own_image(ctx: &Arc<Context>, pod: &Arc<Pod>, target: ImageName) -> Result<(Owner, ImageName), PullError> {
    let missing = || PullError::NotFound { name: target.to_string(), registry: target.registry.clone() };
    let name = owner_name(&target.repository).ok_or_else(missing)?;
    if name != SHARED && Some(name) != pod.metadata.namespace.as_deref() {
        let opens = match ctx.registry.get() {
            Some(access) => access.opens(&pull_secrets(ctx, pod).await, &target).await,
            None => false,
        };
        if !opens {
            return Err(PullError::Unauthorized { name: target.to_string(), registry: target.registry });
        }
    }
    let owner = registry::owner(&Api::all(ctx.client.clone()), name).await.map_err(|error| PullError::Registry {
        name: target.to_string(),
        registry: target.registry.clone(),
        why: error.to_string(),
    })?;
    Ok((owner.ok_or_else(missing)?, target))
}

/// Whether a pod may have an image that it names by digest alone: one that only other namespaces pushed is not its.
fn is_for(pod: &Pod, image: &Image) -> bool {
    image.names.iter().any(|name| pushed_name(name).is_none()) || is_pushed_for(pod, image)
}

/// Whether it was pushed to the embedded registry for the pod's namespace, or for all.
fn is_pushed_for(pod: &Pod, image: &Image) -> bool {
    let namespace = pod.metadata.namespace.as_deref();
    let mut owners = image.names.iter().filter_map(|name| pushed_name(name)).filter_map(owner_name);
    owners.any(|owner| owner == SHARED || Some(owner) == namespace)
}

/// The repository and tag of a name in the embedded registry.
fn pushed_name(name: &str) -> Option<&str> {
    name.strip_prefix(REGISTRY_HOST)?.strip_prefix('/')
}

async fn pull_secrets(ctx: &Context, pod: &Pod) -> Auths {
    let mut auths = Auths::default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        // A secret that is not there is no obstacle: upstream tries without it.
        let Ok(Some(secret)) = secrets.get_opt(&reference.name).await else { continue };
        for key in [".dockerconfigjson", ".dockercfg"] {
            if let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) {
                auths.add_docker_config(&bytes.0);
            }
        }
    }
    auths
}

/// Why a container is not running, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchFailure {
    /// `CreateContainerConfigError` or `CreateContainerError`.
    pub reason: &'static str,
    pub message: String,
}

impl LaunchFailure {
    fn config(error: &impl ToString) -> Self {
        Self { reason: "CreateContainerConfigError", message: error.to_string() }
    }

    fn create(error: &impl ToString) -> Self {
        Self { reason: "CreateContainerError", message: error.to_string() }
    }
}

impl From<EnvError> for LaunchFailure {
    fn from(error: EnvError) -> Self {
        Self::config(&error)
    }
}

impl From<IdentityError> for LaunchFailure {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NoUser(_) | IdentityError::NoGroup(_) => Self::create(&error),
            _ => Self::config(&error),
        }
    }
}

impl From<RuntimeError> for LaunchFailure {
    fn from(error: RuntimeError) -> Self {
        Self::create(&error)
    }
}

pub struct Launch {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub attempt: u32,
    pub prepared: Arc<Prepared>,
    pub image: Image,
    pub layers: Vec<PathBuf>,
}

pub enum Launched {
    Running(Handle, Started),
    /// It ended before it was seen running, or could not be started.
    Ended(Handle, Exit),
}

pub fn attempt_dir(data: &Path, container: &str, attempt: u32) -> PathBuf {
    data.join("containers").join(container).join(attempt.to_string())
}

pub fn log_path(data: &Path, container: &str, attempt: u32) -> PathBuf {
    data.join("logs").join(container).join(format!("{attempt}.log"))
}

pub fn termination_log(dir: &Path) -> PathBuf {
    dir.join("termination-log")
}

fn private_folder(path: &Path) -> io::Result<()> {
    // What containers write may be set-uid: no other user of the machine may reach it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub async fn launch(ctx: &Arc<Context>, launch: Launch) -> Result<Launched, LaunchFailure> {
    let namespace = launch.pod.metadata.namespace.clone().unwrap_or_default();
    let references = objects::references(&launch.pod);
    let objects = objects::fetch(&ctx.client, &namespace, &references).await.map_err(|e| LaunchFailure::config(&e))?;
    let around = ctx.surroundings(&launch.prepared.ips);
    let services = ctx.services(&namespace);
    let variables = env::variables(&launch.pod, &launch.container, &around, &objects, &services)?;
    let (pod, container) = (launch.pod.clone(), launch.container.name.clone());

    ctx.devices.before_start(uid(&pod), &container).await.map_err(|error| LaunchFailure::create(&error))?;
    let context = ctx.clone();
    let interrupted = LaunchFailure::create(&"the preparation was interrupted");
    let mut handle = blocking(interrupted, move || write_and_start(&context, &launch, &variables)).await?;
    ctx.events.pod(&pod, Some(&container), Level::Normal, "Created", format!("Container created: {container}"));
    match handle.launched().await {
        Stage::Running(started) => {
            // The container has the limit from its first process on; the pod as a whole as soon as its cgroup is there.
            if let Some(limit) = ctx.pod_pids_limit {
                let cgroup = ctx.cgroup(uid(&pod));
                if let Err(error) = ctx.runtime.hierarchies.limit_processes(&cgroup, limit) {
                    tracing::warn!(cgroup, %error, "the processes of a pod could not be limited as a whole");
                }
            }
            ctx.events.pod(&pod, Some(&container), Level::Normal, "Started", format!("Container started: {container}"));
            Ok(Launched::Running(handle, started))
        }
        Stage::Ended(exit) => {
            match &exit.failure {
                Some(failure) => {
                    let message = format!("Error: {failure}");
                    ctx.events.pod(&pod, Some(&container), Level::Warning, "Failed", message);
                }
                None => {
                    let message = format!("Container started: {container}");
                    ctx.events.pod(&pod, Some(&container), Level::Normal, "Started", message);
                }
            }
            Ok(Launched::Ended(handle, exit))
        }
        Stage::Creating => Err(LaunchFailure::create(&"the shim said nothing")),
    }
}

fn write_and_start(ctx: &Context, launch: &Launch, variables: &Variables) -> Result<Handle, LaunchFailure> {
    let Launch { pod, container, attempt, prepared, image, layers } = launch;
    let spec = pod.spec.as_ref().ok_or_else(|| LaunchFailure::create(&"the pod has no spec"))?;
    let dirs = ctx.dirs(uid(pod));
    let dir = attempt_dir(&dirs.data, &container.name, *attempt);
    let file = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| LaunchFailure::create(&format!("{path}: {error}"))
    };
    private_folder(&dir).map_err(file(&dir))?;
    let log = log_path(&dirs.data, &container.name, *attempt);
    if let Some(folder) = log.parent() {
        private_folder(folder).map_err(file(folder))?;
    }

    let defaults = defaults(image);
    let accounts = Accounts::read(layers);
    let identity =
        identity(spec.security_context.as_ref(), container.security_context.as_ref(), &defaults.user, &accounts)?;
    let mut binds =
        volumes::binds(container, &prepared.volumes, &dirs, variables).map_err(|e| LaunchFailure::config(&e))?;
    let read_only = container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem).unwrap_or(false);
    let targets: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let own =
        targets.iter().zip(&prepared.files).map(|(target, source)| (PathBuf::from(target), source.clone(), read_only));
    let message_path = container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let message = termination_log(&dir);
    fs::write(&message, "").map_err(file(&message))?;
    fs::set_permissions(&message, fs::Permissions::from_mode(0o666)).map_err(file(&message))?;
    let message_target = PathBuf::from(message_path.unwrap_or(DEFAULT_TERMINATION_LOG));
    for (target, source, read_only) in own.chain([(message_target, message.clone(), false)]) {
        // What the pod mounts there itself wins.
        if !binds.iter().any(|bind| bind.target == target) {
            binds.push(Bind { source, target, read_only, propagation: None });
        }
    }

    // One for each attempt: the last one's may still be on its way out.
    let cgroup = format!("{}/{}.{attempt}", ctx.cgroup(uid(pod)), container.name);
    let rootfs = if prepared.first_user.is_some() { users::rootfs() } else { dir.join("rootfs") };
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged).unwrap_or(false);
    let host_devices = if privileged { host_devices() } else { Vec::new() };
    let namespaces =
        PodNamespaces { pid: process_namespace(ctx, pod, spec, &container.name)?, ..prepared.namespaces.clone() };
    let mut specification = oci::spec(&oci::Input {
        pod: spec,
        container,
        image: &defaults,
        identity: &identity,
        env: variables.pairs(),
        command: oci::command(container, &defaults, |text| variables.expand(text)),
        binds: &binds,
        namespaces: &namespaces,
        rootfs: &rootfs,
        shm: (!spec.host_ipc.unwrap_or(false)).then_some(prepared.shm.as_path()),
        cgroup: &cgroup,
        unified_cgroups: ctx.runtime.hierarchies.unified(),
        pids_limit: ctx.pod_pids_limit,
        available: ctx.available,
        host_devices: &host_devices,
    })
    .map_err(|error| LaunchFailure::create(&error))?;

    let devices = ctx.devices.apply(uid(pod), &container.name, &mut specification);
    devices.map_err(|error| LaunchFailure::create(&error))?;
    let users = match (prepared.first_user, &namespaces.user) {
        (Some(first), Some(namespace)) => {
            users::check(&identity).map_err(|error| LaunchFailure::config(&error))?;
            Some(users::stage(&mut specification, first, namespace))
        }
        _ => None,
    };

    let id = hex::encode(rand::random::<[u8; 32]>());
    let config = ShimConfig {
        id,
        runtime_root: ctx.runtime.runtime_root.clone(),
        overlay: Some(Overlay {
            lower: layers.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
            target: rootfs,
        }),
        users,
        log_path: log,
        log_max_bytes: ctx.log_max_bytes,
        log_max_files: ctx.log_max_files,
        cgroup,
        oom_score_adj: resources::oom_score_adj(spec, container, ctx.memory_bytes),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        uid: prepared.first_user.unwrap_or(0) + identity.uid,
        stop_signal: stop_signal(container, &defaults),
        termination_log: message,
    };
    records::write(&dir.join("config.json"), &specification).map_err(file(&dir))?;
    // Last: from here on this attempt counts as launched.
    records::write(&dir.join(SHIM_CONFIG), &config).map_err(file(&dir))?;
    tracing::debug!(pod = %full_name(pod), container = %container.name, attempt, "starting a container");
    Ok(ctx.runtime.launch(&dir)?)
}

/// The process namespace to join: the pod's, or that of the container which an ephemeral one is to look at.
fn process_namespace(
    ctx: &Context,
    pod: &Pod,
    spec: &PodSpec,
    container: &str,
) -> Result<Option<PathBuf>, LaunchFailure> {
    // Looked at again: the process that holds it may have been killed.
    if let Some(shared) = shared_processes(ctx, pod)? {
        return Ok(Some(shared));
    }
    let Some(target) = record::target(spec, container) else { return Ok(None) };
    let missing = || LaunchFailure::create(&format!("target container {target} is not running"));
    let handle = ctx.handles.lock().get(&(uid(pod).to_owned(), target.to_owned())).cloned();
    let Some(Stage::Running(started)) = handle.map(|handle| handle.stage()) else { return Err(missing()) };
    let kept = ctx.dirs(uid(pod)).run.join("ns").join(format!("pid.{container}"));
    kept::keep(Path::new(&format!("/proc/{}/ns/pid", started.init.pid)), &kept)
        .map_err(|e| LaunchFailure::create(&e))?;
    // Looked at last: what is kept is the container's only if it still had the number then.
    if started.init.runs() {
        Ok(Some(kept))
    } else {
        kept::forget(&kept);
        Err(missing())
    }
}

fn stop_signal(container: &Container, image: &ImageDefaults) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    own.or(Some(image.stop_signal.as_str())).and_then(super::stop::signal_number).unwrap_or(libc::SIGTERM)
}

fn defaults(image: &Image) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
    }
}

/// Every device node of the host, for privileged containers.
fn host_devices() -> Vec<(PathBuf, char, u64, u64)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            if kind.is_dir() && !["pts", "shm", "mqueue", "fd"].iter().any(|own| entry.file_name() == **own) {
                folders.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                if path == Path::new("/dev/console") || path == Path::new("/dev/ptmx") {
                    continue;
                }
                let device = meta.rdev();
                let letter = if kind.is_char_device() { 'c' } else { 'b' };
                found.push((path, letter, nix::sys::stat::major(device), nix::sys::stat::minor(device)));
            }
        }
    }
    found
}
