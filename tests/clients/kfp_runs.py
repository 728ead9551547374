#!/usr/bin/env python3
"""Drives a box with the unmodified kfp SDK, one case a call, and prints what the SDK saw as JSON on the last line."""
import argparse
import datetime
import json
import sys
import tempfile
import time

import kfp
from kfp import compiler, dsl


@dsl.component
def write_dataset(text: str, data: dsl.Output[dsl.Dataset]):
    with open(data.path, "w") as out:
        out.write(text)
    data.metadata["length"] = len(text)
    print("wrote the dataset")


@dsl.component
def read_dataset(data: dsl.Input[dsl.Dataset]) -> int:
    with open(data.path) as source:
        length = len(source.read())
    print(f"read {length} characters")
    return length


@dsl.component
def compares(data: dsl.Input[dsl.Dataset], expected: str):
    with open(data.path) as source:
        found = source.read()
    assert found == expected, f"{data.path} holds {found!r}"


@dsl.component
def fails():
    print("about to fail")
    raise SystemExit(3)


@dsl.component
def slow(seconds: int) -> str:
    import time

    print("step began", flush=True)
    time.sleep(seconds)
    print("step ended", flush=True)
    return "done"


@dsl.component
def after(text: str) -> str:
    print(f"after: {text}")
    return text + "!"


@dsl.container_component
def absent_image():
    return dsl.ContainerSpec(image="registry.invalid/no/such-image:1", command=["true"])


@dsl.container_component
def says_hello():
    return dsl.ContainerSpec(image="python:3.11", command=["echo", "hello"])


@dsl.pipeline(name="hello")
def hello():
    says_hello()


@dsl.pipeline(name="two-steps")
def two_steps(text: str = "hello from the first step"):
    made = write_dataset(text=text)
    read_dataset(data=made.outputs["data"])


@dsl.pipeline(name="imports")
def imports(store: str, in_store: str, web: str, moved: str, on_web: str):
    for uri, expected in ((store, in_store), (web, on_web), (moved, on_web)):
        brought = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=True)
        compares(data=brought.output, expected=expected)


@dsl.pipeline(name="import-one")
def import_one(uri: str, expected: str = ""):
    brought = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=True)
    compares(data=brought.output, expected=expected)


@dsl.container_component
def prints_model(model: dsl.Input[dsl.Model]):
    return dsl.ContainerSpec(image="python:3.11", command=["sh", "-euc", 'cat "$0"/weights'], args=[model.path])


@dsl.pipeline(name="modelcar")
def modelcar(uri: str):
    brought = dsl.importer(artifact_uri=uri, artifact_class=dsl.Model, reimport=True)
    prints_model(model=brought.output)


def two_steps_with_keys(access: str, secret: str):
    """The environment is part of what is compiled."""

    @dsl.pipeline(name="two-steps-with-keys")
    def pipeline(text: str = "hello from the first step"):
        made = write_dataset(text=text)
        for step in (made, read_dataset(data=made.outputs["data"])):
            step.set_env_variable("AWS_ACCESS_KEY_ID", access).set_env_variable("AWS_SECRET_ACCESS_KEY", secret)

    return pipeline


@dsl.pipeline(name="failing")
def failing():
    fails()


@dsl.pipeline(name="missing-image")
def missing_image():
    absent_image()


@dsl.pipeline(name="slow-steps")
def slow_steps(seconds: int = 8):
    first = slow(seconds=seconds)
    after(text=first.output)


