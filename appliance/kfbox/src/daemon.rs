//! The composition root: what the daemon is made of, in the order in which it comes up. Build, then spawn.

use crate::{
    adapters::{
        artifacts::Artifacts,
        authorizer::ClusterAuthorizer,
        dashboard::{DashboardData, Members},
        departures,
        identity::{ClusterTokens, GatewayTokens, Settling},
        kubelet::NodeKubelet,
        lineage::Recorded,
        metadata_access::MetadataAccess,
        namespace_stores,
        namespaces::ProfileNamespaces,
        outside_stores::OutsideArtifacts,
        pipeline_packages::PipelinePackages,
        pod_identity, signing,
        user_routes::ClusterRoutes,
    },
    backend::DaemonBackend,
    cli,
    config::{Addresses, Config, TlsMode},
    control::{self, Control},
    failure::{Code, Failure},
    lock::DataDirLock,
    pip,
    publish::{self, Published},
};
use anyhow::Context;
use kfbox_api::names::{REGISTRY_HOST, REGISTRY_SERVICE};
use kfbox_apiserver::{ApiServer, auth::Authority};
use kfbox_base::{
    Authorizer, Readiness, Tasks,
    journal::Room,
    listener::BindError,
    telemetry::{self, AuditTrail},
};
use kfbox_dashboard::Connect;
use kfbox_gateway::{Gateway, Mounts, Newcomers, Tls, user_routes::UserServices};
use kfbox_metadata::Metadata;
use kfbox_node::{Node, NodeConfig, images::ImageConfig, network::NetworkConfig};
use kfbox_objects::Objects;
use kfbox_pipelines::Pipelines;
use kfbox_platform::{DefaultProfile, kfam, packages::Packages, workgroup};
use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// What the daemon carries for pipeline steps, and the image it is stored as.
static LAUNCHER: &[u8] = include_bytes!(env!("KFBOX_LAUNCHER"));

/// How long tasks may take to end after a stop; containers are not among them.
const DRAIN: Duration = Duration::from_secs(10);
/// Who came and what was changed of people: some hundred bytes a line, so years of a small team's.
const TRAIL: Room = Room { max_bytes: 8 << 20, files: 4 };
/// Work for threads is short here (SQLite, unpacking): more of them only cost memory.
const BLOCKING_THREADS: usize = 32;

/// The ports on the pods' gateway address, besides that of the Kubernetes API.
mod port {
    pub const PIPELINES: u16 = 8888;
    pub const TASKS: u16 = 8887;
    pub const PACKAGES: u16 = 8886;
    pub const OBJECTS: u16 = 9000;
    pub const METADATA: u16 = 8080;
    pub const REGISTRY: u16 = 8885;
    pub const KUBERNETES: u16 = 6443;
}

