//! Processes by descriptor: signals that cannot hit a later process with the same number.
#![expect(
    unsafe_code,
    reason = "pidfd system calls have no wrapper in nix, and watching a descriptor asks for a promise"
)]

use crate::shim::records::ProcessRef;
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that may end at any time, but never becomes another.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens the process; None when it is gone, or its number is another's now.
    pub fn open(process: ProcessRef) -> Option<Self> {
        let opened = Self::open_number(process.pid).ok()?;
        // Checked after opening: the number cannot change hands while the descriptor is held.
        process.exists().then_some(opened)
    }

    fn open_number(pid: i32) -> io::Result<Self> {
        // SAFETY: the call takes two integers; a non-negative result is a new descriptor that nobody else owns.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let raw = i32::try_from(raw).unwrap_or(-1);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the descriptor is open, the information pointer may be null, and the flags are zero.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the process has ended (a zombie has).
    pub async fn ended(&self) -> io::Result<()> {
        readable(self.fd.as_fd()).await
    }
}

/// Waits until a descriptor has something to read.
pub async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open for as long as this future holds the registration.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
    let _ = watched.readable().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_signalled_and_its_end_is_seen() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let reference = ProcessRef::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert!(PidFd::open(ProcessRef { start_ticks: reference.start_ticks + 1, ..reference }).is_none());
        let process = PidFd::open(reference).unwrap();
        process.signal(libc::SIGKILL).unwrap();
        process.ended().await.unwrap();
        assert!(!child.wait().await.unwrap().success());
        assert!(process.signal(libc::SIGTERM).is_err());
    }
}
