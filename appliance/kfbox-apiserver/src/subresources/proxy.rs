//! HTTP to a pod, a Service or a node through the API server, after RBAC. The target comes from cluster objects alone;
//! credentials of the caller never travel on.

use crate::{auth, object::meta, server::Core, status::ApiError, store::Key, verbs::Call};
use axum::{body::Body, response::Response};
use http::{HeaderName, Method, Request, Uri, header, request::Parts};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;

const CONNECT: Duration = Duration::from_secs(10);

/// Headers of one hop only (RFC 9110 7.6.1).
pub const HOP: [&str; 7] =
    ["connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

pub async fn proxy(call: &Arc<Call>, mut parts: Parts, body: Body) -> Result<Response, ApiError> {
    let (address, port) = target(call)?;
    if !is_proxyable(address) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let path: Uri = format!("/{}{query}", call.target.rest)
        .parse()
        .map_err(|_| ApiError::bad_request("the proxied path is not a path"))?;
    let upgrading = parts.headers.contains_key(header::UPGRADE);
    let mut request = Request::new(body);
    *request.method_mut() = if parts.method == Method::HEAD { Method::HEAD } else { parts.method.clone() };
    *request.uri_mut() = path;
    let identity: Vec<HeaderName> = auth::authenticate::identity_headers(&parts.headers);
    for (name, value) in &parts.headers {
        let hop =
            HOP.contains(&name.as_str()) && !(upgrading && (name == header::UPGRADE || name == header::CONNECTION));
        if !hop && !identity.contains(name) && name != header::HOST && name != header::COOKIE {
            request.headers_mut().append(name, value.clone());
        }
    }
    let host = match address {
        IpAddr::V4(a) => format!("{a}:{port}"),
        IpAddr::V6(a) => format!("[{a}]:{port}"),
    };
    if let Ok(host) = host.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let unreachable = |why: String| ApiError::unavailable(format!("error trying to reach service: {why}"));
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect((address, port)))
        .await
        .map_err(|_| unreachable(format!("dial tcp {host}: i/o timeout")))?
        .map_err(|e| unreachable(format!("dial tcp {host}: {e}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(e.to_string()))?;
    let shutdown = call.core.shutdown.clone();
    call.core.tasks.spawn("kubernetes-proxy", async move {
        tokio::select! {
            result = connection.with_upgrades() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a proxied connection ended");
                }
            }
            () = shutdown.cancelled() => {}
        }
    });
    let mut response = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        join_upgrades(&call.core, &mut parts, &mut response);
        return Ok(response.map(|_| Body::empty()));
    }
    let mut response = response.map(Body::new);
    for name in HOP {
        response.headers_mut().remove(name);
    }
    Ok(response)
}

/// Never this machine itself nor what only it can reach, whatever an object says (upstream's `IsProxyableIP`).
fn is_proxyable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

pub fn join_upgrades(core: &Core, parts: &mut Parts, response: &mut http::Response<hyper::body::Incoming>) {
    let Some(client) = parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else { return };
    let server = hyper::upgrade::on(response);
    let shutdown = core.shutdown.clone();
    core.tasks.spawn("kubernetes-proxy-upgraded", async move {
        let copy = async {
            let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
            drop(tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await);
        };
        tokio::select! {
            () = copy => {}
            () = shutdown.cancelled() => {}
        }
    });
}

/// `[https:]NAME[:PORT]`.
fn target(call: &Call) -> Result<(IpAddr, u16), ApiError> {
    let mut steps: Vec<&str> = call.target.name.split(':').collect();
    if steps.len() == 3 {
        match steps.remove(0) {
            "http" | "" => {}
            scheme => return Err(ApiError::bad_request(format!("scheme {scheme:?} is not proxied, only http"))),
        }
    }
    let (name, port) = (steps[0], steps.get(1).copied().unwrap_or_default());
    let missing = || ApiError::not_found(&call.resource.group, &call.resource.plural, name);
    let store = &call.core.store;
    let object = store.get(&call.resource.collection, &Key::new(call.namespace(), name)).ok_or_else(missing)?.value();
    match &*call.resource.collection {
        "pods" => {
            let container_ports = object["spec"]["containers"].as_array().into_iter().flatten();
            let mut ports = container_ports.flat_map(|c| c["ports"].as_array().into_iter().flatten());
            let port = match port.parse::<u16>() {
                Ok(port) => Some(port),
                Err(_) if port.is_empty() => ports.next().and_then(|p| number(&p["containerPort"])).or(Some(80)),
                Err(_) => ports.find(|p| p["name"] == port).and_then(|p| number(&p["containerPort"])),
            };
            let port = port.ok_or_else(|| ApiError::bad_request(format!("pod {name:?} has no such port")))?;
            let address = object["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
            Ok((address.ok_or_else(|| ApiError::bad_request(format!("pod {name:?} has no address yet")))?, port))
        }
        "services" => endpoint(call, &object, port),
        _ => Err(ApiError::unavailable("the node agent has no HTTP API; use the pods' own subresources")),
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok())
}

/// A ready endpoint of the Service's port.
fn endpoint(call: &Call, service: &Value, port: &str) -> Result<(IpAddr, u16), ApiError> {
    let name = meta(service, "name");
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = match (port, ports) {
        ("", [only]) => Some(only),
        ("", _) => ports.iter().find(|p| p["name"].as_str().unwrap_or_default().is_empty()).or(ports.first()),
        (port, _) => {
            ports.iter().find(|p| p["name"] == port || number(&p["port"]).is_some_and(|n| n.to_string() == port))
        }
    };
    let no_such = || ApiError::unavailable(format!("no service port {port:?} found for service {name:?}"));
    let port_name = chosen.ok_or_else(no_such)?["name"].as_str().unwrap_or_default().to_owned();
    let slices = call.core.store.list("endpointslices.discovery.k8s.io", Some(call.namespace()), None, None)?;
    let mut found = Vec::new();
    for slice in slices.objects.iter().filter(|o| o.label("kubernetes.io/service-name") == Some(name)) {
        let slice = slice.value();
        let ports = slice["ports"].as_array().cloned().unwrap_or_default();
        let Some(port) =
            ports.iter().find(|p| p["name"].as_str().unwrap_or_default() == port_name).and_then(|p| number(&p["port"]))
        else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false {
                let addresses = endpoint["addresses"].as_array().into_iter().flatten();
                found.extend(addresses.filter_map(|a| Some((a.as_str()?.parse::<IpAddr>().ok()?, port))));
            }
        }
    }
    if found.is_empty() {
        return Err(ApiError::unavailable(format!("no endpoints available for service {name:?}")));
    }
    Ok(found[rand::random_range(0..found.len())])
}
