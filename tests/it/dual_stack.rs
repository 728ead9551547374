//! A box with both address families, through kubectl and from inside of pods: two addresses a pod, Services of either family
//! and of both, names, policies, a daemon that is killed, the family going away again, and nothing left after a reset.
//! Upstream's own list: <https://kubernetes.io/docs/tasks/network/validate-dual-stack/>

use anyhow::Context;
use kfbox_tests::{TestBox, wait_until};
use serde_json::Value;
use std::{fs, path::Path, process::Command, time::Duration};

/// Serves every caller's address on all of the pod's own.
const SERVER: &str = r"
import socket, threading
server = socket.create_server(('::', 8000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    peer, address = server.accept()
    peer.sendall(address[0].replace('::ffff:', '').encode()); peer.close()
";

/// What a connection to an address gave, or `refused` or `silence`.
const ASK: &str = r"
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as peer:
        print(peer.recv(100).decode())
except ConnectionRefusedError:
    print('refused')
except (TimeoutError, OSError) as error:
    print('silence')
";

/// The addresses of a name, of one family.
const LOOK_UP: &str = r"
import socket, sys
family = {'4': socket.AF_INET, '6': socket.AF_INET6}[sys.argv[2]]
try:
    print(','.join(sorted({found[4][0] for found in socket.getaddrinfo(sys.argv[1], 80, family, socket.SOCK_STREAM)})))
except socket.gaierror:
    print('none')
";

fn objects() -> String {
    let pod = |name: &str, app: &str, command: &str| {
        let command = serde_json::to_string(command).unwrap_or_default();
        format!(
            r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  terminationGracePeriodSeconds: 0
  subdomain: both-headless
  hostname: {name}
  containers:
  - name: main
    image: python:3.11
    imagePullPolicy: IfNotPresent
    command: [python3, -c, {command}]
    env:
    - {{name: POD_IPS, valueFrom: {{fieldRef: {{fieldPath: status.podIPs}}}}}}
    - {{name: HOST_IPS, valueFrom: {{fieldRef: {{fieldPath: status.hostIPs}}}}}}
"#
        )
    };
    let service = |name: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8000}}]{more}}}\n"
        )
    };
    pod("web", "web", SERVER)
        + &pod("asks", "asks", "import time; time.sleep(1e6)")
        + &service("single", "")
        + &service("second", ", ipFamilies: [IPv6]")
        + &service("both", ", ipFamilyPolicy: RequireDualStack, type: NodePort")
        + &service("both-headless", ", ipFamilyPolicy: PreferDualStack, clusterIP: None")
}

const DENY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

struct Cluster<'a>(&'a TestBox);

impl Cluster<'_> {
    fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        Ok(self.0.kubectl(args)?.ok()?.stdout)
    }

    fn get(&self, what: &str) -> anyhow::Result<Value> {
        let mut args = vec!["get", "-o", "json"];
        args.extend(what.split(' '));
        Ok(serde_json::from_str(&self.ok(&args)?)?)
    }

    fn python(&self, script: &str, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["exec", "asks", "--", "python3", "-c", script];
        all.extend(args);
        Ok(self.ok(&all)?.trim().to_owned())
    }

    fn ask(&self, address: &str, port: &str) -> anyhow::Result<String> {
        self.python(ASK, &[address, port, "5"])
    }

    fn eventually(&self, address: &str, port: &str, wanted: &str) -> anyhow::Result<()> {
        wait_until(Duration::from_secs(30), &format!("{wanted} from {address}"), || {
            Ok((self.ask(address, port)? == wanted).then_some(()))
        })
    }
}

/// An object's list of strings, or of objects with an `ip`.
fn texts(value: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().or_else(|| v["ip"].as_str()).unwrap_or_default().to_owned();
    value.as_array().into_iter().flatten().map(text).collect()
}

fn says(program: &str, args: &[&str]) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&Command::new(program).args(args).output()?.stdout).into_owned())
}

