"""Writes a study's report and its ledger into its bucket, and collects what a report tells.

Called by the command line and by the operator with what is recorded; decides nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from study_operator import names
from study_operator.ledger.bucket_copy import LedgerRefusedError, render_copy
from study_operator.ledger.conditions import name_stage
from study_operator.ledger.curve_comparison import NAMES, CurveComparison, compare_data_curves
from study_operator.ledger.curve_runs import find_curve_trial
from study_operator.ledger.data_curve import DataCurve, SizeRun, fit_data_curve
from study_operator.ledger.early_percents import EarlyPercents, compare_percents, list_extra_places
from study_operator.ledger.failures import find_failures
from study_operator.ledger.gain import find_gain
from study_operator.ledger.merit import list_ranking_metrics
from study_operator.ledger.overfitting import describe_change, name_sign
from study_operator.ledger.ranking import rank
from study_operator.ledger.status import Recorded, parse_status
from study_operator.ledger.trial import Ledger, Measurement, StageState
from study_operator.optimizer.designer import DesignerError, ModelReader, ProposalPendingError
from study_operator.optimizer.reading import LEAST_MEASURED, ModelReading, digest_question
from study_operator.reasons import ConditionReason
from study_operator.reconcile.job_specs import adapter_uri
from study_operator.reconcile.settle import build_measurement
from study_operator.reconcile.tick import TickResult, read_result, report_key
from study_operator.reconcile.warm_start import read_earlier
from study_operator.report.data_curve import CurveReport, list_attributes, list_points
from study_operator.report.losses import KeptLosses, read_losses
from study_operator.report.page import render_page
from study_operator.report.report import HAND_LABELLED, Report, find_mean, render_json
from study_operator.report.seeds import list_seeds
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError, ArtifactStore
from trial_trainer.contract import (
    EXAMPLES,
    FINAL_EVALUATION,
    MEASUREMENT,
    MEASUREMENTS,
    SUMMARY,
    DatasetSummary,
    Examples,
    FinalEvaluation,
    RungMeasurement,
    to_json,
)

log = logging.getLogger(__name__)


def write_report(
    study: Study,
    ledger: Ledger,
    raw: Mapping[str, Any],
    artifacts: ArtifactStore,
    optimizer: ModelReader,
    kept: KeptLosses,
) -> None:
    """Write ledger and report of what is recorded.

    Raises:
        ProposalPendingError: where the study has ended and the optimizer is still at its model; whoever asked is woken,
            and writes it then.
    """
    _write_reading(study, ledger, artifacts, optimizer)
    report = build_report(study, replace(parse_status(raw), ledger=ledger), artifacts)
    artifacts.write(names.LEDGER, render_copy(study, raw))
    artifacts.write(names.REPORT, json.dumps(render_json(report), indent=1, allow_nan=False).encode())
    artifacts.write(names.REPORT_PAGE, render_whole_page(report, artifacts, kept).encode())


def _write_reading(study: Study, ledger: Ledger, artifacts: ArtifactStore, optimizer: ModelReader) -> None:
    """Write what the optimizer's model says, once the search has ended: until then it has arms to propose."""
    is_last = ledger.outcome is not None
    ranked = rank(study, ledger.trials, 0)
    if not (is_last or ledger.search_end) or len(ranked) < LEAST_MEASURED or all(t.has_diverged for t in ranked):
        return
    through = ranked[0] if ledger.winner is None else ledger.trials[ledger.winner]
    # Earlier studies, which the model may rest on too, have ended and change no more.
    digest = digest_question(study, ledger.trials, through.arm)
    written = read_result(ModelReading, artifacts, names.MODEL_READING)
    if written is not None and written.digest == digest and not written.problem:
        return
    try:
        reading = optimizer.read_model(read_earlier(study, artifacts), ledger.trials, through.arm, is_last=is_last)
    except ProposalPendingError:
        if is_last:
            raise
        # While the study goes on, this report is written without it and a later one with it.
        return
    except (DesignerError, LedgerRefusedError) as error:
        # A model is no reason to have no report.
        reading = ModelReading(measured=len(ranked), through=through.arm, problem=str(error))
    try:
        text = to_json(reading)
    except ValueError:
        # Numerics may end in what is no number, and JSON has none of these.
        problem = "it says what is no number"
        text = to_json(ModelReading(measured=len(ranked), through=through.arm, problem=problem))
    artifacts.write(names.MODEL_READING, text.encode())


