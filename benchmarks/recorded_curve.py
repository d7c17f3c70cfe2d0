"""How accuracy grows with the training data on the bookings, and what augmentation does to that: recorded runs, fitted.

    PYTHONPATH=operator:trainer python benchmarks/recorded_curve.py

The runs are those of `record_arms.py`, `data-curve` and `augmentation`: one arm on nested parts, of several seeds. All
of them answer the same questions, those of the validation set and of the test set, and nothing was chosen by either.
Accuracy is the product's: the mean over attributes of the share of their values that were answered right. Fitted and
compared by the product's own code. Prints Markdown tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from study_operator.ledger.curve_comparison import compare_data_curves
from study_operator.ledger.data_curve import DataCurve, SizeRun, fit_data_curve
from study_operator.ledger.resampling import CONFIDENCE
from study_operator.spec.metrics import Direction

TABLES = Path(__file__).resolve().parent / "data" / "lora-arms"
LEAST_GAINS = (0.01, 0.02)
"""Of a doubling: one and two points of accuracy."""

Row = Mapping[str, Any]


def main() -> None:
    """Print what there is."""
    for recording in ("data-curve", "augmentation"):
        path = TABLES / f"{recording}-answers.parquet"
        if not path.exists():
            print(f"{recording}: not recorded yet")
            continue
        rows: list[Row] = pq.read_table(path).to_pylist()
        for is_augmented in sorted({row["is_augmented"] for row in rows}):
            print(f"\n{recording}{', with variants' if is_augmented else ''}\n")
            print_curve([row for row in rows if row["is_augmented"] == is_augmented])
        if len({row["is_augmented"] for row in rows}) == 2:
            print_comparison(rows)


def print_curve(rows: Sequence[Row]) -> None:
    """Print a curve's sizes, where it saturates, and what its smaller sizes say of its largest."""
    runs = read_runs(rows)
    fits = [fit(runs, least_gain) for least_gain in LEAST_GAINS]
    attributes = sorted({row["attribute"] for row in rows})
    interval = f"{CONFIDENCE:.0%} interval"
    heads = [
        "samples",
        "seeds",
        "accuracy",
        interval,
        "lowest to highest",
        "wrong where there is no value",
        *attributes,
    ]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for size in fits[0].sizes:
        of_size = [row for row in rows if row["train_samples"] == size.samples]
        values = [run.value for run in runs if run.samples == size.samples]
        ends = "–" if size.low is None or size.high is None else f"{size.low:.1%} to {size.high:.1%}"
        false = share(not row["is_right"] for row in of_size if not row["has_value"])
        cells = [share(r["is_right"] for r in of_size if r["has_value"] and r["attribute"] == a) for a in attributes]
        print(
            f"| {size.samples:,} | {size.runs} | {size.mean:.1%} | {ends} | {min(values):.1%} to {max(values):.1%} "
            f"| {false} | {' | '.join(cells)} |"
        )
    print()
    for found, least_gain in zip(fits, LEAST_GAINS, strict=True):
        print(f"Saturation at {least_gain:g} a doubling: {describe(found)}")
    print_extrapolation(runs)


def print_extrapolation(runs: Sequence[SizeRun]) -> None:
    """Print what a fit without the largest size says of it."""
    largest = max(run.samples for run in runs)
    predicted = fit([run for run in runs if run.samples < largest], LEAST_GAINS[0]).predict(largest)
    measured = fmean(run.value for run in runs if run.samples == largest)
    if predicted is not None:
        ends = f"{predicted.low:.1%} to {predicted.high:.1%}"
        print(f"Fitted without {largest:,}: {predicted.value:.1%} ({ends}) there, and {measured:.1%} was measured.")


def print_comparison(rows: Sequence[Row]) -> None:
    """Print what variants gain at each size, what they stand for in data, and how they move the saturation point."""
    plain, augmented = (read_runs([row for row in rows if row["is_augmented"] == kind]) for kind in (False, True))
    found = compare_data_curves(
        plain, augmented, direction=Direction.MAXIMIZE, is_share=True, least_gain=LEAST_GAINS[0]
    )
    print(f"\n| samples | pairs | gain by variants, points | {CONFIDENCE:.0%} interval |\n|---|---|---|---|")
    for gain in found.gains:
        ends = "–" if gain.low is None or gain.high is None else f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        print(f"| {gain.samples:,} | {gain.pairs} | {100 * gain.gain:+.1f} | {ends} |")
    worth, shift = found.worth, found.shift
    times = worth.message or describe_ends(worth.times, worth.low, worth.high)
    moved = shift.message or describe_ends(shift.ratio, shift.low, shift.high)
    print(f"\nVariants stand for, times the data: {times}\nThe saturation point moves by: {moved}")


def describe_ends(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval."""
    return f"{value:.2g} ({low:.2g} to {high:.2g})"


def read_runs(rows: Sequence[Row]) -> list[SizeRun]:
    """Return each run with what every message adds to its accuracy, in which each attribute weighs the same."""
    by_run: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["has_value"]:
            by_run[row["train_samples"], row["seed"]].append(row)
    runs = []
    for (samples, seed), asked in by_run.items():
        counts = Counter(row["attribute"] for row in asked)
        sites: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for row in asked:
            weight = len(asked) / len(counts) / counts[row["attribute"]]
            total, before = sites[row["site"]]
            sites[row["site"]] = total + weight * row["is_right"], before + weight
        runs.append(SizeRun(samples=samples, seed=seed, sites=dict(sites)))
    return runs


def fit(runs: Sequence[SizeRun], least_gain: float) -> DataCurve:
    """Fit accuracy."""
    return fit_data_curve(runs, direction=Direction.MAXIMIZE, is_share=True, least_gain=least_gain)


def describe(found: DataCurve) -> str:
    """Return the saturation point with its interval, or why there is none."""
    saturation = found.saturation
    if saturation.samples is None:
        return f"{saturation.shape}: {saturation.message}"
    high = "more" if saturation.high is None else f"{saturation.high:,.0f}"
    return f"{saturation.samples:,.0f} ({saturation.low or 0:,.0f} to {high})"


def share(rights: Any) -> str:
    """Return how many are true."""
    found = list(rights)
    return f"{fmean(found):.1%}" if found else "–"


if __name__ == "__main__":
    main()
