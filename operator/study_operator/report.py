"""What a study found, for people and for programs: `report.json`, tables on a terminal, sentences.

Made from the ledger and what the jobs wrote, at any time; called by the command line and by `report_page.py`. It only
reads values that it is given and decides nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from study_operator.study import Study, is_share
from study_operator.trial import Measurement, Trial
from trial_trainer.contract import DatasetSummary, Interval, Judgement, Metric, Precision

HAND_LABELLED = "hand_labelled"
PREDICTORS = ("winner", "baseline", "untrained", "rules", "constants")
PREDICTOR_NAMES = {
    "winner": "winner",
    "baseline": "baseline",
    "untrained": "untrained model",
    "rules": "rule extractor",
    "constants": "constants",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is told of one study, finished or not."""

    study: Study
    stage: str
    """The reason of the condition ``Complete``: ``Exploring``, ``Completed`` …"""
    message: str
    trials: Sequence[Trial]
    winner: str | None
    """Name of the trial that validation chose; None before that."""
    adapter: str | None
    """URI of the winner's adapter."""
    summary: DatasetSummary | None
    judgement: Judgement | None
    agreement: Sequence[str]
    """Sentences about early against final readings."""
    spent_hours: float
    saved_hours: float
    """Accelerator-hours that full-length runs of every measured trial would have taken more."""
    written_at: datetime


def render_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values; keys are stable, absent things are null."""
    study = report.study
    return {
        "study": {"name": study.name, "namespace": study.namespace, "uid": study.uid},
        "stage": report.stage,
        "message": report.message,
        "writtenAt": report.written_at.isoformat(),
        "objective": {"metric": study.objective.metric, "direction": study.objective.direction},
        "headline": headline(report),
        "winner": report.winner,
        "adapter": report.adapter,
        "trials": [_trial_as_json(trial) for trial in report.trials],
        "dataset": asdict(report.summary) if report.summary else None,
        "judgement": asdict(report.judgement) if report.judgement else None,
        "agreement": list(report.agreement),
        "acceleratorHours": {"spent": report.spent_hours, "saved": report.saved_hours},
    }


def render_trials(report: Report) -> Table:
    """Return the table of all trials, the best first reading on top."""
    metric = report.study.objective.metric
    table = Table(title=f"{report.study.name}: trials", title_justify="left")
    table.add_column("trial")
    table.add_column("state")
    table.add_column("arm")
    table.add_column(f"{metric} early", justify="right")
    table.add_column(f"{metric} full length", justify="right")
    table.add_column("continues as")
    table.add_column("message", overflow="fold")
    for trial in ranked(report.study, report.trials):
        table.add_row(
            Text(trial.name + (" ★" if trial.name == report.winner else "")),
            Text(trial.state.value),
            Text(describe_arm(trial)),
            Text(describe_measurement(metric, trial.measurement(0))),
            Text(describe_measurement(metric, trial.measurement(1))),
            Text(trial.continuation.value if trial.continuation else ""),
            Text(trial.message),
        )
    return table


def render_summary(report: Report) -> RenderableType:
    """Return what a person reads at the end: the headline first, how to load the adapter last."""
    parts: list[RenderableType] = [
        Text(line, style="bold" if i == 0 else "") for i, line in enumerate(lines_of(report))
    ]
    if report.judgement is not None:
        parts += [Text(""), render_judgement(report.judgement)]
    if report.adapter is not None:
        parts += [Text(""), Text(f"The adapter is in {report.adapter}. To load it:"), Text("")]
        parts.append(Syntax(loading_lines(report), "python", background_color="default", word_wrap=True))
    return Group(*parts)


def lines_of(report: Report) -> list[str]:
    """Return the result in sentences, the one that matters most first."""
    lines = [headline(report)]
    winner = next((trial for trial in report.trials if trial.name == report.winner), None)
    if winner is not None:
        lines.append(f"Winner: {winner.name}, {describe_arm(winner)}.")
        lines.append(_describe_validation(report, winner))
    if report.judgement is not None:
        lines += _describe_test(report.judgement)
    lines += report.agreement
    lines.append(f"Accelerator time: {_hours(report.spent_hours)} spent, {_describe_saved(report.saved_hours)}.")
    if report.summary is not None:
        lines += [f"Data: {warning}" for warning in report.summary.warnings]
    return lines


def headline(report: Report) -> str:
    """Return one sentence: whether the study taught the model anything, or how far it is."""
    judgement = report.judgement
    if judgement is None:
        measured = sum(bool(trial.measurements) for trial in report.trials)
        progress = f"{report.study.name}: {report.stage}, {measured} of {report.study.num_trials} trials measured."
        return f"{progress} {report.message}".strip()
    winner = _hand_labelled(judgement, "winner")
    rules = _hand_labelled(judgement, "rules")
    gain = judgement.gains.get(f"{HAND_LABELLED}/winner-rules")
    if winner is None or rules is None or gain is None:
        return f"{report.study.name}: {judgement.winner} is the winner; no rule extractor was run beside it."
    figures = f"{_percent(winner.value)} against {_percent(rules.value)}, {describe_interval(gain)}"
    if gain.low > 0:
        return f"The winner beats the rule extractor on the test pages: {figures}."
    return f"THE WINNER DOES NOT BEAT THE RULE EXTRACTOR on the test pages: {figures}."


def render_judgement(judgement: Judgement) -> Table:
    """Return the test set's table: attributes down, predictors across."""
    names = [name for name in PREDICTORS if name in judgement.predictors]
    table = Table(
        title="Test set, share of right values (± one standard error, clustered by shop)", title_justify="left"
    )
    table.add_column("")
    for name in names:
        table.add_column(PREDICTOR_NAMES[name], justify="right")
    for label, metrics in judgement_rows(judgement):
        table.add_row(Text(label), *(Text(describe_metric(metrics[name])) for name in names))
    return table


