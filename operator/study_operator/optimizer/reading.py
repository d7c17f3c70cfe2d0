"""What the optimizer's model says of the search space, for people: how much each parameter matters, and slices.

Made by ``ax.AxDesigner``, kept in the study's bucket, and drawn by the report; it never decides anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from study_operator.ledger.trial import Trial, TrialState
from study_operator.spec.study import Arm, Study
from trial_trainer.contract import ParameterValue

LEAST_MEASURED = 5
"""Trials; of fewer there is no model."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the variance of what the model predicts, over its own draws."""

    value: float
    """The median."""
    low: float
    high: float
    """The middle 90 % of the draws."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much one parameter matters over the whole search space: its Sobol indices."""

    parameter: str
    first: Share
    """What this parameter explains alone, whatever the others are."""
    total: Share
    """What it explains alone and together with others."""


@dataclass(frozen=True, kw_only=True)
class SlicePoint:
    """What the model predicts at one value of a parameter, in units of the objective."""

    setting: ParameterValue
    value: float
    """The median."""
    low: float
    high: float
    """The 90 % band of the prediction; of what a measurement there would find it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Predictions as one parameter varies while all others stay as they are in one arm."""

    parameter: str
    points: tuple[SlicePoint, ...]
    """By the parameter's size, or as its choices stand in the manifest."""


@dataclass(frozen=True, kw_only=True)
class ModelReading:
    """What one model says."""

    measured: int
    """Trials that it was fitted to."""
    through: Arm
    """The arm that the slices go through."""
    tau: float | None = None
    """Kendall's rank correlation of the measured trials with what is predicted of each from all others; None where no
    model could be fitted."""
    p: float | None = None
    """Chance of so high a correlation, or a higher one, if the model knew nothing."""
    knows: bool = False
    """Whether that chance is so small that the optimizer asks the model; else there is nothing below."""
    importances: tuple[Importance, ...] = ()
    """The parameter that matters most first."""
    slices: tuple[Slice, ...] = ()
    problem: str = ""
    """Why there is no model."""
    digest: str = ""
    """Of the question that it answers (`digest_question`), by which what is in the bucket need not be asked again."""


def digest_question(study: Study, trials: Sequence[Trial], through: Arm) -> str:
    """Return a digest of all that what the model says depends on."""
    measured = [(t.index, sorted(t.arm.items()), what_is_told(t)) for t in trials if t.measurement(0) is not None]
    return hashlib.sha256(repr((study.uid, sorted(through.items()), measured)).encode()).hexdigest()


def what_is_told(trial: Trial) -> object:
    """Return what the model is told of a trial, to compare it."""
    first = trial.measurement(0)
    if first is not None:
        # Of an arm that could not run to its end the model is told this alone.
        is_abandoned = trial.state is TrialState.ABANDONED
        return is_abandoned, first.value, first.standard_error, first.diverged, tuple(sorted(first.metrics.items()))
    return "Running" if trial.is_busy else trial.state.value
