"""A study as typed, frozen values, and the one place that makes them from a manifest.

Called by everything; must not know of Kubernetes objects beyond the raw dict that it is given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from study_operator.errors import StudyInvalidError
from study_operator.names import API_VERSION, KIND
from study_operator.spec import limits
from study_operator.spec.limits import Whole
from trial_trainer.contract import (
    BaseModel,
    LabelSource,
    ParameterValue,
    Precision,
    Split,
    SplitBy,
    TrainerSettings,
)

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


PodTemplate = Mapping[str, Any]
"""A corev1.PodTemplateSpec as it was written, opaque here: a cluster checks it when a study is accepted."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where pages come from and what is asked of them."""

    source: str
    attributes: tuple[str, ...]
    labels_from: LabelSource
    split: Split
    test_source: str | None = None
    max_pages: int | None = None
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
    def accelerators(self) -> int:
        """Accelerators of one trial; on a laptop, its processes."""
        return self.nodes * self.trainer.processes


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
        """Say whether a reading keeps the bound; a metric that was not measured does not."""
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


# The forms of strings, in the regular expressions that Python, RE2 and JSON Schema have in common.
NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?"
STUDY_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
ATTRIBUTE = r"[a-z][a-z_]*"
MODULE = r"[A-Za-z0-9_.]+"
SCHEME = r"[A-Za-z][-+.A-Za-z0-9]*:"
ENDPOINT = r"https?://[^/\s@?#]+/?"
REGION = r"[a-z0-9-]+"
DATA_KEY = r"[-._a-zA-Z0-9]+"

_OUTCOME = re.compile(rf"\s*([a-z_]+(?:/[a-z_]+)?)\s*(<=|>=)\s*({NUMBER})\s*")


def parse_outcome_constraint(text: str) -> OutcomeConstraint | None:
    """Parse ``metric <= number`` or ``metric >= number``; None where it is neither."""
    match = _OUTCOME.fullmatch(text)
    if match is None:
        return None
    return OutcomeConstraint(metric=match[1], is_upper=match[2] == "<=", bound=float(match[3]))


# --- From a manifest --------------------------------------------------------------------------------------------

KNOWN_ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating", "description")
"""What markup can label."""

METRICS: Mapping[str, Direction] = {
    "accuracy": Direction.MAXIMIZE,
    "validation_loss": Direction.MINIMIZE,
    "invalid_output_rate": Direction.MINIMIZE,
    "false_value_rate": Direction.MINIMIZE,
}
"""What a reading measures, and which way each is better; ``accuracy/<attribute>`` is as ``accuracy``."""

WORST_VALUES: Mapping[str, float] = {
    "accuracy": 0.0,
    "validation_loss": 10.8,
    "invalid_output_rate": 1.0,
    "false_value_rate": 1.0,
}
"""What a trial that diverged is given: the bound of a share; for a loss only until a worse one is read, a uniform guess
among 50 thousand tokens in nats."""


def is_share(metric: str) -> bool:
    """Say whether a metric lies between 0 and 1 and is best read in percent."""
    return metric.startswith("accuracy") or metric.endswith("_rate")


TRAINER_CONTAINER = "trainer"
"""Name of the container that runs the trainer, in a pod template and in every pod that is made of it."""


