"""The report as one HTML page: no scripts, no fonts, nothing from the network; charts are inline SVG.

Called by the command line whenever a report is written. What is in tables and charts is worked out here; ``page.html``
says how it looks, and escapes all text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from jinja2 import Environment, PackageLoader, StrictUndefined

from study_operator.ledger.data_curve import DataCurve
from study_operator.ledger.early_percents import EarlyPercents
from study_operator.ledger.trial import Measurement, Origin, Trial
from study_operator.report.data_curve import (
    ATTRIBUTES_TITLE,
    CurvePoint,
    CurveReport,
    describe_title,
    list_attributes_header,
    list_attributes_rows,
    list_header,
    list_rows,
)
from study_operator.report.early_percents import EARLY_TITLE, list_early_header, list_early_rows
from study_operator.report.labels import label_rows
from study_operator.report.numbers import describe_value
from study_operator.report.report import (
    PREDICTOR_NAMES,
    PREDICTORS,
    Report,
    asking_lines,
    describe_arm,
    describe_cells,
    describe_continuation,
    describe_errors,
    describe_measurements,
    describe_metric,
    final_evaluation_rows,
    lines_of,
    loading_lines,
    name_measurements,
    ranked,
)
from study_operator.spec.study import Study
from trial_trainer.contract import DatasetSummary, FinalEvaluation, LabelAudit

_ENVIRONMENT = Environment(
    loader=PackageLoader("study_operator.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, kw_only=True)
class _Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int
    """The first column that is set to the right."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """One element of a chart."""

    tag: str
    attributes: Mapping[str, str]
    text: str = ""
    title: str = ""
    """Shown while the pointer rests on it."""


@dataclass(frozen=True, kw_only=True)
class _Chart:
    title: str
    width: int
    height: int
    marks: Sequence[_Mark]


def render_page(report: Report) -> str:
    """Return the whole page."""
    results, summary = report.final_evaluation, report.summary
    return _ENVIRONMENT.get_template("page.html").render(
        report=report,
        lines=lines_of(report),
        results=_results_table(results) if results is not None else None,
        cells=describe_cells(results) if results is not None else "",
        asking_lines=asking_lines(report) if report.adapter is not None and report.study.data.attributes else "",
        loading_lines=loading_lines(report) if report.adapter is not None else "",
        arms=_arms_chart(report),
        errors=describe_errors(report),
        trials=_trials_table(report),
        has_agreement=sum(trial.measurement(report.study.last_rung) is not None for trial in report.trials) >= 2,
        agreement=_agreement_chart(report),
        early=_early_table(report.study, report.early) if report.early is not None else None,
        early_title=EARLY_TITLE,
        curve=_curve_table(report.study, report.curve) if report.curve is not None else None,
        curve_chart=_curve_chart(report.study, report.curve) if report.curve is not None else None,
        curve_attributes=_curve_attributes_table(report.curve) if report.curve is not None else None,
        curve_attributes_title=ATTRIBUTES_TITLE,
        curve_title=describe_title(report.study, report.curve) if report.curve is not None else "",
        splits=_splits_table(summary) if summary is not None else None,
        labels=_labels_table(summary.audit) if summary is not None and summary.audit is not None else None,
    )


def _results_table(results: FinalEvaluation) -> _Table:
    names = [name for name in PREDICTORS if name in results.predictors]
    return _Table(
        header=["", *(PREDICTOR_NAMES[name] for name in names)],
        rows=[
            [label, *(describe_metric(metrics[name]) for name in names)]
            for label, metrics in final_evaluation_rows(results)
        ],
        numbers_from=1,
    )


def _early_table(study: Study, early: EarlyPercents) -> _Table:
    return _Table(header=list_early_header(), rows=list(list_early_rows(study, early)), numbers_from=0)


def _curve_table(study: Study, curve: CurveReport) -> _Table:
    return _Table(header=list_header(curve), rows=list(list_rows(study, curve)), numbers_from=0)


def _curve_attributes_table(curve: CurveReport) -> _Table | None:
    if not curve.attributes:
        return None
    return _Table(header=list_attributes_header(curve), rows=list(list_attributes_rows(curve)), numbers_from=1)


def _trials_table(report: Report) -> _Table:
    rows = [
        [
            trial.name + (" ★" if trial.name == report.winner else ""),
            trial.state.value,
            describe_continuation(trial),
            describe_arm(trial),
            trial.message,
            *describe_measurements(report.study, trial),
        ]
        for trial in ranked(report.study, report.trials)
    ]
    header = ["trial", "state", "continues as", "arm", "message"]
    header += name_measurements(report.study)
    return _Table(header=header, rows=rows, numbers_from=5)


def _splits_table(summary: DatasetSummary) -> _Table:
    rows = [
        [name, f"{split.pages:,}", f"{split.sites:,}", f"{split.samples:,}", f"{split.tokens:,}"]
        for name, split in summary.splits.items()
    ]
    return _Table(header=["split", "pages", "sites", "questions", "tokens"], rows=rows, numbers_from=1)


def _labels_table(audit: LabelAudit) -> _Table:
    return _Table(header=["", "attribute", "share", "labels", "sites"], rows=[*label_rows(audit)], numbers_from=2)


# --- Charts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return five values, evenly spaced."""
        return [self.low + (self.high - self.low) * i / 4 for i in range(5)]


