"""The study's status: the ledger and what people read of it, as plain JSON values, and back.

The ledger makes the round trip exactly: fractional numbers and parameter values are strings, as `repr` writes them.
`events_between` says what happened from one written ledger to the next.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from study_operator.agreement import Agreement, describe_agreement, measure_agreement
from study_operator.conditions import Condition, derive_conditions, is_promoting
from study_operator.errors import StatusUnreadableError
from study_operator.promotion import choose_winner, rank
from study_operator.study import Study
from study_operator.trial import (
    Attempt,
    Continuation,
    DatasetCounts,
    Ledger,
    Measurement,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.usage import measure_usage
from trial_trainer.contract import ParameterValue

Raw = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the last report in the bucket told."""

    key: str
    """Changes with each new measurement, promotion, or the end."""
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A status that was read, parsed."""

    raw: Raw
    """Empty before the first write."""
    ledger: Ledger
    conditions: Mapping[str, Condition]
    reported: Reported | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, for people."""

    reason: str
    message: str
    is_warning: bool = False


# --- Render -----------------------------------------------------------------------------------------------------


def render_status(
    study: Study,
    ledger: Ledger,
    *,
    now: datetime,
    recorded: Recorded | None = None,
    reported: Reported | None = None,
    storage_problem: str = "",
    report_uri: str = "",
) -> dict[str, Any]:
    """Render the status. What did not change since ``recorded`` is taken from there as it is."""
    recorded = recorded or parse_status(None)
    conditions = derive_conditions(study, ledger, storage_problem=storage_problem, now=now, before=recorded.conditions)
    return {
        "observedGeneration": study.generation,
        "conditions": [_render_condition(c) for c in conditions],
        "trials": _render_trials(ledger.trials, recorded),
        **_render_summaries(study, ledger, recorded),
        "prepare": _render_stage(ledger.prepare),
        "dataset": _render_dataset(ledger.dataset),
        "search": {"end": ledger.search_end, "message": ledger.search_message} if ledger.search_end else None,
        "winner": ledger.winner,
        "judge": _render_stage(ledger.judge),
        "outcome": _render_outcome(ledger.outcome),
        "reportURI": report_uri,
        "reported": {"key": reported.key, "at": reported.at.isoformat()} if reported else None,
    }


def _render_trials(trials: Sequence[Trial], recorded: Recorded) -> list[Raw]:
    raw, known = recorded.raw.get("trials", ()), recorded.ledger.trials
    rendered: list[Raw] = []
    for i, trial in enumerate(trials):
        if i >= len(known):
            rendered.append(render_trial(trial))
        elif trial is known[i]:
            rendered.append(raw[i])
        else:
            # Measurements are the longest part, and seldom what changed.
            same = trial.measurements is known[i].measurements
            rendered.append(render_trial(trial, raw[i].get("measurements") if same else None))
    return rendered


_SUMMARIES = ("trialCounts", "best", "baseline", "agreement", "usage")


def _render_summaries(study: Study, ledger: Ledger, recorded: Recorded) -> dict[str, Any]:
    known = recorded.ledger.trials
    is_same = len(known) == len(ledger.trials) and all(a is b for a, b in zip(ledger.trials, known, strict=True))
    if recorded.raw and is_same:
        return {name: recorded.raw.get(name) for name in _SUMMARIES}
    trials = ledger.trials
    best = choose_winner(study, trials) or next((t for t in rank(study, trials, 0) if not _has_diverged(t)), None)
    baseline = next((t for t in trials if t.origin is Origin.BASELINE), None)
    usage = measure_usage(study, trials, None)
    agreement = measure_agreement(study, trials) if is_promoting(trials) else None
    return {
        "trialCounts": _count(trials),
        "best": _render_best(study, best, baseline),
        "baseline": _render_best(study, baseline, None),
        "agreement": _render_agreement(agreement) if agreement else None,
        "usage": {
            "acceleratorHours": repr(usage.accelerator_hours),
            "savedAcceleratorHours": repr(usage.saved_accelerator_hours),
            "activeSeconds": repr(usage.active_seconds),
        },
    }


def _has_diverged(trial: Trial) -> bool:
    return any(m.diverged for m in trial.measurements)


