//! Stopping one container: hook, signal, grace, kill.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination>

use super::{
    check::{Action, Target, check},
    context::Context,
    events::Level,
};
use crate::{
    runtime::Handle,
    shim::records::{self, SHIM_CONFIG, ShimConfig},
};
use k8s_openapi::api::core::v1::Pod;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// What a container gets after its hook, even if that used up the time.
pub const MINIMUM: Duration = Duration::from_secs(2);

pub struct StopRequest {
    pub handle: Handle,
    pub target: Target,
    /// When it is killed; may come closer.
    pub limit: watch::Receiver<Instant>,
    pub hook: bool,
}

pub async fn stop(ctx: &Arc<Context>, pod: &Pod, request: StopRequest) {
    let StopRequest { mut handle, target, mut limit, hook } = request;
    let name = target.container.name.clone();
    let patient = Instant::now() < *limit.borrow();
    let action = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).and_then(Action::of_hook);
    let mut extra = Duration::ZERO;
    if let (Some(action), true, true) = (action, hook, patient) {
        let mut waiting = handle.clone();
        tokio::select! {
            result = check(&ctx.runtime, &target, &action, Duration::MAX) => if let Err(why) = result {
                let message = format!("PreStopHook failed: {why}");
                ctx.events.pod(pod, Some(&name), Level::Warning, "FailedPreStopHook", message);
            },
            () = passed(&mut limit) => {}
            _ = waiting.ended() => return,
        }
        extra = MINIMUM;
    }
    if patient {
        let config: Option<ShimConfig> = records::read(&handle.dir.join(SHIM_CONFIG)).ok();
        if let Err(error) = handle.signal(config.map_or(libc::SIGTERM, |c| c.stop_signal)) {
            tracing::warn!(%error, container = %name, "the stop signal could not be sent");
        }
        let least = Instant::now() + extra;
        let mut waiting = handle.clone();
        tokio::select! {
            _ = waiting.ended() => return,
            () = async {
                passed(&mut limit).await;
                tokio::time::sleep_until(least).await;
            } => {}
        }
    }
    if let Err(error) = handle.signal(libc::SIGKILL) {
        tracing::error!(%error, container = %name, "the container could not be killed");
    }
    handle.ended().await;
}

/// Waits until a time that may come closer.
async fn passed(limit: &mut watch::Receiver<Instant>) {
    loop {
        let at = *limit.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = limit.changed() => if changed.is_err() {
                tokio::time::sleep_until(at).await;
                return;
            },
        }
    }
}

/// `SIGTERM`, `TERM` or a number.
pub fn signal_number(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGQUIT"), Some(3));
        assert_eq!(signal_number("int"), Some(2));
        assert_eq!(signal_number("15"), Some(15));
        assert_eq!(signal_number(""), None);
        assert_eq!(signal_number("99"), None);
    }
}
