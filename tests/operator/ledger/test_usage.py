"""What trials took, what stopping early saved, and what continuing will take. Attempts are folded into sums without
changing what they add up to, or what is done next."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import (
    NOW,
    a_ledger,
    a_measurement,
    a_rung_measurement,
    a_study,
    a_trial,
    continued,
    paused,
    stopped,
)
from study_operator.ledger.folding import fold_attempts
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import Attempt, EndReason, Ledger, Stage, StageState, Trial, TrialState, retry_at
from study_operator.ledger.usage import is_budget_exhausted, measure_usage, with_seconds
from study_operator.settings import Settings
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
def test_training_is_told_from_everything_else(
    took: tuple[float | None, ...], train: float | None, fixed: float | None
) -> None:
    assert took == (train, fixed)


def test_on_the_second_rung_only_its_own_steps_count() -> None:
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
def test_saved_is_what_full_length_runs_would_have_cost_more(trials: list[Trial], saved: float | None) -> None:
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
def test_the_reserve_of_a_trial(first: Trial, reserve: float) -> None:
    # The baseline and one promoted trial continue.
    hours = (600 + 2 * reserve) / 3600
    for limit, is_over in ((hours - 0.01, True), (hours + 0.01, False)):
        study = a_study(budget=Budget(accelerator_hours=limit))
        assert is_budget_exhausted(study, a_ledger(first), NOW) == is_over


REASONS = [EndReason.SUCCEEDED, EndReason.ASKED_TO_STOP, EndReason.INTERRUPTED, EndReason.CRASHED, "Evicted"]


@st.composite
def histories(draw: st.DrawFn) -> Ledger:
    """Return trials whose attempts follow one another; the last one of a busy trial may run still."""
    trials = []
    for index in range(draw(st.integers(1, 4))):
        at, rung, attempts = NOW, 0, []
        state = draw(st.sampled_from([TrialState.PENDING, TrialState.RUNNING, TrialState.STOPPED]))
        for i in range(draw(st.integers(0, 12))):
            rung = max(rung, int(draw(st.integers(0, 5)) == 5))
            at += timedelta(seconds=draw(st.integers(0, 100)))
            end = at + timedelta(seconds=draw(st.integers(0, 1000)))
            reason = draw(st.sampled_from(REASONS))
            attempts.append(Attempt(rung=rung, started_at=at, finished_at=end, reason=reason, id=f"{index}-{i}"))
            at = end
        if attempts and state is TrialState.RUNNING:
            attempts[-1] = replace(attempts[-1], finished_at=None, reason="")
        trials.append(a_trial(index, rung=rung, state=state, attempts=tuple(attempts)))
    return a_ledger(*trials)


@given(histories(), st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_folding_changes_no_sum_and_no_wait(ledger: Ledger, sizes: list[int]) -> None:
    study, now = a_study(), NOW + timedelta(days=1)
    folded = ledger
    for most in sizes:
        folded = fold_attempts(folded, most)
    before, after = measure_usage(study, ledger, now), measure_usage(study, folded, now)
    assert after.accelerator_hours == pytest.approx(before.accelerator_hours)
    assert after.active_seconds == pytest.approx(before.active_seconds)
    assert after.saved_accelerator_hours is not None
    assert after.saved_accelerator_hours == pytest.approx(before.saved_accelerator_hours)
    for one, other in zip(ledger.trials, folded.trials, strict=True):
        assert other.attempts_so_far == one.attempts_so_far
        # What is over is attempted never again.
        if one.is_busy:
            assert retry_at(other, Settings()) == retry_at(one, Settings())


@given(histories(), st.integers(0, 30))
def test_no_more_are_kept_than_asked_but_for_what_runs_and_what_is_waited_for(ledger: Ledger, most: int) -> None:
    folded = fold_attempts(ledger, most)
    busy = sum(t.is_busy for t in ledger.trials)
    assert sum(len(t.attempts) for t in folded.trials) <= max(most, busy)
    for trial in folded.trials:
        assert (
            trial.attempts
            == ledger.trials[trial.index].attempts[len(ledger.trials[trial.index].attempts) - len(trial.attempts) :]
        )


@given(histories(), st.integers(0, 30))
def test_what_ended_before_the_sums_and_is_not_listed_has_been_counted(ledger: Ledger, most: int) -> None:
    folded = fold_attempts(ledger, most)
    gone = {a for t in ledger.trials for a in t.attempts} - {a for t in folded.trials for a in t.attempts}
    assert bool(gone) == (folded.folded is not None)
    if folded.folded is not None:
        assert max(a.finished_at for a in gone if a.finished_at) == folded.folded.until


def test_a_ledger_with_few_attempts_is_left_as_it_is() -> None:
    ledger = a_ledger(a_trial(0, attempts=(Attempt(rung=0, started_at=NOW, finished_at=NOW, id=""),) * 3))
    assert fold_attempts(ledger) is ledger


def test_a_stage_keeps_its_latest_attempts_and_counts_the_others() -> None:
    attempts = tuple(
        Attempt(rung=0, started_at=NOW, finished_at=NOW, reason=reason, id=str(i))
        for i, reason in enumerate([EndReason.CRASHED, EndReason.ASKED_TO_STOP, EndReason.CRASHED, EndReason.CRASHED])
    )
    ledger = Ledger(prepare=Stage(state=StageState.PENDING, attempts=attempts))
    folded = fold_attempts(ledger, most_of_stage=1)
    assert folded.prepare.attempts == attempts[-1:]
    assert folded.prepare.earlier_attempts is not None
    assert (folded.prepare.earlier_attempts.attempts, folded.prepare.earlier_attempts.faults) == (3, 2)
    assert retry_at(folded.prepare, Settings()) == retry_at(ledger.prepare, Settings())
