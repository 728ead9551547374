//! A pod with `hostUsers: false` through kubectl: root inside is somebody without any right outside, and everything that a pod
//! does works as it does for others: volumes, configuration, exec, logs, network, restarts, and a daemon that is killed.

use anyhow::Context;
use kfbox_tests::{Space, TestBox, wait_until};
use serde_json::Value;
use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

const POD: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {word: sesame}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: own}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own, labels: {app: own}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4321}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
  - {name: words, configMap: {name: words}}
  - {name: hidden, secret: {secretName: hidden, defaultMode: 0400}}
  initContainers:
  - {name: first, image: 'python:3.11', imagePullPolicy: IfNotPresent, command: [sh, -c, 'id -u > /scratch/by-init'], volumeMounts: [{name: scratch, mountPath: /scratch}]}
  containers:
  - name: main
    image: python:3.11
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo started; echo $(date +%N) >> /kept/starts; cd /words; exec python3 -m http.server 8000']
    readinessProbe: {httpGet: {path: /greeting, port: 8000}, periodSeconds: 1}
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
    volumeMounts: &mounts
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: kept, mountPath: /kept}
    - {name: words, mountPath: /words}
    - {name: hidden, mountPath: /hidden}
  - name: person
    image: python:3.11
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    securityContext: {runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: *mounts
---
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec:
  containers: [{name: main, image: 'python:3.11', imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
"#;

const GET: &str =
    "import urllib.request; print(urllib.request.urlopen('http://web/greeting', timeout=10).read().decode())";
const ASK_API: &str = "import ssl, urllib.request, urllib.error\n\
    own = '/var/run/secrets/kubernetes.io/serviceaccount/'\n\
    request = urllib.request.Request('https://kubernetes.default/version', headers={'Authorization': 'Bearer ' + open(own + 'token').read()})\n\
    print(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=own + 'ca.crt')).status)";

fn exec(space: &Space, pod: &str, container: &str, script: &str) -> anyhow::Result<String> {
    let line = format!("exec {pod} -c {container} -- sh -c");
    Ok(space.ok_with(&line, &[script])?.trim().to_owned())
}

/// The users of a container's first process as the host sees them, and the map of its namespace.
fn seen_from_outside(b: &TestBox, uid: &str, container: &str, attempt: u32) -> anyhow::Result<(u32, String)> {
    let path = b.data_dir().join(format!("pods/{uid}/containers/{container}/{attempt}/started.json"));
    let started: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let process = Path::new("/proc").join(started["init"]["pid"].to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("Uid")?;
    let user = line.split_whitespace().next().context("uid")?.parse()?;
    Ok((user, fs::read_to_string(process.join("uid_map"))?.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[test]
fn root_of_a_pod_is_nobody_outside_and_lacks_nothing_inside() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let space = Space::new(&b, "own-users")?;
    space.apply(POD)?;
    space.ok("wait pod/own pod/asks --for=condition=Ready --timeout=120s")?;
    let uid = space.value("pod/own", "{.metadata.uid}")?;
    let (root, map) = seen_from_outside(&b, &uid, "main", 0)?;
    assert!(root >= 0x4000_0000, "root is {root} outside");
    assert_eq!(map, format!("0 {root} 65536"));
    assert_eq!(seen_from_outside(&b, &uid, "person", 0)?, (root + 1000, map.clone()));

    // Inside, everything is whose it should be.
    assert_eq!(
        exec(&space, "own", "main", "id -u; cat /scratch/by-init; stat -c %u:%g /words/..data/greeting")?,
        "0\n0\n0:4321"
    );
    assert_eq!(exec(&space, "own", "person", "id -u; id -G")?, "1000\n1000 4321");
    assert_eq!(exec(&space, "own", "main", "cat /hidden/word")?, "sesame");
    for volume in ["scratch", "memory", "kept"] {
        exec(&space, "own", "person", &format!("echo x > /{volume}/of-person"))?;
        exec(&space, "own", "main", &format!("echo x > /{volume}/of-root; chown 5:6 /{volume}/of-root"))?;
        let owners = exec(&space, "own", "main", &format!("stat -c %u:%g /{volume}/of-person /{volume}/of-root"))?;
        assert_eq!(owners, "1000:4321\n5:6", "{volume}");
    }
    // On the disk too: a claim's files are the same whoever mounts it next.
    let volume = space.value("pvc/kept", "{.spec.volumeName}")?;
    let path = space.value(&format!("pv/{volume}"), "{.spec.hostPath.path}{.spec.local.path}")?;
    let meta = fs::metadata(Path::new(&path).join("of-person"))?;
    assert_eq!((meta.uid(), meta.gid()), (1000, 4321));

    // It is root over nothing of the host's.
    for forbidden in
        ["echo 1 > /proc/sys/kernel/panic", "mount -t tmpfs none /mnt", "date -s 2001-01-01", "dd if=/dev/kmsg count=1"]
    {
        assert_eq!(
            exec(&space, "own", "main", &format!("({forbidden}) >/dev/null 2>&1 && echo done; true"))?,
            "",
            "{forbidden}"
        );
    }

    // Found by others by its Service, and finding others: names, the API.
    assert_eq!(space.ok_with("exec asks -- python3 -c", &[GET])?.trim(), "hello");
    assert_eq!(space.ok_with("exec own -c main -- python3 -c", &[ASK_API])?.trim(), "200");
    assert_eq!(space.ok("logs own -c main")?.lines().next(), Some("started"));

    // A container that is killed runs again with the same users; a daemon that is killed finds it running.
    // Of the signals that its first process may be sent from inside, Python hears this one.
    exec(&space, "own", "main", "kill -INT 1; true")?;
    wait_until(Duration::from_secs(60), "it runs again", || {
        let again = space.value("pod/own", "{.status.containerStatuses[?(@.name=='main')].restartCount}")?;
        Ok((again == "1").then_some(()))
    })?;
    space.ok("wait pod/own --for=condition=Ready --timeout=60s")?;
    assert_eq!(seen_from_outside(&b, &uid, "main", 1)?, (root, map));
    assert_eq!(exec(&space, "own", "main", "wc -l < /kept/starts; cat /scratch/of-person")?, "2\nx");
    let id = space.value("pod/own", "{.status.containerStatuses[*].containerID}")?;
    b.kill_daemon()?;
    b.up(&[])?;
    // The API has another port now.
    let kubectl = |arguments: &[&str]| {
        Ok::<_, anyhow::Error>(b.kubectl(&[&["-n", &space.name], arguments].concat())?.ok()?.stdout)
    };
    kubectl(&["wait", "pod/own", "--for=condition=Ready", "--timeout=60s"])?;
    assert_eq!(kubectl(&["get", "pod", "own", "-o", "jsonpath={.status.containerStatuses[*].containerID}"])?, id);
    assert_eq!(kubectl(&["exec", "own", "-c", "person", "--", "cat", "/kept/of-person"])?, "x\n");
    let folder = b.data_dir().join("pods").join(&uid);
    kubectl(&["delete", "pod", "own"])?;
    wait_until(Duration::from_secs(30), "nothing is left of it", || Ok((!folder.exists()).then_some(())))
}
