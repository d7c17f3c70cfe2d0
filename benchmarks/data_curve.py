"""Whether the fit of a data curve holds what it says: on real loss curves, and on simulated accuracy curves.

    PYTHONPATH=operator:trainer python benchmarks/data_curve.py [--studies 40]

`data/llm-data-curves`: 30 language models on three tasks, each fine-tuned on 200 to 1,638,400 samples. A curve is
fitted to the eight sizes up to 25,600 and compared with what was measured on more.

The simulated studies have three seeds of six sizes from 200 to 6,400 and 40 sites of uneven size, 400 questions in all.
All runs answer the same questions, sites differ in how hard they are, and seeds in how well they train. The truth is
the accuracy on a new site, so that the choice of sites counts as noise, too. Two curves are compared where variants of
training pages stand for a known multiple of the data. Prints four Markdown tables.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from study_operator.ledger.curve_comparison import CurveComparison, compare_data_curves
from study_operator.ledger.data_curve import HORIZON, DataCurve, Shape, SizeRun, fit_data_curve
from study_operator.spec.metrics import Direction

CURVES = Path(__file__).resolve().parent / "data" / "llm-data-curves"
FITTED_UP_TO = 25_600
CHOSEN_OF_FOUR = 2
"""Of each four curves so many were looked at when `FORM_FACTOR` was chosen."""

SIZES = (200, 400, 800, 1600, 3200, 6400)
SEEDS = 3
SITES = 40
QUESTIONS = 400
LEAST_GAIN = 0.02
"""Of a doubling, two points of accuracy."""
SITE_DEVIATION = 0.5
"""Of a site's difficulty, in logits."""
SEED_DEVIATION = 0.08
"""Of a run's, in logits: one or two points of accuracy."""
CARRIED = 0.7
"""Share of a question's luck that is the same in every run."""
SHARED = 0.5
"""Share of the variance of seeds that is the same in a run without variants and in its pair: they see the same part."""
TIMES = (1.0, 2.0, 4.0)
"""How many times the data variants stand for."""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--studies", type=int, default=40, help="simulated studies of each truth")
    arguments = options.parse_args()
    began = time.process_time()
    print_real_curves()
    print_simulated(arguments.studies)
    print_compared(arguments.studies)
    print(f"\n{time.process_time() - began:.0f} s of CPU", file=sys.stderr)


# Real loss curves.


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One model on one task."""

    task: str
    model: str
    loss_by_size: dict[int, float]


def read_loss_curves(folder: Path = CURVES) -> list[LossCurve]:
    """Return the curves, without the untrained model."""
    curves = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                losses = {int(size): float(loss) for size, loss in row.items() if size.isdigit() and int(size) > 0}
                curves.append(LossCurve(task=path.stem, model=row["config name"], loss_by_size=losses))
    return curves


def fit_losses(curve: LossCurve) -> DataCurve:
    """Fit a curve up to a size."""
    runs = [
        SizeRun(samples=size, seed=0, sites={"": (loss, 1)})
        for size, loss in curve.loss_by_size.items()
        if size <= FITTED_UP_TO
    ]
    return fit_data_curve(runs, direction=Direction.MINIMIZE, is_share=False, least_gain=0.02)


def print_real_curves() -> None:
    """Print errors and coverage by how many times the data a fit is extrapolated to."""
    curves = read_loss_curves()
    fits = [fit_losses(curve) for curve in curves]
    print("| times the data | median error | 90th percentile | 90 % interval covers | other half | width |")
    print("|---|---|---|---|---|---|")
    for size in [size for size in curves[0].loss_by_size if size > FITTED_UP_TO]:
        rows = []
        for at, (curve, fit) in enumerate(zip(curves, fits, strict=True)):
            predicted, loss = fit.predict(size), curve.loss_by_size[size]
            if predicted is not None:
                covers = predicted.low <= loss <= predicted.high
                width = (predicted.high - predicted.low) / loss
                rows.append((abs(predicted.value - loss) / loss, covers, width, at % 4 >= CHOSEN_OF_FOUR))
        error, covers, width, is_other = np.array(rows, dtype=float).T
        print(
            f"| {size // FITTED_UP_TO} | {np.median(error):.1%} | {np.quantile(error, 0.9):.1%} "
            f"| {np.mean(covers):.0%} | {np.mean(covers[is_other > 0]):.0%} | {np.median(width):.1%} |"
        )
    counts = Counter(fit.saturation.shape for fit in fits)
    print(f"\nA doubling gains 0.02 nats: {', '.join(f'{shape} {count}' for shape, count in counts.most_common())}.")


# Simulated accuracy curves.


@dataclass(frozen=True, kw_only=True)
class Truth:
    """How accuracy depends on the number of samples, on a site of middling difficulty."""

    name: str
    accuracy: Callable[[np.ndarray], np.ndarray]


TRUTHS = (
    Truth(name="saturates at once: 80 % throughout", accuracy=lambda n: 0.8 + 0 * n),
    Truth(name="saturates within the sizes: exponential, 60 to 88 %", accuracy=lambda n: 0.88 - 0.4 * np.exp(-n / 500)),
    Truth(name="saturates within: hyperbola, 50 to 90 %", accuracy=lambda n: 0.92 - 0.42 * 300 / (200 + n)),
    Truth(name="saturates near the largest: power 0.7", accuracy=lambda n: 0.9 - 12 * n**-0.7),
    Truth(name="saturates beyond the largest: power 0.3", accuracy=lambda n: 0.98 - 2.2 * n**-0.3),
    Truth(name="does not: 4.5 points a doubling", accuracy=lambda n: 0.55 + 0.045 * np.log2(n / 200)),
    Truth(name="does not: 4 points a doubling after 800", accuracy=lambda n: 0.6 + 0.04 * np.log2(1 + n / 800)),
    Truth(name="turns down: 84 % at 1,600, 76 % at 6,400", accuracy=lambda n: 0.84 - 0.04 * np.abs(np.log2(n / 1600))),
)  # fmt: skip


def on_new_sites(truth: Truth, samples: np.ndarray) -> np.ndarray:
    """Return the accuracy over sites, by Gauss and Hermite's quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    logits = _logit(np.clip(truth.accuracy(samples), 0.01, 0.995))
    deviation = math.hypot(SITE_DEVIATION, SEED_DEVIATION)
    return np.sum(_expit(logits[:, None] + deviation * nodes) * weights, axis=1) / weights.sum()