def _count(trials: Sequence[Trial]) -> dict[str, int]:
    counts = {str(state)[0].lower() + str(state)[1:]: 0 for state in TrialState}
    for trial in trials:
        counts[trial.state[0].lower() + trial.state[1:]] += 1
    counts["total"] = len(trials)
    counts["measured"] = sum(bool(t.measurements) for t in trials)
    counts["promoted"] = sum(t.continuation is Continuation.PROMOTED for t in trials)
    return counts


def _render_best(study: Study, trial: Trial | None, baseline: Trial | None) -> dict[str, Any] | None:
    last = trial.measurements[-1] if trial is not None and trial.measurements else None
    if trial is None or last is None:
        return None
    objective = study.objective
    rendered: dict[str, Any] = {
        "trial": trial.name,
        "metric": objective.metric,
        "direction": objective.direction,
        "value": repr(last.value),
        "standardError": None if last.standard_error is None else repr(last.standard_error),
        "n": last.counts.get(objective.metric),
        "rung": last.rung,
    }
    reference = baseline.measurement(last.rung) if baseline is not None and baseline is not trial else None
    if reference is not None:
        rendered["gain"] = repr(last.value - reference.value)
    return rendered


def _render_agreement(agreement: Agreement) -> dict[str, Any]:
    missed = agreement.missed_winners
    return {
        "audited": agreement.audited,
        "fullLength": agreement.full_length,
        "concordance": None if agreement.concordance is None else repr(agreement.concordance),
        "pairs": agreement.pairs,
        "missedWinners": None
        if missed is None
        else {
            "estimate": repr(missed.estimate),
            "low": missed.low,
            "high": missed.high,
            "population": missed.population,
        },
        "topKKept": None if agreement.top_k_kept is None else repr(agreement.top_k_kept),
        "sentences": describe_agreement(agreement),
    }


def render_trial(trial: Trial, measurements: Sequence[Raw] | None = None) -> dict[str, Any]:
    """Render one entry of the ledger; what is at its default is left out.

    Args:
        trial: the entry.
        measurements: its measurements where they are rendered already.
    """
    raw: dict[str, Any] = {
        "index": trial.index,
        "arm": {name: repr(value) for name, value in trial.arm.items()},
        "origin": trial.origin.value,
        "state": trial.state.value,
        "rung": trial.rung,
        "totalSteps": trial.total_steps,
    }
    if trial.generation_node:
        raw["generationNode"] = trial.generation_node
    if trial.continuation is not None:
        raw["continuation"] = trial.continuation.value
    if trial.inclusion_probability is not None:
        raw["inclusionProbability"] = repr(trial.inclusion_probability)
    if trial.measurements:
        raw["measurements"] = measurements or [_render_measurement(m) for m in trial.measurements]
    if trial.attempts:
        raw["attempts"] = [_render_attempt(a) for a in trial.attempts]
    if trial.message:
        raw["message"] = trial.message
    return raw


def _render_measurement(measurement: Measurement) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "rung": measurement.rung,
        "step": measurement.step,
        "value": repr(measurement.value),
        "metrics": {name: repr(value) for name, value in measurement.metrics.items()},
        "standardErrors": {name: repr(value) for name, value in measurement.standard_errors.items()},
        "counts": dict(measurement.counts),
        "checkpoint": measurement.checkpoint,
    }
    if measurement.standard_error is not None:
        raw["standardError"] = repr(measurement.standard_error)
    if measurement.diverged:
        raw["diverged"] = True
    return raw


def _render_attempt(attempt: Attempt) -> dict[str, Any]:
    raw: dict[str, Any] = {"rung": attempt.rung, "id": attempt.id, "startedAt": attempt.started_at.isoformat()}
    if attempt.finished_at is not None:
        raw["finishedAt"] = attempt.finished_at.isoformat()
    if attempt.exit_code is not None:
        raw["exitCode"] = attempt.exit_code
    if attempt.reason:
        raw["reason"] = str(attempt.reason)
    return raw


def _render_stage(stage: Stage) -> dict[str, Any]:
    raw: dict[str, Any] = {"state": stage.state.value}
    if stage.attempts:
        raw["attempts"] = [_render_attempt(a) for a in stage.attempts]
    if stage.reason:
        raw["reason"] = str(stage.reason)
    if stage.message:
        raw["message"] = stage.message
    return raw


