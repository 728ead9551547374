#!/usr/bin/env python3
"""Runs compiled packages with the unmodified kfp SDK, several at once, and prints how each ended.
Reads `[{"file": PATH, "arguments": {}, "pipeline_root": URI or null}]` from standard input."""
import argparse
import json
import sys
import time

import kfp

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def describe(run, seconds: float) -> dict:
    tasks = (run.run_details.task_details or []) if run.run_details else []
    return {
        "run_id": run.run_id,
        "state": run.state,
        "error": run.error.message if run.error else None,
        "seconds": round(seconds, 1),
        "tasks": {t.display_name: t.state for t in tasks},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--token", "--namespace"):
        parser.add_argument(name, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--at-once", type=int, required=True, help="a run may have ten steps at once")
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)
    waiting, started, results = json.load(sys.stdin), {}, {}
    begin = time.monotonic()
    while (waiting or started) and time.monotonic() - begin < args.timeout:
        while waiting and len(started) < args.at_once:
            sample = waiting.pop(0)
            run = client.create_run_from_pipeline_package(
                sample["file"],
                arguments=sample["arguments"],
                pipeline_root=sample["pipeline_root"],
                namespace=args.namespace,
                experiment_name="samples",
            )
            started[run.run_id] = (sample["file"], time.monotonic())
        time.sleep(0.5)
        for run_id, (file, since) in list(started.items()):
            run = client.get_run(run_id)
            if run.state in ENDED:
                results[file] = describe(run, time.monotonic() - since)
                print(f"{run.state:>9} {results[file]['seconds']:6} s  {file}", file=sys.stderr, flush=True)
                del started[run_id]
    for run_id, (file, since) in started.items():
        results[file] = describe(client.get_run(run_id), time.monotonic() - since)
        client.terminate_run(run_id)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
