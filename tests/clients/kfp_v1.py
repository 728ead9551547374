#!/usr/bin/env python3
"""Calls every method of kfp 1.8's API client against a box, checks each answer, and prints which methods it called."""
import argparse
import base64
import inspect
import json
import tempfile
import time

import kfp_server_api as api
from kfp_server_api.rest import ApiException

PACKAGE = """
pipelineInfo: {name: from-v1}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
components:
  comp-write:
    executorLabel: exec-write
    inputDefinitions:
      parameters: {text: {parameterType: STRING}, code: {parameterType: NUMBER_INTEGER}, seconds: {parameterType: NUMBER_INTEGER}}
    outputDefinitions: {artifacts: {data: {artifactType: {schemaTitle: system.Artifact, schemaVersion: 0.0.1}}}}
deploymentSpec:
  executors:
    exec-write:
      container:
        image: python:3.11
        command: [sh, -c, 'mkdir -p "$(dirname "$1")"; printf %s "$0" >"$1"; sleep "$3"; exit "$2"']
        args:
        - "{{$.inputs.parameters['text']}}"
        - "{{$.outputs.artifacts['data'].path}}"
        - "{{$.inputs.parameters['code']}}"
        - "{{$.inputs.parameters['seconds']}}"
root:
  inputDefinitions:
    parameters:
      text: {parameterType: STRING, defaultValue: hello}
      code: {parameterType: NUMBER_INTEGER, defaultValue: 0}
      seconds: {parameterType: NUMBER_INTEGER, defaultValue: 0}
  dag:
    tasks:
      write:
        componentRef: {name: comp-write}
        taskInfo: {name: write}
        inputs:
          parameters:
            text: {componentInputParameter: text}
            code: {componentInputParameter: code}
            seconds: {componentInputParameter: seconds}
"""
ARGO = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: old-}\nspec: {entrypoint: x}\n"


class Recorder:
    """The methods of a service, remembering which were called."""

    called: set[str] = set()

    def __init__(self, service):
        self.service = service
        self.methods = {
            name
            for name, _ in inspect.getmembers(type(service), inspect.isfunction)
            if not name.startswith("_") and not name.endswith("_with_http_info")
        }

    def __getattr__(self, name):
        Recorder.called.add(f"{type(self.service).__name__}.{name}")
        return getattr(self.service, name)


def refused(status, says, function, *args, **more):
    try:
        function(*args, **more)
    except ApiException as error:
        assert error.status == status and says in error.body, (error.status, error.body)
        body = json.loads(error.body)
        assert body["code"] and body["error"] == body["message"], body
    else:
        raise AssertionError(f"{function} was not refused")


