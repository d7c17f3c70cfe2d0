"""A real cluster of one node with the operator installed, a bucket, and what people do to them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from builders.tiny_study import save_model, write_pages
from on_cluster.operators import MANIFESTS, wait_until
from on_cluster.studies import BUCKET, StudyOnCluster, a_secret, a_spec
from testcluster.api import Object
from testcluster.bucket import S3Server
from testcluster.kube import Cluster

SYSTEM, NAME, NAMESPACE = "finetune-study-system", "finetune-study-operator", "shop-ml"
GPU = "nvidia.com/gpu"
LIMITS = {"backoffSeconds": 2, "waitingSaidAfterSeconds": 10, "stuckLimitSeconds": 40, "reportIntervalSeconds": 5}
"""Waits other than the built-in ones, so that a story takes minutes."""
PATIENCE_SECONDS = 400.0

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def say(text: str) -> None:
    """Say what goes on, as a comment in the transcript."""
    print(f"# {time.strftime('%H:%M:%S')} {text}", flush=True)


class Stage:
    """What the stories play on.

    Args:
        cluster: The real cluster.
        server: The S3 server, at an address that pods reach.
        directory: For models and pages.
        scripts: Where node.sh is.
        environment: What the scripts are given.
        tag: Of both images.
    """

    def __init__(
        self,
        cluster: Cluster,
        server: S3Server,
        directory: Path,
        scripts: Path,
        environment: Mapping[str, str],
        tag: str,
    ) -> None:
        self.cluster, self.server, self.tag = cluster, server, tag
        self._directory, self._scripts, self._environment = directory, scripts, environment
        self._studies: list[StudyOnCluster] = []
        [self.node] = [each["metadata"]["name"] for each in cluster.api.list("/api/v1/nodes")]

    # Installing

    def install(self) -> None:
        """Install the operator as docs/install.md says, with kubectl, and the tag of this working copy's images."""
        user = self.server.add_user("trainer")
        self.server.make_bucket(BUCKET, users=[user])
        client = self.server.client()
        for file in save_model(self._directory / "model").iterdir():
            client.upload_file(str(file), BUCKET, f"models/tiny/{file.name}")
        client.upload_file(str(write_pages(self._directory / "pages.jsonl")), BUCKET, "pages/pages.jsonl")

        self.kubectl("apply", "--server-side", "-k", str(self._write_kustomization()))
        self.kubectl("wait", "--for=condition=Established", "crd/finetunestudies.finetune.study")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}}
        self.apply(namespace, note=f"namespace {NAMESPACE}, restricted")
        self.kubectl("apply", "-n", NAMESPACE, "-f", str(MANIFESTS / "operator/per-namespace/secrets.yaml"))
        self.apply(a_secret(NAMESPACE, user), note="the bucket's Secret")
        self.ask("delete", "fts", "--all", "-n", NAMESPACE)
        begun = time.monotonic()
        # Its rows go back and forth.
        self.ask("rollout", "status", f"deployment/{NAME}", "-n", SYSTEM, "--timeout=300s")
        say(f"both replicas are ready after {time.monotonic() - begun:.0f} s")
        self.kubectl("get", "pods", "-n", SYSTEM, "-o", "wide")

    def _write_kustomization(self) -> Path:
        """Write what an installation of its own has: the images of this node, and limits that end in minutes."""
        directory = self._directory / "installation"
        directory.mkdir()
        config = {
            "trainerImage": f"finetune-study-trainer:{self.tag}",
            "limits": LIMITS,
            "endpoints": ["http://*", "https://*"],
        }
        (directory / "operator.yaml").write_text(yaml.safe_dump(config))
        generator = {"name": f"{NAME}-config", "namespace": SYSTEM, "behavior": "replace", "files": ["operator.yaml"]}
        kustomization = {
            "resources": [os.path.relpath(MANIFESTS / "overlays/cluster-wide", directory.resolve())],
            "images": [{"name": NAME, "newTag": self.tag}],
            "configMapGenerator": [generator],
        }
        (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return directory

    def offer_gpus(self, count: int = 4) -> None:
        """Let the node offer GPUs that it does not have; a kubelet forgets them when it starts."""
        status = {"status": {"capacity": {GPU: str(count)}, "allocatable": {GPU: str(count)}}}
        self.cluster.api.patch(f"/api/v1/nodes/{self.node}/status", status, kind="strategic")
        wait_until(lambda: self.read_node()["status"]["allocatable"].get(GPU) == str(count))

    # Studies

    def spec(self, *, arms: int = 2, parallel: int = 1, epochs: int = 3, **trainer: Any) -> dict[str, Any]:
        """Return the spec of a study of a random model of two layers; two epochs are a step."""
        spec = a_spec(self.server, arms=arms, parallel=parallel)
        container = {
            "name": "trainer",
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "HF_HUB_OFFLINE", "value": "1"}],
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        }
        spec["data"] |= {
            "source": f"s3://{BUCKET}/pages/pages.jsonl",
            "split": {"validationPercent": 40, "testPercent": 0},
        }
        spec["trainer"] |= {
            "baseModel": {"uri": f"s3://{BUCKET}/models/tiny"},
            "precision": "Float32",
            "epochs": epochs,
            "template": {"spec": {"containers": [container]}},
            **trainer,
        }
        return spec

    def study(self, name: str, spec: Mapping[str, Any]) -> StudyOnCluster:
        """Apply a study."""
        study = StudyOnCluster(self.cluster, NAMESPACE, name)
        self._studies.append(study)
        manifest = {
            "apiVersion": "finetune.study/v1alpha1",
            "kind": "FineTuneStudy",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": dict(spec),
        }
        self.apply(manifest, note=f"study {name}")
        return study

    def follow(
        self, study: StudyOnCluster, is_so: Callable[[StudyOnCluster], Any], *, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for something to hold for a study; show each row that kubectl prints on the way."""
        deadline, shown = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            lines = self.ask("get", "fts", study.name, "-n", NAMESPACE).splitlines()
            row = lines[-1].rsplit(maxsplit=1)[0]
            if row != shown:
                print("\n".join(lines if not shown else lines[1:]), flush=True)
                shown = row
            if is_so(study.refresh()):
                return
            time.sleep(1.0)
        raise AssertionError(f"after {seconds:g} s: {study.describe()}")

    def wait_for_log(self, study: StudyOnCluster, trial: str, words: str, *, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until a running pod of a trial has said something; return the pod's name."""

        def find() -> str:
            for pod in study.live_pods(trial):
                name = str(pod["metadata"]["name"])
                if re.search(words, self.log(name)):
                    return name
            return ""

        return str(wait_until(find, seconds=seconds, why=study.refresh().describe))

    def log(self, pod: str) -> str:
        """Return what a pod has said so far; nothing where it has not started or is gone."""
        return self.cluster.kubectl("logs", pod, "-n", NAMESPACE, check=False).stdout

    def attempts(self, study: StudyOnCluster, trial: int) -> list[tuple[str, Any]]:
        """Return how the attempts of a trial ended, and show them."""
        found = study.refresh().trial(trial).get("attempts", ())
        for each in found:
            print("  ", json.dumps(each), flush=True)
        return [(each["reason"], each.get("exitCode")) for each in found]

    def pod_status(self, pod: str) -> Object:
        """Return a pod's status; empty where it is gone."""
        found = self.cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}")
        return (found or {}).get("status", {})

    def clean(self) -> None:
        """Take earlier studies away, and let the node offer its GPUs."""
        for study in self._studies:
            study.delete()
            study.wait_until_gone()
        for study in self._studies:
            wait_until(lambda study=study: not study.jobs() and not study.pods())
        self._studies.clear()
        self.offer_gpus()

    # The node

    def read_node(self) -> Object:
        """Return the node."""
        found = self.cluster.api.get(f"/api/v1/nodes/{self.node}")
        assert found is not None
        return found

    def is_ready(self) -> bool:
        """Say whether the API server takes the node for alive."""
        return any(c["type"] == "Ready" and c["status"] == "True" for c in self.read_node()["status"]["conditions"])

    def kill_kubelet(self) -> None:
        """Kill the kubelet; its pods go on."""
        pid = int((Path(self._environment["LAB"]) / "run/kubelet.pid").read_text())
        print(f"$ kill -9 {pid}   # kubelet", flush=True)
        os.kill(pid, signal.SIGKILL)

    def start_kubelet(self) -> None:
        """Start the kubelet again."""
        print("$ node.sh start", flush=True)
        subprocess.run([self._scripts / "node.sh", "start"], env=self._environment, check=True)
        wait_until(self.is_ready)

    # kubectl

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as a person would, shown with what it says."""
        print(f"$ kubectl {' '.join(arguments)}", flush=True)
        message = self.ask(*arguments, text=text)
        print(message, end="", flush=True)
        return message

    def apply(self, *objects: Mapping[str, Any], note: str) -> None:
        """Apply manifests on the server."""
        print(f"$ kubectl apply --server-side -f -   # {note}", flush=True)
        print(self.cluster.apply(*objects), end="", flush=True)

    def ask(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; return what it says."""
        return self.cluster.kubectl(*arguments, text=text).stdout

    def tell_all(self) -> None:
        """Show what a person looks at when something went wrong."""
        for study in self._studies:
            print(study.refresh().describe())
        print(self.cluster.kubectl("get", "pods", "-A", "-o", "wide", check=False).stdout)
        words = ("logs", f"deployment/{NAME}", "-n", SYSTEM, "--all-pods", "--tail=30")
        print(self.cluster.kubectl(*words, check=False).stdout)


def show_pod(pod: Object) -> None:
    """Show what a container's end looks like to whoever reads the API."""
    status = pod.get("status", pod)
    states: Sequence[Object] = status.get("containerStatuses", ())
    for each in states:
        print(
            "  ",
            json.dumps({"phase": status.get("phase"), "reason": status.get("reason"), **each["state"]}),
            flush=True,
        )
