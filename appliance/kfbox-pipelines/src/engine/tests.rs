//! The engine's decisions, fed with pipelines and outcomes, without a cluster.

use super::{
    model::{Artifact, RunState, State, Task, TaskError, pod_name, task_id},
    plan,
};
use crate::{
    ports::LineageContexts,
    spec::{self, Pipeline, value},
};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

fn run_of(pipeline: &Pipeline, given: Value) -> RunState {
    let parameters = spec::check_parameters(pipeline, given.as_object().unwrap()).unwrap();
    RunState {
        id: "r1".into(),
        namespace: "ns".into(),
        display_name: "a run".into(),
        pipeline_name: pipeline.name().into(),
        pipeline_root: "minio://mlpipeline/v2/artifacts/ns/p/r1".into(),
        service_account: "default-editor".into(),
        parameters,
        created_at: 0,
        scheduled_at: 0,
        state: State::Pending,
        finished_at: None,
        error: None,
        history: Vec::new(),
        contexts: LineageContexts::default(),
        tasks: IndexMap::new(),
    }
}

fn sample(name: &str) -> Option<Pipeline> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/fixtures/kfp/pipelines/valid")
        .join(name);
    Some(Pipeline::from_package(&std::fs::read(path).ok()?).unwrap())
}

/// Some value of each declared output, and an artifact of each.
fn succeed(pipeline: &Pipeline, task: &mut Task, values: &dyn Fn(&Task, &str) -> Option<Value>) {
    let component = pipeline.component(&task.component).unwrap();
    for (name, definition) in &component.output_definitions.parameters {
        let plain = match value::declared_output(definition) {
            spec::ir::ParameterType::NumberInteger | spec::ir::ParameterType::NumberDouble => json!(1),
            spec::ir::ParameterType::Boolean => json!(true),
            spec::ir::ParameterType::List => {
                json!([{"A_a": "heads", "B_b": ["x", "y"], "a": "1", "b": "2"}, {"A_a": "tails", "B_b": ["z"], "a": "3", "b": "4"}])
            }
            spec::ir::ParameterType::Struct => json!({"a": "1", "b": "2"}),
            _ => json!("heads"),
        };
        task.outputs.parameters.insert(name.clone(), values(task, name).unwrap_or(plain));
    }
    for (name, definition) in &component.output_definitions.artifacts {
        let artifact = Artifact {
            name: format!("{}/{name}", task.path),
            schema_title: definition.artifact_type.title().into(),
            uri: format!("minio://mlpipeline/v2/artifacts/ns/{}/{name}", task.path),
            ..Artifact::default()
        };
        task.outputs.artifacts.insert(name.clone(), vec![artifact]);
    }
    task.enter(State::Succeeded);
}

/// Ends every open leaf, wave after wave, as `outcome` says; returns the leaves in the order in which they became ready.
fn simulate(
    pipeline: &Pipeline,
    run: &mut RunState,
    outcome: &dyn Fn(&Task) -> bool,
    values: &dyn Fn(&Task, &str) -> Option<Value>,
) -> Vec<String> {
    let mut order = Vec::new();
    let mut since: Option<BTreeSet<String>> = None;
    for _ in 0..200 {
        match &since {
            None => plan::advance(pipeline, run),
            Some(since) => plan::advance_after(pipeline, run, since),
        };
        assert!(plan::advance(pipeline, run).is_empty(), "deciding again, of all, must change nothing");
        if run.state.is_final() {
            return order;
        }
        let ready: Vec<String> =
            run.tasks.values().filter(|t| t.is_leaf() && !t.state.is_final()).map(|t| t.id.clone()).collect();
        assert!(
            !ready.is_empty(),
            "the run is stuck: {:?}",
            run.tasks.values().map(|t| (&t.path, t.state)).collect::<Vec<_>>()
        );
        since = Some(ready.iter().cloned().collect());
        for id in ready {
            let task = run.tasks.get_mut(&id).unwrap();
            order.push(plan::shown_path(task).to_owned());
            if outcome(task) {
                succeed(pipeline, task, values);
            } else {
                task.error = Some(TaskError::step("exit code 1"));
                task.enter(State::Failed);
            }
        }
    }
    panic!("the run does not end");
}

fn all(_: &Task) -> bool {
    true
}

fn plain(_: &Task, _: &str) -> Option<Value> {
    None
}

fn state(run: &RunState, path: &str) -> State {
    run.tasks
        .get(&task_id("r1", &format!("root.{path}")))
        .unwrap_or_else(|| panic!("there is no {path}: {:?}", run.tasks.values().map(|t| &t.path).collect::<Vec<_>>()))
        .state
}

