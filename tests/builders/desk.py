"""One study's status, jobs, objects and proposals as a test lays them out, and one tick over them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from builders.ledgers import (
    NOW,
    a_study,
)
from study_operator.errors import ConflictError, LaunchRefusedError, StatusRefusedError
from study_operator.ledger.bucket_copy import render_copy
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import (
    Ledger,
    Trial,
)
from study_operator.optimizer.designer import DesignerError, ProposalPendingError, Suggestion
from study_operator.reconcile.runner import JobSpec, JobStatus
from study_operator.reconcile.tick import TickResult, tick
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError


@dataclass
class Desk:
    """Status, jobs, objects and proposals of one study, as the test lays them out."""

    status: Mapping[str, Any] | None = None
    version: int = 0
    statuses: list[JobStatus] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    proposals: list[Suggestion] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """What was done, in order."""
    launched: list[JobSpec] = field(default_factory=list)
    is_written_behind: bool = False
    is_bucket_away: bool = False
    is_read_only: bool = False
    probes: list[str] = field(default_factory=list)
    """Objects that were written."""
    takes: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the API server takes a status."""
    problem: str = ""
    refusal: str = ""
    refused_as: str = "QuotaExceeded"
    is_thinking: bool = False
    uri: str = "desk"

    def read(self, key: str | None = None, most_bytes: int | None = None) -> Any:
        """Read the status, or an object."""
        if key is None:
            return self.status, self.version
        if self.is_bucket_away:
            raise ArtifactError("s3://bucket: timed out")
        content = self.objects.get(key)
        if most_bytes is not None and len(content or b"") > most_bytes:
            raise ArtifactError(f"{key} must have at most {most_bytes} bytes", "ObjectTooLarge")
        return content

    def confirm(self, version: int) -> None:
        """Conflict where somebody else was first."""
        if self.is_written_behind or version != self.version:
            raise ConflictError("somebody else was first")

    def write(self, status: Any, version: Any) -> int:
        """Write the status, or an object."""
        if isinstance(status, str):
            self.probes.append(status)
            if self.is_read_only:
                raise ArtifactError("s3://bucket: PutObject is refused", "AccessDenied")
            if version:
                self.objects[status] = version
            return 0
        if self.is_written_behind or version != self.version:
            raise ConflictError("somebody else was first")
        if self.takes is not None and not self.takes(status):
            self.log.append("refused")
            raise StatusRefusedError("status.trials: Too long: may not be more than 100")
        self.log.append("write")
        self.status, self.version = json.loads(json.dumps(status, allow_nan=False)), version + 1
        return self.version

    def jobs(self) -> Sequence[JobStatus]:
        """List the jobs."""
        return self.statuses

    def launch(self, spec: JobSpec) -> None:
        """Note a job."""
        if self.refusal:
            raise LaunchRefusedError(self.refused_as, self.refusal)
        self.log.append(f"launch {spec.name}")
        self.launched.append(spec)

    def delete(self, name: str) -> int:
        """Note the end of a job, or of objects."""
        self.log.append(f"delete {name}")
        return 0

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Hand out what is laid out."""
        self.log.append(f"suggest {count} after {len(trials)} for {study.name}")
        if self.problem:
            raise DesignerError(self.problem)
        if self.is_thinking:
            raise ProposalPendingError
        return tuple(self.proposals[:count])

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under a prefix."""
        if self.is_bucket_away:
            raise ArtifactError("s3://bucket: timed out")
        yield from (key for key in self.objects if key.startswith(prefix))

    @property
    def ledger(self) -> Ledger:
        """What is written."""
        return parse_status(self.status).ledger


def a_desk(ledger: Ledger | None = None, *jobs: JobStatus, study: Study | None = None, **changes: Any) -> Desk:
    """Return a desk on which a ledger is written."""
    status = None if ledger is None else render_status(study or a_study(), ledger, now=NOW)
    status = None if status is None else {**status, "reportURI": "/bucket/team/s1-01234567/report/report.json"}
    return Desk(status=status, version=int(status is not None), statuses=list(jobs), **changes)


def run(desk: Desk, study: Study | None = None, **changes: Any) -> TickResult:
    """Run one tick."""
    return tick(
        study or a_study(),
        statuses=desk,
        runner=desk,
        artifacts=desk,  # type: ignore[arg-type]
        designer=desk,
        **{"now": NOW, **changes},
    )


def a_proposal(rate: float = 5e-4) -> Suggestion:
    """Return an arm of the optimizer."""
    return Suggestion(arm={"learning_rate": rate}, generation_node="Sobol")


def conditions_of(result: TickResult) -> dict[str, tuple[str, str]]:
    """Return each condition's status and reason."""
    return {c["type"]: (c["status"], c["reason"]) for c in result.status["conditions"]}


def put_copy(desk: Desk, ledger: Ledger) -> None:
    """Lay a ledger into the bucket, as the operator keeps it there."""
    desk.objects["ledger.json"] = render_copy(a_study(), render_status(a_study(), ledger, now=NOW))
