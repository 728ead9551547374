//! Lists: every operator, every order, pages that go on, and what a list of many runs reads.

use super::{call, good, ok, spec, world::World};
use crate::{
    Pipelines,
    engine::model::{State, StateChange},
    ports::LineageContexts,
    spec::Documents,
    store::{RunRow, listing},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

fn row(n: i64, experiment: &str) -> RunRow {
    let ended = n % 3 != 0;
    RunRow {
        id: format!("run-{n:05}"),
        namespace: "ann".into(),
        experiment_id: experiment.into(),
        display_name: format!("name {:05}", 99_999 - n),
        description: format!("number {n}"),
        storage_state: if n % 10 == 0 { "ARCHIVED" } else { "AVAILABLE" }.into(),
        state: if ended { State::Succeeded } else { State::Failed },
        created_at: 1_700_000_000_000 + n / 2 * 1000,
        scheduled_at: 1_700_000_000_000 - n,
        finished_at: Some(1_700_000_100_000 + n % 7),
        service_account: "default-editor".into(),
        pipeline_id: String::new(),
        pipeline_version_id: String::new(),
        recurring_run_id: if n % 5 == 0 { "nightly".into() } else { String::new() },
        pipeline_name: "two-steps".into(),
        pipeline_root: "minio://mlpipeline/v2/artifacts/ann/x".into(),
        spec: Documents { pipeline_spec: spec(), platform_spec: None },
        runtime_config: json!({}),
        error: None,
        state_history: vec![StateChange { at: n, state: State::Pending }],
        contexts: LineageContexts::default(),
    }
}

async fn fill(p: &Pipelines, count: i64) {
    let experiment = p.inner.store.default_experiment("ann").await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..count {
        let (store, row) = (p.inner.store.clone(), row(n, &experiment.id));
        waiting.spawn(async move { store.create_run(row).await.map(drop) });
    }
    for result in waiting.join_all().await {
        result.unwrap();
    }
}

fn query(parts: &[(&str, &str)]) -> String {
    let part = |(name, value): &(&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    format!("/apis/v2beta1/runs?{}", parts.iter().map(part).collect::<Vec<_>>().join("&"))
}

async fn total(p: &Pipelines, predicate: Value) -> i64 {
    let filter = json!({"predicates": [predicate]}).to_string();
    ok(p, "ann", "GET", &query(&[("filter", &filter)]), Value::Null).await["total_size"].as_i64().unwrap()
}

#[tokio::test]
async fn every_operator_filters_by_name_and_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    fill(&p, 20).await;
    let at = |n: i64| crate::time::format(1_700_000_000_000 + n / 2 * 1000);
    for (operation, number, value, expected) in [
        ("EQUALS", 1, json!({"timestamp_value": at(10)}), 2),
        ("NOT_EQUALS", 2, json!({"timestamp_value": at(10)}), 18),
        ("GREATER_THAN", 3, json!({"timestamp_value": at(10)}), 8),
        ("GREATER_THAN_EQUALS", 5, json!({"timestampValue": at(10)}), 10),
        ("LESS_THAN", 6, json!({"long_value": "1700000005"}), 10),
        ("LESS_THAN_EQUALS", 7, json!({"int_value": 1_700_000_005}), 12),
        ("IN", 8, json!({"long_values": {"values": ["1700000000", "1700000001"]}}), 4),
    ] {
        for operation in [json!(operation), json!(number)] {
            let mut predicate = value.clone();
            predicate["key"] = json!("created_at");
            predicate["operation"] = operation.clone();
            assert_eq!(total(&p, predicate).await, expected, "{operation}");
        }
    }
    let text =
        |key: &str, operation: &str, value: &str| json!({"key": key, "operation": operation, "string_value": value});
    assert_eq!(total(&p, text("description", "IS_SUBSTRING", "NUMBER 1")).await, 11);
    assert_eq!(total(&p, text("name", "EQUALS", "name 99999")).await, 1);
    assert_eq!(total(&p, text("state", "EQUALS", "FAILED")).await, 7);
    assert_eq!(total(&p, text("status", "NOT_EQUALS", "Failed")).await, 13);
    assert_eq!(total(&p, text("recurring_run_id", "EQUALS", "nightly")).await, 4);
    assert_eq!(
        total(&p, json!({"key": "id", "operation": "IN", "string_values": {"values": ["run-00001", "x' OR 1=1 --"]}}))
            .await,
        1
    );
    for (predicate, why) in [
        (json!({"key": "name", "string_value": "x"}), "OPERATION_UNSPECIFIED"),
        (json!({"key": "name", "operation": "LIKE", "string_value": "x"}), "LIKE"),
        (json!({"key": "name", "operation": 4, "string_value": "x"}), "does not exist"),
        (json!({"key": "1=1; --", "operation": "EQUALS", "string_value": "x"}), "no field"),
        (json!({"key": "name", "operation": "EQUALS"}), "no value"),
        (json!({"key": "name", "operation": "IN", "string_value": "x"}), "no values"),
        (json!({"key": "name", "operation": "EQUALS", "string_values": {"values": ["x"]}}), "no value"),
        (json!({"key": "created_at", "operation": "IS_SUBSTRING", "string_value": "x"}), "IS_SUBSTRING"),
        (json!({"key": "created_at", "operation": "EQUALS", "string_value": "soon"}), "RFC 3339"),
    ] {
        let filter = json!({"predicates": [predicate]}).to_string();
        let (status, answer) = call(&p, "ann", "GET", &query(&[("filter", &filter)]), Value::Null).await;
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(why), "{predicate}: {answer}");
    }
    world.kill(&tasks).await;
}

