"""Ask Ax for the next arms: the only importer of ax, and the only module that takes seconds to import.

Import it where a study is run and nowhere else. The rest of the operator knows ``designer.Designer`` alone.

Nothing is kept between two requests. Ax is told the whole ledger anew, asked for one arm, and thrown away; the next arm
of the same request is asked for with the first one pending. So the same ledger gives the same proposal in any process,
and asking for two arms is asking twice.

What Ax is told, and what it makes of it (seen with ax-platform 1.3.1):

============================== ========= ===========================================================================
in the ledger                  for Ax    which means
============================== ========= ===========================================================================
measured on the first rung     completed data, whatever became of the trial on the second rung: its rank among all of
                                         them, a diverged trial's below all others (`outcomes`)
no measurement yet             running   a pending point: the next proposals keep away from it
``Failed``, never measured     failed    forgotten, may be proposed again
``Abandoned``                  abandoned never proposed again, and its region is learnt as not viable
============================== ========= ===========================================================================

Means go in without standard errors: all arms are read on the same pages, so the pages' noise is common to them.

What an earlier study predicts of an arm is one more coordinate of it: how much it means here the model learns from the
measurements made here.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import statistics
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, assert_never, cast

from study_operator.ledger.stagnation import find_stagnation
from study_operator.ledger.trial import Trial, TrialState
from study_operator.optimizer.designer import (
    EXPLORATION_NODE,
    STAGNATION_NODE,
    WARM_START_NODE,
    DesignerError,
    Suggestion,
)
from study_operator.optimizer.gaps import find_gap, find_value, is_fixed, place
from study_operator.optimizer.outcomes import OutcomeError, find_means, find_scores
from study_operator.optimizer.reading import Importance, ModelReading, Share, Slice, SlicePoint, digest_question
from study_operator.optimizer.sensitivity import design, find_indices
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Arm,
    Categorical,
    EarlierStudy,
    LinearConstraint,
    LogUniform,
    Parameter,
    SearchSpace,
    Study,
    Uniform,
)
from study_operator.spec.typical_arms import find_centre, find_nearest
from trial_trainer.contract import ParameterValue

# torch and Ax warn of their own deprecations while they are imported, and would do so into a live table.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from ax.adapter.base import Adapter
    from ax.adapter.registry import Generators, MBM_X_trans, Y_trans
    from ax.adapter.torch import TorchAdapter
    from ax.adapter.transforms.add_execution_viability import EXECUTION_VIABLE_METRIC_NAME, AddExecutionViability
    from ax.core.arm import Arm as AxArm
    from ax.core.data import Data, DataRow
    from ax.core.experiment import Experiment
    from ax.core.metric import Metric
    from ax.core.objective import Objective
    from ax.core.observation import ObservationFeatures
    from ax.core.optimization_config import OptimizationConfig
    from ax.core.outcome_constraint import OutcomeConstraint as AxOutcomeConstraint
    from ax.core.parameter import ChoiceParameter, FixedParameter, ParameterType, RangeParameter
    from ax.core.parameter import Parameter as AxParameter
    from ax.core.parameter_constraint import ParameterConstraint
    from ax.core.search_space import SearchSpace as AxSearchSpace
    from ax.core.trial_status import TrialStatus
    from ax.core.types import ComparisonOp
    from ax.core.utils import extract_pending_observations
    from ax.exceptions.core import SearchSpaceExhausted
    from ax.generators.random.base import RandomGenerator
    from ax.generators.torch.botorch_modular.generator import BoTorchGenerator
    from ax.generators.winsorization_config import WinsorizationConfig
    from ax.utils.common.random import with_rng_seed
    from botorch.cross_validation import efficient_loo_cv
    from botorch.models.model import ModelList
    from botorch.posteriors.gpytorch import GPyTorchPosterior
    from scipy.optimize import isotonic_regression
    from scipy.stats import kendalltau

RELATIVE_TOLERANCE = 1e-6
"""Of a parameter's range, or of a constraint's terms: how far outside a point may lie and still be rounding."""

NARROW = 1.5e-5
"""A range that is narrower is told to Ax in other units, because it refuses it."""

MOST_ENUMERATED_ARMS = 10_000
"""A finite space up to this size is searched for arms that were not tried when Ax finds none. A study has at most 500
trials, so a larger space can't be exhausted."""

NUM_CANDIDATES = 512
"""Spread-out points that the model chooses an arm among."""

LARGEST_P_VALUE = 0.05
"""Of the one-sided test that the model ranks the measured arms as they are; above it the model is not asked."""

MOST_SCORE = 3.0
"""Of an earlier study's predictions: no rank among 500 trials has a normal score beyond it."""

NUM_SENSITIVITY_POINTS = 256
"""Points twice and once more for each parameter, at which every draw of the model is known together."""

MOST_SENSITIVITY_POINTS = 3072
"""In all. Their covariances are held at once, a few times over: with 5,600 the process took 1.8 GB."""

NUM_SENSITIVITY_DRAWS = 128

NUM_FOLDS = 8
"""Parts that are left out in turn to find out what the model knows; each takes a fit."""

