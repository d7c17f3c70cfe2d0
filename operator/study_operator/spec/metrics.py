"""Metrics that a study may name: which way is better, and the worst value of each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Direction(StrEnum):
    """Which way the objective is better."""

    MAXIMIZE = "Maximize"
    MINIMIZE = "Minimize"


KNOWN_ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating", "description")
"""What markup can label."""

METRICS: Mapping[str, Direction] = {
    "accuracy": Direction.MAXIMIZE,
    "validation_loss": Direction.MINIMIZE,
    "invalid_output_rate": Direction.MINIMIZE,
    "false_value_rate": Direction.MINIMIZE,
}
"""What a measurement measures, and which way each is better; ``accuracy/<attribute>`` is as ``accuracy``."""

WORST_VALUES: Mapping[str, float] = {
    "accuracy": 0.0,
    "validation_loss": 10.8,
    "invalid_output_rate": 1.0,
    "false_value_rate": 1.0,
}
"""What a trial that diverged is given: the bound of a share; for a loss only until a worse one is read, a uniform guess
among 50 thousand tokens in nats."""


def is_share(metric: str) -> bool:
    """Say whether a metric lies between 0 and 1 and is best read in percent."""
    return metric.startswith("accuracy") or metric.endswith("_rate")
