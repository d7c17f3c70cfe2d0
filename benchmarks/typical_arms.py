"""What the arms that are tried first are worth: each trained on the recorded data, among the arms drawn at random.

    PYTHONPATH=operator:trainer python benchmarks/typical_arms.py

Of `record_arms.py`'s recordings `bookings-typical` and `pages-typical` as they stand in the repository. A place is that
among the drawn arms of the same data, by the same measurement; equals share theirs. Prints a Markdown table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import record_arms
from search.recorded import RecordedArms, Run, count_recorded, read_lora

EARLY = 0.2


def find_accuracy(run: Run, share: float) -> float:
    """Return the validation accuracy at a share of the full length; of a run that has diverged by then, −∞."""
    found = run.measure(share)
    return -math.inf if found is None else found[1]


def find_loss(run: Run, share: float) -> float:
    """Return the validation loss there, nats per token."""
    found = run.find_loss(share)
    return math.inf if found is None else found


MERITS: Mapping[str, Callable[[Run], float]] = {
    "accuracy at 20 %": lambda run: find_accuracy(run, EARLY),
    "loss there": lambda run: -find_loss(run, EARLY),
    "accuracy at the end": lambda run: find_accuracy(run, 1.0),
}
"""The higher, the better."""


def main() -> None:
    """Print the table."""
    print(f"| data | arm | batch | {' | '.join(f'{name} | place' for name in MERITS)} | on the test set |")
    print("|---|---|---" + "|---" * (2 * len(MERITS) + 1) + "|")
    for recording in record_arms.BATCH_SIZES:
        if count_recorded(recording) and count_recorded(recording + record_arms.TYPICAL):
            table = read_lora(recording)
            for run in table.runs[len(table.drawn) :]:
                print(f"| {recording} | {describe(table, run)} |")


def describe(table: RecordedArms, run: Run) -> str:
    """Return the cells of one arm."""
    cells = [_name(table, run), str(run.arm["batch_size"])]
    for name, merit in MERITS.items():
        value, others = merit(run), [merit(other) for other in table.drawn]
        place = 1 + sum(other > value for other in others) + sum(other == value for other in others) / 2
        cells += [f"{abs(value):.2f}" if "loss" in name else f"{value:.1%}", f"{place:g} of {len(others) + 1}"]
    return " | ".join([*cells, f"{run.evaluated:.1%}"])


def _name(table: RecordedArms, run: Run) -> str:
    first = table.typical_arms[0]
    for typical in table.typical_arms:
        if typical.arm == run.arm:
            return typical.source
    return f"{first.source}, another batch" if {**run.arm, "batch_size": first.arm["batch_size"]} == first.arm else ""


if __name__ == "__main__":
    main()
