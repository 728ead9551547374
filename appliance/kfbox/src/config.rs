//! Configuration: flags over environment over file over defaults, resolved once, in one place.

mod acme;
mod gateway;

pub use gateway::{Gateway, TlsMode};

use crate::failure::{Code, Failure};
use anyhow::Context;
use clap::Args;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kfbox_base::journal::Room;
use kfbox_gateway::ConnectorConfig;
use kfbox_node::{
    DevicesConfig, GpuConfig, MigStrategy,
    network::{Pairing, SecondRanges},
};
use kfbox_platform::{PodSecurity, Walls};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

pub const DEFAULT_DATA_DIR: &str = "/var/lib/kfbox";
pub const DEFAULT_CONFIG_FILE: &str = "/etc/kfbox/config.toml";

/// Which box: options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct BoxOptions {
    /// Where the box keeps everything [default: /var/lib/kfbox]
    #[arg(long, env = "KFBOX_DATA_DIR", global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file in TOML [default: /etc/kfbox/config.toml if it exists]
    #[arg(long, env = "KFBOX_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What `up` may override. A flag wins over its environment variable, that over the file, that over the default.
#[derive(Debug, Clone, Default, Args)]
pub struct UpOptions {
    /// Keeps two boxes on one machine apart: names the bridge, firewall table and control group
    #[arg(long, env = "KFBOX_INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,
    /// The first user's e-mail address
    #[arg(long, env = "KFBOX_USER", value_name = "EMAIL")]
    pub user: Option<String>,
    /// Pages, sign-in and Kubeflow's APIs
    #[arg(long, env = "KFBOX_ADDRESS", value_name = "ADDR:PORT")]
    pub address: Option<SocketAddr>,
    /// HTTPS for those: with a certificate of the box's own, which `kfbox trust` installs, or with files
    #[arg(long, env = "KFBOX_TLS", value_enum, value_name = "MODE", num_args = 0..=1, default_missing_value = "self-signed")]
    pub tls: Option<TlsMode>,
    /// The certificate and its chain in PEM, with --tls files; read again when it changes
    #[arg(long, env = "KFBOX_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key in PEM
    #[arg(long, env = "KFBOX_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The Kubernetes API
    #[arg(long, env = "KFBOX_KUBERNETES_ADDRESS", value_name = "ADDR:PORT")]
    pub kubernetes_address: Option<SocketAddr>,
    /// The S3 store
    #[arg(long, env = "KFBOX_OBJECTS_ADDRESS", value_name = "ADDR:PORT")]
    pub objects_address: Option<SocketAddr>,
    /// ML Metadata over gRPC
    #[arg(long, env = "KFBOX_METADATA_ADDRESS", value_name = "ADDR:PORT")]
    pub metadata_address: Option<SocketAddr>,
    /// The image registry, to push to from outside of pods
    #[arg(long, env = "KFBOX_REGISTRY_ADDRESS", value_name = "ADDR:PORT")]
    pub registry_address: Option<SocketAddr>,
    /// The pods' network; with an IPv6 one after a comma, pods have an address of each
    #[arg(long, env = "KFBOX_POD_CIDR", value_name = "CIDR[,CIDR]")]
    pub pod_cidr: Option<String>,
    /// The Services' network, likewise
    #[arg(long, env = "KFBOX_SERVICE_CIDR", value_name = "CIDR[,CIDR]")]
    pub service_cidr: Option<String>,
    /// What pods in people's namespaces may not ask for: `privileged` (anything goes), `baseline` or `restricted`
    #[arg(long, env = "KFBOX_POD_SECURITY", value_name = "LEVEL")]
    pub pod_security: Option<PodSecurity>,
    /// What to log, such as `info` or `info,kfbox_node=debug`
    #[arg(long, env = "KFBOX_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The file's form, and the resolved configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    pub instance: String,
    pub user: String,
    pub log: String,
    pub log_json: bool,
    pub gateway: Gateway,
    pub kubernetes: Kubernetes,
    pub objects: Listener,
    pub metadata: Listener,
    pub registry: Listener,
    pub network: Network,
    pub profiles: Profiles,
    pub images: Images,
    pub devices: Devices,
    pub packages: Packages,
    pub pipelines: Pipelines,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    pub address: SocketAddr,
    pub audit: Audit,
}

