//! Follows a run: a line for each step that starts or ends, and what its container prints, as it prints it.

use super::web::Web;
use anyhow::Context as _;
use bytes::{Buf, BytesMut};
use futures::{StreamExt, stream::FuturesUnordered};
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    process::ExitCode,
    time::Duration,
};

/// Between two looks at the run.
const LOOK: Duration = Duration::from_millis(300);
/// A step's container may not have a log yet when the step is said to run.
const LOG_TRIES: u32 = 20;
/// Without an end of line, what a step printed is shown in pieces of this size.
const LONGEST_LINE: usize = 64 << 10;

pub async fn follow(web: &Web, id: &str, quiet: bool) -> anyhow::Result<ExitCode> {
    let path = format!("/apis/v2beta1/runs/{id}");
    let mut states: HashMap<String, String> = HashMap::new();
    let mut logged: HashSet<String> = HashSet::new();
    let mut logs = FuturesUnordered::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last: Option<Value> = None;
    loop {
        tokio::select! {
            _ = looks.tick(), if last.is_none() => {}
            Some(()) = logs.next(), if !logs.is_empty() => {
                if logs.is_empty() && last.is_some() {
                    break;
                }
                continue;
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                eprintln!("\nThe run goes on; this only stopped watching it.");
                return Ok(ExitCode::from(130));
            }
        }
        let run: Value = web.get(&path).await?;
        for task in run.pointer("/run_details/task_details").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| task.get(name).and_then(Value::as_str).unwrap_or_default();
            // The run itself is the task without a parent.
            if text("parent_task_id").is_empty() {
                continue;
            }
            let (key, state) = (text("task_id"), text("state"));
            if states.get(key).map(String::as_str) != Some(state) {
                states.insert(key.to_owned(), state.to_owned());
                if let Some(line) = change(task, state) {
                    eprintln!("{line}");
                }
            }
            // Each attempt has a pod of its own.
            let pod = text("pod_name");
            if !quiet && !pod.is_empty() && !text("start_time").is_empty() && logged.insert(pod.to_owned()) {
                logs.push(log(web, id, pod.to_owned(), text("display_name").to_owned()));
            }
        }
        if run["state"].as_str().is_some_and(|s| matches!(s, "SUCCEEDED" | "FAILED" | "CANCELED" | "SKIPPED")) {
            last = Some(run);
            if logs.is_empty() {
                break;
            }
        }
    }
    let run = last.context("the run has no end")?;
    Ok(end(&run))
}

fn seconds(from: &str, to: &str) -> Option<f64> {
    let at = |text: &str| chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis());
    #[expect(clippy::cast_precision_loss, reason = "a duration of a run in milliseconds")]
    Some((at(to)? - at(from)?).max(0) as f64 / 1000.0)
}

fn change(task: &Value, state: &str) -> Option<String> {
    let text = |name: &str| task.get(name).and_then(Value::as_str).unwrap_or_default();
    let name = text("display_name");
    let took = seconds(text("start_time"), text("end_time"));
    let took = took.map(|s| format!("  {s:.1} s")).unwrap_or_default();
    Some(match state {
        "RUNNING" => format!("  ▸ {name}"),
        "SUCCEEDED" => format!("  ✔ {name}{took}"),
        "SKIPPED" => format!("  - {name}  not wanted"),
        "CANCELED" => format!("  ✘ {name}  canceled"),
        "FAILED" => {
            let why = task.pointer("/error/message").and_then(Value::as_str).unwrap_or("failed");
            format!("  ✘ {name}{took}  {}", why.replace('\n', "\n      "))
        }
        _ => return None,
    })
}

fn end(run: &Value) -> ExitCode {
    let text = |name: &str| run.get(name).and_then(Value::as_str).unwrap_or_default();
    let took = seconds(text("created_at"), text("finished_at")).unwrap_or_default();
    match text("state") {
        "SUCCEEDED" | "SKIPPED" => {
            eprintln!("SUCCEEDED after {took:.1} s");
            ExitCode::SUCCESS
        }
        state => {
            eprintln!("{state} after {took:.1} s");
            if let Some(why) = run.pointer("/error/message").and_then(Value::as_str) {
                eprintln!("  {}", why.lines().next().unwrap_or_default());
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints a step's log, each line with the step's name, until it ends. What cannot be read is said once.
async fn log(web: &Web, run: &str, pod: String, name: String) {
    let path = format!("/apis/v1beta1/runs/{run}/nodes/{pod}/log?follow=true");
    let mut tries = 0;
    let response = loop {
        match web.send(Method::GET, &path, bytes::Bytes::new()).await {
            Ok(response) => break response,
            Err(_) if tries < LOG_TRIES => {
                tries += 1;
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return eprintln!("    {name} | (its log cannot be read: {error})"),
        }
    };
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            println!("    {name} | {}", printable(&buffer.split_to(end)));
            buffer.advance(1);
        }
        if buffer.len() > LONGEST_LINE {
            println!("    {name} | {}", printable(&buffer.split()));
        }
    }
    if !buffer.is_empty() {
        println!("    {name} | {}", printable(&buffer));
    }
}

/// A step is somebody's program: it may not steer the reader's terminal.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end_matches('\r').chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_cannot_steer_the_terminal() {
        assert_eq!(printable(b"done \x1b]0;owned\x07\r"), "done \u{fffd}]0;owned\u{fffd}");
        assert_eq!(printable("a\tü".as_bytes()), "a\tü");
        assert_eq!(printable(&[0xff, b'a']), "\u{fffd}a");
    }
}