def _render_dataset(dataset: DatasetCounts | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "fingerprint": dataset.fingerprint,
        "trainSamples": dataset.train,
        "validationSamples": dataset.validation,
        "testSamples": dataset.test,
    }


def _render_outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {"failed": outcome.failed, "reason": outcome.reason, "message": outcome.message}


def _render_condition(condition: Condition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": "True" if condition.is_true else "False",
        "reason": str(condition.reason),
        "message": condition.message,
        "lastTransitionTime": condition.since,
    }


# --- Parse ------------------------------------------------------------------------------------------------------


def parse_status(raw: Raw | None) -> Recorded:
    """Parse a status; None is that of a study that has none yet.

    Raises:
        StatusUnreadableError: where it is not one that `render_status` has written.
    """
    if not raw:
        return Recorded(raw={}, ledger=Ledger(), conditions={}, reported=None)
    try:
        return Recorded(
            raw=raw,
            ledger=_parse_ledger(raw),
            conditions={c["type"]: _parse_condition(c) for c in raw["conditions"]},
            reported=Reported(key=r["key"], at=datetime.fromisoformat(r["at"])) if (r := raw["reported"]) else None,
        )
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise StatusUnreadableError(f"the study's status must be one that this operator wrote: {error!r}") from error


def _parse_ledger(raw: Raw) -> Ledger:
    search, outcome, dataset = raw["search"], raw["outcome"], raw["dataset"]
    return Ledger(
        trials=tuple([parse_trial(t) for t in raw["trials"]]),
        prepare=_parse_stage(raw["prepare"]),
        dataset=None
        if dataset is None
        else DatasetCounts(
            fingerprint=dataset["fingerprint"],
            train=dataset["trainSamples"],
            validation=dataset["validationSamples"],
            test=dataset["testSamples"],
        ),
        search_end=SearchEnd(search["end"]) if search else None,
        search_message=search["message"] if search else "",
        winner=raw["winner"],
        judge=_parse_stage(raw["judge"]),
        outcome=Outcome(**outcome) if outcome else None,
    )


# A table is three times as fast as an enumeration's own look-up, and a status holds hundreds of trials.
_STATES = {state.value: state for state in TrialState}
_ORIGINS = {origin.value: origin for origin in Origin}
_CONTINUATIONS = {continuation.value: continuation for continuation in Continuation}


def parse_trial(raw: Raw) -> Trial:
    """Parse one entry of the ledger."""
    continuation, probability = raw.get("continuation"), raw.get("inclusionProbability")
    return Trial(
        index=raw["index"],
        arm={name: parse_value(text) for name, text in raw["arm"].items()},
        origin=_ORIGINS[raw["origin"]],
        generation_node=raw.get("generationNode", ""),
        state=_STATES[raw["state"]],
        rung=raw["rung"],
        total_steps=raw["totalSteps"],
        continuation=None if continuation is None else _CONTINUATIONS[continuation],
        inclusion_probability=None if probability is None else float(probability),
        measurements=tuple([_parse_measurement(m) for m in raw.get("measurements", ())]),
        attempts=tuple([_parse_attempt(a) for a in raw.get("attempts", ())]),
        message=raw.get("message", ""),
    )


def parse_value(text: str) -> ParameterValue:
    """Parse what `repr` wrote of a parameter's value."""
    if text[0] in "'\"":
        return str(ast.literal_eval(text))
    try:
        return int(text)
    except ValueError:
        return float(text)


def _parse_measurement(raw: Raw) -> Measurement:
    error = raw.get("standardError")
    return Measurement(
        rung=raw["rung"],
        step=raw["step"],
        value=float(raw["value"]),
        standard_error=None if error is None else float(error),
        metrics={name: float(value) for name, value in raw["metrics"].items()},
        standard_errors={name: float(value) for name, value in raw["standardErrors"].items()},
        counts=raw["counts"],
        checkpoint=raw["checkpoint"],
        diverged=raw.get("diverged", False),
    )


