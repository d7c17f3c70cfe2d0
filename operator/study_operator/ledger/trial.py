"""The ledger: what is known of each trial and of the study's own jobs, and the one table of legal moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from study_operator.backoff import wait_after
from study_operator.errors import IllegalMoveError
from study_operator.ledger.texts import TRIAL_MESSAGE_BYTES, Message, Word, written_up_to
from study_operator.reasons import EndReason
from study_operator.settings import Settings
from study_operator.spec.study import Arm


class TrialState(StrEnum):
    """Where a trial stands."""

    PENDING = "Pending"
    """In the ledger, its job not yet seen running on this rung."""
    RUNNING = "Running"
    PAUSED = "Paused"
    """Measured on an early rung; may be promoted."""
    COMPLETED = "Completed"
    """Measured at full length."""
    STOPPED = "Stopped"
    """Measured on an early rung and not promoted from it."""
    FAILED = "Failed"
    """The environment's fault, after our limit of attempts. May be suggested again."""
    ABANDONED = "Abandoned"
    """The arm's fault: it can't run. Never suggested again."""


class Origin(StrEnum):
    """Why this arm is in the study."""

    BASELINE = "Baseline"
    STARTING_ARM = "StartingArm"
    TYPICAL_ARM = "TypicalArm"
    """Known to be good for LoRA: `study_operator.spec.typical_arms`."""
    SUGGESTED = "Suggested"
    CONFIRMATION = "Confirmation"
    """The arm of the winner or of the baseline once more, under another seed: never a candidate."""
    DATA_CURVE = "DataCurve"
    """The arm of a trial once more, on a part of the training data: never a candidate."""


class Continuation(StrEnum):
    """Why a trial went on from an early rung to the next one."""

    PROMOTED = "Promoted"
    BASELINE = "Baseline"
    AUDITED = "Audited"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement of one rung, as the ledger keeps it."""

    rung: int
    step: int
    value: float
    """The objective's metric; always finite (a diverged trial gets the objective's worst value)."""
    standard_error: float | None
    n: int | None = None
    """What the value is a mean of; None where the trial diverged."""
    sites: int | None = None
    """Sites that those are of; None where the trial diverged, its trainer does not tell, or there are a thousand."""
    metrics: Mapping[str, float]
    """The other metrics that hold for every answer, and those that the study constrains, by name, finite. All that was
    measured, with standard errors, stands in the measurement in the bucket."""
    checkpoint: str
    """Key under the study's prefix; empty where the trial diverged."""
    diverged: bool = False
    """The loss was not finite, or exploded; nothing was read."""
    gibberish: bool = False
    """It was read as any other; no answer was right, and half of them or more made no sense."""
    train_seconds: float | None = None
    """Training of all steps of the first rung, at the speed of the attempt that ended it: what scales with steps. None
    where the trainer did not tell, and on later rungs."""
    fixed_seconds: float | None = None
    """Everything else of that attempt, from its start to its end: what each run costs, however long it trains."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a job's pod or process: what budgets and usage are summed from."""

    rung: int
    started_at: datetime
    finished_at: datetime | None = None
    exit_code: int | None = None
    reason: Word = ""
    """Empty while it runs, or ``AskedToStop``; then a CamelCase word (`EndReason`, or the environment's own)."""
    id: str
    """The runner's own word for this run: the same one seen twice is one attempt."""

    @property
    def is_open(self) -> bool:
        """Whether it was still running when last seen."""
        return self.finished_at is None


