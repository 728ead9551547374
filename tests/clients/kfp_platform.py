#!/usr/bin/env python3
"""Everything that a task can ask of Kubernetes, said with the unmodified kfp and kfp-kubernetes SDKs; what the released
SDK cannot say yet (init containers, pod affinity, shared memory) is added to the compiled package. Prints as JSON how
each step ended and in which pod."""
import argparse
import json
import tempfile

import kfp
import yaml
from kfp import compiler, dsl, kubernetes

IMAGE = "python:3.11"


@dsl.container_component
def looks_around():
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-euc"],
        args=[
            'test "$PASSWORD" = sesame; test "$(cat /mnt/secret/password)" = sesame\n'
            'test "$COLOUR" = blue; test "$(cat /mnt/config/colour)" = blue\n'
            'test "$PLAIN" = value; test -n "$POD_NAME"; test -z "${NEVER-}"\n'
            "test ! -e /mnt/absent\n"
            "echo kept >/mnt/claim/file; echo x >/mnt/ephemeral/x; echo y >/mnt/empty/y"
        ],
    )


@dsl.container_component
def reads_claim():
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc"], args=['test "$(cat /mnt/again/file)" = kept'])


@dsl.container_component
def is_somebody():
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc"], args=['test "$(id -u):$(id -g)" = 1234:1235'])


@dsl.container_component
def has_company():
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-euc"],
        args=[
            'test "$(cat /mnt/shared/said)" = "hello from the init container"\n'
            "grep -q ' /dev/shm tmpfs ' /proc/mounts\n"
            "until test -e /mnt/shared/beside; do sleep 0.1; done"
        ],
    )


@dsl.container_component
def writes_workspace(folder: str):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc"], args=['mkdir -p "$0"; echo there >"$0/file"', folder])


@dsl.container_component
def reads_workspace(folder: str):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-euc"], args=['test "$(cat "$0/file")" = there', folder])


@dsl.component(
    task_config_passthroughs=[
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_VOLUMES,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
    ]
)
def is_told(workspace: str, task_config: dsl.TaskConfig):
    import os

    assert os.environ["PLAIN"] == "value", "what applies to the task is there"
    assert not os.path.exists("/kfp-workspace"), "what is only passed on is not"
    assert task_config.env == [{"name": "PLAIN", "value": "value"}], task_config.env
    assert task_config.node_selector == {"disk": "none-has-this"}, task_config.node_selector
    assert task_config.resources["limits"] == {"cpu": "64", "nvidia.com/gpu": "1"}, task_config.resources
    assert task_config.resources["requests"] == {"memory": "900Gi"}, task_config.resources
    assert [m["mountPath"] for m in task_config.volume_mounts] == ["/kfp-workspace"], task_config.volume_mounts
    assert task_config.volumes[0]["persistentVolumeClaim"]["claimName"], task_config.volumes
    assert task_config.tolerations[0]["key"] == "gpu", task_config.tolerations
    terms = task_config.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["key"] == "disk", terms


