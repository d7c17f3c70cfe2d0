"""What early measurements said of final ones: estimates with what they rest on, silence where that is too little."""

import itertools
import math
import random
from dataclasses import replace

import pytest
from scipy.stats import kendalltau, spearmanr

from builders.ledgers import a_measurement, a_study, a_trial, continued, minimizing, of_three_rungs, paused, stopped
from study_operator.ledger.agreement import (
    Agreement,
    Regret,
    bound_spearman,
    concordance_interval,
    describe_agreements,
    describe_lack,
    describe_reliability,
    hypergeometric_interval,
    is_reliable,
    measure_agreement,
)
from study_operator.ledger.ranking import choose_winner
from study_operator.ledger.trial import Continuation, Origin, Trial, TrialState
from study_operator.spec.study import OutcomeConstraint, Promotion, RankBy, Study

STUDY = a_study(promotion=Promotion(num_promoted=2, num_audited=3))
BASELINE = continued(paused(0, 0.30), 0.40, Continuation.BASELINE)
PROMOTED = [continued(paused(1, 0.50), 0.60), continued(paused(2, 0.45), 0.50)]


def audited(index: int, early: float, final: float, probability: float = 0.5) -> Trial:
    """Return a trial that was drawn and ran to its end."""
    return continued(paused(index, early), final, Continuation.AUDITED, probability)


AUDITED = [audited(3, 0.1, 0.2), audited(4, 0.2, 0.3), audited(5, 0.3, 0.55)]
REST = [stopped(6, 0.1), stopped(7, 0.2), stopped(8, 0.25)]


def test_agreement_is_not_estimated_with_fewer_than_three_audited_trials() -> None:
    agreement = measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED[:2], *REST])
    assert (agreement.concordance, agreement.missed_winners) == (None, None)
    assert describe_agreements([agreement])[0] == (
        "Agreement of early and final measurements: not estimable, n = 2 audited (at least 3 are needed)."
    )


def test_an_audited_trial_without_a_full_length_measurement_does_not_count() -> None:
    unfinished = continued(paused(5, 0.3), None, Continuation.AUDITED, 0.5)
    assert measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED[:2], unfinished, *REST]).concordance is None


def test_pairs_are_weighted_by_inverse_inclusion_probability() -> None:
    trials = [BASELINE, *PROMOTED, *AUDITED, *REST]
    # Three of six were drawn: one of them with a certain one stands for 2 pairs, two of them for 6 · 5 / (3 · 2) = 5.
    weights = {(a.index, b.index): 1.0 for a, b in itertools.combinations([BASELINE, *PROMOTED], 2)}
    weights |= {(a.index, b.index): 2.0 for a in [BASELINE, *PROMOTED] for b in AUDITED}
    weights |= {(a.index, b.index): 5.0 for a, b in itertools.combinations(AUDITED, 2)}
    early = {t.index: t.measurements[0].value for t in trials}
    final = {t.index: t.measurements[-1].value for t in [BASELINE, *PROMOTED, *AUDITED]}
    agreeing = 0.0
    for (a, b), weight in weights.items():
        product = (early[a] - early[b]) * (final[a] - final[b])
        agreeing += weight * (0.5 if product == 0 else float(product > 0))
    agreement = measure_agreement(STUDY, trials)
    assert agreement.concordance == pytest.approx(agreeing / sum(weights.values()))
    assert (agreement.pairs, agreement.audited, agreement.full_length) == (15, 3, 6)


