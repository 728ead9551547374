//! The real program against a daemon in this process that can go away in the middle of anything.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

#[derive(Debug, Clone)]
struct Call {
    method: String,
    path: String,
    authorized: bool,
    body: Vec<u8>,
}

/// What the daemon does with a call.
enum Answer {
    Say(u16, Vec<u8>),
    /// Die before an answer.
    Hang,
    /// Send half of what was announced, then die.
    Half(Vec<u8>),
}

type Handler = Box<dyn FnMut(&Call) -> Answer + Send>;

struct Daemon {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(address: &str, mut handler: Handler) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (address, calls) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (seen, stopped) = (calls.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let Some((call, mut stream)) = stream.ok().and_then(read) else { continue };
                let answer = handler(&call);
                seen.lock().unwrap().push(call);
                let head = |status: u16, length: usize| {
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
                };
                let sent = match answer {
                    Answer::Say(status, body) => {
                        stream.write_all(head(status, body.len()).as_bytes()).and_then(|()| stream.write_all(&body))
                    }
                    Answer::Half(body) => stream
                        .write_all(head(200, body.len()).as_bytes())
                        .and_then(|()| stream.write_all(&body[..body.len() / 2])),
                    Answer::Hang => Ok(()),
                };
                drop(sent);
            }
        });
        Self { address, calls, stop, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn spawn(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_kfbox-launcher"))
            .env("KFBOX_TASK_URL", format!("http://{}/v1/x", self.address))
            .env("KFBOX_TASK_TOKEN", "secret")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self) -> Output {
        self.spawn().wait_with_output().unwrap()
    }

    fn reports(&self) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|c| c.path == "/v1/x/result").map(|c| serde_json::from_slice(&c.body).unwrap()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read(stream: TcpStream) -> Option<(Call, TcpStream)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let (mut length, mut authorized) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("Content-Length: ") {
            length = value.parse().ok()?;
        }
        authorized |= header == "Authorization: Bearer secret";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((Call { method, path, authorized, body }, reader.into_inner()))
}

fn task(folder: &Path, script: &str) -> Value {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    json!({
        "name": "step",
        "command": ["/bin/sh", "-c", script, at("")],
        "inputs": [
            {"name": "data", "uri": "minio://b/k", "path": at("in"), "files": [{"path": "a", "size": 5}, {"path": "s/b", "size": 3}]},
            {"name": "far", "uri": "gs://b/k", "path": "/gcs/b/k", "files": null},
        ],
        "outputs": {
            "file": at("out/meta.json"),
            "root": "minio://b/root",
            "parameters": {"p": at("params/p"), "q": at("params/q")},
            "artifacts": [{"name": "model", "uri": "minio://b/root/model", "path": at("out/model")}, {"name": "none", "uri": "minio://b/root/none", "path": at("out/none")}],
        },
    })
}

const SCRIPT: &str = r#"echo once >> "$0/count"; cat "$0/in/a" "$0/in/s/b"; [ -z "$KFBOX_TASK_TOKEN" ] || exit 9
printf 41 > "$0/params/p"; mkdir "$0/out/model"; printf m1 > "$0/out/model/x"; mkdir "$0/out/model/d"; printf 'm 2' > "$0/out/model/d/y z"
printf '{"parameterValues": {"q": 7}}' > "$0/out/meta.json""#;

fn serve(task: Value) -> impl FnMut(&Call) -> Answer + Send {
    move |call| match (call.method.as_str(), call.path.as_str()) {
        ("GET", "/v1/x") => Answer::Say(200, task.to_string().into_bytes()),
        ("GET", "/v1/x/inputs/0?path=a") => Answer::Say(200, b"hello".to_vec()),
        ("GET", "/v1/x/inputs/0?path=s%2Fb") => Answer::Say(200, b"you".to_vec()),
        ("PUT", _) | ("POST", "/v1/x/result") => Answer::Say(200, b"{}".to_vec()),
        _ => Answer::Say(404, b"{\"message\": \"no such call\"}".to_vec()),
    }
}

fn uploads(daemon: &Daemon) -> BTreeMap<String, String> {
    let calls = daemon.calls.lock().unwrap();
    assert!(calls.iter().all(|c| c.authorized));
    calls
        .iter()
        .filter(|c| c.method == "PUT")
        .map(|c| (c.path.clone(), String::from_utf8(c.body.clone()).unwrap()))
        .collect()
}

fn model() -> BTreeMap<String, String> {
    let uri = "minio%3A%2F%2Fb%2Froot%2Fmodel";
    BTreeMap::from([
        (format!("/v1/x/outputs/model?path=x&uri={uri}"), "m1".into()),
        (format!("/v1/x/outputs/model?path=d%2Fy%20z&uri={uri}"), "m 2".into()),
    ])
}

