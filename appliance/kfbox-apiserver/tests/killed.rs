//! `kill -9` of the API server, many times, at random moments, while clients write and watch. After each death: every
//! write that was answered is there; no resourceVersion went back or was given twice; a watch that resumes from what it
//! saw last misses nothing and repeats nothing, or is told 410 and lists anew.
//!
//! The server is this test binary, started again for each life. `KFBOX_KILLS` and `KFBOX_SEED` repeat or lengthen a run.

use http::Request;
use http_body_util::BodyExt as _;
use kfbox_apiserver::{ApiServer, Config};
use kfbox_base::Tasks;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

const KILLS: usize = 200;
const WRITERS: usize = 6;
const NAMES: usize = 5;
/// Revisions that the server remembers: few, so that the log compacts itself in every life and who sleeps is told 410.
const HISTORY: u64 = 150;
/// What lies so far back is forgotten: the history, and the thousand that the log forgets at once.
const FORGOTTEN: u64 = HISTORY + 1024 + 256;
const FOLDER: &str = "KFBOX_TEST_LIFE";
const CONFIG_MAPS: &str = "/api/v1/namespaces/load/configmaps";

#[test]
#[ignore = "the server that the other test starts and kills"]
fn a_life() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks = Tasks::new();
        let config = Config { history: HISTORY, ..Config::new(folder) };
        let server = ApiServer::open(config, &tasks).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        server.serve(listener, &tasks).unwrap();
        let kubeconfig = server.admin_kubeconfig(&format!("https://127.0.0.1:{port}")).unwrap();
        println!("ready:{kubeconfig}");
        // Its parent holds the other end.
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
    runtime.shutdown_background();
}

struct Life(Child);

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Life {
    fn begin(folder: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "a_life", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// A client, once it serves.
    async fn client(&mut self) -> kube::Client {
        let stdout = self.0.stdout.take().unwrap();
        let kubeconfig = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(stdout).lines();
            lines.find_map(|line| line.unwrap().split_once("ready:").map(|(_, json)| json.to_owned()))
        });
        let kubeconfig = kubeconfig.await.unwrap().expect("the server died by itself");
        let kubeconfig = serde_json::from_str(&kubeconfig).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }
}

/// What a name holds: its sequence number, and the revision of it where an answer told.
type State = Option<(u64, Option<u64>)>;

#[derive(Default)]
struct Name {
    name: String,
    answered: State,
    /// What a write without an answer may have made of it.
    perhaps: Option<State>,
}

#[derive(Clone, Debug, PartialEq)]
struct Told {
    name: String,
    sequence: u64,
}

/// What all lives together have shown.
struct Record {
    /// What each revision was, by answers and by watches: one thing only.
    revisions: Mutex<HashMap<u64, Told>>,
    /// Revisions of answered writes, in no order.
    answered: Mutex<Vec<u64>>,
    highest: watch::Sender<u64>,
    writes: watch::Sender<usize>,
}

impl Record {
    fn saw(&self, revision: u64, told: Told) {
        let mut revisions = self.revisions.lock().unwrap();
        if let Some(before) = revisions.insert(revision, told.clone()) {
            assert_eq!(before, told, "resourceVersion {revision} was given twice");
        }
        self.highest.send_if_modified(|highest| std::mem::replace(highest, revision.max(*highest)) < revision);
    }
}

async fn call(client: &kube::Client, method: &str, path: &str, body: Value) -> kube::Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
    client.request(request).await
}

fn parsed(object: &Value) -> (String, u64, u64) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |pointer: &str| text(pointer).parse().unwrap_or_else(|_| panic!("{pointer} of {object}"));
    (text("/metadata/name").to_owned(), number("/data/sequence"), number("/metadata/resourceVersion"))
}