def reference(kind, id, relationship="OWNER"):
    return api.ApiResourceReference(key=api.ApiResourceKey(type=kind, id=id), relationship=relationship)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("host", "token", "namespace", "package-url"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    configuration = api.Configuration(host=args.host)
    configuration.api_key["authorization"] = args.token
    configuration.api_key_prefix["authorization"] = "Bearer"
    client = api.ApiClient(configuration)
    experiments = Recorder(api.ExperimentServiceApi(client))
    pipelines = Recorder(api.PipelineServiceApi(client))
    uploads = Recorder(api.PipelineUploadServiceApi(client))
    runs = Recorder(api.RunServiceApi(client))
    jobs = Recorder(api.JobServiceApi(client))
    health = Recorder(api.HealthzServiceApi(client))
    unique = f"v1-{time.time_ns()}"
    namespace = reference("NAMESPACE", args.namespace)

    assert health.get_healthz().multi_user

    experiment = experiments.create_experiment(
        api.ApiExperiment(name=unique, description="by kfp 1.8", resource_references=[namespace])
    )
    assert experiments.get_experiment(experiment.id).description == "by kfp 1.8"
    refused(409, "already exists", experiments.create_experiment, api.ApiExperiment(name=unique))
    in_namespace = dict(resource_reference_key_type="NAMESPACE", resource_reference_key_id=args.namespace)
    named = json.dumps({"predicates": [{"op": 1, "key": "name", "stringValue": unique}]})
    listed = experiments.list_experiment(page_size=5, sort_by="created_at desc", filter=named, **in_namespace)
    assert [e.id for e in listed.experiments] == [experiment.id] and listed.total_size == 1, listed
    experiments.archive_experiment(experiment.id)
    assert experiments.get_experiment(experiment.id).storage_state == "STORAGESTATE_ARCHIVED"
    experiments.unarchive_experiment(experiment.id)
    assert experiments.get_experiment(experiment.id).storage_state == "STORAGESTATE_AVAILABLE"

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, tempfile.NamedTemporaryFile("w", suffix=".yaml") as old:
        file.write(PACKAGE)
        file.flush()
        old.write(ARGO)
        old.flush()
        uploaded = uploads.upload_pipeline(file.name, name=unique, description="d")
        second = uploads.upload_pipeline_version(file.name, name=f"{unique}-2", pipelineid=uploaded.id)
        refused(400, "kfp dsl compile", uploads.upload_pipeline, old.name, name=f"{unique}-old")
    assert uploaded.default_version.name == unique, uploaded
    assert pipelines.get_pipeline(uploaded.id).default_version.id == second.id
    pipelines.update_pipeline_default_version(uploaded.id, uploaded.default_version.id)
    assert pipelines.get_pipeline(uploaded.id).default_version.id == uploaded.default_version.id
    assert "comp-write" in pipelines.get_template(uploaded.id).template
    assert "comp-write" in pipelines.get_pipeline_version_template(second.id).template
    assert pipelines.get_pipeline_version(second.id).name == f"{unique}-2"
    versions = pipelines.list_pipeline_versions(
        resource_key_type="PIPELINE", resource_key_id=uploaded.id, page_size=1, sort_by="created_at asc"
    )
    assert [v.id for v in versions.versions] == [uploaded.default_version.id] and versions.total_size == 2
    more = pipelines.list_pipeline_versions(
        resource_key_type="PIPELINE", resource_key_id=uploaded.id, page_token=versions.next_page_token
    )
    assert [v.id for v in more.versions] == [second.id] and not more.next_page_token
    by_url = pipelines.create_pipeline(
        api.ApiPipeline(name=f"{unique}-url", url=api.ApiUrl(pipeline_url=args.package_url))
    )
    refused(
        400, "package_urls", pipelines.create_pipeline,
        api.ApiPipeline(name="x", url=api.ApiUrl(pipeline_url="http://169.254.169.254/latest/meta-data")),
    )
    added = pipelines.create_pipeline_version(
        api.ApiPipelineVersion(
            name="by-url", package_url=api.ApiUrl(pipeline_url=args.package_url),
            resource_references=[reference("PIPELINE", by_url.id)],
        )
    )
    pipelines.delete_pipeline_version(added.id)
    refused(404, "not found", pipelines.get_pipeline_version, added.id)
    found = pipelines.list_pipelines(page_size=100, **in_namespace).pipelines
    assert {uploaded.id, by_url.id} <= {p.id for p in found}

    def start(name, **parameters):
        spec = api.ApiPipelineSpec(
            pipeline_id=uploaded.id, parameters=[api.ApiParameter(name=n, value=v) for n, v in parameters.items()]
        )
        owner = [reference("EXPERIMENT", experiment.id)]
        return runs.create_run(api.ApiRun(name=name, pipeline_spec=spec, resource_references=owner)).run.id

    def until(id, *states):
        deadline = time.monotonic() + 120
        while (detail := runs.get_run(id)).run.status not in states:
            assert time.monotonic() < deadline, detail.run.status
            time.sleep(0.2)
        return detail

    good = start("good", text="from v1")
    detail = until(good, "Succeeded", "Failed")
    assert detail.run.status == "Succeeded", detail.run.error
    kinds = {r.key.type: r.key.id for r in detail.run.resource_references}
    assert kinds["EXPERIMENT"] == experiment.id and kinds["PIPELINE_VERSION"] == uploaded.default_version.id, kinds
    nodes = json.loads(detail.pipeline_runtime.workflow_manifest)["status"]["nodes"]
    node = next(id for id, n in nodes.items() if n["displayName"] == "write")
    content = runs.read_artifact(good, node, "data").data
    assert base64.b64decode(content) == b"from v1", content
    metric = api.ApiRunMetric(name="accuracy", node_id=node, number_value=0.75, format="PERCENTAGE")
    bad = api.ApiRunMetric(name="1st", node_id=node, number_value=1.0)
    report = api.ApiReportRunMetricsRequest(metrics=[metric, metric, bad])
    results = [r.status for r in runs.report_run_metrics(good, report).results]
    assert results == ["OK", "DUPLICATE_REPORTING", "INVALID_ARGUMENT"], results
    assert runs.get_run(good).run.metrics[0].number_value == 0.75
    refused(400, "kfp dsl compile", runs.create_run, api.ApiRun(name="x", pipeline_spec=api.ApiPipelineSpec(workflow_manifest=ARGO)))

    failed = start("failed", code="3")
    assert "exit code 3" in until(failed, "Failed").run.error
    runs.retry_run(failed)
    until(failed, "Failed")
    stopped = start("stopped", seconds="600")
    until(stopped, "Running")
    runs.terminate_run(stopped)
    until(stopped, "Failed")
    runs.archive_run(good)
    assert runs.get_run(good).run.storage_state == "STORAGESTATE_ARCHIVED"
    runs.unarchive_run(good)
    in_experiment = dict(resource_reference_key_type="EXPERIMENT", resource_reference_key_id=experiment.id)
    listed = runs.list_runs(page_size=2, sort_by="created_at desc", **in_experiment)
    assert [r.id for r in listed.runs] == [stopped, failed] and listed.total_size == 3
    rest = runs.list_runs(page_token=listed.next_page_token, **in_experiment)
    assert [r.id for r in rest.runs] == [good]

    schedule = api.ApiTrigger(cron_schedule=api.ApiCronSchedule(cron="0 0 0 1 1 *"))
    job = jobs.create_job(
        api.ApiJob(
            name=unique, enabled=True, max_concurrency="2", trigger=schedule, no_catchup=True,
            pipeline_spec=api.ApiPipelineSpec(pipeline_manifest=PACKAGE),
            resource_references=[reference("EXPERIMENT", experiment.id)],
        )
    )
    assert (job.enabled, job.max_concurrency, job.trigger.cron_schedule.cron) == (True, "2", "0 0 0 1 1 *"), job
    jobs.disable_job(job.id)
    assert jobs.get_job(job.id).enabled is False
    jobs.enable_job(job.id)
    assert [j.id for j in jobs.list_jobs(**in_experiment).jobs] == [job.id]
    jobs.delete_job(job.id)
    refused(404, "not found", jobs.get_job, job.id)

    for id in (good, failed, stopped):
        runs.delete_run(id)
    refused(404, "not found", runs.get_run, good)
    pipelines.delete_pipeline(uploaded.id)
    pipelines.delete_pipeline(by_url.id)
    refused(404, "not found", pipelines.get_pipeline, uploaded.id)
    experiments.delete_experiment(experiment.id)
    refused(404, "not found", experiments.get_experiment, experiment.id)

    services = (experiments, pipelines, uploads, runs, jobs, health)
    every = {f"{type(s.service).__name__}.{m}" for s in services for m in s.methods}
    print(json.dumps({"called": len(Recorder.called), "missed": sorted(every - Recorder.called)}))


if __name__ == "__main__":
    main()