def test_the_estimate_of_the_concordance_is_unbiased_over_all_draws() -> None:
    truth = {i: ((i * 7 % 10) / 10, (i * 3 % 11) / 11) for i in range(8)}
    top = sorted(truth, key=lambda i: -truth[i][0])[:2]
    rest = [i for i in truth if i not in top]
    numerators, totals = [], []
    for drawn in itertools.combinations(rest, 3):
        trials = [continued(paused(i + 1, truth[i][0]), truth[i][1]) for i in top]
        trials += [audited(i + 1, *truth[i]) for i in drawn]
        agreement = measure_agreement(STUDY, trials)
        assert agreement.concordance is not None
        # Of ten pairs: one of promoted ones, six that stand for two each, three that stand for five each.
        totals.append(1 + 6 * 2 + 3 * 5)
        numerators.append(agreement.concordance * totals[-1])
    pairs = list(itertools.combinations(truth.values(), 2))
    agreeing = sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)
    agreeing += sum(0.5 for a, b in pairs if (a[0] - b[0]) * (a[1] - b[1]) == 0)
    assert sum(totals) / len(totals) == len(pairs)
    assert sum(numerators) / len(numerators) == pytest.approx(agreeing)


def diverging(trial: Trial, rung: int = 1) -> Trial:
    """Return the trial with its last measurement diverged, at a value that would be the best of all."""
    measurements = [
        replace(m, diverged=True, value=0.99, checkpoint="") if m.rung == rung else m for m in trial.measurements
    ]
    return replace(trial, measurements=tuple(measurements))


def breaking(trial: Trial) -> Trial:
    """Return the trial with a final measurement that breaks the constraint of `CONSTRAINED`."""
    final = replace(trial.measurements[-1], metrics={"invalid_output_rate": 0.9})
    return replace(trial, measurements=(*trial.measurements[:-1], final))


CONSTRAINED = replace(
    STUDY, outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.5),)
)


@pytest.mark.parametrize(
    ("study", "chosen", "finals", "winner", "found"),
    [
        pytest.param(STUDY, [BASELINE, *PROMOTED], (0.2, 0.3, 0.55), "t001", 0, id="better than the worst promoted"),
        pytest.param(STUDY, [BASELINE, *PROMOTED], (0.2, 0.3, 0.65), "t001", 1, id="better than the best promoted"),
        pytest.param(STUDY, [BASELINE, *PROMOTED], (0.2, 0.3, 0.60), "t001", 0, id="equal to the best promoted"),
        pytest.param(
            STUDY, [BASELINE, PROMOTED[0], diverging(PROMOTED[1])], (0.2, 0.3, 0.55), "t001", 0, id="one diverged late"
        ),
        pytest.param(
            STUDY, [BASELINE, diverging(PROMOTED[0]), PROMOTED[1]], (0.2, 0.3, 0.55), "t002", 1, id="the best diverged"
        ),
        pytest.param(
            STUDY, [continued(paused(0, 0.3), 0.7, Continuation.BASELINE), *PROMOTED], (0.2, 0.3, 0.65), "t000", 0,
            id="the baseline is the best",
        ),
        pytest.param(STUDY, PROMOTED, (0.7, 0.3, 0.65), "t001", 2, id="no baseline"),
        pytest.param(minimizing(STUDY), [BASELINE, *PROMOTED], (0.2, 0.3, 0.45), "t000", 2, id="lower is better"),
        pytest.param(
            CONSTRAINED, [BASELINE, breaking(PROMOTED[0]), PROMOTED[1]], (0.2, 0.3, 0.55), "t002", 1,
            id="the best breaks a constraint",
        ),
    ],
)  # fmt: skip
def test_missed_winners_are_estimated_from_audited_trials_that_beat_the_winner(
    study: Study, chosen: list[Trial], finals: tuple[float, ...], winner: str, found: int
) -> None:
    drawn = [audited(3 + i, 0.1, final) for i, final in enumerate(finals)]
    missed = measure_agreement(study, [*chosen, *drawn, *REST]).missed_winners
    assert missed is not None
    assert (missed.winner, missed.found, missed.population, missed.audited) == (winner, found, 6, 3)
    assert missed.estimate == 6 / 3 * found
    assert (missed.low, missed.high) == hypergeometric_interval(6, 3, found)


