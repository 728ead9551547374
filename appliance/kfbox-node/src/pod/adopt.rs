//! What an earlier daemon left of a pod, and the removal of what a pod leaves.
//!
//! Guarantees: a container that may have run is never run again as the same attempt; nothing is deleted through a mount.

use super::{
    context::Context,
    launch::{attempt_dir, log_path, termination_log},
    record::{Ended, Record, State, reason},
};
use crate::{
    runtime::{Found, Handle, Stage},
    shim::{
        records::{self, EXIT, Exit, SHIM_CONFIG, ShimConfig, Started},
        timestamp,
    },
    volumes::{PodDirs, unmount_below},
};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

/// Upstream's limits on what a container may say at its end.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

#[derive(Default)]
pub struct Adopted {
    /// The number of each container's next attempt.
    pub attempts: BTreeMap<String, u32>,
    pub running: Vec<(String, Handle, Started)>,
}

pub async fn adopt(ctx: &Arc<Context>, pod: &Pod, records: &mut [Record]) -> Adopted {
    let mut found = Adopted::default();
    let dirs = ctx.dirs(super::record::uid(pod));
    for record in records {
        let known = known_status(pod, &record.name);
        if let Some(known) = known {
            record.image_id.clone_from(&known.image_id);
            record.restarts = known.restart_count;
            record.has.clone_from(&known.resources);
        }
        let mut numbers = attempts(&dirs.data, &record.name);
        let mut next = numbers.last().map_or(0, |n| n + 1);
        let mut settled = false;
        while let Some(number) = numbers.pop() {
            let dir = attempt_dir(&dirs.data, &record.name, number);
            match ctx.runtime.adopt(&dir).await {
                Ok(Found::NeverRan) => {
                    let _ = fs::remove_dir_all(&dir);
                    next = number;
                    continue;
                }
                Ok(Found::Container(handle)) => match handle.stage() {
                    Stage::Running(started) => found.running.push((record.name.clone(), handle, started)),
                    Stage::Ended(exit) => {
                        let id = handle.id.clone();
                        record.state = State::Ended(ended(&dirs, pod, record, number, id, exit));
                    }
                    Stage::Creating => {}
                },
                Ok(Found::Lost { started }) => record.state = State::Ended(lost(&dir, started.started_at)),
                Err(error) => {
                    tracing::error!(%error, "a container's state cannot be read");
                    record.state = State::Ended(lost(&dir, timestamp::now_string()));
                }
            }
            settled = true;
            record.restarts = record.restarts.max(i32::try_from(number).unwrap_or(i32::MAX));
            break;
        }
        if let Some(before) = numbers.last() {
            let dir = attempt_dir(&dirs.data, &record.name, *before);
            if let Ok(exit) = records::read::<Exit>(&dir.join(EXIT)) {
                record.last = Some(ended(&dirs, pod, record, *before, id_of(&dir), exit));
            }
        }
        if !settled && let Some(known) = known {
            next = next.max(from_api(record, known));
        }
        found.attempts.insert(record.name.clone(), next);
    }
    found
}

fn known_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    super::status::container_statuses(pod.status.as_ref()?).find(|s| s.name == name)
}

/// The folder is lost, but the cluster knows that the container ran. Returns the next attempt's number.
fn from_api(record: &mut Record, known: &ContainerStatus) -> u32 {
    let id = |text: &Option<String>| {
        text.as_deref().and_then(|t| t.strip_prefix(super::status::ID_PREFIX)).unwrap_or_default().to_owned()
    };
    let Some(state) = &known.state else { return 0 };
    let exit = |code, started: Option<String>, finished: String| Exit {
        code,
        signal: None,
        oom_killed: false,
        started_at: started,
        finished_at: finished,
        failure: None,
    };
    if let Some(end) = &state.terminated {
        let text = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref().map(|t| t.0.to_string())
        };
        let finished = text(&end.finished_at).unwrap_or_else(timestamp::now_string);
        record.state = State::Ended(Ended {
            id: id(&end.container_id),
            exit: exit(end.exit_code, text(&end.started_at), finished),
            reason: end.reason.clone().unwrap_or_default(),
            message: end.message.clone(),
        });
    } else if let Some(running) = &state.running {
        record.state = State::Ended(Ended {
            id: id(&known.container_id),
            exit: exit(137, running.started_at.as_ref().map(|t| t.0.to_string()), timestamp::now_string()),
            reason: "ContainerStatusUnknown".into(),
            message: Some("The container could not be located when the pod was terminated".into()),
        });
    } else {
        return 0;
    }
    u32::try_from(known.restart_count).unwrap_or(0) + 1
}

fn lost(dir: &Path, started: String) -> Ended {
    let exit = Exit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_at: Some(started),
        finished_at: timestamp::now_string(),
        failure: None,
    };
    let _ = records::write(&dir.join(EXIT), &exit);
    Ended {
        id: id_of(dir),
        exit,
        reason: "ContainerStatusUnknown".into(),
        message: Some("The container could not be located: the machine restarted, or its shim was killed".into()),
    }
}

fn id_of(dir: &Path) -> String {
    records::read::<ShimConfig>(&dir.join(SHIM_CONFIG)).map(|config| config.id).unwrap_or_default()
}

fn ended(dirs: &PodDirs, pod: &Pod, record: &Record, attempt: u32, id: String, exit: Exit) -> Ended {
    let spec = pod.spec.as_ref();
    let container = spec.and_then(|s| super::record::find(s, &record.name));
    let message = exit.failure.clone().or_else(|| termination_message(dirs, container.as_deref(), attempt, &exit));
    Ended { id, reason: reason(&exit).into(), message, exit }
}