#[test]
fn inputs_come_outputs_go_and_the_result_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start("127.0.0.1:0", Box::new(serve(task(folder.path(), SCRIPT))));
    let output = daemon.run();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(output.stdout, b"helloyou", "the command's output is its own");
    assert!(errors.contains("[kfbox] input far") && errors.contains("output none was not written"), "{errors}");
    assert_eq!(uploads(&daemon), model());
    let report = &daemon.reports()[0];
    assert_eq!(report["parameters"], json!({"p": "41"}));
    assert_eq!(report["executorOutput"]["parameterValues"]["q"], 7);
    assert_eq!(report["succeeded"], true);
}

#[test]
fn a_failing_command_keeps_its_exit_code_and_uploads_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start("127.0.0.1:0", Box::new(serve(task(folder.path(), &format!("{SCRIPT}; exit 3")))));
    assert_eq!(daemon.run().status.code(), Some(3));
    assert!(uploads(&daemon).is_empty());
    // It may have wanted what was not fetched.
    let message = "input far is not fetched, and the step gets its address only: the daemon does not fetch it";
    assert_eq!(daemon.reports()[0], json!({"succeeded": false, "exitCode": 3, "message": message}));

    let daemon = Daemon::start(
        "127.0.0.1:0",
        Box::new(serve(
            json!({"name": "s", "command": ["/no/such"], "inputs": [], "outputs": {"file": folder.path().join("m"), "root": "r", "parameters": {}, "artifacts": []}}),
        )),
    );
    assert_eq!(daemon.run().status.code(), Some(125));
    assert!(daemon.reports()[0]["message"].as_str().unwrap().contains("/no/such"));
}

#[test]
fn a_daemon_that_dies_in_every_call_and_comes_back_is_waited_for_and_the_command_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut inner = serve(task(folder.path(), SCRIPT));
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let handler = move |call: &Call| {
        let count = seen.entry(format!("{} {}", call.method, call.path)).or_default();
        *count += 1;
        match (*count, inner(call)) {
            (1, _) => Answer::Hang,
            (2, Answer::Say(200, body)) if body.len() > 2 => Answer::Half(body),
            (2, _) => Answer::Say(503, b"{\"message\": \"starting\"}".to_vec()),
            (_, answer) => answer,
        }
    };
    let daemon = Daemon::start("127.0.0.1:0", Box::new(handler));
    let output = daemon.run();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(folder.path().join("count")).unwrap(), "once\n");
    assert_eq!(fs::read_to_string(folder.path().join("in/s/b")).unwrap(), "you");
    assert_eq!(uploads(&daemon), model());
}

#[test]
fn a_daemon_restarted_while_the_command_runs_gets_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let (told, started) = mpsc::channel();
    // The command says that it runs by way of a file; no input, so that nothing else is called.
    let mut work = task(
        folder.path(),
        "echo up > \"$0/up\"; while [ ! -e \"$0/go\" ]; do sleep 0.02; done; printf 1 > \"$0/params/p\"; printf 2 > \"$0/params/q\"",
    );
    work["inputs"] = json!([]);
    let mut inner = serve(work.clone());
    let mut daemon = Daemon::start(
        "127.0.0.1:0",
        Box::new(move |call| {
            let _ = told.send(());
            inner(call)
        }),
    );
    let child = daemon.spawn();
    started.recv_timeout(Duration::from_secs(20)).unwrap();
    while !folder.path().join("up").exists() {
        std::thread::yield_now();
    }
    let address = daemon.address.to_string();
    daemon.stop();
    fs::write(folder.path().join("go"), "").unwrap();
    let daemon = Daemon::start(&address, Box::new(serve(work)));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        daemon.reports(),
        [json!({"succeeded": true, "exitCode": 0, "executorOutput": null, "parameters": {"p": "1", "q": "2"}})]
    );
}

#[test]
fn a_signal_reaches_the_command_which_may_handle_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = task(folder.path(), "trap 'exit 42' TERM; echo up > \"$0/up\"; while :; do sleep 0.02; done");
    work["inputs"] = json!([]);
    let daemon = Daemon::start("127.0.0.1:0", Box::new(serve(work)));
    let child = daemon.spawn();
    while !folder.path().join("up").exists() {
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(42));
    assert_eq!(daemon.reports()[0]["exitCode"], 42);
}

#[test]
fn an_attempt_that_is_over_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start("127.0.0.1:0", Box::new(|_: &Call| Answer::Say(410, b"{}".to_vec())));
    assert_eq!(daemon.run().status.code(), Some(124));
    let refused =
        Daemon::start("127.0.0.1:0", Box::new(|_: &Call| Answer::Say(401, b"{\"message\": \"wrong token\"}".to_vec())));
    let output = refused.run();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong token"));
    drop(folder);
}

#[test]
fn a_hostile_name_in_an_input_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = task(folder.path(), "exit 0");
    work["inputs"][0]["files"] = json!([{"path": "../escape", "size": 1}]);
    let daemon = Daemon::start("127.0.0.1:0", Box::new(serve(work)));
    assert_eq!(daemon.run().status.code(), Some(125));
    assert!(!folder.path().join("escape").exists());
    assert!(daemon.reports()[0]["message"].as_str().unwrap().contains("refused"));
}
