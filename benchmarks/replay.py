"""Whole searches on recorded arms: ours, and what it is compared with, on the same arms and the same simulated clock.

    PYTHONPATH=operator:trainer python benchmarks/replay.py --seeds 50 --methods random-full random-promoted
    PYTHONPATH=operator:trainer python benchmarks/replay.py --seeds 20 --methods ours ax-full --slots 4
    PYTHONPATH=operator:trainer python benchmarks/replay.py --seeds 0           # only prints what is there

Each search on each table under each seed is one line of a file (`--results`), which is kept in the repository: what is
there is not run again, so that a run may be broken off, and seeds added later. After a change of a search its lines are
deleted. The tables are Markdown.
See the package `search` for how it is done.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# Before numpy and torch are imported.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import numpy as np

from search.clock import Search, Trace, replay
from search.product import ChoosingDesigner, RandomDesigner, RememberingDesigner, a_study, run_study
from search.recorded import RecordedArms, read_tables
from search.rivals import Bohb, FullLength, Optuna, PromotingAsha, StoppingAsha, hyperband, successive_halving
from search.scores import (
    Cell,
    Estimate,
    average,
    cell_of,
    compare,
    distance,
    read_cells,
    target_of,
    time_to,
    write_cell,
)
from study_operator.optimizer.designer import Designer
from study_operator.spec.study import EarlyEvaluation, Promotion, RankBy

NUM_TRIALS = 24
TARGETS = (0.05, 0.02)
"""Shares of all recorded arms."""

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "data" / "replays.jsonl"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A study of the operator's."""

    suffix: str
    title: str
    num_trials: int = NUM_TRIALS
    promotion: Promotion
    rungs: tuple[int, ...] = (20,)
    tries_typical_arms: bool = False


VARIANTS = (
    Variant(suffix="", title="20 %", promotion=Promotion(num_promoted=3)),
    Variant(
        suffix="-both",
        title="20 %, by accuracy and loss",
        promotion=Promotion(num_promoted=3, rank_by=RankBy.OBJECTIVE_AND_LOSS),
    ),
    Variant(
        suffix="-audited", title="20 %, 5 promoted and 3 audited", promotion=Promotion(num_promoted=5, num_audited=3)
    ),
    Variant(suffix="-8", title="20 %, 8 trials", num_trials=8, promotion=Promotion(num_promoted=3)),
    Variant(suffix="-12", title="20 %, 12 trials", num_trials=12, promotion=Promotion(num_promoted=3)),
)

# Other early measurements lead to other proposals.
RUNGS = (
    Variant(
        suffix="-rungs",
        title="5 and 20 %",
        promotion=Promotion(num_promoted=3, promoted_percents=(33,)),
        rungs=(5, 20),
    ),
    Variant(
        suffix="-rungs-both",
        title="5 and 20 %, by accuracy and loss",
        promotion=Promotion(num_promoted=3, promoted_percents=(33,), rank_by=RankBy.OBJECTIVE_AND_LOSS),
        rungs=(5, 20),
    ),
)