def _parse_attempt(raw: Raw) -> Attempt:
    finished = raw.get("finishedAt")
    return Attempt(
        rung=raw["rung"],
        started_at=datetime.fromisoformat(raw["startedAt"]),
        finished_at=None if finished is None else datetime.fromisoformat(finished),
        exit_code=raw.get("exitCode"),
        reason=raw.get("reason", ""),
        id=raw["id"],
    )


def _parse_stage(raw: Raw) -> Stage:
    return Stage(
        state=StageState(raw["state"]),
        attempts=tuple([_parse_attempt(a) for a in raw.get("attempts", ())]),
        reason=raw.get("reason", ""),
        message=raw.get("message", ""),
    )


def _parse_condition(raw: Raw) -> Condition:
    return Condition(
        type=raw["type"],
        is_true=raw["status"] == "True",
        reason=raw["reason"],
        message=raw["message"],
        since=raw["lastTransitionTime"],
    )


# --- Events -----------------------------------------------------------------------------------------------------


def events_between(before: Ledger, after: Ledger) -> list[Event]:
    """Return what happened between two written ledgers, in the order of the trials."""
    events: list[Event] = []
    if before.prepare.state is not after.prepare.state and after.prepare.state is StageState.COMPLETED:
        events.append(Event(reason="DatasetPrepared", message=_say_dataset(after.dataset)))
    known = {t.index: t for t in before.trials}
    for trial in after.trials:
        if trial is not known.get(trial.index):
            events.extend(_events_of_trial(known.get(trial.index), trial))
    if before.search_end is None and after.search_end is not None:
        is_warning = after.search_end is SearchEnd.NO_MORE_PROPOSALS
        events.append(Event(reason="SearchEnded", message=_say_search(after), is_warning=is_warning))
    if before.winner is None and after.winner is not None:
        events.append(Event(reason="WinnerChosen", message=f"trial t{after.winner:03d} won by validation"))
    if before.outcome is None and after.outcome is not None:
        reason = "StudyFailed" if after.outcome.failed else "StudyCompleted"
        said = f"{after.outcome.reason}: {after.outcome.message}"
        events.append(Event(reason=reason, message=said, is_warning=after.outcome.failed))
    return events


def _events_of_trial(before: Trial | None, trial: Trial) -> Iterator[Event]:
    known = before.attempts if before else ()
    opened = [a for a in trial.attempts if all(a.id != k.id or a.rung != k.rung for k in known)]
    for attempt in opened:
        yield Event(reason="TrialLaunched", message=f"trial {trial.name} runs on rung {attempt.rung}")
    for measurement in trial.measurements[len(before.measurements) if before else 0 :]:
        value = "diverged" if measurement.diverged else f"measured {measurement.value:.6g}"
        said = (
            f"trial {trial.name} {value} on rung {measurement.rung} at step {measurement.step} of {trial.total_steps}"
        )
        yield Event(reason="TrialMeasured", message=said)
    if trial.continuation is not None and (before is None or before.continuation is None):
        reason = "TrialPromoted" if trial.continuation is Continuation.PROMOTED else "TrialContinued"
        said = f"trial {trial.name} goes on to step {trial.total_steps} ({trial.continuation})"
        yield Event(reason=reason, message=said)
    if before is None or before.state is not trial.state:
        yield from _events_of_state(before, trial)


def _events_of_state(before: Trial | None, trial: Trial) -> Iterator[Event]:
    match trial.state:
        case TrialState.FAILED:
            yield Event(reason="TrialFailed", message=f"trial {trial.name}: {trial.message}", is_warning=True)
        case TrialState.ABANDONED:
            yield Event(reason="TrialAbandoned", message=f"trial {trial.name}: {trial.message}", is_warning=True)
        case TrialState.PENDING if before is not None and before.state is TrialState.RUNNING and trial.message:
            yield Event(reason="TrialInterrupted", message=f"trial {trial.name}: {trial.message}")
        case _:
            return


def _say_dataset(dataset: DatasetCounts | None) -> str:
    if dataset is None:
        return "the dataset is prepared"
    return f"{dataset.train} training, {dataset.validation} validation and {dataset.test} test samples"


def _say_search(ledger: Ledger) -> str:
    return f"{len(ledger.trials)} trials: {ledger.search_end}" + (
        f": {ledger.search_message}" if ledger.search_message else ""
    )
