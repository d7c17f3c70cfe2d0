"""How much of what a LoRA arm measures is its seed: the recorded arms that were trained under several.

    PYTHONPATH=operator:trainer python benchmarks/arm_seeds.py

Each column is the validation accuracy at a percentage of the full length, or the test accuracy at its end, of each seed
in turn. Below: the standard deviation over seeds (pooled over arms), and that over the arms' means. All seeds answer
the same questions. Prints Markdown tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import record_arms
from search.recorded import average_over_attributes, count_recorded

PERCENTS = (5, 20, 50, 100)

Seeds = Mapping[int, float]
"""By seed; one that diverged before is 0."""


def main() -> None:
    """Print a table for each recording that has arms of several seeds."""
    for recording in record_arms.BATCH_SIZES:
        if count_recorded(recording):
            arms = read(recording)
            if arms:
                print_table(recording, arms)


def read(recording: str) -> Mapping[int, Mapping[str, Seeds]]:
    """Return what the arms of several seeds measured, by arm and column."""

    def rows(table: str) -> list[dict[str, Any]]:
        path = record_arms.TABLES / f"{recording}-{table}.parquet"
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found

    seeds: dict[int, list[int]] = {}
    for row in rows("arms"):
        seeds.setdefault(row["arm"], []).append(row["seed"])
    measured = {(row["arm"], row["seed"], row["percent"]): row["accuracy"] for row in rows("measurements")}
    answers: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows("answers"):
        if (row["split"], row["percent"], row["has_value"]) == ("test", 100, True):
            answers.setdefault((row["arm"], row["seed"]), []).append(row)

    def columns(arm: int) -> Mapping[str, Seeds]:
        of = sorted(seeds[arm])
        early = {f"{percent} %": {s: measured.get((arm, s, percent), 0.0) for s in of} for percent in PERCENTS}
        return early | {"test": {s: average_over_attributes(answers.get((arm, s), [])) for s in of}}

    return {arm: columns(arm) for arm in sorted(seeds) if len(seeds[arm]) > 1}


def print_table(recording: str, arms: Mapping[int, Mapping[str, Seeds]]) -> None:
    """Print the arms, and how seeds and arms differ."""
    names = list(next(iter(arms.values())))
    print(f"| {recording}: arm | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for arm, columns in arms.items():
        print(f"| {arm} | {' | '.join(', '.join(f'{v:.1%}' for v in columns[name].values()) for name in names)} |")
    for title, deviation in (("between seeds", deviate_by_seed), ("between arms", deviate_by_arm)):
        cells = [f"{100 * deviation([list(of[name].values()) for of in arms.values()]):.1f} points" for name in names]
        print(f"| *standard deviation {title}* | {' | '.join(cells)} |")


def deviate_by_seed(values: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation over the seeds of an arm, pooled over arms."""
    return math.sqrt(sum(len(of) * float(np.var(of)) for of in values) / sum(len(of) - 1 for of in values))


def deviate_by_arm(values: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation of the arms' means."""
    return float(np.std([np.mean(of) for of in values], ddof=1))


if __name__ == "__main__":
    main()