def render_whole_page(report: Report, artifacts: ArtifactStore, kept: KeptLosses) -> str:
    """Return the page of a report, with what it alone shows: losses, and pages of the test set."""
    losses = read_losses(report.study, report.trials, artifacts, kept)
    examples = None
    if report.final_evaluation is not None:
        examples = read_result(Examples, artifacts, f"{names.FINAL_EVALUATION}/{EXAMPLES}")
        # Those of another final evaluation are of other answers.
        if examples is not None and examples.digest != report.final_evaluation.digest:
            examples = None
    return render_page(report, losses, examples)


@dataclass
class LedgerKeeper:
    """Keeps the copy of one study's ledger in its bucket, after each tick that brought something new."""

    key: str = ""
    """Of what was last written; changes with each new arm, measurement, promotion, or the end."""

    def keep(self, study: Study, result: TickResult, artifacts: ArtifactStore) -> None:
        """Write the ledger that a tick has recorded. One that cannot be written now is written after the next news."""
        ledger = result.ledger
        key = f"{ledger.prepare.state}/{len(ledger.runs)}/{report_key(ledger)}/{ledger.winner}/{ledger.cleaned_at}"
        if result.is_idle or result.is_dropped or result.refusal or ledger == Ledger() or key == self.key:
            return
        try:
            artifacts.write(names.LEDGER, render_copy(study, result.status))
        except ArtifactError as error:
            log.debug("the ledger of study %s is not in its bucket: %s", study.name, error)
            return
        self.key = key


def build_report(study: Study, recorded: Recorded, artifacts: ArtifactStore) -> Report:
    """Return all that is known of a study: its ledger, its dataset, its final evaluation."""
    ledger, raw = recorded.ledger, recorded.raw
    winner = ledger.trials[ledger.winner] if ledger.winner is not None else None
    usage: Mapping[str, str | None] = raw.get("usage") or {}
    agreement: Mapping[str, Any] = raw.get("agreement") or {}
    complete = recorded.conditions.get("Complete")
    final_evaluation = None
    if ledger.final_evaluation.state is StageState.COMPLETED:
        final_evaluation = read_result(FinalEvaluation, artifacts, f"{names.FINAL_EVALUATION}/{FINAL_EVALUATION}")
    return Report(
        study=study,
        stage=name_stage(study, ledger),
        message=complete.message if complete is not None else "",
        trials=ledger.trials,
        winner=winner.name if winner is not None else None,
        adapter=adapter_uri(study, winner) if winner is not None else None,
        summary=read_result(DatasetSummary, artifacts, f"{names.DATASET}/{SUMMARY}"),
        final_evaluation=final_evaluation,
        agreement=tuple(agreement.get("sentences", ())),
        spent_hours=float(usage.get("acceleratorHours") or 0),
        saved_hours=float(saved) if (saved := usage.get("savedAcceleratorHours", "0")) is not None else None,
        written_at=datetime.now(UTC),
        gain=find_gain(study, ledger),
        winner_change=_describe_change(study, ledger),
        confirmations=ledger.confirmations_message,
        seeds=list_seeds(study, ledger, final_evaluation, find_mean(final_evaluation) if final_evaluation else None),
        curve=_build_curve(study, ledger, final_evaluation, artifacts),
        early=_compare_percents(study, ledger, artifacts),
        failures=find_failures(study, ledger.trials),
        model=read_result(ModelReading, artifacts, names.MODEL_READING),
    )


def _compare_percents(study: Study, ledger: Ledger, artifacts: ArtifactStore) -> EarlyPercents | None:
    """Compare early with final measurements, once all trials that go to full length are there."""
    if ledger.winner is None or (study.data_curve is not None and ledger.curve_end is None):
        # A document from each trial and percent is read, and nothing of it changes any more.
        return None
    extra: dict[int, dict[int, Measurement]] = {}
    for trial in ledger.trials:
        if trial.measurement(study.last_rung) is None:
            continue
        for percent, rung, step in list_extra_places(study, trial):
            key = f"{names.rung_key(trial.name, rung)}/{MEASUREMENTS}/{step}.json"
            result = read_result(RungMeasurement, artifacts, key)
            # Whatever rung it was read on, it is looked at as an early measurement.
            needed = {study.objective.metric, *list_ranking_metrics(study, 0)}
            if result is not None and all(name in result.metrics and result.metrics[name].n for name in needed):
                extra.setdefault(percent, {})[trial.index] = build_measurement(study, result)
    return compare_percents(study, ledger.trials, extra)


