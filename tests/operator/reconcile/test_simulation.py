"""Whole studies in a simulated cluster: in calm weather by the book, in storms without breaking a promise."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders import simulated_cluster
from builders.simulated_cluster import CALM, RESTORING, STORMY, Broken, Weather, run_study
from study_operator.ledger import curve_runs, ranking
from study_operator.ledger.trial import Attempt, Trial, TrialState
from study_operator.reasons import EndReason
from study_operator.reconcile import act, actions, planner, settle, tick
from study_operator.spec.study import Study


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="study_operator")


def test_without_faults_every_study_completes_with_all_its_trials() -> None:
    for seed in range(1, 40):
        ledger = run_study(seed, CALM)
        assert ledger.outcome is not None
        assert ledger.outcome.reason in ("Completed", "BudgetExhausted")
        assert all(len(t.attempts) == 1 + t.rung for t in ledger.trials)


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_under_random_faults_every_study_ends_correctly(count: int) -> None:
    outcomes = Counter(str(ledger.outcome and ledger.outcome.reason) for ledger in map(run_study, range(count)))
    assert outcomes.total() == count
    assert outcomes["Completed"] > count / 2


@pytest.mark.slow
def test_after_status_restores_no_measurement_is_assigned_to_another_arm() -> None:
    refused: list[int] = []
    for seed in range(100):
        run_study(seed, RESTORING, refused.append)
    assert len(refused) == 100
    assert sum(refused) > 30


def test_the_checker_detects_a_measurement_assigned_to_another_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick, "_why_refused", lambda *_, **__: "")
    assert "its arm has" in _first_broken(range(100), RESTORING)


def test_a_simulation_is_determined_by_its_seed() -> None:
    assert run_study(5) == run_study(5)


def _first_broken(seeds: range, weather: Weather = STORMY) -> str:
    for seed in seeds:
        try:
            run_study(seed, weather)
        except Broken as broken:
            return str(broken)
    return ""


def _launch_unwritten(self: Any, index: int) -> bool:
    return index < len(self.ledger.runs)


def _launch_all(study: Study, trials: Sequence[Trial], jobs: Mapping[str, Any], *_: Any) -> list[actions.Launch]:
    return [
        actions.Launch(index=t.index, rung=t.rung, reason="it waits")
        for t in trials
        if t.state is TrialState.PENDING and f"{study.name}-{t.name}-r{t.rung}" not in jobs
    ]


def _choose_any(study: Study, trials: Sequence[Trial]) -> Trial | None:
    return next((t for t in trials if t.rung), None) if study else None


def _rank_early_by_index(study: Study, trials: Iterable[Trial], rung: int) -> list[Trial]:
    measured = list(trials)
    return _rank(study, measured, rung) if rung else [t for t in measured if t.measurement(0)]


def _forget_attempts(*arguments: Any, **options: Any) -> tuple[Attempt, ...] | None:
    ended = _close(*arguments, **options)
    return None if ended is None else tuple(a for a in ended if a.reason != EndReason.SUCCEEDED)


_close, _rank = settle._close, ranking.rank


@pytest.mark.parametrize(
    ("place", "name", "mutant", "complaint"),
    [
        pytest.param(planner, "_plan_launches", _launch_all, "is one more than", id="a planner that does not count"),
        pytest.param(ranking, "rank", _rank_early_by_index, "the top is", id="a promotion that does not rank"),
        pytest.param(settle, "_close", _forget_attempts, "is in no ledger", id="a settlement that forgets"),
        pytest.param(
            planner,
            "choose_winner",
            _choose_any,
            "the winner is",
            id="a winner by chance",
        ),
        pytest.param(
            planner,
            "list_curve_runs",
            lambda *arguments: curve_runs.list_curve_runs(*arguments)[::-1],
            "the data curve has",
            id="a data curve that begins with the largest size",
        ),
        pytest.param(planner, "_find_kept", lambda *_: (), "checkpoints are left", id="a broom that spares none"),
    ],
)
def test_the_checker_detects_each_broken_promise(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, mutant: Any, complaint: str
) -> None:
    monkeypatch.setattr(place, name, mutant)
    monkeypatch.setattr(simulated_cluster, "LONGEST_STUDY_TICKS", 1500)
    assert complaint in _first_broken(range(900))


def test_the_checker_detects_a_job_launched_before_its_trial_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act._Written, "trial", _launch_unwritten)
    assert any(
        message in _first_broken(range(300)) for message in ("is in no ledger", "launched though its arm cannot run")
    )


def test_every_promise_is_checked_under_twice_as_many_faults() -> None:
    storm = simulated_cluster.STORMY
    assert simulated_cluster._twice_as_bad(storm) == replace(
        storm, **{name: 2 * chance for name, chance in vars(storm).items()}
    )