def _axis(measurements: Sequence[Measurement], start: float, end: float) -> _Axis:
    lows = [m.value - (m.standard_error or 0.0) for m in measurements]
    highs = [m.value + (m.standard_error or 0.0) for m in measurements]
    low, high = min(lows), max(highs)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return _Axis(low=low - margin, high=high + margin, start=start, end=end)


def _arms_chart(report: Report) -> _Chart | None:
    """Early (open) and full-length (filled) measurements of every measured arm, best first, with standard errors."""
    trials = [trial for trial in ranked(report.study, report.trials) if _known(trial)]
    if not trials:
        return None
    metric = report.study.objective.metric
    axis = _axis([m for trial in trials for m in _known(trial)], 60, 700)
    height = 24 * len(trials) + 50
    marks = [mark for tick in axis.ticks() for mark in _upright(axis.at(tick), 10, height - 36, _label(metric, tick))]
    for row, trial in enumerate(trials):
        y = 24 * row + 24
        marks.append(_text(0, y + 4, trial.name))
        marks += [mark for measurement in _known(trial) for mark in _dot(report.study, axis, measurement, y, trial)]
    return _Chart(title=f"{metric} by arm", width=720, height=height, marks=marks)


def _known(trial: Trial) -> list[Measurement]:
    """Return the measurements that are a mean of anything. Of a model that diverged nothing was read."""
    return [measurement for measurement in trial.measurements if measurement.n != 0 and not measurement.diverged]


def _dot(study: Study, axis: _Axis, measurement: Measurement, y: float, trial: Trial) -> list[_Mark]:
    kind = "early" if measurement.rung < study.last_rung else "full"
    error = measurement.standard_error or 0.0
    bar = _line(axis.at(measurement.value - error), y, axis.at(measurement.value + error), y, {"class": kind})
    shape = "baseline" if trial.origin is Origin.BASELINE and kind == "full" else kind
    title = f"{trial.name}, {describe_arm(trial)}: step {measurement.step}"
    return [bar, _circle(axis.at(measurement.value), y, shape, title)]


def _agreement_chart(report: Report) -> _Chart | None:
    """Every trial that ran to full length: its last early measurement across, the final one up."""
    last = report.study.last_rung
    pairs = [
        (trial, early, final)
        for trial in report.trials
        if len(_known(trial)) == len(trial.measurements)
        and (early := trial.measurement(last - 1)) is not None
        and (final := trial.measurement(last)) is not None
    ]
    if not pairs:
        return None
    metric = report.study.objective.metric
    across = _axis([early for _, early, _ in pairs], 70, 440)
    up = _axis([final for _, _, final in pairs], 310, 20)
    marks = [mark for tick in across.ticks() for mark in _upright(across.at(tick), 20, 310, _label(metric, tick))]
    for tick in up.ticks():
        y = up.at(tick)
        marks.append(_line(70, y, 440, y))
        marks.append(_text(64, y + 4, _label(metric, tick), {"class": "soft", "text-anchor": "end"}))
    for trial, early, final in pairs:
        x, y = across.at(early.value), up.at(final.value)
        marks.append(_circle(x, y, "baseline" if trial.origin is Origin.BASELINE else "full"))
        marks.append(_text(x + 8, y - 6, trial.name))
    return _Chart(title="early against final", width=480, height=340, marks=marks)