@pytest.mark.parametrize(("loss", "found"), [(1.0, 1), (2.0, 0), (3.0, 0)])
def test_of_equals_the_lower_loss_would_have_won(loss: float, found: int) -> None:
    def losing(trial: Trial, loss: float) -> Trial:
        final = replace(trial.measurements[-1], metrics={"validation_loss": loss})
        return replace(trial, measurements=(*trial.measurements[:-1], final))

    drawn = [losing(audited(3, 0.1, 0.6), loss), audited(4, 0.1, 0.2), audited(5, 0.1, 0.3)]
    trials = [BASELINE, losing(PROMOTED[0], 2.0), PROMOTED[1], *drawn, *REST]
    missed = measure_agreement(STUDY, trials).missed_winners
    assert missed is not None
    assert missed.found == found
    assert (choose_winner(STUDY, trials) is drawn[0]) is bool(found)


def ending(index: int, loss: float, final: float, early: float = 0.0) -> Trial:
    """Return a trial with a loss beside its early measurement, which ran to its end."""
    trial = paused(index, early, metrics={"validation_loss": loss})
    return continued(replace(trial, origin=Origin.SUGGESTED), final)


@pytest.mark.parametrize(
    ("step", "concordance", "is_enough"),
    [
        pytest.param(-0.1, 1.0, True, id="the loss foretold all"),
        pytest.param(0.1, 0.0, False, id="it foretold the opposite"),
        pytest.param(0.0, 0.5, False, id="the loss was the same too"),
    ],
)
def test_equals_are_ordered_by_their_loss_as_where_some_go_on(step: float, concordance: float, is_enough: bool) -> None:
    study = a_study(num_trials=16, baseline=None, promotion=Promotion(num_promoted=15))
    agreement = measure_agreement(study, [ending(i, 3 + step * i, 0.05 * i) for i in range(16)])
    assert (agreement.concordance, agreement.spearman) == (concordance, 2 * concordance - 1)
    assert agreement.is_reliable is is_enough


def test_equals_at_full_length_are_ordered_by_their_loss() -> None:
    study = a_study(num_trials=16, baseline=None, promotion=Promotion(num_promoted=15))
    trials = [ending(i, 1.0, 0.5, early=0.01 * i) for i in range(16)]
    final = [replace(t.measurements[1], metrics={"validation_loss": 3 - 0.1 * t.index}) for t in trials]
    trials = [replace(t, measurements=(t.measurements[0], m)) for t, m in zip(trials, final, strict=True)]
    assert measure_agreement(study, trials).concordance == 1.0


def test_where_no_rung_has_too_few_audited_all_of_them_are_counted() -> None:
    def full(index: int, how: Continuation, stratum: int | None = None) -> Trial:
        trial = replace(paused(index, 0.1 * index), origin=Origin.SUGGESTED)
        measurements = (*trial.measurements, a_measurement(1, 0.2), a_measurement(2, 0.3))
        state = TrialState.COMPLETED
        return replace(
            trial, rung=2, state=state, continuation=how, audited_at=stratum, inclusion_probability=1.0,
            measurements=measurements,
        )  # fmt: skip

    trials = [full(1, Continuation.PROMOTED), full(2, Continuation.AUDITED, 0), full(3, Continuation.AUDITED, 1)]
    # Whoever went on and failed leaves the study without a count of its own.
    trials.append(replace(paused(4, 0.9), rung=2, state=TrialState.FAILED, continuation=Continuation.PROMOTED))
    agreement = measure_agreement(of_three_rungs(num_audited=3), trials)
    assert agreement.concordance is None
    assert describe_lack(agreement) == "n = 2 audited (at least 3 are needed)"


