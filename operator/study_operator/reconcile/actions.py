"""What a tick may do, as values with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study_operator.ledger.confirmation_runs import ConfirmationRun
from study_operator.ledger.curve_runs import CurveRun
from study_operator.ledger.trial import ConfirmationsEnd, Continuation, CurveEnd, Origin, Outcome, SearchEnd
from study_operator.spec.study import Arm


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Launch the job that prepares the dataset."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Attach:
    """Enter an arm of the manifest into the ledger."""

    arm: Arm
    origin: Origin
    reason: str


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Ask the optimizer for arms and enter them into the ledger."""

    count: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Launch the job of a trial's rung."""

    index: int
    rung: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndSearch:
    """Propose no more arms, for good."""

    end: SearchEnd
    reason: str


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Let a trial go on to full length: promoted, audited, or the baseline."""

    index: int
    continuation: Continuation
    inclusion_probability: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Let a trial end with its first measurement."""

    index: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ChooseWinner:
    """Fix the winner, by validation alone."""

    index: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AddConfirmation:
    """Enter a confirmation into the ledger: the arm of winner or baseline under another seed."""

    run: ConfirmationRun
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndConfirmations:
    """Begin no more confirmations, for good."""

    end: ConfirmationsEnd
    reason: str


@dataclass(frozen=True, kw_only=True)
class AddCurveRun:
    """Enter a run of the data curve into the ledger: the arm of a trial on a part of the training data."""

    of: int
    """Index of the trial."""
    run: CurveRun
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndCurve:
    """Begin no more runs of the data curve, for good."""

    end: CurveEnd
    reason: str


@dataclass(frozen=True, kw_only=True)
class EvaluateWinner:
    """Launch the job that reads the test set."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class DeleteJob:
    """Delete a job: one that must stop, one that makes way for the next attempt, or one whose result is written."""

    name: str
    index: int | None
    """The trial that it belongs to; None for prepare and final evaluation."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Finish:
    """End the study."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    """Delete the checkpoints that a study that has ended does not need."""

    kept: Sequence[tuple[str, int]]
    """Trial and rung of those that stay: what people may go on from."""
    reason: str


Action = (
    Prepare
    | Attach
    | Suggest
    | Launch
    | EndSearch
    | Promote
    | Stop
    | ChooseWinner
    | AddConfirmation
    | EndConfirmations
    | AddCurveRun
    | EndCurve
    | EvaluateWinner
    | DeleteJob
    | Finish
    | CleanUp
)
