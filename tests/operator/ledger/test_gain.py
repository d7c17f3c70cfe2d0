"""What the best arm gained: on the test set as it was read, on validation without what chance added by choosing it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from builders.ledgers import (
    NOW,
    a_ledger,
    a_measurement,
    a_study,
    a_trial,
    continued,
    minimizing,
    of_three_rungs,
    paused,
    stopped,
)
from builders.noisy_studies import a_noisy_study, a_study_of_few_sites
from builders.some_studies import a_final_evaluation, a_gain
from study_operator.ledger.gain import (
    Gain,
    GainSource,
    describe_gain,
    find_best,
    find_gain,
    find_test_gain,
    student_quantile,
)
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import Continuation, GainOnTest, Ledger, Trial, TrialState
from study_operator.spec.study import Objective, OutcomeConstraint, Promotion, RankBy, Study

STUDY = a_study()
BASELINE = paused(0, 0.30)
SURE = {"standard_error": 0.001}
UNKNOWN = {"standard_error": None}


def gain_of(*trials: Trial, study: Study = STUDY) -> Gain:
    gain = find_gain(study, a_ledger(*trials))
    assert gain is not None
    return gain


def test_of_equals_the_best_so_far_is_the_one_that_loses_least() -> None:
    trials = [paused(i, 0.4, metrics={"validation_loss": loss}) for i, loss in ((1, 5.0), (2, 2.0), (3, 3.0))]
    assert gain_of(BASELINE, *trials).trial == "t002"


@pytest.mark.parametrize(
    ("trials", "trial", "uncorrected", "estimate", "best_of"),
    [
        pytest.param([BASELINE, paused(1, 0.40)], "t001", 0.10, 0.10, 1, id="who has no rival needs no correction"),
        pytest.param([BASELINE, paused(1, 0.40), paused(2, 0.36)], "t001", 0.10, 0.09, 2, id="two alike draw together"),
        pytest.param(
            [BASELINE, paused(1, 0.40), paused(2, 0.36), paused(3, 0.05)], "t001", 0.10, 0.09, 3,
            id="one that is clearly worse draws nobody down",
        ),
        pytest.param(
            [paused(0, 0.30, **SURE), paused(1, 0.40, **SURE), paused(2, 0.398, **SURE), paused(3, 0.20, **SURE)],
            "t001", 0.10, 0.0995, 3, id="what is known well is corrected little",
        ),
        pytest.param(
            [BASELINE, paused(1, 0.40), paused(2, 0.36), paused(3, 0.9, diverged=True)], "t001", 0.10, 0.09, 2,
            id="one that diverged was never the best",
        ),
        pytest.param(
            [BASELINE, paused(1, 0.34), paused(2, 0.33), paused(3, 0.32)], "t001", 0.04, 0.3225 - 0.30 - 0.0175 / 3, 3,
            id="the baseline is one that cannot be told from the best",
        ),
        pytest.param([BASELINE, paused(1, 0.40), paused(2, 0.40)], "t001", 0.10, 0.10, 2, id="two equal measurements"),
        pytest.param(
            [paused(0, 0.30, **UNKNOWN), paused(1, 0.40, **UNKNOWN), paused(2, 0.36, **UNKNOWN)], "t001", 0.10, 0.10, 2,
            id="without standard errors nothing is corrected",
        ),
        pytest.param(
            [BASELINE, paused(1, 0.40, **UNKNOWN), paused(2, 0.36), paused(3, 0.0, **UNKNOWN)], "t001", 0.10, 0.09, 3,
            id="sites that answered alike have the error of the others",
        ),
    ],
)  # fmt: skip
def test_the_validation_gain_is_corrected_for_choosing_the_best_arm(
    trials: Sequence[Trial], trial: str, uncorrected: float, estimate: float, best_of: int
) -> None:
    gain = gain_of(*trials)
    assert (gain.trial, gain.source, gain.best_of) == (trial, GainSource.VALIDATION, best_of)
    assert gain.uncorrected == pytest.approx(uncorrected)
    assert gain.estimate == pytest.approx(estimate, abs=1e-4)


@pytest.mark.parametrize(
    ("arms", "critical"),
    [pytest.param(1, 1.95996, id="one arm"), pytest.param(2, 2.24140, id="two"), pytest.param(24, 3.07808, id="24")],
)
def test_the_interval_of_the_gain_is_simultaneous_over_all_arms(arms: int, critical: float) -> None:
    gain = gain_of(BASELINE, *(paused(i, 0.5 - i / 1000) for i in range(1, arms + 1)))
    error = 0.02 * 2**0.5
    assert gain.low == pytest.approx(0.199 - critical * error, abs=1e-6)
    assert gain.high == pytest.approx(0.199 + 1.95996 * error, abs=1e-6)
    assert gain.low <= gain.estimate <= gain.high


@pytest.mark.parametrize(
    ("sites", "quantile"),
    [
        pytest.param(None, 1.959964, id="nobody counted them"),
        pytest.param(1, 12.706205, id="one, which tells nothing of its error"),
        pytest.param(2, 12.706205, id="two"),
        pytest.param(3, 4.302653, id="three"),
        pytest.param(4, 3.182446, id="four"),
        pytest.param(5, 2.776445, id="five"),
        pytest.param(10, 2.262157, id="ten"),
        pytest.param(61, 2.000298, id="sixty-one"),
        pytest.param(1000, 1.959964, id="as good as normal"),
    ],
)
def test_quantiles_are_students_with_one_degree_of_freedom_less_than_sites(sites: int | None, quantile: float) -> None:
    assert student_quantile(0.975, sites) == pytest.approx(quantile, abs=1e-6)
    gain = gain_of(paused(0, 0.30, sites=sites), paused(1, 0.40, sites=sites))
    assert gain.high == pytest.approx(0.10 + quantile * 0.02 * 2**0.5, abs=1e-6)


def test_the_status_shows_no_measurement_of_a_diverged_baseline() -> None:
    status = render_status(STUDY, a_ledger(paused(0, 0.0, diverged=True, **UNKNOWN), paused(1, 0.4)), now=NOW)
    assert status["baseline"] is None


def test_a_slightly_negative_saving_is_shown_as_zero() -> None:
    begun = replace(paused(0, 0.4, fixed_seconds=20.0), continuation=Continuation.BASELINE, rung=1)
    status = render_status(STUDY, a_ledger(begun), now=NOW)
    assert float(status["usage"]["savedAcceleratorHours"]) < 0
    assert status["summary"]["saved"] == "0.0 h"


def test_the_measurement_with_fewer_sites_determines_the_degrees_of_freedom() -> None:
    few, many = gain_of(paused(0, 0.30, sites=5), paused(1, 0.40, sites=50)), gain_of(paused(0, 0.30), paused(1, 0.40))
    assert few.high == pytest.approx(0.10 + 2.776445 * 0.02 * 2**0.5, abs=1e-6)
    assert many.high is not None
    assert few.high is not None
    assert few.high > many.high


def test_without_standard_errors_there_is_no_interval() -> None:
    gain = gain_of(paused(0, 0.30, **UNKNOWN), paused(1, 0.40, **UNKNOWN))
    assert (gain.low, gain.high) == (None, None)
    assert describe_gain(gain, "accuracy") == "+10.0 (no interval) best of 1, one seed"


def test_a_lower_loss_is_a_gain_below_zero() -> None:
    study = minimizing()
    gain = gain_of(paused(0, 1.5), paused(1, 1.2), paused(2, 1.23), study=study)
    assert (gain.trial, gain.best_of) == ("t001", 2)
    assert gain.uncorrected == pytest.approx(-0.3)
    assert gain.low is not None and gain.high is not None
    assert gain.low < -0.3 < gain.estimate < gain.high < 0


def test_at_full_length_arms_that_were_stopped_count_too() -> None:
    promoted = [continued(paused(i, 0.5), 0.6) for i in (1, 2)]
    gain = gain_of(continued(BASELINE, 0.5, Continuation.BASELINE), *promoted, *(stopped(i, 0.45) for i in (3, 4, 5)))
    assert gain.best_of == 5
    # First measurements vary by 0.00075 around 0.47, of which 0.0004 is noise; half of what that adds is expected
    # again.
    added = 0.0004 / 0.00075 * (0.5 - 0.47)
    assert gain.estimate == pytest.approx(0.6 - 0.5 * added - 0.5)


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param([], id="no trial"),
        pytest.param([paused(1, 0.4)], id="no baseline"),
        pytest.param([BASELINE, paused(1, 0.2)], id="the baseline is the best"),
        pytest.param([replace(BASELINE, measurements=()), paused(1, 0.4)], id="the baseline is not read yet"),
        pytest.param([paused(0, 0.0, diverged=True), paused(1, 0.4)], id="the baseline diverged"),
        pytest.param(
            [continued(BASELINE, None, Continuation.BASELINE), continued(paused(1, 0.4), 0.5)],
            id="not on this rung yet",
        ),
    ],
)
def test_without_two_comparable_measurements_there_is_no_gain(trials: Sequence[Trial]) -> None:
    assert find_gain(STUDY, a_ledger(*trials)) is None


# The test set ---------------------------------------------------------------------------------------------------------

READ = GainOnTest(mean="hand_labelled", difference=0.027, low=-0.018, high=0.071, n=629)
SCORES = a_ledger(
    continued(BASELINE, 0.5, Continuation.BASELINE), continued(paused(1, 0.4), 0.6), winner=1, test_gain=READ
)


def test_after_the_final_evaluation_the_gain_is_that_of_the_test_set() -> None:
    status = render_status(STUDY, SCORES, now=NOW)
    assert status["summary"]["gain"] == "+2.7 (-1.8 to +7.1) on test, one seed"
    best = status["best"]
    assert (best["gain"], best["gainLow"], best["gainHigh"]) == ("0.027", "-0.018", "0.071")
    assert (best["gainOn"], best["bestOf"], best["gainUncorrected"]) == ("Test", None, None)
    assert parse_status(json.loads(json.dumps(status))).ledger == SCORES


def test_a_test_set_of_few_sites_gives_no_interval() -> None:
    ledger = replace(SCORES, test_gain=replace(READ, low=None, high=None))
    status = render_status(STUDY, ledger, now=NOW)
    assert status["summary"]["gain"] == "+2.7 (no interval) on test, one seed"
    assert parse_status(json.loads(json.dumps(status))).ledger == ledger


def test_a_test_gain_alone_changes_the_rendered_status() -> None:
    before = parse_status(render_status(STUDY, replace(SCORES, test_gain=None), now=NOW))
    after = render_status(STUDY, replace(before.ledger, test_gain=READ), now=NOW, recorded=before)
    assert before.raw["best"]["gainOn"] == "Validation"
    assert after["best"]["gainOn"] == "Test"


def test_the_test_set_gives_no_gain_of_a_loss() -> None:
    gain = find_gain(minimizing(), replace(SCORES, winner=0))
    assert gain is None or gain.source is GainSource.VALIDATION
    study = replace(STUDY, objective=Objective(metric="accuracy/price", direction=STUDY.objective.direction))
    gain = find_gain(study, SCORES)
    assert gain is not None and gain.source is GainSource.VALIDATION


@pytest.mark.parametrize(
    ("labelled", "mean"),
    [pytest.param(500, "hand_labelled", id="people"), pytest.param(0, "all_asked", id="markup only")],
)
def test_the_test_gain_uses_the_hand_labelled_mean_only_if_there_are_hand_labels(labelled: int, mean: str) -> None:
    gains = {
        "hand_labelled/winner-baseline": replace(a_gain(0.0), n=labelled),
        "all_asked/winner-baseline": a_gain(0.02),
    }
    found = find_test_gain(replace(a_final_evaluation(), gains=gains))
    assert found is not None
    assert (found.mean, found.n) == (mean, 500)


def test_without_a_baseline_the_test_set_gives_no_gain() -> None:
    assert find_test_gain(replace(a_final_evaluation(), gains={"hand_labelled/winner-rule_based": a_gain(0.1)})) is None


# What it is worth -----------------------------------------------------------------------------------------------------

TWO_RUNGS = Promotion(num_promoted=5, num_audited=3)
Truths = Callable[[np.random.Generator], Sequence[float]]


def equal(_: np.random.Generator) -> Sequence[float]:
    """Return arms of which none is better."""
    return [0.7] * 24


def better(chance: np.random.Generator) -> Sequence[float]:
    """Return a baseline, eight arms that are fifteen points better, and fifteen bad ones."""
    return [0.55, *[0.7] * 8, *chance.uniform(0.15, 0.6, 15)]


def simulate(truths: Truths, promotion: Promotion | None) -> tuple[float, float, float, float]:
    """Return the mean true gain of the best arm, as read and as corrected, and how often the interval covers it."""
    chance = np.random.default_rng(7)
    rows = []
    for _ in range(150):
        noisy = a_noisy_study(chance, truths(chance), promotion=promotion)
        gain = find_gain(noisy.study, Ledger(trials=noisy.trials))
        if gain is None:
            continue
        assert gain.uncorrected is not None and gain.low is not None and gain.high is not None
        truth = noisy.truths[int(gain.trial[1:])] - noisy.truths[0]
        rows.append((truth, gain.uncorrected, gain.estimate, float(gain.low <= truth <= gain.high)))
    truth, read, corrected, covered = np.array(rows).mean(axis=0).tolist()
    return truth, read, corrected, covered


@pytest.mark.parametrize("promotion", [None, TWO_RUNGS], ids=["first measurement", "full length"])
def test_equal_arms_show_no_gain(promotion: Promotion | None) -> None:
    truth, read, corrected, covered = simulate(equal, promotion)
    assert truth == 0
    assert read > 0.045
    assert abs(corrected) < 0.012
    assert covered >= 0.93


@pytest.mark.parametrize("promotion", [None, TWO_RUNGS], ids=["first measurement", "full length"])
def test_the_gain_of_better_arms_is_found(promotion: Promotion | None) -> None:
    truth, _, corrected, covered = simulate(better, promotion)
    assert truth > 0.14
    assert abs(corrected - truth) < 0.02
    assert covered >= 0.93


@pytest.mark.parametrize("sites", [5, 10])
@pytest.mark.parametrize("arms", [2, 12])
def test_equal_arms_show_no_gain_with_few_sites(sites: int, arms: int) -> None:
    chance = np.random.default_rng(11)
    found = [
        find_gain(noisy.study, Ledger(trials=noisy.trials))
        for noisy in (a_study_of_few_sites(chance, [0.5] * arms, sites, own=0.5) for _ in range(150))
    ]
    # Where the baseline is the best, nothing is said to be gained.
    wrong = sum(gain is not None and gain.low is not None and gain.low > 0 for gain in found)
    assert wrong <= 6


def test_before_the_end_the_best_is_that_of_the_furthest_rung() -> None:
    study = of_three_rungs()

    def half_way(index: int, value: float) -> Trial:
        trial = continued(paused(index, index / 10), None)
        return replace(trial, measurements=(*trial.measurements, a_measurement(1, value, step=50)))

    trials = [half_way(0, 0.2), half_way(1, 0.5), half_way(2, 0.4), stopped(9, 0.9)]
    gain = gain_of(*trials, study=study)
    assert (gain.trial, gain.uncorrected) == ("t001", pytest.approx(0.3))


def test_a_chance_that_chose_at_each_early_rung_is_taken_off_at_each() -> None:
    # All arms are alike, and stay what they were: what is left of the noise halves from rung to rung.
    study = of_three_rungs()

    def arm(index: int, *values: float) -> Trial:
        measurements = tuple(a_measurement(rung, value) for rung, value in enumerate(values))
        state = TrialState.COMPLETED if len(values) == 3 else TrialState.STOPPED
        return a_trial(index, state=state, rung=len(values) - 1, measurements=measurements)

    trials = [arm(0, 0.30, 0.30, 0.30), arm(1, 0.34, 0.33, 0.32), arm(2, 0.33, 0.31, 0.29), arm(3, 0.29, 0.29)]
    gain = gain_of(*trials, study=study)
    assert gain.trial == "t001" and gain.uncorrected == pytest.approx(0.02)
    assert gain.estimate < 0.02


@pytest.mark.parametrize(("bound", "best"), [(0.05, "t002"), (0.005, "t001"), (0.9, "t001")])
def test_one_that_breaks_a_constraint_is_the_best_so_far_only_where_all_do(bound: float, best: str) -> None:
    study = a_study(outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=bound),))
    values = ((0, 0.2, 0.01), (1, 0.9, 0.5), (2, 0.5, 0.01))
    trials = [paused(i, value, metrics={"invalid_output_rate": rate}) for i, value, rate in values]
    assert gain_of(*trials, study=study).trial == best


def test_an_arm_that_breaks_a_constraint_was_no_choice_and_takes_nothing_off_the_correction() -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2)
    study = a_study(num_trials=24, outcome_constraints=(constraint,))
    keeping = [paused(i, 0.3 if i == 0 else 0.28 + 0.007 * i) for i in range(11)]
    keeping = [paused(t.index, t.measurements[0].value, metrics={"invalid_output_rate": 0.1}) for t in keeping]
    breaking = paused(11, 0.6, metrics={"invalid_output_rate": 0.9})
    alone, gain = gain_of(*keeping, study=study), gain_of(*keeping, breaking, study=study)
    assert gain == alone
    assert gain.best_of == 10 and gain.estimate < 0.5 * gain.uncorrected
    # Where all break it the best of them is the best, and all were a choice.
    broken = [paused(t.index, t.measurements[0].value, metrics={"invalid_output_rate": 0.9}) for t in keeping]
    assert gain_of(*broken, breaking, study=study).best_of == 11


def test_one_that_breaks_a_constraint_further_on_is_not_the_best_where_another_keeps_it() -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2)
    study = replace(of_three_rungs(), outcome_constraints=(constraint,))
    keeps, breaks = {"invalid_output_rate": 0.1}, {"invalid_output_rate": 0.9}
    further = continued(paused(1, 0.9, metrics=keeps), None)
    broken = replace(a_measurement(1, 0.9, step=50), metrics=breaks)
    further = replace(further, measurements=(*further.measurements, broken))
    best = find_best(study, [further, paused(2, 0.5, metrics=keeps)])
    assert best is not None and best.name == "t002"


def test_the_best_so_far_is_so_by_the_objective_whatever_ranks_early_rungs() -> None:
    study = a_study(promotion=Promotion(num_promoted=1, rank_by=RankBy.VALIDATION_LOSS))
    trials = [
        paused(i, value, metrics={"validation_loss": loss})
        for i, value, loss in ((0, 0.3, 1), (1, 0.5, 2), (2, 0.4, 0.5))
    ]
    assert gain_of(*trials, study=study).trial == "t001"
