//! `kill -9` of the daemon at random moments, again and again, while pipelines of every kind of task run: each ends as it
//! would have, no step runs twice, no artifact is lost.
//!
//! `KFBOX_KILLS` and `KFBOX_SEED` lengthen or repeat it.

use kfbox_tests::{Python, TestBox, run, wait_until};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};

const KILLS: usize = 8;
/// Between readiness and the next death. Around what a run of the shorter pipeline takes.
const LIFE: std::ops::Range<u64> = 0..2500;

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

fn start(b: &TestBox, package: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(kfbox_tests::program()?);
    command.arg("run").arg(package).arg("-d").env("KFBOX_DATA_DIR", b.data_dir());
    Ok(run(&mut command)?.ok()?.stdout.trim().to_owned())
}

/// The pods of a run by the name of their step.
fn pods(b: &TestBox, run_id: &str) -> anyhow::Result<BTreeMap<String, Vec<Value>>> {
    let selector = format!("pipeline/runid={run_id}");
    let output = b.kubectl(&["get", "pods", "-n", &b.namespace(), "-l", &selector, "-o", "json"])?.ok()?;
    let list: Value = serde_json::from_str(&output.stdout)?;
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pod in list["items"].as_array().cloned().unwrap_or_default() {
        let path = pod["metadata"]["annotations"]["pipelines.kubeflow.org/task_path"].as_str().unwrap_or_default();
        found.entry(path.to_owned()).or_default().push(pod);
    }
    Ok(found)
}

/// Each step's attempts as they should be: one, but for the step that fails and is tried three times.
fn expected(failing: bool) -> BTreeMap<String, usize> {
    let mut steps = BTreeMap::from([("last".to_owned(), 1)]);
    if failing {
        steps.insert("exit-handler-1.fails".into(), 3);
        steps.insert("exit-handler-1.make".into(), 1);
    } else {
        for n in 0..4 {
            steps.insert(format!("exit-handler-1.for-loop-3#{n}.make"), 1);
            steps.insert(format!("exit-handler-1.for-loop-3#{n}.double"), 1);
        }
        steps.insert("exit-handler-1.total".into(), 1);
        steps.insert("exit-handler-1.condition-4.branch".into(), 1);
    }
    steps
}

const ARTIFACTS: &str = "
import boto3, json, sys
c = json.loads(sys.argv[1])
s3 = boto3.client('s3', endpoint_url=c['endpoint'], region_name=c['region'],
                  aws_access_key_id=c['accessKey'], aws_secret_access_key=c['secretKey'])
found = {}
for page in s3.get_paginator('list_objects_v2').paginate(Bucket=c['bucket'], Prefix=c['prefix']):
    for o in page.get('Contents', []):
        found[o['Key']] = s3.get_object(Bucket=c['bucket'], Key=o['Key'])['Body'].read().decode().strip()
print(json.dumps(found))";

#[test]
fn runs_end_as_they_would_have_however_often_the_daemon_is_killed() -> anyhow::Result<()> {
    let kills = number("KFBOX_KILLS").map_or(KILLS, |n| usize::try_from(n).unwrap_or(KILLS));
    let seed = number("KFBOX_SEED").unwrap_or_else(|| std::process::id().into());
    println!("seed {seed}, {kills} kills");
    let mut random = StdRng::seed_from_u64(seed);
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let dir = tempfile::tempdir()?;
    run(Python::Clients.script("tests/clients/kfp_mixed.py").arg(dir.path()))?.ok()?;
    let mut runs: Vec<(String, bool)> = Vec::new();
    let state = |b: &TestBox, id: &str| -> anyhow::Result<Value> { crate::pipelines::kfp(b, &["get", id]) };
    for kill in 0..kills {
        // A new run every third life: there is always something under way, and starts are killed too.
        if kill % 3 == 0 {
            let failing = kill % 6 == 3;
            let package = dir.path().join(if failing { "failing.yaml" } else { "succeeding.yaml" });
            runs.push((start(&b, &package)?, failing));
        }
        std::thread::sleep(Duration::from_millis(random.random_range(LIFE)));
        b.kill_daemon()?;
        b.up(&[])?;
    }
    for (id, failing) in &runs {
        let ended = wait_until(Duration::from_secs(240), "the run's end", || {
            let seen = state(&b, id)?;
            Ok(matches!(seen["state"].as_str(), Some("SUCCEEDED" | "FAILED" | "CANCELED")).then_some(seen))
        })?;
        let wanted = if *failing { "FAILED" } else { "SUCCEEDED" };
        assert_eq!(ended["state"], wanted, "seed {seed}: {ended:#}\n{}", b.log());
        if *failing {
            let error = ended["error"].as_str().unwrap_or_default();
            assert!(error.contains("exit-handler-1.fails") && error.contains("exit code 3"), "{error}");
        }
        let found = pods(&b, id)?;
        let counts: BTreeMap<String, usize> = found.iter().map(|(name, pods)| (name.clone(), pods.len())).collect();
        assert_eq!(counts, expected(*failing), "seed {seed}: the pods of run {id}: {:#}", json!(found));
        for pod in found.values().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "seed {seed}: {pod}");
            let log = b.kubectl(&["logs", "-n", &b.namespace(), name])?.ok()?.stdout;
            assert_eq!(log.lines().filter(|l| *l == "began").count(), 1, "seed {seed}: {name}: {log}");
        }
    }
    let credentials = b.kfbox_ok(&["credentials", "--output", "json"])?;
    let output = run(Command::new(Python::Clients.program()).args(["-c", ARTIFACTS, &credentials]))?.ok()?;
    let artifacts: BTreeMap<String, String> = serde_json::from_str(output.stdout.trim())?;
    for (id, failing) in &runs {
        let mine: Vec<&String> = artifacts.iter().filter(|(k, _)| k.contains(id.as_str())).map(|(_, v)| v).collect();
        let said: BTreeSet<&str> = mine.iter().map(|v| v.as_str()).collect();
        let numbers: &[i32] = if *failing { &[7] } else { &[1, 2, 3, 4] };
        let mut wanted: BTreeSet<String> = numbers.iter().map(|n| format!("number {n}")).collect();
        if !failing {
            wanted.extend(numbers.iter().map(|n| format!("double {}", n * 2)));
        }
        assert_eq!(said, wanted.iter().map(String::as_str).collect(), "seed {seed}: artifacts of {id}");
        assert_eq!(mine.len(), wanted.len(), "seed {seed}: each once: {mine:?}");
    }
    Ok(())
}