/// Who did what in the cluster, in `audit.log` in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    pub enabled: bool,
    /// A Policy of `audit.k8s.io/v1`. Empty: changes, reads of secrets, and ways into pods, without contents.
    pub policy: Option<PathBuf>,
    /// A file of this size is put aside (`audit.log.1` and so on) and a new one begun.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub files: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Empty: the instance's name and a zero.
    pub bridge: String,
    /// An IPv4 network, and after a comma an IPv6 one: either both settings have one or neither. Without, IPv6 is off:
    /// with it the machine forwards IPv6, which changes it for others too.
    pub pod_cidr: String,
    pub service_cidr: String,
}

/// Who gets a namespace, and the walls around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profiles {
    /// Who signs in for the first time through a connector gets a profile, and who has none may make one (upstream's
    /// `REGISTRATION_FLOW`). Without, only administrators make profiles.
    pub registration: bool,
    /// The level of the Pod Security Standards, where a namespace's own label does not say otherwise.
    pub pod_security: PodSecurity,
    /// Pods of other namespaces are kept out, by a NetworkPolicy that may be edited.
    pub network_policy: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// One image stands for another: `"registry.access.redhat.com/ubi9/python-311" = "python:3.11"`.
    pub aliases: BTreeMap<String, String>,
    /// Registries asked instead of the one named: `"docker.io" = ["https://mirror.lab.example"]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries (`host:port`) that speak plain HTTP.
    pub insecure: Vec<String>,
    /// Certificates of registries' authorities, in PEM, besides those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// False on an air-gapped machine: only images that were loaded are used.
    pub offline: bool,
}

/// Accelerators, by what this machine's drivers say and by device plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Devices {
    /// False leaves them to a device plugin.
    pub nvidia: bool,
    pub amd: bool,
    /// So many pods share an NVIDIA card, taking turns. Nothing keeps them from each other's memory.
    pub nvidia_shares: u32,
    /// How MIG instances are offered: `none` (as their card), `single` (`nvidia.com/gpu`) or `mixed` (`nvidia.com/mig-1g.10gb`).
    pub nvidia_mig: MigStrategy,
    /// NVML, where the machine's linker does not find `libnvidia-ml.so.1`.
    pub nvidia_library: Option<PathBuf>,
    /// Where device plugins meet the node. Empty: `device-plugins` in the data directory; upstream's is
    /// `/var/lib/kubelet/device-plugins`.
    pub plugin_dir: Option<PathBuf>,
    /// Where CDI specifications are, from the least to the most important.
    pub cdi_dirs: Vec<PathBuf>,
}

