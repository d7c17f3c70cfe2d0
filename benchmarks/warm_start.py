"""What a search gains by an earlier one, on recorded arms: where the tasks are alike, and where they are not.

    PYTHONPATH=operator:trainer python benchmarks/warm_start.py --seeds 30

Each search of `NUM_TRIALS` trials, the operator's own with all its parts, is run three times on the same seed: without
an earlier study; with one of another of TaskSet's tasks; and with the same one turned upside down, in which what was
worst is called best. An earlier study is random arms of its task. A search's cost is the trials that it begins until
one would at its full length be among the best `TARGET` of all recorded arms; one that begins none such counts as one
more trial than it has. The distance is the best begun arm's from the floor, on the other data.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Before numpy and torch are imported.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import numpy as np

from replay import ax
from search.product import a_study, draw_arm, run_study
from search.recorded import RecordedArms, read_tables
from study_operator.spec.study import EarlierStudy, EarlierTrial, Promotion

NUM_TRIALS, SLOTS, RUNG = 12, 4, 0.2
EARLIER_TRIALS = 24
TARGET = 0.1
"""Share of all recorded arms."""
TABLES = (
    "patch32_GRU64_avg_bs128",
    "patch32_IRNN64_relu_last_bs128",
    "patch32_LSTM128_bs128",
    "patch32_VRNN64_relu_avg_bs128",
)
RESULTS = Path(__file__).resolve().parent.parent / "runs" / "benchmarks" / "warm-start.jsonl"


def an_earlier_study(table: RecordedArms, seed: int, *, is_upside_down: bool = False) -> EarlierStudy:
    """Return what random arms measured on a task."""
    trials = []
    for index in range(EARLIER_TRIALS):
        arm = draw_arm(table.parameters, 1000 + seed, index)
        measured = table.runs[table.nearest(arm)].measure(RUNG)
        merit = -math.inf if measured is None else table.objective.merit(measured[1])
        trials.append(EarlierTrial(arm=arm, merit=merit))
    if is_upside_down:
        worst = min(t.merit for t in trials if math.isfinite(t.merit)) - 1
        trials = [replace(t, merit=-(t.merit if math.isfinite(t.merit) else worst)) for t in trials]
    best = max(trials, key=lambda trial: trial.merit)
    return EarlierStudy(best=best.arm, trials=tuple(trials))


def count_trials(table: RecordedArms, rows: Sequence[int]) -> tuple[int, float]:
    """Return how many trials it takes until one reaches the target, and how far the best is from the floor at last."""
    merits = [
        -math.inf if r.diverged_at is not None else table.objective.merit(float(r.values[-1])) for r in table.drawn
    ]
    target = np.quantile([m for m in merits if math.isfinite(m)], 1 - TARGET)
    reached = next((place for place, row in enumerate(rows, start=1) if merits[row] >= target), NUM_TRIALS + 1)
    best = max(rows, key=lambda row: merits[row])
    return reached, table.distance(best)


def main() -> None:
    """Run what is not yet in the file, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=30)
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    logging.getLogger("study_operator").setLevel(logging.ERROR)
    tables = read_tables(TABLES)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    done = {(cell["seed"], cell["way"]) for cell in known}
    designer = ax()
    for seed in range(given.seeds):
        # Each seed another pair of tasks.
        table = tables[seed % len(tables)]
        other = tables[(seed % len(tables) + 1 + seed // len(tables) % (len(tables) - 1)) % len(tables)]
        ways = {
            "without": (),
            "alike": (an_earlier_study(other, seed),),
            "upside down": (an_earlier_study(other, seed, is_upside_down=True),),
        }
        for way, earlier in ways.items():
            if (seed, way) in done:
                continue
            study = a_study(table, seed=seed, slots=SLOTS, num_trials=NUM_TRIALS, promotion=Promotion(num_promoted=3))
            trace = run_study(table, replace(study, earlier=earlier), designer)
            reached, distance = count_trials(table, trace.rows)
            cell = {"seed": seed, "way": way, "table": table.name, "reached": reached, "distance": distance}
            with given.results.open("a") as file:
                file.write(json.dumps(cell) + "\n")
            known.append(cell)
            print(cell, flush=True)
    print_table(known)


def print_table(cells: Sequence[dict[str, object]]) -> None:
    """Print trials and distance of each way, and their differences from the search without, paired by seed."""
    print("| earlier study | seeds | trials until the target | fewer | distance | nearer |\n|---|---|---|---|---|---|")
    by_way: dict[object, dict[object, tuple[float, float]]] = {}
    for cell in cells:
        by_way.setdefault(cell["way"], {})[cell["seed"]] = (float(str(cell["reached"])), float(str(cell["distance"])))
    chance = np.random.default_rng(0)
    for way, found in by_way.items():
        seeds = sorted(found.keys() & by_way["without"].keys(), key=str)
        own = np.array([found[seed] for seed in seeds])
        gain = np.array([by_way["without"][seed] for seed in seeds]) - own
        draws = gain[chance.integers(len(seeds), size=(4000, len(seeds)))].mean(axis=1)
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        fewer = f"{gain[:, 0].mean():+.1f} ({low[0]:+.1f} to {high[0]:+.1f})"
        nearer = f"{1000 * gain[:, 1].mean():+.0f} ({1000 * low[1]:+.0f} to {1000 * high[1]:+.0f})"
        row = f"{len(seeds)} | {own[:, 0].mean():.1f} | {fewer} | {1000 * own[:, 1].mean():.0f} | {nearer}"
        print(f"| {way} | {row} |")


if __name__ == "__main__":
    main()