/// Attempt numbers on disk, in order.
pub fn attempts(data: &Path, container: &str) -> Vec<u32> {
    let folder = data.join("containers").join(container);
    let mut numbers: Vec<u32> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// What the container said at its end: its file, or the end of its log where it asks for that.
pub fn termination_message(dirs: &PodDirs, container: Option<&Container>, attempt: u32, exit: &Exit) -> Option<String> {
    let container = container?;
    let path = termination_log(&attempt_dir(&dirs.data, &container.name, attempt));
    let mut bytes = Vec::new();
    // The container could have put anything there, but the file itself is ours: it is a mount point in the container.
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
    }
    if !bytes.is_empty() {
        return Some(String::from_utf8_lossy(&bytes).into_owned());
    }
    let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !fall_back || exit.code == 0 {
        return None;
    }
    let tail = log_tail(&log_path(&dirs.data, &container.name, attempt));
    (!tail.is_empty()).then_some(tail)
}

fn log_tail(path: &Path) -> String {
    let Ok(mut file) = fs::File::open(path) else { return String::new() };
    // Each line has some 40 bytes before its text.
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    let from = length.saturating_sub(16 * 1024);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(from)).is_err() || file.take(16 * 1024).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> =
        text.lines().skip(usize::from(from > 0)).filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
    if lines.len() > MAX_LOG_LINES {
        lines.drain(..lines.len() - MAX_LOG_LINES);
    }
    let mut text = lines.join("\n");
    if text.len() > MAX_LOG_MESSAGE {
        let from = (text.len() - MAX_LOG_MESSAGE..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.drain(..from);
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Frees the disk of an ended attempt, and forgets all but the one before it. Blocking.
pub fn discard(data: &Path, container: &str, attempt: u32) {
    let dir = attempt_dir(data, container, attempt);
    for name in ["upper", "work", "rootfs", "l"] {
        let _ = fs::remove_dir_all(dir.join(name));
    }
    for old in attempts(data, container).into_iter().filter(|n| n + 1 < attempt) {
        let _ = fs::remove_dir_all(attempt_dir(data, container, old));
        let log = log_path(data, container, old);
        for number in 0..10 {
            let path = if number == 0 { log.clone() } else { crate::shim::records::rotated_log(&log, number) };
            let _ = fs::remove_file(path);
        }
    }
}

/// Frees a pod's network, mounts, volumes and cgroup; its logs and records stay.
pub async fn tear_down(ctx: &Arc<Context>, uid: &str) {
    if let Err(error) = ctx.network.detach(uid).await {
        tracing::warn!(pod = uid, %error, "the pod's network could not be removed");
    }
    ctx.layers.lock().remove(uid);
    ctx.shares.lock().remove(uid);
    ctx.evictions.lock().remove(uid);
    let (devices, pod) = (ctx.devices.clone(), uid.to_owned());
    let (dirs, cgroup, hierarchies) = (ctx.dirs(uid), ctx.cgroup(uid), ctx.runtime.hierarchies.clone());
    for child in hierarchies.children(&cgroup) {
        ctx.runtime.kill(&format!("{cgroup}/{child}")).await;
    }
    let work = move || {
        let _ = hierarchies.remove(&cgroup);
        devices.release(&pod);
        // Nothing is deleted while anything may still be mounted below: it could be somebody's data.
        if let Err(error) = unmount_below(&dirs.run).and_then(|()| unmount_below(&dirs.data)) {
            tracing::error!(path = %dirs.run.display(), %error, "a pod's mounts could not be removed");
            return;
        }
        let _ = fs::remove_dir_all(&dirs.run);
        for name in ["volumes", "etc"] {
            let _ = fs::remove_dir_all(dirs.data.join(name));
        }
    };
    let _ = tokio::task::spawn_blocking(work).await;
}

/// Removes all that is left of a pod whose object is gone.
pub async fn remove(ctx: &Arc<Context>, uid: &str) {
    let dirs = ctx.dirs(uid);
    let work = move || {
        if unmount_below(&dirs.data).is_ok() {
            let _ = fs::remove_dir_all(&dirs.data);
        }
    };
    let _ = tokio::task::spawn_blocking(work).await;
}

/// Ends and removes a pod of which only folders are left.
pub async fn remove_orphan(ctx: &Arc<Context>, uid: &str) {
    let dirs = ctx.dirs(uid);
    for container in fs::read_dir(dirs.data.join("containers")).into_iter().flatten().flatten() {
        let Ok(name) = container.file_name().into_string() else { continue };
        for attempt in attempts(&dirs.data, &name) {
            let dir = attempt_dir(&dirs.data, &name, attempt);
            if let Ok(Found::Container(mut handle)) = ctx.runtime.adopt(&dir).await
                && matches!(handle.stage(), Stage::Running(_))
            {
                let _ = handle.signal(libc::SIGKILL);
                handle.ended().await;
            }
        }
    }
    tear_down(ctx, uid).await;
    remove(ctx, uid).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let lines: Vec<String> =
            (0..200).map(|n| format!("2026-01-01T00:00:00.000000000Z stderr F line {n}")).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        let tail = log_tail(&path);
        assert!(tail.starts_with("line 120\n") && tail.ends_with("line 199\n"), "{tail}");
        fs::write(&path, format!("2026-01-01T00:00:00.000000000Z stdout F {}\n", "ä".repeat(5000))).unwrap();
        assert!(log_tail(&path).len() <= MAX_LOG_MESSAGE + 1);
    }
}
