"""How often a region of failing trials is told where there is none, and where there is one; and the map's intervals.

    PYTHONPATH=operator:trainer python benchmarks/failures.py [--studies 1000]

Each study has 24 trials (or as many as said) whose learning rate × alpha / rank lies anywhere in five powers of e, and
fails by chance. "Avoiding": after eight spread-out arms the search stays within a factor of two of arms that did not
fail, as an optimizer does. Prints two Markdown tables.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

from study_operator.ledger.failures import FailureModel, find_region

Chance = Callable[[float], float]
LEAST, MOST = -9.0, -4.0
"""Logarithms of the score."""
SPREAD_OUT = 8


def search(chance: random.Random, trials: int, probability: Chance, *, avoids: bool) -> tuple[list[float], list[bool]]:
    """Return the scores of one study's trials, and which failed."""
    scores, failed = list[float](), list[bool]()
    for i in range(trials):
        sound = [score for score, has in zip(scores, failed, strict=True) if not has]
        if avoids and i >= SPREAD_OUT and sound:
            scores.append(chance.choice(sound) * math.exp(chance.uniform(-math.log(2), math.log(2))))
        else:
            scores.append(math.exp(chance.uniform(LEAST, MOST)))
        failed.append(chance.random() < probability(math.log(scores[-1])))
    return scores, failed


def count_told(trials: int, probability: Chance, studies: int, *, avoids: bool) -> float:
    """Return the share of studies that tell a region."""
    chance, found = random.Random(0), 0
    for _ in range(studies):
        scores, failed = search(chance, trials, probability, avoids=avoids)
        found += any(failed) and not all(failed) and find_region(scores, failed) is not None
    return found / studies


def measure_map(trials: int, studies: int) -> tuple[float, float]:
    """Return how often the map's 90 % interval holds the probability of a failure, and its mean width."""
    chance, held, widths = random.Random(1), 0, list[float]()
    for _ in range(studies):
        slope, middle = chance.gauss(0, 1.5), chance.gauss(0, 1)
        logs = [chance.uniform(-2, 2) for _ in range(trials)]
        truth = {x: 1 / (1 + math.exp(-(middle + slope * x))) for x in (*logs, -1.5, -0.5, 0.5, 1.5)}
        failed = [chance.random() < truth[x] for x in logs]
        model = FailureModel.fit([(math.exp(x), 32.0, 16.0) for x in logs], failed)
        for x in (-1.5, -0.5, 0.5, 1.5):
            _, low, high = model.predict((math.exp(x), 32.0, 16.0))
            held += low <= truth[x] <= high
            widths.append(high - low)
    return held / len(widths), sum(widths) / len(widths)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    cases: dict[str, Chance] = {f"{share:.0%} anywhere": lambda _, share=share: share for share in (0.1, 0.3, 0.5)}
    cases |= {
        f"{above:.0%} in the upper third, 5% below": lambda log, above=above: above if log > -5.67 else 0.05
        for above in (0.5, 0.9)
    }
    print("| trials fail | trials | region told, spread out | region told, avoiding |")
    print("|---|---|---|---|")
    for name, probability in cases.items():
        for trials in (12, 24, 48):
            shares = [count_told(trials, probability, studies, avoids=avoids) for avoids in (False, True)]
            print(f"| {name} | {trials} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    print("\n| trials | 90 % interval holds the probability | its mean width |")
    print("|---|---|---|")
    for trials in (12, 24, 48):
        held, width = measure_map(trials, studies)
        print(f"| {trials} | {held:.1%} | {width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