/// The configmaps that are there, and the list's revision.
async fn listed(client: &kube::Client) -> kube::Result<(BTreeMap<String, (u64, u64)>, u64)> {
    let list = call(client, "GET", CONFIG_MAPS, Value::Null).await?;
    let objects = list["items"].as_array().unwrap().iter().map(|item| {
        let (name, sequence, revision) = parsed(item);
        (name, (sequence, revision))
    });
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    Ok((objects.collect(), revision))
}

/// Writes until the server dies.
async fn write(client: kube::Client, mut names: Vec<Name>, record: Arc<Record>, floor: u64, seed: u64) -> Vec<Name> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut before = floor;
    loop {
        let at = random.random_range(0..names.len());
        let name = &mut names[at];
        // Never the same number for two writes of any life.
        let sequence = random.random_range(1..u64::MAX >> 1);
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name.name},
            "data": {"sequence": sequence.to_string(), "filling": "x".repeat(random.random_range(0..3000))},
        });
        let path = format!("{CONFIG_MAPS}/{}", name.name);
        let (after, result) = match (name.answered, random.random_range(0..6)) {
            (None, _) => (Some((sequence, None)), call(&client, "POST", CONFIG_MAPS, object).await),
            (Some(_), 0) => (None, call(&client, "DELETE", &path, Value::Null).await),
            (Some((_, revision)), 1 | 2) => {
                let mut object = object;
                object["metadata"]["resourceVersion"] = revision.unwrap().to_string().into();
                (Some((sequence, None)), call(&client, "PUT", &path, object).await)
            }
            (Some(_), _) => {
                let patch = json!({"data": object["data"]});
                (Some((sequence, None)), call(&client, "PATCH", &path, patch).await)
            }
        };
        match result {
            Ok(answer) => {
                name.answered = after.map(|(sequence, _)| {
                    let (told, answered, revision) = parsed(&answer);
                    assert_eq!((&told, answered), (&name.name, sequence));
                    assert!(revision > before, "{revision} after {before}");
                    before = revision;
                    record.saw(revision, Told { name: told, sequence });
                    record.answered.lock().unwrap().push(revision);
                    (sequence, Some(revision))
                });
                record.writes.send_modify(|writes| *writes += 1);
            }
            Err(kube::Error::Api(status)) => panic!("a write was refused: {status:?}"),
            Err(_) => {
                name.perhaps = Some(after);
                return names;
            }
        }
    }
}

/// One client's view, kept from life to life.
struct View {
    objects: BTreeMap<String, (u64, u64)>,
    /// Revisions that it was told of.
    told: HashMap<u64, Told>,
    /// The last revision it knows all up to.
    last: u64,
    /// Its newest list: what came before was not told one by one.
    since: u64,
    lists: usize,
}

impl View {
    fn event(&mut self, event: &Value, record: &Record) {
        let kind = event["type"].as_str().unwrap();
        if kind == "BOOKMARK" {
            let revision = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            assert!(revision >= self.last, "a bookmark of {revision} after {}", self.last);
            self.last = revision;
            return;
        }
        let (name, sequence, revision) = parsed(&event["object"]);
        assert!(revision > self.last, "{kind} {name} at {revision} after {}: told twice", self.last);
        let before = match kind {
            "ADDED" | "MODIFIED" => self.objects.insert(name.clone(), (sequence, revision)),
            "DELETED" => self.objects.remove(&name),
            other => panic!("{other}: {event}"),
        };
        assert_eq!(before.is_some(), kind != "ADDED", "{kind} {name} at {revision}: an event before it was missed");
        if kind == "DELETED" {
            assert_eq!(before.unwrap().0, sequence, "{name} was not in its last state when it was deleted");
        }
        let told = Told { name, sequence };
        record.saw(revision, told.clone());
        self.told.insert(revision, told);
        self.last = revision;
    }
}

