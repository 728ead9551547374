"""What the pipeline engine adds: the wait for a step beside its container's own time, long chains, wide loops, and what
many active tasks weigh. With the unmodified kfp SDK."""
import statistics
import time

import kfp
from kfp import dsl, kubernetes

IMAGE = "python:3.11"


@dsl.container_component
def nothing():
    return dsl.ContainerSpec(image=IMAGE, command=["true"])


def chain_of(count: int):
    @dsl.pipeline(name="chain")
    def chain():
        before = None
        for _ in range(count):
            step = nothing().set_caching_options(False)
            if before is not None:
                step.after(before)
            before = step

    return chain


def fan_of(count: int, parallelism: int):
    @dsl.pipeline(name="fan-out")
    def fan():
        with dsl.ParallelFor(items=list(range(count)), parallelism=parallelism):
            nothing().set_caching_options(False)

    return fan


def waiting_of(count: int):
    """Tasks that are active and never end: no node has what their pods ask for."""

    @dsl.pipeline(name="waiting")
    def waiting():
        with dsl.ParallelFor(items=list(range(count))):
            step = nothing().set_caching_options(False)
            kubernetes.add_node_selector(step, "bench", "nowhere")

    return waiting


class Runs:
    def __init__(self, url: str, token: str, namespace: str):
        self.client, self.namespace = kfp.Client(host=url + "/pipeline", existing_token=token), namespace

    def start(self, pipeline) -> str:
        return self.client.create_run_from_pipeline_func(
            pipeline, arguments={}, namespace=self.namespace, enable_caching=False
        ).run_id

    def end(self, run_id: str, state: str = "SUCCEEDED", timeout: int = 3600):
        deadline = time.monotonic() + timeout
        while (run := self.client.get_run(run_id)).state not in ("SUCCEEDED", "FAILED", "CANCELED"):
            if time.monotonic() > deadline:
                raise SystemExit(f"the run {run_id} does not end")
            # The answer holds all tasks of the run: asking often would be what is measured.
            time.sleep(2)
        if run.state != state:
            raise SystemExit(f"the run {run_id} ended {run.state}: {run.error}")
        return run

    def seconds(self, run) -> float:
        return (run.finished_at - run.created_at).total_seconds()


def measure(figure, box, namespace: str, args, container: float) -> None:
    """`container`: what `crun run` of the same command takes, in seconds."""
    runs = Runs(box.status()["url"], box.run("token").strip(), namespace)
    run = runs.end(runs.start(chain_of(args.chain)))
    ends = sorted(t.end_time for t in run.run_details.task_details if t.pod_name or t.display_name.startswith("nothing"))
    gaps = sorted((b - a).total_seconds() - container for a, b in zip(ends, ends[1:]))
    figure("chain, whole, a step", runs.seconds(run) / args.chain, "s", f"chain of {args.chain}")
    figure("step overhead over crun, p50", 1000 * statistics.median(gaps), "ms", "in that chain")
    figure("step overhead over crun, p99", 1000 * gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))], "ms", "in that chain")

    run = runs.end(runs.start(fan_of(args.fan, args.parallel)))
    figure("fan-out, whole", runs.seconds(run), "s", f"{args.fan} steps, {args.parallel} at once")
    figure("fan-out, steps a second", args.fan / runs.seconds(run), "/s")

    before = box.status()["residentBytes"]
    run_id = runs.start(waiting_of(args.active))
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        # A run that has just begun has no details yet.
        details = runs.client.get_run(run_id).run_details
        tasks = (details and details.task_details) or []
        if sum(bool(t.pod_name) for t in tasks) >= args.active:
            break
        time.sleep(1)
    else:
        raise SystemExit(f"of {args.active} tasks not all became active")
    resident = box.status()["residentBytes"]
    figure("resident memory with active tasks", resident / 2**20, "MiB", f"{args.active} tasks")
    figure("memory an active task", (resident - before) / args.active / 1024, "KiB")
    runs.client.terminate_run(run_id)
    runs.end(run_id, "CANCELED", 600)
