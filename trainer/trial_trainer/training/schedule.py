"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_percent: float) -> float:
    """Return the learning rate of one optimizer step: linear warm-up, then half a cosine down to zero.

    Args:
        step: counted from 0.
        peak: the arm's learning rate.
        total_steps: of the full length, wherever this run stops.
        warmup_percent: share of ``total_steps`` that warms up; at least one step.
    """
    warmup_steps = max(1, round(total_steps * warmup_percent / 100))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