def test_an_audited_trial_that_diverged_or_broke_a_constraint_is_not_a_missed_winner() -> None:
    drawn = [diverging(audited(3, 0.1, 0.9)), breaking(audited(4, 0.1, 0.9)), audited(5, 0.1, 0.9)]
    missed = measure_agreement(CONSTRAINED, [BASELINE, *PROMOTED, *drawn, *REST]).missed_winners
    assert missed is not None
    assert (missed.found, missed.audited, missed.estimate) == (1, 3, 2.0)


def test_without_a_winner_no_missed_winners_are_estimated() -> None:
    lost = [diverging(t) for t in PROMOTED]
    agreement = measure_agreement(STUDY, [*lost, *AUDITED, *REST])
    assert agreement.missed_winners is None
    assert not any("missed" in sentence for sentence in describe_agreements([agreement]))


def test_a_trial_that_diverged_after_the_first_rung_forms_no_pair() -> None:
    sound = [BASELINE, PROMOTED[0], *AUDITED, *REST]
    with_one = measure_agreement(STUDY, [*sound, diverging(PROMOTED[1])])
    without = measure_agreement(STUDY, sound)
    assert (with_one.concordance, with_one.pairs, with_one.full_length) == (without.concordance, 10, 5)
    assert (with_one.left_out.diverged, without.left_out.diverged) == (1, 0)


def test_top_k_kept_is_reported_only_if_every_trial_reached_full_length() -> None:
    assert measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST]).top_k_kept is None
    everyone = [BASELINE, *PROMOTED, *(replace(t, inclusion_probability=1.0) for t in AUDITED)]
    assert measure_agreement(STUDY, everyone).top_k_kept == 0.5
    # Who diverged early could not; who diverged late is at the end of the order.
    assert measure_agreement(STUDY, [*everyone, diverging(paused(9, 0.1), 0)]).top_k_kept == 0.5
    assert measure_agreement(STUDY, [BASELINE, PROMOTED[0], diverging(PROMOTED[1]), *everyone[3:]]).top_k_kept == 0.5


def test_the_early_top_k_are_those_that_keep_the_constraints() -> None:
    study = replace(
        a_study(promotion=Promotion(num_promoted=1, num_audited=3)),
        outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2),),
    )

    def ended(index: int, early: float, final: float, rate: float, *, probability: float | None = 1.0) -> Trial:
        metrics = {"invalid_output_rate": rate}
        promotion = Continuation.PROMOTED if probability is None else Continuation.AUDITED
        trial = continued(paused(index, early, metrics=metrics), final, promotion, probability or 1.0)
        return replace(trial, measurements=tuple(replace(m, metrics=metrics) for m in trial.measurements))

    # The best breaks the constraint, so the second was promoted; the third ended better.
    trials = [ended(1, 0.9, 0.9, 0.9), ended(2, 0.5, 0.3, 0.0, probability=None), ended(3, 0.4, 0.7, 0.0)]
    agreement = measure_agreement(study, [*trials, ended(4, 0.3, 0.2, 0.0)])
    assert (agreement.top_k_kept, agreement.regret) == (0.0, Regret(value=pytest.approx(0.4), is_exact=True))
    # Where none keeps it none is promoted, and there is no top k.
    broken = [ended(i, early, final, 0.9) for i, (early, final) in enumerate([(0.9, 0.9), (0.5, 0.3), (0.4, 0.7)])]
    agreement = measure_agreement(study, broken)
    assert (agreement.top_k_kept, agreement.regret) == (None, None)


@pytest.mark.parametrize(
    ("concordance", "drawn", "low", "high"),
    [
        pytest.param(1.0, 3, 0.398, 1.0, id="three audited, all pairs alike"),
        pytest.param(0.0, 3, 0.0, 0.602, id="three audited, no pair alike"),
        pytest.param(0.5, 4, 0.118, 0.882, id="half of six comparisons"),
        pytest.param(0.9, 10, 0.595, 0.998, id="between 13 and 14 of 15"),
        pytest.param(1.0, 20, 0.884, 1.0, id="many audited"),
    ],
)
def test_confidence_intervals_of_the_concordance_have_known_values(
    concordance: float, drawn: int, low: float, high: float
) -> None:
    assert concordance_interval(concordance, drawn) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.99])
