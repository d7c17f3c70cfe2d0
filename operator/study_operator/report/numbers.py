"""How numbers read in every table and sentence."""

from __future__ import annotations

from study_operator.spec.metrics import is_share


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