def judgement_rows(judgement: Judgement) -> Iterator[tuple[str, dict[str, Metric]]]:
    """Yield the rows of the test set's table: two means, each attribute, two rates."""
    predictors = judgement.predictors
    yield "mean of hand-labelled", {name: judged.hand_labelled for name, judged in predictors.items()}
    yield "mean of all asked", {name: judged.all_asked for name, judged in predictors.items()}
    attributes = dict.fromkeys(a for judged in predictors.values() for a in judged.by_attribute)
    missing = Metric(value=float("nan"), standard_error=None, n=0)
    for attribute in attributes:
        yield attribute, {name: judged.by_attribute.get(attribute, missing) for name, judged in predictors.items()}
    yield "values where there are none", {name: judged.false_value_rate for name, judged in predictors.items()}
    yield "invalid output", {name: judged.invalid_output_rate for name, judged in predictors.items()}


def ranked(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials in the order a person wants them: best early reading first, unmeasured ones last."""
    sign = -1.0 if study.objective.direction == "Maximize" else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        first = trial.measurement(0)
        return (first is None, sign * first.value if first else 0.0, trial.index)

    return sorted(trials, key=key)


def describe_arm(trial: Trial) -> str:
    """Return an arm as a person would say it: ``learning_rate 0.00123, lora_rank 16``."""
    return ", ".join(f"{name} {_short(value)}" for name, value in trial.arm.items())


def describe_measurement(metric: str, measurement: Measurement | None) -> str:
    """Return a reading with its standard error, or a dash."""
    if measurement is None:
        return "–"
    text = describe_value(metric, measurement.value, measurement.standard_error)
    return f"{text} (diverged)" if measurement.diverged else text


def describe_value(metric: str, value: float, standard_error: float | None) -> str:
    """Return shares as percent and everything else as it is."""
    if is_share(metric):
        return _percent(value) + (f" ± {standard_error * 100:.1f}" if standard_error is not None else "")
    return f"{value:.4g}" + (f" ± {standard_error:.2g}" if standard_error is not None else "")


def describe_metric(metric: Metric) -> str:
    """Return one cell of the test set's table."""
    return "–" if metric.n == 0 else describe_value("accuracy", metric.value, metric.standard_error)


def describe_interval(interval: Interval) -> str:
    """Return a paired difference with its interval and what it rests on."""
    low, high = interval.low * 100, interval.high * 100
    rests_on = f"n = {interval.n}, {interval.sites} shops"
    return f"{interval.difference * 100:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, {rests_on})"


def loading_lines(report: Report) -> str:
    """Return the lines of Python that load the winner's adapter onto the base model, as it was trained.

    What lies in a bucket is fetched first, by the command in the lines above.
    """
    study = report.study
    fetches: list[str] = []

    def here(uri: str, directory: str) -> str:
        if not uri.startswith("s3://"):
            return uri.removeprefix("hf://").strip("/") if uri.startswith("hf://") else uri.removeprefix("file://")
        endpoint = ["--endpoint-url", study.storage.endpoint] if study.storage.endpoint else []
        fetches.append(shlex.join(["aws", "s3", "cp", "--recursive", *endpoint, uri, directory]))
        return directory

    model = _python(here(study.base_model.uri, "base-model"))
    if study.base_model.revision and study.base_model.uri.startswith("hf://"):
        model += f", revision={_python(study.base_model.revision)}"
    adapter = _python(here(report.adapter or "", "adapter"))
    dtype = {Precision.BFLOAT16: "bfloat16", Precision.FLOAT32: "float32"}[study.trainer.precision]
    return "\n".join(
        [
            *(f"# First: {_in_one_line(command)}" for command in fetches),
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({model})",
            f"model = AutoModelForCausalLM.from_pretrained({model}, dtype={_python(dtype)})",
            f"model = PeftModel.from_pretrained(model, {adapter})",
        ]
    )


def _python(text: str) -> str:
    """Return a text as Python reads it; all that JSON escapes Python reads alike."""
    return json.dumps(text, ensure_ascii=False)


def _in_one_line(command: str) -> str:
    """Return a command that ends where its comment ends, whatever a key is made of."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in command)


def _describe_validation(report: Report, winner: Trial) -> str:
    metric = report.study.objective.metric
    last = winner.measurement(1) or winner.measurement(0)
    said = f"Validation {metric}: {describe_measurement(metric, last)}"
    if last is not None:
        said += f" (n = {last.n or 0}, step {last.step} of {winner.total_steps})"
    baseline = next((trial for trial in report.trials if trial.origin == "Baseline"), None)
    reference = baseline.measurement(1) if baseline else None
    if last is None or reference is None or baseline is winner:
        return said + ("; the winner is the baseline itself." if baseline is winner else ".")
    gain = last.value - reference.value
    points = f"{gain * 100:+.1f} points" if is_share(metric) else f"{gain:+.4g}"
    return f"{said}, against {describe_measurement(metric, reference)} of the baseline: {points}."


def _describe_test(judgement: Judgement) -> Iterator[str]:
    winner = _hand_labelled(judgement, "winner")
    if winner is not None:
        yield f"Test, mean of the hand-labelled attributes: {describe_metric(winner)} (n = {winner.n})."
    for other in PREDICTORS[1:]:
        gain = judgement.gains.get(f"{HAND_LABELLED}/winner-{other}")
        if gain is not None:
            seed = "; one training seed" if other == "baseline" else ""
            yield f"Gain over the {PREDICTOR_NAMES[other]}: {describe_interval(gain)}{seed}."


def _hand_labelled(judgement: Judgement, predictor: str) -> Metric | None:
    judged = judgement.predictors.get(predictor)
    return judged.hand_labelled if judged else None


def _trial_as_json(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "state": trial.state,
        "origin": trial.origin,
        "generationNode": trial.generation_node,
        "arm": dict(trial.arm),
        "rung": trial.rung,
        "totalSteps": trial.total_steps,
        "continuation": trial.continuation,
        "measurements": [asdict(measurement) for measurement in trial.measurements],
        "attempts": trial.attempts_so_far,
        "message": trial.message,
    }


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _hours(hours: float) -> str:
    return f"{hours * 60:.1f} minutes" if hours < 2 else f"{hours:.1f} hours"


def _describe_saved(hours: float) -> str:
    rival = "running every measured trial to its full length"
    return f"{_hours(hours)} saved against {rival}" if hours >= 0 else f"{_hours(-hours)} more than {rival}"


def _short(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_report(console: Console, report: Report) -> None:
    """Print the trials and the result."""
    console.print(render_trials(report))
    console.print()
    console.print(render_summary(report))