@dataclass(frozen=True)
class _Rule:
    """What a trainer takes for one parameter."""

    low: float
    high: float
    is_whole: bool = False
    is_low_open: bool = False
    is_high_open: bool = False

    def says(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        low = f"greater than {self.low:g}" if self.is_low_open else f"at least {self.low:g}"
        high = f"less than {self.high:g}" if self.is_high_open else f"at most {self.high:g}"
        return f"{kind}, {low} and {high}"

    def allows(self, value: ParameterValue) -> bool:
        if isinstance(value, str) or (self.is_whole and not isinstance(value, int)):
            return False
        above = value > self.low if self.is_low_open else value >= self.low
        return above and (value < self.high if self.is_high_open else value <= self.high)


PARAMETERS: Mapping[str, _Rule] = {
    "learning_rate": _Rule(0, 1, is_low_open=True),
    "lora_rank": _Rule(1, 1024, is_whole=True),
    "lora_alpha": _Rule(0, 4096, is_low_open=True),
    "lora_alpha_over_rank": _Rule(0, 64, is_low_open=True),
    "lora_dropout": _Rule(0, 1, is_high_open=True),
    "batch_size": _Rule(1, 4096, is_whole=True),
    "weight_decay": _Rule(0, 1),
    "warmup_percent": _Rule(0, 100),
}
"""The trainer's parameters that a study may search."""


def parse_study(raw: Mapping[str, Any]) -> Study:
    """Make a study from a manifest.

    Raises:
        StudyInvalidError: with every problem at once, each a sentence with field, rule and value.
    """
    problems: list[str] = []
    manifest = _Fields(raw, "", problems)
    if manifest.take("apiVersion") != API_VERSION:
        manifest.refuse("apiVersion", f"must be {API_VERSION!r}")
    if manifest.take("kind") != KIND:
        manifest.refuse("kind", f"must be {KIND!r}")
    manifest.take("status")
    metadata = manifest.child("metadata")
    name = metadata.text("name", pattern=STUDY_NAME, longest=limits.NAME_LENGTH)
    namespace = metadata.text(
        "namespace", "default", pattern=r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", longest=limits.NAMESPACE_LENGTH
    )
    uid = metadata.text("uid", "local", longest=limits.UID_LENGTH)
    generation = metadata.whole("generation", limits.GENERATION)
    spec = manifest.child("spec")
    manifest.done()

    data = _parse_data(spec.child("data"))
    objective = _parse_objective(spec.child("objective"), data.attributes)
    count = len(problems)
    parameters = _parse_parameters(spec)
    # Where the parameters themselves are wrong, what an arm must name is not known.
    are_known = len(problems) == count
    base_model, trainer, nodes, template = _parse_trainer(spec.child("trainer"))
    num_trials = spec.whole("numTrials", limits.NUM_TRIALS, is_required=True)
    baseline, starting = _parse_arms(spec, parameters, are_known=are_known)
    study = Study(
        name=name,
        namespace=namespace,
        uid=uid,
        generation=generation,
        objective=objective,
        outcome_constraints=_parse_outcome_constraints(spec, objective, data.attributes),
        parameters=parameters,
        parameter_constraints=_parse_parameter_constraints(spec, parameters, baseline, starting),
        baseline=baseline,
        starting_arms=starting,
        num_trials=num_trials,
        parallel_trials=spec.whole("parallelTrials", limits.PARALLEL_TRIALS),
        max_failed_trials=spec.whole("maxFailedTrials", limits.MAX_FAILED_TRIALS),
        seed=spec.whole("seed", limits.SEED),
        suspend=spec.flag("suspend", False),
        early_evaluation=_parse_early_evaluation(spec.child("earlyEvaluation", {})),
        promotion=_parse_promotion(spec.child("promotion", {})),
        budget=_parse_budget(spec.child("budget", {})),
        data=data,
        base_model=base_model,
        trainer=trainer,
        nodes=nodes,
        trainer_template=template,
        storage=_parse_storage(spec.child("storage")),
        ttl_seconds_after_finished=spec.whole("ttlSecondsAfterFinished", limits.TTL_SECONDS_AFTER_FINISHED),
    )
    spec.done()
    if spec.raw.get("numTrials") == study.num_trials:
        problems.extend(_find_contradictions(study))
    if problems:
        raise StudyInvalidError(problems)
    return study


def _parse_objective(fields: _Fields, attributes: Sequence[str]) -> Objective:
    metric = fields.text("metric", "accuracy")
    known = _direction_of(metric, attributes)
    if known is None:
        fields.refuse("metric", f"must be {_say_metrics(attributes)}")
    direction = fields.choice("direction", Direction, known or Direction.MAXIMIZE)
    if known is not None and direction is not known:
        fields.refuse("direction", f"must be {known.value!r} for {metric}")
    fields.done()
    return Objective(metric=metric, direction=direction)


def _direction_of(metric: str, attributes: Sequence[str]) -> Direction | None:
    head, _, attribute = metric.partition("/")
    if attribute and (head != "accuracy" or attribute not in attributes):
        return None
    return METRICS.get(head) if attribute or "/" not in metric else None


def _say_metrics(attributes: Sequence[str]) -> str:
    said = f"one of {', '.join(METRICS)}"
    return f"{said}, or accuracy/ and one of the asked attributes ({', '.join(attributes)})" if attributes else said


def _parse_outcome_constraints(
    spec: _Fields, objective: Objective, attributes: Sequence[str]
) -> tuple[OutcomeConstraint, ...]:
    constraints = []
    for i, text in enumerate(spec.sequence("outcomeConstraints", 0, limits.OUTCOME_CONSTRAINTS_LENGTH, ())):
        field = f"outcomeConstraints[{i}]"
        constraint = parse_outcome_constraint(text) if isinstance(text, str) else None
        if isinstance(text, str) and len(text) > limits.CONSTRAINT_LENGTH:
            spec.refuse(field, f"must have at most {limits.CONSTRAINT_LENGTH} characters", text)
        elif constraint is None:
            spec.refuse(field, "must read like 'invalid_output_rate <= 0.2'", text)
        elif _direction_of(constraint.metric, attributes) is None:
            spec.refuse(field, f"must bound {_say_metrics(attributes)}", text)
        elif constraint.metric == objective.metric:
            spec.refuse(field, "must bound another metric than the objective", text)
        else:
            constraints.append(constraint)
    return tuple(constraints)


def _parse_parameters(spec: _Fields) -> tuple[Parameter, ...]:
    parameters: dict[str, Parameter] = {}
    for i, item in enumerate(spec.sequence("parameters", 1, limits.PARAMETERS_LENGTH)):
        fields = spec.nested(f"parameters[{i}]", item)
        name = fields.text("name")
        rule = PARAMETERS.get(name)
        if fields.has("name") and rule is None:
            fields.refuse("name", f"must be one of {', '.join(PARAMETERS)}")
        if name in parameters:
            fields.refuse("name", "must be given once")
        space = _parse_search_space(fields.child("searchSpace"), rule)
        fields.done()
        if space is not None and name and name not in parameters:
            parameters[name] = Parameter(name=name, search_space=space)
    if "lora_alpha" in parameters and "lora_alpha_over_rank" in parameters:
        spec.refuse("parameters", "must not search lora_alpha and lora_alpha_over_rank together", list(parameters))
    return tuple(parameters.values())


def _parse_search_space(fields: _Fields, rule: _Rule | None) -> SearchSpace | None:
    kinds = [kind for kind in ("uniform", "logUniform", "categorical") if fields.has(kind)]
    if len(kinds) != 1:
        fields.refuse("", "must hold one of uniform, logUniform or categorical", sorted(fields.raw))
        fields.done(known=("uniform", "logUniform", "categorical"))
        return None
    space = fields.child(kinds[0])
    fields.done()
    if kinds[0] == "categorical":
        return _parse_categorical(space, rule)
    return _parse_range(space, rule, is_log=kinds[0] == "logUniform")


def _parse_range(fields: _Fields, rule: _Rule | None, *, is_log: bool) -> SearchSpace | None:
    low, high = fields.number("min"), fields.number("max")
    if rule is not None and rule.is_whole:
        fields.refuse("", "must be categorical, because its values are whole numbers", sorted(fields.raw))
    fields.done()
    if low is None or high is None:
        return None
    if is_log and low <= 0:
        fields.refuse("min", "must be greater than 0")
        return None
    for field, bound in (("min", low), ("max", high)):
        if rule is not None and not rule.is_whole and not rule.allows(bound):
            fields.refuse(field, f"must be {rule.says()}")
    if low >= high:
        fields.refuse("max", f"must be greater than min ({fields.raw.get('min')!r})")
        return None
    return LogUniform(min=low, max=high) if is_log else Uniform(min=low, max=high)


def _parse_categorical(fields: _Fields, rule: _Rule | None) -> SearchSpace | None:
    values: list[ParameterValue] = []
    items = fields.sequence("values", 2, limits.VALUES_LENGTH)
    for i, item in enumerate(items):
        value = fields.number_of(f"values[{i}]", item)
        if value is None:
            continue
        value = int(value) if value == int(value) else value
        if rule is not None and not rule.allows(value):
            fields.refuse(f"values[{i}]", f"must be {rule.says()}", item)
        elif value in values:
            fields.refuse(f"values[{i}]", "must be given once", item)
        else:
            values.append(value)
    is_ordered = fields.flag("ordered", False)
    fields.done()
    if len(values) < len(items) or not values:
        return None
    if is_ordered and values != sorted(values):
        fields.refuse("values", "must ascend, because they are ordered", list(items))
    return Categorical(values=tuple(values), ordered=is_ordered)


def _parse_arms(
    spec: _Fields, parameters: Sequence[Parameter], *, are_known: bool
) -> tuple[Arm | None, tuple[Arm, ...]]:
    baseline, starting = spec.take("baseline"), spec.sequence("startingArms", 0, limits.STARTING_ARMS_LENGTH, ())
    if not are_known:
        return None, ()
    arms = [_parse_arm(spec, f"startingArms[{i}]", item, parameters) for i, item in enumerate(starting)]
    given = None if baseline is None else _parse_arm(spec, "baseline", baseline, parameters)
    return given, tuple(arm for arm in arms if arm is not None)


def _parse_arm(spec: _Fields, field: str, raw: Any, parameters: Sequence[Parameter]) -> Arm | None:
    fields = spec.nested(field, raw)
    arm: dict[str, ParameterValue] = {}
    for parameter in parameters:
        value = fields.number(parameter.name)
        if value is None:
            continue
        rule = _outside(parameter.search_space, value)
        if rule is not None:
            fields.refuse(parameter.name, f"must lie in the search space: {rule}")
        is_listed = isinstance(parameter.search_space, Categorical)
        arm[parameter.name] = int(value) if is_listed and value == int(value) else value
    fields.done(rule="must not be given, because it is not one of the study's parameters")
    return arm if len(arm) == len(parameters) else None


def _outside(space: SearchSpace, value: float) -> str | None:
    """Return the rule that a value breaks, or None."""
    match space:
        case Categorical():
            return None if value in space.values else f"one of {', '.join(map(str, space.values))}"
        case _:
            return None if space.min <= value <= space.max else f"from {space.min:g} to {space.max:g}"


_TERM = re.compile(rf"\s*([-+]?)\s*(?:({NUMBER})(?:\s*\*\s*([a-z_]+))?|([a-z_]+))")


def parse_linear_constraint(text: str) -> LinearConstraint | None:
    """Parse a linear inequality such as ``lora_dropout + 2 * weight_decay <= 0.3``; None where it is none."""
    sides = re.split(r"<=|>=", text)
    if len(sides) != 2:
        return None
    sign = 1.0 if "<=" in text else -1.0
    weights: dict[str, float] = {}
    bound = 0.0
    for side, factor in ((sides[0], sign), (sides[1], -sign)):
        terms = _parse_terms(side)
        if terms is None:
            return None
        for name, weight in terms:
            if name:
                weights[name] = weights.get(name, 0.0) + factor * weight
            else:
                bound -= factor * weight
    return LinearConstraint(text, tuple(weights.items()), bound) if weights else None


def _parse_terms(side: str) -> list[tuple[str, float]] | None:
    terms: list[tuple[str, float]] = []
    position = 0
    side = side.strip()
    while position < len(side):
        match = _TERM.match(side, position)
        if match is None or (terms and not match[1] and (match[2] or "+")[0] not in "+-"):
            return None
        sign = -1.0 if match[1] == "-" else 1.0
        terms.append((match[3] or match[4] or "", sign * float(match[2] or 1)))
        position = match.end()
    return terms or None


def _parse_parameter_constraints(
    spec: _Fields, parameters: Sequence[Parameter], baseline: Arm | None, starting: Sequence[Arm]
) -> tuple[LinearConstraint, ...]:
    uniform = {p.name for p in parameters if isinstance(p.search_space, Uniform)}
    constraints = []
    for i, text in enumerate(spec.sequence("parameterConstraints", 0, limits.PARAMETER_CONSTRAINTS_LENGTH, ())):
        field = f"parameterConstraints[{i}]"
        linear = parse_linear_constraint(text) if isinstance(text, str) else None
        if isinstance(text, str) and len(text) > limits.CONSTRAINT_LENGTH:
            spec.refuse(field, f"must have at most {limits.CONSTRAINT_LENGTH} characters", text)
            continue
        if linear is None:
            spec.refuse(field, "must be linear and read like 'lora_dropout + 2 * weight_decay <= 0.3'", text)
            continue
        if parameters and not {name for name, _ in linear.weights} <= uniform:
            spec.refuse(field, "must name only parameters whose search space is uniform", text)
            continue
        constraints.append(linear)
        for name, arm in [("baseline", baseline), *((f"startingArms[{j}]", arm) for j, arm in enumerate(starting))]:
            if arm is not None and not linear.holds(arm):
                spec.refuse(name, f"must keep the constraint {text!r}", dict(arm))
    room = {p.name: p.search_space for p in parameters if isinstance(p.search_space, Uniform)}
    if constraints and parameters and not _leave_room(constraints, room):
        rule = "must leave arms to try: all together they leave no more than a thin slice of the search space"
        spec.refuse("parameterConstraints", rule, [c.text for c in constraints])
    return tuple(constraints)


LEAST_RADIUS = 1e-6
"""Of a ball, in units of the parameters' ranges, that must fit between the constraints: Ax draws from the inside."""


def _leave_room(constraints: Sequence[LinearConstraint], spaces: Mapping[str, Uniform]) -> bool:
    """Say whether a ball fits into what linear constraints leave of a box: its Chebyshev centre, by linear programming.

    Boyd and Vandenberghe (2004), "Convex Optimization", section 8.5.1.
    """
    # Half a second, for the few studies that have such constraints.
    from scipy.optimize import linprog

    names = list(spaces)
    rows, bounds = [], []
    for constraint in constraints:
        weights = dict(constraint.weights)
        # In units of the ranges, from 0 to 1.
        row = [weights.get(n, 0.0) * (spaces[n].max - spaces[n].min) for n in names]
        size = math.hypot(*row)
        slack = constraint.bound - sum(weights.get(n, 0.0) * spaces[n].min for n in names)
        if size == 0.0:
            if slack < 0:
                return False
            continue
        rows.append([*(x / size for x in row), 1.0])
        bounds.append(slack / size)
    for i in range(len(names)):
        rows += [[-1.0 if i == j else 0.0 for j in range(len(names))] + [1.0]]
        rows += [[1.0 if i == j else 0.0 for j in range(len(names))] + [1.0]]
        bounds += [0.0, 1.0]
    found = linprog([*([0.0] * len(names)), -1.0], A_ub=rows, b_ub=bounds, bounds=[(None, None)] * (len(names) + 1))
    return bool(found.success and -found.fun >= LEAST_RADIUS)


def _parse_early_evaluation(fields: _Fields) -> EarlyEvaluation:
    percent = fields.whole("checkpointPercent", limits.CHECKPOINT_PERCENT)
    extra: list[int] = []
    for i, item in enumerate(fields.sequence("extraPercents", 0, limits.EXTRA_PERCENTS_LENGTH, ())):
        field = f"extraPercents[{i}]"
        if not limits.EXTRA_PERCENT.allows(item):
            fields.refuse(field, f"must be {limits.EXTRA_PERCENT.says()}", item)
        elif item == percent or item in extra:
            fields.refuse(field, "must be given once and differ from checkpointPercent", item)
        else:
            extra.append(item)
    fields.done()
    return EarlyEvaluation(checkpoint_percent=percent, extra_percents=tuple(sorted(extra)))


def _parse_promotion(fields: _Fields) -> Promotion:
    promotion = Promotion(
        num_promoted=fields.whole("numPromoted", limits.NUM_PROMOTED),
        num_audited=fields.whole("numAudited", limits.NUM_AUDITED),
    )
    fields.done()
    return promotion


def _parse_budget(fields: _Fields) -> Budget:
    hours = fields.number("acceleratorHours", None)
    if hours is not None and hours <= 0:
        fields.refuse("acceleratorHours", "must be greater than 0")
    seconds = fields.whole("activeDeadlineSeconds", limits.ACTIVE_DEADLINE_SECONDS)
    fields.done()
    return Budget(accelerator_hours=hours, active_deadline_seconds=seconds)


def _parse_data(fields: _Fields) -> Data:
    source = fields.place("source")
    attributes = fields.words(
        "attributes", limits.ATTRIBUTES_LENGTH, pattern=ATTRIBUTE, longest=limits.ATTRIBUTE_LENGTH
    )
    test_source = fields.place("testSource") if fields.has("testSource") else None
    labels_from = LabelSource.MARKUP
    if fields.has("labels"):
        labels = fields.child("labels")
        labels_from = labels.choice("from", LabelSource, LabelSource.MARKUP)
        labels.done()
    if labels_from is LabelSource.MARKUP:
        unknown = [a for a in attributes if a not in KNOWN_ATTRIBUTES]
        if unknown:
            rule = f"must be some of {', '.join(KNOWN_ATTRIBUTES)} where labels come from Markup"
            fields.refuse("attributes", rule, unknown)
    if not attributes:
        # Ready samples, whose completions are given.
        labels_from = LabelSource.GIVEN
    split = fields.child("split", {})
    parsed = Split(
        by=split.choice("by", SplitBy, SplitBy.SITE),
        validation_percent=split.whole("validationPercent", limits.VALIDATION_PERCENT),
        test_percent=split.whole(
            "testPercent", limits.TEST_PERCENT._replace(default=0) if test_source else limits.TEST_PERCENT
        ),
    )
    if test_source and parsed.test_percent:
        split.refuse("testPercent", "must be 0 where spec.data.testSource is given")
    if parsed.validation_percent + parsed.test_percent > limits.MAX_HELD_OUT_PERCENT:
        rule = f"must leave 10 percent for training beside testPercent ({parsed.test_percent})"
        split.refuse("validationPercent", rule, parsed.validation_percent)
    split.done()
    max_pages = fields.whole("maxPages", limits.MAX_PAGES)
    template = _parse_template(fields)
    fields.done()
    return Data(
        source=source,
        attributes=attributes,
        labels_from=labels_from,
        split=parsed,
        test_source=test_source,
        max_pages=max_pages,
        template=template,
    )


def _parse_trainer(fields: _Fields) -> tuple[BaseModel, TrainerSettings, int, PodTemplate | None]:
    model = fields.child("baseModel")
    base_model = BaseModel(
        uri=model.place("uri", ("hf", "s3", "file")),
        revision=model.text("revision", longest=limits.REVISION_LENGTH) if model.has("revision") else None,
    )
    model.done()
    decay = fields.number("weightDecay", 0.0)
    if decay is not None and not 0 <= decay <= 1:
        fields.refuse("weightDecay", "must be from 0 to 1")
    targets: str | tuple[str, ...] = "AllLinear"
    if isinstance(fields.raw.get("targetModules"), list):
        targets = fields.words(
            "targetModules", limits.TARGET_MODULES_LENGTH, pattern=MODULE, longest=limits.MODULE_LENGTH
        )
        if not targets:
            fields.refuse("targetModules", "must be 'AllLinear' or a list of at least one name")
    elif fields.take("targetModules", "AllLinear") != "AllLinear":
        fields.refuse("targetModules", "must be 'AllLinear' or a list of names")
    settings = TrainerSettings(
        epochs=fields.whole("epochs", limits.EPOCHS, is_required=True),
        max_length_tokens=fields.whole("maxLengthTokens", limits.MAX_LENGTH_TOKENS),
        precision=fields.choice("precision", Precision, Precision.BFLOAT16),
        target_modules=targets,
        rs_lora=fields.flag("rsLora", False),
        warmup_percent=fields.whole("warmupPercent", limits.WARMUP_PERCENT),
        weight_decay=decay or 0.0,
        processes=fields.whole("acceleratorsPerNode", limits.ACCELERATORS_PER_NODE),
    )
    nodes = fields.whole("nodes", limits.NODES)
    template = _parse_template(fields)
    fields.done()
    return base_model, settings, nodes, template


def _parse_template(fields: _Fields) -> PodTemplate | None:
    """Take a pod template as it is. What is looked at is what the operator itself must find in it."""
    if not fields.has("template"):
        return None
    template = fields.child("template")
    size = len(json.dumps(template.raw, separators=(",", ":"), ensure_ascii=False, default=str).encode())
    if size > limits.TEMPLATE_BYTES:
        fields.refuse("template", f"must have at most {limits.TEMPLATE_BYTES} bytes as JSON", size)
    template.take("metadata")
    spec = template.child("spec", {})
    template.done()
    containers = spec.sequence("containers", 0, limits.CONTAINERS_LENGTH, ())
    names = [item.get("name") if isinstance(item, Mapping) else None for item in containers]
    if containers and TRAINER_CONTAINER not in names:
        spec.refuse("containers", f"must hold one that is named {TRAINER_CONTAINER!r}", names)
    return template.raw


def _parse_storage(fields: _Fields) -> Storage:
    if "@" in str(fields.raw.get("endpoint")):
        # It may hold a password, which is not repeated.
        fields.refuse("endpoint", "must hold no credentials: those are for the Secret of secretName", "one with '@'")
        fields.take("endpoint")
    storage = Storage(
        uri=fields.place("uri"),
        endpoint=fields.text("endpoint", pattern=ENDPOINT, longest=limits.ENDPOINT_LENGTH)
        if fields.has("endpoint") and "@" not in str(fields.raw["endpoint"])
        else None,
        region=fields.text("region", pattern=REGION, longest=limits.REGION_LENGTH) if fields.has("region") else None,
        addressing_style=fields.choice("addressingStyle", AddressingStyle, AddressingStyle.AUTO),
        ca_bundle=_parse_ca_bundle(fields.child("caBundle")) if fields.has("caBundle") else None,
        secret_name=_parse_object_name(fields, "secretName"),
        deletion_policy=fields.choice("deletionPolicy", DeletionPolicy, DeletionPolicy.RETAIN),
    )
    fields.done()
    return storage


def _parse_ca_bundle(fields: _Fields) -> CaBundle:
    bundle = CaBundle(
        config_map_name=_parse_object_name(fields, "configMapName"),
        secret_name=_parse_object_name(fields, "secretName"),
        key=fields.text("key", CaBundle.key, pattern=DATA_KEY, longest=limits.KEY_LENGTH),
    )
    if fields.has("configMapName") == fields.has("secretName"):
        fields.refuse("", "must name either a configMapName or a secretName", sorted(fields.raw))
    fields.done()
    return bundle


def _parse_object_name(fields: _Fields, name: str) -> str | None:
    """Return the name of a Kubernetes object, where one is given."""
    return fields.text(name, pattern=OBJECT_NAME, longest=limits.OBJECT_NAME_LENGTH) if fields.has(name) else None


class AddressingStyle(StrEnum):
    """How a bucket's name is put into its URL."""

    AUTO = "Auto"
    PATH = "Path"
    VIRTUAL = "Virtual"


def _find_contradictions(study: Study) -> Iterator[str]:
    fixed = len(study.starting_arms) + (study.baseline is not None)
    if study.num_trials < fixed:
        rule = f"must be at least {fixed}, the number of baseline and starting arms"
        yield f"`spec.numTrials` {rule}, got {study.num_trials}"
    chosen = study.promotion.num_promoted + study.promotion.num_audited + (study.baseline is not None)
    if study.num_trials < chosen:
        rule = f"must be at least {chosen}, the number of promoted and audited trials and the baseline"
        yield f"`spec.numTrials` {rule}, got {study.num_trials}"
    bounded = sum(c.metric.startswith("accuracy/") for c in study.outcome_constraints)
    most = limits.LEDGER_VALUES // max(1, len(study.parameters) + 4 * bounded)
    if study.num_trials > most:
        rule = f"must be at most {most} with {len(study.parameters)} parameters"
        rule += f" and {bounded} constraints on an attribute's accuracy" if bounded else ""
        yield f"`spec.numTrials` {rule}, got {study.num_trials}"


E = TypeVar("E", bound=StrEnum)
_REQUIRED: Any = object()


class _Fields:
    """One object of a manifest: takes its fields one by one, and notes every problem with its path.

    A wrong field gives a harmless value of the right type, so that the reading goes on.
    """

    def __init__(self, raw: Any, path: str, problems: list[str]) -> None:
        self._path = path
        self._problems = problems
        self._taken: set[str] = set()
        self.is_object = isinstance(raw, Mapping)
        """False where there is no object, which has been said: then nothing more is said of its fields."""
        if not self.is_object and raw is not None:
            self._note(path or "the manifest", "must be an object", raw)
        self.raw: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}

    def has(self, name: str) -> bool:
        """Say whether a field is given; null is as not given."""
        return self.take(name) is not None

    def take(self, name: str, default: Any = None) -> Any:
        """Return a field unread."""
        self._taken.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def refuse(self, field: str, rule: str, value: Any = _REQUIRED) -> None:
        """Note a problem; the value is the field's own unless it is given."""
        shown = self.raw.get(field) if value is _REQUIRED else value
        self._note(self._join(field), rule, shown)

    def done(self, *, known: Sequence[str] = (), rule: str = "must not be given, because it is not a field") -> None:
        """Note every field that nobody took."""
        for name in self.raw:
            if name not in self._taken and name not in known and self._path != "metadata":
                self._note(self._join(str(name)), rule, self.raw[name])

    def child(self, name: str, default: Any = _REQUIRED) -> _Fields:
        """Return an object inside this one."""
        value = self._required(name, default, "an object")
        return _Fields(value, self._join(name), self._problems)

    def nested(self, field: str, raw: Any) -> _Fields:
        """Return an object that was found under this one."""
        if raw is None:
            self.refuse(field, "must be an object")
        return _Fields(raw, self._join(field), self._problems)

    def text(
        self, name: str, default: Any = _REQUIRED, *, pattern: str = r"(?s:.+)", longest: int = limits.PLACE_LENGTH
    ) -> str:
        """Return a string."""
        value = self._required(name, default, "a string")
        if value is None:
            return ""
        if not isinstance(value, str):
            self.refuse(name, "must be a string")
            return ""
        if len(value) > longest:
            self.refuse(name, f"must have at most {longest} characters")
        elif not re.fullmatch(pattern, value):
            self.refuse(name, "must not be empty" if not value else f"must match ^{pattern}$")
        return value

    def place(self, name: str, schemes: Sequence[str] = ("s3", "file")) -> str:
        """Return a path, or a URI of one of the schemes."""
        value = self.text(name)
        scheme, separator, rest = value.partition("://")
        said = " or ".join(f"{s}://" for s in schemes)
        is_known = bool(separator) and scheme in schemes and bool(rest.strip("/"))
        if re.match(SCHEME, value) and not is_known:
            self.refuse(name, f"must be a path or start with {said} and name something")
        return value

    def words(self, name: str, most: int, *, pattern: str, longest: int) -> tuple[str, ...]:
        """Return a list of different words."""
        words: list[str] = []
        for i, item in enumerate(self.sequence(name, 0, most, ())):
            if not isinstance(item, str) or not re.fullmatch(pattern, item):
                self.refuse(f"{name}[{i}]", f"must match ^{pattern}$", item)
            elif len(item) > longest:
                self.refuse(f"{name}[{i}]", f"must have at most {longest} characters", item)
            elif item in words:
                self.refuse(f"{name}[{i}]", "must be given once", item)
            else:
                words.append(item)
        return tuple(words)

    def whole(self, name: str, bounds: Whole, *, is_required: bool = False) -> Any:
        """Return a whole number within bounds, or their default."""
        value = self._required(name, _REQUIRED if is_required else bounds.default, "a whole number")
        if value is None:
            return 0 if is_required else None
        if not bounds.allows(value):
            self.refuse(name, f"must be {bounds.says()}")
            return bounds.low if is_required else bounds.default
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float | None:
        """Return a number that is written as a string."""
        value = self._required(name, default, "a number in quotes")
        if value is None or (value is default and name not in self.raw):
            return None if value is None else float(value)
        return self.number_of(name, value)

    def number_of(self, field: str, value: Any) -> float | None:
        """Read a number that is written as a string."""
        if not isinstance(value, str):
            rule = (
                f"must be a number in quotes, such as {str(value)!r}"
                if _is_number(value)
                else "must be a number in quotes"
            )
            self.refuse(field, rule, value)
            return None
        if not re.fullmatch(NUMBER, value):
            self.refuse(field, "must be a finite number", value)
            return None
        if len(value) > limits.NUMBER_LENGTH:
            self.refuse(field, f"must have at most {limits.NUMBER_LENGTH} characters", value)
            return None
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
            return default
        return value

    def choice(self, name: str, kind: type[E], default: E) -> E:
        """Return one of an enumeration's words."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in list(kind):
            self.refuse(name, f"must be one of {', '.join(kind)}")
            return default
        return kind(value)

    def sequence(self, name: str, least: int, most: int, default: Any = _REQUIRED) -> Sequence[Any]:
        """Return a list of bounded length."""
        value = self._required(name, default, "a list")
        if value is None or value is default:
            return ()
        if not isinstance(value, list | tuple):
            self.refuse(name, "must be a list")
            return ()
        if not least <= len(value) <= most:
            self.refuse(name, f"must hold {least} to {most} items", len(value))
            return value[:most]
        return value

    def _required(self, name: str, default: Any, kind: str) -> Any:
        value = self.take(name, None if default is _REQUIRED else default)
        # Of something that is no object at all, nothing more is to be said.
        if value is None and default is _REQUIRED and self.is_object:
            self._note(self._join(name), f"must be given: {kind}", None)
        return value

    def _join(self, field: str) -> str:
        if not field:
            return self._path
        return f"{self._path}.{field}" if self._path else field

    def _note(self, path: str, rule: str, value: Any) -> None:
        got = "" if value is None else f", got {_shorten(value)}"
        self._problems.append(f"`{path}` {rule}{got}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
