"""A study's data curve for people and for programs: the objective by training samples, with what it is a mean of.

Made from the runs in the ledger; called by `report.py` and `page.py`. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, assert_never

from rich.table import Table
from rich.text import Text

from study_operator.ledger.data_curve import DataCurve, Shape
from study_operator.ledger.resampling import CONFIDENCE
from study_operator.ledger.trial import Trial
from study_operator.report.numbers import describe_value
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.contract import Metric


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What the runs on so many training samples measured."""

    samples: int
    validation: tuple[float, ...]
    """The objective of each run that has one and did not diverge, by seed."""
    n: int
    """Validation questions that each of these is a mean of."""
    test: tuple[float, ...]
    """Accuracy of each run that the test set was read with, in the mean that the report reads it by."""
    test_n: int
    diverged: int
    lacking: int
    """Runs without a measurement, so far or for good."""


@dataclass(frozen=True, kw_only=True)
class CurveReport:
    """All that is told of one data curve, finished or not."""

    of: str
    """Name of the trial whose arm it is measured with."""
    points: Sequence[CurvePoint]
    message: str
    """What it has and lacks, once it has ended."""
    fit: DataCurve | None = None
    """Of the objective on validation; None before the end, and where nothing was measured."""


def list_points(study: Study, runs: Sequence[Trial], test: Mapping[str, Metric]) -> tuple[CurvePoint, ...]:
    """Return the points of a curve, the smallest size first.

    Args:
        study: the study.
        runs: of the curve.
        test: accuracy on the test set by name of the run, of those that it was read with.
    """
    points = []
    for size in sorted({run.train_samples for run in runs if run.train_samples is not None}):
        of_size = [run for run in runs if run.train_samples == size]
        found = [m for run in of_size if (m := run.measurement(study.last_rung)) is not None]
        usable = [m for m in found if not m.diverged]
        on_test = [metric for run in of_size if (metric := test.get(run.name)) is not None and metric.n]
        points.append(
            CurvePoint(
                samples=size,
                validation=tuple(m.value for m in usable),
                n=max((m.n or 0 for m in usable), default=0),
                test=tuple(metric.value for metric in on_test),
                test_n=max((metric.n for metric in on_test), default=0),
                diverged=len(found) - len(usable),
                lacking=len(of_size) - len(found),
            )
        )
    return tuple(points)


HEADER = (
    "training samples",
    "seeds",
    "validation, mean over seeds",
    f"{CONFIDENCE * 100:.0f} % interval",
    "lowest to highest",
    "n",
    "test accuracy, mean over seeds",
    "lowest to highest",
    "n",
    "without a value",
)


def list_rows(study: Study, curve: CurveReport) -> Iterator[list[str]]:
    """Yield the rows of the table, as `HEADER` has its columns."""
    metric = study.objective.metric
    for point in curve.points:
        lost = [f"{point.diverged} diverged"] if point.diverged else []
        lost += [f"{point.lacking} not measured"] if point.lacking else []
        yield [
            f"{point.samples}",
            f"{len(point.validation)}",
            *_describe_values(metric, point.validation, point.n, [_describe_interval(study, curve, point)]),
            *_describe_values("accuracy", point.test, point.test_n),
            ", ".join(lost),
        ]


def _describe_values(metric: str, values: Sequence[float], n: int, interval: Sequence[str] = ()) -> list[str]:
    """Return mean, interval where one is given, range, and what each value is a mean of."""
    if not values:
        return ["–"] * (3 + len(interval))
    lowest, highest = (describe_value(metric, value, None) for value in (min(values), max(values)))
    ends = f"{lowest} to {highest}" if len(values) > 1 else "–"
    return [describe_value(metric, fmean(values), None), *interval, ends, f"{n}"]


def _describe_interval(study: Study, curve: CurveReport, point: CurvePoint) -> str:
    """Return the interval of a size's mean over sites and seeds."""
    sizes = curve.fit.sizes if curve.fit is not None else ()
    found = next((size for size in sizes if size.samples == point.samples), None)
    if found is None or found.low is None or found.high is None:
        return "–"
    low, high = (describe_value(study.objective.metric, value, None) for value in (found.low, found.high))
    return f"{low} to {high}"


def describe_fit(study: Study, curve: CurveReport) -> Iterator[str]:
    """Yield what the curve says in sentences: where it saturates, or that nobody can tell."""
    if curve.fit is None:
        return
    saturation, metric = curve.fit.saturation, study.objective.metric
    gain = f"{saturation.least_gain:g}"
    if is_share(metric):
        gain = f"{saturation.least_gain * 100:g} point{'' if saturation.least_gain == 0.01 else 's'}"
    match saturation.shape:
        case Shape.SATURATES:
            low = f"{saturation.low:,.0f}" if saturation.low is not None else "less"
            high = f"{saturation.high:,.0f}" if saturation.high is not None else "more"
            interval = f"{CONFIDENCE * 100:.0f} % interval {low} to {high}"
            yield (
                f"{metric} saturates near {saturation.samples:,.0f} training samples ({interval}): beyond, doubling "
                f"the data gains less than {gain}."
            )
        case Shape.STILL_GAINS:
            largest = f"{curve.fit.sizes[-1].samples:,} training samples"
            yield f"{metric} is not saturated: at {largest} doubling the data still gains {gain} or more."
        case Shape.TURNS_DOWN:
            yield f"{metric} turns down: {saturation.message}, and no curve is fitted."
        case Shape.NOT_IDENTIFIABLE:
            yield f"Where {metric} saturates is {saturation.message}."
        case _:
            assert_never(saturation.shape)


def _fit_as_json(fit: DataCurve) -> dict[str, Any]:
    """Return a fit without its replicates."""
    return {
        "confidence": CONFIDENCE,
        "sizes": [asdict(size) for size in fit.sizes],
        "curve": None if fit.curve is None else {"form": FORM, **asdict(fit.curve)},
        "saturation": asdict(fit.saturation),
    }


FORM = "merit = limit - gap / (delay + samples ** exponent); of a loss, merit is its negative"


def describe_title(study: Study, curve: CurveReport) -> str:
    """Return what stands above the table."""
    return f"Data curve: {study.objective.metric} by training samples, with the arm of {curve.of}"


def render_data_curve(study: Study, curve: CurveReport) -> Table:
    """Return the table of a curve."""
    table = Table(title=describe_title(study, curve), title_justify="left")
    for i, head in enumerate(HEADER):
        table.add_column(head, justify="left" if i == len(HEADER) - 1 else "right")
    for row in list_rows(study, curve):
        table.add_row(*map(Text, row))
    return table


def render_curve_json(curve: CurveReport) -> dict[str, Any]:
    """Return a curve as JSON values."""
    points = [
        {
            "samples": point.samples,
            "validation": _values_as_json(point.validation, point.n),
            "test": _values_as_json(point.test, point.test_n),
            "diverged": point.diverged,
            "lacking": point.lacking,
        }
        for point in curve.points
    ]
    fit = None if curve.fit is None else _fit_as_json(curve.fit)
    return {"trial": curve.of, "points": points, "fit": fit, "message": curve.message}


def _values_as_json(values: Sequence[float], n: int) -> dict[str, Any]:
    return {"mean": fmean(values) if values else None, "values": list(values), "n": n}
