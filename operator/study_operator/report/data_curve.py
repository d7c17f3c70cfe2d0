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

from study_operator.ledger.curve_comparison import CurveComparison, SizeGain
from study_operator.ledger.data_curve import DataCurve, Shape
from study_operator.ledger.resampling import CONFIDENCE
from study_operator.ledger.trial import Trial
from study_operator.report.numbers import describe_value
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.contract import Edit, Metric, RungMeasurement


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What the runs on so many training samples measured."""

    samples: int
    is_augmented: bool | None
    """Whether these runs read variants of training pages; None where augmentation is not compared."""
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
class AttributeCurve:
    """Accuracy of one attribute on validation, by training samples."""

    attribute: str | None
    """None: the mean over the asked attributes."""
    is_augmented: bool | None
    n: int
    """Validation questions that each run's accuracy is a mean of."""
    mean_by_samples: Mapping[int, float]
    """Over seeds; sizes without a measured run are left out."""


@dataclass(frozen=True, kw_only=True)
class CurveReport:
    """All that is told of one data curve, finished or not."""

    of: str
    """Name of the trial whose arm it is measured with."""
    points: Sequence[CurvePoint]
    message: str
    """What it has and lacks, once it has ended."""
    fit: DataCurve | None = None
    """Of the objective on validation; None before the end, where nothing was measured, and where two are compared."""
    fit_is_augmented: bool | None = None
    """Of which kind of run it is, where two were to be compared and one alone was measured."""
    comparison: CurveComparison | None = None
    """Of runs without and with variants, where that is asked for."""
    attributes: Sequence[AttributeCurve] = ()
    """Empty before the end."""

    @property
    def is_compared(self) -> bool:
        """Whether runs without and with variants are compared."""
        return any(point.is_augmented is not None for point in self.points)

    def find_fit(self, is_augmented: bool | None) -> DataCurve | None:
        """Return the fit of one of the two curves, or of the only one."""
        if is_augmented is None or self.comparison is None:
            return self.fit if is_augmented is self.fit_is_augmented else None
        return self.comparison.augmented if is_augmented else self.comparison.plain


def list_points(study: Study, runs: Sequence[Trial], test: Mapping[str, Metric]) -> tuple[CurvePoint, ...]:
    """Return the points of a curve, the smallest size first.

    Args:
        study: the study.
        runs: of the curve.
        test: accuracy on the test set by name of the run, of those that it was read with.
    """
    points = []
    for size, is_augmented, of_size in _group(study, runs):
        found = [m for run in of_size if (m := run.measurement(study.last_rung)) is not None]
        usable = [m for m in found if not m.diverged]
        on_test = [metric for run in of_size if (metric := test.get(run.name)) is not None and metric.n]
        points.append(
            CurvePoint(
                samples=size,
                is_augmented=is_augmented,
                validation=tuple(m.value for m in usable),
                n=max((m.n or 0 for m in usable), default=0),
                test=tuple(metric.value for metric in on_test),
                test_n=max((metric.n for metric in on_test), default=0),
                diverged=len(found) - len(usable),
                lacking=len(of_size) - len(found),
            )
        )
    return tuple(points)


def list_attributes(
    study: Study, runs: Sequence[Trial], results: Mapping[str, RungMeasurement]
) -> tuple[AttributeCurve, ...]:
    """Return the accuracy of each asked attribute by size, the mean over them first.

    Args:
        study: the study.
        runs: of the curve.
        results: what each of them wrote, by its name.
    """
    groups, curves = list(_group(study, runs)), list[AttributeCurve]()
    for attribute in (None, *study.data.attributes) if study.data.attributes else ():
        name = "accuracy" if attribute is None else f"accuracy/{attribute}"
        for kind in dict.fromkeys(is_augmented for _, is_augmented, _ in groups):
            metrics_by_size = {
                size: [m for run in of_size if run.name in results and (m := results[run.name].metrics.get(name))]
                for size, is_augmented, of_size in groups
                if is_augmented is kind
            }
            asked = {size: [m for m in metrics if m.n] for size, metrics in metrics_by_size.items()}
            if any(asked.values()):
                curve = AttributeCurve(
                    attribute=attribute,
                    is_augmented=kind,
                    n=max(m.n for metrics in asked.values() for m in metrics),
                    mean_by_samples={
                        size: fmean(m.value for m in metrics) for size, metrics in asked.items() if metrics
                    },
                )
                curves.append(curve)
    return tuple(curves)


def _group(study: Study, runs: Sequence[Trial]) -> Iterator[tuple[int, bool | None, list[Trial]]]:
    """Yield the runs of each size; where augmentation is compared, those without variants and then those with them."""
    is_compared = study.data_curve is not None and study.data_curve.compare_augmentation
    for size in sorted({run.train_samples for run in runs if run.train_samples is not None}):
        of_size = [run for run in runs if run.train_samples == size]
        if not is_compared:
            yield size, None, of_size
            continue
        for is_augmented in (False, True):
            if of_kind := [run for run in of_size if run.without_variants is not is_augmented]:
                yield size, is_augmented, of_kind