impl Default for Devices {
    fn default() -> Self {
        let DevicesConfig { cdi_dirs, gpu, .. } = DevicesConfig::new(Path::new(""));
        let GpuConfig { nvidia, amd, library, shares, mig, root: _ } = gpu;
        Self {
            nvidia,
            amd,
            nvidia_shares: shares,
            nvidia_mig: mig,
            nvidia_library: library,
            plugin_dir: None,
            cdi_dirs,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Packages {
    /// The Python index that pods reach through the box's cache. Empty: pip's own configuration, else PyPI.
    pub index_url: Option<String>,
    /// Certificates to trust for it, in PEM. Empty: the system's.
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pipelines {
    /// Where packages named by URL may come from: addresses below these. The defaults are upstream's.
    pub package_urls: Vec<String>,
    /// Stores of artifacts inside the machine or the cluster that the daemon may connect to for everybody's steps:
    /// addresses such as `http://10.0.0.5:9000`. Others it connects to only outside.
    pub artifact_endpoints: Vec<String>,
    /// Certificates to trust for stores of artifacts beside the system's, in PEM.
    pub artifact_ca_bundle: Option<PathBuf>,
    /// Runs that ended more days ago than this are deleted. 0: none.
    pub keep_runs_days: u32,
    /// Of each experiment's ended runs, only the newest so many are kept. 0: all.
    pub keep_runs: u32,
    /// Logs of steps that ended more days ago than this are deleted. 0: none.
    pub keep_logs_days: u32,
}

impl Pipelines {
    pub fn retention(&self) -> kfbox_pipelines::Retention {
        let days = |n: u32| (n > 0).then(|| std::time::Duration::from_secs(u64::from(n) * 86_400));
        kfbox_pipelines::Retention {
            runs_for: days(self.keep_runs_days),
            runs_per_experiment: (self.keep_runs > 0).then_some(self.keep_runs),
            logs_for: days(self.keep_logs_days),
        }
    }
}

impl Default for Pipelines {
    fn default() -> Self {
        let hosts = ["storage.googleapis.com", "s3.amazonaws.com", "github.com", "raw.githubusercontent.com"];
        Self {
            package_urls: hosts.iter().map(|host| format!("https://{host}/")).collect(),
            artifact_endpoints: Vec::new(),
            artifact_ca_bundle: None,
            keep_runs_days: 0,
            keep_runs: 0,
            keep_logs_days: 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: DEFAULT_DATA_DIR.into(),
            instance: "kfbox".into(),
            user: "user@example.com".into(),
            // s3s logs every refused request as an error, and presigned URLs with their signatures.
            log: "info,s3s=off,hickory_server=warn,hickory_resolver=warn".into(),
            log_json: false,
            gateway: Gateway::default(),
            kubernetes: Kubernetes::default(),
            objects: Listener { address: loopback(9000) },
            metadata: Listener { address: loopback(8089) },
            registry: Listener { address: loopback(5000) },
            network: Network::default(),
            profiles: Profiles::default(),
            images: Images::default(),
            devices: Devices::default(),
            packages: Packages::default(),
            pipelines: Pipelines::default(),
        }
    }
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self { address: loopback(6443), audit: Audit::default() }
    }
}

impl Default for Audit {
    fn default() -> Self {
        let kfbox_apiserver::AuditConfig { policy, room } = kfbox_apiserver::AuditConfig::default();
        let Room { max_bytes, files } = room;
        Self { enabled: true, policy, max_bytes, files }
    }
}

impl Default for Profiles {
    fn default() -> Self {
        let Walls { pod_security, network_policy } = Walls::default();
        Self { registration: true, pod_security, network_policy }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { bridge: String::new(), pod_cidr: "10.244.0.0/22".into(), service_cidr: "10.96.0.0/16".into() }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Config {
    /// Resolves flags and environment (both in `options`) over the file over the defaults.
    pub fn resolve(common: &BoxOptions, up: &UpOptions) -> anyhow::Result<Self> {
        let mut config = Self::from_file(common.config.as_deref())?;
        let UpOptions {
            instance,
            user,
            address,
            tls,
            tls_certificate,
            tls_key,
            kubernetes_address,
            objects_address,
            metadata_address,
            registry_address,
            pod_cidr,
            service_cidr,
            pod_security,
            log,
        } = up.clone();
        set(&mut config.data_dir, common.data_dir.clone());
        set(&mut config.instance, instance);
        set(&mut config.user, user);
        set(&mut config.gateway.address, address);
        set(&mut config.gateway.tls.mode, tls);
        config.gateway.tls.certificate = tls_certificate.or(config.gateway.tls.certificate);
        config.gateway.tls.key = tls_key.or(config.gateway.tls.key);
        set(&mut config.kubernetes.address, kubernetes_address);
        set(&mut config.objects.address, objects_address);
        set(&mut config.metadata.address, metadata_address);
        set(&mut config.registry.address, registry_address);
        set(&mut config.network.pod_cidr, pod_cidr);
        set(&mut config.network.service_cidr, service_cidr);
        set(&mut config.profiles.pod_security, pod_security);
        set(&mut config.log, log);
        config.in_folder(&std::env::current_dir().context("the folder that kfbox was started in")?);
        if config.network.bridge.is_empty() {
            config.network.bridge = format!("{}0", config.instance);
        }
        config.validate()?;
        Ok(config)
    }

    fn from_file(path: Option<&Path>) -> anyhow::Result<Self> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| wrong(format!("cannot read the configuration file {}: {e}", path.display())))?,
            None => match std::fs::read_to_string(DEFAULT_CONFIG_FILE) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
                Err(e) => return Err(e).context(DEFAULT_CONFIG_FILE),
            },
        };
        let path = path.unwrap_or(Path::new(DEFAULT_CONFIG_FILE));
        let mut config: Self = toml::from_str(&text).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
        let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
        if let Some(folder) = path.parent() {
            config.in_folder(folder);
        }
        Ok(config)
    }

    /// Completes the paths that are relative: those of the file are in the file's folder, those of flags in the current
    /// one. The daemon itself stays in no folder. The folders of devices are shared with other programs, so they must be
    /// whole as they stand.
    fn in_folder(&mut self, folder: &Path) {
        let Gateway { tls, connectors, .. } = &mut self.gateway;
        let mut given: Vec<&mut PathBuf> = [
            &mut tls.certificate,
            &mut tls.key,
            &mut self.kubernetes.audit.policy,
            &mut self.images.ca_bundle,
            &mut self.packages.ca_bundle,
        ]
        .into_iter()
        .chain(tls.acme.files())
        .flatten()
        .collect();
        given.extend(connectors.iter_mut().filter_map(|connector| match connector {
            ConnectorConfig::Oidc(oidc) => oidc.ca_file.as_mut(),
            ConnectorConfig::Ldap(ldap) => ldap.root_ca.as_mut(),
        }));
        given.push(&mut self.data_dir);
        for path in given {
            *path = folder.join(&*path);
        }
    }

    fn validate(&self) -> anyhow::Result<()> {
        // The bridge's name must fit Linux's 15 characters, and the instance names tables and cgroups.
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.instance.is_empty() || self.instance.len() > 11 || !self.instance.chars().all(fine) {
            return Err(wrong(format!(
                "instance {:?} must be 1 to 11 lower-case letters, digits or dashes",
                self.instance
            ))
            .into());
        }
        if self.network.bridge.len() > 15 {
            return Err(wrong(format!("bridge {:?} is longer than 15 characters", self.network.bridge)).into());
        }
        if !self.user.contains('@') {
            return Err(wrong(format!("user {:?} must be an e-mail address", self.user)).into());
        }
        let Audit { max_bytes, files, .. } = self.kubernetes.audit;
        if max_bytes < 64 << 10 || files == 0 {
            let message = format!(
                "kubernetes.audit: max_bytes {max_bytes} must be at least 65536 and files {files} at least 1; \
                 `enabled = false` turns the audit log off"
            );
            return Err(wrong(message).into());
        }
        // Each share is a device in the node's list.
        if !(1..=100).contains(&self.devices.nvidia_shares) {
            let message = format!("devices.nvidia_shares {} must be 1 to 100", self.devices.nvidia_shares);
            return Err(wrong(message).into());
        }
        let plugin_dir = self.devices.plugin_dir.as_deref();
        if let Some(bad) =
            plugin_dir.into_iter().chain(self.devices.cdi_dirs.iter().map(PathBuf::as_path)).find(|p| !p.is_absolute())
        {
            return Err(wrong(format!("devices: {} must be an absolute path", bad.display())).into());
        }
        self.gateway.validate()?;
        self.addresses()?;
        Ok(())
    }

    /// What keeps people's pods apart.
    pub fn walls(&self) -> Walls {
        let Profiles { registration: _, pod_security, network_policy } = self.profiles;
        Walls { pod_security, network_policy }
    }

    /// How the node offers devices.
    pub fn devices(&self) -> DevicesConfig {
        let Devices { nvidia, amd, nvidia_shares, nvidia_mig, nvidia_library, plugin_dir, cdi_dirs } =
            self.devices.clone();
        let defaults = DevicesConfig::new(&self.data_dir);
        let gpu =
            GpuConfig { nvidia, amd, library: nvidia_library, shares: nvidia_shares, mig: nvidia_mig, ..defaults.gpu };
        DevicesConfig { plugins_dir: plugin_dir.unwrap_or(defaults.plugins_dir), cdi_dirs, gpu }
    }

    /// How the API server records what is asked of it.
    pub fn audit(&self) -> Option<kfbox_apiserver::AuditConfig> {
        let Audit { enabled, policy, max_bytes, files } = self.kubernetes.audit.clone();
        enabled.then_some(kfbox_apiserver::AuditConfig { policy, room: Room { max_bytes, files } })
    }

    /// The addresses that follow from the networks.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        let (pods, second_pods) = parse_cidrs("pod_cidr", &self.network.pod_cidr, 28)?;
        let (services, second_services) = parse_cidrs("service_cidr", &self.network.service_cidr, 27)?;
        if overlap(pods.into(), services.into()) {
            return Err(wrong("pod_cidr and service_cidr overlap".to_owned()).into());
        }
        let second = match (second_pods, second_services) {
            (None, None) => None,
            (Some(second_pods), Some(second_services)) => {
                if overlap(second_pods.into(), second_services.into()) {
                    return Err(wrong("the IPv6 networks of pod_cidr and service_cidr overlap".to_owned()).into());
                }
                if !(Pairing { first: pods, second: second_pods }).fits() {
                    let longest = 96 + pods.prefix_len();
                    let message = format!(
                        "network.pod_cidr: {second_pods} has less addresses than {pods}; it may be a /{longest} at most"
                    );
                    return Err(wrong(message).into());
                }
                Some(SecondRanges { pods: second_pods, services: second_services })
            }
            (some, _) => {
                let (has, lacks) =
                    if some.is_some() { ("pod_cidr", "service_cidr") } else { ("service_cidr", "pod_cidr") };
                let message = format!("network.{has} has an IPv6 network and network.{lacks} has none");
                return Err(wrong(message).into());
            }
        };
        let nth = |net: Ipv4Net, n: u32| Ipv4Addr::from(u32::from(net.network()) + n);
        let (bridge, api_service, dns) = (nth(pods, 1), nth(services, 1), nth(services, 10));
        Ok(Addresses { pods, services, second, bridge, api_service, dns })
    }

