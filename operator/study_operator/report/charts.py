"""The charts of the report's page: Vega-Lite specifications, each with a sentence and a table that say the same.

Called by ``page.py`` with what is reported. A specification is a dict of our own words; what comes from outside (names,
arms, messages) stands in its data and nowhere else, so that no text is read as an expression or as a field. Colours are
variables of the page's style sheet, which knows light, dark and print. What many charts say of a trial stands in the
page once (`list_drawn`), and they look it up there. https://vega.github.io/vega-lite/docs/
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, assert_never

from study_operator.ledger.failures import Failures
from study_operator.ledger.trial import Measurement, Origin, Trial
from study_operator.optimizer.reading import Slice, SlicePoint
from study_operator.report.data_curve import CurveReport
from study_operator.report.failures import describe_probability, describe_tried
from study_operator.report.numbers import describe_measurement, describe_metric, describe_value, percent, shorten
from study_operator.report.report import (
    LOWER,
    PREDICTOR_NAMES,
    PREDICTORS,
    Report,
    describe_arm,
    describe_hours,
    describe_parameter,
    final_evaluation_rows,
    ranked,
)
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Categorical, LogUniform, Parameter, Study, Uniform
from trial_trainer.contract import FinalEvaluation, ParameterValue

Spec = Mapping[str, Any]

MOST_ARMS = 60
"""A chart with a line for each arm shows the best of them; the leaderboard has all."""

MOST_PARAMETERS = 12
"""Of which each has a small chart of its own."""
MOST_LINES = 100
"""A chart with a line for each trial shows those on top of the leaderboard."""

WINNER, BASELINE, OTHER = "winner", "baseline", "other trials"
COLOURS = {WINNER: "var(--winner)", BASELINE: "var(--baseline)", OTHER: "var(--other)"}
PREDICTOR_COLOURS = ("var(--winner)", "var(--baseline)", "var(--third)", "var(--fourth)", "var(--other)")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
PICKED: Mapping[str, Any] = {"name": "picked", "value": ""}
"""The trial that somebody picked in the leaderboard; the page's script sets it."""
IS_PICKED = "picked == '' || datum.trial == picked"
TRIALS = "trials"
"""The data set of `list_drawn`, which the page's script gives to each chart."""

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "gridOpacity": 0.7,
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 170,
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        # As many as a phone has room for.
        "columns": {"expr": "width < 260 ? 1 : width < 480 ? 2 : 6"},
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolBaseFillColor": "var(--soft)",
        "symbolBaseStrokeColor": "var(--soft)",
        "symbolSize": 80,
        "symbolStrokeWidth": 1.5,
    },
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--soft)"},
    "point": {"filled": True, "size": 70, "opacity": 1},
    # Names and roles for those who don't see it are the figure's; each mark's would be read one by one.
    "aria": False,
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is read line by line."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int
    """The first column that is set to the right."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture, and what it says without one."""

    name: str
    title: str
    sentence: str
    """What it shows, for those who don't see it and below it for those who do."""
    table: Table | None
    """The values that are drawn; None where the leaderboard lists them."""
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The training loss of one trial, thinned."""

    trial: str
    points: Sequence[tuple[int, float]]
    """Steps, each with the mean loss of the steps since the one before, in nats per token."""


def list_drawn(report: Report) -> list[dict[str, Any]]:
    """Return what charts look up of each measured trial: its role, its arm, what the first rung measured if it did."""
    metric = report.study.objective.metric
    return [
        {
            "trial": trial.name,
            "role": _role(report, trial),
            "arm": shorten(describe_arm(trial)),
            "first": first.value if first is not None else None,
            "firstText": describe_measurement(metric, first),
        }
        for trial in report.trials
        if trial.measurements
        for first in [next(iter(known(trial)), None)]
    ]


def draw_arms(report: Report, errors: str) -> Chart | None:
    """Draw what the arms that stand on top of the leaderboard measured, with standard errors; None before there is one.

    Args:
        report: what is drawn.
        errors: what the bars are, or why there are none.
    """
    study, metric = report.study, report.study.objective.metric
    trials = [trial for trial in ranked(study, report.trials) if known(trial)]
    shown = trials[:MOST_ARMS]
    if not shown:
        return None
    rungs = name_rungs(study)
    values: list[dict[str, Any]] = [
        {
            "trial": trial.name,
            "value": m.value,
            "low": m.value - (m.standard_error or 0.0),
            "high": m.value + (m.standard_error or 0.0),
            "rung": rungs[m.rung],
            "text": describe_value(metric, m.value, m.standard_error),
        }
        for trial in shown
        for m in known(trial)
    ]
    y = {"field": "trial", "type": "nominal", "sort": [trial.name for trial in shown], "title": None}
    x = {"field": "value", **_quantity(metric, metric)}
    role = _roles(report, shown)
    fade = {"condition": {"test": IS_PICKED, "value": 1}, "value": 0.15}
    arms = {trial.name: shorten(describe_arm(trial)) for trial in shown}
    few = f" The first {MOST_ARMS} of {len(trials)} measured arms are drawn." if len(trials) > MOST_ARMS else ""
    return Chart(
        name="arms",
        title=f"{metric} by arm",
        sentence=f"{metric} by arm, who came furthest first, of these who ranks best there; orange: baseline; "
        f"bars: {errors}.{few}",
        table=Table(
            header=["trial", "measured at", metric, "arm"],
            rows=[[v["trial"], v["rung"], v["text"], arms[v["trial"]]] for v in values],
            numbers_from=4,
        ),
        spec={
            **_chart_trials(values, [PICKED]),
            "height": 24 * len(shown),
            "encoding": {"y": y, "opacity": fade},
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 1.5},
                    "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": role},
                },
                {
                    "mark": {"type": "point"},
                    "encoding": {
                        "x": x,
                        "color": role,
                        "shape": _kinds("rung", [*rungs.values()]),
                        "tooltip": _tips({"trial": "trial", "rung": "measured at", "text": metric, "arm": "arm"}),
                    },
                },
            ],
        },
    )


def draw_parameters(report: Report) -> list[Chart]:
    """Draw what the first rung measured by each parameter, of those that took two values or more.

    The measurements differ in the other parameters, too. Where the optimizer's model knows anything, what it predicts
    with these as they are in one arm is drawn behind them.
    """
    metric = report.study.objective.metric
    drawn = [trial for trial in report.trials if (measurements := known(trial)) and measurements[0].rung == 0]
    reading = report.model
    slices = {s.parameter: s for s in reading.slices} if reading is not None and reading.knows else {}
    charts = []
    for i, parameter in enumerate(report.study.parameters[:MOST_PARAMETERS]):
        measured = [(trial, trial.arm[parameter.name]) for trial in drawn if parameter.name in trial.arm]
        if len({value for _, value in measured}) < 2:
            continue
        values: list[dict[str, Any]] = [
            {"trial": trial.name, "setting": _place(parameter, value), "settingText": describe_parameter(value)}
            for trial, value in measured
        ]
        predicted: list[dict[str, Any]] = [
            {
                "setting": point.setting,
                "value": point.value,
                "low": point.low,
                "high": point.high,
                "settingText": describe_parameter(point.setting),
                "text": describe_value(metric, point.value, None),
                "band": f"{describe_value(metric, point.low, None)} to {describe_value(metric, point.high, None)}",
            }
            for point in _list_points(parameter, slices.get(parameter.name))
        ]
        x: dict[str, Any] = {"field": "setting", "title": parameter.name}
        match parameter.search_space:
            case Categorical(values=choices):
                # A baseline may have what is no choice.
                given = [*dict.fromkeys([*choices, *(v["setting"] for v in values)])]
                order = given if any(isinstance(value, str) for value in given) else sorted(given)
                x |= {"type": "ordinal", "sort": order, "axis": {"labelAngle": 0, "labelOverlap": True}}
            case LogUniform():
                x |= {"type": "quantitative", "scale": {"type": "log", "nice": False, "padding": 8}, "axis": _SPARSE}
            case Uniform():
                x |= {"type": "quantitative", "scale": {"zero": False, "nice": False, "padding": 8}, "axis": _SPARSE}
        y = {"field": "value", **_quantity(metric, metric)}
        tips = {"trial": "trial", "settingText": parameter.name, "firstText": metric, "arm": "arm"}
        shown = [trial for trial, _ in measured]
        behind = " Line and band: what the model predicts with all others as they are in one arm." if predicted else ""
        charts.append(
            Chart(
                name=f"parameter-{i}",
                title=f"{metric} by {parameter.name}",
                sentence=f"{metric} at the first measurement by {parameter.name}.{behind}",
                table=Table(
                    header=[parameter.name, f"predicted {metric}", "90 % band"],
                    rows=[[v["settingText"], v["text"], v["band"]] for v in predicted],
                    numbers_from=0,
                )
                if predicted
                else None,
                spec={
                    **_chart_trials(values, [PICKED]),
                    "height": 170,
                    "encoding": {"x": x},
                    "layer": [
                        *_draw_slice(predicted, y, is_line="scale" in x),
                        {
                            "mark": {"type": "point", "size": 55},
                            "encoding": {
                                "y": {**y, "field": "first"},
                                "color": {**_roles(report, shown), "legend": None},
                                "shape": {**_role_shapes(report, shown), "legend": None},
                                "opacity": {"condition": {"test": IS_PICKED, "value": 1}, "value": 0.2},
                                "tooltip": _tips(tips),
                            },
                        },
                    ],
                },
            )
        )
    return charts


def _place(parameter: Parameter, value: ParameterValue) -> ParameterValue:
    """Return where a value stands on its axis: a choice as it is, a number in as many digits as anybody sees."""
    if isinstance(parameter.search_space, Categorical) or not isinstance(value, float):
        return value
    return float(f"{value:.6g}")


_SPARSE: Mapping[str, Any] = {"labelOverlap": "greedy", "labelSeparation": 8, "tickCount": 5}
"""An axis of a small chart, whose labels must not touch."""


def _list_points(parameter: Parameter, found: Slice | None) -> Sequence[SlicePoint]:
    """Return the points of a slice as far as they can stand on the parameter's axis; the bucket may hold anything."""
    points = found.points if found is not None else ()
    match parameter.search_space:
        case Categorical(values=choices):
            return [point for point in points if point.setting in choices]
        case LogUniform():
            return [point for point in points if not isinstance(point.setting, str) and point.setting > 0]
        case Uniform():
            return [point for point in points if not isinstance(point.setting, str)]
        case _ as unknown:
            assert_never(unknown)