def list_header(curve: CurveReport) -> list[str]:
    """Return the heads of the table's columns."""
    interval = f"{CONFIDENCE * 100:.0f} % interval"
    return [
        "training samples",
        *(["augmented"] if curve.is_compared else []),
        "seeds",
        "validation, mean over seeds",
        interval,
        *([f"gain by augmentation ({interval})"] if curve.is_compared else []),
        "lowest to highest",
        "n",
        "test accuracy, mean over seeds",
        "lowest to highest",
        "n",
        "without a value",
    ]


def list_rows(study: Study, curve: CurveReport) -> Iterator[list[str]]:
    """Yield the rows of the table, as `list_header` has its columns."""
    metric = study.objective.metric
    for point in curve.points:
        lost = [f"{point.diverged} diverged"] if point.diverged else []
        lost += [f"{point.lacking} not measured"] if point.lacking else []
        beside = [_describe_interval(study, curve, point)]
        beside += [_describe_gain_at(metric, curve, point)] if curve.is_compared else []
        yield [
            f"{point.samples}",
            *([_describe_kind(point.is_augmented)] if curve.is_compared else []),
            f"{len(point.validation)}",
            *_describe_values(metric, point.validation, point.n, beside),
            *_describe_values("accuracy", point.test, point.test_n),
            ", ".join(lost),
        ]


def _describe_kind(is_augmented: bool | None) -> str:
    return "yes" if is_augmented else "no"


def _describe_values(metric: str, values: Sequence[float], n: int, beside: Sequence[str] = ()) -> list[str]:
    """Return mean, what stands beside it, range, and what each value is a mean of."""
    if not values:
        return ["–"] * (3 + len(beside))
    lowest, highest = (describe_value(metric, value, None) for value in (min(values), max(values)))
    ends = f"{lowest} to {highest}" if len(values) > 1 else "–"
    return [describe_value(metric, fmean(values), None), *beside, ends, f"{n}"]


def _describe_interval(study: Study, curve: CurveReport, point: CurvePoint) -> str:
    """Return the interval of a size's mean over sites and seeds."""
    fit = curve.find_fit(point.is_augmented)
    sizes = fit.sizes if fit is not None else ()
    found = next((size for size in sizes if size.samples == point.samples), None)
    if found is None or found.low is None or found.high is None:
        return "–"
    low, high = (describe_value(study.objective.metric, value, None) for value in (found.low, found.high))
    return f"{low} to {high}"


def _describe_gain_at(metric: str, curve: CurveReport, point: CurvePoint) -> str:
    """Return what variants gain at a size, beside the runs with them."""
    if not point.is_augmented or curve.comparison is None:
        return ""
    found = next((gain for gain in curve.comparison.gains if gain.samples == point.samples), None)
    if found is None:
        return "–"
    # Either kind may have runs that lack their pair.
    runs = max(len(other.validation) for other in curve.points if other.samples == point.samples)
    pairs = f", {found.pairs} pair{'' if found.pairs == 1 else 's'}" if found.pairs < runs else ""
    return f"{_describe_gain(metric, found)}{pairs}"


def _describe_gain(metric: str, gain: SizeGain) -> str:
    scale, form, unit = (100, "+.1f", " points") if is_share(metric) else (1, "+.3g", "")
    interval = ""
    if gain.low is not None and gain.high is not None:
        interval = f" ({format(gain.low * scale, form)} to {format(gain.high * scale, form)})"
    return f"{format(gain.gain * scale, form)}{unit}{interval}"


def describe_fit(study: Study, curve: CurveReport) -> Iterator[str]:
    """Yield what the curve says in sentences: where it saturates, or that nobody can tell."""
    if curve.fit is not None:
        yield _describe_saturation(study, curve.fit, curve.fit_is_augmented)
    if curve.fit_is_augmented is not None:
        yield f"Nothing was measured {'without' if curve.fit_is_augmented else 'with'} variants: no gain is known."
    if curve.comparison is None:
        return
    yield _describe_saturation(study, curve.comparison.plain, is_augmented=False)
    yield _describe_saturation(study, curve.comparison.augmented, is_augmented=True)
    shift, worth = curve.comparison.shift, curve.comparison.worth
    if worth.times is None:
        yield f"What variants stand for in data is not identifiable from these sizes: {worth.message}."
    else:
        interval = f"{CONFIDENCE * 100:.0f} % interval {worth.low:.2g} to {worth.high:.2g}"
        yield (
            f"Variants stand for {worth.times:.2g} times the data ({interval}): without them the same "
            "takes so many times the samples."
        )
    if shift.ratio is None:
        yield f"How augmentation moves the saturation point is not identifiable from these sizes: {shift.message}."
    else:
        interval = f"{CONFIDENCE * 100:.0f} % interval {shift.low:.2g} to {shift.high:.2g}"
        yield f"Augmentation saturates at {shift.ratio:.2g} times the data ({interval})."
    if study.data.augment is not None and Edit.REPLACE_VALUES in study.data.augment.edits:
        yield (
            f"{Edit.REPLACE_VALUES} takes values from the whole training split: variants of a small part hold values "
            "of pages that are not in it, so that their gain is that of more than these pages."
        )


