//! get in all its forms, explain, describe, events, top, discovery, proxy, configuration.

use super::{IDLE, WEB, WIDGETS, streams::fetch};
use kfbox_tests::{Space, TestBox, run, wait_until};
use serde_json::Value;
use std::time::Duration;

#[test]
fn kubectl_gets_in_every_format() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "get")?;
    for (name, size) in [("c-one", 3), ("a-two", 1), ("b-three", 2)] {
        let values: Vec<String> = (0..size).map(|n| format!("--from-literal=k{n}=v")).collect();
        s.ok(&format!("create configmap {name} {}", values.join(" ")))?;
        s.ok(&format!("label configmap {name} size={size}"))?;
    }
    let sorted = s.ok_with("get configmaps -l size --no-headers --sort-by", &["{.metadata.labels.size}"])?;
    let names: Vec<&str> = sorted.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(names, ["a-two", "b-three", "c-one"]);
    let table = s.ok("get configmaps -l size=3 --show-labels -L size")?;
    assert!(table.contains("NAME    DATA   AGE   SIZE   LABELS") && table.contains("size=3"), "{table}");
    assert_eq!(s.ok("get configmaps --chunk-size=1 -o name")?.lines().count(), 4);
    let columns =
        s.ok_with("get configmaps -o custom-columns=N:.metadata.name,D:.data.k0 -l", &["size in (1,2),size!=2"])?;
    assert_eq!(columns, "N       D\na-two   v\n");
    let by_field = s.ok("get configmaps --field-selector=metadata.name=b-three -o name")?;
    assert_eq!(by_field, "configmap/b-three\n");
    let wrong = s.refused("get configmaps --field-selector=data.k0=v")?;
    assert!(wrong.contains("field label not supported: data.k0"), "{wrong}");
    let template = s.ok_with("get configmaps -l size -o", &["go-template={{range .items}}{{len .data}} {{end}}"])?;
    assert_eq!(template, "1 2 3 ");
    let list: Value = serde_json::from_str(&s.ok("get configmaps,secrets -l size -o json")?)?;
    assert_eq!((list["kind"].as_str(), list["items"].as_array().map(Vec::len)), (Some("List"), Some(3)));
    assert!(s.ok("get configmap a-two -o yaml")?.starts_with("apiVersion: v1\ndata:\n  k0: v\nkind: ConfigMap\n"));
    assert_eq!(s.ok("get configmap none --ignore-not-found")?, "");
    assert!(run(&mut s.kubectl("get pods"))?.ok()?.stderr.contains("No resources found in "));
    assert!(s.ok("get namespaces -A -o name")?.contains("namespace/kube-system"));
    let raw: Value =
        serde_json::from_str(&s.ok(&format!("get --raw /api/v1/namespaces/{}/configmaps?limit=2", s.name))?)?;
    assert_eq!(raw["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(raw["metadata"]["remainingItemCount"], 2);
    assert!(s.ok("get --raw /readyz?verbose")?.contains("readyz check passed"));
    let missing = s.refused("get nonsense")?;
    assert!(missing.contains("the server doesn't have a resource type \"nonsense\""), "{missing}");

    // Watches: with the first state, without it, and with the events' names.
    let mut watch = s.start("get configmaps -l size -w -o custom-columns=N:.metadata.name,D:.data.k0 --no-headers")?;
    watch.expect("c-one")?;
    let mut only = s.start("get configmap -l size --watch-only --output-watch-events")?;
    // The second says nothing at first: it stands once it shows a change, of which there are as many as it takes.
    let mut round = 0;
    let first = wait_until(Duration::from_secs(30), "the watch", || {
        round += 1;
        s.ok_with("patch configmap a-two -p", &[&format!(r#"{{"data":{{"k0":"w{round}"}}}}"#)])?;
        Ok(only.line_within(Duration::from_millis(500), |line| line.starts_with("MODIFIED")))
    })?;
    assert!(first.starts_with("MODIFIED   a-two"), "{first}");
    watch.line("the change", |line| line.starts_with("a-two") && line.contains('w'))?;
    s.ok("delete configmap a-two")?;
    only.expect("DELETED    a-two")?;
    Ok(())
}

#[test]
fn kubectl_prints_explains_and_describes() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "show")?;
    s.apply(WEB)?;
    s.apply(IDLE)?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    let wide = s.ok("get pods,deployments,replicasets,services -o wide")?;
    for part in
        ["NOMINATED NODE   READINESS GATES", "UP-TO-DATE   AVAILABLE", "CONTAINERS   IMAGES", "EXTERNAL-IP   PORT(S)"]
    {
        assert!(wide.contains(part), "{part}: {wide}");
    }
    for (what, parts) in [
        ("deployment web", &["RollingUpdate", "NewReplicaSet:", "ScalingReplicaSet"][..]),
        ("pod -l app=idle", &["sleep", "QoS Class:", "BestEffort", "Scheduled", "Started"]),
        ("service web", &["TargetPort:", "http/TCP", "Endpoints:"]),
        ("namespace default", &["Status:", "Active"]),
        ("nodes", &["Allocatable:", "KubeletReady", "Non-terminated Pods"]),
        ("serviceaccount default", &["Image pull secrets:"]),
        ("storageclass", &["Provisioner:"]),
    ] {
        let described = s.ok(&format!("describe {what}"))?;
        for part in parts {
            assert!(described.contains(part), "{what}: {part}: {described}");
        }
    }
    let recursive = s.ok("explain deployment.spec.strategy --recursive")?;
    assert!(recursive.contains("  maxSurge\t<IntOrString>"), "{recursive}");
    let field = s.ok("explain pods.spec.nodeName")?;
    assert!(field.contains("KIND:       Pod") && field.contains("FIELD: nodeName <string>"), "{field}");
    let hpa = s.ok("explain hpa.spec --api-version=autoscaling/v2")?;
    assert!(hpa.contains("GROUP:      autoscaling") && hpa.contains("maxReplicas\t<integer> -required-"), "{hpa}");
    assert!(s.refused("explain pod.spec.nothing")?.contains("field \"nothing\" does not exist"));

    let group = format!("{}.example.test", s.name);
    s.goes_too(format!("crd/widgets.{group}"));
    s.apply(&WIDGETS.replace("GROUP", &group))?;
    s.ok(&format!("wait --for=condition=Established crd/widgets.{group} --timeout=20s"))?;
    s.apply(&format!("{{apiVersion: {group}/v1, kind: Widget, metadata: {{name: w}}, spec: {{size: 2}}}}"))?;
    // By its whole name: other tests make widgets of their own group.
    let table = s.ok(&format!("get wd.{group} w"))?;
    assert!(table.starts_with("NAME   SIZE\nw      2\n"), "{table}");
    assert!(s.ok(&format!("get wd.{group} -o wide"))?.contains("NAME   SIZE   COLOUR\nw      2      grey"));
    let explained = s.ok(&format!("explain widgets.spec --api-version={group}/v1"))?;
    for part in ["What the widget is to be.", "size\t<integer> -required-", "How many parts it has.", "enum: grey, red"]
    {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    assert!(s.ok(&format!("describe widgets.{group} w"))?.contains("Colour:  grey"));
    let listed = s.ok(&format!("api-resources --api-group={group} -o wide --no-headers"))?;
    let verbs = "create,delete,deletecollection,get,list,patch,update,watch";
    assert!(listed.starts_with("widgets   wd    ") && listed.contains(verbs), "{listed}");
    assert!(s.ok("api-resources --namespaced=false --verbs=list -o name")?.contains("nodes\n"));
    assert!(s.ok("api-versions")?.contains("apps/v1\n"));
    Ok(())
}

#[test]
fn kubectl_shows_events_and_the_cluster() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "events")?;
    let mut watching = s.start("events -w --types=Normal")?;
    s.apply(IDLE)?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    watching.expect("Started")?;
    let events = s.ok("events --for pod/idle")?;
    for reason in ["Scheduled", "Created", "Started"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }
    let sorted = s.ok("get events --sort-by=.metadata.creationTimestamp --field-selector=involvedObject.name=idle")?;
    assert!(sorted.contains("pod/idle"), "{sorted}");
    assert!(s.ok("get events.events.k8s.io")?.contains("pod/idle"));

    assert!(s.ok("cluster-info")?.contains("is running at"));
    s.ok(&format!("cluster-info dump --namespaces={} --output-directory=dump", s.name))?;
    let pods: Value = serde_json::from_slice(&std::fs::read(s.dir().join("dump").join(&s.name).join("pods.json"))?)?;
    assert_eq!(pods["items"][0]["metadata"]["name"], "idle");
    let version: Value = serde_json::from_str(&s.ok("version -o json")?)?;
    assert_eq!(version["serverVersion"]["major"], "1");
    assert!(s.ok("config view --minify")?.contains("DATA+OMITTED"));
    assert_eq!(s.ok("config current-context")?.lines().count(), 1);
    Ok(())
}

#[test]
fn kubectl_proxies_the_api_pods_and_services() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "proxy")?;
    s.apply(&WEB.replace("replicas: 2", "replicas: 1"))?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    let pod = s.value("pods -l app=web", "{.items[0].metadata.name}")?;
    s.ok_with(&format!("exec {pod} -- sh -c"), &["echo from the pod > '/tmp/a b'"])?;
    let mut proxy = s.start("proxy --port=0")?;
    let line = proxy.expect("Starting to serve on ")?;
    let address = line.rsplit(' ').next().unwrap_or_default();
    let base = format!("http://{address}/api/v1/namespaces/{}", s.name);
    let pods: Value = serde_json::from_str(&fetch(&format!("{base}/pods"))?)?;
    assert_eq!(pods["kind"], "PodList");
    for way in [
        format!("pods/{pod}:8000"),
        format!("pods/{pod}"),
        "services/web".into(),
        "services/web:80".into(),
        "services/http:web:".into(),
    ] {
        let said = fetch(&format!("{base}/{way}/proxy/tmp/a%20b"))?;
        assert_eq!(said, "from the pod\n", "{way}");
    }
    Ok(())
}

