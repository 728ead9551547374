//! Benchmarks of the API server alone, over TLS, in a process of its own so that its memory is its own:
//!
//!   bench [creates=4000] [updates=1000000] [apply=2000] [rbac=1000] [watchers=500] [list=10000] [--json FILE]
//!
//! Without names, all of them with these numbers but a tenth of the updates. One line a figure. Compare within one run.

use futures::{StreamExt as _, stream::FuturesUnordered};
use http::Request;
use http_body_util::BodyExt as _;
use kfbox_apiserver::{ApiServer, Config};
use kfbox_base::Tasks;
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const MAPS: &str = "/api/v1/namespaces/bench/configmaps";
const WRITERS: usize = 16;

/// `bench serve FOLDER`: the server, until its input ends.
async fn serve(folder: &Path) -> Result<(), Failed> {
    let tasks = Tasks::new();
    let server = ApiServer::open(Config::new(folder), &tasks).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", listener.local_addr()?);
    server.serve(listener, &tasks)?;
    let configs = json!([server.admin_kubeconfig(&url)?, server.kubeconfig(&url, "ada", &["staff"])?]);
    println!("{configs}");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    tasks.stop();
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

struct Server {
    process: Child,
    folder: tempfile::TempDir,
    config: kube::Config,
    admin: kube::Client,
    /// A user of no rights but those she is given.
    ada: kube::Client,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start() -> Result<Self, Failed> {
        let folder = tempfile::tempdir()?;
        let mut process = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let configs: Vec<kube::config::Kubeconfig> = serde_json::from_str(&line)?;
        let mut users = Vec::new();
        for config in configs {
            let options = kube::config::KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(config, &options).await?;
            config.disable_compression = true;
            users.push(config);
        }
        let (ada, config) = (users.pop().ok_or("no user")?, users.pop().ok_or("no administrator")?);
        let (ada, admin) = (kube::Client::try_from(ada)?, kube::Client::try_from(config.clone())?);
        let namespace = json!({"metadata": {"name": "bench"}});
        call(&admin, "POST", "/api/v1/namespaces", "application/json", namespace).await?;
        Ok(Self { process, folder, config, admin, ada })
    }

    /// The administrator on a connection of their own.
    fn admin(&self) -> Result<kube::Client, Failed> {
        Ok(kube::Client::try_from(self.config.clone())?)
    }

    /// Processor seconds that it has used.
    fn used(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
    }

    /// The log and its write-ahead log, in MiB.
    fn on_disk(&self) -> (f64, f64) {
        let size = |name: &str| {
            let path: PathBuf = self.folder.path().join(name);
            path.metadata().map_or(0.0, |m| m.len() as f64 / f64::from(1 << 20))
        };
        (size("kubernetes.db"), size("kubernetes.db-wal"))
    }
}

async fn call(client: &kube::Client, method: &str, path: &str, kind: &str, body: Value) -> Result<Value, Failed> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
    Ok(client.request(request).await?)
}

async fn create(client: &kube::Client, path: &str, object: Value) -> Result<Value, Failed> {
    call(client, "POST", path, "application/json", object).await
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"bench": "x"}}, "data": {"key": "v".repeat(100)}})
}

/// Milliseconds that this part of the calls stayed below.
fn quantile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default() * 1000.0
}

#[derive(Default)]
struct Figures(serde_json::Map<String, Value>);

impl Figures {
    fn note(&mut self, name: &str, value: f64, unit: &str, more: &str) {
        println!("{name:<46} {value:>10.3} {unit:<6} {more}");
        self.0.insert(name.into(), json!({"value": value, "unit": unit}));
    }
}

/// `count` calls by some clients together, each on its own objects; the rate, and each call's time.
async fn together<F>(count: usize, one: impl Fn(usize) -> F) -> Result<(f64, Vec<f64>), Failed>
where
    F: Future<Output = Result<(), Failed>>,
{
    let start = Instant::now();
    let one = &one;
    let workers: FuturesUnordered<_> = (0..WRITERS)
        .map(|worker| async move {
            let mut times = Vec::with_capacity(count / WRITERS + 1);
            for n in (worker..count).step_by(WRITERS) {
                let start = Instant::now();
                one(n).await?;
                times.push(start.elapsed().as_secs_f64());
            }
            Ok::<_, Failed>(times)
        })
        .collect();
    let mut times = Vec::with_capacity(count);
    for worker in workers.collect::<Vec<_>>().await {
        times.extend(worker?);
    }
    Ok((count as f64 / start.elapsed().as_secs_f64(), times))
}

