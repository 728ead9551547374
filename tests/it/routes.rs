//! Ways through the gateway to Services of people's namespaces: VirtualServices, HTTPRoutes, AuthorizationPolicies.

use crate::isolation::people::{Person, ask};
use kfbox_tests::{Python, TestBox, run, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

/// Tells what reached it; `/ws` is a WebSocket that gives back what it gets, `/sse` has one event and goes on for ever.
const SERVER: &str = r#"
import asyncio, base64, hashlib, json
async def frame(reader):
    first, second = await reader.readexactly(2)
    length = second & 127
    if length == 126: length = int.from_bytes(await reader.readexactly(2), "big")
    mask = await reader.readexactly(4)
    data = bytes(b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(length)))
    return first & 15, data
async def serve(reader, writer):
    while head := await reader.readuntil(b"\r\n\r\n"):
        first, *rest = head.decode().split("\r\n")[:-2]
        path, headers = first.split(" ")[1], {n.lower(): v for n, v in (l.split(": ", 1) for l in rest)}
        if path == "/ws":
            key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            writer.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          f"Sec-WebSocket-Accept: {accept}\r\n\r\n").encode())
            while (got := await frame(reader))[0] == 1:
                size = len(got[1])
                writer.write(bytes([129]) + (bytes([size]) if size < 126 else bytes([126]) + size.to_bytes(2, "big")) + got[1])
            return writer.close()
        if path == "/sse":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n")
            await writer.drain()
            return await asyncio.sleep(3600)
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while headers.get("transfer-encoding") == "chunked":
                size = int((await reader.readline()).strip() or b"0", 16)
                body += await reader.readexactly(size)
                await reader.readline()
                if size == 0: break
        text = json.dumps({"path": path, "headers": headers, "body": len(body)}).encode()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", 8080) as s: await s.serve_forever()
asyncio.run(main())
"#;

/// As somebody with these rights, not as the administrator.
fn apply(b: &TestBox, who: &Person<'_>, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let args = ["apply", "-n", &who.namespace, "--as", &who.email, "--as-group", "system:authenticated", "-f", "-"];
        b.kubectl_with_input(&args, &object.to_string())?.ok()?;
    }
    Ok(())
}

fn virtual_service(name: &str, prefix: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService", "metadata": {"name": name},
        "spec": {
            "hosts": ["*"], "gateways": ["kubeflow/kubeflow-gateway"],
            "http": [{
                "match": [{"uri": {"prefix": prefix}}], "rewrite": {"uri": "/"}, "timeout": "20s",
                "headers": {"request": {"set": {"x-mode": "lab"}}},
                "route": [{"destination": {"host": host, "port": {"number": 80}}}],
            }],
        },
    })
}

/// The word and the reason of a condition, when there is one.
fn condition(b: &TestBox, namespace: &str, what: &str, kind: &str) -> anyhow::Result<(String, String)> {
    wait_until(Duration::from_secs(30), "a condition", || {
        let text = b.kubectl(&["get", "-n", namespace, what, "-o", "json"])?.ok()?.stdout;
        let object: Value = serde_json::from_str(&text)?;
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|c| c["type"] == kind);
        let text = |c: &Value, name: &str| c[name].as_str().unwrap_or_default().to_owned();
        Ok(found.map(|c| (text(c, "status"), text(c, "message"))))
    })
}

#[test]
fn services_of_a_namespace_are_reached_by_who_may_use_them() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let id = std::process::id();
    let person = |name: &str| Person::new(&b, &format!("route-{name}.{id}"));
    let (owner, editor, viewer, stranger) = (person("owner")?, person("edit")?, person("view")?, person("other")?);
    owner.binding("POST", &editor.email, "edit")?;
    owner.binding("POST", &viewer.email, "view")?;
    let labels = json!({"app": "web"});
    let container = json!({"name": "main", "image": "python:3.11", "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", SERVER], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    let namespace = &owner.namespace;
    apply(
        &b,
        &owner,
        &[
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}}),
            virtual_service("web", &format!("/web/{namespace}/"), &format!("web.{namespace}.svc.cluster.local")),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "events"},
                "spec": {
                    "parentRefs": [{"name": "kubeflow-gateway", "namespace": "kubeflow"}],
                    "rules": [{
                        "matches": [{"path": {"type": "Exact", "value": format!("/events/{namespace}")}}],
                        "filters": [{"type": "URLRewrite",
                            "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/sse"}}}],
                        "backendRefs": [{"name": "web", "port": 80}],
                    }],
                },
            }),
        ],
    )?;
    b.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", "pod/web", "--timeout=90s"])?.ok()?;
    assert_eq!(condition(&b, namespace, "virtualservice/web", "Accepted")?, ("True".into(), String::new()));
    let page = format!("{}/web/{namespace}/", b.url()?);
    wait_until(Duration::from_secs(30), "the way", || {
        Ok((ask(&page, &owner.token, "GET", None)?.0 == 200).then_some(()))
    })?;
    let mut python = Python::Clients.script("tests/clients/user_services.py");
    python.env("KFBOX_URL", b.url()?).env("NAMESPACE", namespace).env("OWNER_EMAIL", &owner.email);
    for (name, person) in [("OWNER", &owner), ("EDITOR", &editor), ("VIEWER", &viewer), ("STRANGER", &stranger)] {
        python.env(name, &person.token);
    }
    run(&mut python)?.ok()?;

    // A policy of the namespace takes the editor out; one that is not understood takes everybody out, and says so.
    let policy = |name: &str, spec: Value| json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name}, "spec": spec});
    let only = json!({"rules": [{"when": [{"key": "request.headers[kubeflow-userid]", "values": [owner.email]}]}]});
    apply(&b, &owner, &[policy("only", only)])?;
    condition(&b, namespace, "authorizationpolicy/only", "Accepted")?;
    assert_eq!(ask(&page, &editor.token, "GET", None)?.0, 403);
    assert_eq!(ask(&page, &owner.token, "GET", None)?.0, 200);
    apply(&b, &owner, &[policy("odd", json!({"action": "CUSTOM", "rules": [{}]}))])?;
    let (_, message) = condition(&b, namespace, "authorizationpolicy/odd", "Unsupported")?;
    assert!(message.contains("CUSTOM"), "{message}");
    assert_eq!(ask(&page, &owner.token, "GET", None)?.0, 403);
    b.kubectl(&["delete", "-n", namespace, "authorizationpolicies", "--all"])?.ok()?;
    wait_until(Duration::from_secs(30), "the policies' end", || {
        Ok((ask(&page, &editor.token, "GET", None)?.0 == 200).then_some(()))
    })?;
    // A right that is taken away is gone, also for somebody who goes on asking.
    owner.binding("DELETE", &editor.email, "edit")?;
    wait_until(Duration::from_secs(30), "the refusal", || {
        Ok((ask(&page, &editor.token, "GET", None)?.0 == 404).then_some(()))
    })?;
    // Without its pod the way says what is wrong.
    b.kubectl(&["delete", "-n", namespace, "pod", "web"])?.ok()?;
    let (status, text) = wait_until(Duration::from_secs(30), "the pod's end", || {
        Ok(Some(ask(&page, &owner.token, "GET", None)?).filter(|(status, _)| *status != 200))
    })?;
    assert!(matches!(status, 502 | 503), "{status} {text}");
    Ok(())
}

