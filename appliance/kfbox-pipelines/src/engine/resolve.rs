//! From a task's declared inputs to values (`backend/src/v2/driver/resolve.go` upstream). Pure.

use super::model::{Io, Kind, RunState, State, Task, task_id};
use crate::{
    spec::{
        Pipeline, expression,
        ir::{
            ComponentSpec, DagOutputParameter, DagSpec, InputParameter, ParameterItems, ParameterType, RuntimeValue,
            TaskSpec,
        },
        value,
    },
    time,
};
use serde_json::{Map, Value, json};

pub(super) fn child<'a>(run: &'a RunState, parent: &Task, name: &str) -> Option<&'a Task> {
    run.tasks.get(&task_id(&run.id, &format!("{}.{name}", parent.path)))
}

/// The name that upstream's workflow object would have.
pub(super) fn resource_name(run: &RunState) -> String {
    format!("{}-{}", run.pipeline_name, run.id.chars().take(5).collect::<String>())
}

/// What the constant placeholders stand for, inside any text.
pub(super) fn substitute(text: &str, run: &RunState, task_name: &str, task_id: &str) -> String {
    if !text.contains("{{$.") {
        return text.to_owned();
    }
    [
        ("{{$.pipeline_job_name}}", run.display_name.clone()),
        ("{{$.pipeline_job_resource_name}}", resource_name(run)),
        ("{{$.pipeline_job_uuid}}", run.id.clone()),
        ("{{$.pipeline_task_name}}", task_name.to_owned()),
        ("{{$.pipeline_task_uuid}}", task_id.to_owned()),
        ("{{$.pipeline_job_create_time_utc}}", time::format(run.created_at)),
        ("{{$.pipeline_job_schedule_time_utc}}", time::format(run.scheduled_at)),
        ("{{$.pipeline_root}}", run.pipeline_root.clone()),
        ("{{$.workspace_path}}", super::pod::WORKSPACE.to_owned()),
    ]
    .iter()
    .fold(text.to_owned(), |text, (placeholder, with)| text.replace(placeholder, with))
}

fn constant(from: &RuntimeValue, run: &RunState, task_name: &str, task_id: &str) -> Option<Value> {
    if let Some(name) = &from.runtime_parameter {
        return run.parameters.get(name).cloned();
    }
    let value = match (&from.constant, &from.constant_value) {
        (Some(value), _) => value.clone(),
        (None, Some(old)) => ["stringValue", "intValue", "doubleValue"].iter().find_map(|k| old.get(k)).cloned()?,
        (None, None) => return None,
    };
    Some(match value {
        Value::String(text) => Value::String(substitute(&text, run, task_name, task_id)),
        other => other,
    })
}

/// One parameter's value; `None` when its source holds nothing, which only an optional input accepts.
pub(super) fn parameter(
    run: &RunState,
    parent: &Task,
    from: &InputParameter,
    task_name: &str,
    task_id: &str,
) -> Result<Option<Value>, String> {
    let found = if let Some(name) = &from.component_input_parameter {
        parent.inputs.parameters.get(name).cloned()
    } else if let Some(output) = &from.task_output_parameter {
        child(run, parent, &output.producer_task)
            .and_then(|t| t.outputs.parameters.get(&output.output_parameter_key))
            .cloned()
    } else if let Some(runtime) = &from.runtime_value {
        constant(runtime, run, task_name, task_id)
    } else if let Some(status) = &from.task_final_status {
        child(run, parent, &status.producer_task).map(|producer| final_status(run, producer))
    } else {
        None
    };
    let Some(found) = found.filter(|v| !v.is_null()) else { return Ok(None) };
    if from.parameter_expression_selector.is_empty() {
        return Ok(Some(found));
    }
    expression::select(&found, &from.parameter_expression_selector)
        .map(Some)
        .map_err(|e| format!("the selector `{}` failed: {e}", from.parameter_expression_selector))
}

fn source_words(from: &InputParameter) -> String {
    if let Some(name) = &from.component_input_parameter {
        format!("the input {name} of its pipeline has no value")
    } else if let Some(output) = &from.task_output_parameter {
        format!("{} gave no output {}", output.producer_task, output.output_parameter_key)
    } else {
        "its value is null".into()
    }
}

/// `PipelineTaskFinalStatus`, in ML Metadata's words for the state, as upstream.
fn final_status(run: &RunState, producer: &Task) -> Value {
    let state = match producer.state {
        State::Failed => "FAILED",
        State::Canceled | State::Skipped => "CANCELED",
        _ => "COMPLETE",
    };
    let error = producer.error.as_ref().map_or_else(|| json!({}), |e| json!({"code": e.code, "message": e.message}));
    json!({
        "state": state,
        "error": error,
        "pipelineJobResourceName": resource_name(run),
        "pipelineTaskName": producer.name,
    })
}