def test_the_confidence_interval_of_the_concordance_covers_the_true_value(correlation: float) -> None:
    chance = random.Random(round(100 * correlation))
    truth = 0.5 + math.asin(correlation) / math.pi
    covered = 0
    for _ in range(100):
        early = [chance.gauss(0, 1) for _ in range(14)]
        final = [correlation * e + math.sqrt(1 - correlation**2) * chance.gauss(0, 1) for e in early]
        order = sorted(range(1, 14), key=lambda i: -early[i])
        drawn = chance.sample(order[2:], 3)
        trials = [continued(paused(0, early[0]), final[0], Continuation.BASELINE)]
        trials += [continued(paused(i, early[i]), final[i]) for i in order[:2]]
        trials += [audited(i, early[i], final[i], 3 / 11) for i in drawn]
        agreement = measure_agreement(STUDY, trials)
        assert agreement.concordance is not None
        assert agreement.concordance_low <= agreement.concordance <= agreement.concordance_high
        covered += agreement.concordance_low <= truth <= agreement.concordance_high
    assert covered >= 95


@pytest.mark.parametrize(
    ("population", "drawn", "found", "interval"),
    [
        pytest.param(6, 6, 2, (2, 2), id="who asks all knows"),
        pytest.param(10, 0, 0, (0, 10), id="who asks nobody knows nothing"),
        pytest.param(4, 2, 0, (0, 2), id="none of two in four"),
        pytest.param(1000, 1, 1, (26, 1000), id="one of one in a thousand"),
    ],
)
def test_hypergeometric_intervals_have_known_values(
    population: int, drawn: int, found: int, interval: tuple[int, int]
) -> None:
    assert hypergeometric_interval(population, drawn, found) == interval


@pytest.mark.parametrize(("population", "drawn"), [(6, 3), (17, 3), (12, 5)])
def test_the_hypergeometric_interval_covers_the_true_value_in_95_percent_of_draws(population: int, drawn: int) -> None:
    for winners in range(population + 1):
        covered = 0.0
        for found in range(max(0, drawn - (population - winners)), min(drawn, winners) + 1):
            ways = math.comb(winners, found) * math.comb(population - winners, drawn - found)
            low, high = hypergeometric_interval(population, drawn, found)
            covered += ways / math.comb(population, drawn) * (low <= winners <= high)
        assert covered >= 0.95


def test_the_description_names_the_sample_size_and_the_excluded_trials() -> None:
    failed = a_trial(9, state=TrialState.FAILED)
    lost = [diverging(paused(10, 0.2), 0), continued(paused(11, 0.3), None), failed]
    pairs, missed, shared = describe_agreements(
        [measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST, *lost])]
    )
    assert pairs == (
        "Early and final measurements order 92% of the pairs of trials alike (95 % interval 19% to 100%; 15 pairs of 6 "
        "full-length trials: 2 promoted, 3 audited, the baseline; the audited ones weigh for those that were not "
        "drawn). Left out of the pairs: 1 diverged, 1 failed, 1 still running."
    )
    assert missed == (
        "Estimated missed winners: 0.0 (95 % interval 0 to 3) of the 6 trials that were not promoted: 0 of 3 audited "
        "ones ended better than t001, the best of the promoted trials and the baseline."
    )
    assert shared == "Both measurements are of the same validation pages, so their page noise is shared."