def _describe_saturation(study: Study, fit: DataCurve, is_augmented: bool | None) -> str:
    """Return one sentence on where a curve saturates, and with which kind of run, where there are two."""
    sentence = _describe_shape(study, fit)
    if is_augmented is None:
        return sentence
    return f"{'With' if is_augmented else 'Without'} variants: {sentence[0].lower()}{sentence[1:]}"


def _describe_shape(study: Study, fit: DataCurve) -> str:
    saturation, metric = fit.saturation, study.objective.metric
    gain = f"{saturation.least_gain:g}"
    if is_share(metric):
        gain = f"{saturation.least_gain * 100:g} point{'' if saturation.least_gain == 0.01 else 's'}"
    match saturation.shape:
        case Shape.SATURATES:
            low = f"{saturation.low:,.0f}" if saturation.low is not None else "less"
            high = f"{saturation.high:,.0f}" if saturation.high is not None else "more"
            interval = f"{CONFIDENCE * 100:.0f} % interval {low} to {high}"
            return (
                f"{metric} saturates near {saturation.samples:,.0f} training samples ({interval}): beyond, doubling "
                f"the data gains less than {gain}."
            )
        case Shape.STILL_GAINS:
            largest = f"{fit.sizes[-1].samples:,} training samples"
            return f"{metric} is not saturated: at {largest} doubling the data still gains {gain} or more."
        case Shape.TURNS_DOWN:
            return f"{metric} turns down: {saturation.message}, and no curve is fitted."
        case Shape.NOT_IDENTIFIABLE:
            return f"Where {metric} saturates is {saturation.message}."
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


ATTRIBUTES_TITLE = "Data curve: accuracy on validation by attribute, mean over seeds"


def list_attributes_header(curve: CurveReport) -> list[str]:
    """Return the heads of the columns of the table of attributes."""
    sizes = dict.fromkeys(point.samples for point in curve.points)
    return ["attribute", *(["augmented"] if curve.is_compared else []), *map(str, sizes), "n"]


def list_attributes_rows(curve: CurveReport) -> Iterator[list[str]]:
    """Yield its rows."""
    sizes = dict.fromkeys(point.samples for point in curve.points)
    for row in curve.attributes:
        means = [row.mean_by_samples.get(size) for size in sizes]
        yield [
            row.attribute or "mean of all asked",
            *([_describe_kind(row.is_augmented)] if curve.is_compared else []),
            *("–" if mean is None else describe_value("accuracy", mean, None) for mean in means),
            f"{row.n}",
        ]


def render_data_curve(study: Study, curve: CurveReport) -> Iterator[Table]:
    """Yield the tables of a curve."""
    header = list_header(curve)
    table = Table(title=describe_title(study, curve), title_justify="left")
    for i, head in enumerate(header):
        table.add_column(head, justify="left" if i == len(header) - 1 else "right")
    for row in list_rows(study, curve):
        table.add_row(*map(Text, row))
    yield table
    if curve.attributes:
        table = Table(title=ATTRIBUTES_TITLE, title_justify="left")
        for i, head in enumerate(list_attributes_header(curve)):
            table.add_column(head, justify="right" if i else "left")
        for row in list_attributes_rows(curve):
            table.add_row(*map(Text, row))
        yield table


def render_curve_json(curve: CurveReport) -> dict[str, Any]:
    """Return a curve as JSON values."""
    points = [
        {
            "samples": point.samples,
            "augmented": point.is_augmented,
            "validation": _values_as_json(point.validation, point.n),
            "test": _values_as_json(point.test, point.test_n),
            "diverged": point.diverged,
            "lacking": point.lacking,
        }
        for point in curve.points
    ]
    attributes = [
        {
            "attribute": row.attribute,
            "augmented": row.is_augmented,
            "n": row.n,
            "points": [{"samples": samples, "mean": mean} for samples, mean in row.mean_by_samples.items()],
        }
        for row in curve.attributes
    ]
    return {
        "trial": curve.of,
        "points": points,
        "fit": None if curve.fit is None else _fit_as_json(curve.fit),
        "fitAugmented": curve.fit_is_augmented,
        "comparison": None if curve.comparison is None else _comparison_as_json(curve.comparison),
        "attributes": attributes,
        "message": curve.message,
    }


def _comparison_as_json(comparison: CurveComparison) -> dict[str, Any]:
    return {
        "confidence": CONFIDENCE,
        "plain": _fit_as_json(comparison.plain),
        "augmented": _fit_as_json(comparison.augmented),
        "gains": [asdict(gain) for gain in comparison.gains],
        "worth": asdict(comparison.worth),
        "shift": asdict(comparison.shift),
    }


def _values_as_json(values: Sequence[float], n: int) -> dict[str, Any]:
    return {"mean": fmean(values) if values else None, "values": list(values), "n": n}
