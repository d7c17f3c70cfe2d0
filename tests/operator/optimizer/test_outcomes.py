"""What the optimizer is given: a diverged trial is clearly worse than every other, and no number squashes the rest."""

import math
from dataclasses import replace

import pytest

from builders.ledgers import a_measurement, a_study, a_trial, minimizing
from study_operator.ledger.trial import Trial, TrialState
from study_operator.optimizer.outcomes import OutcomeError, find_means
from study_operator.spec.constraints import parse_outcome_constraint
from study_operator.spec.metrics import Direction
from study_operator.spec.study import Objective, OutcomeConstraint, Study


def read(index: int, value: float, **metrics: float) -> Trial:
    """Return a trial with a first measurement."""
    measurement = a_measurement(0, value, metrics=metrics)
    return a_trial(index, state=TrialState.PAUSED, measurements=(measurement,))


def diverged(index: int, value: float = 0.0, **metrics: float) -> Trial:
    """Return a trial that diverged, with the value that the ledger gives it."""
    trial = read(index, value, **metrics)
    return replace(trial, measurements=(replace(trial.measurements[0], diverged=True, checkpoint=""),))


def given(study: Study, *trials: Trial) -> list[float]:
    """Return the objective's mean of each trial."""
    return [means[study.objective.metric] for means in find_means(study, trials).values()]


def rates() -> Study:
    return a_study(objective=Objective(metric="false_value_rate", direction=Direction.MINIMIZE))


@pytest.mark.parametrize(
    ("study", "healthy", "expected"),
    [
        pytest.param(a_study(), [0.4, 0.6, 0.7], 0.1, id="accuracies: by their spread"),
        pytest.param(a_study(), [0.6, 0.61], 0.5, id="accuracies that are close: by ten points"),
        pytest.param(a_study(), [0.0], -0.1, id="the only accuracy is zero"),
        pytest.param(a_study(), [0.0, 0.0, 0.0], -0.1, id="all accuracies are zero"),
        pytest.param(a_study(), [0.0, 0.6, 0.61, 0.62], None, id="an accuracy of zero among good ones"),
        pytest.param(minimizing(), [1.2, 1.5, 2.2], 3.2, id="losses: by their spread"),
        pytest.param(minimizing(), [1.2], 1.32, id="the only loss: by a tenth"),
        pytest.param(minimizing(), [2.0, 2.001], 2.20105, id="losses that are close: by a tenth of their median"),
        pytest.param(minimizing(), [0.0], 0.1, id="a loss of zero"),
        pytest.param(rates(), [0.9, 0.95], 1.05, id="a rate may leave its bounds"),
    ],
)
def test_a_diverged_trial_is_clearly_worse_than_the_worst(
    study: Study, healthy: list[float], expected: float | None
) -> None:
    trials = [read(index, value) for index, value in enumerate(healthy)]
    # The ledger gives it the worst value that was read, or the bound.
    for ledgers in (0.0, 1.0, healthy[0]):
        *others, worst = given(study, *trials, diverged(len(healthy), ledgers))
        if expected is not None:
            assert others == healthy
            assert worst == pytest.approx(expected)
        assert all(study.objective.merit(worst) <= study.objective.merit(value) - 0.09 for value in others)


@pytest.mark.parametrize(("study", "bound"), [(a_study(), 0.0), (minimizing(), 10.8), (rates(), 1.0)])
def test_where_all_diverged_each_has_the_bound_of_the_metric(study: Study, bound: float) -> None:
    assert given(study, diverged(0, 0.3), diverged(1, 0.4)) == [bound, bound]


def test_a_loss_beyond_all_reason_does_not_squash_the_others() -> None:
    losses = [1.2, 1.3, 1.25, 1.4, 1.35, 1e4]
    *healthy, outlier, worst = given(minimizing(), *[read(i, v) for i, v in enumerate(losses)], diverged(6, 1e4))
    assert healthy == losses[:-1]
    assert max(healthy) < outlier < worst < 5


def test_a_diverged_trial_breaks_every_constraint_and_is_worse_than_who_breaks_it_too() -> None:
    constraints = ("invalid_output_rate <= 0.2", "accuracy/price >= 0.5", "validation_loss <= 2")
    study = a_study(outcome_constraints=tuple(map(parse_outcome_constraint, constraints)))
    healthy = [
        read(0, 0.5, **{"invalid_output_rate": 0.1, "accuracy/price": 0.9, "validation_loss": 1.0}),
        read(1, 0.4, **{"invalid_output_rate": 1.0, "accuracy/price": 0.0, "validation_loss": 1.1}),
    ]
    means = find_means(study, [*healthy, diverged(2, invalid_output_rate=1.0)])
    assert means[0] == {"accuracy": 0.5} | dict(healthy[0].measurements[0].metrics)
    assert means[2]["invalid_output_rate"] > 1.0
    assert means[2]["accuracy/price"] < 0.0
    assert means[2]["validation_loss"] == pytest.approx(2.2)
    alone = find_means(study, [diverged(2, invalid_output_rate=1.0)])[2]
    assert alone["invalid_output_rate"] == pytest.approx(0.3)
    assert alone["accuracy/price"] == pytest.approx(0.4)


def test_the_order_of_trials_does_not_matter() -> None:
    trials = [read(0, 0.3), diverged(1), read(2, 0.7), diverged(3)]
    forwards, backwards = find_means(a_study(), trials), find_means(a_study(), trials[::-1])
    assert dict(forwards) == dict(backwards)


def test_what_is_not_measured_yet_is_not_given() -> None:
    assert find_means(a_study(), [a_trial(0), a_trial(1, state=TrialState.RUNNING)]) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(OutcomeError, match="trial t000: accuracy must be finite, got"):
        find_means(a_study(), [read(0, value)])


def test_a_constrained_metric_that_was_not_measured_is_refused() -> None:
    study = a_study(outcome_constraints=(OutcomeConstraint(metric="accuracy/price", is_upper=False, bound=0.5),))
    with pytest.raises(OutcomeError, match="trial t000 must measure 'accuracy/price'"):
        find_means(study, [read(0, 0.5)])