def where_all_ran(seed: int, count: int = 12) -> list[Trial]:
    """Return trials that all ran to their end, with measurements by chance."""
    chance = random.Random(seed)
    values = [(chance.gauss(0, 1), chance.gauss(0, 1)) for _ in range(count)]
    return [continued(paused(0, 0.0), -9.0, Continuation.BASELINE)] + [
        continued(paused(i, early), early + final, Continuation.AUDITED) for i, (early, final) in enumerate(values, 1)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlations_of_trials_that_all_ran_are_the_usual_ones(seed: int) -> None:
    trials = where_all_ran(seed)
    values = [[t.measurements[rung].value for t in trials] for rung in (0, 1)]
    agreement = measure_agreement(STUDY, trials)
    assert agreement.kendall == pytest.approx(kendalltau(*values).statistic)
    assert agreement.spearman == pytest.approx(spearmanr(*values).statistic)
    assert agreement.spearman_90[0] <= agreement.spearman <= agreement.spearman_90[1]


def test_an_audited_trial_weighs_in_spearmans_correlation_for_those_that_were_not_drawn() -> None:
    certain = [(t.measurements[0].value, t.measurements[1].value) for t in (BASELINE, *PROMOTED)]
    drawn = [(t.measurements[0].value, t.measurements[1].value) for t in AUDITED]
    # Half were drawn: as if each were there twice.
    expected = spearmanr(*zip(*certain, *drawn, *drawn, strict=True)).statistic
    assert measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST]).spearman == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kendall", "bounds"),
    [
        pytest.param((1.0, 1.0), (1.0, 1.0), id="the same order"),
        pytest.param((-1.0, -1.0), (-1.0, -1.0), id="the opposite order"),
        pytest.param((0.0, 0.0), (-0.5, 0.5), id="neither"),
        pytest.param((0.5, 0.8), (0.25, 0.98), id="both positive"),
        pytest.param((-0.8, -0.5), (-0.98, -0.25), id="both negative"),
    ],
)
def test_bounds_of_spearmans_correlation_have_known_values(
    kendall: tuple[float, float], bounds: tuple[float, float]
) -> None:
    assert bound_spearman(*kendall) == pytest.approx(bounds)


@pytest.mark.parametrize("seed", range(8))
def test_how_many_of_the_early_best_are_kept_lies_in_the_interval_in_nine_of_ten_draws(seed: int) -> None:
    everyone = where_all_ran(seed, count=10)
    study = replace(STUDY, promotion=Promotion(num_promoted=4, num_audited=3))
    early = sorted(everyone[1:], key=lambda t: -t.measurements[0].value)
    final = sorted(everyone[1:], key=lambda t: -t.measurements[1].value)
    truth = len({t.index for t in early[:4]} & {t.index for t in final[:4]})
    draws = list(itertools.combinations(early[4:], 3))
    held = 0
    for drawn in draws:
        trials = [everyone[0], *(replace(t, continuation=Continuation.PROMOTED) for t in early[:4])]
        trials += [replace(t, inclusion_probability=0.5) for t in drawn]
        trials += [stopped(t.index, t.measurements[0].value) for t in early[4:] if t not in drawn]
        kept = measure_agreement(study, trials).top_kept
        assert kept is not None and kept.k == 4
        held += kept.low <= truth <= kept.high
    assert held >= 0.9 * len(draws)
    exact = measure_agreement(study, everyone)
    assert exact.top_kept is not None and (exact.top_kept.low, exact.top_kept.high) == (truth, truth)
    assert exact.top_k_kept == truth / 4


def test_the_early_best_that_did_not_all_run_are_not_compared() -> None:
    failed = replace(continued(paused(2, 0.45), None), state=TrialState.FAILED)
    agreement = measure_agreement(STUDY, [BASELINE, PROMOTED[0], failed, *AUDITED, *REST])
    assert (agreement.top_kept, agreement.regret) == (None, None)


