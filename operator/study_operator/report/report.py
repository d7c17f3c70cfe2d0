"""What a study found, for people and for programs: `report.json`, tables on a terminal, sentences.

Made from the ledger and what the jobs wrote, at any time; called by the command line and by `report/page.py`. It only
reads values that it is given and decides nothing.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from study_operator.ledger.early_percents import EarlyPercents, describe_enough
from study_operator.ledger.failures import Failures, describe_failures
from study_operator.ledger.gain import Gain, measure_validation_gain
from study_operator.ledger.merit import LOSS, find_merit, find_place, list_ranking_metrics
from study_operator.ledger.ranking import satisfies_constraints
from study_operator.ledger.trial import Continuation, Measurement, Trial, TrialState
from study_operator.optimizer.designer import EXPLORATION_NODE, STAGNATION_NODE, WARM_START_NODE
from study_operator.optimizer.reading import ModelReading
from study_operator.report.data_curve import CurveReport, describe_fit, render_curve_json, render_data_curve
from study_operator.report.early_percents import render_early_json, render_early_percents
from study_operator.report.failures import render_failures_json
from study_operator.report.labels import describe_labels
from study_operator.report.numbers import describe_measurement, describe_metric, describe_value, percent
from study_operator.report.seeds import SeedRow, render_seeds, render_seeds_json
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.contract import (
    LEAST_SEEDS,
    LEAST_SITES,
    DatasetSummary,
    FinalEvaluation,
    Interval,
    LabelSource,
    Metric,
    Precision,
    PredictorScores,
    SeedInterval,
    to_json,
)

HAND_LABELLED, ALL_ASKED = "hand_labelled", "all_asked"
MEAN_NAMES = {HAND_LABELLED: "mean of the hand-labelled attributes", ALL_ASKED: "mean of all asked attributes"}
PREDICTORS = ("winner", "winner_early", "baseline", "untrained", "rule_based", "constant")
PREDICTOR_NAMES = {
    "winner": "winner",
    "winner_early": "winner at its first rung",
    "baseline": "baseline",
    "untrained": "untrained model",
    "rule_based": "rule extractor",
    "constant": "constants",
}


ASKING = {
    "Page": 'print(extractor.ask(html=open("page.html", "rb").read()))',
    "Text": 'print(extractor.ask(text=open("text.txt").read()))',
}
"""How an adapter is asked, by what the study's records were."""
LOWER = "(lower is better)"
"""What a row of the test set's table is marked with that is no share of right values."""
ONE_SEED = "one seed"
"""What every gain says that another training seed might change: of one run of each arm."""
FULL_LENGTH_RUNS = "running every measured trial to its full length"
SHARED_MARKUP = "The rule extractor reads the same markup as the labels, so it is no independent baseline here."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the headline compares: the winner with the hardest baseline that is independent of the labels."""

    mean: str
    """``hand_labelled`` where the test set has such labels, else ``all_asked``."""
    baseline: str
    winner_value: float
    baseline_value: float
    gain: Interval | None

    @property
    def is_better(self) -> bool | None:
        """Whether the winner is seen to be better; None where there are too few sites to tell."""
        if self.gain is None or self.gain.sites < LEAST_SITES or self.gain.low is None:
            return None
        return self.gain.low > 0


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
    final_evaluation: FinalEvaluation | None
    agreement: Sequence[str]
    """Sentences about early against final measurements."""
    spent_hours: float
    saved_hours: float | None
    """Accelerator-hours that full-length runs of every measured trial would have taken more; None if not known."""
    written_at: datetime
    gain: Gain | None = None
    """The best trial so far against the baseline: on the test set once that was read."""
    winner_change: str = ""
    """One sentence on what became of the winner between its first rung and its end, once the test set was read."""
    confirmations: str = ""
    """One sentence on winner and baseline under further seeds, once all of these have ended."""
    seeds: Sequence[SeedRow] = ()
    """Winner and baseline under each seed; none before a further one has begun."""
    curve: CurveReport | None = None
    """None where none is asked for, and before its first run."""
    early: EarlyPercents | None = None
    """None before all trials that go to full length are there."""
    failures: Failures | None = None
    """None before the first measurement."""
    model: ModelReading | None = None
    """What the optimizer's model says; None before there is one."""


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
        "comparison": _comparison_as_json(report.final_evaluation, study.data.labels_from),
        "winner": report.winner,
        "gain": _gain_as_json(report.gain) if report.gain else None,
        "adapter": report.adapter,
        "trials": [_trial_as_json(trial) for trial in report.trials],
        "dataset": asdict(report.summary) if report.summary else None,
        "finalEvaluation": _final_evaluation_as_json(report.final_evaluation),
        "winnerChange": report.winner_change or None,
        "confirmations": report.confirmations or None,
        "seeds": render_seeds_json(report.seeds),
        "dataCurve": render_curve_json(report.curve) if report.curve else None,
        "agreement": list(report.agreement),
        "failures": render_failures_json(report.failures) if report.failures else None,
        "model": json.loads(to_json(report.model)) if report.model else None,
        "earlyPercents": render_early_json(report.early) if report.early else None,
        "acceleratorHours": {"spent": report.spent_hours, "saved": report.saved_hours},
    }


