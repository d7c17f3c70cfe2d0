"""A study's data curve for people and for programs: the objective by training samples, with what it is a mean of.

Made from the runs in the ledger; called by `report.py` and `page.py`. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from study_operator.ledger.trial import Trial
from study_operator.report.numbers import describe_value
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
            *_describe_values(metric, point.validation, point.n),
            *_describe_values("accuracy", point.test, point.test_n),
            ", ".join(lost),
        ]


def _describe_values(metric: str, values: Sequence[float], n: int) -> list[str]:
    """Return mean, range and what each value is a mean of."""
    if not values:
        return ["–", "–", "–"]
    lowest, highest = (describe_value(metric, value, None) for value in (min(values), max(values)))
    return [describe_value(metric, fmean(values), None), f"{lowest} to {highest}" if len(values) > 1 else "–", f"{n}"]


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
    return {"trial": curve.of, "points": points, "message": curve.message}


def _values_as_json(values: Sequence[float], n: int) -> dict[str, Any]:
    return {"mean": fmean(values) if values else None, "values": list(values), "n": n}