def true_saturation(truth: Truth) -> float:
    """Return the size beyond which no doubling gains as much; infinite where it lies a hundred times beyond."""
    sizes = np.geomspace(1, 100 * SIZES[-1], 4000)
    gains = on_new_sites(truth, 2 * sizes) - on_new_sites(truth, sizes)
    enough = np.flatnonzero(gains >= LEAST_GAIN)
    if not len(enough):
        return 0.0
    return math.inf if enough[-1] == len(sizes) - 1 else float(sizes[enough[-1]])


class Validation:
    """One study's validation questions: how many each site has, and how hard they are."""

    def __init__(self, chance: np.random.Generator) -> None:
        self.questions = 1 + chance.multinomial(QUESTIONS - SITES, chance.dirichlet(np.ones(SITES)))
        self.site_of = np.repeat(np.arange(SITES), self.questions)
        self.difficulty = SITE_DEVIATION * chance.standard_normal(SITES)
        self.luck = chance.standard_normal(QUESTIONS)

    def answer(self, accuracy: np.ndarray, luck: float, chance: np.random.Generator) -> dict[str, tuple[float, int]]:
        """Return what a run adds at each site, with the luck of its seed in deviations."""
        logit = _logit(np.clip(accuracy, 0.01, 0.995)) + SEED_DEVIATION * luck
        own = math.sqrt(CARRIED) * self.luck + math.sqrt(1 - CARRIED) * chance.standard_normal(QUESTIONS)
        right = _normal(own) < _expit(logit + self.difficulty[self.site_of])
        counts = np.bincount(self.site_of, weights=right, minlength=SITES)
        return {f"s{i}": (float(counts[i]), int(self.questions[i])) for i in range(SITES)}


def simulate(truth: Truth, chance: np.random.Generator) -> list[SizeRun]:
    """Return one study's runs."""
    validation, runs = Validation(chance), []
    for samples in SIZES:
        accuracy = truth.accuracy(np.array([float(samples)]))
        for seed in range(SEEDS):
            luck = chance.standard_normal()
            runs.append(SizeRun(samples=samples, seed=seed, sites=validation.answer(accuracy, luck, chance)))
    return runs


def simulate_pair(truth: Truth, times: float, chance: np.random.Generator) -> tuple[list[SizeRun], list[SizeRun]]:
    """Return one study's runs without variants, and with variants that stand for so many times the data."""
    validation, found = Validation(chance), ([], [])
    for samples in SIZES:
        for seed in range(SEEDS):
            shared = math.sqrt(SHARED) * chance.standard_normal()
            for runs, factor in zip(found, (1.0, times), strict=True):
                luck = shared + math.sqrt(1 - SHARED) * chance.standard_normal()
                sites = validation.answer(truth.accuracy(np.array([factor * samples])), luck, chance)
                runs.append(SizeRun(samples=samples, seed=seed, sites=sites))
    return found


