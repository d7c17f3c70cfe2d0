"""The operator's processes: `python -m study_operator.cluster.operator` as the service account of manifests/operator.

Of the manifests everything is used as it stands; only names are other ones, so that tests share a cluster: what is in
`finetune-study-system` goes into the test's namespace, and what belongs to no namespace gets that as a suffix.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import urllib3
import yaml
from prometheus_client.parser import text_string_to_metric_families

from testcluster import processes
from testcluster.demo import ANY_PORTS, ON_LOOPBACK
from testcluster.kube import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "manifests"
HOME = "finetune-study-system"
NAME = "finetune-study-operator"
PATIENCE_SECONDS = 300.0
"""How long anything may take on the busiest machine."""

FAST = {"backoffSeconds": 0.5, "waitingSaidAfterSeconds": 1.0, "reportIntervalSeconds": 1.0}
"""Waits that a test does not want to wait for."""


def read_manifests(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def read_access(namespace: str) -> list[dict[str, Any]]:
    """Return who the operator is and what it may do, as the manifests have it, at home in a namespace of a test."""
    objects = read_manifests(MANIFESTS / "operator/access.yaml")
    objects += read_manifests(MANIFESTS / "operator/per-namespace/secrets.yaml")
    return [moved for each in objects if (moved := _move(each, namespace)) is not None]


def _move(raw: dict[str, Any], namespace: str) -> dict[str, Any] | None:
    kind, metadata = raw["kind"], raw["metadata"]
    if kind == "Namespace":
        return None
    if kind.startswith("Cluster"):
        metadata["name"] = f"{metadata['name']}-{namespace}"
    else:
        metadata["namespace"] = namespace
    if "roleRef" in raw and raw["roleRef"]["kind"] == "ClusterRole":
        raw["roleRef"]["name"] = f"{raw['roleRef']['name']}-{namespace}"
    for subject in raw.get("subjects", ()):
        assert subject["namespace"] == HOME
        subject["namespace"] = namespace
    return raw


@contextlib.contextmanager
def granted(cluster: Cluster, objects: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Apply manifests; take away again what belongs to no namespace."""
    cluster.apply(*objects)
    try:
        yield
    finally:
        for each in objects:
            if each["kind"].startswith("Cluster"):
                plural = f"{each['kind'].lower()}s"
                cluster.api.delete(f"/apis/rbac.authorization.k8s.io/v1/{plural}/{each['metadata']['name']}")


def operator_environment(kubeconfig: Path) -> dict[str, str]:
    """Return the variables of an operator's process."""
    # What the operator's pod has none of: credentials of its own come from a test where it wants any.
    given = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    paths = [str(REPOSITORY / name) for name in ("operator", "trainer", "tests")]
    return {
        **given,
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": os.pathsep.join(paths),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class OperatorProcess:
    """One replica.

    Args:
        kubeconfig: Whom it runs as, and where.
        directory: For its log and its configuration.
        config: What `--config` names, besides the endpoints of this machine.
        arguments: Further flags.
        module: What is run instead of the operator's own entry point.
        environment: Further variables.
    """

    def __init__(
        self,
        kubeconfig: Path,
        directory: Path,
        *,
        config: Mapping[str, Any],
        arguments: Sequence[str] = (),
        module: str = "study_operator.cluster.operator",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "operator.log"
        file = directory / "operator.yaml"
        file.write_text(yaml.safe_dump({**ON_LOOPBACK, **config}))
        command = [sys.executable, "-m", module, "--config", str(file), *ANY_PORTS, *arguments]
        given = {**operator_environment(kubeconfig), **(environment or {})}
        self.begun_at = time.monotonic()
        self.process = processes.spawn(command, log=self._log, environment=given, directory=directory)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_until_says(self, word: str, *, seconds: float = PATIENCE_SECONDS) -> re.Match[str]:
        """Wait until a line of its log holds an expression."""

        def find() -> re.Match[str] | None:
            assert self.process.poll() is None, f"the operator ended with {self.process.poll()}:\n{self.log[-4000:]}"
            return re.search(word, self.log)

        return wait_until(find, seconds=seconds, why=lambda: f"no {word!r} in the log:\n{self.log[-4000:]}")

    def wait_until_works(self) -> None:
        """Wait until it holds the Lease and knows what is there."""
        self.wait_until_says(" working in ")

    def ask_health(self) -> int:
        """Return the status of /healthz."""
        port = self.wait_until_says(r"healthz: port (\d+)")[1]
        return urllib3.request("GET", f"http://127.0.0.1:{port}/healthz", retries=False, timeout=10.0).status

    def scrape(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Return what Prometheus would read: by name, then by the labels in the order of their names."""
        port = self.wait_until_says(r"metrics: port (\d+)")[1]
        text = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", retries=False, timeout=10.0).data.decode()
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def kill(self) -> None:
        """Kill it with SIGKILL, and the optimizer's process with it."""
        processes.kill(self.process)

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        return processes.end(self.process, grace_seconds=60.0)

    def freeze(self) -> None:
        """Let it do nothing, with open connections."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Return its exit code, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the operator goes on:\n{self.log[-4000:]}") from error


def wait_until(
    find: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS, why: Callable[[], str] = lambda: "it did not happen"
) -> Any:
    """Return what a function finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"after {seconds:g} s: {why()}")
