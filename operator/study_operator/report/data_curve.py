"""A study's data curve for people and for programs: the objective by training samples, with what it is a mean of.

Made from the runs in the ledger; called by `report.py` and `page.py`. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from study_operator.ledger.trial import Trial
from study_operator.report.numbers import describe_value
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What the runs on so many training samples measured."""

    samples: int
    validation: tuple[float, ...]
    """The objective of each run that has one and did not diverge, by seed."""
    n: int
    """Validation questions that each of these is a mean of."""
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


def list_points(study: Study, runs: Sequence[Trial]) -> tuple[CurvePoint, ...]:
    """Return the points of a curve, the smallest size first."""
    points = []
    for size in sorted({run.train_samples for run in runs if run.train_samples is not None}):
        of_size = [run for run in runs if run.train_samples == size]
        found = [m for run in of_size if (m := run.measurement(study.last_rung)) is not None]
        usable = [m for m in found if not m.diverged]
        points.append(
            CurvePoint(
                samples=size,
                validation=tuple(m.value for m in usable),
                n=max((m.n or 0 for m in usable), default=0),
                diverged=len(found) - len(usable),
                lacking=len(of_size) - len(found),
            )
        )
    return tuple(points)


HEADER = ("training samples", "validation, mean over seeds", "lowest to highest", "n", "seeds", "without a value")


def list_rows(study: Study, curve: CurveReport) -> Iterator[list[str]]:
    """Yield the rows of the table, as `HEADER` has its columns."""
    metric = study.objective.metric
    for point in curve.points:
        values = point.validation
        ends = f"{describe_value(metric, min(values), None)} to {describe_value(metric, max(values), None)}"
        lost = [f"{point.diverged} diverged"] if point.diverged else []
        lost += [f"{point.lacking} not measured"] if point.lacking else []
        yield [
            f"{point.samples}",
            describe_value(metric, fmean(values), None) if values else "–",
            ends if len(values) > 1 else "–",
            f"{point.n}" if values else "–",
            f"{len(values)}",
            ", ".join(lost),
        ]


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
            "validation": {
                "mean": fmean(point.validation) if point.validation else None,
                "values": list(point.validation),
                "n": point.n,
            },
            "diverged": point.diverged,
            "lacking": point.lacking,
        }
        for point in curve.points
    ]
    return {"trial": curve.of, "points": points, "message": curve.message}
