//! exec, attach, port-forward and logs of a pod.

use super::{client, pod};
use futures::{AsyncBufReadExt as _, SinkExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kfbox_tests::{Space, TestBox};
use kube::{
    Api,
    api::{AttachParams, DeleteParams, EvictParams, LogParams, PostParams, TerminalSize},
    runtime::wait::{await_condition, conditions},
};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Echoes lines of standard input, and answers each connection to port 8000 with what it was sent, backwards.
const PROGRAM: &str = "
import socketserver, sys, threading
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(1000)[::-1])
server = socketserver.ThreadingTCPServer(('127.0.0.1', 8000), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
print('ready')
for line in sys.stdin:
    print('heard', line.strip())
";

/// The client sends sizes and input by different ways, and either may be first.
const SIZED: &str = "read go; until [ \"$(stty size)\" != '0 0' ]; do sleep 0.05; done; stty size";

#[tokio::test]
async fn kube_rs_executes_attaches_forwards_and_reads_logs() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let space = Space::new(&b, "kubersexec")?;
    let client = client(&space).await?;
    let pods: Api<Pod> = Api::default_namespaced(client);
    pods.create(&PostParams::default(), &pod("p", PROGRAM)).await?;
    tokio::time::timeout(Duration::from_secs(60), await_condition(pods.clone(), "p", conditions::is_pod_running()))
        .await??;

    // A log that is followed from its first line.
    let mut log = pods.log_stream("p", &LogParams { follow: true, ..LogParams::default() }).await?.lines();
    assert_eq!(log.try_next().await?.as_deref(), Some("ready"));

    let mut process =
        pods.exec("p", ["sh", "-c", "cat; echo done >&2; exit 3"], &AttachParams::default().stdin(true)).await?;
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = (process.stdin(), process.stdout(), process.stderr())
    else {
        anyhow::bail!("streams are missing")
    };
    let status = process.take_status();
    stdin.write_all(b"some words").await?;
    stdin.shutdown().await?;
    let (mut said, mut complained) = (String::new(), String::new());
    stdout.read_to_string(&mut said).await?;
    stderr.read_to_string(&mut complained).await?;
    assert_eq!((said.as_str(), complained.as_str()), ("some words", "done\n"));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let causes = status.and_then(|s| s.details).and_then(|d| d.causes).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode")).and_then(|c| c.message.as_deref());
    assert_eq!(code, Some("3"), "{causes:?}");
    process.join().await?;

    let mut terminal = pods.exec("p", ["sh", "-c", SIZED], &AttachParams::interactive_tty()).await?;
    let Some(mut size) = terminal.terminal_size() else { anyhow::bail!("the size cannot be set") };
    size.send(TerminalSize { height: 30, width: 100 }).await?;
    let (Some(mut stdin), Some(mut stdout)) = (terminal.stdin(), terminal.stdout()) else {
        anyhow::bail!("no streams")
    };
    stdin.write_all(b"go\n").await?;
    let mut said = String::new();
    stdout.read_to_string(&mut said).await?;
    assert!(said.contains("30 100"), "{said:?}");

    let mut attached = pods.attach("p", &AttachParams::default().stdin(true).stderr(false)).await?;
    let (Some(mut stdin), Some(stdout)) = (attached.stdin(), attached.stdout()) else { anyhow::bail!("no streams") };
    stdin.write_all(b"you\n").await?;
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    assert_eq!(lines.next_line().await?.as_deref(), Some("heard you"));
    assert_eq!(log.try_next().await?.as_deref(), Some("heard you"));
    drop((stdin, lines));
    attached.abort();

    let answers = (0..5).map(|n| {
        let pods = pods.clone();
        async move {
            let mut forward = pods.portforward("p", &[8000]).await?;
            let Some(mut stream) = forward.take_stream(8000) else { anyhow::bail!("no stream") };
            stream.write_all(format!("word {n}").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            forward.abort();
            Ok(answer)
        }
    });
    let answers: Vec<String> = futures::future::try_join_all(answers).await?;
    assert_eq!(answers, (0..5).map(|n| format!("{n} drow")).collect::<Vec<_>>());
    let mut nobody = pods.portforward("p", &[8001]).await?;
    let error = nobody.take_error(8001).ok_or_else(|| anyhow::anyhow!("no error channel"))?;
    let told = tokio::time::timeout(Duration::from_secs(20), error).await?;
    assert!(told.as_deref().is_some_and(|why| why.contains("8001")), "{told:?}");

    let text = pods.logs("p", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await?;
    assert_eq!(text, "heard you\n");
    pods.evict("p", &EvictParams::default()).await?;
    // The followed log ends with the pod.
    let rest: Vec<String> = tokio::time::timeout(Duration::from_secs(30), log.try_collect()).await??;
    assert!(rest.is_empty(), "{rest:?}");
    let gone = pods.delete("p", &DeleteParams::default()).await;
    assert!(gone.is_ok() || matches!(&gone, Err(kube::Error::Api(s)) if s.code == 404), "{gone:?}");
    Ok(())
}