    pub fn control_socket(data_dir: &Path) -> PathBuf {
        data_dir.join("control.sock")
    }
}

/// The networks, and derived addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub pods: Ipv4Net,
    pub services: Ipv4Net,
    pub second: Option<SecondRanges>,
    /// The pods' gateway: where pods reach the daemon.
    pub bridge: Ipv4Addr,
    pub api_service: Ipv4Addr,
    pub dns: Ipv4Addr,
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// One network a family, the IPv4 one first. `longest` is the smallest that the IPv4 one may be.
fn parse_cidrs(field: &str, text: &str, longest: u8) -> anyhow::Result<(Ipv4Net, Option<Ipv6Net>)> {
    let first_of = |text: &str| {
        let net: Ipv4Net = text.trim().parse().ok()?;
        ((8..=longest).contains(&net.prefix_len()) && net.trunc() == net).then_some(net)
    };
    let second_of = |text: &str| {
        let net: Ipv6Net = text.trim().parse().ok()?;
        // Unique local or global unicast: anything else means something of its own.
        let (first, plain) = (net.addr().segments()[0], net.trunc() == net);
        let unicast = first & 0xfe00 == 0xfc00 || first & 0xe000 == 0x2000;
        (unicast && plain && (32..=SECOND_LONGEST).contains(&net.prefix_len())).then_some(net)
    };
    let (first, second) = match text.split_once(',') {
        None => (text, None),
        Some((first, second)) => (first, Some(second)),
    };
    let first = first_of(first).ok_or_else(|| {
        let order = if first.contains(':') { "; an IPv6 network comes second, after a comma" } else { "" };
        let what = format!("must be an IPv4 network such as 10.244.0.0/22 (/8 to /{longest}){order}");
        wrong(format!("network.{field} {text:?} {what}"))
    })?;
    let Some(second) = second else { return Ok((first, None)) };
    let second = second_of(second).ok_or_else(|| {
        let what = format!("such as fd00:10:244::/64 (/32 to /{SECOND_LONGEST}, of unique local or global addresses)");
        wrong(format!("network.{field} {text:?} must have one IPv6 network after the comma, {what}"))
    })?;
    Ok((first, Some(second)))
}