/// Runs the daemon until it is told to stop. `announce`: nobody else will tell the user when it is ready.
pub fn run(config: &Config, announce: bool) -> anyhow::Result<()> {
    let trail = AuditTrail::default();
    telemetry::init(&config.log, config.log_json, trail.clone()).map_err(|error| {
        let next = "use a level (error, warn, info, debug) or `info,kfbox_node=debug`";
        Failure::new(Code::Configuration, format!("log filter {:?}: {error}", config.log), next)
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()?
        .block_on(supervise(config, announce, &trail))
}

async fn supervise(config: &Config, announce: bool, trail: &AuditTrail) -> anyhow::Result<()> {
    let _lock = DataDirLock::acquire(&config.data_dir)?;
    let missing = cli::missing_requirements(config);
    if !missing.is_empty() {
        return Err(
            Failure::new(Code::Requirement, missing.join("\n       "), "`kfbox doctor` shows the whole list").into()
        );
    }
    trail.open(&config.data_dir.join("sign-in.log"), TRAIL).context("cannot open sign-in.log in the data directory")?;
    let tasks = Tasks::new();
    let mut control = None;
    let outcome = tokio::select! {
        outcome = async {
            control = Some(start(config, &tasks, announce).await?);
            tasks.stopped().await.map_err(anyhow::Error::from)
        } => outcome,
        name = signalled() => {
            tracing::info!(signal = name?, "stopping");
            Ok(())
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tasks.stop();
    for name in tasks.drain(DRAIN).await {
        tracing::warn!(task = name, "did not stop in time");
    }
    trail.flush().await;
    if control.is_some_and(|c| c.ends_pods()) {
        Node::stop_containers(&node_config(config, &node_name())?).await;
    }
    let _ = std::fs::remove_file(Config::control_socket(&config.data_dir));
    outcome.map_err(explain)
}

async fn signalled() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Gives an error from below the exit code and the next step that a user needs.
fn explain(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Failure>() {
        return error;
    }
    for cause in error.chain() {
        if let Some(BindError::InUse { .. }) = cause.downcast_ref() {
            let next = "stop that program (`ss -ltnp` names it), or choose another address (`kfbox up --help`)";
            return Failure::new(Code::AddressInUse, cause.to_string(), next).into();
        }
        if let Some(kfbox_apiserver::OpenError::Audit(error)) = cause.downcast_ref() {
            let next = "correct kubernetes.audit in the configuration file, or the policy that it names";
            return Failure::new(Code::Configuration, error.to_string(), next).into();
        }
        if let Some(error) = gateway_mistake(cause) {
            let next = "correct [gateway] in the configuration file";
            return Failure::new(Code::Configuration, error, next).into();
        }
        if let Some(kfbox_db::OpenError::Newer { name, path, found, known }) = database_error(cause) {
            let message = format!(
                "the {name} database {} was written by a newer kfbox (its version is {found}, this one knows {known})",
                path.display()
            );
            let next = "run the newer kfbox, or start this one with another --data-dir";
            return Failure::new(Code::NewerData, message, next).into();
        }
    }
    error
}

/// What is wrong with the gateway's clients or certificate.
fn gateway_mistake(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    use kfbox_gateway::{GatewayError, TlsError};
    if let Some(error @ GatewayError::Config(_)) = cause.downcast_ref() {
        return Some(error.to_string());
    }
    let found = cause.downcast_ref::<TlsError>().filter(|e| !matches!(e, TlsError::Tls(_)));
    found.map(|error| format!("gateway.tls: {error}"))
}

/// The stores' errors are transparent about their database's: the chain shows them, but by the outer type.
fn database_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a kfbox_db::OpenError> {
    use kfbox_gateway::{GatewayError, StoreError};
    if let Some(kfbox_apiserver::OpenError::Database(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(kfbox_objects::OpenError::Database(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(kfbox_pipelines::StartError::Database(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(GatewayError::Store(StoreError::Open(error))) = cause.downcast_ref() {
        return Some(error);
    }
    cause.downcast_ref()
}

struct Listeners {
    gateway: TcpListener,
    kubernetes: TcpListener,
    objects: TcpListener,
    metadata: TcpListener,
    registry: TcpListener,
    /// Plain HTTP beside the gateway's TLS.
    redirect: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, BindError> {
        use kfbox_base::listener::bind;
        Ok(Self {
            gateway: bind("gateway", config.gateway.address).await?,
            kubernetes: bind("Kubernetes API", config.kubernetes.address).await?,
            objects: bind("S3", config.objects.address).await?,
            metadata: bind("ML Metadata", config.metadata.address).await?,
            registry: bind("image registry", config.registry.address).await?,
            redirect: match config.gateway.tls.acme.http_address {
                Some(address) => Some(bind("plain HTTP", address).await?),
                None => None,
            },
        })
    }
}

async fn start(config: &Config, tasks: &Tasks, announce: bool) -> anyhow::Result<Control> {
    let data_dir = &config.data_dir;
    let networks = config.addresses()?;
    let Addresses { bridge, api_service, dns, .. } = networks;
    let listeners = Listeners::bind(config).await?;
    let gateway_address = listeners.gateway.local_addr()?;
    let kubernetes_address = listeners.kubernetes.local_addr()?;
    let objects_address = listeners.objects.local_addr()?;
    let metadata_address = listeners.metadata.local_addr()?;
    let registry_address = listeners.registry.local_addr()?;
    let url = config.gateway.url(gateway_address);
    let kubernetes_url = format!("https://{kubernetes_address}");
    let objects_url = format!("http://{objects_address}");

    // Everything that must be ready is known from the first moment, so that `ready` cannot be true too early.
    let readiness = Readiness::default();
    let kubernetes = readiness.component("kubernetes");
    let objects_ready = readiness.component("objects");
    let metadata_ready = readiness.component("metadata");
    let platform_ready = readiness.component("gateway");
    let control = Control::new(
        &config.instance,
        url.clone(),
        &config.user,
        BTreeMap::from([
            ("gateway".to_owned(), gateway_address.to_string()),
            ("gateway-for-pods".to_owned(), SocketAddr::from((bridge, port::PIPELINES)).to_string()),
            ("kubernetes".to_owned(), kubernetes_address.to_string()),
            ("objects".to_owned(), objects_address.to_string()),
            ("metadata".to_owned(), metadata_address.to_string()),
            ("registry".to_owned(), registry_address.to_string()),
        ]),
        readiness.clone(),
        tasks.clone(),
    );
    control::serve(control.clone(), &Config::control_socket(data_dir), tasks).context("the control socket")?;

    // The cluster.
    let api = ApiServer::open(
        kfbox_apiserver::Config {
            service_cidr: networks.services.to_string(),
            second_service_cidr: networks.second.map(|second| second.services.to_string()),
            dns_ip: dns,
            api_service_ip: api_service,
            api_endpoint: Some((bridge, port::KUBERNETES)),
            extra_sans: vec![bridge.to_string(), kubernetes_address.ip().to_string(), REGISTRY_HOST.into()],
            audit: config.audit(),
            ..kfbox_apiserver::Config::new(data_dir)
        },
        tasks,
    )
    .await?;
    api.serve(listeners.kubernetes, tasks)?;
    let client = api.client();
    kubernetes.ready();
    let node_name = node_name();
    kfbox_controllers::start(
        client.clone(),
        kfbox_controllers::Config {
            node_name: node_name.clone(),
            local_path_root: data_dir.join("volumes"),
            root_ca_pem: api.authority().ca_pem().to_owned(),
            cluster_name: "kfbox".into(),
            signer: Some(Arc::new(signing::Signer(api.authority()))),
        },
        tasks,
        &readiness,
    );

    // Stores.
    let objects =
        Objects::open(kfbox_objects::Config { data_dir: data_dir.clone(), region: REGION.into() }, tasks).await?;
    objects.ensure_bucket(BUCKET).await?;
    objects.serve(listeners.objects, tasks);
    objects_ready.ready();
    let reviews = Arc::new(ClusterAuthorizer::new(client.clone()));
    let authorizer: Arc<dyn Authorizer> = reviews.clone();
    let namespaces = ProfileNamespaces::new(client.clone(), authorizer.clone());
    let access = MetadataAccess { namespaces: namespaces.clone(), authorizer: authorizer.clone() };
    let metadata = Metadata::open(kfbox_metadata::Config { data_dir: data_dir.clone() }, Arc::new(access))?;
    let authority = api.authority();
    let identify = {
        let authority = authority.clone();
        Arc::new(move |certificates: &[rustls::pki_types::CertificateDer<'_>]| authority.identify(certificates))
    };
    metadata.serve_tls(listeners.metadata, authority.server_tls(true)?, identify, tasks);
    metadata_ready.ready();

    // The node, and the daemon's servers on the pods' network.
    let node = Node::start(node_config(config, &node_name)?, client.clone(), tasks, &readiness).await?;
    api.set_kubelet(Arc::new(NodeKubelet { node: node.clone(), tasks: tasks.clone() }));
    let launcher_image = store_launcher(&node).await?;
    let on_bridge =
        |purpose: &'static str, port: u16| kfbox_base::listener::bind(purpose, SocketAddr::from((bridge, port)));
    api.serve(on_bridge("Kubernetes API for pods", port::KUBERNETES).await?, tasks)?;
    objects.serve(on_bridge("S3 for pods", port::OBJECTS).await?, tasks);
    metadata.serve_plain(
        on_bridge("ML Metadata for pods", port::METADATA).await?,
        pod_identity::by_address(client.clone(), tasks),
        tasks,
    );

    // Components. The gateway knows the people in whose names schedules start runs.
    let (gateway, tls) = open_gateway(config, gateway_address, &url, &client, &readiness)?;
    reviews.know(gateway.clone());
    let pipelines = Pipelines::open(
        kfbox_pipelines::Config {
            pip_index_url: Some(format!("http://{bridge}:{}/simple/", port::PACKAGES)),
            pip_trusted_host: Some(bridge.to_string()),
            retention: config.pipelines.retention(),
            ..kfbox_pipelines::Config::new(data_dir, launcher_image, format!("http://{bridge}:{}", port::TASKS))
        },
        kfbox_pipelines::Deps {
            client: client.clone(),
            authorizer: authorizer.clone(),
            namespaces: Arc::new(namespaces.clone()),
            people: Arc::new(GatewayTokens(gateway.clone())),
            artifacts: Arc::new(Artifacts(objects.clone())),
            outside: Arc::new(OutsideArtifacts::new(&config.pipelines, &config.network)?),
            lineage: Arc::new(Recorded(metadata.store().clone())),
            logs: Arc::new(kfbox_pipelines::KubeLogs(client.clone())),
            packages: Arc::new(PipelinePackages::new(&config.pipelines, &config.packages)?),
        },
        tasks,
        &readiness,
    )
    .await?;
    serve_router("tasks", on_bridge("task API", port::TASKS).await?, pipelines.task_router(), tasks);
    let webhook = kfbox_base::listener::bind("webhooks", SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let admission = kfbox_pipelines::Admission {
        url: format!("https://{}", webhook.local_addr()?),
        ca_pem: authority.ca_pem().to_owned(),
    };
    gateway.serve_named("webhooks", webhook, authority.server_tls(false)?, pipelines.admission_router(), tasks);
    pipelines.follow_resources(admission);
    let stores = departures::Stores {
        client: client.clone(),
        pipelines: pipelines.clone(),
        objects: objects.clone(),
        metadata: metadata.clone(),
    };
    departures::follow(stores, tasks);
    namespace_stores::follow(client.clone(), objects.clone(), tasks);
    let packages = Packages::open(python_index(config)?, tasks)?;
    serve_router("packages", on_bridge("Python packages", port::PACKAGES).await?, packages.router(), tasks);
    let reserved = kfbox_dashboard::PAGES.into_iter().chain(["api", "apis", "kfam"]).map(String::from);
    let reserved: Vec<String> = reserved.collect();
    let host = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_owned));
    let platform = kfbox_platform::Config {
        default_profile: Some(DefaultProfile::for_user(&config.user)),
        walls: config.walls(),
        routes: kfbox_platform::routes::Config {
            hosts: host.into_iter().collect(),
            reserved: reserved.clone(),
            issuer: format!("{}/dex", url.trim_end_matches('/')),
        },
    };
    let routes = kfbox_platform::start(client.clone(), platform, tasks, &readiness);

    // The door.
    api.add_token_authenticator(Arc::new(GatewayTokens(gateway.clone())));
    if let Some(password) = gateway.ensure_first_user(&config.user).await? {
        control.set_password(password.reveal().to_owned());
    }
    let (people, registry_authorizer) = (gateway.clone(), authorizer.clone());
    let membership = kfam::Deps {
        client: client.clone(),
        authorizer: authorizer.clone(),
        self_service: config.profiles.registration,
        groups_of: Arc::new(move |email| {
            let known = people.list_users().into_iter().find(|u| u.email == email && !u.disabled && !u.departed);
            known.map(|u| u.groups).unwrap_or_default()
        }),
    };
    let access = kfam::router(membership.clone());
    let members = Members::new(access.clone(), namespaces.clone(), gateway.clone());
    let dashboard = kfbox_dashboard::router(kfbox_dashboard::Deps {
        data: Arc::new(DashboardData::new(readiness.clone(), pipelines.clone(), namespaces.clone(), members)),
        connect: Connect {
            gateway_url: url.clone(),
            s3_endpoint: objects_url.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        shutdown: tasks.shutdown(),
    });
    let mounts = Mounts::new()
        .at("/apis", pipelines.router())
        .stripped("/pipeline", pipelines.router())
        .at("/kfam", access)
        .at("/api", workgroup::router(membership))
        .at("/metrics", gateway.metrics(authorizer.clone()))
        .at("/", dashboard)
        .with_user_services(UserServices {
            routes: Arc::new(ClusterRoutes(routes)),
            authorizer,
            pages: reserved.into(),
            tasks: tasks.clone(),
        });
    let workers = gateway.workers(&mounts, tasks)?;
    match &tls {
        Some(tls) => {
            workers.serve_tls("gateway", listeners.gateway, tls)?;
            if let Some(listener) = listeners.redirect {
                gateway.serve_redirect("plain HTTP", listener, tls, tasks);
            }
            tls.keep(tasks)?;
            control.set_tls(tls.clone());
        }
        None => workers.serve("gateway", listeners.gateway)?,
    }
    workers.serve("gateway for pods", on_bridge("pipelines for pods", port::PIPELINES).await?)?;

    // The registry: its clients sign in by themselves, so it is beside the gateway, not behind it. Pods know it by a name of
    // the cluster's, and so by a certificate of the cluster's.
    let registry = node.registry(Arc::new(ClusterTokens::new(client.clone())), registry_authorizer).router();
    match &tls {
        Some(tls) => gateway.serve_tls("registry", listeners.registry, tls, registry.clone(), tasks)?,
        None => gateway.serve("registry", listeners.registry, registry.clone(), tasks),
    }
    let for_pods = on_bridge("image registry for pods", port::REGISTRY).await?;
    gateway.serve_named("registry for pods", for_pods, authority.server_tls(false)?, registry, tasks);
    publish::services(
        &client,
        bridge,
        &[
            Published { name: "ml-pipeline", port_name: "http", port: 8888, target: port::PIPELINES },
            Published { name: "minio-service", port_name: "http", port: 9000, target: port::OBJECTS },
            Published { name: "metadata-grpc-service", port_name: "grpc-api", port: 8080, target: port::METADATA },
            Published { name: PACKAGES_SERVICE, port_name: "http", port: 80, target: port::PACKAGES },
            Published { name: REGISTRY_SERVICE, port_name: "https", port: 443, target: port::REGISTRY },
        ],
    )
    .await?;

    control.set_backend(Arc::new(DaemonBackend {
        api,
        gateway,
        objects,
        node: node.clone(),
        kubernetes_url,
        objects_url,
        objects_url_for_pods: format!("http://{bridge}:{}", port::OBJECTS),
        user: config.user.clone(),
    }));
    platform_ready.ready();
    housekeeping(tasks, data_dir.join("pki"), authority, node);
    tell_when_ready(control.clone(), readiness, tasks, announce);
    crate::memory::keep_small(tasks);
    Ok(control)
}

/// The gateway, and its certificate unless it speaks plain HTTP.
fn open_gateway(
    config: &Config,
    bound: SocketAddr,
    url: &str,
    client: &kube::Client,
    readiness: &Readiness,
) -> anyhow::Result<(Gateway, Option<Arc<Tls>>)> {
    let url = url.parse().context("the gateway's external_url")?;
    let source = config.gateway.tls_source(&config.data_dir.join("pki"), bound, &node_name());
    let settings = kfbox_gateway::Config {
        clients: config.gateway.clients.clone(),
        connectors: config.gateway.connectors.clone(),
        password_grant: config.gateway.password_grant,
        password_connector: config.gateway.password_connector.clone(),
        strict_transport: config.gateway.tls.mode != TlsMode::SelfSigned,
        access_log: config.gateway.access_log.room(),
        ..kfbox_gateway::Config::new(config.data_dir.clone(), url)
    };
    let deps = kfbox_gateway::Deps {
        token_reviewer: Arc::new(ClusterTokens::new(client.clone())),
        readiness: readiness.clone(),
        newcomers: config.profiles.registration.then(|| Arc::new(Settling(client.clone())) as Arc<dyn Newcomers>),
    };
    Ok((Gateway::open(settings, deps)?, source.map(Tls::open).transpose()?))
}

/// How often certificates are looked at and unused image content is removed.
const HOUSEKEEPING: Duration = Duration::from_secs(6 * 3600);

fn housekeeping(tasks: &Tasks, pki: std::path::PathBuf, authority: Arc<Authority>, node: Arc<Node>) {
    let shutdown = tasks.shutdown();
    tasks.essential("housekeeping", async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                () = tokio::time::sleep(HOUSEKEEPING) => {}
            }
            match authority.renew(&pki) {
                Ok(true) => tracing::info!("the serving certificate was renewed"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the serving certificate could not be renewed; it will be tried again")
                }
            }
            if let Err(error) = node.collect_images().await {
                tracing::warn!(%error, "unused image content could not be removed; it will be tried again");
            }
        }
    });
}

/// Tells the service manager, and in the foreground the person, once everything is ready.
fn tell_when_ready(control: Control, readiness: Readiness, tasks: &Tasks, announce: bool) {
    let shutdown = tasks.shutdown();
    drop(tasks.spawn("readiness", async move {
        let mut changes = readiness.subscribe();
        loop {
            if readiness.is_ready() {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                tracing::info!("ready");
                if announce {
                    let mut status = control.status();
                    status.password = control.take_password();
                    cli::report(&status, "is ready");
                }
                return;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }));
}

fn serve_router(name: &'static str, listener: TcpListener, router: axum::Router, tasks: &Tasks) {
    let shutdown = tasks.shutdown();
    tasks.essential(name, async move {
        axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    });
}

/// The package index's name in `kubeflow`, for tools that write an index into what they compile.
const PACKAGES_SERVICE: &str = "python-packages";
pub const REGION: &str = "us-east-1";
/// The bucket of upstream's default pipeline root.
pub const BUCKET: &str = "mlpipeline";

/// The machine's name as a node's: lower case, as Kubernetes requires.
fn node_name() -> String {
    let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let fine: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    let fine = fine.trim_matches(['-', '.']);
    if fine.is_empty() { "kfbox".into() } else { fine.into() }
}

/// The package index that pods reach through the cache: the configuration's, else pip's own, else PyPI.
fn python_index(config: &Config) -> anyhow::Result<kfbox_platform::packages::Config> {
    let pip = pip::settings();
    let url = config.packages.index_url.clone().or(pip.index_url).unwrap_or_else(|| "https://pypi.org/simple".into());
    let url = url.parse().map_err(|error| {
        let next = "set packages.index_url to a URL such as https://pypi.org/simple";
        Failure::new(Code::Configuration, format!("the package index {url:?}: {error}"), next)
    })?;
    Ok(kfbox_platform::packages::Config {
        find_links: pip.find_links,
        ca_bundle: config.packages.ca_bundle.clone().or(pip.cert),
        ..kfbox_platform::packages::Config::new(config.data_dir.join("packages"), url)
    })
}

async fn store_launcher(node: &Node) -> anyhow::Result<String> {
    let name = format!("kfbox.local/launcher:{}", env!("CARGO_PKG_VERSION"));
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(LAUNCHER.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    layer.append_data(&mut header, "kfbox-launcher", LAUNCHER)?;
    let layer = layer.into_inner()?;
    node.images().import_layer_image(&name, layer, kfbox_node::images::RunConfig::default()).await?;
    Ok(name)
}

fn node_config(config: &Config, node_name: &str) -> anyhow::Result<NodeConfig> {
    let networks = config.addresses()?;
    // Mounts and sockets of this boot; two boxes on one machine differ by their instance.
    let run_dir = Path::new("/run/kfbox").join(&config.instance);
    let network = NetworkConfig {
        instance: config.instance.clone(),
        bridge: config.network.bridge.clone(),
        pod_cidr: networks.pods,
        service_cidr: networks.services,
        second: networks.second,
        dns_ip: networks.dns,
        mtu: 0,
        run_dir: run_dir.clone(),
    };
    Ok(NodeConfig {
        node_name: node_name.to_owned(),
        devices: config.devices(),
        images: ImageConfig {
            aliases: config.images.aliases.clone(),
            mirrors: config.images.mirrors.clone(),
            insecure: config.images.insecure.clone(),
            ca_file: config.images.ca_bundle.clone(),
            pull_enabled: !config.images.offline,
            ..proxies()
        },
        ..NodeConfig::new(config.data_dir.clone(), run_dir, &config.instance, network)
    })
}

/// The machine's own proxy settings, for pulls.
#[expect(clippy::disallowed_methods, reason = "the usual variables for proxies")]
fn proxies() -> ImageConfig {
    let variable =
        |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_uppercase())).ok().filter(|v| !v.is_empty());
    ImageConfig {
        https_proxy: variable("https_proxy"),
        http_proxy: variable("http_proxy"),
        no_proxy: variable("no_proxy"),
        ..ImageConfig::default()
    }
}

/// Removes everything of a stopped box from the machine, but for its data directory.
pub async fn reset(config: &Config) -> anyhow::Result<()> {
    Node::reset(&node_config(config, &node_name())?).await.map_err(Into::into)
}