/// Follows the server until it dies.
async fn follow(client: kube::Client, view: Arc<Mutex<View>>, record: Arc<Record>, reached: watch::Sender<u64>) {
    loop {
        let last = view.lock().unwrap().last;
        if last == 0 {
            let Ok((objects, revision)) = listed(&client).await else { return };
            let mut view = view.lock().unwrap();
            view.objects = objects;
            (view.last, view.since) = (revision, revision);
            view.lists += 1;
        } else {
            let path = format!("{CONFIG_MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={last}");
            let request = Request::get(path).body(kube::client::Body::empty()).unwrap();
            let Ok(mut response) = client.send(request).await else { return };
            assert_eq!(response.status(), 200);
            let mut buffer = Vec::new();
            while let Some(Ok(frame)) = response.body_mut().frame().await {
                buffer.extend_from_slice(frame.data_ref().unwrap());
                while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line).unwrap();
                    let mut view = view.lock().unwrap();
                    if event["type"] == "ERROR" {
                        assert_eq!(event["object"]["code"], 410, "{event}");
                        view.last = 0;
                    } else {
                        view.event(&event, &record);
                    }
                    reached.send_replace(view.last);
                }
            }
            if view.lock().unwrap().last != 0 {
                // The server is gone; half a line goes with it.
                return;
            }
        }
        reached.send_replace(view.lock().unwrap().last);
    }
}

struct World {
    record: Arc<Record>,
    names: Vec<Vec<Name>>,
    views: Vec<Arc<Mutex<View>>>,
    random: StdRng,
}

impl World {
    /// Every answered write is there, and of the others either what was before or what they would have made.
    fn resolve(&mut self, objects: &BTreeMap<String, (u64, u64)>) {
        for name in self.names.iter_mut().flatten() {
            let found = objects.get(&name.name).map(|(sequence, revision)| (*sequence, Some(*revision)));
            let same = |state: State| match (state, found) {
                (None, None) => true,
                (Some((sequence, revision)), Some(found)) => {
                    sequence == found.0 && revision.is_none_or(|r| Some(r) == found.1)
                }
                _ => false,
            };
            let fits = same(name.answered) || name.perhaps.is_some_and(same);
            assert!(
                fits,
                "{}: {:?} was answered, {:?} perhaps made, {found:?} is there",
                name.name, name.answered, name.perhaps
            );
            (name.answered, name.perhaps) = (found, None);
        }
        let known: usize = self.names.iter().flatten().filter(|n| n.answered.is_some()).count();
        let strangers = objects.keys().filter(|n| *n != "marker" && *n != "kube-root-ca.crt").count();
        assert_eq!(known, strangers, "objects that nobody wrote: {objects:?}");
    }