NUM_SLICE_POINTS = 33
"""Over the whole range of a parameter."""

NORMAL_90 = 1.6449

INITIALIZATION_NODE = "Sobol"
MODEL_NODE = "MBM"
LEFTOVER_NODE = "Leftover"
"""Drawn by the seed among the arms of a finite space that were not tried yet."""

# Ax logs its own decisions, and its numerics warn a lot. What a user has to know we say ourselves.
for _handler in logging.getLogger("ax").handlers:
    # Its loggers have levels of their own.
    _handler.setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"(ax|botorch|gpytorch|linear_operator)(\.|$)")


class AxDesigner:
    """Bayesian optimization of a study, by Ax."""

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return up to ``count`` arms; fewer, even none, means: wait for a running trial.

        Raises:
            DesignerError: where no arm can be proposed and no trial is running, or the ledger holds what Ax must not be
                told: a point outside the search space, a number that is not finite, a metric that is missing.
        """
        ledger, is_stagnating = _entries(study, trials), find_stagnation(study, trials).is_stagnating
        suggestions: list[Suggestion] = []
        while len(suggestions) < count:
            suggestion = _try_to_propose(study, ledger, is_stagnating=is_stagnating)
            if suggestion is None:
                break
            suggestions.append(suggestion)
            ledger.append(
                _Entry(arm=suggestion.arm, status=TrialStatus.RUNNING, generation_node=suggestion.generation_node)
            )
        if not suggestions and count > 0 and not any(entry.status is TrialStatus.RUNNING for entry in ledger):
            raise DesignerError(_why_nothing_is_left(study))
        return tuple(suggestions)

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool = True) -> ModelReading:
        """Return what the model of the measured trials says: the same one that an arm would be chosen by.

        Raises:
            DesignerError: where the ledger holds what Ax must not be told, or Ax fails.
        """
        del is_last  # it is always of this ledger
        ledger = _entries(study, trials)
        with _sentences(), _one_thread(), with_rng_seed(study.seed % 2**32):
            reading = _read_model(study, trials, ledger, through)
        return replace(reading, digest=digest_question(study, trials, through))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A trial as Ax is told of it."""

    arm: Arm
    status: TrialStatus
    means: Mapping[str, float] | None = None
    """The objective and the constrained metrics on the first rung."""
    generation_node: str = ""
    """How the arm was found; empty for the baseline and starting arms."""


def _try_to_propose(study: Study, ledger: Sequence[_Entry], *, is_stagnating: bool) -> Suggestion | None:
    """Return what `_propose` does, or raise a `DesignerError`."""
    with _sentences(), _one_thread():
        return _propose(study, ledger, is_stagnating=is_stagnating)


def _propose(study: Study, ledger: Sequence[_Entry], *, is_stagnating: bool) -> Suggestion | None:
    """Return the one arm that this ledger leads to; None where there is nothing to propose."""
    # Ax would find out by drawing 10,000 times.
    if _untried_arms(study, ledger) == []:
        return None
    if (arm := _find_best_of_earlier(study, ledger)) is not None:
        return Suggestion(arm=arm, generation_node=WARM_START_NODE)
    experiment = _build_experiment(study, ledger)
    with with_rng_seed(study.seed % 2**32):
        if _is_initial(study, ledger):
            return _spread_out(study, ledger, experiment, INITIALIZATION_NODE)
        # A model that has found nothing better for long has every second arm only; the other goes where it knows least.
        if is_stagnating and ledger[-1].generation_node != STAGNATION_NODE:
            return _explore(study, ledger)
        predictors = _fit_earlier(study)
        modelled = _build_experiment(study, ledger, predictors) if predictors else experiment
        model = _fit_model(study, modelled)
        if not _rank_left_out(study, model).is_better_than_chance:
            return _spread_out(study, ledger, experiment, EXPLORATION_NODE)
        return _choose(study, ledger, modelled, model, predictors)


# From the ledger to entries.


def _entries(study: Study, trials: Sequence[Trial]) -> list[_Entry]:
    try:
        means = find_means(study, trials)
    except OutcomeError as error:
        raise DesignerError(str(error)) from error
    return [_entry(study, trial, means.get(trial.index)) for trial in sorted(trials, key=lambda trial: trial.index)]


def _entry(study: Study, trial: Trial, means: Mapping[str, float] | None) -> _Entry:
    faults = _faults(study, trial.arm)
    if faults:
        raise DesignerError(f"trial {trial.name} is outside the search space: {'; '.join(faults)}")

    measurement = trial.measurement(0)
    match trial.state:
        case TrialState.ABANDONED:
            status = TrialStatus.ABANDONED
        case TrialState.FAILED if measurement is None:
            status = TrialStatus.FAILED
        case TrialState.PENDING | TrialState.RUNNING if measurement is None:
            status = TrialStatus.RUNNING
        case _:
            status = TrialStatus.COMPLETED
    if status is TrialStatus.COMPLETED and measurement is None:
        raise DesignerError(f"trial {trial.name} is {trial.state}, so it must be measured on the first rung")
    return _Entry(
        arm=trial.arm,
        status=status,
        means=means if status is TrialStatus.COMPLETED else None,
        generation_node=trial.generation_node,
    )


