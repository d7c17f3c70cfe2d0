"""How numbers read in every table and sentence."""

from __future__ import annotations

from study_operator.ledger.trial import Measurement
from study_operator.spec.metrics import is_share
from trial_trainer.contract import Metric

MOST_CHARACTERS = 300
"""Of an arm, a message or an answer on the page; trials stand whole in the leaderboard's columns and in the status."""


def shorten(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, cut where it has more characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def describe_value(metric: str, value: float, standard_error: float | None) -> str:
    """Return shares as percent and everything else as it is. An error of 0 was not seen, which is not certainty."""
    if not is_share(metric):
        return f"{value:.4g}" + (f" ± {standard_error:.2g}" if standard_error else "")
    if not standard_error:
        return percent(value)
    return f"{percent(value)} ± " + (f"{standard_error * 100:.1f}" if standard_error >= 0.0005 else "less than 0.1")


def percent(value: float) -> str:
    """Return a share as percent."""
    return f"{value * 100:.1f} %"


def describe_measurement(metric: str, measurement: Measurement | None) -> str:
    """Return a measurement with its standard error, or a dash."""
    if measurement is None or measurement.n == 0:
        return "–"
    if measurement.diverged:
        # Its value stands for the worst there is. Nothing was read.
        return "diverged"
    text = describe_value(metric, measurement.value, measurement.standard_error)
    return f"{text} (gibberish)" if measurement.gibberish else text


def describe_metric(metric: Metric) -> str:
    """Return one cell of the test set's table: a share with its interval."""
    if metric.n == 0:
        return "–"
    if metric.low is None or metric.high is None:
        # Final evaluations of earlier versions hold no intervals.
        return describe_value("accuracy", metric.value, metric.standard_error)
    return f"{percent(metric.value)} ({metric.low * 100:.1f}–{metric.high * 100:.1f})"