@dataclass(frozen=True, kw_only=True)
class EarlierAttempts:
    """What is still known of attempts that were folded, so that a ledger of many attempts stays small."""

    attempts: int
    seconds: float
    """Of all of them, on every rung."""
    first_rung_seconds: float
    rung: int
    """Of the last one; the two counts are of this rung."""
    faults: int
    interruptions: int


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What the study as a whole still knows of folded attempts."""

    until: datetime
    """All of them had ended by then: a run that ended before and is not in the ledger has been counted."""
    active_seconds: float
    """Time before that with at least one trial running."""


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
    """That it is on, or has ended on. 0: up to the first early evaluation; `Study.last_rung`: to full length."""
    total_steps: int
    train_samples: int | None = None
    """Of a run of the data curve: how many training samples it sees. None means all."""
    seed: int | None = None
    """Of a confirmation, or of a run of the data curve; None means the study's."""
    repeats: int | None = None
    """Of a confirmation: the index of the trial whose arm it is."""
    without_variants: bool = False
    """Of a run of the data curve: whether it reads no variants of training pages, where the trials do."""
    continuation: Continuation | None = None
    """From the rung before; None on the first one."""
    inclusion_probability: float | None = None
    """Probability with which this trial came to be measured at full length (1 for promoted and baseline)."""
    audited_at: int | None = None
    """The rung at which an audited trial was drawn; None where that is 0."""
    measurements: tuple[Measurement, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    earlier_attempts: EarlierAttempts | None = None
    """Attempts before these."""
    message: Annotated[str, written_up_to(TRIAL_MESSAGE_BYTES)] = ""
    """One sentence for a person where the state needs one."""

    @property
    def name(self) -> str:
        """For example ``t003``."""
        return f"t{self.index:03d}"

    @property
    def is_busy(self) -> bool:
        """Whether it holds, or waits for, a slot."""
        return self.state is TrialState.PENDING or self.state is TrialState.RUNNING

    @property
    def is_candidate(self) -> bool:
        """Whether it may be promoted and win: no confirmation, and no run of the data curve."""
        return self.origin is not Origin.CONFIRMATION and self.origin is not Origin.DATA_CURVE

    @property
    def attempts_so_far(self) -> int:
        """How many attempts there were, on all rungs."""
        return len(self.attempts) + (self.earlier_attempts.attempts if self.earlier_attempts is not None else 0)

    @property
    def has_diverged(self) -> bool:
        """Say whether it diverged on any rung."""
        return any(measurement.diverged for measurement in self.measurements)

    @property
    def stratum(self) -> int | None:
        """Of an audited trial, the rung among whose trials it was drawn; None of all others."""
        return (self.audited_at or 0) if self.continuation is Continuation.AUDITED else None

    def measurement(self, rung: int) -> Measurement | None:
        """Return what was measured at a rung."""
        # A loop: a tick of a long study asks thousands of times, and a generator costs as much as all of this.
        for measurement in self.measurements:
            if measurement.rung == rung:
                return measurement
        return None


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


GIVEN_UP = frozenset({TrialState.FAILED, TrialState.ABANDONED})
"""Ends that a trial never leaves, and that may come while a cluster already runs its next attempt."""


def move(trial: Trial, state: TrialState, *, message: str = "") -> Trial:
    """Return the trial in a new state."""
    if state is trial.state:
        return replace(trial, message=message or trial.message)
    if state not in LEGAL_MOVES[trial.state]:
        raise IllegalMoveError(f"trial {trial.name} cannot move from {trial.state} to {state}")
    return replace(trial, state=state, message=message)


class StageState(StrEnum):
    """Where a job of the study itself (prepare, final evaluation) stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A job of the study itself: prepare or final evaluation."""

    state: StageState = StageState.PENDING
    attempts: tuple[Attempt, ...] = ()
    earlier_attempts: EarlierAttempts | None = None
    """Attempts before these."""
    reason: Word = ""
    """Why it failed, a CamelCase word."""
    message: Message = ""


@dataclass(frozen=True, kw_only=True)
class DatasetCounts:
    """What the planner needs to know of the prepared dataset."""

    fingerprint: Annotated[str, written_up_to(200)]
    train_samples: int
    validation_samples: int
    test_samples: int
    """Zero where there is no test set, and then nothing is evaluated."""


@dataclass(frozen=True, kw_only=True)
class GainOnTest:
    """What the test set said of the winner against the baseline: a paired difference with its 95 % interval."""

    mean: str
    """Which mean over the attributes: ``hand_labelled`` or ``all_asked``."""
    difference: float
    low: float | None
    high: float | None
    """None where the test set has too few sites for an interval."""
    n: int
    seeds: int | None = None
    """Further training seeds that it is the mean over, the interval too; None: of the winner's own run alone."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A paired difference with its 95 % interval."""

    difference: float
    low: float | None
    high: float | None
    """None where there are too few sites for an interval."""
    n: int


@dataclass(frozen=True, kw_only=True)
class WinnerChange:
    """What became of the winner between its first rung and its end."""

    validation: Change | None
    """Of accuracy on validation."""
    test: Change | None
    """Of accuracy on the test set, by the mean that is read there."""
    loss: Change | None
    """Of the loss on validation, nats per token."""
    training_loss_before: float | None
    training_loss_after: float | None


class ConfirmationsEnd(StrEnum):
    """Why no more confirmations are begun."""

    ALL_RUNS_ENDED = "AllRunsEnded"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    NO_MODEL = "NoModel"
    """The baseline left no model at full length."""
    WINNER_IS_BASELINE = "WinnerIsBaseline"


class CurveEnd(StrEnum):
    """Why no more runs of the data curve are begun."""

    ALL_RUNS_ENDED = "AllRunsEnded"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    NO_MODEL = "NoModel"
    """The arm that it is asked of left no model at full length."""


class SearchEnd(StrEnum):
    """Why no more arms are proposed; fixed by the first promotion."""

    ALL_TRIALS_MEASURED = "AllTrialsMeasured"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    NO_MORE_PROPOSALS = "NoMoreProposals"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the study ended."""

    failed: bool
    reason: Word
    """A CamelCase word: ``Completed``, ``BudgetExhausted``, or why it failed."""
    message: Message


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that is written down of a study's life."""

    trials: tuple[Trial, ...] = ()
    """By index, without gaps."""
    folded: Folded | None = None
    prepare: Stage = Stage()
    dataset: DatasetCounts | None = None
    search_end: SearchEnd | None = None
    search_message: str = ""
    winner: int | None = None
    """Index of the trial that validation chose. Written before the test set is read, and never changed."""
    confirmations: tuple[Trial, ...] = ()
    """Winner and baseline under further seeds; their indexes go on where those of the trials end."""
    confirmations_end: ConfirmationsEnd | None = None
    """None until no more of them are begun and all have ended, and where none are asked for."""
    confirmations_message: str = ""
    curve: tuple[Trial, ...] = ()
    """Runs of the data curve, after the confirmations; their indexes go on where those end."""
    curve_end: CurveEnd | None = None
    """None until no more of them are begun and all have ended, and where the study has no data curve."""
    curve_message: str = ""
    final_evaluation: Stage = Stage()
    test_gain: GainOnTest | None = None
    """None until the test set is read, and where there is no baseline."""
    winner_change: WinnerChange | None = None
    """None until the test set is read, and where the winner's first rung left nothing to compare with."""
    outcome: Outcome | None = None
    cleaned_at: datetime | None = None
    """When the checkpoints that nobody needs any more were deleted, which is once after the end."""

    @property
    def runs(self) -> tuple[Trial, ...]:
        """All that have jobs, by index: trials, confirmations, and runs of the data curve. Trials alone are ranked."""
        return self.trials + self.confirmations + self.curve if self.confirmations or self.curve else self.trials

    def with_runs(self, runs: tuple[Trial, ...]) -> Ledger:
        """Return the ledger with all of its runs as they are given."""
        first, second = len(self.trials), len(self.trials) + len(self.confirmations)
        return replace(self, trials=runs[:first], confirmations=runs[first:second], curve=runs[second:])


def count_attempts_against(
    attempts: Iterable[Attempt], rung: int, earlier: EarlierAttempts | None = None
) -> tuple[int, int]:
    """Return how many attempts of a rung the environment ended, and how many of a rung were interrupted."""
    faults = interruptions = 0
    if earlier is not None and earlier.rung == rung:
        faults, interruptions = earlier.faults, earlier.interruptions
    for attempt in attempts:
        if attempt.rung != rung or attempt.is_open or attempt.reason in _NOBODYS:
            continue
        if attempt.reason == EndReason.INTERRUPTED:
            interruptions += 1
        else:
            faults += 1
    return faults, interruptions


WAITS = "it waits: "
"""How the message of a trial or stage begins that says why its job cannot start."""

REFUSED = "refused: "
"""How the message of a trial or stage begins that says what of another arm was found in the place of its own."""

_NOBODYS = frozenset({EndReason.SUCCEEDED, EndReason.ASKED_TO_STOP, EndReason.STORAGE_FAILED})


def retry_at(of: Trial | Stage, settings: Settings) -> datetime | None:
    """Return when a trial's rung, or a stage, may be attempted again; None means at once."""
    attempts = of.attempts
    faults, _ = count_attempts_against(attempts, of.rung if isinstance(of, Trial) else 0, of.earlier_attempts)
    last = attempts[-1] if attempts else None
    if not faults or last is None or last.finished_at is None or last.reason in _NOBODYS:
        return None
    if last.reason == EndReason.INTERRUPTED:
        return None
    wait = wait_after(faults, settings.backoff_seconds, settings.backoff_limit_seconds)
    return last.finished_at + timedelta(seconds=wait)