/// Room for 256 addresses.
const SECOND_LONGEST: u8 = 120;

fn wrong(message: String) -> Failure {
    Failure::new(
        Code::Configuration,
        message,
        "correct the configuration and try again; `kfbox up --help` lists the settings",
    )
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(file: Option<&Path>) -> BoxOptions {
        BoxOptions { data_dir: None, config: file.map(Into::into) }
    }

    #[test]
    fn relative_paths_are_those_of_the_file_or_of_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text = "data_dir = \"box\"\n[images]\nca_bundle = \"/etc/ca.pem\"\n[gateway.tls]\nmode = \"files\"\ncertificate = \"c.pem\"\n\
            [[gateway.connectors]]\ntype = \"oidc\"\nid = \"o\"\nissuer = \"https://id.example.com\"\nclient_id = \"c\"\nclient_secret = \"s\"\nca_file = \"id.pem\"\n";
        std::fs::write(&file, text).unwrap();
        let up = UpOptions { tls_key: Some("k.pem".into()), ..UpOptions::default() };
        let config = Config::resolve(&options(Some(&file)), &up).unwrap();
        assert_eq!(config.data_dir, dir.path().join("box"));
        assert_eq!(config.images.ca_bundle, Some("/etc/ca.pem".into()));
        assert_eq!(config.gateway.tls.certificate, Some(dir.path().join("c.pem")));
        let ConnectorConfig::Oidc(oidc) = &config.gateway.connectors[0] else { panic!("{:?}", config.gateway) };
        assert_eq!(oidc.ca_file, Some(dir.path().join("id.pem")));
        assert_eq!(config.gateway.tls.key, Some(std::env::current_dir().unwrap().join("k.pem")));
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "instance = \"lab\"\nuser = \"a@b.c\"\n[network]\npod_cidr = \"10.9.0.0/22\"\n").unwrap();
        let up = UpOptions { user: Some("x@y.z".into()), ..UpOptions::default() };
        let config = Config::resolve(&options(Some(&file)), &up).unwrap();
        assert_eq!((config.instance.as_str(), config.user.as_str()), ("lab", "x@y.z"));
        assert_eq!(config.network.bridge, "lab0");
        assert_eq!(config.kubernetes.address.port(), 6443);
        assert_eq!(config.addresses().unwrap().bridge, Ipv4Addr::new(10, 9, 0, 1));
    }

    #[test]
    fn the_audit_log_is_on_and_small_unless_the_file_says_otherwise() {
        let audit = Config::default().audit().unwrap();
        assert!(audit.room.max_bytes * audit.room.files as u64 <= 32 << 20);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[kubernetes]\naddress = \"127.0.0.1:1\"\n[kubernetes.audit]\nenabled = false\n")
            .unwrap();
        let config = Config::resolve(&options(Some(&file)), &UpOptions::default()).unwrap();
        assert_eq!((config.kubernetes.address.port(), config.audit()), (1, None));
        std::fs::write(&file, "[kubernetes.audit]\npolicy = \"/etc/kfbox/audit.yaml\"\nfiles = 2\n").unwrap();
        let audit = Config::resolve(&options(Some(&file)), &UpOptions::default()).unwrap().audit().unwrap();
        assert_eq!((audit.policy, audit.room.files), (Some("/etc/kfbox/audit.yaml".into()), 2));
    }

    #[test]
    fn people_may_have_a_profile_unless_the_file_says_otherwise() {
        assert!(Config::default().profiles.registration);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[profiles]\nregistration = false\n").unwrap();
        let config = Config::resolve(&options(Some(&file)), &UpOptions::default()).unwrap();
        assert!(!config.profiles.registration);
        assert_eq!(config.walls(), Walls::default());
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        for (text, expected) in [
            ("instanse = \"x\"", "instanse"),
            ("instance = \"Not Good\"", "lower-case"),
            ("[network]\npod_cidr = \"10.9.0.1/22\"", "pod_cidr"),
            ("[network]\npod_cidr = \"10.96.4.0/22\"", "overlap"),
            ("[network]\npod_cidr = \"10.244.0.0/22,fd00:1::/64\"", "service_cidr has none"),
            ("[network]\nservice_cidr = \"10.96.0.0/16,fd00:1::/64\"", "pod_cidr has none"),
            ("[network]\npod_cidr = \"fd00:1::/64,10.244.0.0/22\"", "comes second"),
            ("[network]\npod_cidr = \"10.244.0.0/22,10.245.0.0/22\"", "IPv6 network after the comma"),
            ("[network]\npod_cidr = \"10.244.0.0/22,fd00:1::/64,fd00:2::/64\"", "IPv6 network after the comma"),
            ("[network]\npod_cidr = \"10.244.0.0/22,fe80::/64\"", "unique local"),
            ("[network]\npod_cidr = \"10.244.0.0/22,fd00:1::1/64\"", "IPv6 network after the comma"),
            (
                "[network]\npod_cidr = \"10.244.0.0/22,fd00:1::/64\"\nservice_cidr = \"10.96.0.0/16,fd00:1::/112\"",
                "overlap",
            ),
            (
                "[network]\npod_cidr = \"10.244.0.0/22,fd00:1::/119\"\nservice_cidr = \"10.96.0.0/16,fd00:2::/112\"",
                "/118 at most",
            ),
            ("[kubernetes.audit]\nfiles = 0", "kubernetes.audit"),
            ("[gateway.access_log]\nmax_bytes = 1", "gateway.access_log"),
            ("[profiles]\npod_security = \"lax\"", "lax"),
            ("[pipelines]\nkeep_run_days = 3", "keep_run_days"),
            ("[devices]\nnvidia_shares = 0", "nvidia_shares"),
            ("[devices]\nnvidia_mig = \"double\"", "double"),
            ("[devices]\nplugin_dir = \"here\"", "absolute"),
            ("[kubernetes.audit]\npolcy = \"x\"", "polcy"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Config::resolve(&options(Some(&file)), &UpOptions::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(Failure::exit_code(&error), 8);
        }
    }
}