/// One after the other, and by clients that have a connection each.
async fn creates(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    let (start, used) = (Instant::now(), server.used());
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let start = Instant::now();
        create(&server.admin, MAPS, map(&format!("one-{n}"))).await?;
        times.push(start.elapsed().as_secs_f64());
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let mut note = |name: &str, rate: f64, times: &mut [f64], used: f64| {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        let each = (server.used() - used) * 1e6 / count as f64;
        figures.note(
            name,
            rate,
            "/s",
            &format!("p50 {p50:.2} ms, p99 {p99:.2} ms, {each:.0} us of processor time each"),
        );
    };
    note("creates, one client", rate, &mut times, used);
    let clients: Vec<kube::Client> = (0..WRITERS).map(|_| server.admin()).collect::<Result<_, _>>()?;
    let used = server.used();
    let (rate, mut times) = together(count, async |n| {
        let client = clients.get(n % WRITERS).ok_or("no client")?;
        create(client, MAPS, map(&format!("many-{n}"))).await.map(drop)
    })
    .await?;
    note(&format!("creates, {WRITERS} clients"), rate, &mut times, used);
    Ok(())
}

async fn updates(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    // A multiple of the writers, so that none writes another's object.
    let objects = 7 * WRITERS;
    for n in 0..objects {
        create(&server.admin, MAPS, map(&format!("updated-{n}"))).await?;
    }
    let before = server.on_disk().0;
    for tenth in 0..10 {
        let (rate, mut times) = together(count / 10, async |n| {
            let path = format!("{MAPS}/updated-{}", n % objects);
            let patch = json!({"data": {"key": format!("{tenth}-{n}")}});
            call(&server.admin, "PATCH", &path, "application/merge-patch+json", patch).await.map(drop)
        })
        .await?;
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        let (file, log) = server.on_disk();
        let more = format!(
            "p50 {p50:.2} ms, p99 {p99:.2} ms, file {file:.1} + {log:.1} MiB, resident {:.0} MiB",
            server.resident()
        );
        figures.note(&format!("updates of {objects} objects, tenth {}", tenth + 1), rate, "/s", &more);
    }
    // What housekeeping does within a minute on its own.
    tokio::time::sleep(Duration::from_secs(35)).await;
    let (file, log) = server.on_disk();
    figures.note("the log after that, file and its own log", file + log, "MiB", &format!("{before:.1} MiB before"));
    Ok(())
}

async fn apply(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    for (what, round) in [("new", 0), ("changed", 1), ("unchanged", 1)] {
        let (rate, mut times) = together(count, async |n| {
            let path = format!("{MAPS}/applied-{n}?fieldManager=bench");
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("applied-{n}")},
                "data": {"key": format!("{round}"), "other": "v".repeat(100)},
            });
            call(&server.admin, "PATCH", &path, "application/apply-patch+yaml", object).await.map(drop)
        })
        .await?;
        let more = format!("p50 {:.2} ms, p99 {:.2} ms", quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        figures.note(&format!("server-side apply, {what}, {WRITERS} clients"), rate, "/s", &more);
    }
    Ok(())
}

async fn rbac(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    let api = "/apis/rbac.authorization.k8s.io/v1";
    let group = "rbac.authorization.k8s.io";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
    let role = json!({"metadata": {"name": "bench"}, "rules": rules});
    create(&server.admin, &format!("{api}/clusterroles"), role).await?;
    let bind = async |namespace: &str, name: &str, user: &str| {
        let binding = json!({
            "metadata": {"name": name}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "bench"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        });
        create(&server.admin, &format!("{api}/namespaces/{namespace}/rolebindings"), binding).await.map(drop)
    };
    create(&server.admin, MAPS, map("read")).await?;
    bind("bench", "ada", "ada").await?;
    let mut measure = async |what: &str| {
        let mut times = Vec::new();
        for _ in 0..2000 {
            let start = Instant::now();
            call(&server.ada, "GET", &format!("{MAPS}/read"), "", Value::Null).await?;
            times.push(start.elapsed().as_secs_f64());
        }
        let p50 = quantile(&mut times, 0.5);
        figures.note(&format!("get, p50, {what}"), p50, "ms", &format!("p99 {:.2} ms", quantile(&mut times, 0.99)));
        Ok::<_, Failed>(())
    };
    measure("one binding").await?;
    together(count, async |n| bind("bench", &format!("other-{n}"), &format!("user-{n}")).await).await?;
    measure(&format!("and {count} of other users")).await?;
    create(&server.admin, "/api/v1/namespaces", json!({"metadata": {"name": "elsewhere"}})).await?;
    together(count, async |n| bind("elsewhere", &format!("own-{n}"), "ada").await).await?;
    measure(&format!("and {count} of her own elsewhere")).await?;
    together(count, async |n| bind("bench", &format!("a-own-{n}"), "ada").await).await?;
    measure(&format!("and {count} of her own here")).await
}

