//! Runs as ML Metadata: the contexts, executions, artifacts and events that upstream's driver and launcher write
//! (kubeflow/pipelines `backend/src/v2/metadata/client.go`).

use futures::future::BoxFuture;
use kfbox_base::BoxError;
use kfbox_metadata::{
    Scope, Store, names,
    proto::{
        Artifact, ArtifactType, Context, ContextType, Event, Execution, ExecutionType, PropertyType,
        PutExecutionRequest, Value, artifact, event, execution, put_execution_request::ArtifactAndEvent, value,
    },
};
use kfbox_pipelines::{ExecutionState, Lineage, LineageContexts, LineageExecution, LineageResult, LineageRun};
use serde_json::Value as Json;
use std::collections::BTreeMap;

pub struct Recorded(pub Store);

impl Lineage for Recorded {
    fn begin_run<'a>(&'a self, run: &'a LineageRun) -> BoxFuture<'a, Result<LineageContexts, BoxError>> {
        Box::pin(async move {
            let scope = Scope::namespace(&run.namespace);
            let types = [names::CONTEXT_PIPELINE, names::CONTEXT_PIPELINE_RUN]
                .map(|name| ContextType { name: Some(name.into()), ..ContextType::default() });
            let ids = self.0.put_types(&scope, vec![], vec![], types.to_vec()).await?.context_type_ids;
            let [pipeline_type, run_type] = ids[..] else { return Err("types were not stored".into()) };
            let pipeline_name = format!("{}/{}", run.namespace, run.pipeline_name);
            let pipeline =
                self.context(&scope, names::CONTEXT_PIPELINE, pipeline_type, &pipeline_name, BTreeMap::new()).await?;
            let properties = BTreeMap::from([
                ("namespace".to_owned(), text(&run.namespace)),
                ("resource_name".to_owned(), text(&run.resource_name)),
                ("pipeline_root".to_owned(), text(&run.pipeline_root)),
            ]);
            let run_context =
                self.context(&scope, names::CONTEXT_PIPELINE_RUN, run_type, &run.run_id, properties).await?;
            let parents = self.0.parents(&scope, run_context).await?;
            if !parents.iter().any(|p| p.id == Some(pipeline)) {
                self.0.put_parents(&scope, vec![(run_context, pipeline)]).await?;
            }
            Ok(LineageContexts { pipeline, run: run_context })
        })
    }

    fn begin_execution<'a>(&'a self, begun: &'a LineageExecution) -> BoxFuture<'a, Result<i64, BoxError>> {
        Box::pin(async move {
            let scope = Scope::namespace(&begun.namespace);
            let type_name = begun.kind.type_name();
            // A daemon that was killed in between asks again.
            if let Some(known) = self.0.execution_by_name(&scope, type_name, &begun.name).await? {
                return known.id.ok_or_else(|| "an execution without an id".into());
            }
            let kind = ExecutionType { name: Some(type_name.into()), ..ExecutionType::default() };
            let ids = self.0.put_types(&scope, vec![], vec![kind], vec![]).await?.execution_type_ids;
            let type_id = ids.first().copied();
            let execution = Execution {
                name: Some(begun.name.clone()),
                type_id,
                last_known_state: Some(execution::State::Running as i32),
                custom_properties: begun.custom_properties.iter().map(|(k, v)| (k.clone(), value(v))).collect(),
                ..Execution::default()
            };
            let inputs = begun.inputs.iter().flat_map(|(name, ids)| ids.iter().map(move |id| (name, *id)));
            let pairs = inputs.map(|(name, id)| ArtifactAndEvent {
                artifact: None,
                event: Some(Event { artifact_id: Some(id), ..made(name, event::Type::Input) }),
            });
            let request = PutExecutionRequest {
                execution: Some(execution),
                artifact_event_pairs: pairs.collect(),
                contexts: vec![by_id(begun.contexts.pipeline), by_id(begun.contexts.run)],
                ..PutExecutionRequest::default()
            };
            let stored = self.0.put_execution(&scope, request).await?;
            stored.execution_id.ok_or_else(|| "the execution was not stored".into())
        })
    }