# What lies in the search space.


def _faults(study: Study, arm: Arm) -> list[str]:
    """Return a sentence for each way in which an arm is not a point of the search space."""
    names = [parameter.name for parameter in study.parameters]
    faults = [f"{name} must be one of {', '.join(names)}" for name in arm if name not in names]
    faults += [f"{name} must have a value" for name in names if name not in arm]
    faults += [fault for p in study.parameters if p.name in arm for fault in _value_faults(p, arm[p.name])]
    if not faults:
        for constraint in study.parameter_constraints:
            if not constraint.holds(arm, RELATIVE_TOLERANCE):
                values = ", ".join(f"{name} = {arm[name]!r}" for name, _ in constraint.weights)
                faults.append(f"{constraint.text} must hold, got {values}")
    return faults


def _value_faults(parameter: Parameter, value: ParameterValue) -> list[str]:
    match parameter.search_space:
        case Categorical(values=values):
            # 16 and 16.0 are the same choice, 16 and "16" are not.
            if any(value == v and isinstance(value, str) == isinstance(v, str) for v in values):
                return []
            return [f"{parameter.name} must be one of {', '.join(map(repr, values))}, got {value!r}"]
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper):
            slack = RELATIVE_TOLERANCE * (upper - lower)
            if isinstance(value, int | float) and lower - slack <= value <= upper + slack:
                return []
            return [f"{parameter.name} must be between {lower!r} and {upper!r}, got {value!r}"]
        case _ as unknown:
            assert_never(unknown)


def _given_value(parameter: Parameter, value: Any) -> ParameterValue:
    """Return the study's own value for one that went through Ax's scales: type and last digit as in the manifest."""
    match parameter.search_space:
        case Categorical(values=values):
            numbers = [v for v in values if not isinstance(v, str)]
            if numbers and not isinstance(value, str):
                return min(numbers, key=lambda number: abs(number - value))
            return next(v for v in values if v == value)
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper):
            return min(max(float(value), float(lower)), float(upper))
        case _ as unknown:
            assert_never(unknown)


def _proposed_value(parameter: Parameter, value: Any) -> ParameterValue:
    """Return the study's own value for one that Ax proposed."""
    return _given_value(parameter, value if isinstance(value, str) else value / _scale(parameter))


# The Ax experiment.


def _build_experiment(study: Study, ledger: Sequence[_Entry], predictors: Sequence[_Predictor] = ()) -> Experiment:
    """Tell Ax of the study and of every trial, in order; of each arm also what earlier studies predict of it."""
    minimize = study.objective.direction is Direction.MINIMIZE
    experiment = Experiment(
        name=study.name,
        search_space=AxSearchSpace(
            parameters=[
                *(_build_parameter(parameter) for parameter in study.parameters),
                *(predictor.parameter for predictor in predictors),
            ],
            parameter_constraints=[_build_constraint(study, constraint) for constraint in study.parameter_constraints],
        ),
        metrics=[
            Metric(name=study.objective.metric, lower_is_better=minimize),
            *(Metric(name=name) for name in dict.fromkeys(c.metric for c in study.outcome_constraints)),
            # Without it the learnt viability has no metric to constrain.
            Metric(name=EXECUTION_VIABLE_METRIC_NAME),
        ],
    )
    # Not from strings, in which Ax takes the slash of "accuracy/price" for a division.
    experiment.optimization_config = OptimizationConfig(
        objective=Objective(metric=Metric(name=study.objective.metric, lower_is_better=minimize), minimize=minimize),
        outcome_constraints=[
            AxOutcomeConstraint(
                metric=Metric(name=constraint.metric),
                op=ComparisonOp.LEQ if constraint.is_upper else ComparisonOp.GEQ,
                bound=constraint.bound,
                relative=False,
            )
            for constraint in study.outcome_constraints
        ],
    )

    rows: list[DataRow] = []
    points = _build_points(study, [entry.arm for entry in ledger], predictors)
    for index, (entry, point) in enumerate(zip(ledger, points, strict=True)):
        trial = experiment.new_trial().add_arm(AxArm(parameters=point))
        trial.mark_running(no_runner_required=True)
        match entry.status:
            case TrialStatus.COMPLETED:
                trial.mark_completed()
            case TrialStatus.FAILED:
                trial.mark_failed()
            case TrialStatus.ABANDONED:
                trial.mark_abandoned()
            case _:
                pass
        rows += [
            DataRow(
                trial_index=index,
                arm_name=trial.arms[0].name,
                metric_name=metric,
                metric_signature=metric,
                mean=mean,
                se=math.nan,
            )
            for metric, mean in (entry.means or {}).items()
        ]
    if rows:
        experiment.attach_data(Data(data_rows=rows))
    return experiment