@pytest.mark.parametrize(
    ("trials", "regret"),
    [
        pytest.param([BASELINE, *PROMOTED, *AUDITED, *REST], Regret(value=0.0, is_exact=False), id="none was better"),
        pytest.param(
            [BASELINE, *PROMOTED, *AUDITED[:2], audited(5, 0.3, 0.7), *REST], Regret(value=0.1, is_exact=False),
            id="an audited one was better",
        ),
        pytest.param(
            [BASELINE, *PROMOTED, *(audited(i, 0.1, 0.1 * i, 1.0) for i in (3, 4, 7))],
            Regret(value=0.1, is_exact=True),
            id="all ran",
        ),
        pytest.param(
            [continued(paused(0, 0.3), 0.7, Continuation.BASELINE), *PROMOTED, audited(3, 0.1, 0.7), *REST],
            Regret(value=0.0, is_exact=False), id="the baseline is as good",
        ),
    ],
)  # fmt: skip
def test_regret_is_what_the_best_of_all_had_more_than_the_best_that_were_chosen(
    trials: list[Trial], regret: Regret
) -> None:
    found = measure_agreement(STUDY, trials).regret
    assert found is not None
    assert (found.value, found.is_exact) == (pytest.approx(regret.value), regret.is_exact)


def with_concordance(concordance: float | None, low: float, high: float) -> Agreement:
    return replace(
        measure_agreement(STUDY, [BASELINE, *PROMOTED, *REST]), concordance=concordance, concordance_90=(low, high)
    )


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        pytest.param(with_concordance(0.9, 0.7, 1.0), True, id="the lower end is 70 %"),
        pytest.param(with_concordance(0.9, 0.69, 1.0), None, id="the interval reaches below"),
        pytest.param(with_concordance(0.5, 0.3, 0.7), None, id="the upper end is 70 %"),
        pytest.param(with_concordance(0.5, 0.3, 0.69), False, id="the upper end is below"),
        pytest.param(with_concordance(None, 0.0, 1.0), None, id="not estimable"),
    ],
)
def test_early_measurements_are_reliable_where_the_whole_interval_says_so(
    agreement: Agreement, expected: bool | None
) -> None:
    assert is_reliable([agreement]) is expected
    assert is_reliable([agreement, with_concordance(0.9, 0.8, 1.0)]) is expected
    assert is_reliable([agreement, with_concordance(0.5, 0.3, 0.6)]) is False


def test_the_figures_of_reliability_are_told() -> None:
    assert describe_reliability(measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST])) == (
        "measurements at 20 % order 92% of the pairs of trials as those at full length do (90 % interval 25% to 100%, "
        "15 pairs of 6 trials); reliable is 70% or more"
    )
    assert describe_reliability(measure_agreement(STUDY, [BASELINE, *PROMOTED, *REST])) == (
        "at 20 % agreement is not estimable: n = 0 audited (at least 3 are needed)"
    )


# More than one early rung: what was not promoted from each is one stratum.

TRUTH = {i: ((i * 7 % 10) / 10, (i * 9 % 13) / 13, (i * 3 % 11) / 11) for i in range(10)}
"""By index: what would be measured at 20 %, at 50 % and at full length."""


def to_the_end(index: int, how: Continuation, probability: float = 1.0, audited_at: int | None = None) -> Trial:
    """Return a trial that was measured on all three rungs."""
    first, second, final = TRUTH[index]
    measurements = (a_measurement(0, first), a_measurement(1, second, step=50), a_measurement(2, final))
    return a_trial(
        index,
        state=TrialState.COMPLETED,
        rung=2,
        continuation=how,
        inclusion_probability=probability,
        measurements=measurements,
        audited_at=audited_at,
    )


def all_draws() -> list[list[Trial]]:
    """Return the trials for each draw of three of five, and three of four: half of ten go on, and then the best."""
    first = sorted(TRUTH, key=lambda i: TRUTH[i][0])[:5]
    *second, best = sorted(TRUTH.keys() - set(first), key=lambda i: TRUTH[i][1])
    return [
        [
            to_the_end(best, Continuation.PROMOTED),
            *(to_the_end(i, Continuation.AUDITED, 3 / 5) for i in one),
            *(to_the_end(i, Continuation.AUDITED, 3 / 4, 1) for i in other),
        ]
        for one in itertools.combinations(first, 3)
        for other in itertools.combinations(second, 3)
    ]


