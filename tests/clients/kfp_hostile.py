#!/usr/bin/env python3
"""A pipeline whose outputs are code in every language that one might be tempted to read them in. Each step that is given
one compares it with what was made, byte by byte; what would run leaves a file behind. Prints one line of JSON."""
import argparse
import base64
import json
import os
import time

import kfp
from kfp import dsl

IMAGE = "python:3.11"
PLAIN = "plain"


def hostile(marker: str) -> list:
    return [
        f"__import__('os').system('touch {marker}')",
        f"$(touch {marker}) `touch {marker}` ; touch {marker}",
        "{{$.inputs.parameters['encoded']}} {{inputs.parameters.encoded}} {{workflow.uid}}",
        "$(id) $(HOME) ${HOME} $HOME",
        # What would end the text in a condition, and what would make it true.
        f"{PLAIN}' || 'a' == 'a",
        f"{PLAIN}\" || true || \"",
        "inputs.parameter_values['encoded']",
        '{"a": [1, "\\u0000", {{}}]}',
    ]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def shell(script: str, *arguments):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc", script], args=list(arguments))


@dsl.container_component
def says(encoded: str, text: dsl.OutputPath(str)):
    return shell('mkdir -p "$(dirname "$1")"; printf %s "$0" | base64 -d >"$1"', encoded, text)


@dsl.container_component
def lists(encoded: str, items: dsl.OutputPath(list)):
    return shell('mkdir -p "$(dirname "$1")"; printf %s "$0" | base64 -d >"$1"', encoded, items)


@dsl.container_component
def receives(text: str, encoded: str, marker: str):
    return shell('test "$(printf %s "$0" | base64 -w0)" = "$1"; test ! -e "$2"', text, encoded, marker)


@dsl.container_component
def never():
    return shell("exit 9")


@dsl.pipeline(name="hostile-outputs")
def pipeline(one: str, all: str, marker: str):
    said = says(encoded=one).set_caching_options(False)
    again = says(encoded=one).set_caching_options(False)
    receives(text=said.outputs["text"], encoded=one, marker=marker).set_caching_options(False)
    with dsl.If(said.outputs["text"] == PLAIN):
        never()
    with dsl.If(said.outputs["text"] == again.outputs["text"]):
        receives(text=again.outputs["text"], encoded=one, marker=marker).set_caching_options(False)
    listed = lists(encoded=all).set_caching_options(False)
    with dsl.ParallelFor(items=listed.outputs["items"]) as item:
        receives(text=item.text, encoded=item.encoded, marker=marker).set_caching_options(False)
        with dsl.If(item.text == PLAIN):
            never()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--token", "--namespace"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)
    marker = f"/tmp/an-output-ran-{time.time_ns()}"
    texts = hostile(marker)
    items = [{"text": text, "encoded": encoded(text)} for text in texts]
    run = client.create_run_from_pipeline_func(
        pipeline,
        arguments={"one": encoded(" ".join(texts)), "all": encoded(json.dumps(items)), "marker": marker},
        namespace=args.namespace,
        experiment_name="tests",
    )
    ended = client.wait_for_run_completion(run.run_id, timeout=300, sleep_duration=1)
    tasks = ended.run_details.task_details or []
    print(
        json.dumps(
            {
                "state": ended.state,
                "error": ended.error.message if ended.error else None,
                "received": [t.state for t in tasks if t.display_name.startswith("receives")],
                "never": [t.state for t in tasks if t.display_name.startswith("never")],
                "texts": len(texts),
                "ran": os.path.exists(marker),
            }
        )
    )


if __name__ == "__main__":
    main()