def _build_constraint(study: Study, constraint: LinearConstraint) -> ParameterConstraint:
    scale_by_name = {parameter.name: _scale(parameter) for parameter in study.parameters}
    terms = [f"{weight / scale_by_name[name]!r} * {_ax_name(name)}" for name, weight in constraint.weights]
    return ParameterConstraint(inequality=f"{' + '.join(terms)} <= {constraint.bound!r}")


def _ax_name(name: str) -> str:
    """Return a parameter's name for Ax, which gives constraints to SymPy, where ``lambda`` and ``beta`` are taken."""
    return f"p_{name}"


def _build_parameter(parameter: Parameter) -> AxParameter:
    match parameter.search_space:
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper) if lower == upper:
            return FixedParameter(name=_ax_name(parameter.name), parameter_type=ParameterType.FLOAT, value=float(lower))
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper):
            return RangeParameter(
                name=_ax_name(parameter.name),
                parameter_type=ParameterType.FLOAT,
                lower=float(lower) * _scale(parameter),
                upper=float(upper) * _scale(parameter),
                log_scale=_is_log_scaled(parameter),
            )
        case Categorical(values=values, ordered=ordered):
            kind = _choice_type(values)
            distinct: list[Any] = list(dict.fromkeys(_ax_value(kind, value) for value in values))
            if len(distinct) == 1:
                return FixedParameter(name=_ax_name(parameter.name), parameter_type=kind, value=distinct[0])
            # Strings are ordered as given, numbers by size; Ax finds geometric numbers and puts them on a log scale.
            return ChoiceParameter(
                name=_ax_name(parameter.name),
                parameter_type=kind,
                values=distinct,
                is_ordered=ordered,
                sort_values=kind is not ParameterType.STRING,
            )
        case _ as unknown:
            assert_never(unknown)


def _scale(parameter: Parameter) -> float:
    """Return what a parameter's values are multiplied by for Ax, which refuses narrow ranges such as 1e-10 to 1e-9.

    A power of two, so that no digit of a value changes on the way there and back.
    """
    match parameter.search_space:
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper) if 0 < upper - lower < NARROW:
            return 2.0 ** -math.floor(math.log2(upper - lower))
        case _:
            return 1.0


def _is_log_scaled(parameter: Parameter) -> bool:
    """Say whether Ax searches the logarithm: over less than a thousandth it is a straight line, too short for Ax."""
    match parameter.search_space:
        case LogUniform(min=lower, max=upper):
            return upper / lower > 1.001
        case _:
            return False


def _choice_type(values: Sequence[ParameterValue]) -> ParameterType:
    if any(isinstance(value, str) for value in values):
        return ParameterType.STRING
    return ParameterType.INT if all(isinstance(value, int) for value in values) else ParameterType.FLOAT


def _ax_value(kind: ParameterType, value: ParameterValue) -> float | int | str:
    match kind:
        case ParameterType.STRING:
            return str(value)
        case ParameterType.INT:
            return int(value)
        case _:
            return float(value)


def _ax_arm(study: Study, arm: Arm) -> dict[str, Any]:
    """Return an arm with Ax's types and with rounding at the bounds taken off, so that Ax takes it for in the space."""
    ax_arm: dict[str, Any] = {}
    for parameter in study.parameters:
        value = _given_value(parameter, arm[parameter.name])
        space = parameter.search_space
        if isinstance(space, Categorical):
            ax_arm[_ax_name(parameter.name)] = _ax_value(_choice_type(space.values), value)
        else:
            ax_arm[_ax_name(parameter.name)] = float(value) * _scale(parameter)
    return ax_arm


def _build_points(study: Study, arms: Sequence[Arm], predictors: Sequence[_Predictor] = ()) -> list[dict[str, Any]]:
    """Return arms as Ax's points."""
    points = [_ax_arm(study, arm) for arm in arms]
    for predictor in predictors:
        for point, prediction in zip(points, predictor.predict(arms), strict=True):
            point[predictor.parameter.name] = prediction
    return points


# What earlier studies have learnt.


def _find_best_of_earlier(study: Study, ledger: Sequence[_Entry]) -> Arm | None:
    """Return the best arm of an earlier study that was not tried here; None where all were."""
    closed = _closed_keys(study, ledger)
    for earlier in study.earlier:
        arm = {p.name: _carry_over(study, p, earlier.best) for p in study.parameters}
        if _key(study, arm) not in closed and not _faults(study, arm):
            return arm
    return None


def _carry_over(study: Study, parameter: Parameter, arm: Arm) -> ParameterValue:
    """Return an earlier arm's value; of a parameter that it does not know, the baseline's or the middle."""
    name = parameter.name
    if name not in arm and study.baseline is not None:
        return study.baseline[name]
    value = arm.get(name)
    return find_nearest(parameter, find_centre(parameter) if value is None or isinstance(value, str) else value)


