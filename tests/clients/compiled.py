#!/usr/bin/env python3
"""What Elyra and Kale do with a box: sign in as their settings say (with their own code, from TOOLS), and run packages that
they compiled by the calls of Elyra's processor. Prints one line of JSON."""
import argparse
import importlib.util
import io
import json
import os
import pathlib
import re
import sys
import tarfile
import time
import types

import boto3
import kfp
import kfp_server_api
import yaml

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def elyras_authentication(tools: pathlib.Path):
    """Its module by its file: the package around it imports all of Jupyter."""
    spec = importlib.util.spec_from_file_location("elyras", tools / "elyra/pipeline/kfp/kfp_authentication.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kales_clients(tools: pathlib.Path):
    """Its factory of clients, without the package around it, which imports all of Jupyter."""
    package = types.ModuleType("kale")
    package.__path__ = [str(tools / "kale")]
    sys.modules["kale"] = package
    from kale.common import kfp_client_factory

    return kfp_client_factory


def works(client: kfp.Client, namespace: str) -> bool:
    client.list_experiments(namespace=namespace, page_size=1)
    return True


def found_by_paging(client: kfp.Client, name: str) -> bool:
    """Whether a pipeline is there, as Kale looks: page by page, until there is no token."""
    token, pages = "", 0
    while token is not None and pages < 1000:
        page = client.list_pipelines(page_token=token, page_size=50)
        if any(pipeline.display_name == name for pipeline in page.pipelines or []):
            return True
        token, pages = page.next_page_token, pages + 1
    assert token is None, f"a last page has the token {token!r}"
    return False


def auth(args) -> dict:
    """Each authentication type, and what becomes of wrong credentials. Secrets come by the environment."""
    elyra = elyras_authentication(args.tools)
    user, password, token = (os.environ[name] for name in ("KFBOX_USER", "KFBOX_PASSWORD", "KFBOX_TOKEN"))
    endpoint = args.host + "/pipeline"

    def elyras(kind: str, first=None, second=None) -> dict:
        return elyra.KFPAuthenticator().authenticate(
            endpoint, auth_type_str=kind, runtime_config_name="kfbox", auth_parm_1=first, auth_parm_2=second
        )

    def client_of(info: dict) -> kfp.Client:
        given = {name: info[name] for name in ("cookies", "credentials", "existing_token", "ssl_ca_cert")}
        return kfp.Client(host=endpoint, namespace=args.namespace, **given)

    seen = {"elyra": {}, "kale": {}, "refused": {}}
    for kind, given in {
        "DEX_STATIC_PASSWORDS": (user, password),
        "EXISTING_BEARER_TOKEN": (None, token),
        "KUBERNETES_SERVICE_ACCOUNT_TOKEN": (None, None),
    }.items():
        info = elyras(kind, *given)
        seen["elyra"][kind] = works(client_of(info), args.namespace)
        if info["cookies"]:
            os.environ["KF_PIPELINES_COOKIES"] = info["cookies"]
    for kind, given in {"DEX_STATIC_PASSWORDS": (user, "wrong " + password), "NO_AUTHENTICATION": ()}.items():
        try:
            elyras(kind, *given)
        except elyra.AuthenticationError as error:
            seen["refused"][kind] = str(error)
    try:
        works(client_of(elyras("EXISTING_BEARER_TOKEN", None, "x" + token)), args.namespace)
    except kfp_server_api.ApiException as error:
        seen["refused"]["EXISTING_BEARER_TOKEN"] = f"{error.status} {error.headers.get('content-type')}"

    kale = kales_clients(args.tools)
    for kind, where in {
        "dex": {"env_var": "KF_PIPELINES_COOKIES"},
        "existing_bearer_token": {"env_var": "KFBOX_TOKEN"},
        "kubernetes_service_account_token": {"token_path": os.environ["KF_PIPELINES_SA_TOKEN_PATH"]},
    }.items():
        client = kale.get_kfp_client(host=endpoint, auth_type=kind, auth_config=where, namespace=args.namespace)
        seen["kale"][kind] = works(client, args.namespace)
    assert not found_by_paging(client, "no pipeline has this name")
    return seen


def store(credentials: dict):
    return boto3.client(
        "s3",
        endpoint_url=credentials["endpointForPods"],
        region_name=credentials["region"],
        aws_access_key_id=credentials["accessKey"],
        aws_secret_access_key=credentials["secretKey"],
    )


def upload_archives(package: str, folder: pathlib.Path, credentials: dict) -> str:
    """What Elyra uploads when it compiles: an archive for each node, with the node's file. Returns where."""
    s3 = store(credentials)
    bucket, places = credentials["ownBucket"], set()
    try:
        s3.create_bucket(Bucket=bucket)
    except s3.exceptions.BucketAlreadyOwnedByYou:
        pass
    executors = next(yaml.safe_load_all(package))["deploymentSpec"]["executors"].values()
    for command in (" ".join(e["container"]["args"]) for e in executors):
        said = dict(re.findall(r"--([a-z-]+) '([^']*)'", command))
        assert said["cos-bucket"] == bucket, said
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            # Elyra names it by its place where the pipeline was compiled, and packs it by its name.
            name = pathlib.Path(said["file"]).name
            tar.add(folder / name, arcname=name)
        key = f"{said['cos-directory']}/{said['cos-dependencies-archive']}"
        s3.put_object(Bucket=bucket, Key=key, Body=content.getvalue())
        places.add(said["cos-directory"])
    (place,) = places
    return place


def run(args, file: pathlib.Path, name: str) -> dict:
    """Uploads a new pipeline and runs it, by the calls of Elyra's `KfpPipelineProcessor.process`."""
    client = kfp.Client(host=args.host, existing_token=args.token, namespace=args.namespace)
    client.list_experiments(namespace=args.namespace, page_size=1)
    unique = f"{name}-{time.time_ns()}"
    assert client.get_pipeline_id(unique) is None
    pipeline = client.upload_pipeline(str(file), pipeline_name=unique, description="compiled elsewhere")
    assert client.get_pipeline_id(unique) == pipeline.pipeline_id
    version = client.list_pipeline_versions(pipeline_id=pipeline.pipeline_id).pipeline_versions[0]
    experiment = client.create_experiment(name=name, namespace=args.namespace)
    started = client.run_pipeline(
        experiment_id=experiment.experiment_id,
        job_name=unique,
        pipeline_id=pipeline.pipeline_id,
        version_id=version.pipeline_version_id,
    )
    ended = client.get_run(started.run_id)
    limit = time.monotonic() + args.timeout
    while ended.state not in ENDED and time.monotonic() < limit:
        time.sleep(0.5)
        ended = client.get_run(started.run_id)
    tasks = (ended.run_details.task_details or []) if ended.run_details else []
    return {
        "run_id": ended.run_id,
        "state": ended.state,
        "error": ended.error.message if ended.error else None,
        "tasks": {t.display_name: t.state for t in tasks},
        "pods": {t.display_name: t.executor_detail.main_job for t in tasks if t.executor_detail},
    }


def elyra(args) -> dict:
    credentials, folder = json.load(sys.stdin), args.compiled / "elyra"
    file = folder / "elyra-numbers.yaml"
    place = upload_archives(file.read_text(), folder, credentials)
    seen = run(args, file, "elyra-numbers")
    if seen["state"] == "SUCCEEDED":
        found = store(credentials).get_object(Bucket=credentials["ownBucket"], Key=f"{place}/total.txt")
        seen["total"] = found["Body"].read().decode()
    return seen


def kale(args) -> dict:
    credentials = json.load(sys.stdin)
    seen = run(args, args.compiled / "kale" / "kale-numbers.yaml", "kale-numbers")
    s3, reports = store(credentials), []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=credentials["bucket"], Prefix=credentials["prefix"]):
        keys = [o["Key"] for o in page.get("Contents", []) if seen["run_id"] in o["Key"]]
        reports += [key for key in keys if key.endswith("/total_html_report")]
    texts = [s3.get_object(Bucket=credentials["bucket"], Key=key)["Body"].read().decode() for key in reports]
    seen["total_in_report"] = [re.findall(r"the total is (\d+)", text)[-1:] for text in texts]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=["auth", "elyra", "kale"])
    parser.add_argument("--host", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--token")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a run; its steps install packages")
    parser.add_argument("--tools", type=pathlib.Path)
    args = parser.parse_args()
    args.compiled = pathlib.Path(__file__).resolve().parent.parent / "compiled"
    print(json.dumps({"auth": auth, "elyra": elyra, "kale": kale}[args.case](args)))


if __name__ == "__main__":
    main()