fn leaf<'a>(run: &'a RunState, path: &str) -> &'a Task {
    state(run, path);
    &run.tasks[&task_id("r1", &format!("root.{path}"))]
}

/// A pipeline from short text: tasks in the root, over one echo component.
fn pipeline(tasks: &str, components: &str) -> Pipeline {
    let text = format!(
        "
components:
  comp-echo:
    executorLabel: exec-echo
    inputDefinitions: {{parameters: {{text: {{parameterType: STRING, isOptional: true}}, n: {{parameterType: NUMBER_INTEGER, isOptional: true}}}}}}
    outputDefinitions: {{parameters: {{out: {{parameterType: STRING}}}}, artifacts: {{data: {{artifactType: {{schemaTitle: system.Dataset}}}}}}}}
{components}
deploymentSpec: {{executors: {{exec-echo: {{container: {{image: busybox, command: [echo]}}}}}}}}
pipelineInfo: {{name: p}}
schemaVersion: 2.1.0
root:
  inputDefinitions: {{parameters: {{items: {{parameterType: LIST, defaultValue: [1, 2, 3], isOptional: true}}, maybe: {{parameterType: STRING, isOptional: true}}}}}}
  dag:
    tasks:
{tasks}
"
    );
    Pipeline::from_package(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn every_upstream_sample_runs_to_its_end() {
    fn walk(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { walk(&entry.path(), found) } else { found.push(entry.path()) }
        }
    }
    let mut found = Vec::new();
    walk(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kfp/pipelines/valid"),
        &mut found,
    );
    for path in found {
        let pipeline = Pipeline::from_package(&std::fs::read(&path).unwrap()).unwrap();
        let needed: Map<String, Value> = pipeline
            .spec
            .root
            .input_definitions
            .parameters
            .iter()
            .filter(|(_, d)| d.default_value.is_none() && !d.is_optional)
            .map(|(name, d)| {
                (
                    name.clone(),
                    match value::declared(d) {
                        spec::ir::ParameterType::NumberInteger | spec::ir::ParameterType::NumberDouble => json!(2),
                        spec::ir::ParameterType::Boolean => json!(true),
                        spec::ir::ParameterType::List => json!(["a"]),
                        spec::ir::ParameterType::Struct => json!({"a": 1}),
                        _ => json!("some"),
                    },
                )
            })
            .collect();
        let mut run = run_of(&pipeline, Value::Object(needed));
        simulate(&pipeline, &mut run, &all, &plain);
        assert_eq!(run.state, State::Succeeded, "{}: {:?}", path.display(), run.error);
    }
}

#[test]
fn a_condition_takes_one_branch_and_oneof_its_output() {
    let Some(pipeline) = sample("if_else_with_oneof_parameters.yaml") else { return };
    for (coin, taken, left, said) in [("heads", 2, 3, "Got heads!"), ("tails", 3, 2, "Got tails!")] {
        let mut run = run_of(&pipeline, json!({}));
        simulate(&pipeline, &mut run, &all, &|task, _| {
            Some(if task.name == "flip-coin" { json!(coin) } else { task.inputs.parameters["text"].clone() })
        });
        assert_eq!(run.state, State::Succeeded, "{:?}", run.error);
        assert_eq!(state(&run, &format!("condition-branches-1.condition-{taken}")), State::Succeeded);
        assert_eq!(state(&run, &format!("condition-branches-1.condition-{left}")), State::Skipped);
        assert_eq!(leaf(&run, "print-and-return-3").inputs.parameters["text"], said);
    }
}

#[test]
fn a_loop_runs_each_item_within_its_limit_and_collects_in_order() {
    let pipeline = pipeline(
        "
      loop:
        componentRef: {name: comp-loop}
        inputs: {parameters: {items: {componentInputParameter: items}}}
        parameterIterator: {itemInput: item, items: {inputParameter: items}}
        iteratorPolicy: {parallelismLimit: 2}
      after:
        componentRef: {name: comp-list}
        inputs:
          parameters: {all: {taskOutputParameter: {producerTask: loop, outputParameterKey: said}}}
          artifacts: {datas: {taskOutputArtifact: {producerTask: loop, outputArtifactKey: datas}}}
",
        "
  comp-loop:
    inputDefinitions: {parameters: {items: {parameterType: LIST}, item: {parameterType: NUMBER_INTEGER}}}
    outputDefinitions: {parameters: {said: {parameterType: LIST}}, artifacts: {datas: {artifactType: {schemaTitle: system.Dataset}, isArtifactList: true}}}
    dag:
      outputs:
        parameters: {said: {valueFromParameter: {producerSubtask: say, outputParameterKey: out}}}
        artifacts: {datas: {artifactSelectors: [{producerSubtask: say, outputArtifactKey: data}]}}
      tasks: {say: {componentRef: {name: comp-echo}, inputs: {parameters: {n: {componentInputParameter: item}}}}}
  comp-list:
    executorLabel: exec-echo
    inputDefinitions: {parameters: {all: {parameterType: LIST}}, artifacts: {datas: {artifactType: {schemaTitle: system.Dataset}, isArtifactList: true}}}
",
    );
    let mut run = run_of(&pipeline, json!({"items": [7, 8, 9]}));
    plan::advance(&pipeline, &mut run);
    let open = run.tasks.values().filter(|t| t.is_leaf()).count();
    assert_eq!(open, 2, "the limit is two at a time");
    simulate(&pipeline, &mut run, &all, &|task, _| Some(json!(format!("said {}", task.inputs.parameters["n"]))));
    assert_eq!(run.state, State::Succeeded, "{:?}", run.error);
    let after = leaf(&run, "after");
    assert_eq!(after.inputs.parameters["all"], json!(["said 7", "said 8", "said 9"]));
    let paths: Vec<&str> = after.inputs.artifacts["datas"].iter().map(|a| a.name.as_str()).collect();
    assert_eq!(paths, ["root.loop#0.say/data", "root.loop#1.say/data", "root.loop#2.say/data"]);

    let mut empty = run_of(&pipeline, json!({"items": []}));
    simulate(&pipeline, &mut empty, &all, &plain);
    assert_eq!(empty.state, State::Succeeded);
    assert_eq!(leaf(&empty, "after").inputs.parameters["all"], json!([]));
}

#[test]
fn nested_loops_give_lists_of_lists() {
    let Some(pipeline) = sample("nested_with_parameters.yaml") else { return };
    let mut run = run_of(&pipeline, json!({}));
    simulate(&pipeline, &mut run, &all, &|task, _| {
        Some(task.inputs.parameters.get("num").cloned().unwrap_or(json!(5)))
    });
    assert_eq!(run.state, State::Succeeded, "{:?}", run.error);
    let add = run.tasks.values().find(|t| t.inputs.parameters.contains_key("nums")).unwrap();
    assert!(add.inputs.parameters["nums"][0].is_array(), "{}", add.inputs.parameters["nums"]);
}

#[test]
fn an_exit_task_runs_after_a_failure_and_knows_of_it() {
    let Some(pipeline) = sample("pipeline_with_task_final_status.yaml") else { return };
    let mut run = run_of(&pipeline, json!({}));
    let order = simulate(&pipeline, &mut run, &|t| !t.name.starts_with("fail"), &plain);
    assert_eq!(run.state, State::Failed);
    let exit = run
        .tasks
        .values()
        .find(|t| t.parent_id == run.tasks.values().next().map(|r| r.id.clone()) && t.is_leaf())
        .unwrap();
    assert_eq!(exit.state, State::Succeeded);
    assert_eq!(order.last().map(String::as_str), Some(plan::shown_path(exit)));
    let status = exit.inputs.parameters.values().find(|v| v.is_object()).unwrap();
    assert_eq!(status["state"], "FAILED");
    assert_eq!(status["pipelineTaskName"], "exit-handler-1");
    let why = run.error.clone().unwrap().message;
    assert!(why.contains("exit-handler-1.fail") && why.contains("exit code 1"), "{why}");
}

#[test]
fn a_failure_stops_what_depends_on_it_and_nothing_else_and_a_retry_goes_on_there() {
    let pipeline = pipeline(
        "
      a: {componentRef: {name: comp-echo}}
      b: {componentRef: {name: comp-echo}, dependentTasks: [a]}
      c: {componentRef: {name: comp-echo}, dependentTasks: [b]}
      d: {componentRef: {name: comp-echo}}
",
        "",
    );
    let mut run = run_of(&pipeline, json!({}));
    simulate(&pipeline, &mut run, &|t| t.name != "b", &plain);
    assert_eq!(run.state, State::Failed);
    assert_eq!(
        (state(&run, "a"), state(&run, "b"), state(&run, "c"), state(&run, "d")),
        (State::Succeeded, State::Failed, State::Skipped, State::Succeeded)
    );
    let first_pod = pod_name(&run.pipeline_name, &run.id, leaf(&run, "b"));

    let (_, removed) = plan::retry(&mut run);
    assert_eq!(removed, [task_id("r1", "root.c")]);
    let order = simulate(&pipeline, &mut run, &all, &plain);
    assert_eq!(order, ["b", "c"], "what had succeeded is not run again");
    assert_eq!(run.state, State::Succeeded);
    assert_ne!(pod_name(&run.pipeline_name, &run.id, leaf(&run, "b")), first_pod, "a new attempt has a pod of its own");
}

#[test]
fn an_optional_input_without_a_value_is_left_out_and_a_required_one_fails_its_step() {
    let with = pipeline(
        "\n      a: {componentRef: {name: comp-echo}, inputs: {parameters: {text: {componentInputParameter: maybe}}}}\n",
        "",
    );
    let mut run = run_of(&with, json!({}));
    simulate(&with, &mut run, &all, &plain);
    assert!(!leaf(&run, "a").inputs.parameters.contains_key("text"));
    let strict = pipeline(
        "\n      a: {componentRef: {name: comp-strict}, inputs: {parameters: {text: {componentInputParameter: maybe}}}}\n",
        "  comp-strict: {executorLabel: exec-echo, inputDefinitions: {parameters: {text: {parameterType: STRING}}}}",
    );
    let mut run = run_of(&strict, json!({}));
    plan::advance(&strict, &mut run);
    assert_eq!(run.state, State::Failed);
    assert!(run.error.clone().unwrap().message.contains("input text"), "{:?}", run.error);
}

#[test]
fn f_strings_and_job_placeholders_become_values() {
    let pipeline = pipeline(
        r#"
      a:
        componentRef: {name: comp-two}
        inputs:
          parameters:
            pipelinechannel--items: {componentInputParameter: items}
            text: {runtimeValue: {constant: "{{$.inputs.parameters['pipelinechannel--items']}} of {{$.pipeline_job_uuid}} {{$.pipeline_job_name}}"}}
"#,
        "  comp-two: {executorLabel: exec-echo, inputDefinitions: {parameters: {text: {parameterType: STRING}, pipelinechannel--items: {parameterType: LIST}}}}",
    );
    let mut run = run_of(&pipeline, json!({"items": [1, 2.0]}));
    plan::advance(&pipeline, &mut run);
    assert_eq!(leaf(&run, "a").inputs.parameters["text"], "[1,2] of r1 a run");
}

#[test]
fn pod_names_are_valid_and_differ_by_task_and_attempt() {
    let pipeline =
        pipeline("\n      a: {componentRef: {name: comp-echo}}\n      b: {componentRef: {name: comp-echo}}\n", "");
    let mut run = run_of(&pipeline, json!({}));
    plan::advance(&pipeline, &mut run);
    let long = "Ünïcode Pipeline Name--that is much longer than a label may be, with / and .";
    let (a, mut b) = (leaf(&run, "a").clone(), leaf(&run, "b").clone());
    let names = [pod_name(long, "0-run", &a), pod_name(long, "0-run", &b), pod_name("---", "0-run", &a), {
        b.attempt = 1;
        pod_name(long, "0-run", &b)
    }];
    for (n, name) in names.iter().enumerate() {
        assert!(crate::rest::is_label(name), "{name}");
        assert!(!names[..n].contains(name), "{name}");
    }
}

#[test]
fn the_runs_id_stands_where_compilers_for_argo_ask_for_it() {
    let container = json!({"image": "i", "command": ["echo", "{{workflow.uid}}", "{{workflow.name}}"],
        "env": [{"name": "ELYRA_RUN_NAME", "value": "run {{workflow.uid}}"}]});
    let pipeline_spec = json!({
        "pipelineInfo": {"name": "p"}, "schemaVersion": "2.1.0",
        "components": {"comp-a": {"executorLabel": "exec-a"}},
        "deploymentSpec": {"executors": {"exec-a": {"container": container}}},
        "root": {"dag": {"tasks": {"a": {"componentRef": {"name": "comp-a"}, "taskInfo": {"name": "a"}}}}},
    });
    let documents = spec::Documents { pipeline_spec, platform_spec: None };
    let pipeline = Pipeline::of_run(documents.clone(), "r-1").unwrap();
    let Some(spec::Body::Container(container)) = pipeline.body(pipeline.component("comp-a").unwrap()) else { panic!() };
    assert_eq!(container.command, ["echo", "r-1", "{{workflow.name}}"]);
    assert_eq!(container.env[0].value, "run r-1");
    // What is stored, and given back to who asks for it, stays as it was uploaded.
    assert_eq!(Pipeline::parse(documents.clone()).unwrap().documents, documents);
}