#[test]
fn a_hostile_route_takes_nothing_of_anybodys() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let id = std::process::id();
    let owner = Person::new(&b, &format!("route-good.{id}"))?;
    let hostile = Person::new(&b, &format!("route-bad.{id}"))?;
    let (theirs, mine, url) = (&owner.namespace, &hostile.namespace, b.url()?);
    let bridge = b.address("gateway-for-pods")?;
    let bridge = bridge.rsplit_once(':').map_or(bridge.as_str(), |(ip, _)| ip).to_owned();
    // Paths of the platform, of everybody, and of the other namespace; Services of others.
    let refused = [
        ("platform", "/pipeline/".to_owned(), "x".to_owned()),
        ("platform-own", format!("/pipeline/{mine}/"), "x".to_owned()),
        ("runs", format!("/runs/{mine}"), "x".to_owned()),
        ("sign-in", "/dex/auth".to_owned(), "x".to_owned()),
        ("everything", "/".to_owned(), "x".to_owned()),
        ("neighbour", format!("/web/{theirs}/"), "x".to_owned()),
        ("service", format!("/x/{mine}/"), format!("web.{theirs}.svc.cluster.local")),
        ("store", format!("/x/{mine}/"), "minio-service.kubeflow".to_owned()),
        ("address", format!("/x/{mine}/"), "127.0.0.1".to_owned()),
    ];
    for (name, prefix, host) in &refused {
        apply(&b, &hostile, &[virtual_service(name, prefix, host)])?;
        let (status, message) = condition(&b, mine, &format!("virtualservice/{name}"), "Accepted")?;
        assert!(status == "False" && !message.is_empty(), "{name}: {status} {message}");
        condition(&b, mine, &format!("virtualservice/{name}"), "Unsupported")?;
    }
    // And nobody writes into the other namespace.
    let args = ["auth", "can-i", "create", "virtualservices.networking.istio.io", "-n", theirs, "--as", &hostile.email];
    assert!(b.kubectl(&args)?.stdout.starts_with("no"));
    let args = ["auth", "can-i", "create", "endpointslices.discovery.k8s.io", "-n", mine, "--as", &hostile.email];
    assert!(b.kubectl(&args)?.stdout.starts_with("no"), "who writes them says where a Service leads");
    // Services that lead elsewhere: by name, and (an administrator's doing) to this machine's own address.
    let port = json!([{"port": 80, "targetPort": 8887}]);
    apply(
        &b,
        &hostile,
        &[
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
                "spec": {"type": "ExternalName", "externalName": "localhost", "ports": port}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "machine"}, "spec": {"ports": port}}),
            virtual_service("outside", &format!("/outside/{mine}/"), "outside"),
            virtual_service("machine", &format!("/machine/{mine}/"), "machine"),
        ],
    )?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "machine", "labels": {"kubernetes.io/service-name": "machine"}},
        "ports": [{"name": "", "port": 8887}], "endpoints": [{"addresses": [bridge], "conditions": {"ready": true}}],
    });
    b.kubectl_with_input(&["apply", "-n", mine, "-f", "-"], &slice.to_string())?.ok()?;
    for name in ["outside", "machine"] {
        assert_eq!(condition(&b, mine, &format!("virtualservice/{name}"), "Accepted")?.0, "True");
        let (status, text) = ask(&format!("{url}/{name}/{mine}/"), &hostile.token, "GET", None)?;
        assert!(status == 503 && text.contains("no_backend"), "{name}: {status} {text}");
    }
    // What was there before answers as before.
    let healthz = ask(&format!("{url}/pipeline/apis/v2beta1/healthz"), &hostile.token, "GET", None)?;
    assert!(healthz.0 == 200 && healthz.1.contains("multi_user"), "{healthz:?}");
    assert_eq!(ask(&format!("{url}/dex/auth"), "", "GET", None)?.0, 400);
    assert_eq!(ask(&format!("{url}/x/{mine}/"), &hostile.token, "GET", None)?.0, 404);
    assert_eq!(ask(&format!("{url}/web/{theirs}/"), &hostile.token, "GET", None)?.0, 404);
    Ok(())
}
