#!/usr/bin/env python3
"""Two pipelines of every kind of task, made of short shell steps, compiled into the folder that is named: `succeeding`
(loop with a limit, artifacts, collected parameters, a condition, an importer, an exit handler) and `failing` (retries
that do not help, an exit handler that runs all the same)."""
import sys
from typing import List

from kfp import compiler, dsl

IMAGE = "python:3.11"


def shell(script: str, *arguments):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc", "echo began; " + script], args=list(arguments))


@dsl.container_component
def make(n: int, data: dsl.Output[dsl.Dataset]):
    return shell('sleep 0.3; echo "number $0" >"$1"', n, data.path)


@dsl.container_component
def double(n: int, data: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset], twice: dsl.OutputPath(int)):
    return shell(
        'test "$(cat "$1")" = "number $0"; echo "double $(($0 * 2))" >"$2"; mkdir -p "$(dirname "$3")"; echo $(($0 * 2)) >"$3"',
        n,
        data.path,
        out.path,
        twice,
    )


@dsl.container_component
def total(numbers: List[int], sum: dsl.OutputPath(int)):
    return shell('test "$0" = "[2,4,6,8]"; mkdir -p "$(dirname "$1")"; echo 20 >"$1"', numbers, sum)


@dsl.container_component
def branch():
    return shell("sleep 0.2")


@dsl.container_component
def fails():
    return shell("sleep 0.2; exit 3")


@dsl.container_component
def last():
    return shell("sleep 0.2")


@dsl.pipeline(name="mixed-succeeding")
def succeeding():
    end = last().set_caching_options(False)
    with dsl.ExitHandler(end):
        dsl.importer(artifact_uri="gs://somewhere/else", artifact_class=dsl.Dataset)
        with dsl.ParallelFor(items=[1, 2, 3, 4], parallelism=2) as n:
            made = make(n=n).set_caching_options(False)
            doubled = double(n=n, data=made.outputs["data"]).set_caching_options(False)
        sum_up = total(numbers=dsl.Collected(doubled.outputs["twice"])).set_caching_options(False)
        with dsl.If(sum_up.outputs["sum"] == 20):
            branch().set_caching_options(False)
        with dsl.If(sum_up.outputs["sum"] == 21):
            fails().set_caching_options(False)


@dsl.pipeline(name="mixed-failing")
def failing():
    end = last().set_caching_options(False)
    with dsl.ExitHandler(end):
        fails().set_caching_options(False).set_retry(num_retries=2, backoff_duration="0s", backoff_factor=1)
        make(n=7).set_caching_options(False)


if __name__ == "__main__":
    compiler.Compiler().compile(succeeding, f"{sys.argv[1]}/succeeding.yaml")
    compiler.Compiler().compile(failing, f"{sys.argv[1]}/failing.yaml")
