"""The real Kueue controller beside a control plane of ours, its webhooks in front of the API server.

    with Kueue(plane, directory, build.build(build.KUEUE)) as kueue: ...

Everything comes from Kueue's own module: program, CRDs, webhooks. There is no network of Services here, so that the API
server reaches the webhooks by an address on loopback. It runs as whoever may do everything: its rights are not ours.
"""

from __future__ import annotations

import base64
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import urllib3
import yaml

from testcluster import processes
from testcluster.api import Object
from testcluster.kube import ControlPlane

START_SECONDS = 60.0
GROUPS = {"batch", "kueue.x-k8s.io"}
"""Whose webhooks are wanted; other frameworks than Jobs are not enabled."""


class PortTakenError(Exception):
    """Somebody else listens where it was to listen."""


class Kueue:
    """One controller.

    Args:
        plane: Its cluster.
        directory: For its certificate, configuration and log.
        programs: Where `kueue` and the files of its module lie.
    """

    def __init__(self, plane: ControlPlane, directory: Path, programs: Path) -> None:
        self._plane = plane
        self._directory = directory
        self._programs = programs
        self._port = self._health_port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Kueue:
        self._directory.mkdir(parents=True, exist_ok=True)
        for tries_left in (2, 1, 0):
            self._port, self._health_port = processes.pick_ports(2)
            try:
                self._install()
                break
            except PortTakenError:
                # By somebody who was quicker: the CRDs take a while.
                if not tries_left:
                    raise
        self._plane.apply(*self._webhooks())
        return self

    def _install(self) -> None:
        crds = [self._with_conversion(crd) for crd in self._read("crd-*.yaml")]
        self._plane.apply(*crds)
        names = [f"crd/{crd['metadata']['name']}" for crd in crds]
        self._plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        self._start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            processes.kill(self._process)

    @property
    def log(self) -> Path:
        """What it says."""
        return self._directory / "kueue.log"

    def _read(self, pattern: str) -> list[Object]:
        return [
            document
            for path in sorted(self._programs.glob(pattern))
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
            if document
        ]

    def _client(self, path: str) -> dict[str, Any]:
        authority = base64.b64encode((self._plane.directory / "ca.crt").read_bytes()).decode()
        return {"url": f"https://127.0.0.1:{self._port}{path}", "caBundle": authority}

    def _with_conversion(self, crd: Object) -> Object:
        webhook = {"clientConfig": self._client("/convert"), "conversionReviewVersions": ["v1"]}
        if crd["spec"]["names"]["plural"] in _CONVERTED:
            crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
        return crd

    def _webhooks(self) -> list[Object]:
        configurations = self._read("webhooks.yaml")
        for configuration in configurations:
            configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
            configuration["webhooks"] = [
                {**webhook, "clientConfig": self._client(webhook["clientConfig"]["service"]["path"])}
                for webhook in configuration["webhooks"]
                if any(GROUPS & set(rule["apiGroups"]) for rule in webhook["rules"])
            ]
        return configurations

    def _start(self) -> None:
        certificate, key = self._plane.issue("kueue")
        for name, content in (("tls.crt", certificate), ("tls.key", key)):
            (self._directory / name).write_bytes(content)
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._port, "certDir": str(self._directory)},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": ["batch/job"]},
            "featureGates": {"VisibilityOnDemand": False},
        }
        file = self._directory / "kueue.yaml"
        file.write_text(yaml.safe_dump(configuration))
        self.log.unlink(missing_ok=True)
        self._process = processes.spawn(
            [self._programs / "kueue", f"--config={file}"],
            log=self.log,
            environment={**os.environ, "KUBECONFIG": str(self._plane.kubeconfig)},
            directory=self._directory,
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._is_ready():
                return
            time.sleep(0.05)
        message = self.log.read_text(errors="replace")
        if "address already in use" in message:
            raise PortTakenError(message[-2000:])
        raise AssertionError(f"kueue did not come up: {message[-2000:]}")

    def _is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._health_port}/readyz"
            return urllib3.request("GET", url, retries=False, timeout=2.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False


_CONVERTED = {"clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads"}
"""As Kueue's own config/components/crd/kustomization.yaml has it."""
