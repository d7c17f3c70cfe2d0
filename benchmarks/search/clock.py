"""What a search does on a simulated clock: its runs in their slots, and what is known at which cost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from search.recorded import RecordedArms


@dataclass(frozen=True, kw_only=True)
class Span:
    """Time that one slot was busy."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An arm that reached its full length."""

    at: float
    row: int
    merit: float
    """Its objective on the validation set; the higher, the better."""
    loss: float = math.inf
    """Its validation loss there, which tells those of one merit apart; infinite where none was recorded."""


@dataclass(kw_only=True)
class Trace:
    """A search as it went. Times are in the table's own unit, from the start of its first run."""

    slots: int
    spans: list[Span] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    """In the order of time."""
    rows: list[int] = field(default_factory=list)
    """Of the arms that were begun, in their order."""

    @property
    def wall(self) -> float:
        """From the first run's start to the last one's end."""
        return max((span.end for span in self.spans), default=0.0)

    def spent(self, until: float) -> float:
        """Return what all slots together have computed by a time."""
        return sum(max(0.0, min(span.end, until) - span.start) for span in self.spans)

    def incumbents(self) -> Iterator[Finished]:
        """Yield each full-length arm that is the best by validation when it is finished."""
        best: Finished | None = None
        for found in self.finished:
            if best is None or (found.merit, -found.loss) > (best.merit, -best.loss):
                best = found
                yield found


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rival wants to run next: an arm, from where it stands to a share of its full length."""

    index: int
    row: int
    share: float


class Search(Protocol):
    """A rival: decides what runs, and is given what came of it."""

    def next(self) -> Order | None:
        """Return what to run in a slot that is free now; None where it waits for something that runs."""
        ...

    def take(self, order: Order, value: float | None) -> None:
        """Take the measurement that an order led to; None where the run diverged."""
        ...


def replay(table: RecordedArms, search: Search, *, slots: int, budget: float) -> Trace:
    """Let a rival use some slots until what it has begun amounts to a budget of compute.

    Args:
        table: what an arm measures, and how long it takes.
        search: the rival.
        slots: runs at the same time.
        budget: in the table's own unit of compute; what runs when it is reached is finished.
    """
    trace = Trace(slots=slots)
    reached: dict[int, float] = {}
    running: list[tuple[float, int, Order, float | None]] = []
    now = begun = 0.0
    while True:
        while len(running) < slots and begun < budget and (order := search.next()) is not None:
            run = table.runs[order.row]
            before = reached.get(order.index, 0.0)
            if order.index not in reached:
                trace.rows.append(order.row)
            share, value = find_end(table, order.row, order.share)
            reached[order.index] = share
            length = run.fixed + run.length * max(0.0, share - before)
            begun += length
            trace.spans.append(Span(start=now, end=now + length))
            heapq.heappush(running, (now + length, len(trace.spans), order, value))
        if not running:
            return trace
        now, _, order, value = heapq.heappop(running)
        if value is not None and reached[order.index] >= 1.0:
            trace.finished.append(finish(table, order.row, at=now, value=value))
        search.take(order, value)


def finish(table: RecordedArms, row: int, *, at: float, value: float) -> Finished:
    """Return an arm that measured a value at its full length."""
    loss = table.runs[row].find_loss(1.0)
    return Finished(at=at, row=row, merit=table.objective.merit(value), loss=math.inf if loss is None else loss)


def find_end(table: RecordedArms, row: int, share: float) -> tuple[float, float | None]:
    """Return where a run that is asked for ends, and what it measures; None where it diverges on the way."""
    run = table.runs[row]
    found = run.measure(share)
    if found is not None:
        return found
    if run.diverged_at is None:
        raise ValueError(f"{table.name}, row {row}: nothing is measured from {share:.0%} of its length on")
    return run.diverged_at, None
