//! Work queues. Guarantees: a key is worked on by one worker at a time, and again if it was added meanwhile; what failed is
//! tried again with pauses that double. Bounded by construction: a queue holds each key once, so never more than there are
//! objects.

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    future::Future,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a worker says about its key.
pub enum Outcome {
    Done,
    /// Look again after so long, sooner if the key is added.
    Again(Duration),
}

struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    running: HashSet<K>,
    /// Added while running.
    dirty: HashSet<K>,
    delayed: BinaryHeap<Reverse<(Instant, K)>>,
    /// When a key is due at the earliest; entries of `delayed` that say otherwise are stale.
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

impl<K: Clone + Eq + Hash + Ord + Send + 'static> Queue<K> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: HashSet::new(),
                running: HashSet::new(),
                dirty: HashSet::new(),
                delayed: BinaryHeap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        })
    }

    pub fn add(&self, key: K) {
        let mut state = self.state.lock();
        if state.running.contains(&key) {
            state.dirty.insert(key);
            return;
        }
        if state.queued.insert(key.clone()) {
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Adds the key after a while; an earlier time wins.
    pub fn add_after(&self, key: K, pause: Duration) {
        if pause.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + pause;
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.delayed.push(Reverse((at, key)));
        drop(state);
        self.wake.notify_one();
    }

    fn take(&self) -> Result<K, Option<Instant>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let mut next = None;
        while let Some(Reverse((at, key))) = state.delayed.peek().cloned() {
            if at > now {
                next = Some(at);
                break;
            }
            state.delayed.pop();
            if state.due.get(&key) != Some(&at) {
                continue;
            }
            state.due.remove(&key);
            if state.running.contains(&key) {
                state.dirty.insert(key);
            } else if state.queued.insert(key.clone()) {
                state.ready.push_back(key);
            }
        }
        match state.ready.pop_front() {
            Some(key) => {
                state.queued.remove(&key);
                state.running.insert(key.clone());
                Ok(key)
            }
            None => Err(next),
        }
    }

    fn finished(&self, key: &K, pause: Option<Duration>) {
        let mut state = self.state.lock();
        state.running.remove(key);
        let dirty = state.dirty.remove(key);
        drop(state);
        if dirty {
            self.add(key.clone());
        } else if let Some(pause) = pause {
            self.add_after(key.clone(), pause);
        }
    }

    fn failed(&self, key: &K) -> Duration {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let pause = FIRST_PAUSE.saturating_mul(1 << (*failures).min(16)).min(LONGEST_PAUSE);
        *failures += 1;
        pause
    }

    /// Works on keys, `workers` at a time, until shutdown.
    pub async fn run<F, Fut, E>(
        self: Arc<Self>,
        name: &'static str,
        workers: usize,
        shutdown: CancellationToken,
        work: F,
    ) -> Result<(), Infallible>
    where
        K: std::fmt::Debug,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Outcome, E>>,
        E: std::fmt::Display + Retry,
    {
        let mut running = FuturesUnordered::new();
        loop {
            let mut next = None;
            while running.len() < workers {
                match self.take() {
                    Ok(key) => {
                        let future = AssertUnwindSafe(work(key.clone())).catch_unwind();
                        running.push(async move { (key, future.await) });
                    }
                    Err(due) => {
                        next = due;
                        break;
                    }
                }
            }
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some((key, result)) = running.next(), if !running.is_empty() => match result {
                    Ok(Ok(outcome)) => {
                        self.state.lock().failures.remove(&key);
                        self.finished(&key, match outcome { Outcome::Done => None, Outcome::Again(pause) => Some(pause) });
                    }
                    Ok(Err(error)) => {
                        let pause = self.failed(&key);
                        if error.is_routine() {
                            tracing::debug!(controller = name, ?key, %error, "trying again");
                        } else {
                            tracing::warn!(controller = name, ?key, %error, ?pause, "failed and will be tried again");
                        }
                        self.finished(&key, Some(pause));
                    }
                    Err(_) => {
                        let pause = self.failed(&key).max(Duration::from_secs(1));
                        tracing::error!(controller = name, ?key, "panicked on this object");
                        self.finished(&key, Some(pause));
                    }
                },
                () = self.wake.notified(), if running.len() < workers => {}
                () = due => {}
            }
        }
    }
}

/// Errors that are part of the day's work, such as a conflict with another writer.
pub trait Retry {
    fn is_routine(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Oops;
    impl std::fmt::Display for Oops {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("oops")
        }
    }
    impl Retry for Oops {
        fn is_routine(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once_and_failures_and_panics_are_tried_again() {
        let queue = Queue::new();
        let stop = CancellationToken::new();
        let log: Arc<Mutex<Vec<(u8, &str)>>> = Arc::default();
        for _ in 0..5 {
            queue.add(1);
        }
        queue.add(2);
        queue.add_after(3, Duration::from_secs(5));
        queue.add_after(3, Duration::from_secs(1));
        let (inner, again, end) = (log.clone(), queue.clone(), stop.clone());
        let started = Instant::now();
        queue
            .run("test", 4, stop.clone(), move |key: u8| {
                let (log, queue, end) = (inner.clone(), again.clone(), end.clone());
                async move {
                    log.lock().push((key, "start"));
                    let attempts = log.lock().iter().filter(|(k, w)| *k == key && *w == "start").count();
                    match (key, attempts) {
                        (1, 1) => {
                            // Added while running: runs once more, after this.
                            queue.add(1);
                            queue.add(1);
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                        (2, 1) => return Err(Oops),
                        (2, 2) => panic!("fragile"),
                        (3, _) => {
                            assert_eq!(started.elapsed().as_secs(), 1);
                            queue.add_after(4, Duration::from_secs(3));
                        }
                        (4, _) => end.cancel(),
                        _ => {}
                    }
                    log.lock().push((key, "end"));
                    Ok(Outcome::Done)
                }
            })
            .await
            .unwrap();
        let log = log.lock();
        let of = |key: u8| log.iter().filter(|(k, _)| *k == key).map(|(_, w)| *w).collect::<Vec<_>>();
        assert_eq!(of(1), ["start", "end", "start", "end"]);
        assert_eq!(of(2), ["start", "start", "start", "end"]);
        assert_eq!(of(3), ["start", "end"]);
    }
}