@dataclass(frozen=True, kw_only=True)
class _Predictor:
    """A model of an earlier study, which predicts the normal scores that it would have measured."""

    parameter: RangeParameter
    """Ax's name and range of the prediction."""
    study: Study
    """The earlier one, as far as this one shares its parameters."""
    model: TorchAdapter

    def predict(self, arms: Sequence[Arm]) -> list[float]:
        """Return a score for each arm, the higher, the better."""
        if not arms:
            return []
        shared = [{p.name: arm[p.name] for p in self.study.parameters} for arm in arms]
        features = [ObservationFeatures(parameters=point) for point in _build_points(self.study, shared)]
        means, _ = self.model.predict(features)
        sign = self.study.objective.merit(1.0)
        return [max(-MOST_SCORE, min(MOST_SCORE, sign * mean)) for mean in means[self.study.objective.metric]]


def _fit_earlier(study: Study) -> list[_Predictor]:
    """Fit a model of each earlier study; one that does not rank its own arms better than chance predicts nothing."""
    predictors = []
    for index, earlier in enumerate(study.earlier):
        known = _restrict(study, earlier)
        model = _fit_model(known, _build_experiment(known, _entries_of_earlier(known, earlier)))
        if _rank_left_out(known, model).is_better_than_chance:
            name = f"earlier_{index}"
            parameter = RangeParameter(
                name=name, parameter_type=ParameterType.FLOAT, lower=-MOST_SCORE, upper=MOST_SCORE
            )
            predictors.append(_Predictor(parameter=parameter, study=known, model=model))
    return predictors


def _restrict(study: Study, earlier: EarlierStudy) -> Study:
    """Return the study over the parameters that an earlier one searched too, wide enough for both."""
    shared = [p for p in study.parameters if all(p.name in trial.arm for trial in earlier.trials)]
    return replace(
        study,
        parameters=tuple(
            Parameter(name=p.name, search_space=_widen(p.search_space, [t.arm[p.name] for t in earlier.trials]))
            for p in shared
        ),
        parameter_constraints=(),
        outcome_constraints=(),
        baseline=None,
        earlier=(),
    )


def _widen(space: SearchSpace, values: Sequence[ParameterValue]) -> SearchSpace:
    """Return a search space that holds some values, too."""
    match space:
        case Categorical(values=own, ordered=ordered):
            distinct = dict.fromkeys([*own, *values])
            numbers = sorted(v for v in distinct if not isinstance(v, str))
            return Categorical(values=(*numbers, *(v for v in distinct if isinstance(v, str))), ordered=ordered)
        case Uniform(min=lower, max=upper) | LogUniform(min=lower, max=upper):
            numbers = [float(v) for v in values if not isinstance(v, str)]
            if isinstance(space, LogUniform):
                numbers = [number for number in numbers if number > 0]
            return replace(space, min=min([lower, *numbers]), max=max([upper, *numbers]))
        case _ as unknown:
            assert_never(unknown)


def _entries_of_earlier(known: Study, earlier: EarlierStudy) -> list[_Entry]:
    metric, sign = known.objective.metric, known.objective.merit(1.0)
    scores = find_scores({index: trial.standing for index, trial in enumerate(earlier.trials)})
    return [
        _Entry(
            arm={p.name: trial.arm[p.name] for p in known.parameters},
            status=TrialStatus.COMPLETED,
            means={metric: sign * scores[index]},
        )
        for index, trial in enumerate(earlier.trials)
    ]


# Arms that are spread out: points of one Sobol sequence of the study.


def _is_initial(study: Study, ledger: Sequence[_Entry]) -> bool:
    """Say whether it is too early for a model: as Ax's own strategy has it, by what is under way and what is measured.

    Where measurements are late, a slot is better filled with one more spread-out arm than left idle.
    """
    budget = max(5, study.parallel_trials + 1)
    started = sum(entry.status not in (TrialStatus.FAILED, TrialStatus.ABANDONED) for entry in ledger)
    measured = sum(entry.status is TrialStatus.COMPLETED for entry in ledger)
    return started < budget or measured < budget // 2


def _spread_out(study: Study, ledger: Sequence[_Entry], experiment: Experiment, node: str) -> Suggestion | None:
    sobol = _build_sobol(experiment, study.seed % 2**32, _find_sobol_position(study, ledger))
    try:
        (arm,) = _draw(study, sobol, 1)
    except SearchSpaceExhausted:
        return _leftover(study, ledger)
    if _key(study, arm) in _closed_keys(study, ledger):
        return _leftover(study, ledger)
    return _checked(study, Suggestion(arm=arm, generation_node=node))


def _find_sobol_position(study: Study, ledger: Sequence[_Entry]) -> int:
    """Return how many points of the study's Sobol sequence are used up by the arms that came from it.

    By their count: an arm may stand in the ledger otherwise than it was proposed, for example rounded. Points that
    break a constraint of the study are passed over as they were then.
    """
    count = sum(entry.generation_node in (INITIALIZATION_NODE, EXPLORATION_NODE) for entry in ledger)
    if count == 0:
        return 0
    sobol = _build_sobol(_build_experiment(study, []), study.seed % 2**32)
    sobol.gen(n=count)
    return cast(RandomGenerator, sobol.generator).init_position