/// All inputs of a task, checked against its component. For a loop this is what its iterations share.
pub(super) fn inputs(
    run: &RunState,
    parent: &Task,
    name: &str,
    task: &TaskSpec,
    component: &ComponentSpec,
) -> Result<Io, String> {
    let id = task_id(&run.id, &format!("{}.{name}", parent.path));
    let mut io = Io::default();
    let definitions = &component.input_definitions;
    for (input, from) in &task.inputs.parameters {
        let optional = definitions.parameters.get(input).is_none_or(|d| d.is_optional || d.default_value.is_some());
        match parameter(run, parent, from, name, &id).map_err(|why| format!("input {input}: {why}"))? {
            Some(value) => drop(io.parameters.insert(input.clone(), value)),
            None if optional => {}
            None => return Err(format!("input {input}: {}", source_words(from))),
        }
    }
    let constant = |input: &str| task.inputs.parameters.get(input).is_some_and(is_constant);
    own_references(&mut io.parameters, constant);
    let item = task.parameter_iterator.as_ref().map(|i| i.item_input.as_str());
    for (input, definition) in &definitions.parameters {
        if Some(input.as_str()) == item {
            continue;
        }
        match io.parameters.remove(input) {
            Some(value) => {
                let value = value::coerce(value, definition).map_err(|why| format!("input {input}: {why}"))?;
                io.parameters.insert(input.clone(), value);
            }
            None => match &definition.default_value {
                Some(value) if !value.is_null() => drop(io.parameters.insert(
                    input.clone(),
                    value::coerce(value.clone(), definition).map_err(|why| format!("input {input}: {why}"))?,
                )),
                _ if definition.is_optional => {
                    // Inside a DAG an omitted optional input is null, so that its tasks can tell.
                    if component.dag.is_some() {
                        io.parameters.insert(input.clone(), Value::Null);
                    }
                }
                // Known when the step is prepared.
                _ if value::declared(definition) == ParameterType::TaskConfig => {}
                _ => return Err(format!("input {input}: it is required and has no value")),
            },
        }
    }
    for (input, from) in &task.inputs.artifacts {
        let found = if let Some(name) = &from.component_input_artifact {
            parent.inputs.artifacts.get(name)
        } else {
            let output = from.task_output_artifact.as_ref();
            output.and_then(|o| child(run, parent, &o.producer_task)?.outputs.artifacts.get(&o.output_artifact_key))
        };
        let definition = definitions.artifacts.get(input);
        match found {
            Some(list) => drop(io.artifacts.insert(input.clone(), list.clone())),
            None if definition.is_some_and(|d| d.is_optional) => {}
            None if definition.is_some_and(|d| d.is_artifact_list) => {
                drop(io.artifacts.insert(input.clone(), Vec::new()))
            }
            None => {
                let from = from.task_output_artifact.as_ref();
                return Err(match from {
                    Some(o) => format!("input {input}: {} gave no artifact {}", o.producer_task, o.output_artifact_key),
                    None => format!("input {input}: its pipeline was given no such artifact"),
                });
            }
        }
    }
    Ok(io)
}

/// Whether the pipeline itself says the value, and neither a run's arguments nor a step.
fn is_constant(from: &InputParameter) -> bool {
    from.component_input_parameter.is_none()
        && from.task_output_parameter.is_none()
        && from.runtime_value.as_ref().is_some_and(|value| value.runtime_parameter.is_none())
}

/// f-strings of the SDK become constants such as `a-{{$.inputs.parameters['x']}}` beside the input `x` itself. What comes from
/// elsewhere is data, also where it looks like that.
fn own_references(parameters: &mut Map<String, Value>, constant: impl Fn(&str) -> bool) {
    let values = parameters.clone();
    for (name, value) in parameters.iter_mut() {
        if let Value::String(text) = value
            && constant(name)
            && text.contains("{{$.inputs.parameters[")
        {
            *text = super::placeholders::replace(text, &|inner| {
                let name = super::placeholders::quoted(inner.strip_prefix("inputs.parameters[")?.strip_suffix(']')?)?;
                values.get(name).map(value::text)
            });
        }
    }
}

