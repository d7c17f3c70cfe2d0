"""Whether the optimizer finds good arms sooner than random search, on real LoRA runs.

    PYTHONPATH=operator:trainer python benchmarks/optimizer.py
    PYTHONPATH=operator:trainer python benchmarks/optimizer.py --models 6 --seeds 2 --parallel 4

``data/lora-sft-sweep`` holds real runs over learning rate × rank for 35 models, diverged ones among them. Each model is
a table: an arm costs one look into it and no training. A study asks for 16 arms, one after the other; a run that
diverged measures as the worst value seen so far, as in a real study. Regret is the best test NLL found minus the best
in the table, in thousandths of a nat per token. Random search draws without replacement; its mean is over 2,000 orders.

A cell that was run more than once counts with its mean. Only tables with every cell of their grid, at least 18 of them,
are used: elsewhere a proposal could ask for a run that nobody made, and on a smaller grid 16 trials see nearly all.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study_operator.ledger.trial import Measurement, Origin, Trial, TrialState
from study_operator.spec.metrics import Direction
from study_operator.spec.study import Arm, Categorical, Data, Objective, Parameter, Promotion, Storage, Study
from trial_trainer.contract import BaseModel, LabelSource, Split, TrainerSettings

if TYPE_CHECKING:
    from study_operator.optimizer.designer import Designer

SWEEP = Path(__file__).resolve().parent / "data" / "lora-sft-sweep" / "sweep.csv"
READ_AFTER_TRIALS = (4, 8, 12, 16)
SMALLEST_TABLE = 18
RANDOM_ORDERS = 2_000

Cell = tuple[float, int]
"""Learning rate and rank."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every run of one model."""

    model: str
    nll_by_cell: Mapping[Cell, float | None]
    """Test NLL in nats per token; None where the run diverged."""

    @property
    def best(self) -> float:
        return min(nll for nll in self.nll_by_cell.values() if nll is not None)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=int, help="tables to use, spread evenly over the file (default: all)")
    options.add_argument("--seeds", type=int, default=5, help="studies on each table")
    options.add_argument("--parallel", type=int, default=1, help="trials that run at the same time")
    arguments = options.parse_args()

    tables = read_tables(SWEEP)
    if arguments.models and arguments.models < len(tables):
        tables = [tables[i * len(tables) // arguments.models] for i in range(arguments.models)]

    # Before numpy and torch are imported.
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    from study_operator.optimizer.ax import AxDesigner

    started = time.perf_counter()
    print("| model | cells (diverged) | search |", " | ".join(f"after {n}" for n in READ_AFTER_TRIALS), "|")
    print("|---|---:|---|" + "---:|" * len(READ_AFTER_TRIALS))
    gains: dict[int, list[float]] = defaultdict(list)
    totals: dict[str, dict[int, list[float]]] = {"Ax": defaultdict(list), "random": defaultdict(list)}
    for number, table in enumerate(tables):
        # Seeds of its own for each table: the same initial arms on all of them would be luck shared by all.
        seeds = range(number * arguments.seeds, (number + 1) * arguments.seeds)
        by_ax = [study_regrets(AxDesigner(), table, seed, arguments.parallel) for seed in seeds]
        by_chance = [random_regrets(table, seed) for seed in range(RANDOM_ORDERS)]
        diverged = sum(nll is None for nll in table.nll_by_cell.values())
        title = f"{table.model} | {len(table.nll_by_cell)} ({diverged})"
        print_row(title, "Ax", by_ax)
        print_row(" | ", "random", by_chance)
        # A table's mean is one observation: the seeds on it are not independent draws of models.
        for at, trials in enumerate(READ_AFTER_TRIALS):
            ours = statistics.mean(regrets[at] for regrets in by_ax)
            chance = statistics.mean(regrets[at] for regrets in by_chance)
            totals["Ax"][trials].append(ours)
            totals["random"][trials].append(chance)
            gains[trials].append(chance - ours)

    for search, regrets in totals.items():
        cells = " | ".join(mean_with_error(regrets[trials]) for trials in READ_AFTER_TRIALS)
        print(f"| **{len(tables)} models** | | {search} | {cells} |")
    cells = " | ".join(mean_with_error(gains[trials]) for trials in READ_AFTER_TRIALS)
    print(f"| **random − Ax, paired by model** | | | {cells} |")
    print(
        f"\nRegret in mnat/token, mean ± standard error; {arguments.seeds} seeds a model, {arguments.parallel} trials "
        f"at a time, {time.perf_counter() - started:.0f} s."
    )


def print_row(title: str, search: str, regrets: Sequence[Sequence[float]]) -> None:
    cells = " | ".join(mean_with_error([row[at] for row in regrets]) for at in range(len(READ_AFTER_TRIALS)))
    print(f"| {title} | {search} | {cells} |", flush=True)


def mean_with_error(values: Sequence[float]) -> str:
    """Return thousandths, with the standard error of their mean."""
    mean = 1000 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {1000 * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def read_tables(path: Path) -> list[Table]:
    """Return the complete tables, in the order of the file."""
    runs: dict[str, dict[Cell, list[float | None]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = (float(row["lr"]), int(row["lora_rank"]))
            nll = None if row["diverged"] == "1" else float(row["test_nll"])
            runs.setdefault(row["model"], {}).setdefault(cell, []).append(nll)
    tables = []
    for model, cells in runs.items():
        grid = len({rate for rate, _ in cells}) * len({rank for _, rank in cells})
        if len(cells) == grid >= SMALLEST_TABLE:
            tables.append(Table(model=model, nll_by_cell={cell: cell_mean(nlls) for cell, nlls in cells.items()}))
    return tables


def cell_mean(nlls: Sequence[float | None]) -> float | None:
    """Return the mean of a cell's runs; None where one of them diverged."""
    finite = [nll for nll in nlls if nll is not None]
    return statistics.mean(finite) if len(finite) == len(nlls) else None


# The two searches.


def study_regrets(designer: Designer, table: Table, seed: int, parallel: int) -> list[float]:
    """Let a designer run a study on a table; return its regret after each of the counts of trials."""
    study = a_study(table, seed, parallel)
    found: list[float | None] = []
    trials: list[Trial] = []
    while len(found) < max(READ_AFTER_TRIALS):
        missing = min(parallel, max(READ_AFTER_TRIALS) - len(trials)) - (len(trials) - len(found))
        for suggestion in designer.suggest(study, trials, missing):
            trials.append(
                Trial(
                    index=len(trials),
                    arm=suggestion.arm,
                    origin=Origin.SUGGESTED,
                    generation_node=suggestion.generation_node,
                    state=TrialState.RUNNING,
                    total_steps=780,
                )
            )
        # The oldest running trial is done.
        found.append(table.nll_by_cell[cell_of(trials[len(found)].arm)])
        trials = with_measurements(trials, found)
    return regrets(table, found)


def random_regrets(table: Table, seed: int) -> list[float]:
    cells = list(table.nll_by_cell)
    random.Random(seed).shuffle(cells)
    return regrets(table, [table.nll_by_cell[cell] for cell in cells])


def regrets(table: Table, found: Sequence[float | None]) -> list[float]:
    """Return best found minus best there is, in nats; the worst finite run counts where all diverged."""
    worst = max(nll for nll in table.nll_by_cell.values() if nll is not None)
    return [
        min((nll for nll in found[:trials] if nll is not None), default=worst) - table.best
        for trials in READ_AFTER_TRIALS
    ]


# A table as a study.


def with_measurements(trials: Sequence[Trial], found: Sequence[float | None]) -> list[Trial]:
    """Return the trials with what was found; diverged ones at the worst finite value of the study so far."""
    worst = max((nll for nll in found if nll is not None), default=10.0)
    measured = []
    for trial, nll in zip(trials, found, strict=False):
        measurement = Measurement(
            rung=0,
            step=156,
            value=worst if nll is None else nll,
            standard_error=None,
            metrics={},
            checkpoint="" if nll is None else trial.name,
            diverged=nll is None,
        )
        measured.append(
            Trial(**(vars(trial) | {"state": TrialState.PAUSED, "measurements": (measurement,)})),
        )
    return [*measured, *trials[len(found) :]]


def cell_of(arm: Arm) -> Cell:
    return float(arm["learning_rate"]), int(arm["lora_rank"])


def a_study(table: Table, seed: int, parallel: int) -> Study:
    rates = tuple(sorted({rate for rate, _ in table.nll_by_cell}))
    ranks = tuple(sorted({rank for _, rank in table.nll_by_cell}))
    return Study(
        name="sweep",
        namespace="benchmarks",
        uid="0",
        objective=Objective(metric="validation_loss", direction=Direction.MINIMIZE),
        parameters=(
            Parameter(name="learning_rate", search_space=Categorical(values=rates, ordered=True)),
            Parameter(name="lora_rank", search_space=Categorical(values=ranks, ordered=True)),
        ),
        baseline=None,
        num_trials=max(READ_AFTER_TRIALS),
        parallel_trials=parallel,
        max_failed_trials=0,
        seed=seed,
        promotion=Promotion(num_promoted=1),
        data=Data(source="pages", attributes=("name",), labels_from=LabelSource.MARKUP, split=Split()),
        base_model=BaseModel(uri="model"),
        trainer=TrainerSettings(epochs=1, max_length_tokens=512),
        storage=Storage(uri="runs"),
    )


if __name__ == "__main__":
    main()
