"""What the reconcile loop asks of whatever runs jobs: a cluster, or subprocesses on a laptop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class JobKind(StrEnum):
    """What a job runs; each has its own subcommand and configuration variable in the trial contract."""

    PREPARE = "Prepare"
    TRIAL = "Trial"
    FINAL_EVALUATION = "FinalEvaluation"

    @property
    def label(self) -> str:
        """As a label's value has it: ``final-evaluation``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", self).lower()


class JobPhase(StrEnum):
    """Where a job stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    FINISHED = "Finished"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job to create. Its name is a function of study, trial and rung, so that creating it twice is harmless."""

    name: str
    kind: JobKind
    config: str
    """JSON of the contract's configuration."""
    trial: str = ""
    rung: int = 0
    processes: int = 1
    digest: str = ""
    """Of all that decides its result, as in its configuration."""


@dataclass(frozen=True, kw_only=True)
class EndedAttempt:
    """A run of a job that has ended while the job itself goes on: a cluster may have put another one in its place."""

    attempt: str
    placed_at: datetime | None = None
    """Since when it has been scheduled: it cannot have started before."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What is seen of one job now."""

    name: str
    kind: JobKind
    phase: JobPhase
    attempt: str
    """Unique for each run of a job of this name."""
    placed_at: datetime | None = None
    """Since when it has been scheduled: it cannot have started before."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    reason: str = ""
    """A CamelCase word from the environment, such as ``OOMKilled`` or ``NodeLost``; empty where the code says all."""
    message: str = ""
    earlier: tuple[EndedAttempt, ...] = ()
    """Runs of the same job before this one, in the order of time."""
    waits_since: datetime | None = None
    """Since when a job that is not running cannot start; ``reason`` and ``message`` say why. None: it just begins."""
    digest: str = ""
    """What it was created with; empty where it was created by an earlier version."""
    is_foreign: bool = False
    """Whether it has another digest than the job of its name must have: it is another arm's, or another winner's."""
    orphans: tuple[str, ...] = ()
    """Pods that go on although the job was deleted from under them: whoever runs jobs cannot stop these."""
    is_refused: bool = False
    """Whether the cluster does not take its pod: a quota, Pod Security, a policy."""
    is_stuck: bool = False
    """Whether that is the environment's fault (an image that cannot be pulled, a quota), so that there is a limit to
    it. A job that waits in a queue or for a free accelerator is not stuck: no clock runs."""


class TrialRunner(Protocol):
    """Jobs of one study."""

    def jobs(self) -> Sequence[JobStatus]:
        """Return every job that exists, finished ones included, until it is deleted."""
        ...

    def launch(self, spec: JobSpec) -> None:
        """Create a job; a no-op where one of that name exists."""
        ...

    def delete(self, name: str) -> None:
        """Ask a job to stop (SIGTERM, then the grace period) and forget it once it is gone."""
        ...