def _draw_slice(predicted: Sequence[Mapping[str, Any]], y: Mapping[str, Any], *, is_line: bool) -> list[dict[str, Any]]:
    """Draw a band with a line in it; of choices, between which there is nothing, bars with a tick."""
    if not predicted:
        return []
    data = {"data": {"values": list(predicted)}}
    band = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    middle = {"y": y, "tooltip": _tips({"settingText": "setting", "text": "predicted", "band": "90 % band"})}
    if is_line:
        area = {"type": "area", "color": "var(--pale)", "opacity": 0.45}
        return [
            {**data, "mark": area, "encoding": band},
            {**data, "mark": {"type": "line", "color": "var(--soft)", "strokeWidth": 1.6}, "encoding": middle},
        ]
    rule = {"type": "rule", "color": "var(--pale)", "strokeWidth": 14, "opacity": 0.6}
    tick = {"type": "tick", "color": "var(--soft)", "thickness": 2, "width": 18, "orient": "horizontal"}
    return [{**data, "mark": rule, "encoding": band}, {**data, "mark": tick, "encoding": middle}]


TOTAL, FIRST = "in all", "alone"


def draw_importance(report: Report) -> Chart | None:
    """Draw how much each parameter matters by the optimizer's model; None where it knows nothing."""
    reading = report.model
    if reading is None or not reading.importances:
        return None
    names = [importance.parameter for importance in reading.importances]
    values: list[dict[str, Any]] = [
        {
            "parameter": importance.parameter,
            "kind": kind,
            "value": share.value,
            "low": share.low,
            "high": share.high,
            "text": f"{percent(share.value)} ({share.low * 100:.1f}–{share.high * 100:.1f})",
        }
        for importance in reading.importances
        for kind, share in ((TOTAL, importance.total), (FIRST, importance.first))
    ]
    text = {(v["parameter"], v["kind"]): v["text"] for v in values}
    x = {"field": "value", **_quantity("accuracy", "share of the variance"), "scale": {"domain": [0, 1]}}
    tips = {"parameter": "parameter", "kind": "share", "text": "of the variance"}
    return Chart(
        name="importance",
        title="How much each parameter matters",
        sentence=(
            "Sobol indices: the share of the variance of what the model predicts over the whole search space that a "
            f"parameter explains {FIRST}, and {TOTAL}, which is together with others, too. Bars: the middle 90 % of "
            "the model's draws."
        ),
        table=Table(
            header=["parameter", TOTAL, FIRST],
            rows=[[name, text[name, TOTAL], text[name, FIRST]] for name in names],
            numbers_from=1,
        ),
        spec={
            **_chart(values),
            "height": 42 * len(names),
            "encoding": {
                "y": {
                    "field": "parameter",
                    "type": "nominal",
                    "sort": names,
                    "title": None,
                    "scale": {"paddingInner": 0.3},
                },
                "yOffset": {"field": "kind", "sort": [TOTAL, FIRST]},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {"domain": [TOTAL, FIRST], "range": ["var(--winner)", "var(--other)"]},
                },
            },
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 1.5},
                    "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "size": 50},
                    "encoding": {"x": x, "shape": _kinds("kind", [TOTAL, FIRST]), "tooltip": _tips(tips)},
                },
            ],
        },
    )


