"""The report as one HTML page: no scripts, no fonts, nothing from the network; charts are inline SVG.

Called by the command line whenever a report is written. All text from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from study_operator.ledger.trial import Measurement, Trial
from study_operator.report.report import (
    PREDICTOR_NAMES,
    PREDICTORS,
    Report,
    describe_arm,
    describe_cells,
    describe_errors,
    describe_measurement,
    describe_metric,
    describe_value,
    final_evaluation_rows,
    lines_of,
    loading_lines,
    ranked,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d0d5dd; --a: #2563eb; --b: #d97706; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #3a4252; --a: #7aa2ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
p.headline { font-size: 1.15rem; font-weight: 600; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: color-mix(in srgb, var(--line) 30%, transparent); padding: 0.8rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg line, svg path { stroke: var(--line); }
svg .early { fill: none; stroke: var(--a); stroke-width: 2; } svg .full { fill: var(--a); stroke: none; }
svg line.early, svg line.full { stroke: var(--a); stroke-width: 1.5; } svg .baseline { fill: var(--b); stroke: none; }
"""


def render_page(report: Report) -> str:
    """Return the whole page."""
    study = report.study
    lines = lines_of(report)
    metric = study.objective.metric
    when = report.written_at.strftime("%Y-%m-%d %H:%M UTC")
    subtitle = f"{report.stage} · {when} · objective: {metric}, {study.objective.direction}"
    parts = [
        f"<h1>{escape(study.name)}</h1>",
        f'<p class="soft">{escape(subtitle)}</p>',
        f'<p class="headline">{escape(lines[0])}</p>',
        *(f"<p>{escape(line)}</p>" for line in lines[1:]),
    ]
    if report.final_evaluation is not None:
        parts += ["<h2>Test set</h2>", _final_evaluation_table(report)]
    if report.adapter is not None:
        parts += [
            "<h2>The adapter</h2>",
            f"<p>It is in <code>{escape(report.adapter)}</code>. To load it:</p>",
            f"<pre>{escape(loading_lines(report))}</pre>",
        ]
    parts += ["<h2>Arms</h2>", _arms_chart(report), _trials_table(report)]
    if sum(trial.measurement(1) is not None for trial in report.trials) >= 2:
        parts += ["<h2>Early against final</h2>", _agreement_chart(report)]
    if report.summary is not None:
        parts += ["<h2>Data</h2>", _data_table(report)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(study.name)}: {escape(report.stage)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= numbers_from else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells)
        )

    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f'<div class="wide"><table>\n<tr>{row(header, "th")}</tr>\n{body}\n</table></div>'


def _final_evaluation_table(report: Report) -> str:
    final_evaluation = report.final_evaluation
    if final_evaluation is None:
        return ""
    names = [name for name in PREDICTORS if name in final_evaluation.predictors]
    rows = [
        [label, *(describe_metric(metrics[name]) for name in names)]
        for label, metrics in final_evaluation_rows(final_evaluation)
    ]
    cells = describe_cells(final_evaluation)
    note = f"<p class=soft>{escape(cells[0].upper() + cells[1:])}.</p>"
    return _table(["", *(PREDICTOR_NAMES[name] for name in names)], rows, 1) + note


def _trials_table(report: Report) -> str:
    metric = report.study.objective.metric
    rows = [
        [
            trial.name + (" ★" if trial.name == report.winner else ""),
            trial.state.value,
            trial.continuation.value if trial.continuation else "",
            describe_arm(trial),
            trial.message,
            describe_measurement(metric, trial.measurement(0)),
            describe_measurement(metric, trial.measurement(1)),
        ]
        for trial in ranked(report.study, report.trials)
    ]
    header = ["trial", "state", "continues as", "arm", "message", f"{metric} early", f"{metric} full length"]
    return _table(header, rows, 5)