def _build_sobol(experiment: Experiment, seed: int, position: int = 0, **options: Any) -> Adapter:
    return Generators.SOBOL(experiment=experiment, seed=seed, init_position=position, **options)


def _draw(study: Study, sobol: Adapter, count: int) -> list[Arm]:
    """Return the next points of a Sobol sequence."""
    return [
        {p.name: _proposed_value(p, ax_arm.parameters[_ax_name(p.name)]) for p in study.parameters}
        for ax_arm in sobol.gen(n=count).arms
    ]


def _checked(study: Study, suggestion: Suggestion) -> Suggestion:
    if faults := _faults(study, suggestion.arm):
        raise DesignerError(f"Ax proposed a point outside the search space: {'; '.join(faults)}")
    return suggestion


# The model: Ax's Gaussian process and acquisition function, with learnt execution viability, which is in none of Ax's
# strategies.


def _fit_model(study: Study, experiment: Experiment) -> TorchAdapter:
    adapter = Generators.BOTORCH_MODULAR(
        experiment=experiment,
        transforms=[AddExecutionViability, *MBM_X_trans, *Y_trans],
        transform_configs={
            "AddExecutionViability": {"min_abandoned_trials": 1},
            # What it is given are scores; among equal measurements Ax would make a diverged trial one of them.
            "Winsorize": {"winsorization_config": {study.objective.metric: WinsorizationConfig()}},
        },
    )
    return cast(TorchAdapter, adapter)


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """How the model ranks the measured arms, each predicted from all the others: Kendall's rank correlation."""

    tau: float
    p: float
    """One-sided. Where all are equal the test knows nothing, and neither is a number."""

    @property
    def is_better_than_chance(self) -> bool:
        """Where it is not, the acquisition function only looks for the place that is farthest from all arms, and a
        spread-out arm does that better."""
        return self.p < LARGEST_P_VALUE


def _rank_left_out(study: Study, model: TorchAdapter) -> _LeftOut:
    # Not by Ax, which where some arms were abandoned conditions a model anew for each one that is left out.
    fitted, column = _find_fitted(study, model)
    with torch.no_grad():
        left_out = efficient_loo_cv(fitted)
    measured = left_out.observed_Y[:, 0, column].tolist()
    predicted = cast(GPyTorchPosterior, left_out.posterior).mean[:, 0, column].tolist()
    found = kendalltau(measured, predicted, alternative="greater")
    return _LeftOut(tau=float(found.statistic), p=float(found.pvalue))


def _find_fitted(study: Study, model: TorchAdapter) -> tuple[Any, int]:
    """Return BoTorch's model that predicts the objective, and in which column of what it predicts."""
    surrogate = cast(BoTorchGenerator, model.generator).surrogate
    column, fitted = surrogate.outcomes.index(study.objective.metric), surrogate.model
    return (fitted.models[column], 0) if isinstance(fitted, ModelList) else (fitted, column)


def _choose(
    study: Study,
    ledger: Sequence[_Entry],
    experiment: Experiment,
    model: TorchAdapter,
    predictors: Sequence[_Predictor],
) -> Suggestion | None:
    """Return the best of some spread-out points by the acquisition function.

    Its maximum is not looked for: of a wide space with few measured arms it lies in a corner, where the model knows
    least and most arms are bad. Random points are searched by SMAC too (Hutter et al. 2011), beside local ones.
    """
    candidates = _draw_candidates(study, ledger)
    if not candidates:
        return None
    with torch.no_grad():
        values = model.evaluate_acquisition_function(
            _build_features(study, candidates, predictors),
            pending_observations=extract_pending_observations(experiment) or {},
        )
    best = max(range(len(candidates)), key=values.__getitem__)
    return _checked(study, Suggestion(arm=candidates[best], generation_node=MODEL_NODE))


def _explore(study: Study, ledger: Sequence[_Entry]) -> Suggestion | None:
    """Return the one of some spread-out points that fills the gaps between all arms that were tried, or run, best."""
    candidates = _draw_candidates(study, ledger)
    if not candidates:
        return None
    tried = [place(study.parameters, entry.arm) for entry in ledger]
    found = find_gap([place(study.parameters, arm) for arm in candidates], tried)
    return _checked(study, Suggestion(arm=candidates[found], generation_node=STAGNATION_NODE))


def _draw_candidates(study: Study, ledger: Sequence[_Entry]) -> list[Arm]:
    """Return some spread-out arms that may still be proposed; of a finite space drawn among what is left of it."""
    candidates = _untried_arms(study, ledger)
    chance = random.Random(f"{study.seed} {len(ledger)}")
    if candidates is None:
        # Ax compares each with all the others for duplicates, which takes seconds.
        sobol = _build_sobol(_build_experiment(study, []), chance.randrange(2**32), deduplicate=False)
        closed = _closed_keys(study, ledger)
        candidates = [arm for arm in _draw(study, sobol, NUM_CANDIDATES) if _key(study, arm) not in closed]
    elif len(candidates) > NUM_CANDIDATES:
        candidates = chance.sample(candidates, NUM_CANDIDATES)
    return candidates


# What the model says, for people.


