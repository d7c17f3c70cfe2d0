"""Studies as the operator leaves them, for those who only look: Argo CD and Flux."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from builders.ledgers import a_ledger, a_study, paused, running
from study_operator.ledger.status import parse_status, render_refusal, render_status
from study_operator.ledger.trial import Ledger, Outcome, Stage, StageState
from study_operator.reasons import Problem

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GENERATION = 3
STUDY = replace(a_study(), generation=GENERATION)


def a_body(status: Mapping[str, Any] | None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.study/v1alpha1",
        "kind": "FineTuneStudy",
        "metadata": {"name": "shop", "generation": GENERATION, **metadata},
        "spec": {},
        **({} if status is None else {"status": status}),
    }


def status_of(ledger: Ledger, *, suspend: bool = False, storage_problem: Problem | None = None) -> dict[str, Any]:
    return render_status(replace(STUDY, suspend=suspend), ledger, now=NOW, storage_problem=storage_problem)


SEARCHING = a_ledger(paused(0, 0.5), running(paused(1, 0.6)))
COMPLETED = a_ledger(outcome=Outcome(failed=False, reason="Completed", message="trial t001 is the winner"))
FAILED = a_ledger(outcome=Outcome(failed=True, reason="NothingTrains", message="the first six arms diverged"))
REFUSED = render_refusal(
    parse_status(None), generation=GENERATION, reason="Invalid", problems=["`spec.storage.uri` must be there"], now=NOW
)
BODIES: Mapping[str, Mapping[str, Any]] = {
    "new": a_body(None),
    "an empty status": a_body({}),
    "changed": a_body(status_of(COMPLETED), generation=GENERATION + 1),
    "preparing": a_body(status_of(Ledger(prepare=Stage(state=StageState.PENDING)))),
    "exploring": a_body(status_of(SEARCHING)),
    "suspended": a_body(status_of(SEARCHING, suspend=True)),
    "bucket away": a_body(status_of(SEARCHING, storage_problem=Problem("Unreachable", "no answer"))),
    "complete": a_body(status_of(COMPLETED)),
    "complete and suspended": a_body(status_of(COMPLETED, suspend=True)),
    "failed": a_body(status_of(FAILED)),
    "not accepted": a_body(REFUSED),
    "being deleted": a_body(status_of(FAILED), deletionTimestamp="2026-01-01T00:00:00Z"),
}
