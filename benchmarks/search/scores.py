"""What searches are worth: compute to a target, and the distance to the floor that they end at, with intervals.

A target is a share of all recorded arms, by the data that nothing is chosen by: a search has reached it when the arm
that validation would choose among those at full length is one of them. Compute to a target is the expected running
time of the COCO benchmarks (Hansen et al., 2021, arXiv 1603.08785): all that was spent until it was reached, or until
the search ended without, over the number of searches that reached it; a search that fails is begun anew. Searches on
several tables of a kind are pooled, each in runs of its own table's mean length.

Intervals are the 5th and 95th percentiles of resampled tables and, within each, seeds: pairs of them where two searches
that are compared have the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.clock import Trace
from search.recorded import RecordedArms

RESAMPLES = 2_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One search on one table, as it is kept. Compute and time are in runs of the table's mean length."""

    table: str
    kind: str
    method: str
    slots: int
    seed: int
    arms: int
    """That were begun."""
    spent: float
    wall: float
    incumbents: tuple[tuple[float, float, float], ...]
    """Of each arm that was the best by validation when it was finished: compute spent, time, distance to the floor."""

    @property
    def distance(self) -> float:
        """Of the arm that the search ends with; of none it is NaN."""
        return self.incumbents[-1][2] if self.incumbents else math.nan

    def reach(self, distance: float) -> float | None:
        """Return the compute after which the best arm by validation is so near to the floor; None where it never is."""
        return next((spent for spent, _, found in self.incumbents if found <= distance), None)


def cell_of(table: RecordedArms, method: str, seed: int, trace: Trace) -> Cell:
    """Return what is kept of a trace."""
    unit = table.mean_length
    return Cell(
        table=table.name,
        kind=table.kind,
        method=method,
        slots=trace.slots,
        seed=seed,
        arms=len(trace.rows),
        spent=trace.spent(trace.wall) / unit,
        wall=trace.wall / unit,
        incumbents=tuple(
            (trace.spent(found.at) / unit, found.at / unit, table.distance(found.row)) for found in trace.incumbents()
        ),
    )


def write_cell(path: Path, cell: Cell) -> None:
    """Append a cell to a file, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(cell)) + "\n")


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a file; none where there is no file. A line that was cut off is left out."""
    if not path.exists():
        return []
    cells = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        cells.append(Cell(**{**values, "incumbents": tuple(map(tuple, values["incumbents"]))}))
    return cells


def target_of(table: RecordedArms, share: float) -> float:
    """Return the distance to the floor of the worst arm among a share of the recorded ones."""
    distances = [table.distance(row) for row, run in enumerate(table.drawn) if run.diverged_at is None]
    return sorted(distances)[max(0, math.ceil(share * len(table.drawn)) - 1)]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 90 % interval."""

    value: float
    low: float
    high: float


Measure = Callable[[Cell], tuple[float, float]]
"""What a cell adds to a numerator and to a denominator."""


def time_to(targets: Mapping[str, float]) -> Measure:
    """Return the measure of compute to the targets, by table: what was spent, over whether it was reached."""

    def measure(cell: Cell) -> tuple[float, float]:
        cost = cell.reach(targets[cell.table])
        return (cell.spent, 0.0) if cost is None else (cost, 1.0)

    return measure


def distance(cell: Cell) -> tuple[float, float]:
    """Measure where a search ends."""
    return cell.distance, 1.0


def average(cells: Iterable[Cell], measure: Measure) -> float:
    """Return numerators over denominators, each table counting the same; infinite where all denominators are 0."""
    by_table: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        by_table.setdefault(cell.table, []).append(measure(cell))
    top, bottom = np.sum([np.mean(pairs, axis=0) for pairs in by_table.values()], axis=0)
    return float(top / bottom) if bottom else math.inf


def compare(
    cells: Sequence[Cell], others: Sequence[Cell], measure: Measure, combine: Callable[[Floats, Floats], Floats]
) -> Estimate:
    """Return how two searches compare, over the tables that both have, with the interval.

    Where both searches have the same seeds on a table, those are resampled as pairs, and else each search's own.

    Args:
        cells: of the one search.
        others: of the other.
        measure: what is averaged.
        combine: the two averages to what is compared, such as `np.divide`.
    """
    tables = sorted({cell.table for cell in cells} & {cell.table for cell in others})
    pools = [_Pool.of(table, cells, others, measure) for table in tables]
    chance = np.random.default_rng(0)
    sums = np.zeros((4, RESAMPLES))
    for drawn in chance.integers(len(pools), size=(len(pools), RESAMPLES)):
        for at, pool in enumerate(pools):
            sums[:, drawn == at] += pool.draw(chance, int(np.sum(drawn == at)))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = combine(sums[0] / sums[1], sums[2] / sums[3])
        known = [average((c for c in of if c.table in tables), measure) for of in (cells, others)]
        value = float(combine(np.array(known[0]), np.array(known[1])))
    # Not interpolated: where a target is not reached, a value is infinite.
    low, high = np.quantile(np.nan_to_num(values, nan=np.inf, posinf=np.inf), [0.05, 0.95], method="nearest")
    return Estimate(value=value, low=float(low), high=float(high))


@dataclass(frozen=True)
class _Pool:
    """What is drawn from for one table: numerators and denominators of both searches by seed."""

    ours: Floats
    theirs: Floats
    is_paired: bool

    @classmethod
    def of(cls, table: str, cells: Sequence[Cell], others: Sequence[Cell], measure: Measure) -> _Pool:
        ours = {cell.seed: measure(cell) for cell in cells if cell.table == table}
        theirs = {cell.seed: measure(cell) for cell in others if cell.table == table}
        seeds = sorted(ours)
        if seeds != sorted(theirs):
            return cls(np.array(list(ours.values())), np.array(list(theirs.values())), False)
        return cls(np.array([ours[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds]), True)

    def draw(self, chance: np.random.Generator, count: int) -> Floats:
        """Return so many means over resampled seeds: four rows."""
        at = chance.integers(len(self.ours), size=(count, len(self.ours)))
        at_theirs = at if self.is_paired else chance.integers(len(self.theirs), size=(count, len(self.theirs)))
        return np.concatenate([self.ours[at].mean(axis=1).T, self.theirs[at_theirs].mean(axis=1).T])
