"""A study as typed, frozen values, and the one place that makes them from a manifest.

Called by everything; must not know of Kubernetes objects beyond the raw dict that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trial_trainer.contract import BaseModel, LabelSource, ParameterValue, Split, TrainerSettings

Arm = Mapping[str, ParameterValue]
"""A parameter assignment: names to numbers or strings, complete over the study's parameters."""


class Direction(StrEnum):
    """Which way the objective is better."""

    MAXIMIZE = "Maximize"
    MINIMIZE = "Minimize"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What trials are ranked by."""

    metric: str
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Any number between two bounds, inclusive."""

    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class LogUniform:
    """Any number between two positive bounds, inclusive, even on a log scale."""

    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One of a list. Values that are all numeric are numbers (int where whole)."""

    values: tuple[ParameterValue, ...]
    ordered: bool = False


SearchSpace = Uniform | LogUniform | Categorical


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched hyperparameter."""

    name: str
    search_space: SearchSpace


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Who continues to full length."""

    num_promoted: int
    num_audited: int = 0
    """Drawn once, by the seed, among those that were not promoted, so that agreement can be estimated."""


@dataclass(frozen=True, kw_only=True)
class EarlyEvaluation:
    """Where the first rung ends."""

    checkpoint_percent: int = 20
    extra_percents: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits after which the search stops and the best so far are promoted; None means no limit."""

    accelerator_hours: float | None = None
    active_deadline_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where pages come from and what is asked of them."""

    source: str
    attributes: tuple[str, ...]
    labels_from: LabelSource
    split: Split
    test_source: str | None = None
    max_pages: int | None = None


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The bucket prefix (or directory) of all artifacts."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    addressing_style: str = "Auto"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One FineTuneStudy, valid."""

    name: str
    namespace: str
    uid: str
    objective: Objective
    outcome_constraints: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...]
    parameter_constraints: tuple[str, ...] = ()
    baseline: Arm | None
    starting_arms: tuple[Arm, ...] = ()
    num_trials: int
    """Every arm counts, baseline and starting arms among them."""
    parallel_trials: int
    max_failed_trials: int
    seed: int = 0
    suspend: bool = False
    early_evaluation: EarlyEvaluation = EarlyEvaluation()
    promotion: Promotion
    budget: Budget = Budget()
    data: Data
    base_model: BaseModel
    trainer: TrainerSettings
    accelerators: int = 1
    """Accelerators of one trial; on a laptop, its processes."""
    storage: Storage
