"""Argo CD's health of a study, told by its own Lua from statuses as the operator writes them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from install.bodies import BODIES
from on_cluster.operators import MANIFESTS
from testcluster.kube import Cluster

HEALTH = MANIFESTS / "argo-cd/health.lua"


def as_lua(value: Any) -> str:
    """Write a value as Lua does."""
    match value:
        case None:
            return "nil"
        case dict():
            return "{" + ", ".join(f"[{as_lua(key)}] = {as_lua(item)}" for key, item in value.items()) + "}"
        case list():
            return "{" + ", ".join(map(as_lua, value)) + "}"
        case _:
            return json.dumps(value)


def assess(linters: Path, script: str, study: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a health script says of a study, with the libraries that Argo CD leaves it."""
    taken = "io, os, string, math, debug, coroutine, channel, dofile, loadfile = nil"
    program = f"{taken}\nlocal obj = {as_lua(study)}\nlocal function health()\n{script}\nend\nlocal said = health()\n"
    program += 'print(said.status .. "|" .. (said.message or ""))\n'
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(program)
        file.flush()
        result = subprocess.run([linters / "glua", file.name], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr
    status, _, message = result.stdout.strip().partition("|")
    return status, message


SAID: Mapping[str, tuple[str, str]] = {
    "new": ("Progressing", "Waiting for the operator"),
    "an empty status": ("Progressing", "Waiting for the operator"),
    "changed": ("Progressing", "Waiting for the operator to see a change"),
    "preparing": ("Progressing", "Preparing"),
    "exploring": ("Progressing", "Exploring: 2 of 4 trials measured"),
    "suspended": ("Suspended", "Suspended"),
    "bucket away": ("Progressing", "Unreachable: no answer"),
    "complete": ("Healthy", "Completed: trial t001 is the winner"),
    "complete and suspended": ("Healthy", "Completed: trial t001 is the winner"),
    "failed": ("Degraded", "NothingTrains: the first six arms diverged"),
    "not accepted": ("Degraded", "Invalid: `spec.storage.uri` must be there"),
    "being deleted": ("Progressing", "Being deleted"),
}


@pytest.mark.parametrize("case", BODIES)
def test_health_follows_the_conditions(linters: Path, case: str) -> None:
    assert assess(linters, HEALTH.read_text(), BODIES[case]) == SAID[case]


def test_the_component_adds_it_to_a_configuration(cluster: Cluster, tmp_path: Path) -> None:
    ours = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": {"url": "theirs"}}
    (tmp_path / "argocd-cm.yaml").write_text(json.dumps(ours))
    component = os.path.relpath(MANIFESTS / "argo-cd", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": ["argocd-cm.yaml"], "components": [component]})
    )
    built = yaml.safe_load(cluster.kubectl("kustomize", str(tmp_path)).stdout)
    assert built["data"] == {
        "url": "theirs",
        "resource.customizations.health.finetune.study_FineTuneStudy": HEALTH.read_text(),
    }


def test_the_patch_of_argo_cds_configuration_has_the_same_script(linters: Path) -> None:
    patch = yaml.safe_load((MANIFESTS / "argo-cd/argocd-cm.yaml").read_text())
    [script] = patch["data"].values()
    assert script == HEALTH.read_text()
    assert assess(linters, script, BODIES["complete"]) == SAID["complete"]
