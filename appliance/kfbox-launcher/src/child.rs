//! The user's command as a child: its own streams, our signals handed on, orphans reaped (this program is process 1 of
//! its container).

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    io,
    process::{Child, Command},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Exited(u8),
    Signaled(i32),
}

/// The signals held back from the whole process.
#[derive(Clone, Copy)]
pub struct Signals(SigSet);

impl Signals {
    /// Until one of them comes.
    pub fn wait(self) {
        while self.0.wait().is_err() {}
    }
}

const HANDED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Call before any thread starts. Process 1 ignores signals it has no handler for, but not ones that it holds back.
pub fn hold_signals() -> Signals {
    let set: SigSet = HANDED_ON.into_iter().collect();
    // Fails only for an invalid `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    Signals(set)
}

/// Runs the command to its end. The standard library resets the child's signal mask.
pub fn run(command: &[String], signals: Signals) -> io::Result<Outcome> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let child =
        Command::new(program).args(arguments).env_remove("KFBOX_TASK_TOKEN").env_remove("KFBOX_TASK_URL").spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.0.wait() {
            // The child may be gone already.
            let _ = kill(pid, signal);
        }
    })?;
    wait(child, pid)
}

/// Waits for all children, since orphans of the command become ours, until the command itself has ended.
fn wait(child: Child, pid: Pid) -> io::Result<Outcome> {
    // Its exit is read below, not through the handle.
    drop(child);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(of, code)) if of == pid => {
                return Ok(Outcome::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::Signaled(of, signal, _)) if of == pid => return Ok(Outcome::Signaled(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Each test runs in a process of its own (nextest), so that waiting for any child is safe.
    fn outcome(script: &str) -> Outcome {
        run(&["/bin/sh".into(), "-c".into(), script.into()], hold_signals()).unwrap()
    }

    #[test]
    fn exit_codes_and_signals_are_told_apart_and_orphans_do_not_confuse() {
        assert_eq!(outcome("(sleep 0.05 &) ; (exit 3) ; exit 7"), Outcome::Exited(7));
        assert_eq!(outcome("kill -KILL $$"), Outcome::Signaled(9));
    }
}