def print_simulated(studies: int) -> None:
    """Print what is claimed of each truth, how much of it is wrong, and what intervals cover."""
    print(f"\n| truth | its saturation point | {' | '.join(Shape)} | wrong claims | point: interval covers |")
    print("|---|---|" + "---|" * (len(Shape) + 2))
    rows = []
    for number, truth in enumerate(TRUTHS):
        chance = np.random.default_rng(number)
        point = true_saturation(truth)
        fits = [
            fit_data_curve(
                simulate(truth, chance), direction=Direction.MAXIMIZE, is_share=True, least_gain=LEAST_GAIN, seed=seed
            )
            for seed in range(studies)
        ]
        rows.append((truth, fits))
        counts = Counter(fit.saturation.shape for fit in fits)
        wrong = sum(is_wrong(fit, point, turns=truth.name.startswith("turns")) for fit in fits)
        claimed = [fit.saturation for fit in fits if fit.saturation.shape is Shape.SATURATES]
        covers = sum(s.low <= max(point, SIZES[0]) <= s.high for s in claimed)
        shares = " | ".join(f"{counts[shape] / studies:.0%}" for shape in Shape)
        covered = f"{covers} of {len(claimed)}" if claimed else ""
        print(f"| {truth.name} | {_say_size(point)} | {shares} | {wrong / studies:.0%} | {covered} |", flush=True)

    print("\n| truth | error at the largest size, 2×, 4×: median, points | 90 % interval covers | its median width |")
    print("|---|---|---|---|")
    for truth, fits in rows:
        cells = [[], [], []]
        for times in (1, 2, HORIZON):
            size = times * SIZES[-1]
            value = on_new_sites(truth, np.array([size]))[0]
            predictions = [p for fit in fits if (p := fit.predict(size)) is not None]
            if predictions:
                cells[0].append(f"{100 * np.median([abs(p.value - value) for p in predictions]):.1f}")
                cells[1].append(f"{np.mean([p.low <= value <= p.high for p in predictions]):.0%}")
                cells[2].append(f"{100 * np.median([p.high - p.low for p in predictions]):.1f}")
        print(f"| {truth.name} | {' | '.join(', '.join(cell) for cell in cells)} |")


def print_compared(studies: int) -> None:
    """Print how often a known shift is found, and what the intervals of shift and gains cover."""
    print(
        "\n| truth | variants stand for, times the data | that is told | its 90 % interval covers | its median ends "
        "| shift | that is told | its 90 % interval covers | its median ends | gains: interval covers "
        "| their median width, points |"
    )
    print("|---|" + "---|" * 10)
    for number, truth in enumerate(TRUTHS[1:5]):
        for times in TIMES:
            chance = np.random.default_rng(100 + number)
            settings = {"direction": Direction.MAXIMIZE, "is_share": True, "least_gain": LEAST_GAIN}
            found = [
                compare_data_curves(*simulate_pair(truth, times, chance), seed=seed, **settings)
                for seed in range(studies)
            ]
            worths = [(c.worth.low, c.worth.high) for c in found if c.worth.times is not None]
            shifts = [(c.shift.low, c.shift.high) for c in found if c.shift.ratio is not None]
            cells = [
                f"{times:g}",
                *_describe_intervals(worths, times, studies),
                f"{1 / times:g}",
                *_describe_intervals(shifts, 1 / times, studies),
                *_describe_gains(truth, times, found),
            ]
            print(f"| {truth.name} | {' | '.join(cells)} |", flush=True)


def _describe_intervals(intervals: Sequence[tuple[float, float]], true: float, studies: int) -> list[str]:
    covers = sum(low <= true <= high for low, high in intervals)
    ends = " to ".join(f"{end:.2f}" for end in np.median(intervals, axis=0)) if intervals else ""
    return [f"{len(intervals)} of {studies}", f"{covers} of {len(intervals)}" if intervals else "", ends]


def _describe_gains(truth: Truth, times: float, found: Sequence[CurveComparison]) -> list[str]:
    sizes = np.array(SIZES, dtype=float)
    gains = on_new_sites(truth, times * sizes) - on_new_sites(truth, sizes)
    pairs = [(gain, true) for c in found for gain, true in zip(c.gains, gains, strict=True)]
    covers = np.mean([gain.low <= true <= gain.high for gain, true in pairs])
    return [f"{covers:.0%}", f"{100 * np.median([gain.high - gain.low for gain, _ in pairs]):.1f}"]


def is_wrong(fit: DataCurve, point: float, *, turns: bool) -> bool:
    """Say whether a claim is false: none is made where a point is not identifiable."""
    saturation = fit.saturation
    match saturation.shape:
        case Shape.SATURATES:
            return turns or not saturation.low <= max(point, SIZES[0]) <= saturation.high
        case Shape.STILL_GAINS:
            return turns or point < SIZES[-1]
        case Shape.TURNS_DOWN:
            return not turns
        case _:
            return False


def _say_size(size: float) -> str:
    return "none" if math.isinf(size) else f"{size:,.0f}" if size > SIZES[0] else f"below {SIZES[0]}"


def _logit(share: np.ndarray) -> np.ndarray:
    return np.log(share / (1 - share))


def _expit(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _normal(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(values) / math.sqrt(2)))


if __name__ == "__main__":
    main()