def _data_table(report: Report) -> str:
    summary = report.summary
    if summary is None:
        return ""
    rows = [
        [name, f"{split.pages:,}", f"{split.sites:,}", f"{split.samples:,}", f"{split.tokens:,}"]
        for name, split in summary.splits.items()
    ]
    table = _table(["split", "pages", "sites", "questions", "tokens"], rows, 1)
    skipped = ", ".join(f"{name} {count}" for name, count in summary.skipped_pages.items()) or "none"
    dropped = ", ".join(f"{name} {count}" for name, count in summary.dropped_labels.items()) or "none"
    guessed = ", ".join(f"{name} {count}" for name, count in summary.guessed_encodings.items()) or "none"
    return (
        f"{table}<p class=soft>Pages left out: {escape(skipped)}. Encodings that were guessed: {escape(guessed)}. "
        f"Labels that the text does not hold: "
        f"{escape(dropped)}. Pages dropped because their site is in the test set: {summary.pages_of_test_sites}; "
        f"because they stand in it themselves: {summary.repeats_of_test}. "
        f"Labels that contradict others of the same text: {summary.conflicting_labels}.</p>"
    )


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


def _arms_chart(report: Report) -> str:
    """Early (open) and full-length (filled) measurements of every measured arm, best first, with standard errors."""
    trials = [trial for trial in ranked(report.study, report.trials) if _known(trial)]
    if not trials:
        return "<p class=soft>No trial is measured yet.</p>"
    metric = report.study.objective.metric
    axis = _axis([m for trial in trials for m in _known(trial)], 60, 700)
    height = 24 * len(trials) + 50
    marks = [_grid_line(axis.at(tick), 10, height - 36, describe_value(metric, tick, None)) for tick in axis.ticks()]
    for row, trial in enumerate(trials):
        y = 24 * row + 24
        marks.append(f'<text x="0" y="{y + 4}">{trial.name}</text>')
        marks += [_dot(axis, m, y, trial) for m in _known(trial)]
    legend = f"open: early measurement, filled: full length, orange: baseline; bars: {describe_errors(report)}"
    return _svg(720, height, marks, f"{metric} by arm") + f"<p class=soft>{escape(metric)} by arm; {legend}.</p>"


def _known(trial: Trial) -> list[Measurement]:
    """Return the measurements that are a mean of anything. Of a model that diverged nothing was read."""
    return [measurement for measurement in trial.measurements if measurement.n != 0 and not measurement.diverged]


def _dot(axis: _Axis, measurement: Measurement, y: float, trial: Trial) -> str:
    kind = "early" if measurement.rung == 0 else "full"
    error = measurement.standard_error or 0.0
    left, right = axis.at(measurement.value - error), axis.at(measurement.value + error)
    shape = "baseline" if trial.origin == "Baseline" and kind == "full" else kind
    title = f"{trial.name}, {describe_arm(trial)}: step {measurement.step}"
    return (
        f'<line class="{kind}" x1="{left:.1f}" y1="{y}" x2="{right:.1f}" y2="{y}"/>'
        f'<circle class="{shape}" cx="{axis.at(measurement.value):.1f}" cy="{y}" r="5"><title>{escape(title)}</title>'
        "</circle>"
    )


def _agreement_chart(report: Report) -> str:
    """Every trial that ran to full length: early measurement across, final measurement up."""
    pairs = [
        (trial, early, final)
        for trial in report.trials
        if len(_known(trial)) == len(trial.measurements)
        and (early := trial.measurement(0)) is not None
        and (final := trial.measurement(1)) is not None
    ]
    if not pairs:
        return "<p class=soft>No trial has both measurements.</p>"
    metric = report.study.objective.metric
    across = _axis([early for _, early, _ in pairs], 70, 440)
    up = _axis([final for _, _, final in pairs], 310, 20)
    marks = [_grid_line(across.at(tick), 20, 310, describe_value(metric, tick, None)) for tick in across.ticks()]
    for tick in up.ticks():
        y = up.at(tick)
        marks.append(f'<line x1="70" y1="{y:.1f}" x2="440" y2="{y:.1f}"/>')
        label = escape(describe_value(metric, tick, None))
        marks.append(f'<text class="soft" x="64" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for trial, early, final in pairs:
        x, y = across.at(early.value), up.at(final.value)
        kind = "baseline" if trial.origin == "Baseline" else "full"
        marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        marks.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">{trial.name}</text>')
    note = f"{metric}: early measurement across, full length up. Both are read on the same validation pages."
    return _svg(480, 340, marks, "early against final") + f"<p class=soft>{escape(note)}</p>"


def _grid_line(x: float, top: float, bottom: float, label: str) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
        f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>'
    )


def _svg(width: int, height: int, marks: Iterable[str], title: str) -> str:
    body = "\n".join(marks)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )
