//! Logs: human text on a terminal, one line each, to standard error. Secrets never reach them.
//!
//! Beside them a trail: events of the target `audit`, which tell who came and what was changed of people, are written to a
//! file as JSON, a line each, whatever the operator's filter shows on standard error.

use crate::journal::{Journal, Record, Room};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, filter_fn},
    fmt::{
        self,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::Context,
    prelude::*,
};

/// The target of the events that belong to the trail.
const AUDIT: &str = "audit";

/// Starts logging once for the process. `filter` is a `tracing` directive such as `info,kfbox_node=debug`; an invalid
/// one is an error so that a typing mistake does not silence the logs. A second call does nothing.
pub fn init(filter: &str, json: bool, trail: AuditTrail) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    drop(subscriber(filter, json, trail).try_init());
    Ok(())
}

fn subscriber(filter: EnvFilter, json: bool, trail: AuditTrail) -> impl Subscriber + Send + Sync {
    let text = fmt::layer::<Registry>().with_writer(std::io::stderr);
    let text: Box<dyn Layer<Registry> + Send + Sync> =
        if json { Box::new(text.json()) } else { Box::new(text.with_ansi(false)) };
    // Each layer has a filter of its own: one of the whole subscriber would silence the trail too.
    let audit = filter_fn(|event| event.target() == AUDIT && *event.level() <= LevelFilter::INFO)
        .with_max_level_hint(LevelFilter::INFO);
    tracing_subscriber::registry().with(text.with_filter(filter)).with(trail.with_filter(audit))
}

/// Where audit events go; a cloneable handle. Logging starts before anybody may write into the data directory, so the
/// file is opened later; what happens before that is in the log alone.
#[derive(Clone, Default)]
pub struct AuditTrail(Arc<OnceLock<Journal<Line>>>);

impl AuditTrail {
    /// Opens the file, once.
    pub fn open(&self, path: &Path, room: Room) -> std::io::Result<()> {
        let journal = Journal::open("audit-trail", path, room)?;
        drop(self.0.set(journal));
        Ok(())
    }

    /// Waits until what happened so far is in the file.
    pub async fn flush(&self) {
        if let Some(journal) = self.0.get() {
            journal.flush().await;
        }
    }
}

impl<S: Subscriber> Layer<S> for AuditTrail {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if let Some(journal) = self.0.get() {
            let mut line = Line::now();
            event.record(&mut line);
            journal.record(line);
        }
    }
}

/// An event as the file has it.
#[derive(Serialize)]
struct Line {
    /// UTC, as RFC 3339 has it.
    time: String,
    message: String,
    #[serde(flatten)]
    fields: BTreeMap<&'static str, Value>,
}

impl Line {
    fn now() -> Self {
        let mut time = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        Self { time, message: String::new(), fields: BTreeMap::new() }
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => drop(self.fields.insert(name, value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
}

impl Record for Line {
    fn write(&self, out: &mut Vec<u8>) {
        if let Ok(line) = serde_json::to_vec(self) {
            out.extend_from_slice(&line);
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn audit_events_are_in_the_file_whatever_the_filter_shows_and_no_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sign-in.log");
        let trail = AuditTrail::default();
        let nothing = EnvFilter::builder().parse("off").unwrap();
        tracing::subscriber::with_default(subscriber(nothing, false, trail.clone()), || {
            tracing::info!(target: "audit", "before there is a file");
            trail.open(&path, Room { max_bytes: 1 << 20, files: 2 }).unwrap();
            let (user, address) = ("ann@example.com", std::net::Ipv4Addr::LOCALHOST);
            tracing::info!(target: "audit", %user, %address, tries = 3, approved = true, "signed in");
            tracing::warn!(target: "audit", user, groups = ?["a"], "two \"lines\"\n{{\"user\":\"forged\"}}");
            tracing::error!(user, "of another target");
            tracing::error!(target: "auditor", user, "of a longer target");
            tracing::debug!(target: "audit", user, "of no weight");
        });
        trail.flush().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [first, second] = lines.as_slice() else { panic!("{text}") };
        let time = first["time"].as_str().unwrap();
        assert!(time.starts_with("20") && time.contains('T') && time.ends_with('Z'), "{time}");
        let expected = serde_json::json!({"time": time, "message": "signed in", "user": "ann@example.com",
            "address": "127.0.0.1", "tries": 3, "approved": true});
        assert_eq!(*first, expected);
        assert_eq!(second["message"], "two \"lines\"\n{\"user\":\"forged\"}");
        assert_eq!((&second["user"], &second["groups"]), (&"ann@example.com".into(), &"[\"a\"]".into()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
