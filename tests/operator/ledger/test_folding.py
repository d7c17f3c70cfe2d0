"""Folding old attempts into sums changes no usage, no count and no wait."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import (
    NOW,
    a_ledger,
    a_study,
    a_trial,
)
from study_operator.ledger.folding import fold_attempts
from study_operator.ledger.trial import Attempt, Ledger, Stage, StageState, TrialState, retry_at
from study_operator.ledger.usage import measure_usage
from study_operator.reasons import EndReason
from study_operator.settings import Settings

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
def test_folding_changes_neither_usage_nor_back_off(ledger: Ledger, sizes: list[int]) -> None:
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
def test_folding_keeps_the_limit_besides_running_and_awaited_attempts(ledger: Ledger, most: int) -> None:
    folded = fold_attempts(ledger, most)
    busy = sum(t.is_busy for t in ledger.trials)
    assert sum(len(t.attempts) for t in folded.trials) <= max(most, busy)
    for trial in folded.trials:
        assert (
            trial.attempts
            == ledger.trials[trial.index].attempts[len(ledger.trials[trial.index].attempts) - len(trial.attempts) :]
        )


@given(histories(), st.integers(0, 30))
def test_an_unlisted_attempt_that_ended_before_the_folded_time_was_counted(ledger: Ledger, most: int) -> None:
    folded = fold_attempts(ledger, most)
    gone = {a for t in ledger.trials for a in t.attempts} - {a for t in folded.trials for a in t.attempts}
    assert bool(gone) == (folded.folded is not None)
    if folded.folded is not None:
        assert max(a.finished_at for a in gone if a.finished_at) == folded.folded.until


def test_a_ledger_with_few_attempts_is_not_folded() -> None:
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