FAILED, GOOD = "failed", "did not fail"


def draw_failures(failures: Failures, table: Table) -> Chart | None:
    """Draw the map of failures of one rank, which a control chooses, with the trials on it; None without a map.

    Args:
        failures: what is known of them.
        table: the map's own.
    """
    if not failures.cells:
        return None
    rates, alphas = (
        _find_edges(sorted({c.learning_rate for c in failures.cells})),
        _find_edges(sorted({c.alpha for c in failures.cells})),
    )
    cells: list[dict[str, Any]] = [
        {
            "rank": c.rank,
            "low": alphas[c.alpha][0],
            "high": alphas[c.alpha][1],
            "bottom": rates[c.learning_rate][0],
            "top": rates[c.learning_rate][1],
            "probability": c.probability,
            "text": describe_probability(c),
            "tried": describe_tried(c),
            "place": f"rank {c.rank:.3g}, learning rate {c.learning_rate:.2g}, alpha {c.alpha:.3g}",
        }
        for c in failures.cells
    ]
    marks: list[dict[str, Any]] = [
        {
            "trial": m.trial,
            "rank": m.map_rank,
            "rate": m.learning_rate,
            "alpha": m.alpha,
            "kind": FAILED if m.has_failed else GOOD,
            "arm": f"rank {m.rank:g}, learning rate {m.learning_rate:.2g}, alpha {m.alpha:.3g}",
        }
        for m in failures.marks
    ]
    middle = failures.ranks[len(failures.ranks) // 2]
    rank: dict[str, Any] = {"name": "rank", "value": middle}
    if len(failures.ranks) > 1:
        labels = [f"{one:.3g}" for one in failures.ranks]
        rank["bind"] = {"input": "radio", "name": "rank ", "options": list(failures.ranks), "labels": labels}
    at = {"transform": [{"filter": "datum.rank == rank"}]}
    axis = {
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"grid": False, "labelOverlap": "greedy", "labelSeparation": 8},
    }
    x, y = {**axis, "title": "alpha"}, {**axis, "title": "learning rate"}
    kinds = {"domain": [FAILED, GOOD]}
    return Chart(
        name="failures",
        title="Probability of a failure",
        sentence=(
            "Probability of a failure by learning rate (up) and alpha (across), on logarithmic scales, the redder, the "
            f"higher; crosses: trials that failed, circles: trials that did not.{_describe_ranks(failures, middle)}"
        ),
        table=table,
        spec={
            **_chart([], [rank, PICKED]),
            "height": 320,
            "layer": [
                {
                    "data": {"values": cells},
                    **at,
                    "mark": {"type": "rect", "color": "var(--wrong)", "stroke": "var(--paper)", "strokeWidth": 1},
                    "encoding": {
                        "x": {**x, "field": "low"},
                        "x2": {"field": "high"},
                        "y": {**y, "field": "bottom"},
                        "y2": {"field": "top"},
                        "fillOpacity": {
                            "field": "probability",
                            "type": "quantitative",
                            "scale": {"domain": [0, 1], "range": [0.04, 0.8]},
                            "legend": None,
                        },
                        "tooltip": _tips({"place": "at", "text": "failure", "tried": "failed here"}),
                    },
                },
                {
                    "data": {"values": cells},
                    "transform": [
                        *at["transform"],
                        # At the left end: trials of choices stand in the middle.
                        {"calculate": "pow(datum.low, 0.95) * pow(datum.high, 0.05)", "as": "x"},
                        {"calculate": "pow(datum.bottom, 0.12) * pow(datum.top, 0.88)", "as": "y"},
                    ],
                    "mark": {"type": "text", "fontSize": 11, "align": "left", "color": "var(--ink)"},
                    "encoding": {
                        "x": {**x, "field": "x"},
                        "y": {**y, "field": "y"},
                        "text": {"field": "probability", "type": "quantitative", "format": ".0%"},
                    },
                },
                {
                    "data": {"values": marks},
                    **at,
                    "mark": {"type": "point", "size": 70, "filled": False, "strokeWidth": 2},
                    "encoding": {
                        "x": {**x, "field": "alpha"},
                        "y": {**y, "field": "rate"},
                        "shape": {"field": "kind", "type": "nominal", "scale": {**kinds, "range": ["cross", "circle"]}},
                        "color": {
                            "field": "kind",
                            "type": "nominal",
                            "scale": {**kinds, "range": ["var(--ink)", "var(--winner)"]},
                        },
                        "opacity": {"condition": {"test": IS_PICKED, "value": 1}, "value": 0.2},
                        "tooltip": _tips({"trial": "trial", "kind": "it", "arm": "arm"}),
                    },
                },
            ],
        },
    )