@dsl.pipeline(
    name="platform-settings",
    pipeline_config=dsl.PipelineConfig(
        workspace=dsl.WorkspaceConfig(
            size="10Mi", kubernetes=dsl.KubernetesWorkspaceConfig(pvcSpecPatch={"accessModes": ["ReadWriteOnce"]})
        )
    ),
)
def settings(
    secret: str,
    config: str,
    cpu: str = "10m",
    memory: str = "64Mi",
    selector: dict = {"kubernetes.io/os": "linux"},
    toleration: dict = {"key": "b", "operator": "Exists", "effect": "NoExecute"},
    affinity: dict = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}
        ]
    },
):
    claim = kubernetes.CreatePVC(
        access_modes=["ReadWriteOnce"], size="10Mi", pvc_name_suffix="-settings", storage_class_name="standard"
    )
    around = looks_around()
    around.set_env_variable("PLAIN", "value")
    around.set_cpu_request(cpu).set_cpu_limit("2").set_memory_request(memory).set_memory_limit("256Mi")
    kubernetes.use_secret_as_env(around, secret_name=secret, secret_key_to_env={"password": "PASSWORD"})
    kubernetes.use_secret_as_env(
        around, secret_name="absent-secret", secret_key_to_env={"never": "NEVER"}, optional=True
    )
    kubernetes.use_secret_as_volume(around, secret_name=secret, mount_path="/mnt/secret")
    kubernetes.use_config_map_as_env(around, config_map_name=config, config_map_key_to_env={"colour": "COLOUR"})
    kubernetes.use_config_map_as_volume(around, config_map_name=config, mount_path="/mnt/config")
    kubernetes.mount_pvc(around, pvc_name=claim.outputs["name"], mount_path="/mnt/claim", sub_path="below")
    kubernetes.add_node_selector_json(around, selector)
    kubernetes.add_toleration(
        around, key="a", operator="Equal", value="1", effect="NoExecute", toleration_seconds=60
    )
    kubernetes.add_toleration_json(around, toleration)
    kubernetes.add_node_affinity(
        around, match_expressions=[{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]
    )
    kubernetes.add_node_affinity_json(around, affinity)
    kubernetes.add_pod_label(around, "team", "blue")
    kubernetes.add_pod_annotation(around, "note", "a note")
    kubernetes.set_image_pull_policy(around, "IfNotPresent")
    kubernetes.set_image_pull_secrets(around, ["absent-pull-secret"])
    kubernetes.set_timeout(around, 300)
    kubernetes.use_field_path_as_env(around, env_name="POD_NAME", field_path="metadata.name")
    kubernetes.add_ephemeral_volume(
        around,
        volume_name="scratch",
        mount_path="/mnt/ephemeral",
        access_modes=["ReadWriteOnce"],
        size="10Mi",
        labels={"kind": "scratch"},
    )
    kubernetes.empty_dir_mount(
        around, volume_name="fast", mount_path="/mnt/empty", medium="Memory", size_limit="8Mi"
    )

    again = reads_claim().after(around)
    kubernetes.mount_pvc(again, pvc_name=claim.outputs["name"], mount_path="/mnt/again", sub_path="below")
    kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(again)

    somebody = is_somebody()
    kubernetes.set_security_context(somebody, run_as_user=1234, run_as_group=1235, run_as_non_root=True)

    company = has_company()
    kubernetes.empty_dir_mount(company, volume_name="shared", mount_path="/mnt/shared")

    written = writes_workspace(folder=dsl.WORKSPACE_PATH_PLACEHOLDER + "/data")
    reads_workspace(folder=dsl.WORKSPACE_PATH_PLACEHOLDER + "/data").after(written)

    told = is_told(workspace=dsl.WORKSPACE_PATH_PLACEHOLDER)
    told.set_env_variable("PLAIN", "value")
    told.set_cpu_limit("64").set_memory_request("900Gi")
    told.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.add_node_selector(told, "disk", "none-has-this")
    kubernetes.add_toleration(told, key="gpu", operator="Exists")
    kubernetes.add_node_affinity(told, match_expressions=[{"key": "disk", "operator": "Exists"}])


def say_more(documents: list) -> None:
    company = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-has-company"]
    mount = [{"volumeName": "shared", "mountPath": "/out"}]
    script = 'echo "$WORDS" >/out/said'
    company["initContainers"] = [
        {
            "name": "first",
            "image": IMAGE,
            "command": ["sh", "-euc"],
            "args": [script],
            "env": [{"name": "WORDS", "value": "hello from the init container"}],
            "volumeMounts": mount,
            "resources": {"requests": {"cpu": "5m"}, "limits": {"memory": "64Mi"}},
        },
        {
            "name": "beside",
            "image": IMAGE,
            "command": ["sh", "-euc"],
            "args": ["trap 'exit 0' TERM; touch /out/beside; while :; do sleep 0.2; done"],
            "volumeMounts": mount,
            "restartPolicy": "Always",
        },
    ]
    company["podAffinity"] = [
        {
            "matchPodLabels": {"app": "never-there"},
            "matchPodExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}],
            "topologyKey": "kubernetes.io/hostname",
            "namespaces": ["elsewhere"],
            "anti": True,
        },
        {"matchNamespaceLabels": {"team": "blue"}, "topologyKey": "kubernetes.io/hostname", "weight": 7},
    ]
    company["enabledSharedMemory"] = {"volumeName": "memory", "size": "16Mi"}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--token", "--namespace", "--secret", "--config"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)
    with tempfile.TemporaryDirectory() as folder:
        package = f"{folder}/settings.yaml"
        compiler.Compiler().compile(settings, package)
        with open(package) as file:
            documents = list(yaml.safe_load_all(file))
        say_more(documents)
        with open(package, "w") as file:
            yaml.safe_dump_all(documents, file)
        run_id = client.create_run_from_pipeline_package(
            package,
            arguments={"secret": args.secret, "config": args.config},
            namespace=args.namespace,
            experiment_name="tests",
            enable_caching=False,
        ).run_id
    run = client.wait_for_run_completion(run_id, timeout=240, sleep_duration=1)
    tasks = {t.display_name: t for t in run.run_details.task_details}
    print(
        json.dumps(
            {
                "run_id": run_id,
                "state": run.state,
                "error": run.error.message if run.error else None,
                "tasks": {
                    name: {"state": t.state, "pod": t.pod_name or None}
                    for name, t in tasks.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
