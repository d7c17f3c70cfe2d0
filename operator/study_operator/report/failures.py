"""Where trials failed, for people and for programs. Made from `ledger.failures`; it decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from study_operator.ledger.failures import Failures, describe_failures


def describe_map(failures: Failures) -> str:
    """Return what stands below the map."""
    return (
        "Probability of a failure by learning rate (down) and alpha (across), with its 90 % interval, at rank "
        f"{failures.rank:g}, over the range of what was tried; beside it, how many of the trials nearest to it failed"
    )


def list_map_header(failures: Failures) -> list[str]:
    """Return the heads of the map's columns."""
    return ["learning rate", *(f"alpha {alpha:.3g}" for alpha in dict.fromkeys(c.alpha for c in failures.cells))]


def list_map_rows(failures: Failures) -> Iterator[list[str]]:
    """Yield the rows of the map, the highest learning rate first."""
    for rate in sorted({cell.learning_rate for cell in failures.cells}, reverse=True):
        cells = [cell for cell in failures.cells if cell.learning_rate == rate]
        yield [
            f"{rate:.2g}",
            *(
                f"{c.probability:.0%} ({c.low:.0%} to {c.high:.0%}), "
                + (f"{c.failed} of {c.trials}" if c.trials else "none tried")
                for c in cells
            ),
        ]


def render_failures_json(failures: Failures) -> dict[str, Any]:
    """Return all of it as JSON values; what these trials do not show is null or empty."""
    return {
        "trials": failures.trials,
        "diverged": list(failures.diverged),
        "gibberish": list(failures.gibberish),
        "region": asdict(failures.region) if failures.region is not None else None,
        "rank": failures.rank,
        "map": [asdict(cell) for cell in failures.cells],
        "avoided": asdict(failures.avoided) if failures.avoided is not None else None,
        "sentences": describe_failures(failures),
    }
