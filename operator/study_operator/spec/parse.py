"""The one place that makes a study from a manifest.

Knows nothing of Kubernetes objects beyond the raw dict that it is given. Every problem is collected, so that a person
mends all of them at once.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study_operator import names
from study_operator.errors import StudyInvalidError
from study_operator.names import API_VERSION, KIND
from study_operator.spec import limits
from study_operator.spec.constraints import parse_linear_constraint, parse_outcome_constraint
from study_operator.spec.fields import (
    ATTRIBUTE,
    BASE_URL,
    DATA_KEY,
    ENDPOINT,
    MODULE,
    OBJECT_NAME,
    REGION,
    STUDY_NAME,
    Fields,
)
from study_operator.spec.metrics import KNOWN_ATTRIBUTES, METRICS, Direction
from study_operator.spec.study import (
    TRAINER_CONTAINER,
    AddressingStyle,
    Arm,
    Budget,
    CaBundle,
    Categorical,
    CurveArm,
    Data,
    DataCurve,
    DeletionPolicy,
    EarlyEvaluation,
    LinearConstraint,
    LogUniform,
    Objective,
    OutcomeConstraint,
    Parameter,
    PodTemplate,
    Promotion,
    RankBy,
    SearchSpace,
    Storage,
    Study,
    Teacher,
    TypicalArm,
    Uniform,
    WarmStart,
    find_broken_rule,
)
from study_operator.spec.typical_arms import count_by_default, find_typical_arms
from trial_trainer.artifacts import join
from trial_trainer.contract import (
    ADAPTER,
    AnswerFormat,
    Augmentation,
    BaseModel,
    Candidate,
    Edit,
    LabelSource,
    MissingLabel,
    OutOfTokens,
    ParameterValue,
    Precision,
    Split,
    SplitBy,
    TrainerSettings,
    to_json,
)


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
    manifest = Fields(raw, "", problems)
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
    early = _parse_early_evaluation(spec.child("earlyEvaluation", {}))
    constraints = _parse_parameter_constraints(spec, parameters, baseline, starting)
    study = Study(
        name=name,
        namespace=namespace,
        uid=uid,
        generation=generation,
        objective=objective,
        outcome_constraints=_parse_outcome_constraints(spec, objective, data.attributes),
        parameters=parameters,
        parameter_constraints=constraints,
        baseline=baseline,
        starting_arms=starting,
        typical_arms=_choose_typical_arms(
            spec, parameters, constraints, base_model.uri, baseline, starting, num_trials
        ),
        warm_start_from=_parse_warm_start(spec, name),
        num_trials=num_trials,
        parallel_trials=spec.whole("parallelTrials", limits.PARALLEL_TRIALS),
        max_failed_trials=spec.whole("maxFailedTrials", limits.MAX_FAILED_TRIALS),
        seed=spec.whole("seed", limits.SEED),
        suspend=spec.flag("suspend", False),
        early_evaluation=early,
        promotion=_parse_promotion(spec.child("promotion", {}), early),
        budget=_parse_budget(spec.child("budget", {})),
        data_curve=_parse_data_curve(spec.child("dataCurve")) if spec.has("dataCurve") else None,
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


def _parse_objective(fields: Fields, attributes: Sequence[str]) -> Objective:
    metric = fields.text("metric", "accuracy")
    known = _direction_of(metric, attributes)
    if known is None:
        fields.refuse("metric", f"must be {_say_metrics(attributes)}")
        known = fields.choice("direction", Direction, Direction.MAXIMIZE)
    elif (direction := fields.take("direction", known.value)) not in list(Direction):
        fields.refuse("direction", f"must be one of {', '.join(Direction)}, {known.value!r} for {metric}")
    elif direction != known.value:
        fields.refuse("direction", f"must be {known.value!r} for {metric}")
    fields.done()
    return Objective(metric=metric, direction=known)


def _direction_of(metric: str, attributes: Sequence[str]) -> Direction | None:
    head, _, attribute = metric.partition("/")
    if attribute and (head != "accuracy" or attribute not in attributes):
        return None
    return METRICS.get(head) if attribute or "/" not in metric else None


def _say_metrics(attributes: Sequence[str]) -> str:
    message = f"one of {', '.join(METRICS)}"
    return (
        f"{message}, or accuracy/ and one of the asked attributes ({', '.join(attributes)})" if attributes else message
    )


def _parse_outcome_constraints(
    spec: Fields, objective: Objective, attributes: Sequence[str]
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


def _parse_parameters(spec: Fields) -> tuple[Parameter, ...]:
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


def _parse_search_space(fields: Fields, rule: _Rule | None) -> SearchSpace | None:
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


def _parse_range(fields: Fields, rule: _Rule | None, *, is_log: bool) -> SearchSpace | None:
    low, high = fields.number("min"), fields.number("max")
    if rule is not None and rule.is_whole:
        fields.refuse(
            "", 'must be categorical: {values: ["8", "16"]} in its place, because whole numbers are chosen', fields.raw
        )
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


def _parse_categorical(fields: Fields, rule: _Rule | None) -> SearchSpace | None:
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
    spec: Fields, parameters: Sequence[Parameter], *, are_known: bool
) -> tuple[Arm | None, tuple[Arm, ...]]:
    baseline, starting = spec.take("baseline"), spec.sequence("startingArms", 0, limits.STARTING_ARMS_LENGTH, ())
    if not are_known:
        return None, ()
    arms = [_parse_arm(spec, f"startingArms[{i}]", item, parameters) for i, item in enumerate(starting)]
    given = None if baseline is None else _parse_arm(spec, "baseline", baseline, parameters)
    return given, tuple(arm for arm in arms if arm is not None)


def _choose_typical_arms(
    spec: Fields,
    parameters: Sequence[Parameter],
    constraints: Sequence[LinearConstraint],
    model: str,
    baseline: Arm | None,
    starting: Sequence[Arm],
    num_trials: int,
) -> tuple[TypicalArm, ...]:
    """Return as many typical arms as the study asks for and has room for, or by default a few."""
    given = [*([baseline] if baseline is not None else []), *starting]
    count = spec.whole("typicalArms", limits.TYPICAL_ARMS)
    if count is None:
        count = count_by_default(num_trials)
    found = find_typical_arms(parameters, constraints, model, given)
    return tuple(itertools.islice(found, max(0, min(count, num_trials - len(given)))))


def _parse_warm_start(spec: Fields, own_name: str) -> tuple[WarmStart, ...]:
    sources: list[WarmStart] = []
    for i, item in enumerate(spec.sequence("warmStartFrom", 0, limits.WARM_START_LENGTH, ())):
        fields = spec.nested(f"warmStartFrom[{i}]", item)
        given = [name for name in ("study", "uri") if fields.has(name)]
        fields.done()
        if len(given) != 1:
            if fields.is_object:
                fields.refuse("", "must hold either study or uri", sorted(fields.raw))
            continue
        if given == ["study"]:
            source = WarmStart(study=fields.text("study", pattern=STUDY_NAME, longest=limits.NAME_LENGTH))
            if source.study == own_name:
                fields.refuse("study", "must name another study than this one")
        else:
            source = WarmStart(uri=fields.place("uri").rstrip("/"))
        if source in sources:
            fields.refuse(source.field, "must be given once")
        sources.append(source)
    return tuple(sources)


def _parse_arm(spec: Fields, field: str, raw: Any, parameters: Sequence[Parameter]) -> Arm | None:
    fields = spec.nested(field, raw)
    arm: dict[str, ParameterValue] = {}
    for parameter in parameters:
        value = fields.number(parameter.name)
        if value is None:
            continue
        rule = find_broken_rule(parameter.search_space, value)
        if rule is not None:
            fields.refuse(parameter.name, f"must lie in the search space: {rule}")
        is_listed = isinstance(parameter.search_space, Categorical)
        arm[parameter.name] = int(value) if is_listed and value == int(value) else value
    fields.done(rule="must not be given, because it is not one of the study's parameters")
    return arm if len(arm) == len(parameters) else None


def _parse_parameter_constraints(
    spec: Fields, parameters: Sequence[Parameter], baseline: Arm | None, starting: Sequence[Arm]
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


def _parse_early_evaluation(fields: Fields) -> EarlyEvaluation:
    rungs: tuple[int, ...] = (fields.whole("checkpointPercent", limits.CHECKPOINT_PERCENT),)
    if fields.has("rungs"):
        rungs = _parse_percents(fields, "rungs", limits.RUNG_PERCENT, least=1, most=limits.RUNGS_LENGTH)
        if list(rungs) != sorted(set(rungs)):
            fields.refuse("rungs", "must ascend", list(rungs))
        if fields.has("checkpointPercent"):
            fields.refuse("checkpointPercent", "must not be given beside rungs, whose short form it is")
        rungs = rungs or EarlyEvaluation.rungs
    extra = _parse_percents(fields, "extraPercents", limits.EXTRA_PERCENT, least=0, most=limits.EXTRA_PERCENTS_LENGTH)
    for i, percent in enumerate(extra):
        if percent in rungs or percent in extra[:i]:
            fields.refuse(f"extraPercents[{i}]", "must be given once and differ from each rung's", percent)
    fields.done()
    return EarlyEvaluation(rungs=rungs, extra_percents=tuple(sorted(extra)))


def _parse_percents(fields: Fields, name: str, bounds: limits.Whole, *, least: int, most: int) -> tuple[int, ...]:
    """Return the percentages of a list that are in bounds."""
    percents: list[int] = []
    for i, item in enumerate(fields.sequence(name, least, most, ())):
        if bounds.allows(item):
            percents.append(item)
        else:
            fields.refuse(f"{name}[{i}]", f"must be {bounds.says()}", item)
    return tuple(percents)


def _parse_promotion(fields: Fields, early: EarlyEvaluation) -> Promotion:
    percents = (limits.DEFAULT_PROMOTED_PERCENT,) * (len(early.rungs) - 1)
    if fields.has("promotedPercents"):
        given, most = fields.take("promotedPercents"), limits.RUNGS_LENGTH - 1
        if isinstance(given, list) and len(given) != len(percents):
            rule = f"must hold one item for each early rung but the last, which makes {len(percents)}"
            fields.refuse("promotedPercents", rule)
        percents = _parse_percents(fields, "promotedPercents", limits.PROMOTED_PERCENT, least=0, most=most)
    promotion = Promotion(
        num_promoted=fields.whole("numPromoted", limits.NUM_PROMOTED),
        num_audited=fields.whole("numAudited", limits.NUM_AUDITED),
        promoted_percents=percents,
        rank_by=fields.choice("rankBy", RankBy, RankBy.OBJECTIVE),
        confirm_seeds=fields.whole("confirmSeeds", limits.CONFIRM_SEEDS),
    )
    fields.done()
    return promotion


def _parse_budget(fields: Fields) -> Budget:
    hours = fields.number("acceleratorHours", None)
    if hours is not None and hours <= 0:
        fields.refuse("acceleratorHours", "must be greater than 0")
    seconds = fields.whole("activeDeadlineSeconds", limits.ACTIVE_DEADLINE_SECONDS)
    fields.done()
    return Budget(accelerator_hours=hours, active_deadline_seconds=seconds)


def _parse_data_curve(fields: Fields) -> DataCurve:
    sizes: list[int] = []
    for i, item in enumerate(fields.sequence("sampleSizes", 1, limits.SAMPLE_SIZES_LENGTH)):
        if limits.SAMPLE_SIZE.allows(item):
            sizes.append(item)
        else:
            fields.refuse(f"sampleSizes[{i}]", f"must be {limits.SAMPLE_SIZE.says()}", item)
    if sizes != sorted(set(sizes)):
        fields.refuse("sampleSizes", "must ascend", sizes)
    least_gain = fields.number("leastGain", DataCurve.least_gain)
    if least_gain is not None and least_gain <= 0:
        fields.refuse("leastGain", "must be greater than 0")
    curve = DataCurve(
        sample_sizes=tuple(sizes),
        seeds=fields.whole("seeds", limits.CURVE_SEEDS),
        arm=fields.choice("arm", CurveArm, CurveArm.WINNER),
        balanced=fields.flag("balanced", False),
        least_gain=least_gain or DataCurve.least_gain,
        compare_augmentation=fields.flag("compareAugmentation", False),
    )
    fields.done()
    return curve


def _parse_data(fields: Fields) -> Data:
    source = fields.place("source")
    attributes = fields.words(
        "attributes", limits.ATTRIBUTES_LENGTH, pattern=ATTRIBUTE, longest=limits.ATTRIBUTE_LENGTH
    )
    test_source = fields.place("testSource") if fields.has("testSource") else None
    labels = fields.child("labels", {})
    labels_from = labels.choice("from", LabelSource, LabelSource.MARKUP)
    # Of another word that is refused nothing follows.
    is_markup = labels.raw.get("from") in (None, LabelSource.MARKUP)
    missing_labels = labels.choice("missing", MissingLabel, MissingLabel.UNKNOWN)
    if missing_labels is MissingLabel.ABSENT and (is_markup or not attributes):
        labels.refuse(
            "missing", "must be Unknown unless attributes are asked and their labels are Given or a Teacher's"
        )
    is_taught = labels_from is LabelSource.TEACHER
    teacher = _parse_teacher(labels.child("teacher")) if labels.has("teacher") else None
    if is_taught and teacher is None:
        labels.refuse("teacher", "must be given where labels come from a Teacher")
    if teacher is not None and not is_taught:
        labels.refuse("teacher", "must not be given unless labels come from a Teacher")
        teacher = None
    if is_taught and not attributes:
        labels.refuse("from", "must be Given without attributes: ready samples have their completions")
    labels.done()
    if is_markup:
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
    augment = _parse_augment(fields.child("augment")) if fields.has("augment") else None
    if augment is not None and not attributes:
        fields.refuse("augment", "must be left out unless attributes are asked")
    template = _parse_template(fields)
    fields.done()
    return Data(
        source=source,
        attributes=attributes,
        labels_from=labels_from,
        missing_labels=missing_labels,
        teacher=teacher,
        split=parsed,
        test_source=test_source,
        max_pages=max_pages,
        augment=augment,
        template=template,
    )


def _parse_teacher(fields: Fields) -> Teacher:
    if "@" in str(fields.raw.get("endpoint")):
        # It may hold a password, which is not repeated.
        fields.refuse("endpoint", "must hold no credentials: the key is for the Secret of secretName", "one with '@'")
        fields.take("endpoint")
    temperature = fields.number("temperature", None)
    if temperature is not None and not 0 <= temperature <= 2:
        fields.refuse("temperature", "must be from 0 to 2")
    teacher = Teacher(
        endpoint=fields.text("endpoint", pattern=BASE_URL, longest=limits.ENDPOINT_LENGTH)
        if "@" not in str(fields.raw.get("endpoint"))
        else "",
        model=fields.text("model", longest=limits.TEACHER_MODEL_LENGTH),
        secret_name=_parse_object_name(fields, "secretName"),
        secret_key=fields.text("secretKey", Teacher.secret_key, pattern=DATA_KEY, longest=limits.KEY_LENGTH),
        answer_format=fields.choice("answerFormat", AnswerFormat, Teacher.answer_format),
        instructions=fields.text("instructions", longest=limits.TEACHER_INSTRUCTIONS_LENGTH)
        if fields.has("instructions")
        else "",
        temperature=temperature,
        max_answer_tokens=fields.whole("maxAnswerTokens", limits.TEACHER_MAX_ANSWER_TOKENS),
        max_tokens=fields.whole("maxTokens", limits.TEACHER_MAX_TOKENS),
        when_tokens_run_out=fields.choice("whenTokensRunOut", OutOfTokens, Teacher.when_tokens_run_out),
        self_consistency_samples=fields.whole("selfConsistencySamples", limits.TEACHER_SELF_CONSISTENCY_SAMPLES),
        parallel_requests=fields.whole("parallelRequests", limits.TEACHER_PARALLEL_REQUESTS),
        timeout_seconds=fields.whole("timeoutSeconds", limits.TEACHER_TIMEOUT_SECONDS),
    )
    fields.done()
    return teacher


def _parse_augment(fields: Fields) -> Augmentation:
    copies = fields.whole("copies", limits.VARIANTS)
    edits: list[Edit] = []
    for i, item in enumerate(fields.sequence("edits", 1, len(Edit)) if fields.has("edits") else Edit):
        if item not in list(Edit):
            fields.refuse(f"edits[{i}]", f"must be one of {', '.join(Edit)}", item)
        elif item in edits:
            fields.refuse(f"edits[{i}]", "must be given once", item)
        else:
            edits.append(Edit(item))
    fields.done()
    return Augmentation(copies=copies or 1, edits=tuple(edits))


def _parse_trainer(fields: Fields) -> tuple[BaseModel, TrainerSettings, int, PodTemplate | None]:
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


def _parse_template(fields: Fields) -> PodTemplate | None:
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


def _parse_storage(fields: Fields) -> Storage:
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


def _parse_ca_bundle(fields: Fields) -> CaBundle:
    bundle = CaBundle(
        config_map_name=_parse_object_name(fields, "configMapName"),
        secret_name=_parse_object_name(fields, "secretName"),
        key=fields.text("key", CaBundle.key, pattern=DATA_KEY, longest=limits.KEY_LENGTH),
    )
    if fields.has("configMapName") == fields.has("secretName"):
        fields.refuse("", "must name either a configMapName or a secretName", sorted(fields.raw))
    fields.done()
    return bundle


def _parse_object_name(fields: Fields, name: str) -> str | None:
    """Return the name of a Kubernetes object, where one is given."""
    return fields.text(name, pattern=OBJECT_NAME, longest=limits.OBJECT_NAME_LENGTH) if fields.has(name) else None


def _find_contradictions(study: Study) -> Iterator[str]:
    fixed = len(study.starting_arms) + (study.baseline is not None)
    if study.num_trials < fixed:
        rule = f"must be at least {fixed}, the number of baseline and starting arms"
        yield f"`spec.numTrials` {rule}, got {study.num_trials}"
    rungs = study.last_rung
    chosen = study.promotion.num_promoted + study.promotion.num_audited * rungs + (study.baseline is not None)
    if study.num_trials < chosen:
        each = "" if rungs == 1 else f" × {rungs} early rungs"
        parts = [f"{study.promotion.num_promoted} promoted"]
        parts += [f"{study.promotion.num_audited} audited{each}"] if study.promotion.num_audited else []
        parts += ["the baseline"] if study.baseline is not None else []
        rule = f"must be at least {chosen} ({' + '.join(parts)})"
        yield f"`spec.numTrials` {rule}, got {study.num_trials}"
    # A confirmation or a run of the data curve takes as much room as a trial.
    extra = study.extra_runs
    beside = f", beside {extra} further runs" if extra else ""
    most = limits.LEDGER_MEASUREMENTS // (rungs + 1) - extra
    if study.num_trials > most:
        yield f"`spec.numTrials` must be at most {most} with {rungs} early rungs{beside}, got {study.num_trials}"
    bounded = sum(c.metric.startswith("accuracy/") for c in study.outcome_constraints)
    most = limits.LEDGER_VALUES // max(1, len(study.parameters) + 2 * (rungs + 1) * bounded) - extra
    if study.num_trials > most:
        rule = f"must be at most {most} with {len(study.parameters)} parameters"
        rule += f" and {bounded} constraints on an attribute's accuracy" if bounded else ""
        yield f"`spec.numTrials` {rule}{beside}, got {study.num_trials}"
    if study.promotion.confirm_seeds and study.baseline is None:
        rule = "must be 0 where there is no spec.baseline"
        yield f"`spec.promotion.confirmSeeds` {rule}, got {study.promotion.confirm_seeds}"
    if study.data_curve is not None and study.data_curve.arm is CurveArm.BASELINE and study.baseline is None:
        yield "`spec.dataCurve.arm` must be 'Winner' where there is no spec.baseline, got 'Baseline'"
    if study.data_curve is not None and study.data_curve.compare_augmentation and study.data.augment is None:
        yield "`spec.dataCurve.compareAugmentation` must be false where there is no spec.data.augment, got True"
    if study.data_curve is not None:
        taken = _count_candidate_bytes(study)
        most = limits.CURVE_ADAPTERS_BYTES // taken - 2 * study.promotion.confirm_seeds
        if study.data_curve.runs > most:
            rule = f"must have at most {most} runs where naming an adapter takes {taken} bytes"
            yield f"`spec.dataCurve` {rule} (a shorter `spec.storage.uri` allows more), got {study.data_curve.runs}"


def _count_candidate_bytes(study: Study) -> int:
    """Return how long a run of the data curve is in the final evaluation's configuration."""
    prefix = names.study_uri(study.storage.uri, study.namespace, study.name, study.uid)
    adapter = join(prefix, names.rung_key("t000", study.last_rung), ADAPTER)
    return len(to_json([Candidate(trial="t000", adapter=adapter, digest="0" * 16)]))
