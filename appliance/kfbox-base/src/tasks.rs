//! Owned tasks. Guarantees: every future given to [`Tasks`] ends before [`Tasks::drain`] returns or is named there;
//! an essential task that ends before shutdown was asked for stops the daemon with its cause.

use crate::BoxError;
use slot::Slot;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Why the daemon stops by itself.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    #[error("{name} stopped unexpectedly")]
    Ended { name: String },
    #[error("{name} failed: {cause}")]
    Failed {
        name: String,
        #[source]
        cause: BoxError,
    },
    #[error("{name} panicked: {message}")]
    Panicked { name: String, message: String },
}

/// A cloneable handle on the daemon's set of tasks.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    failure: Slot<TaskFailure>,
    running: std::sync::Mutex<BTreeMap<String, usize>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                tracker: TaskTracker::new(),
                shutdown: CancellationToken::new(),
                failure: Slot::default(),
                running: std::sync::Mutex::default(),
            }),
        }
    }

    /// Cancelled when the daemon should stop. Every long-running future selects on it.
    pub fn shutdown(&self) -> CancellationToken {
        self.inner.shutdown.clone()
    }

    /// Asks every task to stop.
    pub fn stop(&self) {
        self.inner.shutdown.cancel();
    }

    /// Runs a task that the daemon cannot do without: if it ends, fails or panics before shutdown, the daemon stops.
    pub fn essential<F, E>(&self, name: impl Into<String>, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let (name, inner) = (name.into(), self.inner.clone());
        let handle = self.start(name.clone(), async move { future.await.map_err(Into::into) });
        self.inner.tracker.spawn(async move {
            let failure = match handle.await {
                Ok(Ok(())) => TaskFailure::Ended { name },
                Ok(Err(cause)) => TaskFailure::Failed { name, cause },
                Err(error) if error.is_panic() => {
                    TaskFailure::Panicked { name, message: panic_text(error.into_panic()) }
                }
                Err(_) => return,
            };
            if !inner.shutdown.is_cancelled() {
                tracing::error!(%failure, "an essential task stopped");
                inner.failure.set(failure);
                inner.shutdown.cancel();
            }
        });
    }

    /// Runs a task that may end: one connection, one pod, one run. A panic is logged and goes no further.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.start(name.into(), future)
    }

    fn start<F>(&self, name: String, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let guard = Running::enter(self.inner.clone(), name);
        self.inner.tracker.spawn(async move {
            let _guard = guard;
            future.await
        })
    }

    /// Waits until shutdown is asked for, by [`Tasks::stop`] or by the failure of an essential task.
    pub async fn stopped(&self) -> Result<(), TaskFailure> {
        self.inner.shutdown.cancelled().await;
        self.inner.failure.take().map_or(Ok(()), Err)
    }

    /// Waits until [`Tasks::drain`] was called and all tasks have ended: how long a runtime beside the main one must run.
    pub async fn ended(&self) {
        self.inner.tracker.wait().await;
    }

    /// Waits for all tasks to end, at most `deadline`. Returns the names of those that had not.
    pub async fn drain(&self, deadline: Duration) -> Vec<String> {
        self.inner.tracker.close();
        if tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        self.running()
    }

    /// The names of the tasks that run right now.
    pub fn running(&self) -> Vec<String> {
        let running = self.inner.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        running.keys().cloned().collect()
    }
}

struct Running {
    inner: Arc<Inner>,
    name: String,
}

impl Running {
    fn enter(inner: Arc<Inner>, name: String) -> Self {
        *inner.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(name.clone()).or_default() += 1;
        Self { inner, name }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = %self.name, "a task panicked");
        }
        let mut running = self.inner.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.name);
            }
        }
    }
}

fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// The first value set stays until taken.
mod slot {
    use std::sync::{Mutex, PoisonError};

    pub struct Slot<T>(Mutex<Option<T>>);

    impl<T> Default for Slot<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }

    impl<T> Slot<T> {
        pub fn set(&self, value: T) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(value);
        }

        pub fn take(&self) -> Option<T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_essential_task_that_fails_stops_the_daemon_with_its_cause() {
        let tasks = Tasks::new();
        tasks.essential("the-clock", async { Err::<(), _>("no battery") });
        let failure = tasks.stopped().await.unwrap_err();
        assert_eq!(failure.to_string(), "the-clock failed: no battery");
        assert!(tasks.drain(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_a_cause_too() {
        let tasks = Tasks::new();
        tasks.essential("fragile", async {
            if tokio::task::id().to_string().is_empty() {
                return Ok::<(), BoxError>(());
            }
            panic!("dropped")
        });
        assert_eq!(tasks.stopped().await.unwrap_err().to_string(), "fragile panicked: dropped");
    }

    #[tokio::test]
    async fn drain_names_what_did_not_stop() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending::<()>());
        tasks.stop();
        assert!(tasks.stopped().await.is_ok());
        assert_eq!(tasks.drain(Duration::from_millis(20)).await, ["deaf"]);
    }
}
