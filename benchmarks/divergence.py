"""How often a run is called diverged that is not, and how often one that is: the old limit beside the present one.

    PYTHONPATH=trainer python benchmarks/divergence.py                    # 10,000 simulated runs of a frozen model
    PYTHONPATH=trainer python benchmarks/divergence.py --seeds 0 1 2      # and real runs at 30 times the best rate

A frozen model's losses are those of the untrained base model on every training sample of the laptop sample, drawn with
replacement: batches of a run, and the fixed sample that its limit comes from. Old: three times the first batch's loss.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

import _demo
from _demo import ARM, CPU, build_ours
from trial_trainer.dataset.store import TRAIN, Page
from trial_trainer.model.rows import Group, build_row, draw_groups, step_groups
from trial_trainer.training.checkpoint import UntrainedLoss
from trial_trainer.training.train import LOSS_WINDOW_STEPS, UNTRAINED_SAMPLES, exploded_loss, sample_losses

BATCH_SIZES = (1, 4, 8, 16, 32)
RUNS = 10_000
EPOCHS = 3
OLD_TIMES = 3.0
BEST_RATE = 1e-3
"""Of the laptop sample's baseline; its winner had 1.5e-3."""
TIMES_BEST = 30
TOTAL_STEPS = 100
STEPS = 40

Losses = NDArray[np.float64]


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of real runs, minutes each")
    parser.add_argument("--batch-size", type=int, default=int(ARM["batch_size"]))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    pages = _demo.read_demo(TRAIN)
    ours = build_ours(max(pages, key=lambda page: len(page.questions)), total_steps=TOTAL_STEPS)
    began = time.perf_counter()
    losses = read_losses(ours, [Group(page=page, questions=page.questions) for page in pages if page.questions])
    seconds = time.perf_counter() - began
    share = sum(g.tokens for g in draw_groups(pages, samples=UNTRAINED_SAMPLES, seed=0))
    share /= sum(Group(page=page, questions=page.questions).tokens for page in pages)
    print(f"{len(losses)} samples: mean {losses.mean():.2f}, deviation {losses.std():.2f}, highest {losses.max():.2f};")
    print(f"the fixed sample takes {seconds * share:.1f} s of {seconds:.1f} s for all\n")
    print_frozen(losses)
    if arguments.seeds:
        print_fast(pages, arguments.seeds, arguments.batch_size)


def read_losses(ours: _demo.OurTrainer, groups: Sequence[Group]) -> Losses:
    """Return the loss of every sample, by the model as it is."""
    ours.loaded.module.eval()
    with torch.no_grad():
        rows = [build_row([group], CPU) for group in groups]
        return np.concatenate([sample_losses(ours.loaded.logits(row), row).double().numpy() for row in rows])


def print_frozen(losses: Losses) -> None:
    """Print how many runs of a model that learns nothing are called diverged."""
    print(f"| batch size | steps | called diverged of {RUNS:,}, old limit | present limit |")
    print("|---|---|---|---|")
    for batch_size in BATCH_SIZES:
        old, new = count_false(losses, batch_size, RUNS, np.random.default_rng(batch_size))
        print(f"| {batch_size} | {EPOCHS * (len(losses) // batch_size)} | {old:,} ({old / RUNS:.1%}) | {new:,} |")


def count_false(losses: Losses, batch_size: int, runs: int, chance: np.random.Generator) -> tuple[int, int]:
    """Return how many frozen runs the old and the present limit call diverged."""
    steps = EPOCHS * (len(losses) // batch_size)
    old = new = 0
    for _ in range(runs):
        fixed = chance.choice(losses, UNTRAINED_SAMPLES)
        batches = chance.choice(losses, (steps, batch_size)).mean(axis=1)
        sums = np.concatenate([[0.0], np.cumsum(batches)])
        highest = (sums[LOSS_WINDOW_STEPS:] - sums[:-LOSS_WINDOW_STEPS]).max() / LOSS_WINDOW_STEPS
        old += bool(highest > OLD_TIMES * batches[0])
        untrained = UntrainedLoss(mean=float(fixed.mean()), deviation=float(fixed.std()))
        new += bool(highest > exploded_loss(untrained, batch_size))
    return old, new


def print_fast(pages: Sequence[Page], seeds: Sequence[int], batch_size: int) -> None:
    """Print at which step real runs at many times the best learning rate are called diverged."""
    print(f"\n| seed | untrained loss | limit | called diverged at step (of {TOTAL_STEPS}) | ten-step mean there |")
    print("|---|---|---|---|---|")
    for seed in seeds:
        ours = build_ours(
            max(pages, key=lambda page: len(page.questions)),
            total_steps=TOTAL_STEPS,
            seed=seed,
            learning_rate=TIMES_BEST * BEST_RATE,
        )
        fixed = read_losses(ours, draw_groups(pages, samples=UNTRAINED_SAMPLES, seed=seed))
        untrained = UntrainedLoss(mean=float(fixed.mean()), deviation=float(fixed.std()))
        limit = exploded_loss(untrained, batch_size)
        recent: list[float] = []
        found, mean = 0, math.nan
        for step in range(STEPS):
            loss = ours.step(step_groups(pages, step=step, batch_size=batch_size, seed=seed))
            recent = [*recent, loss][-LOSS_WINDOW_STEPS:]
            mean = sum(recent) / len(recent)
            if not math.isfinite(loss) or (len(recent) == LOSS_WINDOW_STEPS and mean > limit):
                found = step + 1
                break
        where = str(found) if found else f"not in {STEPS}"
        print(f"| {seed} | {untrained.mean:.2f} | {limit:.2f} | {where} | {mean:.2f} |", flush=True)


if __name__ == "__main__":
    main()
