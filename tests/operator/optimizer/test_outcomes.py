"""What the optimizer is given: the objective by rank, a diverged trial below every other."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import a_measurement, a_study, a_trial, minimizing
from study_operator.ledger.trial import Trial, TrialState
from study_operator.optimizer.outcomes import OutcomeError, find_means
from study_operator.spec.constraints import parse_outcome_constraint
from study_operator.spec.metrics import Direction
from study_operator.spec.study import Objective, OutcomeConstraint, Promotion, RankBy, Study


def read(index: int, value: float, **metrics: float) -> Trial:
    """Return a trial with a first measurement."""
    measurement = a_measurement(0, value, metrics=metrics)
    return a_trial(index, state=TrialState.PAUSED, measurements=(measurement,))


def diverged(index: int, value: float = 0.0, **metrics: float) -> Trial:
    """Return a trial that diverged, with the value that the ledger gives it."""
    trial = read(index, value, **metrics)
    return replace(trial, measurements=(replace(trial.measurements[0], diverged=True, checkpoint=""),))


def scores_of(study: Study, *trials: Trial) -> list[float]:
    """Return what is given of each trial's objective."""
    return [means[study.objective.metric] for means in find_means(study, trials).values()]


STUDIES = [
    a_study(),
    minimizing(),
    a_study(objective=Objective(metric="false_value_rate", direction=Direction.MINIMIZE)),
]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.objective.metric)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_scores_are_finite_and_in_the_order_of_what_was_read(study: Study, values: list[float]) -> None:
    scores = scores_of(study, *[read(index, value) for index, value in enumerate(values)])
    assert all(map(math.isfinite, scores))
    for (value, score), (other, its_score) in itertools.pairwise(sorted(zip(values, scores, strict=True))):
        # Equal values have equal scores.
        assert (value < other) == (score < its_score)
        assert score <= its_score


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], [0.0]),
        ([0.4, 0.4, 0.4], [0.0, 0.0, 0.0]),
        ([0.1, 0.2, 1e9], [-0.6745, 0.0, 0.6745]),
        ([0.3, 0.3, 0.9], [-0.3186, -0.3186, 0.6745]),
    ],
    ids=["one alone", "all equal", "one beyond all reason", "two equal"],
)
def test_scores_are_quantiles_of_the_normal_distribution(values: list[float], expected: list[float]) -> None:
    assert scores_of(a_study(), *[read(i, v) for i, v in enumerate(values)]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.objective.metric)
@pytest.mark.parametrize(
    "healthy", [[0.0], [0.0, 0.0, 0.0], [0.6, 0.601], [0.0, 0.6, 0.61, 0.62], [0.4 + i / 100 for i in range(24)]]
)
def test_a_diverged_trial_is_clearly_worse_than_the_worst(study: Study, healthy: list[float]) -> None:
    trials = [read(index, value) for index, value in enumerate(healthy)]
    # The ledger gives it the worst value that was read, or the bound.
    for ledgers in (0.0, 1.0, healthy[0]):
        *others, one, other = scores_of(
            study, *trials, diverged(len(healthy), ledgers), diverged(len(healthy) + 1, ledgers)
        )
        assert one == other
        assert all(study.objective.merit(one) < study.objective.merit(score) - 0.3 for score in others)


def test_equals_are_told_apart_by_their_loss() -> None:
    losses = (2.0, 1.0, 3.0)
    trials = [read(i, 0.0, validation_loss=loss) for i, loss in enumerate(losses)]
    unknown = read(3, 0.0)
    third, best, worst, last = scores_of(a_study(), *trials, unknown)
    assert best > third > worst > last
    # One that was right for once is better than all of them.
    *scores, right = scores_of(a_study(), *trials, read(3, 0.1, validation_loss=9.0))
    assert right > max(scores)


@pytest.mark.parametrize(
    ("rank_by", "is_second_better"),
    [(RankBy.OBJECTIVE, True), (RankBy.VALIDATION_LOSS, False), (RankBy.OBJECTIVE_AND_LOSS, False)],
)
def test_arms_rank_as_they_do_where_some_are_promoted(rank_by: RankBy, is_second_better: bool) -> None:
    study = a_study(promotion=Promotion(num_promoted=1, rank_by=rank_by))
    first, second = scores_of(study, read(0, 0.4, validation_loss=1.0), read(1, 0.41, validation_loss=2.0))
    assert (second > first) is is_second_better


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.objective.metric)
def test_where_all_diverged_all_are_equal(study: Study) -> None:
    assert scores_of(study, diverged(0, 0.3), diverged(1, 0.4)) == [0.0, 0.0]


def test_a_diverged_trial_breaks_every_constraint_and_is_worse_than_who_breaks_it_too() -> None:
    constraints = ("invalid_output_rate <= 0.2", "accuracy/price >= 0.5", "validation_loss <= 2")
    study = a_study(outcome_constraints=tuple(map(parse_outcome_constraint, constraints)))
    healthy = [
        read(0, 0.5, **{"invalid_output_rate": 0.1, "accuracy/price": 0.9, "validation_loss": 1.0}),
        read(1, 0.4, **{"invalid_output_rate": 1.0, "accuracy/price": 0.0, "validation_loss": 1.1}),
    ]
    means = find_means(study, [*healthy, diverged(2, invalid_output_rate=1.0)])
    assert means[0] == {"accuracy": pytest.approx(0.6745, abs=1e-4)} | dict(healthy[0].measurements[0].metrics)
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
