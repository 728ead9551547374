//! Icons as paths in a 16 by 16 box, drawn with the current colour.

use crate::view::{NodeKind, RunState};

pub const CHECK: &str = r#"<path d="M3.5 8.5 6.5 11.5 12.5 5"/>"#;
pub const CROSS: &str = r#"<path d="M4.5 4.5l7 7m0-7-7 7"/>"#;
pub const CLOCK: &str = r#"<circle cx="8" cy="8" r="5.5"/><path d="M8 5v3.2l2 1.3"/>"#;
pub const SPIN: &str = r#"<path class="spin" d="M8 2.5a5.5 5.5 0 1 1-5.5 5.5"/>"#;
pub const REUSE: &str = r#"<path d="M3 8a5 5 0 0 1 8.6-3.5L13 6m0-3v3h-3M13 8a5 5 0 0 1-8.6 3.5L3 10m0 3v-3h3"/>"#;
pub const SKIP: &str = r#"<path d="M4 4.5 8 8l-4 3.5zM9 4.5 13 8l-4 3.5z"/>"#;
pub const STOP: &str = r#"<rect x="4.5" y="4.5" width="7" height="7" rx="1"/>"#;
pub const PAUSE: &str = r#"<path d="M6 4.5v7m4-7v7"/>"#;
pub const QUESTION: &str = r#"<path d="M6 6.2a2 2 0 1 1 2.7 1.9c-.5.2-.7.6-.7 1.1M8 11.5v.1"/>"#;
pub const DATA: &str = r#"<ellipse cx="8" cy="4.5" rx="5" ry="2"/><path d="M3 4.5v7c0 1.1 2.2 2 5 2s5-.9 5-2v-7M3 8c0 1.1 2.2 2 5 2s5-.9 5-2"/>"#;
pub const GROUP: &str = r#"<rect x="2.5" y="2.5" width="11" height="11" rx="2"/><path d="M5.5 6h5m-5 4h5"/>"#;

pub fn of_state(state: RunState) -> &'static str {
    match state {
        RunState::Pending => CLOCK,
        RunState::Running | RunState::Canceling => SPIN,
        RunState::Succeeded => CHECK,
        RunState::Cached => REUSE,
        RunState::Skipped => SKIP,
        RunState::Failed => CROSS,
        RunState::Canceled => STOP,
        RunState::Paused => PAUSE,
        RunState::Unknown => QUESTION,
    }
}

pub fn of_node(kind: NodeKind, state: RunState) -> &'static str {
    match kind {
        NodeKind::Artifact => DATA,
        NodeKind::Group if state == RunState::Unknown => GROUP,
        _ => of_state(state),
    }
}