    fn finish_execution<'a>(&'a self, ended: &'a LineageResult) -> BoxFuture<'a, Result<Vec<i64>, BoxError>> {
        Box::pin(async move {
            let scope = Scope::namespace(&ended.namespace);
            let found = self.0.executions(&scope, vec![ended.execution]).await?.into_iter().next();
            let mut execution = found.ok_or("the execution is not there")?;
            // Ending twice records nothing twice: the outputs that are there are the answer.
            let events = self.0.events_of_executions(&scope, vec![ended.execution]).await?;
            let outputs: Vec<i64> =
                events.iter().filter(|e| e.r#type() == event::Type::Output).filter_map(|e| e.artifact_id).collect();
            let state = match ended.state {
                ExecutionState::Complete => execution::State::Complete,
                ExecutionState::Failed => execution::State::Failed,
                ExecutionState::Cached => execution::State::Cached,
                ExecutionState::Canceled => execution::State::Canceled,
            } as i32;
            if execution.last_known_state == Some(state) && outputs.len() == ended.artifacts.len() {
                return Ok(outputs);
            }
            execution.last_known_state = Some(state);
            execution.custom_properties.insert("outputs".into(), value(&Json::Object(ended.output_parameters.clone())));

            let types = ended.artifacts.iter().map(|a| ArtifactType {
                name: Some(a.schema_title.clone()),
                properties: BTreeMap::from([("display_name".to_owned(), PropertyType::String as i32)]),
                ..ArtifactType::default()
            });
            let type_ids = self.0.put_types(&scope, types.collect(), vec![], vec![]).await?.artifact_type_ids;
            let pairs = ended.artifacts.iter().zip(type_ids).map(|(a, type_id)| match a.id {
                Some(id) => ArtifactAndEvent {
                    artifact: None,
                    event: Some(Event { artifact_id: Some(id), ..made(&a.output, event::Type::Output) }),
                },
                None => {
                    let mut custom: BTreeMap<_, _> = a.metadata.iter().map(|(k, v)| (k.clone(), value(v))).collect();
                    custom.entry("display_name".to_owned()).or_insert_with(|| text(&a.output));
                    ArtifactAndEvent {
                        artifact: Some(Artifact {
                            type_id: Some(type_id),
                            uri: Some(a.uri.clone()),
                            custom_properties: custom,
                            state: Some(artifact::State::Live as i32),
                            ..Artifact::default()
                        }),
                        event: Some(made(&a.output, event::Type::Output)),
                    }
                }
            });
            let request = PutExecutionRequest {
                execution: Some(execution),
                artifact_event_pairs: pairs.collect(),
                contexts: vec![by_id(ended.contexts.pipeline), by_id(ended.contexts.run)],
                ..PutExecutionRequest::default()
            };
            Ok(self.0.put_execution(&scope, request).await?.artifact_ids)
        })
    }
}

impl Recorded {
    /// The context's id; made if it is not there.
    async fn context(
        &self,
        scope: &Scope,
        type_name: &str,
        type_id: i64,
        name: &str,
        custom_properties: BTreeMap<String, Value>,
    ) -> Result<i64, BoxError> {
        if let Some(known) = self.0.context_by_name(scope, type_name, name).await? {
            return known.id.ok_or_else(|| "a context without an id".into());
        }
        let context =
            Context { name: Some(name.into()), type_id: Some(type_id), custom_properties, ..Context::default() };
        let ids = self.0.put_contexts(scope, vec![context]).await?;
        ids.first().copied().ok_or_else(|| "the context was not stored".into())
    }
}

fn by_id(id: i64) -> Context {
    Context { id: Some(id), ..Context::default() }
}

fn made(name: &str, kind: event::Type) -> Event {
    Event {
        r#type: Some(kind as i32),
        path: Some(event::Path {
            steps: vec![event::path::Step { value: Some(event::path::step::Value::Key(name.into())) }],
        }),
        ..Event::default()
    }
}

fn text(text: &str) -> Value {
    Value { value: Some(value::Value::StringValue(text.into())) }
}

/// JSON as a property: strings, booleans and numbers as themselves, what is nested as JSON text in a struct.
fn value(json: &Json) -> Value {
    let value = match json {
        Json::String(text) => value::Value::StringValue(text.clone()),
        Json::Bool(flag) => value::Value::BoolValue(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => value::Value::IntValue(integer),
            None => value::Value::DoubleValue(number.as_f64().unwrap_or_default()),
        },
        Json::Object(fields) => value::Value::StructValue(structure(fields)),
        other => {
            value::Value::StructValue(structure(&serde_json::Map::from_iter([("list".to_owned(), other.clone())])))
        }
    };
    Value { value: Some(value) }
}

fn structure(fields: &serde_json::Map<String, Json>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.iter().map(|(k, v)| (k.clone(), any(v))).collect() }
}

fn any(json: &Json) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(*flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(prost_types::ListValue { values: items.iter().map(any).collect() }),
        Json::Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}
