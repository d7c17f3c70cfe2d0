"""The data curve as a stage of a study: when its runs begin, what they are told, and that none fails the study."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders.desk import Desk, a_desk, run
from builders.ledgers import (
    NOW,
    a_job,
    a_ledger,
    a_measurement,
    a_rung_measurement,
    a_study,
    a_trial,
    by_name,
    continued,
    ended,
    paused,
    stopped,
)
from study_operator.ledger.conditions import name_stage
from study_operator.ledger.events import events_between
from study_operator.ledger.status import parse_status, render_status, shorten_status
from study_operator.ledger.trial import Attempt, Continuation, CurveEnd, Ledger, Origin, SearchEnd, Trial, TrialState
from study_operator.ledger.usage import count_affordable, measure_usage
from study_operator.reasons import EndReason
from study_operator.reconcile.actions import AddCurveRun, EndCurve, EvaluateWinner, Finish, Launch
from study_operator.reconcile.planner import plan
from study_operator.reconcile.settle import Results, settle
from study_operator.reconcile.tick import report_key
from study_operator.settings import DEFAULTS
from study_operator.spec.study import Budget, CurveArm, DataCurve, Study
from trial_trainer.contract import TrialConfig, from_json

CURVE = DataCurve(sample_sizes=(32, 160), seeds=2)
TRIALS = (
    continued(paused(0, 0.3), 0.4, Continuation.BASELINE),
    stopped(1, 0.1),
    continued(paused(2, 0.5), 0.6),
    stopped(3, 0.2),
)


def a_curve_study(**changes: Any) -> Study:
    return a_study(**{"data_curve": CURVE, **changes})


def decided(*curve: Trial, **changes: Any) -> Ledger:
    """Return a ledger with a winner, t002."""
    changes = {"winner": 2, "search_end": SearchEnd.ALL_TRIALS_MEASURED, "curve": curve, **changes}
    return a_ledger(*TRIALS, **changes)


def a_run(index: int, samples: int = 32, seed: int = 0, **changes: Any) -> Trial:
    run = a_trial(index, arm=TRIALS[2].arm, origin=Origin.DATA_CURVE, rung=1, train_samples=samples, seed=seed)
    return replace(run, **{"total_steps": 3 * (samples // 16), **changes})


def measured(index: int, samples: int = 32, seed: int = 0) -> Trial:
    return a_run(index, samples, seed, state=TrialState.COMPLETED, measurements=(a_measurement(1, 0.5),))


EVERY_RUN = (measured(4), measured(5, seed=1), measured(6, 160), measured(7, 160, 1))


def test_it_begins_once_the_winner_is_written_with_as_many_runs_as_there_are_slots() -> None:
    actions = plan(a_curve_study(), decided(), {}, NOW)
    assert [(a.of, a.run.train_samples, a.run.seed) for a in actions if isinstance(a, AddCurveRun)] == [
        (2, 32, 0),
        (2, 32, 1),
    ]
    assert len(actions) == 2
    assert name_stage(a_curve_study(), decided()) == "MeasuringDataCurve"


def test_a_free_slot_is_filled_with_the_next_larger_run() -> None:
    actions = plan(a_curve_study(), decided(measured(4), a_run(5, seed=1)), by_name([a_job("s1-t005-r1")]), NOW)
    assert [(a.run.train_samples, a.run.seed) for a in actions if isinstance(a, AddCurveRun)] == [(160, 0)]


def test_the_test_set_is_read_only_after_every_run_has_ended() -> None:
    still = decided(*EVERY_RUN[:3], a_run(7, 160, 1))
    assert [type(a) for a in plan(a_curve_study(), still, {}, NOW)] == [Launch]
    assert [type(a) for a in plan(a_curve_study(), decided(*EVERY_RUN), {}, NOW)] == [EndCurve]
    over = decided(*EVERY_RUN, curve_end=CurveEnd.ALL_RUNS_ENDED)
    assert [type(a) for a in plan(a_curve_study(), over, {}, NOW)] == [EvaluateWinner]
    assert name_stage(a_curve_study(), over) == "Evaluating"


def test_the_end_of_the_curve_is_reported_before_the_test_set_is_read() -> None:
    study, reported = a_curve_study(), []
    desk = a_desk(decided(*EVERY_RUN), study=study)
    for minutes in (0, 10):
        run(
            desk,
            study,
            reporter=lambda _, ledger, __: reported.append(ledger.curve_end),
            now=NOW + timedelta(minutes=minutes),
        )
    assert reported == [None, CurveEnd.ALL_RUNS_ENDED]
    # Of a study without a data curve the key is what it was.
    assert report_key(decided(curve_end=CurveEnd.NO_MODEL)) == f"{report_key(decided())}/NoModel"


def test_without_a_data_curve_the_test_set_is_read_at_once() -> None:
    assert [type(a) for a in plan(a_study(), decided(), {}, NOW)] == [EvaluateWinner]


def test_without_a_model_of_the_baseline_there_is_no_curve_of_it() -> None:
    study = a_curve_study(data_curve=replace(CURVE, arm=CurveArm.BASELINE))
    ledger = replace(decided(), trials=(replace(TRIALS[0], state=TrialState.FAILED), *TRIALS[1:]))
    (action,) = plan(study, ledger, {}, NOW)
    assert isinstance(action, EndCurve)
    assert action.end is CurveEnd.NO_MODEL


def test_a_run_is_launched_only_once_it_is_written_and_goes_straight_to_its_end() -> None:
    study = a_curve_study(
        data_curve=replace(CURVE, balanced=True),
        seed=3,
        early_evaluation=replace(a_study().early_evaluation, extra_percents=(50,)),
    )
    desk = a_desk(decided(), study=study)
    run(desk, study)
    assert desk.launched == []
    assert [(t.name, t.state, t.rung, t.total_steps) for t in desk.ledger.curve] == [
        ("t004", TrialState.PENDING, 1, 6),
        ("t005", TrialState.PENDING, 1, 6),
    ]
    assert "withoutVariants" not in render_status(study, desk.ledger, now=NOW)["dataCurve"][0]
    run(desk, study)
    configs = [from_json(TrialConfig, spec.config) for spec in desk.launched]
    assert [spec.name for spec in desk.launched] == ["s1-t004-r1", "s1-t005-r1"]
    assert [(c.train_samples, c.seed, c.balanced) for c in configs] == [(32, 3, True), (32, 4, True)]
    assert {(c.stop_step, c.total_steps, c.resume_from, c.evaluate_at_steps) for c in configs} == {(6, 6, None, ())}
    assert configs[0].output.endswith("/trials/t004/rungs/1")
    assert len({c.digest for c in configs}) == 2


def test_where_augmentation_is_compared_one_run_of_each_pair_reads_no_variants() -> None:
    study = a_curve_study(data_curve=replace(CURVE, seeds=1, compare_augmentation=True))
    desk = a_desk(decided(), study=study)
    run(desk, study)
    run(desk, study)
    configs = [from_json(TrialConfig, spec.config) for spec in desk.launched]
    assert [(c.train_samples, c.seed, c.is_augmented) for c in configs] == [(32, 0, False), (32, 0, True)]
    # The one with variants is the run of a study that compares nothing.
    alone = a_desk(decided(), study=a_curve_study())
    run(alone, a_curve_study())
    run(alone, a_curve_study())
    assert alone.launched[0].digest == configs[1].digest != configs[0].digest
    assert parse_status(render_status(study, desk.ledger, now=NOW)).ledger == desk.ledger


def test_trials_are_told_nothing_of_the_curve() -> None:
    study = a_curve_study(data_curve=replace(CURVE, balanced=True))
    desks = [a_desk(a_ledger(a_trial(0)), study=s) for s in (study, a_study())]
    for desk, of in zip(desks, (study, a_study()), strict=True):
        run(desk, of)
    assert desks[0].launched[0].digest == desks[1].launched[0].digest
    config = from_json(TrialConfig, desks[0].launched[0].config)
    assert (config.train_samples, config.balanced) == (None, False)


def settled(desk: Desk, code: int, study: Study | None = None) -> Trial:
    """Return the fifth run after its job ended with a code."""
    run(desk, study or a_curve_study())
    desk.statuses = [ended(code, "s1-t004-r1")]
    run(desk, study or a_curve_study(), now=NOW + timedelta(minutes=2))
    return desk.ledger.runs[4]


@pytest.mark.parametrize(
    ("code", "state"),
    [
        pytest.param(10, TrialState.COMPLETED, id="it diverges"),
        pytest.param(11, TrialState.ABANDONED, id="it cannot run"),
        pytest.param(12, TrialState.FAILED, id="it says that the data cannot be used"),
    ],
)
def test_a_run_that_fails_leaves_its_point_out_and_never_fails_the_study(code: int, state: TrialState) -> None:
    study = a_curve_study(max_failed_trials=0, data_curve=replace(CURVE, sample_sizes=(32,), seeds=1))
    desk = a_desk(decided(a_run(4)), a_job("s1-t004-r1"), study=study)
    assert settled(desk, code, study).state is state
    result = run(desk, study, now=NOW + timedelta(minutes=3))
    result = run(desk, study, now=NOW + timedelta(minutes=4))
    assert desk.ledger.curve_end is CurveEnd.ALL_RUNS_ENDED
    assert desk.ledger.curve_message.startswith("0 of 1 runs of the data curve were measured; 1 ")
    assert not any(isinstance(a, Finish) for a in result.actions)
    assert desk.launched[-1].name == "s1-final-evaluation"


def test_a_kill_for_memory_is_not_blamed_on_an_arm_that_has_run() -> None:
    killed = ended(137, "s1-t004-r1", reason="OOMKilled")
    ledger = settle(a_curve_study(), decided(a_run(4)), by_name([killed]), Results(), NOW + timedelta(minutes=2))
    assert ledger.curve[0].state is TrialState.PENDING
    assert "not the arm's fault" in ledger.curve[0].message


def test_a_measured_run_is_no_candidate_and_changes_no_choice() -> None:
    best = replace(measured(4), measurements=(a_measurement(1, 0.99),))
    status = render_status(a_curve_study(), decided(best), now=NOW)
    assert status["best"]["trial"] == "t002"
    assert status["trialCounts"]["total"] == 4
    assert [t["index"] for t in status["trials"]] == [0, 1, 2, 3]


def test_a_diverged_run_moves_no_trials_worst_value() -> None:
    study = a_curve_study(objective=replace(a_study().objective, metric="validation_loss"))
    worst = replace(TRIALS[3], measurements=(a_measurement(0, 9.0, diverged=True),))
    ledger = replace(decided(replace(measured(4), measurements=(a_measurement(1, 50.0),))), trials=(*TRIALS[:3], worst))
    after = settle(study, ledger, {}, Results(), NOW)
    assert after.trials[3].measurements[0].value < 50


def test_a_measurement_of_a_run_is_settled_without_a_word_on_its_first_step() -> None:
    result = replace(a_rung_measurement(a_run(4), 1), step=6, trained_steps=6)
    job = by_name([ended(0, "s1-t004-r1")])
    ledger = settle(a_curve_study(), decided(a_run(4)), job, Results(measurements={(4, 1): result}), NOW)
    assert (ledger.curve[0].state, ledger.curve[0].message) == (TrialState.COMPLETED, "")
    assert ledger.curve[0].measurements[0].value == 0.4
    assert ledger.trials == decided().trials


def test_a_suspended_study_stops_its_runs_and_goes_on_with_them() -> None:
    study = a_curve_study(suspend=True)
    desk = a_desk(decided(a_run(4)), a_job("s1-t004-r1"), study=study)
    run(desk, study)
    run(desk, study)
    assert "delete s1-t004-r1" in desk.log
    desk.statuses = []
    run(desk, study)
    run(desk, a_curve_study())
    run(desk, a_curve_study())
    assert [spec.name for spec in desk.launched][:1] == ["s1-t004-r1"]


def an_attempt(minutes: float) -> Attempt:
    return Attempt(
        rung=1, started_at=NOW, finished_at=NOW + timedelta(minutes=minutes), reason=EndReason.SUCCEEDED, id="c"
    )


def test_what_runs_cost_is_spent_and_nothing_of_them_is_saved() -> None:
    before = measure_usage(a_curve_study(), decided(), None)
    after = measure_usage(a_curve_study(), decided(replace(measured(4), attempts=(an_attempt(30),))), None)
    assert after.accelerator_hours - before.accelerator_hours == pytest.approx(0.5)
    assert after.saved_accelerator_hours == before.saved_accelerator_hours


@pytest.mark.parametrize(
    ("left_seconds", "room"),
    [
        # The first rung took 300 s of training for 20 steps, and 300 s besides: 6 steps take 390 s, 30 take 750 s.
        pytest.param(None, 4, id="no limit"),
        pytest.param(10_000, 4, id="room for all"),
        pytest.param(1_600, 3, id="room for all but the last"),
        pytest.param(400, 1, id="room for one"),
        pytest.param(390, 0, id="room for none"),
    ],
)
@pytest.mark.parametrize("is_deadline", [False, True])
def test_the_runs_use_what_the_budget_has_left(left_seconds: int | None, room: int, is_deadline: bool) -> None:
    usage = measure_usage(a_study(), decided(), NOW)
    budget = Budget()
    if left_seconds is not None and is_deadline:
        # They may all run at once.
        budget = Budget(active_deadline_seconds=round(usage.active_seconds) + left_seconds)
        room = {400: 2, 390: 0}.get(left_seconds, 4)
    elif left_seconds is not None:
        budget = Budget(accelerator_hours=usage.accelerator_hours + left_seconds / 3600)
    study, wanted = a_curve_study(budget=budget), [(TRIALS[2], steps) for steps in (6, 6, 30, 30)]
    assert count_affordable(study, decided(), lambda _: TRIALS[2], wanted, NOW) == room


@pytest.mark.parametrize(
    ("left_seconds", "slots", "is_deadline", "begun"),
    [
        # As above, 6 steps take 390 s.
        pytest.param(780, 1, False, [], id="room for one"),
        pytest.param(800, 1, False, [True], id="room for both in turn"),
        pytest.param(800, 2, False, [True, False], id="room for both at once"),
        pytest.param(1_200, 3, False, [True, False], id="room for both and half of the next"),
        pytest.param(780, 1, True, [], id="time for one"),
        pytest.param(800, 1, True, [True], id="time for both in turn"),
        pytest.param(400, 2, True, [True, False], id="time for both at once"),
    ],
)
def test_a_run_without_variants_begins_only_where_its_pair_has_room_too(
    left_seconds: int, slots: int, is_deadline: bool, begun: list[bool]
) -> None:
    usage = measure_usage(a_study(), decided(), NOW)
    budget = Budget(accelerator_hours=usage.accelerator_hours + left_seconds / 3600)
    if is_deadline:
        budget = Budget(active_deadline_seconds=round(usage.active_seconds) + left_seconds)
    study = a_curve_study(data_curve=replace(CURVE, compare_augmentation=True), budget=budget, parallel_trials=slots)
    actions = plan(study, decided(), {}, NOW)
    assert [a.run.without_variants for a in actions if isinstance(a, AddCurveRun)] == begun
    assert begun or [a.end for a in actions if isinstance(a, EndCurve)] == [CurveEnd.BUDGET_EXHAUSTED]


def test_the_second_of_a_pair_begins_with_room_for_one() -> None:
    usage = measure_usage(a_study(), decided(), NOW)
    budget = Budget(accelerator_hours=usage.accelerator_hours + 400 / 3600)
    study = a_curve_study(data_curve=replace(CURVE, compare_augmentation=True), budget=budget)
    actions = plan(study, decided(replace(measured(4), without_variants=True)), {}, NOW)
    assert [(a.run.seed, a.run.without_variants) for a in actions if isinstance(a, AddCurveRun)] == [(0, False)]


def test_where_the_budget_is_exhausted_the_rest_is_left_out_and_the_end_says_so() -> None:
    study = a_curve_study(budget=Budget(accelerator_hours=0.01))
    (action,) = plan(study, decided(measured(4), measured(5, seed=1)), {}, NOW)
    assert isinstance(action, EndCurve)
    assert action.end is CurveEnd.BUDGET_EXHAUSTED
    assert action.reason == "2 of 4 runs of the data curve were measured; the budget had no room for 2"
    over = replace(
        decided(measured(4), measured(5, seed=1)),
        curve_end=action.end,
        curve_message=action.reason,
        dataset=replace(decided().dataset, test_samples=0),
    )
    (finish,) = plan(study, over, {}, NOW)
    assert isinstance(finish, Finish)
    assert finish.outcome.reason == "BudgetExhausted"
    assert finish.outcome.message.endswith(action.reason)


def test_sizes_that_the_data_lacks_are_said_once_the_dataset_is_known() -> None:
    study = a_curve_study(data_curve=replace(CURVE, sample_sizes=(32, 5000)))
    before = replace(a_ledger(), dataset=None)
    events = [e for e in events_between(study, before, a_ledger()) if e.reason == "DataCurveCut"]
    assert [e.message for e in events] == [
        "spec.dataCurve.sampleSizes must be at most 320, the number of training samples: 5000 is left out"
    ]


def test_the_status_keeps_the_curve_exactly_in_every_form() -> None:
    ledger = decided(*EVERY_RUN, curve_end=CurveEnd.ALL_RUNS_ENDED, curve_message="4 of 4 runs")
    status = render_status(a_curve_study(), ledger, now=NOW)
    assert parse_status(status).ledger == ledger
    short = shorten_status(status, parse_status(status), "too long")
    assert parse_status(short).ledger == ledger
    # As an earlier version wrote it.
    earlier = {k: v for k, v in render_status(a_study(), decided(), now=NOW).items() if not k.startswith("dataCurve")}
    assert parse_status(earlier).ledger == decided()


def test_attempts_of_runs_are_retried_and_counted_as_those_of_trials() -> None:
    crashed = [ended(1, "s1-t004-r1", attempt=f"a{i}") for i in range(DEFAULTS.attempts_limit)]
    ledger = decided(a_run(4))
    for i, job in enumerate(crashed, 1):
        ledger = settle(a_curve_study(), ledger, by_name([job]), Results(), NOW + timedelta(hours=i))
    assert ledger.curve[0].state is TrialState.FAILED
    assert ledger.trials == decided().trials