@pytest.mark.parametrize("rung", [0, 1])
def test_the_concordance_of_each_early_rung_is_unbiased_over_the_draws_of_all_of_them(rung: int) -> None:
    study = of_three_rungs(num_audited=3)
    pairs = list(itertools.combinations(TRUTH.values(), 2))
    truth = sum((a[rung] - b[rung]) * (a[2] - b[2]) > 0 for a, b in pairs) / len(pairs)
    estimates = [measure_agreement(study, trials, rung).concordance for trials in all_draws()]
    assert None not in estimates
    assert sum(map(float, filter(None, estimates))) / len(estimates) == pytest.approx(truth)


def test_missed_winners_of_all_early_rungs_are_added_up() -> None:
    study = of_three_rungs(num_audited=3)
    missed = [measure_agreement(study, trials).missed_winners for trials in all_draws()]
    best = next(t for t in all_draws()[0] if t.continuation is Continuation.PROMOTED)
    truth = sum(final > TRUTH[best.index][2] for _, _, final in TRUTH.values())
    assert sum(m.estimate for m in missed if m) / len(missed) == pytest.approx(truth)
    assert all(m is not None and m.low <= truth <= m.high and m.population == 9 for m in missed)


def test_each_early_rung_has_its_sentence_and_needs_audits_of_its_own() -> None:
    study = of_three_rungs(num_audited=3)
    trials = all_draws()[0]
    sentences = describe_agreements([measure_agreement(study, trials, rung) for rung in (0, 1)])
    assert sentences[0].startswith("20 % and final measurements order")
    assert sentences[1].startswith("50 % and final measurements order")
    assert sum("missed winners" in sentence for sentence in sentences) == 1
    without = [t for t in trials if t.audited_at != 1] + [t for t in trials if t.audited_at == 1][:2]
    failed = replace([t for t in trials if t.audited_at == 1][2], state=TrialState.FAILED, measurements=())
    assert measure_agreement(study, [*without, failed]).concordance is None


def test_an_audited_trial_that_diverged_on_an_early_rung_is_known_to_be_no_winner() -> None:
    study = of_three_rungs(num_audited=3)
    trials = all_draws()[0]
    index = next(i for i, t in enumerate(trials) if t.stratum == 0)
    lost = replace(
        trials[index],
        state=TrialState.STOPPED,
        rung=1,
        measurements=(trials[index].measurements[0], a_measurement(1, 0.0, diverged=True)),
    )
    missed = measure_agreement(study, [*trials[:index], lost, *trials[index + 1 :]]).missed_winners
    assert missed is not None and missed.audited == 6


@pytest.mark.parametrize(
    ("rank_by", "named"),
    [
        pytest.param(RankBy.VALIDATION_LOSS, "validation_loss", id="loss"),
        pytest.param(RankBy.OBJECTIVE_AND_LOSS, "accuracy with validation_loss", id="both"),
    ],
)
def test_early_losses_are_compared_with_the_final_objective(rank_by: RankBy, named: str) -> None:
    study = replace(STUDY, promotion=replace(STUDY.promotion, rank_by=rank_by))

    def with_loss(trial: Trial) -> Trial:
        first, *later = trial.measurements
        # So much that beside it the objective counts nothing.
        loss = 100 * later[-1].value
        return replace(trial, measurements=(replace(first, metrics={"validation_loss": loss}), *later))

    # The lower the loss, the worse they end.
    agreement = measure_agreement(study, [*map(with_loss, [BASELINE, *PROMOTED, *AUDITED]), *REST])
    assert agreement.concordance == 0
    assert describe_agreements([agreement])[0].startswith(f"Early {named} and final measurements order 0%")