def _read_model(study: Study, trials: Sequence[Trial], ledger: Sequence[_Entry], through: Arm) -> ModelReading:
    measured = sum(entry.means is not None for entry in ledger)
    predictors = _fit_earlier(study)
    model = _fit_model(study, _build_experiment(study, ledger, predictors))
    ranked = _rank_left_out(study, model)
    reading = ModelReading(measured=measured, through=dict(through))
    if not math.isfinite(ranked.tau) or not math.isfinite(ranked.p):
        return reading
    if ranked.is_better_than_chance:
        # Good enough to search by. But the lengths that it was fitted with have seen what was left out.
        ranked = _rank_folds(study, ledger, predictors)
    reading = replace(reading, tau=ranked.tau, p=ranked.p, knows=ranked.is_better_than_chance)
    if not reading.knows:
        return reading
    return replace(
        reading,
        importances=_find_importances(study, model, predictors),
        slices=_cut_slices(study, trials, model, predictors, through),
    )


def _rank_folds(study: Study, ledger: Sequence[_Entry], predictors: Sequence[_Predictor]) -> _LeftOut:
    """Return how the model ranks measured arms that it was not fitted to: one part after the other is left out."""
    measured, sign = [entry for entry in ledger if entry.means is not None], study.objective.merit(1.0)
    metric, pairs = study.objective.metric, list[tuple[float, float]]()
    for fold in range(NUM_FOLDS):
        left_out = measured[fold::NUM_FOLDS]
        if not left_out:
            break
        rest = [entry for entry in ledger if not any(entry is other for other in left_out)]
        model = _fit_model(study, _build_experiment(study, rest, predictors))
        means, _ = model.predict(_build_features(study, [entry.arm for entry in left_out], predictors))
        pairs += [
            (sign * (entry.means or {})[metric], sign * float(mean))
            for entry, mean in zip(left_out, means[metric], strict=True)
        ]
    found = kendalltau(*zip(*pairs, strict=True), alternative="greater")
    return _LeftOut(tau=float(found.statistic), p=float(found.pvalue))


def _find_importances(study: Study, model: TorchAdapter, predictors: Sequence[_Predictor]) -> tuple[Importance, ...]:
    """Return how much each parameter matters over the whole space, by draws of the model.

    Not by Ax, which takes choices for numbers in between, and what an earlier study predicts of an arm for one more
    parameter. Constraints on parameters are passed over: the indices are of parameters that are drawn independently.
    """
    parameters = [p for p in study.parameters if not is_fixed(p)]
    dimensions = len(parameters)
    sobol: Any = torch.quasirandom.SobolEngine(2 * dimensions, scramble=True, seed=study.seed % 2**32)  # type: ignore[no-untyped-call]
    drawn = sobol.draw(_count_sensitivity_points(dimensions)).double().numpy()
    fixed = {p.name: find_value(p, 0.0) for p in study.parameters}
    arms = [
        fixed | {p.name: find_value(p, float(u)) for p, u in zip(parameters, point, strict=True)}
        for point in design(drawn[:, :dimensions], drawn[:, dimensions:])
    ]
    fitted, column = _find_fitted(study, model)
    if fitted.num_outputs > 1:
        fitted = fitted.subset_output([column])
    with torch.no_grad():
        places = model.transform_observation_features(_build_features(study, arms, predictors))
        values = fitted.posterior(places).rsample(torch.Size([NUM_SENSITIVITY_DRAWS]))[..., 0].numpy()
    firsts, totals = find_indices(values, dimensions)
    importances = [
        Importance(parameter=p.name, first=_summarize(firsts[:, i].tolist()), total=_summarize(totals[:, i].tolist()))
        for i, p in enumerate(parameters)
    ]
    return tuple(sorted(importances, key=lambda importance: -importance.total.value))


def _count_sensitivity_points(dimensions: int) -> int:
    """Return a power of two, of which Sobol points are spread out most evenly."""
    points = NUM_SENSITIVITY_POINTS
    while points * (dimensions + 2) > MOST_SENSITIVITY_POINTS:
        points //= 2
    return points


def _summarize(shares: Sequence[float]) -> Share:
    cuts = statistics.quantiles(shares, n=20, method="inclusive")
    return Share(value=cuts[9], low=cuts[0], high=cuts[18])