    async fn life(&mut self, folder: &Path, number: usize) {
        let mut life = Life::begin(folder);
        if number > 0 && self.random.random_range(0..8) == 0 {
            // Dead before it served anything: somewhere while it opens.
            let moment = self.random.random_range(0..200_000);
            tokio::time::sleep(Duration::from_micros(moment)).await;
            return;
        }
        let client = life.client().await;
        if number == 0 {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "load"}});
            call(&client, "POST", "/api/v1/namespaces", namespace).await.unwrap();
        }
        let highest = *self.record.highest.borrow();
        let (objects, revision) = listed(&client).await.unwrap();
        assert!(revision >= highest, "the list is of {revision}, {highest} was seen before");
        self.resolve(&objects);

        // All watchers but one that sleeps until what it saw last must be forgotten; an object that tells them apart from what comes later.
        let awake: Vec<_> = self
            .views
            .iter()
            .enumerate()
            .filter(|(n, v)| *n > 0 || revision > v.lock().unwrap().last + FORGOTTEN)
            .map(|(_, v)| v.clone())
            .collect();
        let mut followers = JoinSet::new();
        let mut reached = Vec::new();
        for view in &awake {
            let (sender, receiver) = watch::channel(0);
            reached.push(receiver);
            followers.spawn(follow(client.clone(), view.clone(), self.record.clone(), sender));
        }
        let marker = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"},
            "data": {"sequence": (u64::MAX / 2 + number as u64).to_string()},
        });
        let (method, path) = match number {
            0 => ("POST", CONFIG_MAPS.to_owned()),
            _ => ("PUT", format!("{CONFIG_MAPS}/marker")),
        };
        let (_, sequence, marked) = parsed(&call(&client, method, &path, marker).await.unwrap());
        self.record.saw(marked, Told { name: "marker".into(), sequence });
        assert!(marked > highest, "{marked} after {highest}");
        for mut reached in reached {
            let waited = tokio::time::timeout(Duration::from_secs(30), reached.wait_for(|r| *r >= marked)).await;
            assert!(waited.is_ok_and(|w| w.is_ok()), "a watch did not get to {marked}");
        }
        let (objects, _) = listed(&client).await.unwrap();
        for view in &awake {
            let view = view.lock().unwrap();
            assert_eq!(view.objects, objects, "a watcher's view of what is there");
            for revision in self.record.answered.lock().unwrap().iter().filter(|r| **r > view.since && **r <= marked) {
                assert!(view.told.contains_key(revision), "a watch missed {revision}");
            }
        }

        let mut writers = JoinSet::new();
        for names in self.names.drain(..) {
            let seed = self.random.random();
            writers.spawn(write(client.clone(), names, self.record.clone(), marked, seed));
        }
        let mut writes = self.record.writes.subscribe();
        let enough = *writes.borrow() + self.random.random_range(1..50);
        tokio::select! {
            _ = writes.wait_for(|writes| *writes >= enough) => {}
            Some(ended) = writers.join_next() => panic!("a writer ended by itself: {:?}", ended.err()),
        }
        // Not always just after an answer.
        tokio::time::sleep(Duration::from_micros(self.random.random_range(0..3000))).await;
        drop(life);
        while let Some(names) = writers.join_next().await {
            self.names.push(names.unwrap());
        }
        self.names.sort_by(|a, b| a[0].name.cmp(&b[0].name));
        while let Some(follower) = followers.join_next().await {
            follower.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_it_loses_no_answered_write_and_no_watch_misses_an_event() {
    let number = |name: &str| std::env::var_os(name).and_then(|v| v.to_str()?.parse::<u64>().ok());
    let seed = number("KFBOX_SEED").unwrap_or_else(rand::random);
    let kills = number("KFBOX_KILLS").and_then(|k| usize::try_from(k).ok()).unwrap_or(KILLS);
    println!("KFBOX_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let mut world = World {
        record: Arc::new(Record {
            revisions: Mutex::default(),
            answered: Mutex::default(),
            highest: watch::Sender::new(0),
            writes: watch::Sender::new(0),
        }),
        names: (0..WRITERS)
            .map(|w| (0..NAMES).map(|n| Name { name: format!("w{w}-{n}"), ..Name::default() }).collect())
            .collect(),
        views: (0..3)
            .map(|_| {
                let (objects, told) = (BTreeMap::new(), HashMap::new());
                Arc::new(Mutex::new(View { objects, told, last: 0, since: 0, lists: 0 }))
            })
            .collect(),
        random: StdRng::seed_from_u64(seed),
    };
    for number in 0..kills {
        world.life(folder.path(), number).await;
    }
    // One more, to look at what the last death left.
    let mut life = Life::begin(folder.path());
    let client = life.client().await;
    let (objects, revision) = listed(&client).await.unwrap();
    assert!(revision >= *world.record.highest.borrow());
    world.resolve(&objects);
    let lists: Vec<usize> = world.views.iter().map(|v| v.lock().unwrap().lists).collect();
    println!("{kills} deaths, {} answered writes, revision {revision}, lists {lists:?}", *world.record.writes.borrow());
    // Who followed all along resumed each time; who slept was told that it came too late.
    assert_eq!(lists[1..], [1, 1], "a watch of a moment ago was told that it is too old");
    // At half the rate at which it falls due: a life may end before it could list.
    assert!(lists[0] as u64 > revision / (2 * FORGOTTEN), "who slept was not told 410: {lists:?}");
}
