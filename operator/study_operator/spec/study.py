"""A study as typed, frozen values. Used by everything; `parse.py` makes them from a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from study_operator.spec.metrics import Direction
from trial_trainer.contract import (
    AnswerFormat,
    Augmentation,
    BaseModel,
    LabelSource,
    MissingLabel,
    OutOfTokens,
    ParameterValue,
    Split,
    TrainerSettings,
)

Arm = Mapping[str, ParameterValue]
"""A parameter assignment: names to numbers or strings, complete over the study's parameters."""


@dataclass(frozen=True, kw_only=True)
class TypicalArm:
    """An arm that is known to be good, and who says so."""

    arm: Arm
    source: str


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What trials are ranked by."""

    metric: str
    direction: Direction

    def merit(self, value: float) -> float:
        """Return a number that is larger for a better value."""
        return value if self.direction is Direction.MAXIMIZE else -value


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


def find_broken_rule(space: SearchSpace, value: float) -> str | None:
    """Return the rule of a search space that a value breaks, in words; None where it lies inside."""
    match space:
        case Categorical():
            return None if value in space.values else f"one of {', '.join(map(str, space.values))}"
        case _:
            return None if space.min <= value <= space.max else f"from {space.min:g} to {space.max:g}"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched hyperparameter."""

    name: str
    search_space: SearchSpace


class RankBy(StrEnum):
    """What trials are ranked by on early rungs."""

    OBJECTIVE = "Objective"
    VALIDATION_LOSS = "ValidationLoss"
    OBJECTIVE_AND_LOSS = "ObjectiveAndLoss"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Who continues from an early rung."""

    num_promoted: int
    """To full length."""
    num_audited: int = 0
    """Drawn once at each early rung, by the seed, among those that were not promoted there, so that agreement can be
    estimated. They run to full length."""
    promoted_percents: tuple[int, ...] = ()
    """Of the trials on each early rung but the last: how many are promoted to the next one."""
    rank_by: RankBy = RankBy.OBJECTIVE
    confirm_seeds: int = 0
    """Further seeds under which winner and baseline are trained once more, after the choice of the winner."""


@dataclass(frozen=True, kw_only=True)
class EarlyEvaluation:
    """Where the early rungs end, in percent of the full length."""

    rungs: tuple[int, ...] = (20,)
    """Ascending. Rung 0 ends at the first of them; the rung after the last of them ends at full length."""
    extra_percents: tuple[int, ...] = ()


class CurveArm(StrEnum):
    """Which arm a data curve is measured with."""

    WINNER = "Winner"
    BASELINE = "Baseline"


@dataclass(frozen=True, kw_only=True)
class DataCurve:
    """How the metric grows with the training data: runs of one arm on nested parts of the training split."""

    sample_sizes: tuple[int, ...]
    """Ascending. How many training samples each part has."""
    seeds: int = 3
    """Runs of each size: of the study's seed and those after it. Each draws its own parts, and each part contains the
    smaller ones of its seed."""
    arm: CurveArm = CurveArm.WINNER
    balanced: bool = False
    """Whether parts take from all attributes in turn."""
    least_gain: float = 0.01
    """In the objective's unit. Where doubling the data gains less, the curve is called saturated."""
    compare_augmentation: bool = False
    """Whether each size and seed is run twice: without variants of training pages, and with them."""

    @property
    def runs_of_size(self) -> int:
        """How many runs there are of each size."""
        return self.seeds * (2 if self.compare_augmentation else 1)

    @property
    def runs(self) -> int:
        """How many runs there are where no size is left out."""
        return len(self.sample_sizes) * self.runs_of_size


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits after which the search stops and the best so far are promoted; None means no limit."""

    accelerator_hours: float | None = None
    active_deadline_seconds: int | None = None


PodTemplate = Mapping[str, Any]
"""A corev1.PodTemplateSpec as it was written, opaque here: a cluster checks it when a study is accepted."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A language model that labels training and validation pages; see `TeacherSettings` of the contract."""

    endpoint: str
    model: str
    secret_name: str | None = None
    """Secret of the study's namespace with the key; None means that the server wants none. On a laptop the key is an
    environment variable."""
    secret_key: str = "apiKey"  # noqa: S105  # its name, not its value
    answer_format: AnswerFormat = AnswerFormat.JSON_SCHEMA
    instructions: str = ""
    temperature: float | None = None
    max_answer_tokens: int = 1024
    max_tokens: int | None = None
    when_tokens_run_out: OutOfTokens = OutOfTokens.USE
    self_consistency_samples: int = 0
    parallel_requests: int = 4
    timeout_seconds: int = 120


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where pages come from and what is asked of them."""

    source: str
    attributes: tuple[str, ...]
    labels_from: LabelSource
    split: Split
    test_source: str | None = None
    max_pages: int | None = None
    missing_labels: MissingLabel = MissingLabel.UNKNOWN
    teacher: Teacher | None = None
    """Given where the labels are a teacher's."""
    augment: Augmentation | None = None
    template: PodTemplate | None = None
    """Pod of the prepare job on a cluster; None means the trainer's, without accelerators."""