def render_trials(report: Report) -> Table:
    """Return the table of all trials, in the order of `ranked`."""
    title = f"{report.study.name}: trials ({describe_errors(report)})"
    table = Table(title=title, title_justify="left")
    table.add_column("trial")
    table.add_column("state")
    table.add_column("arm")
    for head in name_measurements(report.study):
        table.add_column(head, justify="right")
    table.add_column("continues as")
    table.add_column("message", overflow="fold")
    for trial in ranked(report.study, report.trials):
        table.add_row(
            Text(trial.name + (" ★" if trial.name == report.winner else "")),
            Text(trial.state.value),
            Text(describe_arm(trial)),
            *(Text(text) for text in describe_measurements(report.study, trial)),
            Text(describe_continuation(trial)),
            Text(trial.message),
        )
    return table


def render_summary(report: Report) -> RenderableType:
    """Return what a person reads at the end: the headline first, how to load the adapter last."""
    parts: list[RenderableType] = [
        Text(line, style="bold" if i == 0 else "") for i, line in enumerate(lines_of(report))
    ]
    if report.final_evaluation is not None:
        parts += [Text(""), render_final_evaluation(report.final_evaluation)]
    if report.seeds:
        parts += [Text(""), render_seeds(report.study, report.seeds)]
    if report.early is not None:
        parts += [Text(""), render_early_percents(report.study, report.early)]
    if report.curve is not None:
        for table in render_data_curve(report.study, report.curve):
            parts += [Text(""), table]
    if report.adapter is not None:
        parts += [Text(""), Text(f"The adapter is in {report.adapter}.")]
        if report.study.data.attributes:
            parts += [Text("To ask it, as `finetune-study ask` does:"), Text(""), _python_code(asking_lines(report))]
        parts += [Text("To load it as any PEFT adapter:"), Text(""), _python_code(loading_lines(report))]
    return Group(*parts)


def _python_code(lines: str) -> RenderableType:
    return Syntax(f"{lines}\n", "python", background_color="default", word_wrap=True)


def lines_of(report: Report) -> list[str]:
    """Return the result in sentences, the one that matters most first."""
    lines = [headline(report)]
    winner = next((trial for trial in report.trials if trial.name == report.winner), None)
    if winner is not None:
        lines.append(f"Winner: {winner.name}, {describe_arm(winner)}.")
        lines.append(_describe_validation(report, winner))
    if report.final_evaluation is not None:
        lines += _describe_test(report.final_evaluation, report.study.data.labels_from)
    lines += _describe_ties(report.study, report.trials)
    lines += report.agreement
    if report.early is not None:
        lines.append(describe_enough(report.early))
    lines += _describe_exploration(report.trials)
    if report.failures is not None:
        lines += describe_failures(report.failures)
    if report.winner_change:
        lines.append(f"Overfitting: {report.winner_change}.")
    if report.confirmations:
        lines.append(f"Further seeds: {report.confirmations}.")
    if report.curve is not None and report.curve.message:
        lines += [f"Data curve: {sentence}" for sentence in describe_fit(report.study, report.curve)]
        lines.append(f"Data curve: {report.curve.message}.")
    lines.append(
        f"Accelerator time: {describe_hours(report.spent_hours)} spent, {_describe_saved(report.saved_hours)}."
    )
    if report.summary is not None:
        lines += [f"Labels: {sentence}" for sentence in describe_labels(report.summary)]
        lines += [f"Data: {warning}" for warning in report.summary.warnings]
    return lines


