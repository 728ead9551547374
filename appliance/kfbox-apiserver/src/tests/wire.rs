//! Over TLS, with a client from a kubeconfig and a node that is a few lines of code.

use super::*;
use crate::kubelet::{Duplex, ExecSession, Exit, Kubelet, KubeletError, LogOptions, LogStream, Streams};
use bytes::Bytes;
use futures::StreamExt as _;
use kube::api::{AttachParams, LogParams};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

/// `cat`: what goes in comes out, and on standard error how long it was; the exit code is the command's first argument.
struct Cat;

#[async_trait::async_trait]
impl Kubelet for Cat {
    async fn logs(&self, _: &str, pod: &str, container: &str, options: LogOptions) -> Result<LogStream, KubeletError> {
        if options.previous {
            return Err(KubeletError::NotNow(format!(
                "previous terminated container {container:?} in pod {pod:?} not found"
            )));
        }
        let lines = (0..options.tail_lines.unwrap_or(3)).map(|n| Ok(Bytes::from(format!("line {n} of {container}\n"))));
        Ok(futures::stream::iter(lines.collect::<Vec<_>>()).boxed())
    }

    async fn exec(
        &self,
        _: &str,
        _: &str,
        _: &str,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError> {
        let (stdin, mut input) = mpsc::channel::<Bytes>(4);
        let (output, stdout) = mpsc::channel(4);
        let (errors, stderr) = mpsc::channel(4);
        let (exit, exited) = oneshot::channel();
        let code = command[1].parse().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a stand-in for a process in a test")]
        tokio::spawn(async move {
            let mut length = 0;
            while streams.stdin
                && let Some(chunk) = input.recv().await
            {
                length += chunk.len();
                output.send(chunk).await.unwrap();
                if length >= 5 {
                    break;
                }
            }
            errors.send(format!("{length} bytes").into()).await.unwrap();
            exit.send(Exit::Code(code)).unwrap();
        });
        Ok(ExecSession { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), resize: None, exit: exited })
    }

    async fn attach(
        &self,
        ns: &str,
        pod: &str,
        container: &str,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError> {
        self.exec(ns, pod, container, vec!["attached".into(), "0".into()], streams).await
    }

    async fn port_forward(&self, _: &str, _: &str, port: u16) -> Result<Box<dyn Duplex>, KubeletError> {
        if port == 1 {
            return Err(KubeletError::Failed("connection refused".into()));
        }
        let (near, far) = tokio::io::duplex(64);
        #[expect(clippy::disallowed_methods, reason = "a stand-in for a server in a test")]
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await
        });
        Ok(Box::new(near))
    }
}

async fn running() -> (World, Client) {
    let world = world().await;
    world.server.set_kubelet(Arc::new(Cat));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    world.server.serve(listener, &world.tasks).unwrap();
    let config = world.server.admin_kubeconfig(&format!("https://{address}")).unwrap();
    let config = serde_json::from_value(config).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    world.default_account().await;
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    api.create(&PostParams::default(), &pod("p")).await.unwrap();
    world.post("/api/v1/namespaces/default/pods/p/binding", json!({"target": {"name": "n"}})).await;
    world.merge("/api/v1/namespaces/default/pods/p/status", json!({"status": {"phase": "Running"}})).await;
    (world, client)
}

#[tokio::test]
async fn logs_and_exec_reach_the_node_and_the_exit_code_comes_back() {
    let (_world, client) = running().await;
    let api: Api<Pod> = Api::namespaced(client, "default");
    let log = api.logs("p", &LogParams { tail_lines: Some(2), ..LogParams::default() }).await.unwrap();
    assert_eq!(log, "line 0 of main\nline 1 of main\n");
    let kube::Error::Api(status) =
        api.logs("p", &LogParams { previous: true, ..LogParams::default() }).await.unwrap_err()
    else {
        panic!()
    };
    assert_eq!(status.code, 400);
    let kube::Error::Api(status) =
        api.logs("p", &LogParams { container: Some("x".into()), ..LogParams::default() }).await.unwrap_err()
    else {
        panic!()
    };
    assert_eq!(status.message, "container x is not valid for pod p");

    for (code, expected) in [("0", "Success"), ("3", "Failure")] {
        let mut process = api.exec("p", ["cat", code], &AttachParams::default().stdin(true)).await.unwrap();
        let status = process.take_status().unwrap();
        let (mut stdin, mut stdout, mut stderr) =
            (process.stdin().unwrap(), process.stdout().unwrap(), process.stderr().unwrap());
        stdin.write_all(b"hello").await.unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).await.unwrap();
        stderr.read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("hello", "5 bytes"));
        let status = status.await.unwrap();
        assert_eq!(status.status.as_deref(), Some(expected));
        if code == "3" {
            assert_eq!(status.details.unwrap().causes.unwrap()[0].message.as_deref(), Some("3"));
        }
    }
}

#[tokio::test]
async fn a_forwarded_port_carries_bytes_both_ways() {
    let (_world, client) = running().await;
    let api: Api<Pod> = Api::namespaced(client, "default");
    let mut forward = api.portforward("p", &[80, 1]).await.unwrap();
    let mut stream = forward.take_stream(80).unwrap();
    let refused = forward.take_error(1).unwrap();
    // More than every buffer on the way.
    let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut received = vec![0; sent.len()];
    let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
    written.unwrap();
    got.unwrap();
    assert!(received == sent);
    assert!(refused.await.unwrap().contains("connection refused"));
}

#[tokio::test]
async fn a_service_accounts_token_is_its_user() {
    let (world, client) = running().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request = k8s_openapi::api::authentication::v1::TokenRequest::default();
    let token = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
        .unwrap();
    let authorized = |path: &str, token: &str| {
        let request =
            Request::get(path).header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
        world.server.call(request)
    };
    assert_eq!(authorized("/api/v1/namespaces/default/pods", &token).await.status(), 403);
    assert_eq!(authorized("/apis", &token).await.status(), 200);
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    assert_eq!(authorized("/apis", &token).await.status(), 401);
}