def _describe_change(study: Study, ledger: Ledger) -> str:
    """Say what became of the winner between its rungs, and whether that is seen to be overfitting."""
    change = ledger.winner_change
    if change is None:
        return ""
    is_seen = name_sign(change) is not ConditionReason.NOT_SEEN
    return f"{'seen' if is_seen else 'not seen'}: {describe_change(study, change)}"


def _build_curve(
    study: Study, ledger: Ledger, final_evaluation: FinalEvaluation | None, artifacts: ArtifactStore
) -> CurveReport | None:
    trial = find_curve_trial(study, ledger)
    if trial is None or not ledger.curve:
        return None
    mean = find_mean(final_evaluation) if final_evaluation is not None else None
    test = {
        name: scores.hand_labelled if mean == HAND_LABELLED else scores.all_asked
        for name, scores in (final_evaluation.curve if final_evaluation is not None else {}).items()
    }
    # Read and fitted once, at the end: it takes a document from each run.
    results = _read_results(ledger, artifacts) if ledger.curve_end is not None else {}
    runs = _list_size_runs(study, ledger, results) if ledger.curve_end is not None else {}
    kind, fit, comparison = _fit_curves(study, runs)
    return CurveReport(
        of=trial.name,
        points=list_points(study, ledger.curve, test),
        message=ledger.curve_message,
        fit=fit,
        fit_is_augmented=kind,
        comparison=comparison,
        attributes=list_attributes(study, ledger.curve, results),
    )


def _read_results(ledger: Ledger, artifacts: ArtifactStore) -> dict[str, RungMeasurement]:
    """Return what the runs of the curve wrote, by their names."""
    keys = {run.name: f"{names.rung_key(run.name, run.rung)}/{MEASUREMENT}" for run in ledger.curve if run.measurements}
    found = {name: read_result(RungMeasurement, artifacts, key) for name, key in keys.items()}
    return {name: result for name, result in found.items() if result is not None}


def _list_size_runs(study: Study, ledger: Ledger, results: Mapping[str, RungMeasurement]) -> dict[bool, list[SizeRun]]:
    """Return what the runs measured on validation, by whether they are augmented as the trials are."""
    metric, runs = study.objective.metric, dict[bool, list[SizeRun]]()
    for run in ledger.curve:
        measured = run.measurement(study.last_rung)
        if measured is None or measured.diverged or not measured.n or run.train_samples is None:
            continue
        by_site = results[run.name].by_site.get(metric, {}) if run.name in results else {}
        whole = {"": (measured.value * measured.n, float(measured.n))}
        sites = {site: (s.total, s.weight) for site, s in by_site.items()} or whole
        size_run = SizeRun(samples=run.train_samples, seed=run.seed or 0, sites=sites)
        runs.setdefault(not run.without_variants, []).append(size_run)
    return runs


def _fit_curves(
    study: Study, runs: Mapping[bool, Sequence[SizeRun]]
) -> tuple[bool | None, DataCurve | None, CurveComparison | None]:
    """Fit the only curve, or the two that are compared; None where nothing was measured.

    Where two are to be compared and one kind of run alone was measured, its curve is returned with its kind.
    """
    curve, metric = study.data_curve, study.objective.metric
    if curve is None or not runs:
        return None, None, None
    how: dict[str, Any] = {
        "direction": study.objective.direction,
        "is_share": is_share(metric),
        "least_gain": curve.least_gain,
        "seed": study.seed,
    }
    if not curve.compare_augmentation:
        return None, fit_data_curve(runs[True], **how), None
    if len(runs) == 1:
        ((kind, of_kind),) = runs.items()
        return kind, fit_data_curve(of_kind, **how, name=NAMES[kind]), None
    return None, None, compare_data_curves(runs[False], runs[True], **how)