class DeletionPolicy(StrEnum):
    """What becomes of a study's prefix in the bucket when the study is deleted on a cluster."""

    RETAIN = "Retain"
    DELETE = "Delete"


@dataclass(frozen=True, kw_only=True)
class CaBundle:
    """Certificates that a bucket's endpoint is checked with: a key of a ConfigMap or of a Secret."""

    config_map_name: str | None = None
    secret_name: str | None = None
    """One of the two is given."""
    key: str = "ca.crt"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The bucket prefix (or directory) of all artifacts."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    addressing_style: str = "Auto"
    ca_bundle: CaBundle | None = None
    """None means the certificates that the system trusts."""
    secret_name: str | None = None
    """Secret of the study's namespace with the bucket's credentials; None means the operator's own identity."""
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Another study that one learns from: by its name, or by where its artifacts are."""

    study: str | None = None
    """Name of a study of the same namespace."""
    uri: str | None = None
    """Given where there is no name: the prefix of its artifacts."""

    @property
    def field(self) -> str:
        """Return which field of the manifest says so."""
        return "uri" if self.study is None else "study"


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A trial of another study: its arm, and how good it was on the first rung there."""

    arm: Arm
    merit: float
    """The higher, the better; minus infinity where it diverged."""
    loss: float = math.inf
    """Validation loss, which tells those of one merit apart; infinite where it was not measured, or diverged."""
    keeps_constraints: bool = True
    """Those of the study that learns."""

    @property
    def standing(self) -> tuple[float, float]:
        """What sorts them, the best last."""
        return self.merit, -self.loss


