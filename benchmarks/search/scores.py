"""What searches are worth: compute to a target, and the distance to the floor that they end at, with intervals.

A target is a share of all recorded arms, by the data that nothing is chosen by: a search has reached it when the arm
that validation would choose among those at full length is one of them. Compute to a target is the expected running
time of the COCO benchmarks (Hansen et al., 2021, arXiv 1603.08785): all that was spent until it was reached, or until
the search ended without, over the number of searches that reached it; a search that fails is begun anew. Searches on
several tables of a kind are pooled, each in runs of its own table's mean length.

Intervals are the 5th and 95th percentiles of resampled tables and, within each, seeds: of the same seeds on both sides
where two searches are compared, as far as both have them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from search.clock import Trace
from search.recorded import RecordedArms

RESAMPLES = 2_000


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
    distances = [table.distance(row) for row in range(len(table.runs)) if table.runs[row].diverged_at is None]
    return sorted(distances)[max(0, math.ceil(share * len(table.runs)) - 1)]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 90 % interval."""

    value: float
    low: float
    high: float


def running_time(cells: Iterable[Cell], targets: Mapping[str, float]) -> float:
    """Return the expected compute to the targets, by table; infinite where none is reached."""
    spent, reached = 0.0, 0
    for cell in cells:
        cost = cell.reach(targets[cell.table])
        spent += cell.spent if cost is None else cost
        reached += cost is not None
    return spent / reached if reached else math.inf


def compare(
    cells: Sequence[Cell],
    others: Sequence[Cell],
    statistic: Callable[[Sequence[Cell], Sequence[Cell]], float],
) -> Estimate:
    """Return a statistic of two searches, with its interval over tables and seeds.

    Each table has its own seeds; where both searches have at least five in common, those are resampled as pairs, and
    else each search's own.
    """
    chance = np.random.default_rng(0)
    tables = sorted({cell.table for cell in cells} & {cell.table for cell in others})
    pools = [_Pool.of(table, cells, others) for table in tables]
    values = []
    for _ in range(RESAMPLES):
        ours: list[Cell] = []
        theirs: list[Cell] = []
        for at in chance.integers(len(pools), size=len(pools)):
            drawn, drawn_others = pools[at].draw(chance)
            ours += drawn
            theirs += drawn_others
        values.append(statistic(ours, theirs))
    value = statistic([c for c in cells if c.table in tables], [c for c in others if c.table in tables])
    # Not interpolated: where a target is not reached, a value is infinite.
    low, high = np.quantile(values, [0.05, 0.95], method="nearest")
    return Estimate(value=value, low=float(low), high=float(high))


@dataclass(frozen=True)
class _Pool:
    """What is drawn from for one table."""

    cells: Sequence[Cell]
    others: Sequence[Cell]
    is_paired: bool

    @classmethod
    def of(cls, table: str, cells: Sequence[Cell], others: Sequence[Cell]) -> _Pool:
        by_seed = {cell.seed: cell for cell in cells if cell.table == table}
        others_by_seed = {cell.seed: cell for cell in others if cell.table == table}
        common = sorted(by_seed.keys() & others_by_seed.keys())
        if len(common) < 5:
            return cls(list(by_seed.values()), list(others_by_seed.values()), False)
        return cls([by_seed[seed] for seed in common], [others_by_seed[seed] for seed in common], True)

    def draw(self, chance: np.random.Generator) -> tuple[list[Cell], list[Cell]]:
        at = chance.integers(len(self.cells), size=len(self.cells))
        at_others = at if self.is_paired else chance.integers(len(self.others), size=len(self.others))
        return [self.cells[i] for i in at], [self.others[i] for i in at_others]


def time_ratio(targets: Mapping[str, float]) -> Callable[[Sequence[Cell], Sequence[Cell]], float]:
    """Return the ratio of two searches' compute to the targets, as a statistic."""

    def ratio(cells: Sequence[Cell], others: Sequence[Cell]) -> float:
        ours, theirs = running_time(cells, targets), running_time(others, targets)
        if math.isinf(theirs):
            return math.nan if math.isinf(ours) else 0.0
        return ours / theirs

    return ratio


def distance_difference(cells: Sequence[Cell], others: Sequence[Cell]) -> float:
    """Return how much farther from the floor one search ends than the other, in the mean over tables."""
    tables = {cell.table for cell in cells}
    return _mean(_mean(c.distance for c in cells if c.table == t) for t in tables) - _mean(
        _mean(c.distance for c in others if c.table == t) for t in tables
    )


def mean_distance(cells: Sequence[Cell]) -> float:
    """Return where a search ends, in the mean over tables."""
    return _mean(_mean(c.distance for c in cells if c.table == t) for t in {cell.table for cell in cells})


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known)
