//! The few calls that have no safe wrapper. Everything else in the shim is safe code.
#![expect(unsafe_code, reason = "signal dispositions, terminal ioctls and malloc_trim have no safe wrapper in nix")]

use nix::sys::signal::{SigHandler, Signal, signal};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Rust starts programs with SIGPIPE ignored, and a container would inherit that: `yes | head` would never end.
pub fn default_sigpipe() {
    // SAFETY: no handler is installed; the default action is restored in a single-threaded process.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// A container has the groups that its pod says, and none of the daemon's. Without the right to change them there is none
/// to give away either.
pub fn drop_groups() {
    let _ = nix::unistd::setgroups(&[]);
}

/// The shim itself must survive a daemon that closed its end.
pub fn ignore_sigpipe() {
    // SAFETY: no handler is installed; the signal is ignored in a single-threaded process.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
}

/// Returns freed memory to the kernel: creating a container needs some MiB, watching it needs none of them.
pub fn trim_memory() {
    // SAFETY: malloc_trim has no preconditions.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and `size` lives through the call that reads it.
    unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size);
    }
}

/// Takes ownership of a descriptor that a message brought.
///
/// Assumption: it came from `SCM_RIGHTS`, so nobody else owns it.
pub fn own(raw: i32) -> OwnedFd {
    // SAFETY: by the assumption above.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Ends the process at once, without running anything of the parent's that a clone inherited.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
