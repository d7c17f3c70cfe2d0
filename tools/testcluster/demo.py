"""The demo on a cluster, from apply to the winner, with kubectl: `make demo-cluster`.

    python -m testcluster.demo [--study manifests/samples/bookings-quick.yaml]

`KUBECONFIG` and `AWS_*` as `make cluster` exports them are used where they name servers of this machine; else it starts
its own and ends them. Pods are processes of this machine there: that is why a study's base model may be a local path.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import yaml

from testcluster import build, processes
from testcluster.bucket import REGION, S3Server
from testcluster.fixtures import find_given_cluster
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import StandIn

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "manifests"
BUCKET = "ml-studies"
NAMESPACE, SYSTEM, NAME = "demo", "finetune-study-system", "finetune-study-operator"
LOOK_SECONDS = 1.0
ANY_PORTS = ("--health-port", "0", "--metrics-port", "0")
ON_LOOPBACK = {"endpoints": ["http://127.0.0.1:*", "https://127.0.0.1:*", "http://localhost:*", "https://localhost:*"]}
"""What an operator has to be told where its buckets are on this machine."""

Environment = Mapping[str, str]


def main() -> int:
    """Run the demo; return 0 where there is a winner."""
    parser = argparse.ArgumentParser(prog="python -m testcluster.demo", description="A study on a cluster, by kubectl.")
    parser.add_argument("--study", type=Path, default=MANIFESTS / "samples/bookings-quick.yaml")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        try:
            cluster, bucket = find_servers(stack, directory)
        except build.BuildError as error:
            print(error, file=sys.stderr)
            return 1
        demo = Demo(cluster, bucket, directory)
        demo.install()
        stack.enter_context(demo.operating())
        return 0 if demo.run(make_study(arguments.study, bucket)) else 1


def find_servers(stack: contextlib.ExitStack, directory: Path) -> tuple[Cluster, Environment]:
    """Return the cluster and the bucket that the environment names, or new ones."""
    given = find_given_cluster()
    if given is not None and "AWS_ENDPOINT_URL" in os.environ:
        return given, {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    say("starting a cluster, nodes that run pods as processes, and an S3 server")
    kubernetes = build.find_kubernetes()
    versitygw = build.build(build.VERSITYGW) / "versitygw"
    plane = stack.enter_context(ControlPlane(directory / "control-plane", kubernetes))
    stack.enter_context(StandIn(plane.kubeconfig, directory=directory / "pods"))
    server = stack.enter_context(S3Server(directory / "s3", versitygw))
    server.make_bucket(BUCKET)
    return plane, server.environment()


def make_study(path: Path, bucket: Environment) -> dict[str, Any]:
    """Return a study of a laptop as one of a cluster: its pages go into the bucket, and so does what it makes."""
    study: dict[str, Any] = yaml.safe_load(path.read_text())
    spec = study["spec"]
    client = boto3.client(
        "s3",
        endpoint_url=bucket["AWS_ENDPOINT_URL"],
        region_name=REGION,
        aws_access_key_id=bucket["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=bucket["AWS_SECRET_ACCESS_KEY"],
    )
    for field in ("source", "testSource"):
        if field in spec["data"]:
            pages = path.parent / spec["data"][field]
            key = f"pages/{pages.parent.name}/{pages.name}"
            client.upload_file(str(pages), BUCKET, key)
            spec["data"][field] = f"s3://{BUCKET}/{key}"
    model = spec["trainer"]["baseModel"]
    model["uri"] = str((path.parent / model["uri"]).resolve())
    spec["trainer"]["template"] = {"spec": {"containers": [{"name": "trainer", "image": "finetune-study-trainer"}]}}
    spec["storage"] = {
        "uri": f"s3://{BUCKET}/demo",
        "endpoint": bucket["AWS_ENDPOINT_URL"],
        "region": REGION,
        "addressingStyle": "Path",
        "secretName": "bucket-credentials",
    }
    study["metadata"]["namespace"] = NAMESPACE
    return study


class Demo:
    """The demo on one cluster."""

    def __init__(self, cluster: Cluster, bucket: Environment, directory: Path) -> None:
        self._cluster, self._bucket, self._directory = cluster, bucket, directory

    def install(self) -> None:
        """Do what a platform team does once: CRD and rights, and a namespace with the bucket's Secret."""
        access = "manifests/operator/access.yaml"
        self._kubectl("apply", "--server-side", "-f", "manifests/crd/crd.yaml", "-f", access)
        self._kubectl("wait", "--for=condition=Established", "crd/finetunestudies.finetune.study")
        self._kubectl(
            "apply",
            "-f",
            "-",
            text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        )
        self._kubectl("apply", "-n", NAMESPACE, "-f", "manifests/operator/per-namespace/secrets.yaml")
        keys = {name: self._bucket[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "bucket-credentials",
                "namespace": NAMESPACE,
                "labels": {"finetune.study/bucket": "true"},
            },
            "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
        }
        self._kubectl("apply", "-f", "-", text=json.dumps(secret))

    @contextlib.contextmanager
    def operating(self) -> Any:
        """Run the operator beside the cluster, with the rights of its service account, as its Deployment would."""
        kubeconfig = self._cluster.service_account_kubeconfig(SYSTEM, NAME, self._directory)
        config = self._directory / "operator.yaml"
        config.write_text(yaml.safe_dump(ON_LOOPBACK))
        say("operator: python -m study_operator.cluster.operator, as its service account")
        operator = processes.spawn(
            [
                sys.executable,
                "-m",
                "study_operator.cluster.operator",
                "--config",
                str(config),
                *ANY_PORTS,
                "--lease-namespace",
                SYSTEM,
            ],
            log=self._directory / "operator.log",
            environment={
                **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
                "KUBECONFIG": str(kubeconfig),
                "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "operator"), str(REPOSITORY / "trainer")]),
            },
        )
        try:
            yield
        finally:
            processes.end(operator, grace_seconds=30.0)

    def run(self, study: Mapping[str, Any]) -> bool:
        """Apply a study, show how it goes on until it has ended, and say whether there is a winner."""
        name = study["metadata"]["name"]
        # Where it ran before on the same cluster, it begins anew.
        self._kubectl("delete", "fts", name, "-n", NAMESPACE, "--ignore-not-found")
        self._kubectl("apply", "--server-side", "-f", "-", text=json.dumps(dict(study)))
        shown = ""
        while True:
            found = json.loads(self._ask("get", "fts", name, "-n", NAMESPACE, "-o", "json"))
            conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", ())}
            lines = self._ask("get", "fts", name, "-n", NAMESPACE).splitlines()
            # The age is news each second, and nobody's.
            row = lines[-1].rsplit(maxsplit=1)[0]
            if row != shown:
                print("\n".join(lines if not shown else lines[1:]), flush=True)
                shown = row
            for ending in ("Complete", "Failed"):
                if conditions.get(ending, {}).get("status") == "True":
                    return self._tell_end(found, conditions[ending], is_complete=ending == "Complete")
            if conditions.get("Accepted", {}).get("status") == "False":
                return self._tell_end(found, conditions["Accepted"], is_complete=False)
            time.sleep(LOOK_SECONDS)

    def _tell_end(self, study: Mapping[str, Any], condition: Mapping[str, str], *, is_complete: bool) -> bool:
        name = study["metadata"]["name"]
        if is_complete:
            self._kubectl("wait", f"fts/{name}", "-n", NAMESPACE, "--for=condition=Complete", "--timeout=10s")
        # Its Jobs are gone: a Job goes when its result is known.
        selector = f"involvedObject.kind={study['kind']},involvedObject.name={name}"
        columns = "custom-columns=REASON:.reason,MESSAGE:.message"
        order = "--sort-by=.metadata.creationTimestamp"
        self._kubectl("get", "events", "-n", NAMESPACE, "--field-selector", selector, order, "-o", columns)
        print(f"{condition['reason']}: {condition['message']}")
        print(f"report: {study['status'].get('reportURI', '')}", flush=True)
        if not is_complete:
            print((self._directory / "operator.log").read_text()[-4000:], file=sys.stderr)
        return is_complete

    def _kubectl(self, *arguments: str, text: str | None = None) -> None:
        """Run kubectl as a person would, shown with what it says."""
        print(f"$ kubectl {' '.join(arguments)}", flush=True)
        print(self._ask(*arguments, text=text), end="", flush=True)

    def _ask(self, *arguments: str, text: str | None = None) -> str:
        result = self._cluster.kubectl(*arguments, text=text, directory=REPOSITORY, check=False)
        if result.returncode:
            raise SystemExit(f"kubectl {' '.join(arguments)}: {result.stderr}")
        return result.stdout


def say(text: str) -> None:
    """Say what goes on, as a comment in the transcript."""
    print(f"# {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
