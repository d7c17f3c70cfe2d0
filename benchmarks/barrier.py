"""What waiting for the last first measurement costs, and what promoting before it would save.

    PYTHONPATH=operator:trainer python benchmarks/barrier.py

A study promotes when every trial has its first measurement, so slots stand idle while the last ones run. A trial that
no pending one can displace from the best could go on before. Here random recorded arms are laid out in slots in three
ways: as the planner does; with such trials promoted at once; and, as a bound, by somebody who knows from the start
which trials will be promoted and continues each as soon as it is measured. The compute is the same in all three.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from search.clock import find_end
from search.product import draw_arm
from search.recorded import RecordedArms, read_tables

NUM_TRIALS, NUM_PROMOTED, RUNG = 24, 3, 0.2
SLOTS = (1, 4, 8)


class Rule(StrEnum):
    """When a trial is continued."""

    BARRIER = "when all are measured"
    CERTAIN = "when none can displace it"
    FORESEEN = "foreseen"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A trial's length to the rung and from there to the end, and how good it is at the rung."""

    first: float
    rest: float
    merit: float


def draw(table: RecordedArms, seed: int) -> list[Arm]:
    """Draw a study's arms; one that diverges before the rung is worse than all others."""
    arms = []
    for index in range(NUM_TRIALS):
        row = table.nearest(draw_arm(table.parameters, seed, index))
        run = table.runs[row]
        share, value = find_end(table, row, RUNG)
        end = run.diverged_at or 1.0
        merit = -math.inf if value is None else table.objective.merit(value)
        length, fixed = run.length / table.mean_length, run.fixed / table.mean_length
        arms.append(Arm(first=fixed + length * share, rest=fixed + length * max(0.0, end - share), merit=merit))
    return arms


def lay_out(arms: Sequence[Arm], slots: int, rule: Rule) -> float:
    """Return the time at which the last promoted trial has ended."""
    promoted = sorted(range(len(arms)), key=lambda i: -arms[i].merit)[:NUM_PROMOTED]
    waiting = list(range(len(arms)))
    running: list[tuple[float, int, bool]] = []
    measured: list[int] = []
    continued: set[int] = set()
    now = 0.0
    while True:
        unmeasured = len(arms) - len(measured)
        match rule:
            case Rule.BARRIER:
                ready = promoted if not unmeasured else []
            case Rule.CERTAIN:
                best = sorted(measured, key=lambda i: -arms[i].merit)
                ready = best[: max(0, NUM_PROMOTED - unmeasured)]
            case Rule.FORESEEN:
                ready = [i for i in promoted if i in measured]
        while len(running) < slots and (nexts := [i for i in ready if i not in continued]):
            continued.add(nexts[0])
            heapq.heappush(running, (now + arms[nexts[0]].rest, nexts[0], True))
        while len(running) < slots and waiting:
            at = waiting.pop(0)
            heapq.heappush(running, (now + arms[at].first, at, False))
        if not running:
            return now
        now, at, is_continued = heapq.heappop(running)
        if not is_continued:
            measured.append(at)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=200)
    seeds = options.parse_args().seeds
    tables = read_tables()
    print("| data | slots | compute | time | idle | at once / barrier | foreseen / barrier |")
    print("|---|---|---|---|---|---|---|")
    for kind in dict.fromkeys(table.kind for table in tables):
        studies = [draw(table, seed) for table in tables if table.kind == kind for seed in range(seeds)]
        for slots in SLOTS:
            spent = float(np.mean([lay_out(arms, 1, Rule.BARRIER) for arms in studies]))
            times = {rule: float(np.mean([lay_out(arms, slots, rule) for arms in studies])) for rule in Rule}
            barrier = times[Rule.BARRIER]
            idle = max(0.0, 1 - spent / (slots * barrier))
            saved = " | ".join(f"{times[rule] / barrier:.3f}" for rule in (Rule.CERTAIN, Rule.FORESEEN))
            print(f"| {kind} | {slots} | {spent:.1f} | {barrier:.2f} | {idle:.0%} | {saved} |")


if __name__ == "__main__":
    main()
