"""What trials took, what stopping early saved, and what continuing will take. Attempts are folded into sums without
changing what they add up to, or what is done next."""

from dataclasses import replace
from datetime import timedelta

import pytest

from builders.ledgers import (
    NOW,
    a_ledger,
    a_measurement,
    a_rung_measurement,
    a_study,
    a_trial,
    continued,
    of_three_rungs,
    paused,
    stopped,
)
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import Attempt, Trial, TrialState
from study_operator.ledger.usage import is_budget_exhausted, measure_usage, with_seconds
from study_operator.reasons import EndReason
from study_operator.spec.study import Budget


def an_attempt(minutes: float, *, reason: str = EndReason.SUCCEEDED, rung: int = 0) -> Attempt:
    return Attempt(
        rung=rung, started_at=NOW, finished_at=NOW + timedelta(minutes=minutes), reason=reason, id=str(minutes)
    )


def what_it_took(
    *attempts: Attempt, step: int = 20, steps: int | None = None, **seconds: float
) -> tuple[float | None, ...]:
    """Return seconds of training and of everything else of a first rung that ended in the last of these attempts."""
    trial = a_trial(0, attempts=attempts)
    measurement = replace(a_rung_measurement(trial, 0), step=step, seconds=seconds, trained_steps=steps)
    measured = with_seconds(
        a_measurement(0, 0.4, step=step, train_seconds=None, fixed_seconds=None), trial, measurement
    )
    return measured.train_seconds, measured.fixed_seconds


EVICTED = an_attempt(9, reason="Evicted")


@pytest.mark.parametrize(
    ("took", "train", "fixed"),
    [
        pytest.param(
            what_it_took(an_attempt(10), load=60, train=300, evaluate=200), 300, 300, id="half of it is training"
        ),
        pytest.param(
            what_it_took(EVICTED, an_attempt(10), steps=20, load=60, train=300), 300, 300,
            id="an attempt that lost everything does not count",
        ),
        pytest.param(
            what_it_took(EVICTED, an_attempt(10), steps=5, load=60, train=300), 1200, 300,
            id="a quarter of the steps in the last attempt",
        ),
        pytest.param(
            what_it_took(EVICTED, an_attempt(10), load=60, train=300), None, None,
            id="several attempts, and nobody knows which steps were whose",
        ),
        pytest.param(
            what_it_took(EVICTED, an_attempt(10), steps=0, load=60, train=0), None, None,
            id="nothing was left to train",
        ),
        pytest.param(what_it_took(an_attempt(10)), None, None, id="a trainer that tells no phases"),
        pytest.param(what_it_took(an_attempt(10), load=60), None, None, id="phases without training"),
        pytest.param(
            what_it_took(EVICTED, an_attempt(0.1), steps=20, load=60, train=300, evaluate=40), 300, 100,
            id="the last attempt only found the measurement",
        ),
        pytest.param(what_it_took(load=60, train=300), 300, 60, id="no attempt was seen"),
    ],
)  # fmt: skip
def test_training_time_is_separated_from_fixed_time(
    took: tuple[float | None, ...], train: float | None, fixed: float | None
) -> None:
    assert took == (train, fixed)


def test_on_the_second_rung_only_its_own_steps_count_as_training() -> None:
    trial = continued(paused(0, 0.3), None)
    trial = replace(trial, attempts=(*trial.attempts, an_attempt(40, rung=1)))
    measurement = replace(a_rung_measurement(trial, 1), seconds={"train": 2000.0}, trained_steps=80)
    measured = with_seconds(a_measurement(1, 0.4, fixed_seconds=None), trial, measurement)
    assert (measured.train_seconds, measured.fixed_seconds) == (None, 400)


OLD = {"train_seconds": None, "fixed_seconds": None}


