"""Where trials failed, for people and for programs. Made from `ledger.failures`; it decides nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from study_operator.ledger.failures import Cell, Failures, describe_failures


def describe_map(failures: Failures) -> str:
    """Return what stands below the map."""
    of = "" if len(failures.ranks) == 1 else "; a trial counts at the nearest rank"
    return (
        "Probability of a failure by rank, learning rate (down) and alpha (across), with its 90 % interval, over the "
        f"range of what was tried; beside it, how many of the trials nearest to it failed{of}"
    )


def list_map_header(failures: Failures) -> list[str]:
    """Return the heads of the map's columns."""
    alphas = dict.fromkeys(cell.alpha for cell in failures.cells)
    return ["rank", "learning rate", *(f"alpha {alpha:.3g}" for alpha in alphas)]


def list_map_rows(failures: Failures) -> Iterator[list[str]]:
    """Yield the rows of the map, the highest learning rate of each rank first."""
    rates = sorted({cell.learning_rate for cell in failures.cells}, reverse=True)
    for rank, rate in itertools.product(failures.ranks, rates):
        cells = [cell for cell in failures.cells if (cell.rank, cell.learning_rate) == (rank, rate)]
        yield [
            f"{rank:.3g}",
            f"{rate:.2g}",
            *(f"{describe_probability(cell)}, {describe_tried(cell)}" for cell in cells),
        ]


def describe_probability(cell: Cell) -> str:
    """Return the probability of a failure with its interval."""
    return f"{cell.probability:.0%} ({cell.low:.0%} to {cell.high:.0%})"


def describe_tried(cell: Cell) -> str:
    """Return how many of the trials that lie nearest failed."""
    return f"{cell.failed} of {cell.trials}" if cell.trials else "none tried"


def render_failures_json(failures: Failures) -> dict[str, Any]:
    """Return all of it as JSON values; what these trials do not show is null or empty."""
    return {
        "trials": failures.trials,
        "diverged": list(failures.diverged),
        "gibberish": list(failures.gibberish),
        "region": asdict(failures.region) if failures.region is not None else None,
        "ranks": list(failures.ranks),
        "map": [asdict(cell) for cell in failures.cells],
        "avoided": asdict(failures.avoided) if failures.avoided is not None else None,
        "sentences": describe_failures(failures),
    }