def _curve_chart(study: Study, curve: CurveReport) -> _Chart | None:
    """Training samples across, on a log scale, the objective on validation up: runs (open), means, and the fit.

    Of two curves the one with variants has squares and a dashed line.
    """
    points = [point for point in curve.points if point.validation]
    sizes = sorted({point.samples for point in points})
    if len(sizes) < 2:
        return None
    values = [value for point in points for value in point.validation]
    margin = (max(values) - min(values)) * 0.1 or 0.05
    up = _Axis(low=min(values) - margin, high=max(values) + margin, start=310, end=20)
    across = _Axis(low=math.log(sizes[0]), high=math.log(sizes[-1]), start=90, end=660)
    metric = study.objective.metric
    marks = [mark for size in sizes for mark in _upright(across.at(math.log(size)), 20, 310, f"{size:,}")]
    for tick in up.ticks():
        y = up.at(tick)
        marks.append(_line(70, y, 680, y))
        marks.append(_text(64, y + 4, _label(metric, tick), {"class": "soft", "text-anchor": "end"}))
    for is_augmented in dict.fromkeys(point.is_augmented for point in points):
        fit = curve.find_fit(is_augmented)
        if fit is not None and fit.curve is not None:
            marks.append(_fit_line(fit, across, up, {"stroke-dasharray": "7 5"} if is_augmented else {}))
    for point in points:
        # Two of one size stand side by side.
        x = across.at(math.log(point.samples)) + {None: 0, False: -5, True: 5}[point.is_augmented]
        draw = _square if point.is_augmented else _circle
        marks += [draw(x, up.at(value), "early") for value in point.validation]
        title = f"{point.samples} samples{_KINDS[point.is_augmented]}: {_label(metric, fmean(point.validation))}"
        marks.append(draw(x, up.at(fmean(point.validation)), "full", title))
    marks += _name_curves(points, up)
    return _Chart(
        title=f"{metric} by training samples", width=820 if curve.is_compared else 700, height=340, marks=marks
    )


_KINDS = {None: "", False: ", without variants", True: ", with variants"}
LINE_HEIGHT = 16


def _name_curves(points: Sequence[CurvePoint], up: _Axis) -> list[_Mark]:
    """Return a name to the right of each of two curves, level with its last mean and clear of the other's."""
    level_by_kind = {p.is_augmented: up.at(fmean(p.validation)) for p in points if p.is_augmented is not None}
    upper = min(level_by_kind, key=level_by_kind.__getitem__, default=None)
    marks = []
    for is_augmented, level in level_by_kind.items():
        away = max(0.0, LINE_HEIGHT - (max(level_by_kind.values()) - min(level_by_kind.values()))) / 2
        y = level + 4 + (-away if is_augmented is upper else away) * (len(level_by_kind) - 1)
        marks.append(_text(690, y, _KINDS[is_augmented].removeprefix(", ")))
    return marks


def _fit_line(fit: DataCurve, across: _Axis, up: _Axis, more: Mapping[str, str]) -> _Mark:
    at = [across.low + (across.high - across.low) * i / 40 for i in range(41)]
    found = [(across.at(x), up.at(p.value)) for x in at if (p := fit.predict(math.exp(x))) is not None]
    path = " L ".join(f"{x:.1f} {y:.1f}" for x, y in found)
    return _Mark(tag="path", attributes={"class": "early", "d": f"M {path}", **more})


def _label(metric: str, value: float) -> str:
    return describe_value(metric, value, None)


def _upright(x: float, top: float, bottom: float, label: str) -> list[_Mark]:
    """Return a line of the grid with its label below."""
    return [
        _line(x, top, x, bottom),
        _text(x, bottom + 18, label, {"class": "soft", "text-anchor": "middle"}),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, more: Mapping[str, str] | None = None) -> _Mark:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return _Mark(tag="line", attributes={**ends, **(more or {})})


def _text(x: float, y: float, text: str, more: Mapping[str, str] | None = None) -> _Mark:
    return _Mark(tag="text", attributes={"x": f"{x:.1f}", "y": f"{y:.1f}", **(more or {})}, text=text)


def _circle(x: float, y: float, kind: str, title: str = "") -> _Mark:
    return _Mark(tag="circle", attributes={"class": kind, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "5"}, title=title)


def _square(x: float, y: float, kind: str, title: str = "") -> _Mark:
    corner = {"x": f"{x - 4.5:.1f}", "y": f"{y - 4.5:.1f}"}
    return _Mark(tag="rect", attributes={"class": kind, **corner, "width": "9", "height": "9"}, title=title)
