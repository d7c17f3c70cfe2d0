"""Carrying out the plan: launches, proposals, clean-up, and what a refused launch leaves."""

import logging

import pytest

from builders.desk import a_desk, a_proposal, run
from builders.ledgers import (
    NOW,
    a_job,
    a_ledger,
    a_rung_measurement,
    a_study,
    a_trial,
    continued,
    ended,
    paused,
    running,
    stopped,
)
from study_operator.ledger.trial import (
    Outcome,
    SearchEnd,
    TrialState,
)
from study_operator.optimizer.designer import Suggestion
from study_operator.reconcile.runner import JobPhase
from study_operator.settings import Settings
from trial_trainer.contract import (
    to_json,
)


def test_a_trial_is_launched_only_once_it_is_written() -> None:
    desk = a_desk(a_ledger(), proposals=[a_proposal()])
    run(desk)
    assert desk.log == ["suggest 1 after 1 for s1", "write"]
    assert [t.state for t in desk.ledger.trials] == [TrialState.PENDING, TrialState.PENDING]
    assert desk.ledger.trials[1].generation_node == "Sobol"
    run(desk)
    assert desk.log[2:] == ["launch s1-t000-r0", "launch s1-t001-r0"]


def test_the_optimizer_is_asked_after_everything_was_launched() -> None:
    desk = a_desk(a_ledger(a_trial(0)), proposals=[a_proposal()])
    run(desk)
    assert desk.log == ["launch s1-t000-r0", "suggest 1 after 1 for s1", "write"]


def test_a_batch_larger_than_the_data_is_an_arm_that_cannot_run() -> None:
    desk = a_desk(a_ledger(), proposals=[Suggestion(arm={"batch_size": 512}, generation_node="Sobol")])
    run(desk)
    assert desk.ledger.trials[1].state is TrialState.ABANDONED
    assert desk.ledger.trials[1].message == ("batch_size must be at most 320, the number of training samples, got 512")


def test_an_optimizer_that_gives_up_ends_the_search_and_measured_trials_are_promoted() -> None:
    desk = a_desk(a_ledger(paused(0, 0.3), paused(1, 0.4)), problem="the search space is exhausted")
    result = run(desk)
    assert desk.ledger.search_end is SearchEnd.NO_MORE_PROPOSALS
    assert [(e.reason, e.is_warning) for e in result.events] == [("SearchEnded", True)]
    run(desk)
    assert [t.rung for t in desk.ledger.trials] == [1, 1]


def test_an_empty_proposal_while_nothing_runs_ends_the_search() -> None:
    desk = a_desk(a_ledger(paused(0, 0.3)))
    run(desk)
    assert desk.ledger.search_message == "it proposed nothing"
    waiting = a_desk(a_ledger(running(a_trial(0))), a_job())
    run(waiting)
    assert waiting.ledger.search_end is None


def test_a_pending_proposal_does_not_end_the_search() -> None:
    desk = a_desk(a_ledger(paused(0, 0.3)), is_thinking=True)
    assert run(desk).is_idle
    assert desk.ledger.search_end is None


OVER = Outcome(failed=False, reason="Completed", message="t001 won")


def test_after_the_end_only_full_length_checkpoints_are_kept() -> None:
    trials = (continued(paused(0, 0.3), 0.4), continued(paused(1, 0.2), 0.6), stopped(2, 0.1))
    desk = a_desk(a_ledger(*trials, winner=1, outcome=OVER))
    for trial, rung in (("t000", 0), ("t000", 1), ("t001", 0), ("t001", 1), ("t002", 0)):
        desk.objects[f"trials/{trial}/rungs/{rung}/checkpoints/000020-a1/manifest.json"] = b"{}"
        desk.objects[f"trials/{trial}/rungs/{rung}/adapter/adapter_config.json"] = b"{}"
    # Two at a time: no tick takes for ever.
    settings = Settings(cleaned_at_once=2)
    result = run(desk, settings=settings)
    assert desk.log == ["delete trials/t000/rungs/0/checkpoints", "delete trials/t001/rungs/0/checkpoints"]
    assert (desk.ledger.cleaned_at, result.is_idle, result.is_done) == (None, False, False)
    for key in [key for key in desk.objects if "t002" not in key and "/0/checkpoints/" in key]:
        del desk.objects[key]
    run(desk, settings=settings)
    assert desk.log[2:] == ["delete trials/t002/rungs/0/checkpoints", "write"]
    assert desk.ledger.cleaned_at == NOW
    assert run(desk, settings=settings).is_done