def begin_with_typical_arms(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return the studies that try typical arms first."""
    return tuple(
        replace(v, suffix=f"{v.suffix}-typical", title=f"{v.title}, typical first", tries_typical_arms=True)
        for v in variants
    )


TYPICAL, TYPICAL_RUNGS = begin_with_typical_arms(VARIANTS), begin_with_typical_arms(RUNGS)

TITLES = {
    **{f"ours{v.suffix}": f"**ours**: Ax, {v.title}" for v in (*TYPICAL, *TYPICAL_RUNGS, *VARIANTS, *RUNGS)},
    "ax-full": "Ax at full length",
    "ax-full-12": "Ax at full length, 12 trials",
    "random-full": "random at full length",
    **{
        f"random-promoted{v.suffix}": f"random, promoted, {v.title}"
        for v in (*VARIANTS, *RUNGS, *TYPICAL, *TYPICAL_RUNGS)
    },
    "optuna-hyperband": "Optuna: TPE, Hyperband",
    "optuna-halving": "Optuna: TPE, successive halving",
    "bohb": "BOHB",
    "asha-promoting": "ASHA, promoting",
    "asha-stopping": "ASHA, stopping",
}

PAIRS = (
    ("random-promoted", "random-full"),
    ("random-promoted-rungs", "random-promoted"),
    ("random-promoted-rungs", "random-full"),
    ("random-promoted-rungs", "asha-promoting"),
    ("random-promoted-typical", "random-promoted"),
    ("ours-typical", "random-promoted-typical"),
    ("ours-8-typical", "random-promoted-8"),
    ("ours-12-typical", "random-promoted-12"),
    ("ours-both-typical", "ours-typical"),
    ("ours-rungs-both-typical", "ours-rungs-typical"),
    ("ours-rungs-both-typical", "ax-full"),
    ("ours-rungs-both-typical", "asha-promoting"),
    ("ours-rungs-both-typical", "bohb"),
    ("ours-rungs", "ax-full"),
    ("ours-8-typical", "ax-full"),
    ("ours-12-typical", "ax-full"),
    ("ours-12-typical", "ax-full-12"),
    ("ours-typical", "ax-full"),
    ("ours-rungs-typical", "ax-full"),
    ("ours-rungs-typical", "asha-promoting"),
    ("ours-rungs-typical", "asha-stopping"),
    ("ours-rungs-typical", "bohb"),
    ("ours-rungs-typical", "optuna-halving"),
    ("ours-rungs-typical", "random-promoted-rungs-typical"),
)
"""What is compared seed by seed."""

Runs = Callable[[RecordedArms, int, int], Iterator[tuple[str, Trace]]]
"""From a table, slots and a seed: each method that comes of one run, with its trace."""


def ours(name: str, designer: Callable[[], Designer], variants: Sequence[Variant] = VARIANTS) -> Runs:
    """Return the operator's studies, which share what a designer has proposed."""

    def run(table: RecordedArms, slots: int, seed: int) -> Iterator[tuple[str, Trace]]:
        remembering = RememberingDesigner(ChoosingDesigner(table=table, designer=designer()))
        for variant in variants:
            if variant.promotion.rank_by is not RankBy.OBJECTIVE and not table.has_losses:
                continue
            study = a_study(
                table,
                seed=seed,
                slots=slots,
                num_trials=variant.num_trials,
                promotion=variant.promotion,
                early_evaluation=EarlyEvaluation(rungs=variant.rungs),
                tries_typical_arms=variant.tries_typical_arms,
            )
            yield name + variant.suffix, run_study(table, study, remembering)

    return run


def full_length(name: str, designer: Callable[[], Designer], num_trials: int = NUM_TRIALS) -> Runs:
    """Return a designer's arms at full length."""

    def run(table: RecordedArms, slots: int, seed: int) -> Iterator[tuple[str, Trace]]:
        study = a_study(table, seed=seed, slots=slots, num_trials=num_trials)
        chooser = ChoosingDesigner(table=table, designer=designer())
        yield name, replay(table, FullLength(table, study, chooser), slots=slots, budget=math.inf)

    return run


def endless(name: str, search: Callable[[RecordedArms, int], Search]) -> Runs:
    """Return a search without an end of its own: it gets the compute of as many full lengths as Ax."""

    def run(table: RecordedArms, slots: int, seed: int) -> Iterator[tuple[str, Trace]]:
        budget = NUM_TRIALS * table.mean_length
        yield name, replay(table, search(table, seed), slots=slots, budget=budget)

    return run


def ax() -> Designer:
    """Return the operator's optimizer, whose import takes seconds."""
    from study_operator.optimizer.ax import AxDesigner

    return AxDesigner()


METHODS: Mapping[str, Runs] = {
    "ours": ours("ours", ax),
    "ours-rungs": ours("ours", ax, RUNGS),
    "ours-typical": ours("ours", ax, TYPICAL),
    "ours-rungs-typical": ours("ours", ax, TYPICAL_RUNGS),
    "ax-full": full_length("ax-full", ax),
    "ax-full-12": full_length("ax-full-12", ax, 12),
    "random-full": full_length("random-full", RandomDesigner),
    "random-promoted": ours("random-promoted", RandomDesigner),
    "random-promoted-rungs": ours("random-promoted", RandomDesigner, RUNGS),
    "random-promoted-typical": ours("random-promoted", RandomDesigner, TYPICAL),
    "random-promoted-rungs-typical": ours("random-promoted", RandomDesigner, TYPICAL_RUNGS),
    "optuna-hyperband": endless("optuna-hyperband", lambda table, seed: Optuna(table, seed, hyperband())),
    "optuna-halving": endless("optuna-halving", lambda table, seed: Optuna(table, seed, successive_halving())),
    "bohb": endless("bohb", Bohb),
    "asha-promoting": endless("asha-promoting", PromotingAsha),
    "asha-stopping": endless("asha-stopping", StoppingAsha),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tables", nargs="+", default=[], help="recorded arms (default: all)")
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=["random-full", "random-promoted"])
    options.add_argument("--slots", nargs="+", type=int, default=[4], help="runs at the same time")
    options.add_argument("--seeds", type=int, default=5, help="of each method on each table; 0 runs nothing")
    options.add_argument("--results", type=Path, default=RESULTS, help="file of what was run, which is added to")
    options.add_argument("--minutes", type=float, default=math.inf, help="of CPU time, after which nothing is begun")
    arguments = options.parse_args()
    # What happens to each trial is a warning or a line of progress for people.
    logging.getLogger("study_operator").setLevel(logging.ERROR)

    tables = read_tables(arguments.tables)
    known = {(c.table, c.method, c.slots, c.seed) for c in read_cells(arguments.results)}
    # Seed by seed, so that what is broken off has as many of each.
    for seed in range(arguments.seeds):
        for slots in arguments.slots:
            for table in tables:
                for method in arguments.methods:
                    if (table.name, method, slots, seed) in known or time.process_time() > 60 * arguments.minutes:
                        continue
                    run_cell(table, method, slots, seed, arguments.results)
    cells = [c for c in read_cells(arguments.results) if c.table in {t.name for t in tables}]
    print_errors(tables)
    for slots in arguments.slots:
        print_scores(tables, [cell for cell in cells if cell.slots == slots], slots)
        print_pairs(tables, [cell for cell in cells if cell.slots == slots], slots)


def run_cell(table: RecordedArms, method: str, slots: int, seed: int, results: Path) -> None:
    """Run a method once, and keep what came of it."""
    began = time.process_time()
    cells = [cell_of(table, name, seed, trace) for name, trace in METHODS[method](table, slots, seed)]
    # The one that the others share a run with is written last: without it they are run again.
    for cell in reversed(cells):
        write_cell(results, cell)
    took = time.process_time() - began
    print(f"{table.name}, {method}, {slots} slots, seed {seed}: {took:.1f} s", file=sys.stderr)


def print_errors(tables: Sequence[RecordedArms]) -> None:
    """Print how well a neighbour stands for an arm."""
    print(
        "| recorded arms | arms | diverged | best 5 % and 2 %, from the floor | neighbour: error | rank correlation |"
    )
    print("|---|---|---|---|---|---|")
    for table in tables:
        error, correlation = table.neighbour_error()
        diverged = sum(run.diverged_at is not None for run in table.drawn)
        near = " and ".join(f"{1000 * target_of(table, share):.1f}" for share in TARGETS)
        print(f"| {table.name} | {len(table.drawn)} | {diverged} | {near} | {1000 * error:.1f} | {correlation:.2f} |")


def print_scores(tables: Sequence[RecordedArms], cells: Sequence[Cell], slots: int) -> None:
    """Print a row for each method and kind of data, with what ours needs next to it: less than 1 is less compute."""
    targets = [{table.name: target_of(table, share) for table in tables} for share in TARGETS]
    shares = " | ".join(f"to the best {100 * share:.0f} % | ours / it" for share in TARGETS)
    print(f"\n{slots} slots\n\n| data | search | seeds | arms | compute | time | {shares} | distance | ours − it |")
    print("|" + "---|" * (8 + 2 * len(TARGETS)))
    for kind in dict.fromkeys(table.kind for table in tables):
        of_method = {m: [c for c in cells if c.kind == kind and c.method == m] for m in TITLES}
        for method, title in TITLES.items():
            # Studies of 8 trials are compared with studies of 8 trials.
            trials = next((v.suffix for v in VARIANTS if v.num_trials != NUM_TRIALS and v.suffix in method), "")
            ours = f"ours{trials}-typical"
            if of_method[method]:
                row = _say_row(of_method[method], [] if method == ours else of_method[ours], targets)
                print(f"| {kind} | {title} | {row} |")


def print_pairs(tables: Sequence[RecordedArms], cells: Sequence[Cell], slots: int) -> None:
    """Print what one change does: searches on the seeds that both have, seed by seed."""
    measures = [time_to({table.name: target_of(table, share) for table in tables}) for share in TARGETS]
    shares = " | ".join(f"to the best {100 * share:.0f} %" for share in TARGETS)
    print(f"\n{slots} slots\n\n| data | search / other | seeds | compute | {shares} | distance − other |")
    print("|" + "---|" * (5 + len(TARGETS)))
    for kind in dict.fromkeys(table.kind for table in tables):
        for method, other in PAIRS:
            by_method = [
                {(c.table, c.seed): c for c in cells if c.kind == kind and c.method == m} for m in (method, other)
            ]
            common = sorted(by_method[0].keys() & by_method[1].keys())
            if not common:
                continue
            pair = [[of[key] for key in common] for of in by_method]
            ratios = [_say(compare(*pair, measure, np.divide)) for measure in (lambda c: (c.spent, 1.0), *measures)]
            difference = _say(compare(*pair, distance, np.subtract), 1000, "+.1f")
            names = f"{TITLES[method]} / {TITLES[other]}"
            print(f"| {kind} | {names} | {len(common)} | {' | '.join(ratios)} | {difference} |")


def _say_row(own: Sequence[Cell], ours: Sequence[Cell], targets: Sequence[Mapping[str, float]]) -> str:
    counts = {table: sum(c.table == table for c in own) for table in {c.table for c in own}}
    least, most = min(counts.values()), max(counts.values())
    seeds = str(most) if least == most else f"{least} to {most}"
    columns = [
        f"{len(counts)} × {seeds}" if len(counts) > 1 else seeds,
        f"{np.mean([c.arms for c in own]):.0f}",
        f"{np.mean([c.spent for c in own]):.1f}",
        f"{np.mean([c.wall for c in own]):.1f}",
    ]
    for target in targets:
        measure = time_to(target)
        columns.append(_say_number(average(own, measure), form=".1f"))
        columns.append(_say(compare(ours, own, measure, np.divide)) if ours else "")
    columns.append(_say_number(average(own, distance), 1000, ".1f"))
    columns.append(_say(compare(ours, own, distance, np.subtract), 1000, "+.1f") if ours else "")
    return " | ".join(columns)


def _say(estimate: Estimate, factor: float = 1, form: str = ".2f") -> str:
    value, low, high = (_say_number(n, factor, form) for n in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _say_number(number: float, factor: float = 1, form: str = ".2f") -> str:
    return "∞" if math.isinf(number) else format(factor * number, form).replace("-", "−")


if __name__ == "__main__":
    main()
