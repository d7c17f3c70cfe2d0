"""Winner and baseline under further seeds as a stage of a study: when they begin, what they are told and change."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders.desk import a_desk, run
from builders.ledgers import NOW, a_job, a_ledger, a_measurement, a_study, a_trial, by_name, continued, paused, stopped
from study_operator.ledger.conditions import name_stage
from study_operator.ledger.confirmation_runs import list_confirmed_pairs
from study_operator.ledger.events import events_between
from study_operator.ledger.gain import find_gain, find_test_gain
from study_operator.ledger.status import parse_status, render_status, shorten_status
from study_operator.ledger.trial import (
    ConfirmationsEnd,
    Continuation,
    Ledger,
    Origin,
    SearchEnd,
    StageState,
    Trial,
    TrialState,
)
from study_operator.ledger.usage import measure_usage
from study_operator.reconcile.actions import (
    Action,
    AddConfirmation,
    AddCurveRun,
    EndConfirmations,
    EvaluateWinner,
    Finish,
)
from study_operator.reconcile.job_specs import build_job_of
from study_operator.reconcile.planner import plan
from study_operator.reconcile.runner import JobKind
from study_operator.spec.study import Budget, DataCurve, Promotion, Study
from trial_trainer.contract import (
    FinalEvaluation,
    FinalEvaluationConfig,
    Interval,
    SeedInterval,
    TrialConfig,
    from_json,
)

TRIALS = (
    continued(paused(0, 0.3), 0.4, Continuation.BASELINE),
    stopped(1, 0.1),
    continued(paused(2, 0.5), 0.6),
    stopped(3, 0.2),
)
WINNER, BASELINE = 2, 0


def a_confirmed_study(seeds: int = 2, **changes: Any) -> Study:
    return a_study(**{"promotion": Promotion(num_promoted=1, confirm_seeds=seeds), "seed": 7, **changes})


def decided(*confirmations: Trial, **changes: Any) -> Ledger:
    """Return a ledger with a winner, t002."""
    changes = {"winner": WINNER, "search_end": SearchEnd.ALL_TRIALS_MEASURED, **changes}
    return a_ledger(*TRIALS, **{"confirmations": confirmations, **changes})


def a_run(index: int, of: int, seed: int, **changes: Any) -> Trial:
    """Return a confirmation that waits for its job."""
    run = a_trial(index, arm=TRIALS[of].arm, origin=Origin.CONFIRMATION, rung=1, seed=seed, repeats=of)
    return replace(run, **changes)


def measured(index: int, of: int, seed: int, value: float = 0.5, **changes: Any) -> Trial:
    return a_run(index, of, seed, state=TrialState.COMPLETED, measurements=(a_measurement(1, value, **changes),))


PAIRS = (measured(4, WINNER, 8), measured(5, BASELINE, 8), measured(6, WINNER, 9), measured(7, BASELINE, 9))


def added(actions: list[Action]) -> list[tuple[int, int]]:
    return [(a.run.of, a.run.seed) for a in actions if isinstance(a, AddConfirmation)]


def test_they_begin_once_the_winner_is_written_in_pairs_of_one_seed() -> None:
    study = a_confirmed_study()
    assert added(plan(study, decided(), {}, NOW)) == [(WINNER, 8), (BASELINE, 8)]
    assert name_stage(study, decided()) == "ConfirmingSeeds"
    still = decided(PAIRS[0], a_run(5, BASELINE, 8))
    assert added(plan(study, still, by_name([a_job("s1-t005-r1")]), NOW)) == [(WINNER, 9)]


def test_a_study_that_asks_for_none_reads_the_test_set_at_once() -> None:
    assert [type(a) for a in plan(a_study(), decided(), {}, NOW)] == [EvaluateWinner]
    assert name_stage(a_study(), decided()) == "Evaluating"


def test_the_test_set_is_read_only_after_all_have_ended_with_every_pair() -> None:
    study = a_confirmed_study()
    (end,) = plan(study, decided(*PAIRS), {}, NOW)
    assert isinstance(end, EndConfirmations)
    assert (end.end, end.reason) == (
        ConfirmationsEnd.ALL_RUNS_ENDED,
        "winner and baseline were trained under 2 of 2 further seeds",
    )
    over = decided(*PAIRS, confirmations_end=end.end, confirmations_message=end.reason)
    assert [type(a) for a in plan(study, over, {}, NOW)] == [EvaluateWinner]
    config = from_json(FinalEvaluationConfig, build_job_of(study, over, JobKind.FINAL_EVALUATION).config)
    assert [(c.seed, c.winner.trial, c.baseline.trial) for c in config.confirmations] == [
        (8, "t004", "t005"),
        (9, "t006", "t007"),
    ]
    assert config.confirmations[0].winner.adapter.endswith("/trials/t004/rungs/1/adapter")
    # Without them the job is the one that it was.
    alone = from_json(FinalEvaluationConfig, build_job_of(study, decided(), JobKind.FINAL_EVALUATION).config)
    assert alone.confirmations == () and alone.digest != config.digest
    assert alone.digest == build_job_of(a_study(seed=7), decided(), JobKind.FINAL_EVALUATION).digest


def test_a_run_is_the_trial_under_another_seed_from_its_first_step_to_its_end() -> None:
    study = a_confirmed_study(early_evaluation=replace(a_study().early_evaluation, extra_percents=(50,)))
    desk = a_desk(decided(), study=study)
    run(desk, study)
    assert desk.launched == []
    run(desk, study)
    configs = [from_json(TrialConfig, spec.config) for spec in desk.launched]
    assert [spec.name for spec in desk.launched] == ["s1-t004-r1", "s1-t005-r1"]
    assert [(c.seed, c.arm["learning_rate"]) for c in configs] == [(8, 2e-4), (8, 1e-3)]
    assert {(c.stop_step, c.resume_from, c.evaluate_at_steps, c.train_samples) for c in configs} == {
        (100, None, (), None)
    }
    status = render_status(study, desk.ledger, now=NOW)
    assert [(r["index"], r["repeats"], r["seed"]) for r in status["confirmations"]] == [(4, 2, 8), (5, 0, 8)]
    assert parse_status(status).ledger == desk.ledger
    short = shorten_status(status, parse_status(status), "too large")
    assert parse_status(short).ledger.confirmations == desk.ledger.confirmations


def test_they_never_change_which_trial_wins() -> None:
    study = a_confirmed_study()
    better = replace(PAIRS[1], measurements=(a_measurement(1, 0.99),))
    status = render_status(study, decided(PAIRS[0], better, *PAIRS[2:]), now=NOW)
    assert (status["winner"], status["best"]["trial"], status["trialCounts"]["total"]) == (WINNER, "t002", 4)


def test_the_data_curve_comes_after_them_and_counts_on() -> None:
    study = a_confirmed_study(data_curve=DataCurve(sample_sizes=(32,), seeds=1))
    over = decided(*PAIRS, confirmations_end=ConfirmationsEnd.ALL_RUNS_ENDED)
    assert [type(a) for a in plan(study, over, {}, NOW)] == [AddCurveRun]
    desk = a_desk(over, study=study)
    run(desk, study)
    assert [t.name for t in desk.ledger.runs] == [f"t{i:03d}" for i in range(9)]
    assert parse_status(render_status(study, desk.ledger, now=NOW)).ledger == desk.ledger


@pytest.mark.parametrize(
    ("baseline", "winner", "end"),
    [
        pytest.param(replace(TRIALS[0], state=TrialState.FAILED), 2, ConfirmationsEnd.NO_MODEL, id="no baseline left"),
        pytest.param(TRIALS[0], 0, ConfirmationsEnd.WINNER_IS_BASELINE, id="the baseline won"),
    ],
)
def test_where_there_is_nothing_to_compare_nothing_is_trained(
    baseline: Trial, winner: int, end: ConfirmationsEnd
) -> None:
    ledger = replace(decided(winner=winner), trials=(baseline, *TRIALS[1:]))
    (action,) = plan(a_confirmed_study(), ledger, {}, NOW)
    assert isinstance(action, EndConfirmations) and action.end is end
    after = replace(ledger, confirmations_end=end, confirmations_message=action.reason)
    (event,) = events_between(a_confirmed_study(), ledger, after)
    assert (event.reason, event.is_warning) == ("ConfirmationsEnded", True)


def test_a_pair_that_lacks_a_model_is_left_out_and_the_end_says_why() -> None:
    diverged = measured(4, WINNER, 8, diverged=True)
    failed = a_run(7, BASELINE, 9, state=TrialState.FAILED, message="it crashed")
    ledger = decided(diverged, PAIRS[1], PAIRS[2], failed)
    assert list_confirmed_pairs(ledger) == []
    (action,) = plan(a_confirmed_study(), ledger, {}, NOW)
    assert isinstance(action, EndConfirmations)
    assert action.reason == (
        "winner and baseline were trained under 0 of 2 further seeds; 1 of the winner's diverged, so that the gain is "
        "that of seeds under which neither does; 1 left no measurement, the first being t007: it crashed"
    )


@pytest.mark.parametrize(
    ("room", "begun"),
    [
        pytest.param(1, [], id="room for one of a pair"),
        pytest.param(2, [(WINNER, 8), (BASELINE, 8)], id="room for one pair"),
        pytest.param(3, [(WINNER, 8), (BASELINE, 8)], id="room for one and a half"),
    ],
)
def test_a_pair_begins_only_where_the_budget_has_room_for_both(room: int, begun: list[tuple[int, int]]) -> None:
    usage = measure_usage(a_study(), decided(), NOW)
    # 300 s, and 300 s of training for 20 of 100 steps.
    hours = usage.accelerator_hours + (room * 1_800 + 60) / 3600
    study = a_confirmed_study(budget=Budget(accelerator_hours=hours), parallel_trials=4)
    actions = plan(study, decided(), {}, NOW)
    assert added(actions) == begun
    if not begun:
        (end,) = actions
        assert isinstance(end, EndConfirmations) and end.end is ConfirmationsEnd.BUDGET_EXHAUSTED
        assert end.reason.endswith("the budget had no room for 4 of 4 runs")
        over = decided(confirmations_end=end.end, confirmations_message=end.reason, final_evaluation=a_done_stage())
        (finish,) = plan(study, over, {}, NOW)
        assert isinstance(finish, Finish) and finish.outcome.reason == "BudgetExhausted"


def a_done_stage() -> Any:
    return replace(a_ledger().final_evaluation, state=StageState.COMPLETED)


def test_a_pair_that_has_begun_is_ended_whatever_the_budget_has_left() -> None:
    study = a_confirmed_study(budget=Budget(accelerator_hours=0.01))
    assert added(plan(study, decided(PAIRS[0]), {}, NOW)) == [(BASELINE, 8)]


def a_final_evaluation(seeds: int) -> FinalEvaluation:
    name, by_seed = "hand_labelled/winner-baseline", {str(8 + k): 0.02 for k in range(seeds)}
    gain = Interval(difference=0.05, low=0.01, high=0.09, n=90, sites=20)
    is_enough = seeds >= 3
    of_seeds = SeedInterval(
        difference=0.02, low=-0.01 if is_enough else None, high=0.05 if is_enough else None, n=90, sites=20,
        by_seed=by_seed,
    )  # fmt: skip
    return FinalEvaluation(
        study="s1", winner="t002", predictors={}, gains={name: gain}, seconds={}, seed_gains={name: of_seeds}
    )


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        pytest.param(2, "+5.0 (+1.0 to +9.0) on test, one seed", id="too few for an interval"),
        pytest.param(3, "+2.0 (-1.0 to +5.0) on test, 3 seeds", id="enough"),
    ],
)
def test_the_gain_is_that_of_the_further_seeds_where_they_tell_their_noise(seeds: int, text: str) -> None:
    ledger = replace(decided(), test_gain=find_test_gain(a_final_evaluation(seeds)))
    status = render_status(a_confirmed_study(), ledger, now=NOW)
    assert status["summary"]["gain"] == text
    assert status["best"]["gainSeeds"] == (3 if seeds == 3 else 1)
    assert parse_status(status).ledger.test_gain == ledger.test_gain


def test_until_the_test_set_is_read_the_gain_is_of_one_seed_and_the_best_of_many() -> None:
    gain = find_gain(a_confirmed_study(), decided(*PAIRS))
    assert gain is not None and gain.seeds is None and gain.best_of == 3


def test_a_run_that_is_interrupted_goes_on_like_a_trial() -> None:
    study = a_confirmed_study()
    desk = a_desk(decided(a_run(4, WINNER, 8), a_run(5, BASELINE, 8)), study=study)
    run(desk, study)
    desk.statuses = [
        a_job("s1-t004-r1"), replace(a_job("s1-t005-r1"), attempt="a2")
    ]  # fmt: skip
    run(desk, study, now=NOW + timedelta(minutes=1))
    assert [t.state for t in desk.ledger.confirmations] == [TrialState.RUNNING] * 2
