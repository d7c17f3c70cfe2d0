"""The report as one HTML page that needs nothing else: no network, no fonts, no files beside it.

Called by `write.py` whenever a report is written. What stands in tables and charts is worked out here and in
``charts.py``; ``page.html`` says what stands where, ``page.css`` how it looks; ``page.js`` sorts, filters and has Vega
draw the charts. Without scripts every value stands in a table.

Texts of pages, answers and manifests are hostile. The template escapes all of them, the charts' data is JSON in which
no tag can begin, and the page's own policy lets no script run but its two, which it names by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from study_operator.ledger.early_percents import EarlyPercents
from study_operator.ledger.failures import Failures
from study_operator.ledger.trial import Trial
from study_operator.report.charts import (
    CONFIG,
    TRIALS,
    LossCurve,
    Table,
    draw_agreement,
    draw_arms,
    draw_attributes,
    draw_data_curve,
    draw_failures,
    draw_importance,
    draw_losses,
    draw_parameters,
    draw_usage,
    draw_validation,
    list_drawn,
)
from study_operator.report.data_curve import (
    ATTRIBUTES_TITLE,
    CurveReport,
    describe_title,
    list_attributes_header,
    list_attributes_rows,
    list_header,
    list_rows,
)
from study_operator.report.early_percents import EARLY_TITLE, list_early_header, list_early_rows
from study_operator.report.examples import show_examples
from study_operator.report.failures import describe_map, list_map_header, list_map_rows
from study_operator.report.labels import label_rows
from study_operator.report.model import describe_model, describe_slices
from study_operator.report.numbers import describe_metric, shorten
from study_operator.report.report import (
    PREDICTOR_NAMES,
    PREDICTORS,
    Report,
    asking_lines,
    describe_cells,
    describe_continuation,
    describe_errors,
    describe_measurements,
    describe_parameter,
    final_evaluation_rows,
    lines_of,
    list_further_metrics,
    loading_lines,
    name_measurements,
    ranked,
)
from study_operator.report.seeds import SEEDS_TITLE, SeedRow, list_seed_header, list_seed_rows
from study_operator.spec.study import Study
from trial_trainer.contract import DatasetSummary, Examples, FinalEvaluation, LabelAudit, ParameterValue

_ENVIRONMENT = Environment(
    loader=PackageLoader("study_operator.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# Of a large study the charts' data are a third of the page.
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":")}


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One cell of the leaderboard."""

    text: str
    order: str | None = None
    """What it is sorted by; None: its text. What is empty stands last in either direction."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One trial of the leaderboard."""

    trial: str
    state: str
    is_winner: bool
    cells: Sequence[_Cell]


@dataclass(frozen=True, kw_only=True)
class _Leaderboard:
    """All trials, the best on top."""

    header: Sequence[str]
    rows: Sequence[_Row]
    states: Sequence[str]
    """Of the trials, to choose one of."""
    numbers: range
    """The columns that are set to the right."""


def render_page(report: Report, losses: Sequence[LossCurve] = (), examples: Examples | None = None) -> str:
    """Return the whole page.

    Args:
        report: what is known of the study.
        losses: the training losses of its trials, as far as they were read.
        examples: pages of the test set, once that was read.
    """
    study, results, summary = report.study, report.final_evaluation, report.summary
    curve = _curve_table(study, report.curve) if report.curve is not None else None
    failures = _failure_table(report.failures) if report.failures is not None else None
    drawn = [
        draw_arms(report, describe_errors(report)),
        draw_losses(report, losses),
        draw_validation(report),
        draw_agreement(report),
        draw_attributes(results) if results is not None else None,
        draw_data_curve(study, report.curve, curve) if report.curve is not None and curve is not None else None,
        draw_failures(report.failures, failures) if report.failures is not None and failures is not None else None,
        draw_usage(report),
        draw_importance(report),
        *(parameters := draw_parameters(report)),
    ]
    charts = {chart.name: chart for chart in drawn if chart is not None}
    style, library, script = _read_text("page.css"), _read_library(), _read_text("page.js")
    return _ENVIRONMENT.get_template("page.html").render(
        report=report,
        policy=_write_policy(style, (library, script)),
        style=style,
        library=library,
        script=script,
        charts=charts,
        chart_data={
            "config": CONFIG,
            "datasets": {TRIALS: list_drawn(report)},
            "specs": {name: chart.spec for name, chart in charts.items()},
        },
        parameters=parameters,
        model=describe_model(report),
        slices=describe_slices(report),
        lines=_sort_lines(lines_of(report)),
        results=_results_table(results) if results is not None else None,
        cells=describe_cells(results) if results is not None else "",
        asking_lines=asking_lines(report) if report.adapter is not None and study.data.attributes else "",
        loading_lines=loading_lines(report) if report.adapter is not None else "",
        examples=show_examples(examples) if examples is not None else None,
        leaderboard=_list_trials(report),
        has_agreement=sum(trial.measurement(study.last_rung) is not None for trial in report.trials) >= 2,
        early=_early_table(study, report.early) if report.early is not None else None,
        failure_map=failures,
        failure_map_title=describe_map(report.failures)
        if report.failures is not None and report.failures.cells
        else "",
        early_title=EARLY_TITLE,
        seeds=_seeds_table(study, report.seeds) if report.seeds else None,
        seeds_title=SEEDS_TITLE,
        curve=curve,
        curve_attributes=_curve_attributes_table(report.curve) if report.curve is not None else None,
        curve_attributes_title=ATTRIBUTES_TITLE,
        curve_title=describe_title(study, report.curve) if report.curve is not None else "",
        splits=_splits_table(summary) if summary is not None else None,
        labels=_labels_table(summary.audit) if summary is not None and summary.audit is not None else None,
    )