def describe(run) -> dict:
    tasks = (run.run_details.task_details or []) if run.run_details else []
    return {
        "run_id": run.run_id,
        "state": run.state,
        "error": run.error.message if run.error else None,
        "tasks": [
            {
                "id": t.task_id,
                "name": t.display_name,
                "state": t.state,
                "error": t.error.message if t.error else None,
                "pods": [c.pod_name for c in (t.child_tasks or []) if c.pod_name],
            }
            for t in tasks
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("case")
    parser.add_argument("argument", nargs="?")
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)

    def create(function, arguments=None, **more):
        return client.create_run_from_pipeline_func(
            function, arguments=arguments or {}, namespace=args.namespace, experiment_name="tests", **more
        ).run_id

    def finish(run_id):
        return describe(client.wait_for_run_completion(run_id, timeout=args.timeout, sleep_duration=1))

    case = args.case
    if case == "two-steps":
        result = finish(create(two_steps, enable_caching=False))
    elif case == "two-steps-with-keys":
        root, access, secret = args.argument.split(" ")
        result = finish(create(two_steps_with_keys(access, secret), enable_caching=False, pipeline_root=root))
    elif case == "imports":
        result = finish(create(imports, json.loads(args.argument), enable_caching=False))
    elif case == "import-one":
        result = finish(create(import_one, {"uri": args.argument}, enable_caching=False))
    elif case == "modelcar":
        result = finish(create(modelcar, {"uri": args.argument}, enable_caching=False))
    elif case == "failing":
        result = finish(create(failing))
    elif case == "missing-image":
        result = finish(create(missing_image))
    elif case == "slow-start":
        result = {"run_id": create(slow_steps, {"seconds": int(args.argument or 8)}, enable_caching=False)}
    elif case == "wait":
        result = finish(args.argument)
    elif case == "get":
        result = describe(client.get_run(args.argument))
    elif case == "terminate":
        run_id = create(slow_steps, {"seconds": 120}, enable_caching=False)
        deadline = time.monotonic() + 60
        while client.get_run(run_id).state != "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.2)
        client.terminate_run(run_id)
        # The SDK's own wait does not know that a cancelled run has ended.
        while (run := client.get_run(run_id)).state != "CANCELED" and time.monotonic() < deadline:
            time.sleep(0.2)
        result = describe(run)
    elif case == "upload":
        name = f"uploaded-{time.time_ns()}"
        with tempfile.TemporaryDirectory() as folder:
            package = f"{folder}/two.yaml"
            compiler.Compiler().compile(two_steps, package)
            uploaded = client.upload_pipeline(package, pipeline_name=name, namespace=args.namespace)
            versions = client.list_pipeline_versions(uploaded.pipeline_id).pipeline_versions
            second = client.upload_pipeline_version(
                package, pipeline_version_name=f"{name}-v2", pipeline_id=uploaded.pipeline_id
            )
            experiment = client.create_experiment(f"{name}-experiment", namespace=args.namespace)
            run = client.run_pipeline(
                experiment.experiment_id,
                job_name=f"{name}-run",
                params={"text": "from a version"},
                pipeline_id=uploaded.pipeline_id,
                version_id=second.pipeline_version_id,
            )
            result = finish(run.run_id)
            result["versions"] = len(versions)
            result["listed"] = name in [
                p.display_name for p in client.list_pipelines(page_size=100, namespace=args.namespace).pipelines
            ]
            result["found_by_name"] = client.get_pipeline_id(name) == uploaded.pipeline_id
            runs = client.list_runs(page_size=100, experiment_id=experiment.experiment_id).runs
            result["runs_of_experiment"] = [r.run_id for r in runs]
    elif case == "recurring":
        name = f"hourly-{time.time_ns()}"
        now = datetime.datetime.now(datetime.timezone.utc)
        this_hour = now.replace(minute=0, second=0, microsecond=0)
        experiment = client.create_experiment(name, namespace=args.namespace)
        with tempfile.TemporaryDirectory() as folder:
            package = f"{folder}/hello.yaml"
            compiler.Compiler().compile(hello, package)
            schedule = dict(
                experiment_id=experiment.experiment_id,
                job_name=name,
                pipeline_package_path=package,
                start_time=(this_hour - datetime.timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                end_time=(this_hour + datetime.timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                enable_caching=False,
            )
            made = client.create_recurring_run(cron_expression="0 0 * * * *", **schedule)
            try:
                client.create_recurring_run(cron_expression="* * * * *", **{**schedule, "job_name": f"{name}-bad"})
                refused = None
            except Exception as error:  # what the SDK raises for a refused schedule
                refused = str(error)
        deadline = time.monotonic() + args.timeout
        while time.monotonic() < deadline:
            runs = client.list_runs(experiment_id=experiment.experiment_id).runs or []
            if runs:
                break
            time.sleep(0.2)
        result = finish(runs[0].run_id)
        client.disable_recurring_run(made.recurring_run_id)
        got = client.get_recurring_run(made.recurring_run_id)
        listed = client.list_recurring_runs(experiment_id=experiment.experiment_id).recurring_runs
        client.delete_recurring_run(made.recurring_run_id)
        result |= {
            "runs": len(runs),
            "status": got.status,
            "cron": got.trigger.cron_schedule.cron,
            "listed": [r.recurring_run_id for r in listed] == [made.recurring_run_id],
            "refused": refused,
        }
    elif case == "upload-file":
        try:
            client.upload_pipeline(args.argument, pipeline_name=f"bad-{time.time_ns()}", namespace=args.namespace)
            result = {"accepted": True}
        except Exception as error:  # what the SDK raises for a refused package
            result = {"accepted": False, "status": getattr(error, "status", None), "body": str(error)}
    elif case == "package":
        run_id = client.create_run_from_pipeline_package(
            args.argument, arguments={}, namespace=args.namespace, experiment_name="tests"
        ).run_id
        result = finish(run_id)
    else:
        sys.exit(f"unknown case {case}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
