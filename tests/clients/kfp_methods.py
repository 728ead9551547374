#!/usr/bin/env python3
"""Calls every public method of kfp.Client against a box, checks each answer, and prints which methods it called."""
import argparse
import inspect
import json
import tempfile
import time

import kfp
import kfp_server_api
from kfp import compiler, dsl


@dsl.container_component
def says(text: str, seconds: int, code: int):
    return dsl.ContainerSpec(
        image="python:3.11", command=["sh", "-c", 'echo "$0"; sleep "$1"; exit "$2"'], args=[text, seconds, code]
    )


@dsl.pipeline(name="every-method")
def every_method(text: str = "hello", seconds: int = 0, code: int = 0):
    says(text=text, seconds=seconds, code=code)


def gone(function, *args):
    try:
        function(*args)
    except kfp_server_api.ApiException as error:
        assert error.status == 404, error
    else:
        raise AssertionError(f"{function} found what was deleted")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("host", "token", "namespace"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    methods = {n for n, _ in inspect.getmembers(kfp.Client, inspect.isfunction) if not n.startswith("_")}
    called = set()

    class Recorded(kfp.Client):
        def __getattribute__(self, name):
            if name in methods:
                called.add(name)
            return super().__getattribute__(name)

    client = Recorded(host=args.host, existing_token=args.token)
    called.clear()
    unique = f"methods-{time.time_ns()}"
    here = args.namespace

    def filtered(key, value):
        return json.dumps({"predicates": [{"operation": 1, "key": key, "stringValue": value}]})

    assert client.get_kfp_healthz().multi_user
    client.set_user_namespace(here)
    assert client.get_user_namespace() == here

    experiment = client.create_experiment(unique, description="d", namespace=here)
    assert client.create_experiment(unique, namespace=here).experiment_id == experiment.experiment_id
    assert client.get_experiment(experiment_name=unique, namespace=here).experiment_id == experiment.experiment_id
    assert client.get_experiment(experiment.experiment_id).description == "d"
    found = client.list_experiments(namespace=here, sort_by="created_at desc", filter=filtered("display_name", unique))
    assert [e.experiment_id for e in found.experiments] == [experiment.experiment_id]
    client.archive_experiment(experiment.experiment_id)
    assert client.get_experiment(experiment.experiment_id).storage_state == "ARCHIVED"
    client.unarchive_experiment(experiment.experiment_id)

    with tempfile.TemporaryDirectory() as folder:
        package = f"{folder}/p.yaml"
        compiler.Compiler().compile(every_method, package)
        uploaded = client.upload_pipeline(package, pipeline_name=unique, description="up", namespace=here)
        second = client.upload_pipeline_version(package, f"{unique}-2", pipeline_id=uploaded.pipeline_id)
        third = client.upload_pipeline_version_from_pipeline_func(
            every_method, f"{unique}-3", pipeline_id=uploaded.pipeline_id
        )
        from_func = client.upload_pipeline_from_pipeline_func(every_method, f"{unique}-func", namespace=here)
        assert client.get_pipeline_id(unique) == uploaded.pipeline_id
        assert client.get_pipeline(uploaded.pipeline_id).description == "up"
        spec = client.get_pipeline_version(uploaded.pipeline_id, second.pipeline_version_id).pipeline_spec
        assert spec["pipelineInfo"]["name"] == "every-method", spec
        versions = client.list_pipeline_versions(uploaded.pipeline_id, page_size=2, sort_by="created_at asc")
        assert len(versions.pipeline_versions) == 2 and versions.total_size == 3
        rest = client.list_pipeline_versions(uploaded.pipeline_id, page_token=versions.next_page_token)
        assert [v.pipeline_version_id for v in rest.pipeline_versions] == [third.pipeline_version_id]
        listed = client.list_pipelines(namespace=here, page_size=100, sort_by="name desc")
        assert {uploaded.pipeline_id, from_func.pipeline_id} <= {p.pipeline_id for p in listed.pipelines}

        one = client.run_pipeline(
            experiment.experiment_id, "one", pipeline_id=uploaded.pipeline_id,
            version_id=second.pipeline_version_id, params={"text": "by version"},
        )
        assert client.wait_for_run_completion(one.run_id, 120, 1).state == "SUCCEEDED"
        two = client.create_run_from_pipeline_func(
            every_method, arguments={"code": 3}, experiment_id=experiment.experiment_id, run_name="two"
        )
        assert client.wait_for_run_completion(two.run_id, 120, 1).state == "FAILED"
        three = client.create_run_from_pipeline_package(
            package, arguments={"seconds": 600}, experiment_name=unique, namespace=here, run_name="three"
        )
        runs = client.list_runs(experiment_id=experiment.experiment_id, sort_by="created_at asc")
        assert [r.display_name for r in runs.runs] == ["one", "two", "three"], runs
        state = filtered("state", "FAILED")
        failed = client.list_runs(namespace=here, experiment_id=experiment.experiment_id, filter=state)
        assert [r.run_id for r in failed.runs] == [two.run_id]
        client.terminate_run(three.run_id)
        deadline = time.monotonic() + 60
        while client.get_run(three.run_id).state != "CANCELED":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.archive_run(one.run_id)
        assert client.get_run(one.run_id).storage_state == "ARCHIVED"
        client.unarchive_run(one.run_id)

        jobs = [
            client.create_recurring_run(
                experiment.experiment_id, f"{unique}-{n}", cron_expression="0 0 0 1 1 *", max_concurrency=2,
                pipeline_package_path=package, params={"text": "x"},
            ).recurring_run_id
            for n in range(2)
        ]
    client.disable_recurring_run(jobs[0])
    assert client.get_recurring_run(jobs[0]).status == "DISABLED"
    client.enable_recurring_run(jobs[0])
    # The older names of the same, which the SDK still has.
    client.disable_job(jobs[1])
    assert client.get_recurring_run(jobs[1]).mode == "DISABLE"
    client.enable_job(jobs[1])
    listed = client.list_recurring_runs(experiment_id=experiment.experiment_id, sort_by="name asc")
    assert [j.recurring_run_id for j in listed.recurring_runs] == jobs
    client.delete_job(jobs[1])
    client.delete_recurring_run(jobs[0])
    gone(client.get_recurring_run, jobs[0])

    for run in (one, two, three):
        client.delete_run(run.run_id)
    gone(client.get_run, one.run_id)
    for version in client.list_pipeline_versions(uploaded.pipeline_id).pipeline_versions:
        client.delete_pipeline_version(uploaded.pipeline_id, version.pipeline_version_id)
    client.delete_pipeline(uploaded.pipeline_id)
    gone(client.get_pipeline, uploaded.pipeline_id)
    for version in client.list_pipeline_versions(from_func.pipeline_id).pipeline_versions:
        client.delete_pipeline_version(from_func.pipeline_id, version.pipeline_version_id)
    client.delete_pipeline(from_func.pipeline_id)
    client.delete_experiment(experiment.experiment_id)
    gone(client.get_experiment, experiment.experiment_id)
    print(json.dumps({"called": len(called), "missed": sorted(methods - called)}))


if __name__ == "__main__":
    main()