def _cut_slices(
    study: Study, trials: Sequence[Trial], model: TorchAdapter, predictors: Sequence[_Predictor], through: Arm
) -> tuple[Slice, ...]:
    """Return what the model predicts as each parameter varies and the others stay.

    It predicts what it is told, which is a score of the rank. That stands for the value that was measured at this rank,
    in between on a straight line, and beyond the best and the worst measurement for these. Where the loss ranks too,
    a better rank may have measured less: the values are those that rise with the rank and are nearest to what was.
    """
    settings = {p.name: _list_settings(p) for p in study.parameters if not is_fixed(p)}
    arms = [({**through, name: setting}, name, setting) for name, values in settings.items() for setting in values]
    arms = [found for found in arms if all(c.holds(found[0], RELATIVE_TOLERANCE) for c in study.parameter_constraints)]
    if not arms:
        return ()
    metric = study.objective.metric
    means, covariances = model.predict(_build_features(study, [arm for arm, _, _ in arms], predictors))
    means_by_index = find_means(study, trials)
    measured = [(t.index, m) for t in trials if (m := t.measurement(0)) is not None]
    has_scores = all(constraint.metric != metric for constraint in study.outcome_constraints)
    known = sorted((means_by_index[index][metric], m.value) for index, m in measured if not m.diverged)
    if has_scores and known:
        rising = isotonic_regression([value for _, value in known]).x
        known = [(score, float(value)) for (score, _), value in zip(known, rising, strict=True)]
    points: dict[str, list[SlicePoint]] = {name: [] for name in settings}
    for (_, name, setting), mean, variance in zip(arms, means[metric], covariances[metric][metric], strict=True):
        of_ranks = _find_score_variance(float(mean), len(measured)) if has_scores else 0.0
        margin = NORMAL_90 * math.sqrt(max(float(variance), 0.0) + of_ranks)
        low, value, high = (_interpolate(float(mean) + step, known) for step in (-margin, 0.0, margin))
        points[name].append(SlicePoint(setting=setting, value=value, low=low, high=high))
    return tuple(Slice(parameter=name, points=tuple(found)) for name, found in points.items() if len(found) > 1)


def _find_score_variance(score: float, measured: int) -> float:
    """Return how uncertain a normal score is as one of the rank among so few: that of a share, by the delta method."""
    at = max(-MOST_SCORE, min(MOST_SCORE, score))
    share = NormalDist().cdf(at)
    return share * (1 - share) / (measured + 2) / NormalDist().pdf(at) ** 2


def _interpolate(at: float, known: Sequence[tuple[float, float]]) -> float:
    """Return the value at a place between known ones; outside of all, that of the nearest."""
    right = bisect_left(known, (at, -math.inf))
    if right in (0, len(known)):
        return known[min(right, len(known) - 1)][1]
    (x0, y0), (x1, y1) = known[right - 1], known[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _list_settings(parameter: Parameter) -> list[ParameterValue]:
    if isinstance(parameter.search_space, Categorical):
        return list(dict.fromkeys(parameter.search_space.values))
    return [find_value(parameter, i / (NUM_SLICE_POINTS - 1)) for i in range(NUM_SLICE_POINTS)]


def _build_features(study: Study, arms: Sequence[Arm], predictors: Sequence[_Predictor]) -> list[ObservationFeatures]:
    return [ObservationFeatures(parameters=point) for point in _build_points(study, arms, predictors)]


# Spaces that end.


def _leftover(study: Study, ledger: Sequence[_Entry]) -> Suggestion | None:
    """Return an arm of a finite space that may still be proposed, drawn by the seed; None where there is none."""
    untried = _untried_arms(study, ledger)
    if not untried:
        return None
    drawn = random.Random(f"{study.seed} {len(ledger)}").choice(untried)
    return Suggestion(arm=drawn, generation_node=LEFTOVER_NODE)


def _untried_arms(study: Study, ledger: Sequence[_Entry]) -> list[Arm] | None:
    """Return the arms of a finite space that may still be proposed; None where the space does not end."""
    if not _is_finite(study):
        return None
    choices = [_list_choices(parameter) for parameter in study.parameters]
    if math.prod(map(len, choices)) > MOST_ENUMERATED_ARMS:
        return None
    names = [parameter.name for parameter in study.parameters]
    closed = _closed_keys(study, ledger)
    return [dict(zip(names, key, strict=True)) for key in itertools.product(*choices) if key not in closed]


def _is_finite(study: Study) -> bool:
    return all(isinstance(p.search_space, Categorical) or is_fixed(p) for p in study.parameters)


def _list_choices(parameter: Parameter) -> Sequence[ParameterValue]:
    """Return the values of a parameter that has so many only."""
    space = parameter.search_space
    return space.values if isinstance(space, Categorical) else [find_value(parameter, 0.0)]


def _closed_keys(study: Study, ledger: Sequence[_Entry]) -> set[tuple[ParameterValue, ...]]:
    """Return the arms that must not be proposed again."""
    return {_key(study, entry.arm) for entry in ledger if entry.status is not TrialStatus.FAILED}


def _key(study: Study, arm: Arm) -> tuple[ParameterValue, ...]:
    return tuple(arm[parameter.name] for parameter in study.parameters)


def _why_nothing_is_left(study: Study) -> str:
    if _is_finite(study):
        return "every arm of the search space was tried; numTrials must not exceed the number of its arms"
    return "no arm could be proposed and no trial is running"


@contextmanager
def _sentences() -> Iterator[None]:
    """Whatever Ax or its libraries raise, the same ledger raises again: it is said in a sentence."""
    try:
        yield
    except (DesignerError, MemoryError):
        raise
    except Exception as error:
        raise DesignerError(f"Ax failed with {type(error).__name__}: {error}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Fit on one torch thread: more of them cost seconds on a busy machine, and sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
