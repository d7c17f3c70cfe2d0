"""What a study does next: rows of its life, and laws that hold for any ledger."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import (
    BASELINE,
    NOW,
    a_job,
    a_ledger,
    a_measurement,
    a_study,
    a_trial,
    by_name,
    continued,
    ended,
    paused,
    running,
    stopped,
)
from study_operator.ledger.trial import (
    Attempt,
    Continuation,
    DatasetCounts,
    Ledger,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.reasons import EndReason
from study_operator.reconcile.act import _decide
from study_operator.reconcile.actions import (
    Action,
    Attach,
    ChooseWinner,
    DeleteJob,
    EndSearch,
    EvaluateWinner,
    Finish,
    Launch,
    Prepare,
    Promote,
    Stop,
    Suggest,
)
from study_operator.reconcile.planner import plan
from study_operator.reconcile.runner import JobKind, JobPhase
from study_operator.spec.study import Budget, EarlyEvaluation, Promotion, TypicalArm

CRASHED = Attempt(rung=0, started_at=NOW, finished_at=NOW, exit_code=1, reason="Crashed", id="a1")
ASKED = replace(CRASHED, finished_at=None, exit_code=None, reason=EndReason.ASKED_TO_STOP)
MEASURED = SearchEnd.ALL_TRIALS_MEASURED


def say(action: Action) -> str:
    """Return an action in short, without its reason."""
    match action:
        case Attach(origin=origin):
            return f"attach {origin}"
        case Suggest(count=count):
            return f"suggest {count}"
        case Launch(index=index, rung=rung):
            return f"launch t{index} r{rung}"
        case EndSearch(end=end):
            return f"end search {end}"
        case Promote(index=index, continuation=continuation):
            return f"promote t{index} {continuation}"
        case Stop(index=index):
            return f"stop t{index}"
        case ChooseWinner(index=index):
            return f"winner t{index}"
        case DeleteJob(name=name):
            return f"delete {name}"
        case Finish(outcome=outcome):
            return f"finish {outcome.reason}"
        case Prepare() | EvaluateWinner():
            return type(action).__name__.lower()


def planned(ledger: Ledger, *jobs: Any, **changes: Any) -> list[str]:
    """Return what a study of four trials does next, in short."""
    return [say(action) for action in plan(a_study(**changes), ledger, by_name(jobs), NOW)]


def decided(*trials: Trial, **changes: Any) -> Ledger:
    """Return a ledger whose search has ended."""
    return a_ledger(*trials, search_end=MEASURED, **changes)


FULL = [continued(paused(0, 0.3), 0.4, Continuation.BASELINE), stopped(1, 0.1), continued(paused(2, 0.5), 0.6)]


@pytest.mark.parametrize(
    ("ledger", "jobs", "actions"),
    [
        pytest.param(Ledger(), [], ["prepare"], id="first the data"),
        pytest.param(Ledger(), [a_job("s1-prepare", kind=JobKind.PREPARE)], [], id="the data is being prepared"),
        pytest.param(
            Ledger(prepare=Stage(attempts=(CRASHED,))),
            [ended(1, "s1-prepare", kind=JobKind.PREPARE)],
            [],
            id="a crashed preparation waits",
        ),
        pytest.param(
            Ledger(prepare=Stage(state=StageState.FAILED, message="no page has a price")),
            [],
            ["finish PrepareFailed"],
            id="without data there is no study",
        ),
        pytest.param(a_ledger(), [], ["attach Baseline", "suggest 1"], id="the baseline first, then the optimizer"),
        pytest.param(
            a_ledger(a_trial(0), a_trial(1)), [], ["launch t0 r0", "launch t1 r0"], id="what is written is launched"
        ),
        pytest.param(a_ledger(a_trial(0)), [a_job()], ["suggest 1"], id="a live job is not launched again"),
        pytest.param(
            a_ledger(running(a_trial(0)), running(a_trial(1))),
            [a_job("s1-t000-r0"), a_job("s1-t001-r0")],
            [],
            id="no more than fit in",
        ),
        pytest.param(a_ledger(paused(0, 0.3), running(a_trial(1))), [], ["suggest 1"], id="a freed slot is refilled"),
        pytest.param(
            a_ledger(paused(0, 0.3), paused(1, 0.2), paused(2, 0.4), running(a_trial(3))),
            [a_job("s1-t003-r0")],
            [],
            id="all are waited for",
        ),
        pytest.param(
            a_ledger(paused(0, 0.3), paused(1, 0.2), paused(2, 0.4), a_trial(3, state=TrialState.ABANDONED)),
            [],
            [
                "end search AllTrialsMeasured",
                "promote t0 Baseline",
                "promote t2 Promoted",
                "stop t1",
            ],
            id="the best and the baseline continue",
        ),
        pytest.param(
            decided(continued(paused(0, 0.3), None), stopped(1, 0.2), continued(paused(2, 0.4), None), stopped(3, 0.1)),
            [],
            ["launch t2 r1", "launch t0 r1"],
            id="the better one is launched first",
        ),
        pytest.param(
            decided(*FULL[:2], replace(continued(paused(2, 0.4), None), state=TrialState.FAILED), stopped(3, 0.15)),
            [],
            ["promote t3 Promoted"],
            id="the next best replaces a promoted trial that failed",
        ),
        pytest.param(decided(*FULL, stopped(3, 0.1)), [], ["winner t2"], id="validation chooses the winner"),
        pytest.param(decided(*FULL, stopped(3, 0.1), winner=2), [], ["evaluatewinner"], id="then the test set is read"),
        pytest.param(
            decided(*FULL, winner=2, final_evaluation=Stage(state=StageState.RUNNING)),
            [a_job("s1-final-evaluation", kind=JobKind.FINAL_EVALUATION)],
            [],
            id="the final evaluation is waited for",
        ),
        pytest.param(
            decided(*FULL, winner=2, final_evaluation=Stage(state=StageState.COMPLETED)),
            [],
            ["finish Completed"],
            id="the end",
        ),
        pytest.param(
            decided(
                *FULL,
                winner=2,
                dataset=DatasetCounts(fingerprint="", train_samples=1, validation_samples=1, test_samples=0),
            ),
            [],
            ["finish Completed"],
            id="without a test set nothing is evaluated",
        ),
        pytest.param(
            decided(*FULL, winner=2, final_evaluation=Stage(state=StageState.FAILED, message="no adapter")),
            [],
            ["finish FinalEvaluationFailed"],
            id="a final evaluation that cannot evaluate",
        ),
        pytest.param(
            a_ledger(*(a_trial(i, state=TrialState.ABANDONED, message="no memory") for i in range(4))),
            [],
            ["finish NothingTrains"],
            id="nothing trains",
        ),
        pytest.param(
            a_ledger(*(paused(i, 0.0, diverged=True) for i in range(4))),
            [],
            ["finish NothingTrains"],
            id="everything diverged",
        ),
        pytest.param(
            a_ledger(a_trial(0, state=TrialState.FAILED), a_trial(1, state=TrialState.FAILED), running(a_trial(2))),
            [a_job("s1-t002-r0")],
            ["finish TooManyFailedTrials"],
            id="one more failed than may",
        ),
        pytest.param(
            a_ledger(
                a_trial(0, state=TrialState.FAILED, attempts=(replace(CRASHED, reason=EndReason.STUDY_CANNOT_RUN),))
            ),
            [],
            ["finish StudyCannotRun"],
            id="the study's own fault ends it at once",
        ),
        pytest.param(
            a_ledger(a_trial(0, attempts=(replace(CRASHED, finished_at=NOW - timedelta(minutes=9)),))),
            [ended(1)],
            ["delete s1-t000-r0", "suggest 1"],
            id="an ended job makes way for the next attempt",
        ),
        pytest.param(
            a_ledger(a_trial(0, attempts=(CRASHED,))), [ended(1)], ["suggest 1"], id="the next attempt waits its time"
        ),
        pytest.param(
            a_ledger(a_trial(0)), [ended(1)], ["suggest 1"], id="an end that is not yet in the ledger is not deleted"
        ),
        pytest.param(
            a_ledger(running(a_trial(0)), outcome=Outcome(failed=True, reason="StudyCannotRun", message="")),
            [a_job()],
            [],
            id="a study that has ended launches nothing",
        ),
        pytest.param(
            a_ledger(
                a_trial(0, state=TrialState.RUNNING, attempts=(ASKED,)),
                outcome=Outcome(failed=True, reason="StudyCannotRun", message=""),
            ),
            [a_job()],
            ["delete s1-t000-r0"],
            id="a study that has ended stops what still runs",
        ),
    ],
)
def test_the_plan_for_each_ledger_and_its_jobs(ledger: Ledger, jobs: list[Any], actions: list[str]) -> None:
    assert planned(ledger, *jobs) == actions


def test_a_suspended_study_launches_and_decides_nothing() -> None:
    for ledger in (Ledger(), a_ledger(), a_ledger(a_trial(0)), decided(*FULL), decided(*FULL, winner=2)):
        assert planned(ledger, suspend=True) == []


def test_suspending_deletes_pending_jobs_and_running_ones_once_the_request_is_written() -> None:
    unwritten = a_ledger(running(a_trial(0)))
    written = a_ledger(a_trial(0, state=TrialState.RUNNING, attempts=(ASKED,)), a_trial(1))
    waiting = a_job("s1-t001-r0", phase=JobPhase.PENDING, started_at=None)
    assert planned(unwritten, a_job(), suspend=True) == []
    assert planned(written, a_job(), waiting, suspend=True) == ["delete s1-t000-r0", "delete s1-t001-r0"]


def test_a_job_that_was_asked_to_stop_is_deleted_even_after_resuming() -> None:
    written = a_ledger(a_trial(0, state=TrialState.RUNNING, attempts=(ASKED,)))
    assert planned(written, a_job())[0] == "delete s1-t000-r0"


def test_running_jobs_of_failed_and_abandoned_trials_are_deleted() -> None:
    for state in (TrialState.FAILED, TrialState.ABANDONED):
        trial = replace(running(a_trial(0)), state=state)
        ledger = a_ledger(trial, running(a_trial(1)))
        assert planned(ledger, a_job(attempt="a2"), a_job("s1-t001-r0"), max_failed_trials=3)[:1] == [
            "delete s1-t000-r0"
        ]
        # One that ended has told all that it had to tell.
        assert "delete s1-t000-r0" in planned(ledger, ended(137), a_job("s1-t001-r0"), max_failed_trials=3)
    given_up = replace(a_trial(0), attempts=(CRASHED,))
    assert planned(a_ledger(given_up, running(a_trial(1))), a_job(), a_job("s1-t001-r0")) == ["delete s1-t000-r0"]
    prepare = Stage(state=StageState.FAILED, message="no such page")
    assert planned(Ledger(prepare=prepare), a_job("s1-prepare", kind=JobKind.PREPARE))[0] == "delete s1-prepare"


def test_a_finished_job_is_deleted_once_its_result_is_recorded_and_its_ttl_has_passed() -> None:
    promoted = replace(continued(paused(0, 0.3), None), state=TrialState.RUNNING)
    ledger = a_ledger(promoted, paused(1, 0.2), running(a_trial(2)))
    jobs = (
        ended(0, "s1-prepare", kind=JobKind.PREPARE, attempt="of-prepare"),
        ended(0, "s1-t000-r0", attempt="of-0"),
        a_job("s1-t000-r1"),
        ended(0, "s1-t001-r0", attempt="of-1"),
        a_job("s1-t002-r0"),
    )
    over = ["delete s1-prepare", "delete s1-t000-r0", "delete s1-t001-r0"]
    assert planned(ledger, *jobs) == over
    assert planned(ledger, *jobs, ttl_seconds_after_finished=60) == []
    # The ledger's times count, where it has them.
    jobs = tuple(replace(job, finished_at=NOW + timedelta(hours=3)) if job.finished_at else job for job in jobs)
    assert planned(ledger, *jobs)[1:] == over[1:]
    # Where a quota has no room for the next one, none is kept.
    waiting = replace(ledger, trials=(*ledger.trials, replace(a_trial(3), message="it waits: QuotaExceeded: no room")))
    found = planned(waiting, *jobs, ttl_seconds_after_finished=60, parallel_trials=4)
    assert found == [*over, "launch t3 r0"]


def test_starting_arms_come_between_the_baseline_and_the_optimizer() -> None:
    study = a_study(starting_arms=({"learning_rate": 2e-3}, {"learning_rate": 3e-3}), parallel_trials=4)
    actions = plan(study, a_ledger(), {}, NOW)
    arms = [(a.origin, a.arm) for a in actions if isinstance(a, Attach)]
    assert arms == [
        (Origin.BASELINE, BASELINE),
        (Origin.STARTING_ARM, {"learning_rate": 2e-3}),
        (Origin.STARTING_ARM, {"learning_rate": 3e-3}),
    ]
    assert say(actions[-1]) == "suggest 1"


def test_after_lowering_parallel_trials_running_trials_finish_and_none_is_launched() -> None:
    trials = [running(a_trial(0)), running(a_trial(1)), a_trial(2)]
    jobs = [a_job("s1-t000-r0"), a_job("s1-t001-r0")]
    assert planned(a_ledger(*trials), *jobs, parallel_trials=1) == []


def test_a_running_job_of_a_trial_unknown_to_the_ledger_occupies_a_slot() -> None:
    ledger = decided(stopped(1, 0.1), continued(paused(2, 0.4), None), a_trial(0, state=TrialState.ABANDONED))
    assert planned(ledger, a_job("s1-t001-r1"), parallel_trials=1) == []


def test_raising_the_number_of_trials_reopens_the_search_until_the_first_promotion() -> None:
    measured = [paused(0, 0.3), paused(1, 0.2), paused(2, 0.4), paused(3, 0.1)]
    assert planned(a_ledger(*measured), num_trials=5) == ["suggest 1"]
    assert planned(decided(*FULL, stopped(3, 0.1)), num_trials=5) == ["winner t2"]


def test_after_the_optimizer_gave_up_no_further_proposals_are_awaited() -> None:
    ledger = a_ledger(paused(0, 0.3), paused(1, 0.2), search_end=SearchEnd.NO_MORE_PROPOSALS)
    assert planned(ledger) == ["promote t0 Baseline", "promote t1 Promoted"]


def test_the_search_stops_when_the_reserve_for_promotions_reaches_the_budget() -> None:
    # Five of ten minutes are training, for 20 of 100 steps: the rest of one trial takes another five and twenty of
    # training, and baseline and one promoted continue.
    ledger = a_ledger(paused(0, 0.3), paused(1, 0.2))
    spent, reserve = 2 * 10 / 60, 2 * 25 / 60
    within = Budget(accelerator_hours=spent + reserve + 0.01)
    beyond = Budget(accelerator_hours=spent + reserve)
    assert planned(ledger, budget=within) == ["suggest 2"]
    assert planned(ledger, budget=beyond)[0] == "end search BudgetExhausted"


def test_the_deadline_counts_active_time_and_reserves_rounds_of_promotions() -> None:
    # Both trials ran in the same ten minutes; both continue side by side in 25 more.
    ledger = a_ledger(paused(0, 0.3), paused(1, 0.2))
    assert planned(ledger, budget=Budget(active_deadline_seconds=35 * 60 + 1)) == ["suggest 2"]
    assert planned(ledger, budget=Budget(active_deadline_seconds=35 * 60))[0] == "end search BudgetExhausted"


def test_a_study_out_of_budget_ends_complete_with_reason_budget_exhausted() -> None:
    ledger = a_ledger(
        *FULL, search_end=SearchEnd.BUDGET_EXHAUSTED, winner=2, final_evaluation=Stage(state=StageState.COMPLETED)
    )
    actions = plan(a_study(num_trials=9), ledger, {}, NOW)
    assert [a.outcome for a in actions if isinstance(a, Finish)] == [
        Outcome(
            failed=False,
            reason="BudgetExhausted",
            message="trial t002 is the winner of 3 trials; "
            "what is spent and the reserve for promotions reach the budget",
        )
    ]


def test_every_action_has_a_reason() -> None:
    for ledger in (Ledger(), a_ledger(), a_ledger(a_trial(0)), decided(*FULL), decided(*FULL, winner=2)):
        assert all(action.reason for action in plan(a_study(), ledger, {}, NOW))


# --- Laws --------------------------------------------------------------------------------------------------------


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    """Any ledger that a study of up to ten trials may have."""
    trials: list[Trial] = []
    is_decided = draw(st.booleans())
    for i in range(draw(st.integers(0, 10))):
        value = draw(st.integers(0, 20)) / 20
        first = st.sampled_from(
            [a_trial(i), running(a_trial(i)), paused(i, value), a_trial(i, state=TrialState.ABANDONED)]
        )
        later = st.sampled_from(
            [
                stopped(i, value),
                continued(paused(i, value), None),
                continued(paused(i, value), value),
                replace(continued(paused(i, value), None), state=TrialState.FAILED),
            ]
        )
        trials.append(draw(later if is_decided else first))
    return a_ledger(*trials, search_end=MEASURED if is_decided else None)


@given(ledgers(), st.integers(1, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_plan_is_deterministic_whatever_the_order_of_trials(
    ledger: Ledger, parallel: int, trials: int, chance: random.Random
) -> None:
    study = a_study(parallel_trials=parallel, num_trials=trials, promotion=Promotion(num_promoted=2, num_audited=2))
    shuffled = list(ledger.trials)
    chance.shuffle(shuffled)
    actions = plan(study, ledger, {}, NOW)
    assert plan(study, ledger, {}, NOW) == actions
    assert plan(study, replace(ledger, trials=tuple(shuffled)), {}, NOW) == actions


@given(ledgers(), st.integers(1, 5), st.integers(1, 12))
def test_never_more_than_parallel_trials_run_and_no_job_is_launched_twice(
    ledger: Ledger, parallel: int, trials: int
) -> None:
    study = a_study(parallel_trials=parallel, num_trials=trials, max_failed_trials=20)
    jobs = by_name([a_job(f"s1-{t.name}-r{t.rung}") for t in ledger.trials if t.state is TrialState.RUNNING])
    actions = plan(study, ledger, jobs, NOW)
    launches = [f"s1-t{a.index:03d}-r{a.rung}" for a in actions if isinstance(a, Launch)]
    assert len(jobs) + len(launches) <= max(parallel, len(jobs))
    assert len({*launches, *jobs}) == len(launches) + len(jobs)


@given(ledgers(), st.integers(1, 12))
def test_an_unfinished_study_always_has_an_action_or_a_running_job(ledger: Ledger, trials: int) -> None:
    study = a_study(num_trials=trials, max_failed_trials=20)
    jobs = by_name([a_job(f"s1-{t.name}-r{t.rung}") for t in ledger.trials if t.state is TrialState.RUNNING])
    assert jobs or plan(study, ledger, jobs, NOW)


# More than one early rung.


def half_way(index: int, value: float, how: Continuation = Continuation.PROMOTED, **changes: Any) -> Trial:
    """Return a trial that was measured at 20 % and at 50 %."""
    trial = continued(paused(index, index / 10), None, how)
    measurement = a_measurement(1, value, step=50)
    return replace(trial, state=TrialState.PAUSED, measurements=(*trial.measurements, measurement), **changes)


THREE_RUNGS = {"early_evaluation": EarlyEvaluation(rungs=(20, 50))}
HALF_PROMOTED = Promotion(num_promoted=1, num_audited=1, promoted_percents=(50,))
SECOND = [half_way(0, 0.1, Continuation.BASELINE), half_way(1, 0.4), half_way(2, 0.6)]


@pytest.mark.parametrize(
    ("trials", "actions"),
    [
        pytest.param(
            [paused(0, 0.3), paused(1, 0.2), paused(2, 0.4), paused(3, 0.1)],
            ["promote t0 Baseline", "promote t2 Promoted", "promote t1 Promoted", "promote t3 Audited"],
            id="the share of the first rung, no fewer than are promoted and audited later",
        ),
        pytest.param([SECOND[0], SECOND[1], running(continued(paused(2, 0.2), None))], [], id="all are waited for"),
        pytest.param(
            [*SECOND, stopped(3, 0.5)],
            ["promote t0 Baseline", "promote t2 Promoted", "promote t1 Audited"],
            id="the best of the second rung by its own measurements",
        ),
        pytest.param(
            [*SECOND[:2], replace(SECOND[2], state=TrialState.FAILED), stopped(3, 0.5)],
            ["promote t3 Promoted"],
            id="the next best of the first rung replaces one that failed on the second",
        ),
    ],
)
def test_each_early_rung_has_its_own_barrier_and_promotion(trials: list[Trial], actions: list[str]) -> None:
    jobs = [a_job(f"s1-{t.name}-r{t.rung}") for t in trials if t.state is TrialState.RUNNING]
    assert planned(decided(*trials), *jobs, promotion=HALF_PROMOTED, **THREE_RUNGS) == actions


def test_a_promoted_trial_goes_on_from_rung_to_rung_and_keeps_where_it_was_drawn() -> None:
    study, trial = a_study(promotion=HALF_PROMOTED, **THREE_RUNGS), half_way(0, 0.4)
    promotion = Promote(index=0, continuation=Continuation.AUDITED, inclusion_probability=0.5, reason="drawn")
    (after,) = _decide(study, a_ledger(trial), promotion).trials
    assert (after.state, after.rung, after.audited_at, after.stratum) == (TrialState.PENDING, 2, 1, 1)
    (first,) = _decide(study, a_ledger(paused(0, 0.1)), promotion).trials
    assert (first.rung, first.audited_at, first.stratum) == (1, None, 0)
    measured = replace(first, state=TrialState.PAUSED)
    (again,) = _decide(study, a_ledger(measured), promotion).trials
    assert (again.rung, again.audited_at, again.stratum) == (2, None, 0)


def test_a_trial_that_is_stopped_was_not_sure_to_reach_its_full_length() -> None:
    (stopped_now,) = _decide(a_study(), a_ledger(half_way(0, 0.4)), Stop(index=0, reason="others were better")).trials
    assert (stopped_now.state, stopped_now.inclusion_probability) == (TrialState.STOPPED, None)


def test_typical_arms_come_before_the_first_proposal_and_never_after_it() -> None:
    typical = tuple(TypicalArm(arm={"learning_rate": rate}, source="a paper") for rate in (2e-3, 3e-3))
    ways = {"typical_arms": typical, "parallel_trials": 4}
    assert planned(a_ledger(), **ways) == ["attach Baseline", "attach TypicalArm", "attach TypicalArm", "suggest 1"]
    # A study that was begun before there were any goes on as it was.
    begun = a_ledger(paused(0, 0.3), paused(1, 0.2))
    assert planned(begun, **ways) == ["suggest 2"]
