//! A graph as an SVG picture: boxes with state, icon and time, curved edges. Each box is a link, so that the keyboard
//! reaches it and the page works without a script.

use crate::{
    format, icons,
    layout::{self, Point, Size},
    view::{GraphEdge, GraphNode, NodeKind, RunState},
};
use askama::Template;
use chrono::{DateTime, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::{collections::HashMap, fmt::Write as _};

const TASK: Size = Size { width: 240.0, height: 58.0 };
const ARTIFACT: Size = Size { width: 172.0, height: 36.0 };
/// Boxes drawn; a page with more would stall the browser. The rest is said in words.
const DRAWN: usize = 1500;

#[derive(Template)]
#[template(path = "graph.html")]
pub struct Graph {
    width: String,
    height: String,
    label: String,
    omitted: usize,
    nodes: Vec<Drawn>,
    edges: Vec<Line>,
}

struct Drawn {
    id: String,
    href: String,
    linked: bool,
    class: String,
    state: &'static str,
    x: String,
    y: String,
    width: f64,
    height: f64,
    icon: &'static str,
    icon_y: f64,
    name: String,
    full: String,
    second: String,
    /// Seconds since 1970 for times that run on; empty otherwise.
    since: String,
    label: String,
}

struct Line {
    path: String,
    class: &'static str,
}

/// What a graph is drawn for.
pub struct Options<'a> {
    pub label: &'a str,
    /// Boxes link to `?node=ID`.
    pub linked: bool,
    pub selected: &'a str,
    pub now: DateTime<Utc>,
}

pub fn draw(nodes: &[GraphNode], edges: &[GraphEdge], options: &Options<'_>) -> Graph {
    let omitted = nodes.len().saturating_sub(DRAWN);
    let nodes = &nodes[..nodes.len().min(DRAWN)];
    let place: HashMap<&str, usize> = nodes.iter().enumerate().map(|(n, node)| (node.id.as_str(), n)).collect();
    let sizes: Vec<Size> = nodes.iter().map(|n| if n.kind == NodeKind::Artifact { ARTIFACT } else { TASK }).collect();
    let pairs: Vec<(usize, usize)> =
        edges.iter().filter_map(|e| Some((*place.get(e.from.as_str())?, *place.get(e.to.as_str())?))).collect();
    let drawing = layout::layout(&sizes, &pairs);
    let drawn = nodes
        .iter()
        .zip(&sizes)
        .zip(&drawing.nodes)
        .map(|((node, size), centre)| draw_node(node, *size, *centre, options))
        .collect();
    let lines = drawing
        .edges
        .iter()
        .zip(&pairs)
        .filter(|(points, _)| points.len() > 1)
        .map(|(points, (_, to))| Line {
            path: curve(points),
            class: if matches!(nodes[*to].state, RunState::Running | RunState::Canceling) {
                "edge flow"
            } else {
                "edge"
            },
        })
        .collect();
    Graph {
        width: number(drawing.width),
        height: number(drawing.height),
        label: options.label.to_owned(),
        omitted,
        nodes: drawn,
        edges: lines,
    }
}

fn draw_node(node: &GraphNode, size: Size, centre: Point, options: &Options<'_>) -> Drawn {
    let kind = match node.kind {
        NodeKind::Task => "task",
        NodeKind::Artifact => "artifact",
        NodeKind::Group => "group",
    };
    let selected = if !options.selected.is_empty() && options.selected == node.id { " selected" } else { "" };
    let elapsed = format::elapsed(node.started, node.finished, options.now);
    let plain = node.state == RunState::Unknown && node.started.is_none();
    let second = match (node.kind, node.detail.is_empty()) {
        (NodeKind::Artifact, _) => String::new(),
        (_, false) if elapsed.is_empty() || plain => node.detail.clone(),
        (_, false) => format!("{} · {elapsed}", node.detail),
        (_, true) if plain => String::new(),
        (_, true) if elapsed.is_empty() || node.state == RunState::Cached => node.state.label().to_owned(),
        (_, true) => format!("{} · {elapsed}", node.state.label()),
    };
    let running = node.finished.is_none() && node.detail.is_empty() && node.state == RunState::Running;
    let room = if node.kind == NodeKind::Artifact { 15 } else { 21 };
    let spoken = if plain { node.detail.clone() } else { format!("{}, {elapsed}", node.state.label()) };
    Drawn {
        id: node.id.clone(),
        href: format!("?node={}", utf8_percent_encode(&node.id, NON_ALPHANUMERIC)),
        linked: options.linked,
        class: format!("node {kind} s-{}{selected}", if plain { "plain" } else { node.state.key() }),
        state: node.state.key(),
        x: number(centre.x - size.width / 2.0),
        y: number(centre.y - size.height / 2.0),
        width: size.width,
        height: size.height,
        icon: icons::of_node(node.kind, node.state),
        icon_y: size.height / 2.0 - 8.0,
        name: format::shorten(&node.name, room),
        full: node.name.clone(),
        since: node.started.filter(|_| running).map(|s| s.timestamp().to_string()).unwrap_or_default(),
        second: format::shorten(&second, 26),
        label: format!("{kind} {}: {}", node.name, spoken.trim_end_matches(", ")),
    }
}

fn number(value: f64) -> String {
    format!("{value:.1}")
}

/// A smooth line through the points, leaving and entering boxes vertically.
fn curve(points: &[Point]) -> String {
    let mut path = format!("M{} {}", number(points[0].x), number(points[0].y));
    for pair in points.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if (a.x - b.x).abs() < 0.05 {
            let _ = write!(path, "L{} {}", number(b.x), number(b.y));
            continue;
        }
        let half = (b.y - a.y) / 2.0;
        let _ = write!(
            path,
            "C{} {} {} {} {} {}",
            number(a.x),
            number(a.y + half),
            number(b.x),
            number(b.y - half),
            number(b.x),
            number(b.y)
        );
    }
    path
}
