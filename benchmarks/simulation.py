"""Whole studies in a simulated cluster where everything goes wrong that can: how many end correctly, and how fast.

    PYTHONPATH=operator:trainer python benchmarks/simulation.py [--studies 10000] [--first 0]

The operator is killed between any two calls, status reads are stale, writes conflict, job lists lag, nodes are lost,
arms run out of memory or diverge, the bucket goes away, people suspend and edit. Prints one Markdown row; exits 1 if a
study broke a promise, and names its seed.
"""

from __future__ import annotations

import argparse
import collections
import logging
import sys
import time
from pathlib import Path

# The simulated cluster is the tests' own.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builders.simulated_cluster import run_study


def main() -> int:
    """Run the studies and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first study")
    arguments = parser.parse_args()
    logging.disable()

    outcomes: collections.Counter[str] = collections.Counter()
    broken: list[str] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for seed in range(arguments.first, arguments.first + arguments.studies):
        try:
            outcome = run_study(seed).outcome
            outcomes[outcome.reason if outcome else "none"] += 1
        except AssertionError as error:
            broken.append(f"seed {seed}: {error}")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    print("| simulated studies | ended correctly | seconds on one core | seconds of wall | outcomes |")
    print("|---|---|---|---|---|")
    message = ", ".join(f"{reason} {count}" for reason, count in outcomes.most_common())
    right = arguments.studies - len(broken)
    print(f"| {arguments.studies} | {right} | {cpu:.1f} | {wall:.1f} | {message} |")
    for line in broken[:10]:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
