"""The ledger: what is known of each trial, and the one table of legal moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from study_operator.study import Arm


class TrialState(StrEnum):
    """Where a trial stands."""

    PENDING = "Pending"
    """In the ledger, its job not yet seen running on this rung."""
    RUNNING = "Running"
    PAUSED = "Paused"
    """Measured on the first rung; may be promoted."""
    COMPLETED = "Completed"
    """Measured at full length."""
    STOPPED = "Stopped"
    """Measured on the first rung and not promoted."""
    FAILED = "Failed"
    """The environment's fault, after our limit of attempts. May be suggested again."""
    ABANDONED = "Abandoned"
    """The arm's fault: it can't run. Never suggested again."""


class Origin(StrEnum):
    """Why this arm is in the study."""

    BASELINE = "Baseline"
    STARTING_ARM = "StartingArm"
    SUGGESTED = "Suggested"


class Continuation(StrEnum):
    """Why a trial goes on to full length."""

    PROMOTED = "Promoted"
    BASELINE = "Baseline"
    AUDITED = "Audited"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A reading of one rung, as the ledger keeps it."""

    rung: int
    step: int
    value: float
    """The objective's metric; always finite (a diverged trial gets the objective's worst value)."""
    standard_error: float | None
    metrics: Mapping[str, float]
    """Every metric by name, finite."""
    standard_errors: Mapping[str, float]
    counts: Mapping[str, int]
    checkpoint: str
    """URI; empty where the trial diverged."""
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a job's pod or process: what budgets and usage are summed from."""

    rung: int
    started_at: datetime
    finished_at: datetime | None = None
    exit_code: int | None = None
    reason: str = ""
    """Empty while it runs; then a CamelCase word: ``Succeeded``, ``Diverged``, ``OutOfMemory``, ``NodeLost`` …"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm with all its rungs."""

    index: int
    arm: Arm
    origin: Origin
    generation_node: str = ""
    """How the optimizer came to it (``Sobol``, ``MBM`` …); empty for baseline and starting arms."""
    state: TrialState = TrialState.PENDING
    rung: int = 0
    """0: up to the early evaluation; 1: to full length."""
    total_steps: int
    continuation: Continuation | None = None
    inclusion_probability: float | None = None
    """Probability with which this trial came to be measured at full length (1 for promoted and baseline)."""
    measurements: tuple[Measurement, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    message: str = ""
    """One sentence for a person where the state needs one."""

    @property
    def name(self) -> str:
        """For example ``t003``."""
        return f"t{self.index:03d}"

    def measurement(self, rung: int) -> Measurement | None:
        """Return what was measured at a rung."""
        return next((m for m in self.measurements if m.rung == rung), None)


LEGAL_MOVES: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset(
        {TrialState.RUNNING, TrialState.PAUSED, TrialState.COMPLETED, TrialState.FAILED, TrialState.ABANDONED}
    ),
    TrialState.RUNNING: frozenset(
        {TrialState.PENDING, TrialState.PAUSED, TrialState.COMPLETED, TrialState.FAILED, TrialState.ABANDONED}
    ),
    TrialState.PAUSED: frozenset({TrialState.PENDING, TrialState.STOPPED}),
    TrialState.COMPLETED: frozenset(),
    TrialState.STOPPED: frozenset({TrialState.PENDING}),
    TrialState.FAILED: frozenset(),
    TrialState.ABANDONED: frozenset(),
}
"""From Running back to Pending: the environment took the attempt. From Stopped to Pending: the next best replaces a
promoted trial that failed."""


class IllegalMoveError(Exception):
    """A trial was moved in a way that the table does not know: a bug, not data."""


def move(trial: Trial, state: TrialState, *, message: str = "") -> Trial:
    """Return the trial in a new state."""
    if state is trial.state:
        return replace(trial, message=message or trial.message)
    if state not in LEGAL_MOVES[trial.state]:
        raise IllegalMoveError(f"trial {trial.name} cannot move from {trial.state} to {state}")
    return replace(trial, state=state, message=message)
