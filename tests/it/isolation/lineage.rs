//! ML Metadata's doors. Whoever tries them has Python's own library at most, so messages are written out here, in
//! hexadecimal; the numbers of their fields are those of `ml_metadata/proto/metadata_store_service.proto` upstream.

use super::{doors::Door, people::Possessions, probe};
use anyhow::Context;
use kfbox_tests::TestBox;
use serde_json::{Value, json};

/// The namespace to write into, as kfbox reads it.
const NAMESPACE: &str = "x-kfbox-namespace";

const READ: [&str; 7] = ["none", "data+", "data+", "data+", "empty", "empty", "data+"];
/// A put that can be made again.
const WRITE: [&str; 7] = ["none", "data", "none", "data", "none", "none", "data"];
/// A put that can be made once: the owner makes it.
const LINK: [&str; 7] = ["none", "empty", "none", "-", "none", "none", "-"];

fn varint(number: usize) -> String {
    match number {
        0..128 => format!("{number:02x}"),
        _ => format!("{:02x}{:02x}", (number & 127) | 128, number >> 7),
    }
}

fn message(field: u8, content: &str) -> String {
    format!("{:02x}{}{content}", (field << 3) | 2, varint(content.len() / 2))
}

fn text(field: u8, text: &str) -> String {
    message(field, &text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A number that is in hexadecimal already.
fn number(field: u8, number: &str) -> String {
    format!("{:02x}{number}", field << 3)
}

/// What the owner made for others to write on. Ids are as they stand in messages.
pub struct Metadata {
    artifact: String,
    execution: String,
    contexts: [String; 2],
}

impl Metadata {
    /// `plan` has the owner's addresses and certificate.
    pub fn of(b: &TestBox, plan: &Value, p: &Possessions) -> anyhow::Result<Self> {
        let put = |call: &str, message: &str| -> anyhow::Result<String> {
            let mut plan = plan.clone();
            plan["markers"] = json!([]);
            plan["doors"] = json!([{"kind": "grpc", "call": call, "message": message, "raw": true,
                "headers": {NAMESPACE: p.namespace}}]);
            let answer = probe(b, None, &plan)?.pop().unwrap_or_default();
            // The id is field 1, and nothing comes after it.
            Ok(answer.strip_prefix("08").with_context(|| format!("{call}: {answer}"))?.to_owned())
        };
        let kind = |call: &str| put(call, &message(1, &text(2, &p.word)));
        let node = |call: &str, of: &str, name: &str| put(call, &message(1, &format!("{}{name}", number(2, of))));
        let artifact = node("PutArtifacts", &kind("PutArtifactType")?, &text(7, &p.word))?;
        let execution = node("PutExecutions", &kind("PutExecutionType")?, &text(6, &p.word))?;
        let of = kind("PutContextType")?;
        let below = format!("{}-below", p.word);
        let contexts = [node("PutContexts", &of, &text(3, &p.word))?, node("PutContexts", &of, &text(3, &below))?];
        Ok(Self { artifact, execution, contexts })
    }
}

pub fn doors(p: &Possessions, made: &Metadata) -> Vec<Door> {
    let door = |name, call: &str, message: &str, wanted| Door {
        name,
        how: json!({"kind": "grpc", "call": call, "message": message, "headers": {NAMESPACE: p.namespace}}),
        wanted,
    };
    // All ids that a box of tests gives out.
    let ids: String = (1..4000).map(|id| number(1, &varint(id))).collect();
    let Metadata { artifact, execution, contexts: [above, below] } = made;
    let kind = message(1, &text(2, &p.word));
    let the = |id: &str| message(1, &number(1, id));
    let pair = |field: u8, first: &str, second: &str| message(field, &[number(1, first), number(2, second)].concat());
    let event = message(1, &[number(1, artifact), number(2, execution), number(4, "03")].concat());
    let by_name = [text(1, &p.word), text(2, &p.word)].concat();
    // An execution with an artifact, as two different requests have them.
    let with_artifact = [the(execution), message(2, &the(artifact))].concat();
    let graph = [the(execution), message(2, &number(1, artifact))].concat();
    let members = [pair(1, artifact, above), pair(2, execution, above)].concat();
    vec![
        door("metadata: contexts", "GetContexts", "", READ),
        door("metadata: contexts by id", "GetContextsByID", &ids, READ),
        door("metadata: artifacts", "GetArtifacts", "", READ),
        door("metadata: artifacts by id", "GetArtifactsByID", &ids, READ),
        door("metadata: artifact by name", "GetArtifactByTypeAndName", &by_name, READ),
        door("metadata: executions", "GetExecutions", "", READ),
        door("metadata: executions by id", "GetExecutionsByID", &ids, READ),
        // Events are numbers and an output's name.
        door(
            "metadata: events by execution",
            "GetEventsByExecutionIDs",
            &ids,
            ["none", "data", "data", "data", "empty", "empty", "data"],
        ),
        door(
            "metadata: events by artifact",
            "GetEventsByArtifactIDs",
            &ids,
            ["none", "data", "data", "data", "empty", "empty", "data"],
        ),
        // A graph without nodes is a message, too.
        door(
            "metadata: lineage",
            "GetLineageSubgraph",
            &message(1, &message(2, "")),
            ["none", "data+", "data+", "data+", "data", "data", "data+"],
        ),
        door(
            "metadata: lineage, older",
            "GetLineageGraph",
            &message(1, &message(1, "")),
            ["none", "data+", "data+", "data+", "none", "none", "data+"],
        ),
        door("metadata: put artifact type", "PutArtifactType", &kind, WRITE),
        door("metadata: put execution type", "PutExecutionType", &kind, WRITE),
        door("metadata: put context type", "PutContextType", &kind, WRITE),
        door("metadata: put types", "PutTypes", &kind, WRITE),
        door("metadata: put artifact", "PutArtifacts", &the(artifact), WRITE),
        door("metadata: put executions", "PutExecutions", &the(execution), WRITE),
        door("metadata: put context", "PutContexts", &the(above), WRITE),
        door("metadata: put execution", "PutExecution", &with_artifact, WRITE),
        door("metadata: put lineage", "PutLineageSubgraph", &graph, WRITE),
        door("metadata: put event", "PutEvents", &event, LINK),
        door("metadata: put parent", "PutParentContexts", &pair(1, below, above), LINK),
        door(
            "metadata: put into context",
            "PutAttributionsAndAssociations",
            &members,
            ["none", "empty", "none", "empty", "none", "none", "empty"],
        ),
    ]
}
