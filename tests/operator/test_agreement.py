"""What early readings said of final ones: estimates with what they rest on, silence where that is too little."""

import itertools
import math

import pytest

from ledgers import a_study, continued, minimizing, paused, stopped
from study_operator.agreement import describe_agreement, hypergeometric_interval, measure_agreement
from study_operator.promotion import draw
from study_operator.study import Promotion
from study_operator.trial import Continuation, Trial

STUDY = a_study(promotion=Promotion(num_promoted=2, num_audited=3))
BASELINE = continued(paused(0, 0.30), 0.40, Continuation.BASELINE)
PROMOTED = [continued(paused(1, 0.50), 0.60), continued(paused(2, 0.45), 0.50)]


def audited(index: int, early: float, final: float, probability: float = 0.5) -> Trial:
    """Return a trial that was drawn and ran to its end."""
    return continued(paused(index, early), final, Continuation.AUDITED, probability)


AUDITED = [audited(3, 0.1, 0.2), audited(4, 0.2, 0.3), audited(5, 0.3, 0.55)]
REST = [stopped(6, 0.1), stopped(7, 0.2), stopped(8, 0.25)]


def test_with_fewer_than_three_audited_nothing_is_estimated() -> None:
    agreement = measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED[:2], *REST])
    assert (agreement.concordance, agreement.missed_winners) == (None, None)
    assert describe_agreement(agreement)[0] == (
        "Agreement of early and final readings: not estimable, n = 2 audited (at least 3 are needed)."
    )


def test_an_audited_trial_that_never_ended_does_not_count() -> None:
    unfinished = continued(paused(5, 0.3), None, Continuation.AUDITED, 0.5)
    assert measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED[:2], unfinished, *REST]).concordance is None


def test_pairs_weigh_what_they_stand_for() -> None:
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


def test_the_concordance_is_right_on_average_over_all_draws() -> None:
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


def test_missed_winners_are_audited_ones_that_beat_the_worst_promoted() -> None:
    missed = measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST]).missed_winners
    assert missed is not None
    assert (missed.population, missed.audited, missed.found, missed.estimate) == (6, 3, 1, 2.0)
    assert (missed.low, missed.high) == hypergeometric_interval(6, 3, 1)


def test_a_lower_loss_beats() -> None:
    missed = measure_agreement(minimizing(STUDY), [BASELINE, *PROMOTED, *AUDITED, *REST]).missed_winners
    assert missed is not None
    assert missed.found == 3


def test_top_k_kept_is_told_only_where_every_trial_ran_to_its_end() -> None:
    assert measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST]).top_k_kept is None
    everyone = [BASELINE, *PROMOTED, *AUDITED]
    assert measure_agreement(STUDY, everyone).top_k_kept == 0.5


@pytest.mark.parametrize(
    ("population", "drawn", "found", "interval"),
    [
        pytest.param(6, 6, 2, (2, 2), id="who asks all knows"),
        pytest.param(10, 0, 0, (0, 10), id="who asks nobody knows nothing"),
        pytest.param(4, 2, 0, (0, 2), id="none of two in four"),
        pytest.param(1000, 1, 1, (26, 1000), id="one of one in a thousand"),
    ],
)
def test_exact_intervals(population: int, drawn: int, found: int, interval: tuple[int, int]) -> None:
    assert hypergeometric_interval(population, drawn, found) == interval


@pytest.mark.parametrize(("population", "drawn"), [(6, 3), (17, 3), (12, 5)])
def test_the_interval_holds_the_truth_in_at_least_95_of_100_draws(population: int, drawn: int) -> None:
    for winners in range(population + 1):
        covered = 0.0
        for found in range(max(0, drawn - (population - winners)), min(drawn, winners) + 1):
            ways = math.comb(winners, found) * math.comb(population - winners, drawn - found)
            low, high = hypergeometric_interval(population, drawn, found)
            covered += ways / math.comb(population, drawn) * (low <= winners <= high)
        assert covered >= 0.95


def test_it_is_said_that_both_readings_share_their_pages() -> None:
    said = describe_agreement(measure_agreement(STUDY, [BASELINE, *PROMOTED, *AUDITED, *REST]))
    assert said[-1] == "Both readings are of the same validation pages, so their page noise is shared."
    assert said[1] == (
        "Estimated missed winners: 2.0 (95 % interval 1 to 4) of 6 trials that were not promoted; "
        "1 of 3 audited ones beat the worst promoted trial."
    )


def test_drawing_all_leaves_nobody_out() -> None:
    assert draw([5, 3, 1], 3, seed=7) == [1, 3, 5]
