//! A real program of many processes, unmodified: PostgreSQL from Debian's packages as a StatefulSet with a claim, probes,
//! a Service and a NetworkPolicy. It is killed in every way a machine can kill it, and must lose no row that a client was
//! told is stored.

use anyhow::Context;
use kfbox_tests::{Space, TestBox, run, wait_until};
use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

const LIMIT: Duration = Duration::from_secs(90);

/// Restricted in the sense of the Pod Security Standards; the data is made by an init container on first use.
const DATABASE: &str = "
apiVersion: v1
kind: Secret
metadata: {name: postgres}
stringData: {password: not-a-default}
---
apiVersion: v1
kind: Service
metadata: {name: postgres, labels: {app: postgres}}
spec: {selector: {app: postgres}, ports: [{name: sql, port: 5432, targetPort: sql}]}
---
apiVersion: v1
kind: Service
metadata: {name: postgres-pods, labels: {app: postgres}}
spec: {clusterIP: None, selector: {app: postgres}, ports: [{name: sql, port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres}
spec:
  serviceName: postgres-pods
  selector: {matchLabels: {app: postgres}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 200Mi}}}
  template:
    metadata: {labels: {app: postgres}}
    spec:
      os: {name: linux}
      terminationGracePeriodSeconds: 20
      securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      volumes:
      - {name: sockets, emptyDir: {medium: Memory}}
      - {name: password, secret: {secretName: postgres, defaultMode: 0440}}
      initContainers:
      - name: initdb
        image: docker.io/kfbox-tests/postgres:15
        imagePullPolicy: IfNotPresent
        command: [sh, -ec]
        args:
        - |
          [ ! -e $PGDATA/PG_VERSION ] || exit 0
          rm -rf $PGDATA
          initdb --auth-host=scram-sha-256 --auth-local=trust --pwfile=/password/password
          echo 'host all all 0.0.0.0/0 scram-sha-256' >> $PGDATA/pg_hba.conf
        env: &env [{name: PGDATA, value: /var/lib/postgresql/data/of-15}]
        securityContext: &safe {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        volumeMounts:
        - {name: data, mountPath: /var/lib/postgresql/data}
        - {name: password, mountPath: /password}
      containers:
      - name: postgres
        image: docker.io/kfbox-tests/postgres:15
        imagePullPolicy: IfNotPresent
        command: [postgres, -c, 'listen_addresses=*', -c, shared_buffers=16MB]
        env: *env
        securityContext: *safe
        ports: [{name: sql, containerPort: 5432}]
        resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 256Mi}}
        startupProbe: {exec: {command: [pg_isready, -q]}, periodSeconds: 1, failureThreshold: 60}
        readinessProbe: {exec: {command: [pg_isready, -q]}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: sql}, periodSeconds: 5}
        lifecycle: {stopSignal: SIGINT}
        volumeMounts:
        - {name: data, mountPath: /var/lib/postgresql/data}
        - {name: sockets, mountPath: /var/run/postgresql}
";

/// Writes numbers one by one, and notes each that the database acknowledged.
const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {role: ROLE}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: docker.io/kfbox-tests/postgres:15
    imagePullPolicy: IfNotPresent
    command: [sh, -c]
    args:
    - |
      until [ -e /noted/go ]; do sleep 0.1; done
      n=0
      while :; do
        n=$((n+1))
        if psql -qc \"insert into numbers values ($n)\"; then echo $n >> /noted/stored; else sleep 0.2; fi
      done 2>/dev/null
    env:
    - {name: PGHOST, value: HOST}
    - {name: PGUSER, value: postgres}
    - {name: PGCONNECT_TIMEOUT, value: '2'}
    - {name: PGPASSWORD, value: not-a-default}
    volumeMounts: [{name: noted, mountPath: /noted}]
  volumes: [{name: noted, emptyDir: {}}]
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: postgres}
spec:
  podSelector: {matchLabels: {app: postgres}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{port: sql}]
";

struct Database<'a> {
    b: &'a TestBox,
    s: Space,
}

impl Database<'_> {
    /// Until the server's pod, one other than `before`, is ready; its uid.
    fn ready(&self, before: &str) -> anyhow::Result<String> {
        let path = "{.metadata.uid} {.status.conditions[?(@.type=='Ready')].status}";
        wait_until(LIMIT, "a ready server", || {
            let seen = self.s.value("pod/postgres-0", path).unwrap_or_default();
            Ok(seen
                .split_once(' ')
                .filter(|(uid, ready)| *uid != before && *ready == "True")
                .map(|(u, _)| u.to_owned()))
        })
    }

    /// From a pod, over the network and the Service; none when it could not connect.
    fn ask(&self, space: &Space, pod: &str, sql: &str) -> anyhow::Result<Option<String>> {
        let output = run(space.kubectl(&format!("exec {pod} -- psql -qAtc")).arg(sql))?;
        match output.code {
            Some(0) => Ok(Some(output.stdout.trim().to_owned())),
            Some(2) => Ok(None),
            _ => anyhow::bail!("psql: {output:?}"),
        }
    }

    fn numbers(&self) -> anyhow::Result<BTreeSet<u64>> {
        let text =
            wait_until(LIMIT, "an answer of the database", || self.ask(&self.s, "client", "select n from numbers"))?;
        text.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// What the client was told is stored, read on the host: also while no daemon runs.
    fn noted(&self, client_uid: &str) -> anyhow::Result<BTreeSet<u64>> {
        let path = self.b.data_dir().join("pods").join(client_uid).join("volumes/noted/stored");
        let text = fs::read_to_string(&path).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.parse().with_context(|| format!("{line:?} in {}", path.display()))).collect()
    }

    fn grows(&self, client_uid: &str, what: &str) -> anyhow::Result<()> {
        let before = self.noted(client_uid)?.len();
        wait_until(LIMIT, what, || Ok((self.noted(client_uid)?.len() > before + 3).then_some(())))
    }

    fn restarts(&self) -> anyhow::Result<String> {
        self.s.value("pod/postgres-0", "{.status.containerStatuses[0].restartCount}")
    }
}

