//! kubectl 1.37 against the embedded cluster.

use kfbox_tests::{TestBox, wait_until};
use std::time::Duration;

const MANIFEST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting, namespace: NAMESPACE}
data: {text: hello from a config map}
---
apiVersion: v1
kind: Pod
metadata: {name: speaker, namespace: NAMESPACE, labels: {app: speaker}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: python:3.11
    command: [python3, -u, -c]
    args:
    - |
      import http.server, os, threading
      print(open('/config/text').read(), os.environ['POD'], flush=True)
      os.chdir('/config')
      http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind='0.0.0.0')
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    ports: [{containerPort: 8000}]
    readinessProbe: {httpGet: {path: /text, port: 8000}, periodSeconds: 1}
    resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
    volumeMounts: [{name: config, mountPath: /config}]
  volumes: [{name: config, configMap: {name: greeting}}]
---
apiVersion: v1
kind: Service
metadata: {name: voice, namespace: NAMESPACE}
spec: {selector: {app: speaker}, ports: [{port: 80, targetPort: 8000}]}
";

/// A namespace of the test's own.
fn namespace(b: &TestBox, name: &str) -> anyhow::Result<String> {
    let name = format!("{name}-{}", std::process::id());
    b.kubectl(&["create", "namespace", &name])?.ok()?;
    Ok(name)
}

#[test]
fn kubectl_applies_gets_describes_reads_logs_executes_and_deletes() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let ns = namespace(&b, "speak")?;
    let n = ["-n", &ns];
    let manifest = MANIFEST.replace("NAMESPACE", &ns);
    let applied = b.kubectl_with_input(&["apply", "-f", "-"], &manifest)?.ok()?.stdout;
    assert!(applied.contains("pod/speaker created"), "{applied}");
    let again = b.kubectl_with_input(&["apply", "-f", "-"], &manifest)?.ok()?.stdout;
    assert!(again.contains("configmap/greeting unchanged"), "{again}");

    b.kubectl(&[&["wait", "--for=condition=Ready", "pod/speaker", "--timeout=60s"], &n[..]].concat())?.ok()?;
    let table = b.kubectl(&[&["get", "pods", "-o", "wide"], &n[..]].concat())?.ok()?.stdout;
    assert!(table.contains("READY") && table.contains("1/1") && table.contains("Running"), "{table}");
    let described = b.kubectl(&[&["describe", "pod", "speaker"], &n[..]].concat())?.ok()?.stdout;
    for part in ["Started", "python:3.11", "Ready", "/config from config"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let log = b.kubectl(&[&["logs", "speaker"], &n[..]].concat())?.ok()?.stdout;
    assert!(log.starts_with("hello from a config map speaker\n"), "{log}");

    // By name through DNS, Service and address translation, from inside the pod itself (a hairpin).
    let fetch = "import urllib.request; print(urllib.request.urlopen('http://voice/text').read().decode())";
    let fetched = b.kubectl(&[&["exec", "speaker"], &n[..], &["--", "python3", "-c", fetch]].concat())?.ok()?.stdout;
    assert_eq!(fetched.trim(), "hello from a config map");
    let code = b.kubectl(&[&["exec", "speaker"], &n[..], &["--", "sh", "-c", "exit 7"]].concat())?;
    assert_eq!(code.code, Some(7), "{code:?}");

    b.kubectl(&[&["delete", "pod", "speaker", "--timeout=30s"], &n[..]].concat())?.ok()?;
    let gone = b.kubectl(&[&["get", "pod", "speaker"], &n[..]].concat())?;
    assert!(gone.stderr.contains("NotFound"), "{gone:?}");
    b.kubectl(&["delete", "namespace", &ns, "--timeout=60s"])?.ok()?;
    Ok(())
}

#[test]
fn a_deployment_rolls_out_and_a_job_completes() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let ns = namespace(&b, "work")?;
    let n = ["-n", &ns];
    let deployment = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'python:3.11', command: [sleep, infinity]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: 'python:3.11', command: [python3, -c, 'print(6*7)']}]
";
    b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), deployment)?.ok()?;
    b.kubectl(&[&["rollout", "status", "deployment/web", "--timeout=60s"], &n[..]].concat())?.ok()?;
    b.kubectl(&[&["wait", "--for=condition=complete", "job/once", "--timeout=60s"], &n[..]].concat())?.ok()?;
    assert_eq!(b.kubectl(&[&["logs", "job/once"], &n[..]].concat())?.ok()?.stdout.trim(), "42");
    b.kubectl(&[&["scale", "deployment/web", "--replicas=1"], &n[..]].concat())?.ok()?;
    wait_until(Duration::from_secs(30), "one replica", || {
        let out = b.kubectl(&[&["get", "pods", "-l", "app=web", "-o", "name"], &n[..]].concat())?.ok()?.stdout;
        Ok((out.lines().count() == 1).then_some(()))
    })?;
    b.kubectl(&["delete", "namespace", &ns, "--timeout=60s"])?.ok()?;
    Ok(())
}

#[test]
fn a_claim_gets_a_volume_that_outlives_its_pod() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let ns = namespace(&b, "store")?;
    let n = ["-n", &ns];
    let pod = |name: &str, script: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  containers:
  - {{name: main, image: 'python:3.11', command: [sh, -c, '{script}'], volumeMounts: [{{name: data, mountPath: /data}}]}}
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]
"
        )
    };
    let claim = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
";
    b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), claim)?.ok()?;
    for (name, script, expected) in [("writer", "echo kept > /data/file", ""), ("reader", "cat /data/file", "kept")] {
        b.kubectl_with_input(&[&["apply", "-f", "-"], &n[..]].concat(), &pod(name, script))?.ok()?;
        let target = format!("pod/{name}");
        b.kubectl(&[&["wait", "--for=jsonpath={.status.phase}=Succeeded", &target, "--timeout=60s"], &n[..]].concat())?
            .ok()?;
        let log = b.kubectl(&[&["logs", name], &n[..]].concat())?.ok()?.stdout;
        assert_eq!(log.trim(), expected);
        b.kubectl(&[&["delete", &target, "--timeout=30s"], &n[..]].concat())?.ok()?;
    }
    b.kubectl(&["delete", "namespace", &ns, "--timeout=60s"])?.ok()?;
    Ok(())
}

#[test]
fn strangers_get_nothing() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let server = format!("https://{}", b.address("kubernetes")?);
    let curl = |url: &str, more: &[&str]| {
        let mut command = std::process::Command::new("curl");
        command.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}"]).args(more).arg(url);
        kfbox_tests::run(&mut command).map(|o| o.stdout)
    };
    assert_eq!(curl(&format!("{server}/api/v1/namespaces"), &[])?, "403");
    assert_eq!(curl(&format!("{server}/api/v1/namespaces"), &["-H", "Authorization: Bearer nonsense"])?, "401");
    let url = b.url()?;
    for path in ["/apis/v2beta1/runs", "/pipeline/apis/v2beta1/pipelines", "/runs", "/kfam/v1/bindings"] {
        assert_eq!(curl(&format!("{url}{path}"), &["-H", "Accept: application/json"])?, "401", "{path}");
        let spoofed = curl(
            &format!("{url}{path}"),
            &[
                "-H",
                "Accept: application/json",
                "-H",
                "kubeflow-userid: user@example.com",
                "-H",
                "X-Auth-Request-Email: user@example.com",
            ],
        )?;
        assert_eq!(spoofed, "401", "{path}");
    }
    assert_eq!(curl(&format!("http://{}/mlpipeline", b.address("objects")?), &[])?, "403");
    Ok(())
}