def _describe_ranks(failures: Failures, shown: float) -> str:
    if len(failures.ranks) == 1:
        return f" All at rank {shown:.3g}."
    return f" Of one rank at a time, at first {shown:.3g}; a trial stands at the nearest one."


def _find_edges(places: Sequence[float]) -> dict[float, tuple[float, float]]:
    """Return from where to where each place of a logarithmic axis reaches: half way to its neighbours."""
    if len(places) == 1:
        return {places[0]: (places[0] / 2, places[0] * 2)}
    inner = [math.sqrt(one * other) for one, other in pairwise(places)]
    edges = [places[0] ** 2 / inner[0], *inner, places[-1] ** 2 / inner[-1]]
    return dict(zip(places, pairwise(edges), strict=True))


def draw_losses(report: Report, curves: Sequence[LossCurve]) -> Chart | None:
    """Draw the training loss of each trial by the share of its full length; None where no trainer wrote any."""
    trial_by_name = {trial.name: trial for trial in report.trials}
    drawn = [(trial_by_name[c.trial], c.points) for c in curves if c.trial in trial_by_name and c.points]
    if not drawn:
        return None
    values: list[dict[str, Any]] = [
        {
            "trial": trial.name,
            "share": round(step / max(trial.total_steps, 1), 4),
            "loss": float(f"{loss:.4g}"),
        }
        for trial, points in drawn
        for step, loss in points
    ]
    losses = [value["loss"] for value in values]
    # The first steps lose many times what the last ones do.
    is_wide = min(losses) > 0 and max(losses) > 5 * min(losses)
    is_thinned = any(step > i for _, points in drawn for i, (step, _) in enumerate(points, start=1))
    count = sum(bool(known(trial)) for trial in report.trials)
    few = f" {len(drawn)} of {count} measured trials are drawn." if len(drawn) < count else ""
    return Chart(
        name="losses",
        title="Training loss",
        sentence=(
            "Training loss in nats per token by the share of the full length, "
            + ("each point the mean of the steps since the one before." if is_thinned else "step by step.")
            + (" The scale is logarithmic." if is_wide else "")
            + few
        ),
        table=Table(
            header=["trial", "first loss", "lowest", "last", "at step", "of"],
            rows=[
                [
                    trial.name,
                    f"{points[0][1]:.4g}",
                    f"{min(loss for _, loss in points):.4g}",
                    f"{points[-1][1]:.4g}",
                    f"{points[-1][0]}",
                    f"{trial.total_steps}",
                ]
                for trial, points in drawn
            ],
            numbers_from=1,
        ),
        spec={
            **_chart_trials(values, [PICKED, _hover("trial")]),
            "height": 300,
            "mark": {"type": "line", "interpolate": "monotone"},
            "encoding": {
                "x": {"field": "share", **_quantity("accuracy", "share of the full length"), "scale": {"nice": False}},
                "y": {
                    "field": "loss",
                    "type": "quantitative",
                    "title": "training loss",
                    "scale": {"type": "log", "nice": False} if is_wide else {"zero": False},
                },
                "detail": {"field": "trial", "type": "nominal"},
                "color": _roles(report, [trial for trial, _ in drawn]),
                "strokeWidth": _emphasis(2.8, 1.2),
                "opacity": _opacity(),
                "tooltip": _tips({"trial": "trial", "arm": "arm"}),
            },
        },
    )