def headline(report: Report) -> str:
    """Return one sentence: whether the study taught the model anything, or how far it is."""
    final_evaluation = report.final_evaluation
    if final_evaluation is None:
        measured = sum(bool(trial.measurements) for trial in report.trials)
        progress = f"{report.study.name}: {report.stage}, {measured} of {report.study.num_trials} trials measured."
        return f"{progress} {report.message}".strip()
    labels_from = report.study.data.labels_from
    found = compare(final_evaluation, labels_from)
    if found is None:
        nothing = (
            "has a value" if find_mean(final_evaluation) is None else "was answered by an independent baseline too"
        )
        return f"{report.study.name}: {final_evaluation.winner} is the winner; no question of the test set {nothing}."
    baseline = _describe_baseline(final_evaluation, found, labels_from)
    values = f"{percent(found.winner_value)} against {percent(found.baseline_value)} ({MEAN_NAMES[found.mean]})"
    figures = values + (f", {describe_interval(found.gain)}" if found.gain else "")
    has_rules = "rule_based" in final_evaluation.predictors
    note = f" {SHARED_MARKUP}" if has_rules and "rule_based" not in _independent(found.mean, labels_from) else ""
    match found.is_better:
        case True:
            return f"The winner beats the {baseline} on the test set: {figures}.{note}"
        case False:
            return f"THE WINNER DOES NOT BEAT THE {baseline.upper()} on the test set: {figures}.{note}"
        case None:
            return f"Whether the winner beats the {baseline} on the test set is not known: {figures}.{note}"


def find_mean(final_evaluation: FinalEvaluation) -> str | None:
    """Return the mean that the test set is read by: of the hand-labelled attributes where it has any."""
    winner = final_evaluation.predictors.get("winner")
    return next((mean for mean in MEAN_NAMES if winner is not None and _mean(winner, mean).n), None)


def compare(final_evaluation: FinalEvaluation, labels_from: LabelSource) -> Comparison | None:
    """Choose what the headline compares the winner with; None where there is nothing.

    The rules, the untrained model or the constants, whichever is better, or else the baseline arm. Labels of markup are
    what the rules read: there the rules are no independent baseline. Ready samples have none.
    """
    mean = find_mean(final_evaluation)
    if mean is None:
        return None
    means = {name: _mean(scores, mean) for name, scores in final_evaluation.predictors.items()}
    means = {name: metric for name, metric in means.items() if metric.n}
    if not_trained := [name for name in _independent(mean, labels_from) if name in means]:
        baseline = max(not_trained, key=lambda name: means[name].value)
    elif "baseline" in means and f"{mean}/winner-baseline" in final_evaluation.gains:
        baseline = "baseline"
    else:
        return None
    return Comparison(
        mean=mean,
        baseline=baseline,
        winner_value=means["winner"].value,
        baseline_value=means[baseline].value,
        gain=_gain(final_evaluation, mean, baseline),
    )


