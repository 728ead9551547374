//! What a user is told when something does not work: the fact, the next step, and a stable exit code.

use std::fmt;

/// Exit codes, part of the interface (`kfbox help exit-codes` lists them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Anything without a code of its own.
    General = 1,
    /// No daemon answers for this data directory.
    NotRunning = 3,
    /// Another process holds the data directory.
    Locked = 4,
    /// An address is taken by another program.
    AddressInUse = 5,
    /// The data directory was written by a newer kfbox.
    NewerData = 6,
    /// The machine lacks something that kfbox needs; `kfbox doctor` says what.
    Requirement = 7,
    /// The configuration is wrong.
    Configuration = 8,
}

/// An error with its next step.
#[derive(Debug, Clone)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// What to do about it; shown after the message.
    pub next: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: next.into() }
    }

    pub fn not_running(data_dir: &std::path::Path) -> Self {
        Self::new(
            Code::NotRunning,
            format!("kfbox is not running with the data directory {}", data_dir.display()),
            "start it with `kfbox up` (or name its directory with --data-dir)",
        )
    }

    /// The text for a terminal: every cause, then the next step.
    pub fn render(error: &anyhow::Error) -> String {
        if let Some(told) = error.downcast_ref::<Told>() {
            return told.text.clone();
        }
        let mut text = format!("error: {error}");
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            if !text.contains(&cause) {
                text.push_str(&format!("\n  because: {cause}"));
            }
        }
        if let Some(failure) = error.downcast_ref::<Self>()
            && !failure.next.is_empty()
        {
            text.push_str(&format!("\n   next: {}", failure.next));
        }
        text
    }

    pub fn exit_code(error: &anyhow::Error) -> u8 {
        if let Some(told) = error.downcast_ref::<Told>() {
            return told.code;
        }
        error.downcast_ref::<Self>().map_or(Code::General as u8, |f| f.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure that another process met and rendered.
#[derive(Debug)]
pub struct Told {
    pub code: u8,
    pub text: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Told {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_its_causes_and_the_next_step_once() {
        let error = anyhow::Error::new(Failure::new(Code::AddressInUse, "port 8080 is taken", "stop it"));
        assert_eq!(Failure::render(&error), "error: port 8080 is taken\n   next: stop it");
        assert_eq!(Failure::exit_code(&error), 5);
    }
}
