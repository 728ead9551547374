//! A step's container once more, for somebody who wants to look into it: the same image, inputs and settings, in a pod
//! that waits instead of running the command. It is no attempt of the step: the engine does not watch it, and what it
//! writes goes nowhere. Invariant: its token opens only the step's inputs, and only while the pod exists.

use super::{Engine, actor, mailbox::Assignment, model::Kind, pod, steps};
use crate::{
    error::{ApiError, ApiResult, Code},
    roots::part,
    spec::{Body, Pipeline},
    store::RunRow,
};
use hmac::{Hmac, KeyInit, Mac};
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::api::{Api, PostParams};
use sha2::Sha256;

/// Says of which task a pod is the container once more.
const DEBUG_LABEL: &str = "pipelines.kfbox.local/debugs";

/// Where the shell is to be opened.
pub(crate) struct DebugPod {
    pub namespace: String,
    pub name: String,
}

impl Engine {
    /// Creates the pod; it ends by itself after `deadline` seconds.
    pub(crate) async fn debug(&self, row: &RunRow, task_id: &str, deadline: i64) -> ApiResult<DebugPod> {
        let run = actor::load(&self.core, row).await?;
        let task = run.tasks.get(task_id).ok_or_else(|| ApiError::not_found("step", task_id))?;
        let refused = |why: &str| Err(ApiError::new(Code::FailedPrecondition, format!("{}: {why}", task.display_name)));
        if task.kind != Kind::Container {
            return refused("only a step that runs in a container can be looked into");
        }
        if task.cached_from.is_some() {
            return refused(
                "its outputs were reused from the cache, and it has had no container; run it without caching",
            );
        }
        if task.command.is_empty() {
            return refused("it has had no container");
        }
        let pipeline =
            Pipeline::of_run(row.spec.clone(), &row.id).map_err(|e| ApiError::invalid(format!("its pipeline: {e}")))?;
        let Some(Body::Container(container)) = pipeline.component(&task.component).and_then(|c| pipeline.body(c))
        else {
            return refused("its executor is not in the pipeline any more");
        };
        let parent = task.parent_id.as_ref().and_then(|id| run.tasks.get(id));
        let parent = match (parent, task.iteration) {
            (Some(p), Some(_)) => p.parent_id.as_ref().and_then(|id| run.tasks.get(id)),
            (parent, _) => parent,
        };
        let parent = parent.ok_or_else(|| ApiError::not_found("the DAG of step", task_id))?;
        let nonce: String = hex::encode(uuid::Uuid::new_v4().as_bytes()).chars().take(16).collect();
        let input = steps::executor_input(&pipeline, &run, task);
        let scope = pod::Scope { run: &run, parent, task, input: &input };
        let token = self.debug_token(&row.id, task_id, &nonce);
        let mut pod = pod::build(&self.core.config, &pipeline, &scope, container, &token).map_err(ApiError::invalid)?;
        let name = debug_name(&task.name, &nonce);
        pod.metadata.name = Some(name.clone());
        let labels = pod.metadata.labels.get_or_insert_default();
        for engines_own in [pod::RUN_LABEL, pod::COMPONENT_LABEL, pod::TASK_LABEL] {
            labels.remove(engines_own);
        }
        labels.insert(DEBUG_LABEL.into(), task_id.to_owned());
        if let Some(spec) = &mut pod.spec {
            spec.active_deadline_seconds = Some(deadline);
            let address = self.core.config.task_api_url.trim_end_matches('/');
            let url = format!("{address}/v1/debug/{}/{task_id}/{nonce}", row.id);
            let own = |e: &&mut EnvVar| e.name == "KFBOX_TASK_URL";
            if let Some(variable) = spec.containers.iter_mut().flat_map(|c| c.env.iter_mut().flatten()).find(own) {
                variable.value = Some(url);
            }
        }
        let pods: Api<Pod> = Api::namespaced(self.core.deps.client.clone(), &row.namespace);
        pods.create(&PostParams::default(), &pod).await.map_err(|error| match error {
            kube::Error::Api(status) if (400..500).contains(&status.code) => {
                ApiError::new(Code::FailedPrecondition, format!("the pod was refused: {}", status.message))
            }
            other => ApiError::internal("creating the pod", other),
        })?;
        Ok(DebugPod { namespace: row.namespace.clone(), name })
    }

    /// What the pod may read. `None` once it is gone.
    pub(crate) async fn debug_assignment(
        &self,
        run_id: &str,
        task_id: &str,
        nonce: &str,
    ) -> ApiResult<Option<Assignment>> {
        let Some(row) = self.core.store.run(run_id).await? else { return Ok(None) };
        let run = actor::load(&self.core, &row).await?;
        let Some(task) = run.tasks.get(task_id).filter(|t| !t.command.is_empty()) else { return Ok(None) };
        let pods: Api<Pod> = Api::namespaced(self.core.deps.client.clone(), &row.namespace);
        let pod = pods.get_opt(&debug_name(&task.name, nonce)).await;
        let pod = pod.map_err(|e| ApiError::internal("looking the pod up", e))?;
        if pod.is_none_or(|p| p.metadata.deletion_timestamp.is_some()) {
            return Ok(None);
        }
        let Ok(pipeline) = Pipeline::of_run(row.spec, run_id) else { return Ok(None) };
        Ok(Some(actor::assignment(&pipeline, &run, task)))
    }

    /// Opens the inputs of one task for one pod.
    pub(crate) fn debug_token(&self, run_id: &str, task_id: &str, nonce: &str) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(self.core.store.key.as_slice());
        let mut mac = mac.unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(format!("debug token\n{run_id}\n{task_id}\n{nonce}").as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }
}

fn debug_name(task: &str, nonce: &str) -> String {
    let step: String = part(task).to_ascii_lowercase().replace(['.', '_'], "-").chars().take(30).collect();
    format!("debug-{}-{nonce}", step.trim_matches('-')).replace("--", "-")
}