def draw_validation(report: Report) -> Chart | None:
    """Draw the objective on validation by the share of the full length; None where no trial has two measurements."""
    metric = report.study.objective.metric
    measured = [trial for trial in ranked(report.study, report.trials) if known(trial)]
    trials = measured[:MOST_LINES]
    if not any(len(known(trial)) > 1 for trial in trials):
        return None
    values: list[dict[str, Any]] = [
        {
            "trial": trial.name,
            "share": round(m.step / max(trial.total_steps, 1), 4),
            "value": m.value,
            "text": describe_value(metric, m.value, m.standard_error),
            "step": m.step,
        }
        for trial in trials
        for m in known(trial)
    ]
    return Chart(
        name="validation",
        title=f"{metric} on validation while training",
        sentence=f"{metric} on validation by the share of the full length that was trained; a line joins one trial's."
        + (
            f" The best {len(trials)} of {len(measured)} measured trials are drawn."
            if len(trials) < len(measured)
            else ""
        ),
        table=Table(
            header=["trial", "step", "of", metric],
            rows=[
                [trial.name, f"{m.step}", f"{trial.total_steps}", describe_value(metric, m.value, m.standard_error)]
                for trial in trials
                for m in known(trial)
            ],
            numbers_from=1,
        ),
        spec={
            **_chart_trials(values, [PICKED]),
            "height": 300,
            "encoding": {
                "x": {"field": "share", **_quantity("accuracy", "share of the full length"), "scale": {"nice": False}},
                "y": {"field": "value", **_quantity(metric, metric)},
                "detail": {"field": "trial", "type": "nominal"},
                "color": _roles(report, trials),
                "opacity": _opacity(),
            },
            "layer": [
                {"mark": {"type": "line", "strokeWidth": 1.4}},
                {
                    "params": [_hover("trial")],
                    "mark": {"type": "point"},
                    "encoding": {"tooltip": _tips({"trial": "trial", "step": "step", "text": metric, "arm": "arm"})},
                },
            ],
        },
    )


