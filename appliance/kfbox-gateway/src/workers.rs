//! Threads of the gateway's own, as nginx and Envoy have workers: a connection stays with one from its first byte to its
//! last, and so do the connections to pods that its requests travel on. What is passed on to a pod therefore changes no
//! thread, which on an idle machine costs more than all else that the gateway does.
//!
//! Guarantees: what components do runs on the daemon's own threads, so that a slow page holds up nobody's connection; a
//! request that its client gives up ends there too; workers run until every task of the daemon has ended.

use crate::{Gateway, Mounts, Tls, TlsError, front::Front, guard, serve};
use axum::{Router, extract::Request, response::Response};
use http::StatusCode;
use kfbox_base::Tasks;
use std::sync::Arc;
use tokio::{net::TcpListener, runtime::Handle, sync::Semaphore};
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

/// One is enough for some ten thousand requests a second; a small machine's cores are for pods.
const MOST: usize = 4;

/// A cloneable handle on the threads.
#[derive(Clone)]
pub struct Workers {
    gateway: Gateway,
    workers: Arc<[Worker]>,
    tasks: Tasks,
}

pub(crate) struct Worker {
    pub runtime: Handle,
    pub front: Front,
}

impl Workers {
    /// Called on the runtime that components are to run on.
    pub(crate) fn start(gateway: &Gateway, mounts: &Mounts, tasks: &Tasks) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let home = Handle::current();
        let workers: std::io::Result<Vec<Worker>> = (0..(cores / 2).clamp(1, MOST))
            .map(|n| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let handle = runtime.handle().clone();
                let tasks = tasks.clone();
                std::thread::Builder::new()
                    .name(format!("gateway-{n}"))
                    .spawn(move || runtime.block_on(tasks.ended()))?;
                Ok(Worker { runtime: handle, front: Front::new(gateway, mounts.of_worker(home.clone())) })
            })
            .collect();
        let (shutdown, served) = (tasks.shutdown(), gateway.clone());
        tasks.spawn("access-log", async move {
            shutdown.cancelled().await;
            // What is answered in the time that is left comes after it, and is written too unless the end is faster.
            served.flush_access_log().await;
        });
        Ok(Self { gateway: gateway.clone(), workers: workers?.into(), tasks: tasks.clone() })
    }

    /// Serves on a bound listener until shutdown. May be called for several listeners.
    pub fn serve(&self, name: &str, listener: TcpListener) -> std::io::Result<()> {
        self.listen(name, listener, &serve::Entrance::Plain)
    }

    /// The same over TLS.
    pub fn serve_tls(&self, name: &str, listener: TcpListener, tls: &Arc<Tls>) -> Result<(), TlsError> {
        Ok(self.listen(name, listener, &self.gateway.entrance(tls)?)?)
    }

    fn listen(&self, name: &str, listener: TcpListener, entrance: &serve::Entrance) -> std::io::Result<()> {
        let listener = listener.into_std()?;
        let slots = Arc::new(Semaphore::new(serve::CONNECTIONS));
        for (n, worker) in self.workers.iter().enumerate() {
            let _inside = worker.runtime.enter();
            let listener = TcpListener::from_std(listener.try_clone()?)?;
            let name = format!("{name}, worker {n}");
            serve::accept(name, listener, entrance.clone(), worker.front.clone().into(), &self.tasks, slots.clone());
        }
        Ok(())
    }
}

/// A component's answer, made on the runtime that it belongs to.
pub(crate) async fn at_home(home: &Handle, router: Router, request: Request) -> Response {
    let answering = AbortOnDropHandle::new(home.spawn(router.oneshot(request)));
    match answering.await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        // It panicked, or the daemon ends.
        Err(error) => {
            tracing::error!(%error, "a component did not finish its answer");
            guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this is a defect: the log says more")
        }
    }
}
