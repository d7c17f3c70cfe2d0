"""How much of what a LoRA arm measures is its seed: the recorded arms that were trained under several.

    PYTHONPATH=operator:trainer python benchmarks/arm_seeds.py

Each column is the validation accuracy at a percentage of the full length, the validation loss at the usual rung (nats
per token), or the test accuracy at the end, of each seed in turn. Below: the standard deviation over seeds (pooled over
arms), and that over the arms' means. All seeds answer the same questions. Prints Markdown tables.
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
LOSS, LOSS_AT = "loss at 20 %", 20

Seeds = Mapping[int, float]
"""By seed; the accuracy of one that diverged before is 0, and its loss NaN."""


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
    measured = {(row["arm"], row["seed"], row["percent"]): row for row in rows("measurements")}
    answers: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows("answers"):
        if (row["split"], row["percent"], row["has_value"]) == ("test", 100, True):
            answers.setdefault((row["arm"], row["seed"]), []).append(row)

    def columns(arm: int) -> Mapping[str, Seeds]:
        found: dict[str, Seeds] = {}
        for percent in PERCENTS:
            at = {s: measured.get((arm, s, percent), {}) for s in sorted(seeds[arm])}
            found[f"{percent} %"] = {s: row.get("accuracy", 0.0) for s, row in at.items()}
            if percent == LOSS_AT:
                found[LOSS] = {s: row.get("validation_loss", math.nan) for s, row in at.items()}
        return found | {"test": {s: average_over_attributes(answers.get((arm, s), [])) for s in sorted(seeds[arm])}}

    return {arm: columns(arm) for arm in sorted(seeds) if len(seeds[arm]) > 1}


def print_table(recording: str, arms: Mapping[int, Mapping[str, Seeds]]) -> None:
    """Print the arms, and how seeds and arms differ."""
    names = list(next(iter(arms.values())))
    print(f"| {recording}: arm | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for arm, columns in arms.items():
        cells = [", ".join(say(name, value) for value in columns[name].values()) for name in names]
        print(f"| {arm} | {' | '.join(cells)} |")
    for title, deviation in (("between seeds", deviate_by_seed), ("between arms", deviate_by_arm)):
        cells = [say(name, deviation([list(of[name].values()) for of in arms.values()])) for name in names]
        print(f"| *standard deviation {title}* | {' | '.join(cells)} |")


def say(name: str, value: float) -> str:
    """Return a value of a column in its unit."""
    return f"{value:.2f}" if name == LOSS else f"{value:.1%}"


def deviate_by_seed(values: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation over the seeds of an arm, pooled over arms."""
    return math.sqrt(sum(len(of) * float(np.var(of)) for of in values) / sum(len(of) - 1 for of in values))


def deviate_by_arm(values: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation of the arms' means."""
    return float(np.std([np.mean(of) for of in values], ddof=1))


if __name__ == "__main__":
    main()