def draw_agreement(report: Report) -> Chart | None:
    """Draw every trial that ran to full length: its last early measurement across, the final one up."""
    metric, last = report.study.objective.metric, report.study.last_rung
    pairs = [
        (trial, early, final)
        for trial in report.trials
        if len(known(trial)) == len(trial.measurements)
        and (early := trial.measurement(last - 1)) is not None
        and (final := trial.measurement(last)) is not None
    ]
    if not pairs:
        return None
    values: list[dict[str, Any]] = [
        {
            "trial": trial.name,
            "early": early.value,
            "final": final.value,
            "earlyText": describe_value(metric, early.value, early.standard_error),
            "finalText": describe_value(metric, final.value, final.standard_error),
        }
        for trial, early, final in pairs
    ]
    tips = {"trial": "trial", "earlyText": "early", "finalText": "full length", "arm": "arm"}
    shown = [trial for trial, _, _ in pairs]
    return Chart(
        name="agreement",
        title="Early against final",
        sentence=(
            f"{metric}: early measurement across, full length up. Both are read on the same validation pages. Where "
            "early measurements rank trials as final ones do, the points rise from left to right."
        ),
        table=Table(
            header=["trial", f"{metric} early", f"{metric} full length"],
            rows=[[v["trial"], v["earlyText"], v["finalText"]] for v in values],
            numbers_from=1,
        ),
        spec={
            **_chart_trials(values, [PICKED]),
            "height": 320,
            "encoding": {
                "x": {"field": "early", **_quantity(metric, f"{metric} early")},
                "y": {"field": "final", **_quantity(metric, f"{metric} full length")},
                "opacity": {"condition": {"test": IS_PICKED, "value": 1}, "value": 0.2},
            },
            "layer": [
                {
                    "mark": {"type": "point"},
                    "encoding": {
                        "color": _roles(report, shown),
                        "shape": _role_shapes(report, shown),
                        "tooltip": _tips(tips),
                    },
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 8, "dy": -6, "fontSize": 11},
                    "encoding": {"text": {"field": "trial", "type": "nominal"}},
                },
            ],
        },
    )


def draw_attributes(results: FinalEvaluation) -> Chart | None:
    """Draw accuracy on the test set by attribute: the winner beside every baseline, with intervals."""
    names = [name for name in PREDICTORS if name in results.predictors]
    rows = [(label, metrics) for label, metrics in final_evaluation_rows(results) if not label.endswith(LOWER)]
    values: list[dict[str, Any]] = [
        {
            "row": label,
            "predictor": PREDICTOR_NAMES[name],
            "value": metric.value,
            "low": metric.value if metric.low is None else metric.low,
            "high": metric.value if metric.high is None else metric.high,
            "text": describe_metric(metric),
            "n": metric.n,
        }
        for label, metrics in rows
        for name in names
        if (metric := metrics[name]).n
    ]
    if not values:
        return None
    shown = [PREDICTOR_NAMES[name] for name in names]
    colour = {
        "field": "predictor",
        "type": "nominal",
        "scale": {"domain": shown, "range": list(PREDICTOR_COLOURS[: len(shown)])},
    }
    x = {"field": "value", **_quantity("accuracy", "share of right values"), "scale": {"domain": [0, 1]}}
    y = {"field": "row", "type": "nominal", "sort": [label for label, _ in rows], "title": None}
    tips = {"row": "attribute", "predictor": "predictor", "text": "share of right values", "n": "questions"}
    return Chart(
        name="attributes",
        title="Test set: accuracy by attribute",
        sentence="Share of right values on the test set, the winner beside every baseline; bars: 95 % intervals.",
        table=Table(
            header=["", *shown],
            rows=[[label, *(describe_metric(metrics[name]) for name in names)] for label, metrics in rows],
            numbers_from=1,
        ),
        spec={
            **_chart(values),
            "height": len(rows) * (10 * len(names) + 18),
            "encoding": {
                "y": {**y, "scale": {"paddingInner": 0.25}},
                "yOffset": {"field": "predictor", "sort": shown},
                "color": colour,
            },
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 1.5},
                    "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "size": 45},
                    "encoding": {"x": x, "shape": _kinds("predictor", shown), "tooltip": _tips(tips)},
                },
            ],
        },
    )