def _sort_lines(lines: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the sentences by the section that they stand in; under "" those at the top."""
    by_section: dict[str, list[str]] = {"": [], "Data": [], "Labels": [], "Data curve": []}
    for line in lines:
        section = line.partition(":")[0]
        by_section[section if section in by_section else ""].append(line)
    return by_section


def _read_text(name: str) -> str:
    return resources.files("study_operator.report").joinpath(name).read_text(encoding="utf-8")


def _read_library() -> str:
    """Return what draws the charts, with the licences that it comes under."""
    packed = resources.files("study_operator.report").joinpath("vega.js.gz").read_bytes()
    return f"/*!\n{_read_text('vega-licences.txt')}*/\n{gzip.decompress(packed).decode()}"


def _write_policy(style: str, scripts: Iterable[str]) -> str:
    """Return what a browser may do for this page: run and apply what stands in it, and fetch nothing."""
    ours = " ".join(name_by_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {ours}; style-src {name_by_hash(style)}; base-uri 'none'; form-action 'none'"
    )


def name_by_hash(text: str) -> str:
    """Return how a content security policy names a script or a style that stands in its page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- Tables -----------------------------------------------------------------------------------------------------


def _results_table(results: FinalEvaluation) -> Table:
    names = [name for name in PREDICTORS if name in results.predictors]
    return Table(
        header=["", *(PREDICTOR_NAMES[name] for name in names)],
        rows=[
            [label, *(describe_metric(metrics[name]) for name in names)]
            for label, metrics in final_evaluation_rows(results)
        ],
        numbers_from=1,
    )


def _failure_table(failures: Failures) -> Table | None:
    if not failures.cells:
        return None
    return Table(header=list_map_header(failures), rows=list(list_map_rows(failures)), numbers_from=0)


def _early_table(study: Study, early: EarlyPercents) -> Table:
    return Table(header=list_early_header(), rows=list(list_early_rows(study, early)), numbers_from=0)


def _seeds_table(study: Study, rows: Sequence[SeedRow]) -> Table:
    return Table(header=list_seed_header(study), rows=list(list_seed_rows(study, rows)), numbers_from=0)


def _curve_table(study: Study, curve: CurveReport) -> Table:
    return Table(header=list_header(curve), rows=list(list_rows(study, curve)), numbers_from=0)


def _curve_attributes_table(curve: CurveReport) -> Table | None:
    if not curve.attributes:
        return None
    return Table(header=list_attributes_header(curve), rows=list(list_attributes_rows(curve)), numbers_from=1)


def _list_trials(report: Report) -> _Leaderboard:
    """Return the leaderboard, with a column for each parameter and each measurement."""
    study, trials = report.study, ranked(report.study, report.trials)
    parameters = [*dict.fromkeys(name for trial in trials for name in trial.arm)]
    rows = [
        _Row(
            trial=trial.name,
            state=trial.state.value,
            is_winner=trial.name == report.winner,
            cells=[
                _Cell(text=trial.state.value),
                *_measurement_cells(study, trial),
                *(_parameter_cell(trial.arm.get(name)) for name in parameters),
                _Cell(text=describe_continuation(trial)),
                _Cell(text=f"{trial.origin.value} ({node})" if (node := trial.generation_node) else trial.origin.value),
                _Cell(text=shorten(trial.message)),
            ],
        )
        for trial in trials
    ]
    numbers = [*name_measurements(study), *parameters]
    return _Leaderboard(
        header=["state", *numbers, "continues as", "origin", "message"],
        rows=rows,
        states=[*dict.fromkeys(row.state for row in rows)],
        numbers=range(1, 1 + len(numbers)),
    )


def _parameter_cell(value: ParameterValue | None) -> _Cell:
    match value:
        case None:
            return _number_cell("–", None)
        case str():
            return _Cell(text=describe_parameter(value))
        case _:
            return _number_cell(describe_parameter(value), value)


def _number_cell(text: str, number: float | None) -> _Cell:
    """Return the cell of a number, which is sorted by six digits of it and not by how it is written."""
    order = "" if number is None else f"{number:.6g}"
    return _Cell(text=text, order=None if order == text else order)


def _measurement_cells(study: Study, trial: Trial) -> list[_Cell]:
    """Return the cells of the columns that `name_measurements` names."""
    orders: list[float | None] = []
    for rung in range(study.last_rung + 1):
        m = trial.measurement(rung)
        is_known = m is not None and m.n != 0 and not m.diverged
        orders.append(m.value if m is not None and is_known else None)
        metrics = m.metrics if m is not None and is_known else {}
        orders += [metrics.get(metric) for metric in list_further_metrics(study, rung)]
    texts = describe_measurements(study, trial)
    return [_number_cell(text, order) for text, order in zip(texts, orders, strict=True)]


def _splits_table(summary: DatasetSummary) -> Table:
    rows = [
        [name, f"{split.pages:,}", f"{split.sites:,}", f"{split.samples:,}", f"{split.tokens:,}"]
        for name, split in summary.splits.items()
    ]
    return Table(header=["split", "pages", "sites", "questions", "tokens"], rows=rows, numbers_from=1)


def _labels_table(audit: LabelAudit) -> Table:
    return Table(header=["", "attribute", "share", "labels", "sites"], rows=[*label_rows(audit)], numbers_from=2)