/// What a loop runs over: for each iteration its own inputs.
pub(super) fn iterations(task: &TaskSpec, component: &ComponentSpec, shared: &Io) -> Result<Vec<Io>, String> {
    if let Some(iterator) = &task.parameter_iterator {
        let items = match &iterator.items {
            ParameterItems::Raw(raw) => value::items(&Value::String(raw.clone()))?,
            ParameterItems::InputParameter(name) => value::items(
                shared.parameters.get(name).ok_or_else(|| format!("the loop's items {name} have no value"))?,
            )?,
        };
        let definition = component.input_definitions.parameters.get(&iterator.item_input);
        return items
            .into_iter()
            .map(|item| {
                let mut io = shared.clone();
                let item = match definition {
                    Some(definition) => value::coerce(item, definition).map_err(|why| format!("a loop item: {why}"))?,
                    None => item,
                };
                io.parameters.insert(iterator.item_input.clone(), item);
                Ok(io)
            })
            .collect();
    }
    let Some(iterator) = &task.artifact_iterator else { return Ok(vec![shared.clone()]) };
    let list = shared.artifacts.get(&iterator.items.input_artifact).cloned().unwrap_or_default();
    Ok(list
        .into_iter()
        .map(|artifact| {
            let mut io = shared.clone();
            io.artifacts.insert(iterator.item_input.clone(), vec![artifact]);
            io
        })
        .collect())
}

/// What a DAG gives out, from its tasks. What no task gave is left out.
pub(super) fn dag_outputs(run: &RunState, parent: &Task, dag: &DagSpec, component: &ComponentSpec) -> Io {
    let mut io = Io::default();
    for (name, from) in &dag.outputs.parameters {
        let of = |task: &str, key: &str| child(run, parent, task).and_then(|t| t.outputs.parameters.get(key)).cloned();
        let found = match from {
            DagOutputParameter::ValueFromParameter(s) => of(&s.producer_subtask, &s.output_parameter_key),
            DagOutputParameter::ValueFromOneof(all) => {
                all.parameter_selectors.iter().find_map(|s| of(&s.producer_subtask, &s.output_parameter_key))
            }
        };
        if let Some(value) = found {
            io.parameters.insert(name.clone(), value);
        }
    }
    for (name, from) in &dag.outputs.artifacts {
        let list = component.output_definitions.artifacts.get(name).is_some_and(|d| d.is_artifact_list);
        let mut found = Vec::new();
        for selector in &from.artifact_selectors {
            let producer = child(run, parent, &selector.producer_subtask);
            let artifacts = producer.and_then(|t| t.outputs.artifacts.get(&selector.output_artifact_key));
            // Several selectors of one artifact are a OneOf: the branch that ran wins.
            if let Some(artifacts) = artifacts
                && (list || found.is_empty())
            {
                found.extend(artifacts.iter().cloned());
            }
        }
        if !found.is_empty() || list {
            io.artifacts.insert(name.clone(), found);
        }
    }
    io
}

/// What a loop gives out: each output of its iterations, in their order. Nested loops give lists of lists for
/// parameters and one flat list for artifacts, as the SDK's `Collected` expects.
pub(super) fn loop_outputs(pipeline: &Pipeline, component: &ComponentSpec, iterations: &[&Task]) -> Io {
    let dag = pipeline.body(component).and_then(|b| if let crate::spec::Body::Dag(d) = b { Some(d) } else { None });
    let mut io = Io::default();
    let parameters =
        component.output_definitions.parameters.keys().chain(dag.into_iter().flat_map(|d| d.outputs.parameters.keys()));
    for name in parameters {
        let values: Vec<Value> = iterations.iter().filter_map(|t| t.outputs.parameters.get(name)).cloned().collect();
        io.parameters.insert(name.clone(), Value::Array(values));
    }
    let artifacts =
        component.output_definitions.artifacts.keys().chain(dag.into_iter().flat_map(|d| d.outputs.artifacts.keys()));
    for name in artifacts {
        let all = iterations.iter().filter_map(|t| t.outputs.artifacts.get(name)).flatten().cloned().collect();
        io.artifacts.insert(name.clone(), all);
    }
    io
}

/// A loop node, as opposed to one of its iterations.
pub(super) fn is_loop(task: &TaskSpec) -> bool {
    task.parameter_iterator.is_some() || task.artifact_iterator.is_some()
}

pub(super) fn kind(pipeline: &Pipeline, component: &ComponentSpec) -> Kind {
    match pipeline.body(component) {
        Some(crate::spec::Body::Importer(_)) => Kind::Importer,
        Some(crate::spec::Body::Container(_)) => Kind::Container,
        _ => Kind::Dag,
    }
}
