#!/usr/bin/env python3
"""A first pipeline: one step writes a Dataset, the next reads it. Compiled and run by the unmodified kfp SDK.

Prints each step as it goes, then reads the artifact back from the S3 store with boto3.
"""
import argparse
import json
import sys
import time

import boto3
import kfp
from kfp import dsl


@dsl.component
def make_measurements(rows: int, measurements: dsl.Output[dsl.Dataset]):
    """Writes `rows` lines of `x,y` with y = 3x + 1."""
    with open(measurements.path, "w") as out:
        out.write("x,y\n")
        for x in range(rows):
            out.write(f"{x},{3 * x + 1}\n")
    measurements.metadata["rows"] = rows
    print(f"wrote {rows} rows")


@dsl.component
def fit_line(measurements: dsl.Input[dsl.Dataset]) -> float:
    """The slope of the least-squares line through the measurements."""
    with open(measurements.path) as data:
        points = [tuple(map(float, line.split(","))) for line in data.read().splitlines()[1:]]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    print(f"read {len(points)} rows; the slope is {slope}")
    return slope


@dsl.pipeline(name="first-pipeline", description="Two steps that hand over a Dataset.")
def first_pipeline(rows: int = 100) -> float:
    made = make_measurements(rows=rows)
    return fit_line(measurements=made.outputs["measurements"]).output


def watch(client: kfp.Client, run_id: str, timeout: float) -> str:
    """Prints every change of a task's state; returns the run's last state."""
    seen = {}
    deadline = time.monotonic() + timeout
    while True:
        run = client.get_run(run_id)
        for task in (run.run_details.task_details or []) if run.run_details else []:
            if task.state and seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                print(f"    {task.display_name:<24} {task.state}", flush=True)
        if run.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
            if run.state != "SUCCEEDED" and run.error:
                print(f"    {run.error.message}", file=sys.stderr)
            return run.state
        if time.monotonic() > deadline:
            return f"{run.state}, still, after {timeout:.0f} s"
        time.sleep(0.5)


def read_back(credentials: dict, run_id: str) -> str:
    """The first lines of the run's Dataset, by way of the S3 protocol."""
    s3 = boto3.client(
        "s3",
        endpoint_url=credentials["endpoint"],
        region_name=credentials["region"],
        aws_access_key_id=credentials["accessKey"],
        aws_secret_access_key=credentials["secretKey"],
    )
    bucket, prefix = credentials["bucket"], credentials["prefix"]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            if run_id in found["Key"] and found["Key"].endswith("/measurements"):
                print(f"    s3://{bucket}/{found['Key']}")
                return s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read().decode()
    sys.exit("the artifact of the run was not found in the store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="for example http://127.0.0.1:8080/pipeline")
    parser.add_argument("--token", required=True, help="what `kfbox token` prints")
    parser.add_argument("--credentials", required=True, help="what `kfbox credentials --output json` prints")
    parser.add_argument("--namespace", default=None)
    parser.add_argument("--timeout", type=float, default=300)
    args = parser.parse_args()

    client = kfp.Client(host=args.host, existing_token=args.token, namespace=args.namespace or "kubeflow")
    run = client.create_run_from_pipeline_func(
        first_pipeline,
        arguments={"rows": 100},
        namespace=args.namespace,
        experiment_name="first-steps",
        enable_caching=False,  # a second quickstart shows the steps at work again
    )
    print(f"    run {run.run_id}")
    state = watch(client, run.run_id, args.timeout)
    if state != "SUCCEEDED":
        sys.exit(f"the pipeline ended {state}")
    body = read_back(json.loads(args.credentials), run.run_id)
    if body.splitlines()[1] != "0,1" or len(body.splitlines()) != 101:
        sys.exit(f"the artifact does not hold what the step wrote: {body[:200]!r}")
    print("    " + "\n    ".join(body.splitlines()[:3]))
    print(f"run_id={run.run_id}")


if __name__ == "__main__":
    main()
