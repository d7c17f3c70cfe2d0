"""What the best of many measurements is worth: gains as read and as corrected, over studies whose arms are known.

    PYTHONPATH=operator:trainer python benchmarks/selection.py [--studies 2000]

Each study reads its arms with the same 117 questions. "Equal" arms differ by chance alone; the others differ as said.
Prints three Markdown tables: gains, gains of few sites, and the interval of the concordance of early and final
measurements.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The made-up studies are the tests' own.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builders.noisy_studies import a_noisy_study, a_study_of_few_sites
from study_operator.ledger.agreement import measure_agreement
from study_operator.ledger.gain import find_gain
from study_operator.ledger.trial import Ledger
from study_operator.spec.study import Promotion

Truths = Callable[[np.random.Generator], Sequence[float]]
TWO_RUNGS = Promotion(num_promoted=5, num_audited=3)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    truths: Truths
    promotion: Promotion | None = None
    carried: float = 0.5


def normal(spread: float) -> Truths:
    """Return arms that differ by so much, the baseline being one of them."""
    return lambda chance: np.clip(chance.normal(0.65, spread, 24), 0.12, 0.97).tolist()


def cluster(baseline: float) -> Truths:
    """Return a baseline, eight good arms that are equal, and fifteen bad ones."""
    return lambda chance: [baseline, *[0.7] * 8, *chance.uniform(0.15, 0.6, 15).tolist()]


CASES = [
    Case(name="24 equal arms", truths=lambda _: [0.7] * 24),
    Case(name="6 equal arms", truths=lambda _: [0.7] * 6),
    Case(name="8 good arms as good as the baseline, 15 bad", truths=cluster(0.7)),
    Case(name="8 good arms 5 points better, 15 bad", truths=cluster(0.65)),
    Case(name="8 good arms 15 points better, 15 bad", truths=cluster(0.55)),
    Case(name="normal, 3 points apart", truths=normal(0.03)),
    Case(name="normal, 10 points apart", truths=normal(0.1)),
    *(
        Case(name=f"24 equal arms, full length, {share:.0%} carried", truths=lambda _: [0.7] * 24, promotion=TWO_RUNGS,
             carried=share)
        for share in (0.0, 0.5, 0.9)
    ),
    Case(name="8 good arms 5 points better, full length", truths=cluster(0.65), promotion=TWO_RUNGS),
    Case(name="normal, 10 points apart, full length", truths=normal(0.1), promotion=TWO_RUNGS),
]  # fmt: skip


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print(
        "| arms | true gain of the best | as read | corrected | error as read | error corrected "
        "| above 0 as read | above 0 corrected | interval covers |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        print(_gain_row(case, studies))
    print()
    print("| sites | equal arms | as read | corrected | said to gain though nothing is gained |")
    print("|---|---|---|---|---|")
    for sites in (5, 8, 10, 20):
        for arms in (2, 24):
            print(_sites_row(sites, arms, studies))
    print()
    print(
        "| audited of 18 | early and final truth correlate | concordance | 95 % interval covers | its mean width "
        "| 90 % interval covers | Spearman's covers | top k kept covers | called reliable | called not reliable |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for audited in (3, 9, 18):
        for correlation in (0.0, 0.5, 0.588, 0.9, 0.99):
            print(_concordance_row(audited, correlation, studies))
    print()
    print(
        "| with two early rungs, truth of the first and of the next correlate | concordance | interval covers | width |"
    )
    print("|---|---|---|---|")
    for correlation in (0.0, 0.5, 0.9, 0.99):
        print(_concordance_row_of_three_rungs(correlation, studies))


def _gain_row(case: Case, studies: int) -> str:
    chance = np.random.default_rng(0)
    rows = []
    for _ in range(studies):
        noisy = a_noisy_study(chance, case.truths(chance), promotion=case.promotion, carried=case.carried)
        gain = find_gain(noisy.study, Ledger(trials=noisy.trials))
        if gain is None or gain.low is None or gain.high is None or gain.uncorrected is None:
            # The baseline is the best, and nothing is gained.
            rows.append((0.0, 0.0, 0.0, np.nan))
            continue
        truth = noisy.truths[int(gain.trial[1:])] - noisy.truths[0]
        rows.append((truth, gain.uncorrected, gain.estimate, gain.low <= truth <= gain.high))
    truth, read, corrected, covers = np.array(rows, dtype=float).T
    points = [f"{100 * value:+.1f}" for value in (truth.mean(), read.mean(), corrected.mean())]
    errors = [f"{100 * np.sqrt(np.mean((value - truth) ** 2)):.1f}" for value in (read, corrected)]
    shares = [f"{share:.0%}" for share in (np.mean(read > 0), np.mean(corrected > 0))]
    return "| " + " | ".join([case.name, *points, *errors, *shares, f"{np.nanmean(covers):.1%}"]) + " |"


def _sites_row(sites: int, arms: int, studies: int) -> str:
    chance = np.random.default_rng(0)
    rows = []
    for _ in range(studies):
        noisy = a_study_of_few_sites(chance, [0.5] * arms, sites, own=0.5)
        gain = find_gain(noisy.study, Ledger(trials=noisy.trials))
        if gain is None or gain.low is None or gain.uncorrected is None:
            rows.append((0.0, 0.0, False))
            continue
        rows.append((gain.uncorrected, gain.estimate, gain.low > 0))
    read, corrected, wrong = np.array(rows, dtype=float).mean(axis=0)
    return f"| {sites} | {arms} | {100 * read:+.1f} | {100 * corrected:+.1f} | {wrong:.1%} |"


def _concordance_row(audited: int, correlation: float, studies: int) -> str:
    """Simulate studies of 24 arms, five of which are promoted; 0.588 is where seven of ten pairs are ordered alike."""
    from builders.ledgers import a_study, continued, paused, stopped  # the tests' builders
    from study_operator.ledger.trial import Continuation

    chance = np.random.default_rng(0)
    study = a_study(promotion=Promotion(num_promoted=5, num_audited=audited))
    truth, spearman = 0.5 + np.arcsin(correlation) / np.pi, 6 / np.pi * np.arcsin(correlation / 2)
    rows = []
    for _ in range(studies):
        early = chance.standard_normal(24)
        final = correlation * early + np.sqrt(1 - correlation**2) * chance.standard_normal(24)
        order = sorted(range(1, 24), key=lambda i: -early[i])
        kept = len({*order[:5]} & {*sorted(range(1, 24), key=lambda i: -final[i])[:5]})
        drawn = chance.choice(order[5:], audited, replace=False).tolist()
        trials = [continued(paused(i, float(early[i])), float(final[i])) for i in order[:5]]
        trials.append(continued(paused(0, float(early[0])), float(final[0]), Continuation.BASELINE))
        trials += [
            continued(paused(i, float(early[i])), float(final[i]), Continuation.AUDITED, audited / 18) for i in drawn
        ]
        trials += [stopped(i, float(early[i])) for i in order[5:] if i not in drawn]
        found = measure_agreement(study, trials)
        rows.append(
            (
                found.concordance or 0.0,
                found.concordance_low <= truth <= found.concordance_high,
                found.concordance_high - found.concordance_low,
                found.concordance_90[0] <= truth <= found.concordance_90[1],
                found.spearman_90[0] <= spearman <= found.spearman_90[1],
                found.top_kept is not None and found.top_kept.low <= kept <= found.top_kept.high,
                found.is_reliable is True,
                found.is_reliable is False,
            )
        )
    mean, covered, width, *rest = np.array(rows, dtype=float).mean(axis=0)
    cells = [f"{audited}", f"{correlation:g}", f"{mean:.2f} (true {truth:.2f})", f"{covered:.1%}", f"{width:.2f}"]
    return f"| {' | '.join([*cells, *(f'{share:.1%}' for share in rest)])} |"


def _concordance_row_of_three_rungs(correlation: float, studies: int) -> str:
    """Simulate studies whose trials are ranked twice: each measurement is the one before and something new."""
    from builders.ledgers import a_measurement, a_study, a_trial, of_three_rungs  # the tests' builders
    from study_operator.ledger.trial import Continuation, Trial, TrialState

    chance = np.random.default_rng(0)
    study = of_three_rungs(a_study(baseline=None), num_promoted=3, num_audited=3, promoted_percents=(33,))
    arms, truth = 24, 0.5 + np.arcsin(correlation**2) / np.pi
    halved, promoted = study.count_promoted(arms)

    def to_the_end(index: int, how: Continuation, probability: float, audited_at: int | None) -> Trial:
        steps = (20, 50, 100)
        measurements = (a_measurement(rung, float(v), step=steps[rung]) for rung, v in enumerate(values[:, index]))
        return a_trial(
            index + 1,
            state=TrialState.COMPLETED,
            rung=2,
            continuation=how,
            inclusion_probability=probability,
            audited_at=audited_at,
            measurements=tuple(measurements),
        )

    covered, widths, means = 0, [], []
    for _ in range(studies):
        values = chance.standard_normal((3, arms))
        for rung in (1, 2):
            values[rung] = correlation * values[rung - 1] + np.sqrt(1 - correlation**2) * values[rung]
        first = sorted(range(arms), key=lambda i: -values[0, i])
        second = sorted(first[:halved], key=lambda i: -values[1, i])
        trials = [to_the_end(i, Continuation.PROMOTED, 1.0, None) for i in second[:promoted]]
        for audited_at, rest in enumerate((first[halved:], second[promoted:])):
            drawn = chance.choice(rest, 3, replace=False).tolist()
            trials += [to_the_end(i, Continuation.AUDITED, 3 / len(rest), audited_at or None) for i in drawn]
        agreement = measure_agreement(study, trials, 0)
        means.append(agreement.concordance or 0.0)
        widths.append(agreement.concordance_high - agreement.concordance_low)
        covered += agreement.concordance_low <= truth <= agreement.concordance_high
    reported = f"{np.mean(means):.2f} (true {truth:.2f})"
    return f"| {correlation:g} | {reported} | {covered / studies:.1%} | {np.mean(widths):.2f} |"


if __name__ == "__main__":
    main()