@dataclass(frozen=True, kw_only=True)
class EarlierStudy:
    """What another study has measured, of which this one learns."""

    best: Arm
    """Its winner; without one the best on the first rung, if there is one among those that keep the constraints."""
    trials: tuple[EarlierTrial, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One FineTuneStudy, valid."""

    name: str
    namespace: str
    uid: str
    objective: Objective
    outcome_constraints: tuple[OutcomeConstraint, ...] = ()
    parameters: tuple[Parameter, ...]
    parameter_constraints: tuple[LinearConstraint, ...] = ()
    baseline: Arm | None
    starting_arms: tuple[Arm, ...] = ()
    typical_arms: tuple[TypicalArm, ...] = ()
    """Tried after the starting arms."""
    warm_start_from: tuple[WarmStart, ...] = ()
    earlier: tuple[EarlierStudy, ...] = ()
    """What those have measured, once it was read: only the optimizer is given it."""
    num_trials: int
    """Every arm counts, baseline, starting and typical arms among them."""
    parallel_trials: int
    max_failed_trials: int
    seed: int = 0
    suspend: bool = False
    early_evaluation: EarlyEvaluation = EarlyEvaluation()
    promotion: Promotion
    budget: Budget = Budget()
    data_curve: DataCurve | None = None
    """Measured once there is a winner; None means that there is none."""
    data: Data
    base_model: BaseModel
    trainer: TrainerSettings
    nodes: int = 1
    """Nodes of one trial, each with as many ranks as `TrainerSettings.processes`; more than one need a cluster."""
    trainer_template: PodTemplate | None = None
    """Pod of the trials on a cluster; its container ``trainer`` trains. None means the operator's default."""
    storage: Storage
    ttl_seconds_after_finished: int | None = None
    """Wait after the end until a cluster's Jobs and the checkpoints that nobody needs go; None means that they stay."""
    generation: int = 0
    """``metadata.generation`` of the manifest: what ``observedGeneration`` reports."""

    @property
    def last_rung(self) -> int:
        """The rung that ends at full length; all before it are early ones."""
        return len(self.early_evaluation.rungs)

    def stop_step(self, total_steps: int, rung: int) -> int:
        """Return the step after which a rung ends."""
        if rung >= self.last_rung:
            return total_steps
        return step_at(total_steps, self.early_evaluation.rungs[rung])

    def count_promoted(self, trials: int) -> tuple[int, ...]:
        """Return how many are promoted from each early rung, when so many trials were tried, the baseline among them.

        From the last one ``num_promoted``. From one before, its share of those that are on it; never fewer than must be
        left for all later promotions and audits.
        """
        promotion, counts = self.promotion, list[int]()
        reached = trials - (self.baseline is not None)
        for rung, percent in enumerate(promotion.promoted_percents):
            least = promotion.num_promoted + promotion.num_audited * (self.last_rung - 1 - rung)
            reached = max(least, math.ceil(reached * percent / 100))
            counts.append(reached)
        return (*counts, promotion.num_promoted)

    def count_continuing(self, trials: int) -> tuple[int, ...]:
        """Return how many trials go on from each early rung: the promoted, the audited of all rungs so far, and the
        baseline; at most all of them."""
        audited, has_baseline = self.promotion.num_audited, self.baseline is not None
        return tuple(
            min(trials, promoted + audited * (rung + 1) + has_baseline)
            for rung, promoted in enumerate(self.count_promoted(trials))
        )

    @property
    def extra_runs(self) -> int:
        """How many runs there are beside the trials: confirmations, and those of the data curve."""
        return 2 * self.promotion.confirm_seeds + (self.data_curve.runs if self.data_curve is not None else 0)

    @property
    def accelerators(self) -> int:
        """Accelerators of one trial; on a laptop, its processes."""
        return self.nodes * self.trainer.processes


def step_at(total_steps: int, percent: int) -> int:
    """Return the step at a percentage of the full length, at least the first."""
    return max(1, round(total_steps * percent / 100))


DEFAULT_ARM: Arm = {"learning_rate": 2e-4, "lora_rank": 16, "lora_dropout": 0.0, "batch_size": 16}
"""Values of the parameters that a study does not search; a missing ``lora_alpha`` is twice the rank (the common ratio).
``weight_decay`` and ``warmup_percent`` are the trainer's settings where they are not searched."""


def complete_arm(arm: Arm) -> dict[str, ParameterValue]:
    """Return the arm with every parameter that a trainer needs."""
    complete = {**DEFAULT_ARM, **arm}
    if "lora_alpha" not in complete and "lora_alpha_over_rank" not in complete:
        complete["lora_alpha"] = 2 * int(complete["lora_rank"])
    return complete


@dataclass(frozen=True, kw_only=True)
class OutcomeConstraint:
    """A bound on a metric, by the word of ``outcomeConstraints``."""

    metric: str
    is_upper: bool
    bound: float

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Say whether a measurement keeps the bound; a metric that was not measured does not."""
        value = metrics.get(self.metric)
        return value is not None and (value <= self.bound if self.is_upper else value >= self.bound)


@dataclass(frozen=True)
class LinearConstraint:
    """``Σ weight × parameter <= bound``, over uniform parameters."""

    text: str
    """As the manifest has it."""
    weights: tuple[tuple[str, float], ...]
    """Name of a parameter and its weight."""
    bound: float

    def holds(self, arm: Arm, tolerance: float = 1e-12) -> bool:
        """Say whether an arm keeps it, up to a share of its largest term; a parameter that the arm lacks counts 0."""
        terms = [weight * float(arm[name]) for name, weight in self.weights if name in arm]
        return sum(terms) <= self.bound + tolerance * max(1.0, abs(self.bound), *map(abs, terms))


# --- From a manifest --------------------------------------------------------------------------------------------


TRAINER_CONTAINER = "trainer"
"""Name of the container that runs the trainer, in a pod template and in every pod that is made of it."""


class AddressingStyle(StrEnum):
    """How a bucket's name is put into its URL."""

    AUTO = "Auto"
    PATH = "Path"
    VIRTUAL = "Virtual"