/// The processes on the host of a pod's container whose command line begins so: their numbers, the first of their
/// namespace first. Only ever of this test's own pods.
fn processes(pod_uid: &str, command: &str) -> Vec<(i32, bool)> {
    let mut found: Vec<(i32, bool)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let file = |name: &str| fs::read_to_string(PathBuf::from(format!("/proc/{pid}/{name}"))).ok();
            let ours = file("cgroup")?.contains(&format!("/pod{pod_uid}/")) && file("cmdline")?.starts_with(command);
            let status = file("status")?;
            let first = status.lines().find(|l| l.starts_with("NSpid:"))?.split_whitespace().last() == Some("1");
            ours.then_some((pid, first))
        })
        .collect();
    found.sort_by_key(|(pid, first)| (!first, *pid));
    found
}

fn kill_nine(pid: i32) -> anyhow::Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?)
}

#[test]
fn postgresql_keeps_every_acknowledged_row_through_every_kill() -> anyhow::Result<()> {
    let b = TestBox::start()?;
    b.load_image("postgres-15", "postgres")?;
    let s = Space::new(&b, "postgres")?;
    let name = s.name.clone();
    let d = Database { b: &b, s };
    d.s.apply(DATABASE)?;
    let client = |pod: &str, role: &str, host: &str| {
        CLIENT
            .replace("value: HOST", &format!("value: {host}"))
            .replace("name: NAME", &format!("name: {pod}"))
            .replace("ROLE", role)
    };
    let host = format!("postgres.{name}");
    d.s.apply(&client("client", "client", &host))?;
    d.s.apply(&client("stranger", "stranger", &host))?;
    d.s.ok("wait --for=condition=Ready pod/client pod/stranger --timeout=60s")?;
    d.ready("")?;

    // Everybody with the password may, until a policy says who.
    wait_until(LIMIT, "the Service", || d.ask(&d.s, "client", "create table numbers (n bigint primary key)"))?;
    let elsewhere = Space::new(&b, "elsewhere")?;
    elsewhere.apply(&client("stranger", "client", &host))?;
    elsewhere.ok("wait --for=condition=Ready pod/stranger --timeout=60s")?;
    for space in [&d.s, &elsewhere] {
        assert_eq!(d.ask(space, "stranger", "select 1")?.as_deref(), Some("1"));
    }
    d.s.apply(POLICY)?;
    for (space, who) in [(&d.s, "a pod with another label"), (&elsewhere, "a pod of another namespace")] {
        wait_until(LIMIT, who, || Ok(d.ask(space, "stranger", "select 1")?.is_none().then_some(())))?;
        // Nor past the Service, at the pod's own address.
        let ip = d.s.value("pod/postgres-0", "{.status.podIP}")?;
        let direct = run(space.kubectl("exec stranger -- psql -c").args(["select 1", "-h", &ip]))?;
        assert_eq!(direct.code, Some(2), "{who}: {direct:?}");
    }
    assert_eq!(d.ask(&d.s, "client", "select 1")?.as_deref(), Some("1"));

    let uid = |pod: &str| d.s.value(&format!("pod/{pod}"), "{.metadata.uid}");
    let client_uid = uid("client")?;
    d.s.ok("exec client -- touch /noted/go")?;
    d.grows(&client_uid, "the first rows")?;

    // One process of the server: PostgreSQL itself recovers, in the same container.
    let writer = processes(&uid("postgres-0")?, "postgres: checkpointer");
    let [(pid, false)] = writer[..] else { anyhow::bail!("the checkpointer: {writer:?}") };
    kill_nine(pid)?;
    d.grows(&client_uid, "rows after the kill of one process")?;
    assert_eq!(d.restarts()?, "0");

    // The first process: the container ends and is run again on the same data.
    let server = processes(&uid("postgres-0")?, "postgres\0");
    let Some((pid, true)) = server.first().copied() else { anyhow::bail!("the server: {server:?}") };
    kill_nine(pid)?;
    d.grows(&client_uid, "rows after the kill of the server")?;
    assert_eq!(d.restarts()?, "1");
    let last = d.s.value("pod/postgres-0", "{.status.containerStatuses[0].lastState.terminated.exitCode}")?;
    assert_eq!(last, "137");

    // The pod, without grace: a new one takes the claim.
    let first = uid("postgres-0")?;
    d.s.ok("delete pod postgres-0 --force --grace-period=0")?;
    let second = d.ready(&first)?;
    d.grows(&client_uid, "rows after the kill of the pod")?;
    // And with grace: a clean end, which the next start need not repair.
    d.s.ok("delete pod postgres-0 --timeout=60s")?;
    d.ready(&second)?;
    d.grows(&client_uid, "rows after the end of the pod")?;
    let log = d.s.ok("logs postgres-0")?;
    assert!(!log.contains("was not properly shut down"), "{log}");
    let (noted, stored) = (d.noted(&client_uid)?, d.numbers()?);
    assert!(noted.is_subset(&stored), "lost: {:?}", noted.difference(&stored).collect::<Vec<_>>());
    Ok(())
}