#[test]
fn a_box_with_both_families() -> anyhow::Result<()> {
    if !Path::new("/proc/sys/net/ipv6/conf").exists() {
        // The box says so itself.
        let mut b = TestBox::prepare()?;
        b.use_both_families(true);
        assert!(b.up(&[]).is_err_and(|error| error.to_string().contains("IPv6")));
        return Ok(());
    }
    let mut b = TestBox::prepare()?;
    b.use_both_families(true);
    b.up(&[])?;
    b.load_python_image()?;
    let c = Cluster(&b);
    b.kubectl_with_input(&["apply", "-f", "-"], &objects())?.ok()?;
    c.ok(&["wait", "--for=condition=Ready", "pod/web", "pod/asks", "--timeout=60s"])?;

    // Pods and the node.
    let (web, asks) = (c.get("pod web")?, c.get("pod asks")?);
    let ips = texts(&web["status"]["podIPs"]);
    let own = texts(&asks["status"]["podIPs"]);
    assert!(ips.len() == 2 && !ips[0].contains(':') && ips[1].contains(':'), "{ips:?}");
    assert_eq!(web["status"]["podIP"], ips[0].as_str());
    assert_eq!(texts(&web["status"]["hostIPs"]).len(), 2);
    let told = c.ok(&["exec", "asks", "--", "sh", "-c", "echo $POD_IPS $HOST_IPS; cat /etc/hosts"])?;
    let hosts = texts(&asks["status"]["hostIPs"]).join(",");
    assert!(told.starts_with(&format!("{} {hosts}\n", own.join(","))), "{told}");
    assert!(own.iter().all(|ip| told.contains(&format!("\n{ip}\tasks."))), "{told}");
    let nodes = c.get("nodes")?;
    let ranges = texts(&nodes["items"][0]["spec"]["podCIDRs"]);
    assert!(ranges.len() == 2 && ranges[1].contains(':'), "{ranges:?}");
    for (to, from) in ips.iter().zip(&own) {
        assert_eq!(&c.ask(to, "8000")?, from, "{to}");
    }

    // Services, by each of their addresses and by their names.
    let spec = |name: &str| -> anyhow::Result<Value> { Ok(c.get(&format!("service {name}"))?["spec"].clone()) };
    let (single, second, both) = (spec("single")?, spec("second")?, spec("both")?);
    assert_eq!((texts(&single["clusterIPs"]).len(), texts(&single["ipFamilies"])), (1, vec!["IPv4".into()]));
    assert_eq!(texts(&second["ipFamilies"]), ["IPv6"]);
    assert_eq!(texts(&both["ipFamilies"]), ["IPv4", "IPv6"]);
    let addresses = texts(&both["clusterIPs"]);
    assert_eq!(addresses.len(), 2);
    for (to, from) in addresses.iter().zip(&own) {
        c.eventually(to, "80", from)?;
    }
    c.eventually("second", "80", &own[1])?;
    let node_port = both["ports"][0]["nodePort"].to_string();
    let gateways = texts(&web["status"]["hostIPs"]);
    for (gateway, from) in gateways.iter().zip(&own) {
        c.eventually(gateway, &node_port, from)?;
    }
    let slices = c.get("endpointslices -l kubernetes.io/service-name=both")?;
    let mut kinds: Vec<&str> =
        slices["items"].as_array().into_iter().flatten().filter_map(|s| s["addressType"].as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["IPv4", "IPv6"]);
    let look_up = |name: &str, family: &str| c.python(LOOK_UP, &[name, family]);
    assert_eq!((look_up("both", "4")?, look_up("both", "6")?), (addresses[0].clone(), addresses[1].clone()));
    assert_eq!((look_up("both-headless", "4")?, look_up("both-headless", "6")?), {
        let sorted = |at: usize| {
            let mut all = [ips[at].clone()];
            all.sort();
            all.join(",")
        };
        (sorted(0), sorted(1))
    });
    assert_eq!(
        (look_up("web.both-headless", "4")?, look_up("web.both-headless", "6")?),
        (ips[0].clone(), ips[1].clone())
    );
    assert_eq!((look_up("single", "6")?, look_up("second", "4")?), ("none".into(), "none".into()));
    assert_eq!(look_up("kubernetes.default", "6")?, "none");
    let reverse = "import socket, sys; print(socket.gethostbyaddr(sys.argv[1])[0])";
    assert_eq!(c.python(reverse, &[&addresses[1]])?, "both.default.svc.cluster.local");
    assert_eq!(c.python(reverse, &[&ips[1]])?, "web.both-headless.default.svc.cluster.local");

    // Up to two families and back.
    let patch = |policy: &str| {
        let patch = format!("{{\"spec\": {{\"ipFamilyPolicy\": \"{policy}\"}}}}");
        c.ok(&["patch", "service", "single", "--type=merge", "-p", &patch])
    };
    patch("RequireDualStack")?;
    let now = texts(&spec("single")?["clusterIPs"]);
    c.eventually(&now[1], "80", &own[1])?;
    patch("SingleStack")?;
    c.eventually(&now[1], "80", "refused")?;
    assert_eq!(texts(&spec("single")?["clusterIPs"]), now[..1]);

    // A wall is a wall by each address, also after the daemon was killed.
    b.kubectl_with_input(&["apply", "-f", "-"], DENY)?.ok()?;
    for to in ips.iter().chain(&addresses) {
        let port = if ips.contains(to) { "8000" } else { "80" };
        wait_until(Duration::from_secs(30), &format!("silence from {to}"), || {
            Ok((c.python(ASK, &[to, port, "0.5"])? == "silence").then_some(()))
        })?;
    }
    b.kill_daemon()?;
    for to in &ips {
        let from_pod = from_outside(&b, &asks, to)?;
        assert_eq!(from_pod, "silence", "{to} while there is no daemon");
    }
    b.up(&[])?;
    let c = Cluster(&b);
    assert_eq!(texts(&c.get("pod web")?["status"]["podIPs"]), ips);
    for to in &ips {
        assert_eq!(c.python(ASK, &[to, "8000", "0.5"])?, "silence", "{to}");
    }
    c.ok(&["delete", "networkpolicy", "deny"])?;
    for (to, from) in ips.iter().zip(&own) {
        c.eventually(to, "8000", from)?;
    }

    // The setting goes: running pods keep their first family alone, and what needed both says so.
    b.kfbox_ok(&["down"])?;
    b.use_both_families(false);
    b.up(&[])?;
    let c = Cluster(&b);
    c.eventually(&ips[0], "8000", &own[0])?;
    assert_eq!(c.python(ASK, &[&ips[1], "8000", "0.5"])?, "silence");
    let refused = b.kubectl_with_input(
        &["apply", "-f", "-"],
        "{apiVersion: v1, kind: Service, metadata: {name: late}, spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}}",
    )?;
    assert!(refused.stderr.contains("this cluster is not configured for dual-stack services"), "{refused:?}");
    b.kfbox_ok(&["down"])?;
    b.use_both_families(true);
    b.up(&[])?;

    let mut args = vec!["reset".to_owned(), "--yes".to_owned()];
    args.extend(b.settings());
    b.kfbox(&args)?.ok()?;
    let instance = args.windows(2).find(|w| w[0] == "--instance").context("instance")?[1].clone();
    let prefix = ranges[1].split("::").next().context("range")?.rsplit_once(':').context("range")?.0.to_owned();
    let left = [
        says("nft", &["list", "tables"])?,
        says("ip", &["-6", "route", "show", "table", "all"])?,
        says("ip", &["-6", "-oneline", "address"])?,
        says("ip", &["-oneline", "link"])?,
    ]
    .concat();
    let ours: Vec<&str> = left
        .lines()
        .filter(|l| {
            l.contains(&format!("kfbox_{instance}")) || l.contains(&prefix) || l.contains(&format!("{instance}0"))
        })
        .collect();
    assert_eq!(ours, Vec::<&str>::new());
    Ok(())
}

/// Asks from inside of a pod's network while nobody serves `kubectl exec`.
fn from_outside(b: &TestBox, pod: &Value, to: &str) -> anyhow::Result<String> {
    let uid = pod["metadata"]["uid"].as_str().context("uid")?;
    let started = b.data_dir().join(format!("pods/{uid}/containers/main/0/started.json"));
    let started: Value = serde_json::from_str(&fs::read_to_string(&started)?)?;
    let pid = started["init"]["pid"].to_string();
    let output = Command::new("nsenter").args(["-t", &pid, "-n", "python3", "-c", ASK, to, "8000", "0.5"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