def render_final_evaluation(final_evaluation: FinalEvaluation) -> Table:
    """Return the test set's table: attributes down, predictors across."""
    names = [name for name in PREDICTORS if name in final_evaluation.predictors]
    table = Table(title=f"Test set: {describe_cells(final_evaluation)}", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(PREDICTOR_NAMES[name], justify="right")
    for label, metrics in final_evaluation_rows(final_evaluation):
        table.add_row(Text(label), *(Text(describe_metric(metrics[name])) for name in names))
    return table


def final_evaluation_rows(final_evaluation: FinalEvaluation) -> Iterator[tuple[str, dict[str, Metric]]]:
    """Yield the rows of the test set's table that any question was asked for: two means, each attribute, errors."""
    predictors = final_evaluation.predictors
    attributes = dict.fromkeys(a for scores in predictors.values() for a in scores.by_attribute)
    missing = Metric(value=float("nan"), standard_error=None, n=0)
    rows = {
        "mean of hand-labelled": {name: scores.hand_labelled for name, scores in predictors.items()},
        "mean of all asked": {name: scores.all_asked for name, scores in predictors.items()},
        **{a: {name: scores.by_attribute.get(a, missing) for name, scores in predictors.items()} for a in attributes},
        f"a value where there is none {LOWER}": {name: scores.false_value_rate for name, scores in predictors.items()},
        f"invalid output {LOWER}": {name: scores.invalid_output_rate for name, scores in predictors.items()},
        f"answers cut at the limit {LOWER}": {n: scores.cut_answer_rate or missing for n, scores in predictors.items()},
    }
    for label, metrics in rows.items():
        if any(metric.n for metric in metrics.values()):
            yield label, metrics


def ranked(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials in the order a person wants them: who came furthest first, and of these who ranks best there.

    So the winner first; one that breaks an outcome constraint stands below those on its rung that keep it.

    Below all of them stand those that diverged, and last those that nothing was measured of.
    """
    measured = [(t, max(t.measurements, key=lambda m: m.rung)) for t in trials if t.measurements]

    def standing(found: tuple[Trial, Measurement]) -> tuple[Any, ...]:
        trial, last = found
        return last.diverged, -last.rung, not satisfies_constraints(study, last), find_place(study, last), trial.index

    return [*(trial for trial, _ in sorted(measured, key=standing)), *(t for t in trials if not t.measurements)]


def name_measurements(study: Study) -> list[str]:
    """Return the heads of a table's columns of measurements: the objective on each rung, and what ranks there."""
    percents, metric = study.early_evaluation.rungs, study.objective.metric
    early = ["early"] if len(percents) == 1 else [f"at {percent} %" for percent in percents]
    names = enumerate([*early, "full length"])
    return [f"{shown} {name}" for rung, name in names for shown in [metric, *list_further_metrics(study, rung)]]


def list_further_metrics(study: Study, rung: int) -> list[str]:
    """Return what ranks trials at a rung besides the objective, or in its place."""
    return [metric for metric in list_ranking_metrics(study, rung) if metric != study.objective.metric]


def describe_measurements(study: Study, trial: Trial) -> list[str]:
    """Return what a trial measured, for each of those columns."""
    texts = []
    for rung in range(study.last_rung + 1):
        measurement = trial.measurement(rung)
        texts.append(describe_measurement(study.objective.metric, measurement))
        for metric in list_further_metrics(study, rung):
            value = None if measurement is None or measurement.diverged else measurement.metrics.get(metric)
            texts.append("–" if value is None else describe_value(metric, value, None))
    return texts


def describe_continuation(trial: Trial) -> str:
    """Return as what a trial goes on, or went to its end; of one that was stopped, nothing."""
    is_stopped = trial.state is TrialState.STOPPED
    return "" if trial.continuation is None or is_stopped else trial.continuation.value


def describe_arm(trial: Trial) -> str:
    """Return an arm as a person would say it: ``learning_rate 0.00123, lora_rank 16``."""
    return ", ".join(f"{name} {describe_parameter(value)}" for name, value in trial.arm.items())


def describe_errors(report: Report) -> str:
    """Return what the trials' ± means, or why there is none."""
    validation = report.summary.splits.get("validation") if report.summary else None
    if validation is not None and validation.sites < LEAST_SITES:
        return f"no standard errors: {_too_few(validation.sites)}"
    return "± one standard error, clustered by site"


def describe_cells(final_evaluation: FinalEvaluation) -> str:
    """Return what stands in the cells of the test set's table, and why some have no interval."""
    metrics = [metric for _, row in final_evaluation_rows(final_evaluation) for metric in row.values() if metric.n]
    too_few = sorted({m.sites for m in metrics if m.low is None and m.sites is not None})
    message = ["share of right values, and of errors where lower is better"]
    if any(metric.low is not None for metric in metrics):
        message.append("95 % interval in parentheses, clustered by site")
    if any(metric.low is None and metric.standard_error for metric in metrics):
        message.append("± one standard error, clustered by site")
    if too_few:
        message.append(f"no interval where {_too_few(too_few[-1])}")
    return "; ".join(message)


def describe_interval(interval: Interval) -> str:
    """Return a paired difference with its interval and what it rests on."""
    difference, n = f"{interval.difference * 100:+.1f} points", f"n = {interval.n}"
    if interval.low is None or interval.high is None or interval.sites < LEAST_SITES:
        return f"{difference} ({n}, {ONE_SEED}; no interval: {_too_few(interval.sites)})"
    low, high = interval.low * 100, interval.high * 100
    return f"{difference} (95 % interval {low:+.1f} to {high:+.1f}, {n}, {interval.sites} sites, {ONE_SEED})"


def asking_lines(report: Report) -> str:
    """Return the lines of Python that ask the winner's adapter as the study did: page or text in, values out."""
    precision = report.study.trainer.precision
    flags = "" if precision is Precision.BFLOAT16 else f", precision={_python(precision)}"
    # Trainers of earlier versions do not tell what the records were: then both are shown, as where there were both.
    kinds = {kind for kind, count in (report.summary.records if report.summary else {}).items() if count}
    asked = [line for kind, line in ASKING.items() if kind in kinds] or list(ASKING.values())
    return "\n".join(
        [
            "from trial_trainer.extractor import Extractor",
            "",
            f"extractor = Extractor.load({_python(report.adapter or '')}{flags})",
            *asked,
        ]
    )


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
    last = winner.measurements[-1] if winner.measurements else None
    message = f"Validation {metric}: {describe_measurement(metric, last)}"
    if last is not None:
        message += f" (n = {last.n or 0}, step {last.step} of {winner.total_steps})"
    baseline = next((trial for trial in report.trials if trial.origin == "Baseline"), None)
    if baseline is None or baseline is winner:
        return message + ("; the winner is the baseline itself." if baseline is winner else ".")
    gain = measure_validation_gain(report.study, report.trials, winner, baseline) if last is not None else None
    if last is None or gain is None:
        return f"{message}."
    reference = describe_measurement(metric, baseline.measurement(last.rung))
    return f"{message}, against {reference} of the baseline: {_describe_validation_gain(gain, metric)}."


def _describe_validation_gain(gain: Gain, metric: str) -> str:
    scale, form, unit = (100, "+.1f", " points") if is_share(metric) else (1, "+.3g", "")
    message = f"{format((gain.uncorrected or 0.0) * scale, form)}{unit} as measured"
    is_chosen = gain.best_of is not None and gain.best_of > 1
    if is_chosen:
        message += f", the best of {gain.best_of} arms"
    if gain.low is None or gain.high is None:
        unknown = "without standard errors nobody knows by how much"
        if is_chosen:
            return f"{message}, which is too good by chance; {unknown}; {ONE_SEED}"
        return f"{message}; no standard errors; {ONE_SEED}"
    low, high = format(gain.low * scale, form), format(gain.high * scale, form)
    corrected = f"{format(gain.estimate * scale, form)}{unit}"
    choice = "that choice" if is_chosen else "being the better of two"
    return f"{message}; corrected for {choice} {corrected} (95 % interval {low} to {high}, {ONE_SEED})"


def _describe_ties(study: Study, trials: Sequence[Trial]) -> Iterator[str]:
    """Yield a sentence for each early rung where the last place did not go to the one that measured better."""
    for rung in range(study.last_rung):
        here = [(trial, m) for trial in trials if (m := trial.measurement(rung)) is not None and not m.diverged]
        promoted = [(t, m) for t, m in here if t.rung > rung and _was_promoted(t, rung)]
        stopped = [(t, m) for t, m in here if t.state is TrialState.STOPPED and t.rung == rung]
        if not promoted:
            continue
        last = min(find_merit(study, m) for _, m in promoted)
        tied = [t for t, m in promoted if find_merit(study, m) == last]
        lost = [t for t, m in stopped if find_merit(study, m) == last and satisfies_constraints(study, m)]
        if lost:
            losses = [[m.metrics.get(LOSS, math.inf) for t, m in here if t in of] for of in (tied, lost)]
            by_loss = {loss < min(losses[1]) for loss in losses[0]}
            names = {True: "the lower validation loss", False: "the elder"}
            why = " or else ".join(names[is_lower] for is_lower in sorted(by_loss, reverse=True))
            known = [(t, m.metrics[LOSS]) for t, m in here if t in (*tied, *lost) and LOSS in m.metrics]
            digits = _count_digits([loss for _, loss in known])
            numbers = ", ".join(f"{trial.name} {loss:.{digits}g}" for trial, loss in known)
            yield (
                f"Promotion: on rung {rung} {', '.join(t.name for t in tied)} measured the same as "
                f"{', '.join(t.name for t in lost)}, which stopped: among equals {why} goes on"
                f"{f' (in nats per token: {numbers})' if True in by_loss else ''}."
            )


def _count_digits(numbers: Sequence[float]) -> int:
    """Return how many digits tell numbers apart that differ, four or more."""
    distinct = len(set(numbers))
    return next((digits for digits in range(4, 17) if len({f"{n:.{digits}g}" for n in numbers}) == distinct), 17)


def _was_promoted(trial: Trial, rung: int) -> bool:
    """Say whether a trial that has gone on from a rung did so for its measurement there; later it may be audited."""
    is_audited_later = trial.continuation is Continuation.AUDITED and (trial.stratum or 0) > rung
    return trial.continuation is Continuation.PROMOTED or is_audited_later


def _describe_exploration(trials: Sequence[Trial]) -> Iterator[str]:
    exploring = sum(trial.generation_node == EXPLORATION_NODE for trial in trials)
    if exploring:
        were = "was" if exploring == 1 else "were"
        yield (
            f"Search: {exploring} of {len(trials)} arms {were} spread out because the optimizer's model did not rank "
            "the measured arms better than chance."
        )
    gaps = sum(trial.generation_node == STAGNATION_NODE for trial in trials)
    if gaps:
        were = "was" if gaps == 1 else "were"
        yield f"Search: {gaps} of {len(trials)} arms {were} put where none was near because the best no longer rose."
    carried = [trial.name for trial in trials if trial.generation_node == WARM_START_NODE]
    if carried:
        yield f"Warm start: {', '.join(carried)} tried what was best in earlier studies."


def _gain_as_json(gain: Gain) -> dict[str, Any]:
    return {
        "trial": gain.trial,
        "estimate": gain.estimate,
        "low": gain.low,
        "high": gain.high,
        "on": gain.source,
        "bestOf": gain.best_of,
        "uncorrected": gain.uncorrected,
        "seeds": gain.seeds or 1,
    }


def _describe_test(final_evaluation: FinalEvaluation, labels_from: LabelSource) -> Iterator[str]:
    mean = find_mean(final_evaluation)
    if mean is None:
        return
    winner = final_evaluation.predictors["winner"]
    metric = _mean(winner, mean)
    source = "" if mean == HAND_LABELLED else "; no label of the test set was made by a person"
    yield f"Test, {MEAN_NAMES[mean]}: {_describe_test_value(metric)}{source}."
    others = winner.all_asked.n - winner.hand_labelled.n
    if mean == HAND_LABELLED and others > 0 and "rule_based" in final_evaluation.predictors:
        is_taught = labels_from is LabelSource.TEACHER
        origin = "the teacher's" if is_taught else "the pages' own markup, which the rule extractor reads too"
        yield f"In the {MEAN_NAMES[ALL_ASKED]}, {others} of {winner.all_asked.n} labels are {origin}."
    for other in PREDICTORS[1:]:
        gain = _gain(final_evaluation, mean, other)
        if gain is not None:
            is_shared = other == "rule_based" and other not in _independent(mean, labels_from)
            shared = "; no independent baseline" if is_shared else ""
            yield f"Gain over the {PREDICTOR_NAMES[other]}: {describe_interval(gain)}{shared}."
    of_seeds = final_evaluation.seed_gains.get(f"{mean}/winner-baseline")
    if of_seeds is not None and of_seeds.n:
        yield f"Gain over the baseline under further seeds: {_describe_seeds(of_seeds)}."


def _describe_seeds(gain: SeedInterval) -> str:
    """Return what winner and baseline differ by when both are trained again, and under which seed by how much."""
    values = ", ".join(f"{value * 100:+.1f}" for value in gain.by_seed.values())
    points = f"{gain.difference * 100:+.1f} points, the mean of {len(gain.by_seed)} ({values})"
    if gain.low is not None and gain.high is not None:
        low, high = gain.low * 100, gain.high * 100
        return f"{points}; 95 % interval over seeds and sites {low:+.1f} to {high:+.1f}, {gain.sites} sites"
    if len(gain.by_seed) < LEAST_SEEDS:
        return f"{points}; no interval: {len(gain.by_seed)} are too few, {LEAST_SEEDS} are needed"
    return f"{points}; no interval: {_too_few(gain.sites)}"


def _describe_test_value(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        few = f"; no interval: {_too_few(metric.sites)}" if metric.sites is not None else ""
        return f"{describe_metric(metric)} (n = {metric.n}{few})"
    low, high = metric.low * 100, metric.high * 100
    return f"{percent(metric.value)} (95 % interval {low:.1f} to {high:.1f}, n = {metric.n}, {metric.sites} sites)"


def _describe_baseline(final_evaluation: FinalEvaluation, found: Comparison, labels_from: LabelSource) -> str:
    name = PREDICTOR_NAMES[found.baseline]
    means = {
        o: _mean(final_evaluation.predictors[o], found.mean)
        for o in _independent(found.mean, labels_from)
        if o in final_evaluation.predictors
    }
    others = [PREDICTOR_NAMES[o] for o, metric in means.items() if metric.n and metric.value < found.baseline_value]
    if found.baseline in ("rule_based", "baseline") or not others:
        # That rules are better than what learnt nothing is no news.
        return name
    return f"{name} (better than the {' and the '.join(others)})"


def _independent(mean: str, labels_from: LabelSource) -> tuple[str, ...]:
    """Return who was not trained by the study and did not read the labels."""
    is_read_by_rules = mean == ALL_ASKED and labels_from is LabelSource.MARKUP
    return ("untrained", "constant") if is_read_by_rules else ("rule_based", "untrained", "constant")


def _too_few(sites: int) -> str:
    return f"{sites} site{'' if sites == 1 else 's'} {'is' if sites == 1 else 'are'} too few, {LEAST_SITES} are needed"


def _mean(scores: PredictorScores, mean: str) -> Metric:
    return scores.hand_labelled if mean == HAND_LABELLED else scores.all_asked


def _gain(final_evaluation: FinalEvaluation, mean: str, other: str) -> Interval | None:
    gain = final_evaluation.gains.get(f"{mean}/winner-{other}")
    return gain if gain is not None and gain.n else None


def _comparison_as_json(final_evaluation: FinalEvaluation | None, labels_from: LabelSource) -> dict[str, Any] | None:
    found = compare(final_evaluation, labels_from) if final_evaluation else None
    if found is None:
        return None
    return {"mean": found.mean, "baseline": found.baseline, "isBetter": found.is_better}


def _final_evaluation_as_json(final_evaluation: FinalEvaluation | None) -> dict[str, Any] | None:
    """Return a final evaluation without the means of nothing."""
    if final_evaluation is None:
        return None
    values = asdict(final_evaluation)
    scored = ("predictors", "confirmations", "curve")
    for scores in (scores for kind in scored for scores in values[kind].values()):
        scores["by_attribute"] = {a: m if m["n"] else None for a, m in scores["by_attribute"].items()}
        scores |= {name: None for name, m in scores.items() if name != "by_attribute" and not (m and m["n"])}
    for kind in ("gains", "seed_gains"):
        values[kind] = {name: gain for name, gain in values[kind].items() if gain["n"]}
    return values


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
        "measurements": [asdict(m) | ({"value": None} if m.n == 0 else {}) for m in trial.measurements],
        "attempts": trial.attempts_so_far,
        "message": trial.message,
    }


def describe_hours(hours: float) -> str:
    """Return accelerator-hours as a person says them."""
    return f"{hours * 60:.1f} minutes" if hours < 2 else f"{hours:.1f} hours"


def _describe_saved(hours: float | None) -> str:
    if hours is None:
        return f"what was saved against {FULL_LENGTH_RUNS} is not known: the trainer tells no seconds of training"
    return describe_saved(hours)


def describe_saved(hours: float) -> str:
    """Return what stopping early saved, or cost where starting and evaluating again took more."""
    amount = describe_hours(abs(hours))
    return f"{amount} saved against {FULL_LENGTH_RUNS}" if hours >= 0 else f"{amount} more than {FULL_LENGTH_RUNS}"


def describe_parameter(value: float | int | str) -> str:
    """Return a parameter's value with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_report(console: Console, report: Report) -> None:
    """Print the trials and the result."""
    console.print(render_trials(report))
    console.print()
    console.print(render_summary(report))