@pytest.mark.parametrize(
    ("trials", "saved"),
    [
        pytest.param([paused(1, 0.3)], 1200, id="600 s of which 300 fixed, for a fifth of the steps"),
        pytest.param([stopped(1, 0.3), stopped(2, 0.2)], 2400, id="two that stopped"),
        pytest.param([replace(paused(1, 0.3), attempts=(EVICTED, an_attempt(10)))], 1200, id="a lost attempt"),
        pytest.param([stopped(1, 0.3), continued(paused(2, 0.4), None)], 900, id="one is about to start again"),
        pytest.param([stopped(1, 0.3), continued(paused(2, 0.4), 0.5)], 900, id="one started and evaluated again"),
        pytest.param([continued(paused(2, 0.4), 0.5)], -300, id="nothing stopped early"),
        pytest.param([stopped(1, 0.3), replace(continued(paused(2, 0.4), None), state=TrialState.FAILED)], 1200,
                     id="what failed would have failed"),
        pytest.param([stopped(1, 0.3), paused(2, 0.0, diverged=True)], 1200, id="what diverged would have diverged"),
        pytest.param([stopped(1, 0.3), paused(2, 0.2, **OLD)], 1200, id="a trainer that does not tell claims nothing"),
        pytest.param([a_trial(1)], 0, id="nothing is measured"),
        pytest.param([paused(1, 0.3, **OLD), paused(2, 0.0, diverged=True, **OLD)], None, id="no trainer tells"),
    ],
)  # fmt: skip
def test_saved_time_is_what_full_length_runs_would_have_added(trials: list[Trial], saved: float | None) -> None:
    status = render_status(a_study(), a_ledger(*(replace(t, index=i) for i, t in enumerate(trials))), now=NOW)
    hours = status["usage"]["savedAcceleratorHours"]
    assert (hours is None) is (saved is None) is (status["summary"]["saved"] == "")
    assert saved is None or float(hours) * 3600 == pytest.approx(saved)


@pytest.mark.parametrize(
    ("first", "reserve"),
    [
        pytest.param(paused(0, 0.3), 300 + 1200, id="one more start and evaluation, and training by steps"),
        pytest.param(paused(0, 0.3, **OLD), 2400, id="where nobody tells, everything counts as training"),
    ],
)
def test_the_reserve_of_a_trial_is_the_time_to_finish_it(first: Trial, reserve: float) -> None:
    # The baseline and one promoted trial continue.
    hours = (600 + 2 * reserve) / 3600
    for limit, is_over in ((hours - 0.01, True), (hours + 0.01, False)):
        study = a_study(budget=Budget(accelerator_hours=limit))
        assert is_budget_exhausted(study, a_ledger(first), NOW) == is_over


def test_each_later_rung_costs_its_steps_and_one_more_start_and_evaluation() -> None:
    study = of_three_rungs()
    second = replace(a_measurement(1, 0.5, step=50), fixed_seconds=200.0)
    half_way = replace(continued(paused(2, 0.4), None), state=TrialState.STOPPED)
    half_way = replace(half_way, measurements=(*half_way.measurements, second))
    # 300 s of training for 20 steps: 15 s a step. Half of 100 steps were not trained; the second start took 200 s.
    assert measure_usage(study, a_ledger(half_way), None).saved_accelerator_hours == pytest.approx((750 - 200) / 3600)
    # On its way to 50 %, it has not yet said what its second start takes.
    under_way = continued(paused(2, 0.4), None)
    assert measure_usage(study, a_ledger(under_way), None).saved_accelerator_hours == pytest.approx((750 - 300) / 3600)


def test_the_reserve_is_that_of_every_rung_to_come() -> None:
    # Of a baseline and four others, two and the baseline go on to 50 %, then one and the baseline to the end.
    study = of_three_rungs()
    trials = [paused(i, i / 10) for i in range(5)]
    spent = 5 * 600
    reserve = 3 * (300 + 30 * 15) + 2 * (300 + 50 * 15)
    for seconds, is_over in ((spent + reserve - 1, True), (spent + reserve + 1, False)):
        limited = replace(study, budget=Budget(accelerator_hours=seconds / 3600))
        assert is_budget_exhausted(limited, a_ledger(*trials), NOW) == is_over