#[tokio::test]
async fn pages_in_every_order_show_each_run_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    fill(&p, 25).await;
    let fields = listing::RUNS.columns.iter().map(|(name, ..)| *name).chain(["", "metric:loss"]);
    for field in fields {
        for direction in ["", " asc", " DESC"] {
            if field.is_empty() && !direction.is_empty() {
                continue;
            }
            let sort_by = format!("{field}{direction}");
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                // Upstream's clients may repeat the order, or leave it to the token.
                let sort = if seen.len() % 2 == 0 || token.is_empty() { sort_by.as_str() } else { "" };
                let path = query(&[("page_size", "7"), ("sort_by", sort), ("page_token", &token)]);
                let page = ok(&p, "ann", "GET", &path, Value::Null).await;
                assert_eq!(page["total_size"], 25);
                seen.extend(page["runs"].as_array().unwrap().iter().map(|r| r["run_id"].as_str().unwrap().to_owned()));
                token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
                if token.is_empty() {
                    // Kale asks for more until there is none.
                    assert!(page.get("next_page_token").is_none(), "{page}");
                    break;
                }
            }
            let mut each = seen.clone();
            each.sort_unstable();
            each.dedup();
            assert_eq!((each.len(), seen.len()), (25, 25), "{sort_by}: {seen:?}");
            if field == "display_name" {
                let first = if direction == " DESC" { "run-00000" } else { "run-00024" };
                assert_eq!(seen[0], first, "{sort_by}");
            }
        }
    }
    let page = ok(&p, "ann", "GET", &query(&[("page_size", "7")]), Value::Null).await;
    let token = page["next_page_token"].as_str().unwrap();
    let filter = json!({"predicates": [{"key": "state", "operation": "EQUALS", "string_value": "FAILED"}]}).to_string();
    for other in [query(&[("page_token", token), ("filter", &filter)]), query(&[("page_token", &token[2..])])] {
        assert_eq!(call(&p, "ann", "GET", &other, Value::Null).await.0, 400, "{other}");
    }
    let elsewhere = query(&[("page_token", token), ("namespace", "ann")]).replace("runs?", "experiments?");
    assert_eq!(call(&p, "ann", "GET", &elsewhere, Value::Null).await.0, 400);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn tags_filter_pipelines() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    for (name, team) in [("one", "blue"), ("two", "red")] {
        ok(&p, "ann", "POST", "/apis/v2beta1/pipelines", json!({"display_name": name, "tags": {"the team": team}}))
            .await;
    }
    let found = async |operation: &str| {
        let filter = json!({"predicates": [{"key": "tags.the team", "operation": operation, "string_value": "red"}]});
        let path = query(&[("filter", &filter.to_string())]).replace("runs?", "pipelines?");
        call(&p, "ann", "GET", &path, Value::Null).await
    };
    let (status, listed) = found("EQUALS").await;
    assert_eq!(
        (status, &listed["pipelines"][0]["name"], &listed["total_size"]),
        (200, &json!("two"), &json!(1)),
        "{listed}"
    );
    assert_eq!(found("NOT_EQUALS").await.0, 400);
    world.kill(&tasks).await;
}

/// What SQLite does for a list, in its own words.
async fn plan(p: &Pipelines, parts: &[(&str, &str)], scope: (&'static str, &str)) -> String {
    let text = |name: &str| parts.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()).unwrap_or_default();
    let query = listing::Query { sort_by: text("sort_by"), filter: text("filter"), ..listing::Query::default() };
    let scope = vec![(scope.0, vec![scope.1.to_owned()])];
    let listing = listing::Listing::new(&listing::RUNS, &query, scope, p.inner.store.key.as_slice()).unwrap();
    p.inner.store.db.read(move |c| Ok::<_, crate::ApiError>(listing.explain(c)?)).await.unwrap()
}

#[tokio::test]
async fn a_list_of_many_runs_reads_indexes_and_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    fill(&p, 2000).await;
    let shown = json!({"predicates": [{"key": "storage_state", "operation": "EQUALS", "string_value": "AVAILABLE"}]})
        .to_string();
    let experiment = p.inner.store.default_experiment("ann").await.unwrap().id;
    for scope in [("namespace", "ann"), ("experiment_id", experiment.as_str())] {
        for filter in ["", &shown] {
            let plan = plan(&p, &[("sort_by", "created_at desc"), ("filter", filter)], scope).await;
            let inner = plan.split("SCAN (subquery").next().unwrap();
            assert!(inner.contains("USING INDEX") || inner.contains("USING COVERING INDEX"), "{plan}");
            assert!(!inner.contains("TEMP B-TREE"), "the index gives the order: {plan}");
        }
    }
    for field in ["display_name", "state", "finished_at", "scheduled_at", "storage_state", "recurring_run_id"] {
        let plan = plan(&p, &[("sort_by", field)], ("namespace", "ann")).await;
        assert!(plan.contains("COVERING INDEX"), "{field} is sorted without reading whole rows: {plan}");
    }
    world.kill(&tasks).await;
}