/// Usage of nodes and pods comes from metrics.k8s.io.
#[test]
fn kubectl_top_shows_what_pods_and_nodes_use() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "top")?;
    s.apply(
        &IDLE
            .replace("[sleep, infinity]", "[python3, -c, \"x = b'x' * 40_000_000\\nwhile True: pass\"]")
            .replace("name: main,", "name: main, resources: {limits: {cpu: 200m}},"),
    )?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    let pods = wait_until(Duration::from_secs(60), "the pod's usage", || {
        let output = s.run("top pods --no-headers")?;
        let mut words = output.stdout.split_whitespace().skip(1);
        let busy = words.next().is_some_and(|cpu| cpu != "0m" && cpu.ends_with('m'));
        // The program may not have come to its allocation when it is first measured.
        let memory = words.next().and_then(|m| m.trim_end_matches("Mi").parse::<u64>().ok());
        Ok((output.code == Some(0) && busy && memory.is_some_and(|m| (20..500).contains(&m))).then_some(output.stdout))
    })?;
    assert!(pods.starts_with("idle "), "{pods}");
    assert!(s.ok("top pods --containers -l app=idle")?.contains("main"));
    assert!(s.ok("top pods --sort-by=memory -A")?.contains("idle"));
    let nodes = s.ok("top nodes")?;
    assert!(nodes.starts_with("NAME") && nodes.lines().count() == 2 && !nodes.contains("<unknown>"), "{nodes}");
    Ok(())
}
