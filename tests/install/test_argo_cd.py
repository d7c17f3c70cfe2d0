"""Argo CD's health of a study, told by its own Lua from statuses as the operator writes them."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledgers import a_ledger, a_study, paused, running
from on_cluster.operators import MANIFESTS
from study_operator.status import parse_status, render_refusal, render_status
from study_operator.trial import Ledger, Outcome, Stage, StageState

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HEALTH = MANIFESTS / "argo-cd/health.lua"
STUDY = replace(a_study(), generation=3)


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


def judge(linters: Path, script: str, study: Mapping[str, Any]) -> tuple[str, str]:
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


def a_body(status: Mapping[str, Any] | None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.study/v1alpha1",
        "kind": "FineTuneStudy",
        "metadata": {"name": "shop", "generation": 3, **metadata},
        "spec": {},
        **({} if status is None else {"status": status}),
    }


def status_of(ledger: Ledger, *, suspend: bool = False, storage_problem: tuple[str, str] = ("", "")) -> dict[str, Any]:
    return render_status(replace(STUDY, suspend=suspend), ledger, now=NOW, storage_problem=storage_problem)


SEARCHING = a_ledger(paused(0, 0.5), running(paused(1, 0.6)))
COMPLETED = a_ledger(outcome=Outcome(failed=False, reason="Completed", message="trial t001 is the winner"))
FAILED = a_ledger(outcome=Outcome(failed=True, reason="NothingTrains", message="the first six arms diverged"))
REFUSED = render_refusal(
    parse_status(None), generation=3, reason="Invalid", problems=["`spec.storage.uri` must be there"], now=NOW
)
CASES: Mapping[str, tuple[Mapping[str, Any], tuple[str, str]]] = {
    "new": (a_body(None), ("Progressing", "Waiting for the operator")),
    "an empty status": (a_body({}), ("Progressing", "Waiting for the operator")),
    "changed": (
        a_body(status_of(COMPLETED), generation=4),
        ("Progressing", "Waiting for the operator to see a change"),
    ),
    "preparing": (a_body(status_of(Ledger(prepare=Stage(state=StageState.PENDING)))), ("Progressing", "Preparing")),
    "exploring": (a_body(status_of(SEARCHING)), ("Progressing", "Exploring: 2 of 4 trials measured")),
    "suspended": (a_body(status_of(SEARCHING, suspend=True)), ("Suspended", "Suspended")),
    "bucket away": (
        a_body(status_of(SEARCHING, storage_problem=("Unreachable", "no answer"))),
        ("Progressing", "Unreachable: no answer"),
    ),
    "complete": (a_body(status_of(COMPLETED)), ("Healthy", "Completed: trial t001 is the winner")),
    "complete and suspended": (
        a_body(status_of(COMPLETED, suspend=True)),
        ("Healthy", "Completed: trial t001 is the winner"),
    ),
    "failed": (a_body(status_of(FAILED)), ("Degraded", "NothingTrains: the first six arms diverged")),
    "not accepted": (a_body(REFUSED), ("Degraded", "Invalid: `spec.storage.uri` must be there")),
    "being deleted": (
        a_body(status_of(FAILED), deletionTimestamp="2026-01-01T00:00:00Z"),
        ("Progressing", "Being deleted"),
    ),
}


@pytest.mark.parametrize(("study", "said"), CASES.values(), ids=CASES)
def test_health_follows_the_conditions(linters: Path, study: Mapping[str, Any], said: tuple[str, str]) -> None:
    assert judge(linters, HEALTH.read_text(), study) == said


def test_the_patch_of_argo_cds_configuration_has_the_same_script(linters: Path) -> None:
    patch = yaml.safe_load((MANIFESTS / "argo-cd/argocd-cm.yaml").read_text())
    [script] = patch["data"].values()
    assert script == HEALTH.read_text()
    study, said = CASES["complete"]
    assert judge(linters, script, study) == said