def draw_usage(report: Report) -> Chart | None:
    """Draw accelerator time spent, beside what full-length runs would have taken; None where that is not known."""
    if report.saved_hours is None or report.spent_hours <= 0:
        return None
    full = report.spent_hours + report.saved_hours
    hours = {"this search": report.spent_hours, "every measured trial at full length": full}
    # Minutes of a small study would all be 0.0 hours.
    scale, unit = (60, "minutes") if full < 2 else (1, "hours")
    values: list[dict[str, Any]] = [
        {"run": run, "time": round(time * scale, 4), "text": describe_hours(time)} for run, time in hours.items()
    ]
    title = f"accelerator time, {unit}"
    return Chart(
        name="usage",
        title="Accelerator time",
        sentence="Accelerator time of this search, and what every measured trial would have taken at its full length.",
        table=Table(header=["", "accelerator time"], rows=[[v["run"], v["text"]] for v in values], numbers_from=1),
        spec={
            **_chart(values),
            "height": 84,
            "encoding": {
                "y": {
                    "field": "run",
                    "type": "nominal",
                    "sort": [*hours],
                    "title": None,
                    "axis": {"labelLimit": 240, "labels": False, "ticks": False},
                },
                "x": {"field": "time", "type": "quantitative", "title": title},
            },
            "layer": [
                {
                    "mark": {"type": "bar", "height": 12},
                    "encoding": {
                        "color": {
                            "field": "run",
                            "type": "nominal",
                            "scale": {"domain": list(hours), "range": ["var(--winner)", "var(--pale)"]},
                            "legend": None,
                        },
                        "tooltip": _tips({"run": "run", "text": "accelerator time"}),
                    },
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 2, "dy": -15},
                    "encoding": {"x": {"value": 0}, "text": {"field": "run", "type": "nominal"}},
                },
            ],
        },
    )


def draw_data_curve(study: Study, curve: CurveReport, table: Table) -> Chart | None:
    """Draw the objective on validation by training samples: runs, means, the fit. None of fewer than two sizes.

    Args:
        study: the study.
        curve: its data curve.
        table: the curve's own.
    """
    points = [point for point in curve.points if point.validation]
    sizes = sorted({point.samples for point in points})
    if len(sizes) < 2:
        return None
    metric = study.objective.metric
    runs = [
        {"samples": p.samples, "kind": _KINDS[p.is_augmented], "value": value, "mark": "run"}
        for p in points
        for value in p.validation
    ]
    means = [
        {
            "samples": p.samples,
            "kind": _KINDS[p.is_augmented],
            "value": fmean(p.validation),
            "text": describe_value(metric, fmean(p.validation), None),
            "mark": "mean",
        }
        for p in points
    ]
    fitted = [value for kind in dict.fromkeys(p.is_augmented for p in points) for value in _fit(curve, kind, sizes)]
    kinds = [_KINDS[kind] for kind in dict.fromkeys(p.is_augmented for p in points)]
    legend = {} if curve.is_compared else {"legend": None}
    colours = list(PREDICTOR_COLOURS[: len(kinds)])
    dashes = [[1, 0], [7, 5]][: len(kinds)]
    tips = {"kind": "runs", "samples": "training samples", "text": metric}
    compared = " Circles and solid: without variants; squares and dashed: with variants." if curve.is_compared else ""
    return Chart(
        name="data-curve",
        title=f"{metric} by training samples",
        sentence=(
            f"{metric} on validation by training samples, on a logarithmic scale; open: each run, filled: the mean of "
            f"a size, line: the fit.{compared}"
        ),
        table=table,
        spec={
            **_chart([*runs, *means, *fitted]),
            "height": 320,
            "encoding": {
                "x": {
                    "field": "samples",
                    "type": "quantitative",
                    "title": "training samples",
                    "scale": {"type": "log", "nice": False, "padding": 14},
                    "axis": {"values": sizes, "format": ",d", "labelOverlap": True},
                },
                "y": {"field": "value", **_quantity(metric, metric)},
                "color": {"field": "kind", "type": "nominal", "scale": {"domain": kinds, "range": colours}, **legend},
            },
            "layer": [
                {
                    "transform": [{"filter": {"field": "mark", "equal": "fit"}}],
                    "mark": {"type": "line", "strokeWidth": 1.8},
                    "encoding": {
                        "strokeDash": {
                            "field": "kind",
                            "type": "nominal",
                            "scale": {"domain": kinds, "range": dashes},
                            **legend,
                        }
                    },
                },
                {
                    "transform": [{"filter": {"field": "mark", "equal": "run"}}],
                    "mark": {"type": "point", "filled": False, "size": 45},
                    "encoding": {"shape": {**_kinds("kind", kinds), **legend}},
                },
                {
                    "transform": [{"filter": {"field": "mark", "equal": "mean"}}],
                    "mark": {"type": "point"},
                    "encoding": {"shape": {**_kinds("kind", kinds), **legend}, "tooltip": _tips(tips)},
                },
            ],
        },
    )