async fn watchers(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    const EVENTS: usize = 200;
    create(&server.admin, "/api/v1/namespaces", json!({"metadata": {"name": "watched"}})).await?;
    let path = "/api/v1/namespaces/watched/configmaps";
    let before = server.resident();
    let start = Instant::now();
    let sent: Arc<Vec<std::sync::OnceLock<Instant>>> = Arc::new((0..EVENTS).map(|_| Default::default()).collect());
    let mut streams = Vec::new();
    for _ in 0..count {
        let request = Request::get(format!("{path}?watch=1")).body(kube::client::Body::empty())?;
        streams.push(server.admin.send(request).await?);
    }
    let opened = start.elapsed().as_secs_f64();
    figures.note(&format!("{count} watches opened in"), opened, "s", "");
    figures.note("memory of one open watch", (server.resident() - before) * 1024.0 / count as f64, "KiB", "");
    let read = streams.into_iter().map(|mut response| {
        let sent = sent.clone();
        async move {
            let (mut buffer, mut times) = (Vec::new(), Vec::with_capacity(EVENTS));
            while times.len() < EVENTS {
                let frame = response.body_mut().frame().await.ok_or("a watch ended")??;
                let arrived = Instant::now();
                buffer.extend_from_slice(frame.data_ref().map(|d| &d[..]).unwrap_or_default());
                while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line)?;
                    let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
                    let Some(n) = name.strip_prefix("event-").and_then(|n| n.parse::<usize>().ok()) else { continue };
                    let sent = sent.get(n).and_then(|s| s.get()).ok_or("an event before its cause")?;
                    times.push(arrived.duration_since(*sent).as_secs_f64());
                }
            }
            Ok::<_, Failed>(times)
        }
    });
    let read = futures::future::try_join_all(read);
    let write = async {
        for n in 0..EVENTS {
            let _ = sent[n].set(Instant::now());
            create(&server.admin, path, map(&format!("event-{n}"))).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Failed>(())
    };
    let (times, ()) = futures::future::try_join(read, write).await?;
    let mut times = times.concat();
    let what = format!("create to event at {count} watchers");
    figures.note(&format!("{what}, p50"), quantile(&mut times, 0.5), "ms", "");
    figures.note(&format!("{what}, p99"), quantile(&mut times, 0.99), "ms", "");
    figures.note("resident memory after them", server.resident(), "MiB", &format!("{before:.0} MiB before"));
    Ok(())
}

async fn list(server: &Server, count: usize, figures: &mut Figures) -> Result<(), Failed> {
    create(&server.admin, "/api/v1/namespaces", json!({"metadata": {"name": "listed"}})).await?;
    let path = "/api/v1/namespaces/listed/configmaps";
    together(count, async |n| create(&server.admin, path, map(&format!("listed-{n:06}"))).await.map(drop)).await?;
    let before = server.resident();
    for (what, query, accept, encoding) in [
        ("whole", "", "application/json", "identity"),
        ("gzip", "", "application/json", "gzip"),
        ("as a Table", "", "application/json;as=Table;v=v1;g=meta.k8s.io", "identity"),
        ("metadata", "", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "identity"),
        ("first 500", "?limit=500", "application/json", "identity"),
    ] {
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..20 {
            let request = Request::get(format!("{path}{query}"))
                .header("accept", accept)
                .header("accept-encoding", encoding)
                .body(kube::client::Body::empty())?;
            let start = Instant::now();
            let response = server.admin.send(request).await?;
            bytes = response.into_body().collect().await?.to_bytes().len();
            times.push(start.elapsed().as_secs_f64());
        }
        let more = format!("{:.1} MiB, max {:.1} ms", bytes as f64 / f64::from(1 << 20), quantile(&mut times, 1.0));
        figures.note(&format!("list of {count}, {what}, p50"), quantile(&mut times, 0.5), "ms", &more);
    }
    figures.note("resident memory after the lists", server.resident(), "MiB", &format!("{before:.0} MiB before"));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [serving, folder] = &args[..]
        && serving == "serve"
    {
        return serve(Path::new(folder)).await;
    }
    let mut wanted = Vec::new();
    let mut file = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((name, number)) => wanted.push((name.to_owned(), number.parse()?)),
            None if arg == "--json" => file = args.next(),
            None => return Err(format!("{arg} is no benchmark; see the top of this file").into()),
        }
    }
    if wanted.is_empty() {
        let all = [
            ("creates", 4000),
            ("updates", 100_000),
            ("apply", 2000),
            ("rbac", 1000),
            ("watchers", 500),
            ("list", 10_000),
        ];
        wanted = all.map(|(name, number)| (name.to_owned(), number)).into();
    }
    let mut figures = Figures::default();
    for (name, number) in wanted {
        // Each on a server of its own, so that their order does not matter.
        let server = Server::start().await?;
        match &*name {
            "creates" => creates(&server, number, &mut figures).await?,
            "updates" => updates(&server, number, &mut figures).await?,
            "apply" => apply(&server, number, &mut figures).await?,
            "rbac" => rbac(&server, number, &mut figures).await?,
            "watchers" => watchers(&server, number, &mut figures).await?,
            "list" => list(&server, number, &mut figures).await?,
            other => return Err(format!("{other} is no benchmark").into()),
        }
    }
    if let Some(file) = file {
        std::fs::write(file, Value::Object(figures.0).to_string())?;
    }
    Ok(())
}
