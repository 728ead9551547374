//! A pod's network namespace: made on a thread of its own, which enters it for good and ends, so that no other thread of
//! the daemon ever leaves the host's namespace. A bind mount keeps the namespace without a process in it.

use super::{NetworkError, link_address, second};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute},
        route::RouteScope,
    },
};
use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// What to make.
#[derive(Debug, Clone)]
pub struct Plan {
    pub path: PathBuf,
    /// The name of the pair's end on the host.
    pub host_link: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// The pod's IPv6 address and the gateway's.
    pub second: Option<(Ipv6Addr, Ipv6Addr)>,
    pub mtu: u32,
    /// A kept namespace to take in place of a new one.
    pub given: Option<PathBuf>,
}

/// Whether the namespace is there: the path is a mount of one.
pub fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// Makes the namespace with its link, address and routes. The end on the host is up, but the kernel may take a moment more
/// until it sends by it.
pub async fn create(plan: Plan) -> Result<(), NetworkError> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || drop(done.send(build(&plan))))
        .map_err(|source| NetworkError::Namespace { what: "start a thread", source })?;
    result.await.unwrap_or_else(|_| {
        let source = io::Error::other("the thread ended early");
        Err(NetworkError::Namespace { what: "build it", source })
    })
}

/// Removes the mount; the namespace ends with its last process.
pub fn remove(path: &Path) -> Result<(), NetworkError> {
    // Mounts may lie on top of each other after a crash between the two steps of `build`.
    while exists(path) {
        umount2(path, MntFlags::MNT_DETACH)
            .map_err(|e| NetworkError::Namespace { what: "unmount it", source: e.into() })?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::Namespace { what: "remove its file", source: error })
        }
        _ => Ok(()),
    }
}

fn build(plan: &Plan) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Namespace { what, source };
    let own = "/proc/thread-self/ns/net";
    let host = File::open(own).map_err(failed("open the host's"))?;
    File::create(&plan.path).map_err(failed("make its file"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("start its runtime"))?;
    runtime.block_on(async {
        // A socket stays in the namespace in which it was opened.
        let (to_host, host_handle, _) = rtnetlink::new_connection().map_err(failed("open netlink"))?;
        match &plan.given {
            Some(given) => {
                let given = File::open(given).map_err(failed("open it"))?;
                setns(given, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter it")(e.into()))?;
            }
            None => unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("make it")(e.into()))?,
        }
        mount(Some(own), &plan.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed("mount it")(e.into()))?;
        // Only this thread is in the new namespace, and so is what it opens under /proc/sys/net.
        for (name, value) in
            [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")]
        {
            if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
                tracing::debug!(name, %error, "left at the kernel's default");
            }
        }
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed("open netlink"))?;
        tokio::select! {
            result = configure(&handle, &host_handle, plan, &host) => result,
            () = connection => Err(failed("talk netlink")(io::Error::other("the connection closed"))),
            () = to_host => Err(failed("talk netlink")(io::Error::other("the connection to the host closed"))),
        }
    })
}

async fn configure(handle: &Handle, on_host: &Handle, plan: &Plan, host: &File) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    let peer = LinkMessageBuilder::<LinkUnspec>::default()
        .name(plan.host_link.clone())
        .mtu(plan.mtu)
        .address(link_address(plan.gateway).to_vec())
        .append_extra_attribute(LinkAttribute::NetNsFd(host.as_raw_fd()))
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(rtnetlink::packet_route::link::InfoKind::Veth)
        .name("eth0".to_owned())
        .mtu(plan.mtu)
        .address(link_address(plan.address).to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    handle.link().add(pair).execute().await.map_err(failed("make the pod's link"))?;
    handle.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await.map_err(failed("bring up lo"))?;
    let eth0 = if_nametoindex("eth0").map_err(|e| NetworkError::Namespace { what: "find eth0", source: e.into() })?;
    // The pod is alone on its link, so every packet passes the host's routing, where filters and services act on it.
    match plan.second {
        Some(_) => second::prepare_link("eth0")?,
        None => drop(fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")),
    }
    // The host's end first: the end that comes up last can send at once, and that is to be the pod's.
    let host_end = LinkUnspec::new_with_name(&plan.host_link).up().build();
    on_host.link().set(host_end).execute().await.map_err(failed("bring up the host's link"))?;
    let pod_end = LinkUnspec::new_with_index(eth0).up().build();
    handle.link().set(pod_end).execute().await.map_err(failed("bring up the pod's link"))?;
    handle.address().add(eth0, plan.address.into(), 32).execute().await.map_err(failed("give the pod its address"))?;
    handle
        .neighbours()
        .add(eth0, plan.gateway.into())
        .link_layer_address(&link_address(plan.gateway))
        .execute()
        .await
        .map_err(failed("name the gateway"))?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(plan.gateway, 32)
        .output_interface(eth0)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(to_gateway).execute().await.map_err(failed("route to the gateway"))?;
    let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(plan.gateway).output_interface(eth0).build();
    handle.route().add(default).execute().await.map_err(failed("set the default route"))?;
    match plan.second {
        Some(both) => second::configure_pod(handle, eth0, both, link_address(plan.gateway)).await,
        None => Ok(()),
    }
}