def test_without_a_full_length_trial_the_checkpoint_of_the_best_first_measurement_is_kept() -> None:
    failed = Outcome(failed=True, reason="NoWinner", message="")
    desk = a_desk(a_ledger(stopped(0, 0.3), stopped(1, 0.4), outcome=failed))
    for trial in ("t000", "t001"):
        desk.objects[f"trials/{trial}/rungs/0/checkpoints/000020-a1/state.json"] = b"{}"
    run(desk)
    assert desk.log == ["delete trials/t000/rungs/0/checkpoints", "write"]


def test_an_unreachable_bucket_after_the_end_is_reported_and_cleaned_up_later() -> None:
    desk = a_desk(a_ledger(stopped(0, 0.3), outcome=OVER), is_bucket_away=True)
    result = run(desk)
    assert (desk.ledger.cleaned_at, result.is_done) == (None, False)
    storage = next(c for c in result.status["conditions"] if c["type"] == "StorageReady")
    assert (storage["status"], storage["reason"]) == ("False", "StorageUnreachable")
    desk.is_bucket_away = False
    run(desk)
    assert desk.ledger.cleaned_at == NOW


def test_a_job_is_deleted_by_the_tick_after_the_one_that_writes_its_result() -> None:
    trial = running(a_trial(0))
    desk = a_desk(a_ledger(trial), ended(0))
    desk.objects["trials/t000/rungs/0/measurement.json"] = to_json(a_rung_measurement(trial, 0, accuracy=0.5)).encode()
    run(desk)
    assert "delete s1-t000-r0" not in desk.log
    run(desk)
    assert "delete s1-t000-r0" in desk.log


def test_a_job_that_cannot_be_deleted_does_not_block_checkpoint_clean_up() -> None:
    """As on a node that is silent: the Job has ended, and its pod does not go."""
    ledger = a_ledger(stopped(0, 0.3), outcome=OVER)
    desk = a_desk(ledger, ended(0, attempt="of-0", finished_at=NOW))
    run(desk)
    assert desk.ledger.cleaned_at == NOW


def test_a_refused_launch_is_reported_and_retried() -> None:
    study = a_study(parallel_trials=1, num_trials=1)
    desk = a_desk(a_ledger(a_trial(0)), refusal="exceeded quota: count/jobs.batch=8")
    result = run(desk, study)
    assert desk.ledger.trials[0].message == "it waits: QuotaExceeded: exceeded quota: count/jobs.batch=8"
    complete = next(c for c in result.status["conditions"] if c["type"] == "Complete")
    assert complete["message"].endswith("trial t000: it waits: QuotaExceeded: exceeded quota: count/jobs.batch=8")
    assert [(e.reason, e.is_warning, e.message) for e in result.events] == [
        ("JobWaits", True, "trial t000: it waits: QuotaExceeded: exceeded quota: count/jobs.batch=8")
    ]
    # Other figures are no news.
    desk.refusal = "exceeded quota: count/jobs.batch=9"
    result = run(desk, study)
    assert (result.is_idle, result.is_refused, list(result.events)) == (True, True, [])
    desk.refusal = ""
    assert not run(desk, study).is_refused
    assert desk.log == ["write", "launch s1-t000-r0"]
    assert not desk.ledger.trials[0].attempts

    preparing = a_desk(refusal="exceeded quota")
    run(preparing)
    run(preparing)
    assert preparing.ledger.prepare.message == "it waits: QuotaExceeded: exceeded quota"


def test_one_line_is_logged_for_an_action_and_none_for_a_tick_that_did_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "study_operator")
    desk = a_desk(a_ledger(a_trial(0), a_trial(1)))
    run(desk)
    assert caplog.messages == [
        "launched job s1-t000-r0 for trial t000 (rung 0, stop at step 20 of 100)",
        "launched job s1-t001-r0 for trial t001 (rung 0, stop at step 20 of 100)",
    ]
    caplog.clear()
    desk.statuses[:] = [a_job(f"s1-t00{i}-r0", phase=JobPhase.PENDING, started_at=None) for i in (0, 1)]
    run(desk)
    assert caplog.messages == []
