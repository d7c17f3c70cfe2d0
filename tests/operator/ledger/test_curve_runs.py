"""Which runs a data curve is made of, and what is said of the sizes that are left out."""

from dataclasses import replace

import pytest

from builders.ledgers import a_ledger, a_measurement, a_study, a_trial, continued, paused
from study_operator.ledger.curve_runs import (
    describe_end,
    describe_too_large,
    describe_too_small,
    find_curve_trial,
    list_curve_runs,
)
from study_operator.ledger.trial import Continuation, CurveEnd, Ledger, Origin, Trial, TrialState
from study_operator.spec.study import CurveArm, DataCurve, Study

BASELINE = continued(paused(0, 0.3), 0.4, Continuation.BASELINE)
WINNER = replace(continued(paused(1, 0.5), 0.6), arm={"learning_rate": 1e-3, "batch_size": 32})


def of_curve(*sizes: int, **changes: object) -> Study:
    return a_study(seed=7, data_curve=replace(DataCurve(sample_sizes=sizes, seeds=2), **changes))


def decided(*curve: Trial) -> Ledger:
    """Return a ledger of 320 training samples whose winner is the second trial."""
    return a_ledger(BASELINE, WINNER, winner=1, curve=curve)


def test_the_smallest_run_first_with_the_studys_seed_and_those_after_it() -> None:
    runs = list_curve_runs(of_curve(64, 200), decided())
    assert [(r.train_samples, r.seed) for r in runs] == [(64, 7), (64, 8), (200, 7), (200, 8)]
    # 3 epochs of ⌊64 / 32⌋ and ⌊200 / 32⌋ batches.
    assert [r.total_steps for r in runs] == [6, 6, 18, 18]


def test_where_augmentation_is_compared_each_seed_runs_without_variants_and_then_with_them() -> None:
    runs = list_curve_runs(of_curve(64, 200, compare_augmentation=True), decided())
    assert [(r.train_samples, r.seed, r.without_variants) for r in runs] == [
        (size, seed, without) for size in (64, 200) for seed in (7, 8) for without in (True, False)
    ]
    assert not any(r.without_variants for r in list_curve_runs(of_curve(64), decided()))


def test_there_are_none_before_the_winner_is_written() -> None:
    assert list_curve_runs(of_curve(64), a_ledger(BASELINE, WINNER)) == []


def test_sizes_that_the_data_does_not_have_or_that_hold_no_batch_are_left_out_in_a_sentence() -> None:
    study = of_curve(16, 24, 32, 320, 321, 5000)
    assert [r.train_samples for r in list_curve_runs(study, decided())] == [32, 32, 320, 320]
    assert describe_too_large(study, decided()) == (
        "spec.dataCurve.sampleSizes must be at most 320, the number of training samples: 321, 5000 are left out"
    )
    assert describe_too_small(study, decided()) == (
        "spec.dataCurve.sampleSizes must be at least 32, the batch size of trial t001: 16, 24 are left out"
    )
    assert describe_too_large(of_curve(320), decided()) == describe_too_small(of_curve(32), decided()) == ""


@pytest.mark.parametrize(
    ("baseline", "trial"),
    [
        pytest.param(BASELINE, 0, id="with a model"),
        pytest.param(
            replace(BASELINE, state=TrialState.FAILED, measurements=BASELINE.measurements[:1]), None, id="failed"
        ),
        pytest.param(
            replace(BASELINE, measurements=(*BASELINE.measurements[:1], a_measurement(1, 0.0, diverged=True))),
            None,
            id="diverged",
        ),
    ],
)
def test_the_baselines_arm_is_run_only_where_it_has_a_model(baseline: Trial, trial: int | None) -> None:
    found = find_curve_trial(of_curve(64, arm=CurveArm.BASELINE), a_ledger(baseline, WINNER, winner=1))
    assert (found and found.index) == trial


def a_run(index: int, **changes: object) -> Trial:
    run = a_trial(index, origin=Origin.DATA_CURVE, rung=1, train_samples=64, seed=7, total_steps=6)
    return replace(run, **changes)


def test_the_end_says_what_the_curve_has_and_what_it_lacks() -> None:
    curve = (
        a_run(2, state=TrialState.COMPLETED, measurements=(a_measurement(1, 0.5),)),
        a_run(3, state=TrialState.COMPLETED, measurements=(a_measurement(1, 0.0, diverged=True),)),
        a_run(4, state=TrialState.FAILED, message="the environment ended 4 attempts"),
    )
    assert describe_end(of_curve(64, 200, 400), decided(*curve), CurveEnd.BUDGET_EXHAUSTED) == (
        "1 of 4 runs of the data curve were measured; 1 diverged; 1 left no measurement, the first being t004: the "
        "environment ended 4 attempts; the budget had no room for 1; spec.dataCurve.sampleSizes must be at most 320, "
        "the number of training samples: 400 is left out"
    )
    assert describe_end(of_curve(64), decided(), CurveEnd.NO_MODEL) == (
        "there is no data curve: the baseline left no model at full length"
    )