_KINDS = {None: "runs", False: "without variants", True: "with variants"}


def _fit(curve: CurveReport, kind: bool | None, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return forty points of a fit, evenly spaced on a log scale."""
    fit = curve.find_fit(kind)
    if fit is None or fit.curve is None:
        return []
    low, high = math.log(sizes[0]), math.log(sizes[-1])
    at = [math.exp(low + (high - low) * i / 40) for i in range(41)]
    found = [(size, predicted) for size in at if (predicted := fit.predict(size)) is not None]
    return [{"samples": size, "kind": _KINDS[kind], "value": p.value, "mark": "fit"} for size, p in found]


def known(trial: Trial) -> list[Measurement]:
    """Return the measurements that are a mean of anything. Of a model that diverged nothing was read."""
    return [measurement for measurement in trial.measurements if measurement.n != 0 and not measurement.diverged]


def name_rungs(study: Study) -> dict[int, str]:
    """Return how a chart calls each rung."""
    percents = study.early_evaluation.rungs
    early = ["early"] if len(percents) == 1 else [f"at {percent} %" for percent in percents]
    return dict(enumerate([*early, "full length"]))


def _role(report: Report, trial: Trial) -> str:
    if trial.name == report.winner:
        return WINNER
    return BASELINE if trial.origin is Origin.BASELINE else OTHER


def _roles(report: Report, trials: Sequence[Trial]) -> dict[str, Any]:
    """Colour by role, of those that there are."""
    roles = _list_roles(report, trials)
    return {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": roles, "range": [COLOURS[role] for role in roles]},
    }


def _role_shapes(report: Report, trials: Sequence[Trial]) -> dict[str, Any]:
    roles = _list_roles(report, trials)
    shape = dict(zip(COLOURS, ("diamond", "square", "circle"), strict=True))
    return {"field": "role", "type": "nominal", "scale": {"domain": roles, "range": [shape[role] for role in roles]}}


def _list_roles(report: Report, trials: Sequence[Trial]) -> list[str]:
    found = {_role(report, trial) for trial in trials}
    return [role for role in COLOURS if role in found]


def _kinds(field: str, names: Sequence[str]) -> dict[str, Any]:
    """Tell kinds apart by shape, for those who don't see colours."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    return {"field": field, "type": "nominal", "scale": {"domain": list(names), "range": shapes}}


def _quantity(metric: str, title: str) -> dict[str, Any]:
    """Return a linear scale that need not begin at zero; shares are percent."""
    axis = {"axis": {"format": "~%"}} if is_share(metric) else {}
    return {"type": "quantitative", "title": title, "scale": {"zero": False}, **axis}


def _emphasis(strong: float, weak: float) -> dict[str, Any]:
    """Be strong for the winner and whatever is picked or pointed at, weak for the rest."""
    return {
        "condition": [
            {"param": "hover", "empty": False, "value": strong},
            {"test": "picked != '' ? datum.trial == picked : datum.role == 'winner'", "value": strong},
        ],
        "value": weak,
    }


def _opacity() -> dict[str, Any]:
    return {
        "condition": [{"param": "hover", "empty": False, "value": 1}, {"test": IS_PICKED, "value": 0.85}],
        "value": 0.12,
    }


def _hover(field: str) -> dict[str, Any]:
    return {"name": "hover", "select": {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": [field]}}


def _tips(title_by_field: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"field": field, "type": "nominal", "title": title} for field, title in title_by_field.items()]


def _chart(values: Sequence[Mapping[str, Any]], params: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {
        "data": {"values": list(values)},
        "width": "container",
        **({"params": list(params)} if params else {}),
    }


def _chart_trials(values: Sequence[Mapping[str, Any]], params: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the same for rows that each belong to a trial, where there may be thousands.

    They stand by column, so that no field's name is repeated; what `list_drawn` knows of their trials is looked up.
    """
    columns = {name: [value[name] for value in values] for name in values[0]}
    found = {"data": {"name": TRIALS}, "key": "trial", "fields": ["role", "arm", "first", "firstText"]}
    return _chart([columns], params) | {
        "transform": [{"flatten": list(columns)}, {"lookup": "trial", "from": found}],
    }
