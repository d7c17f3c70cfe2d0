"""The study's status: the ledger and what people read of it, as plain JSON values, and back.

The ledger makes the round trip exactly: fractional numbers and parameter values are strings, as `repr` writes them, and
only texts for people are cut, at lengths that keep the largest study's object small. The keys of every object but a
trial's are always there, with null for what is not known, because a merge patch takes away only what it names; but
nothing here relies on nulls, because an API server leaves them out. `events_between` says what happened between two
written ledgers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from study_operator.errors import StatusUnreadableError
from study_operator.ledger.agreement import Agreement, describe_agreement, measure_agreement
from study_operator.ledger.conditions import (
    NO_REFUSAL,
    Condition,
    derive_conditions,
    derive_refusal,
    is_promoting,
    render_time,
)
from study_operator.ledger.gain import Gain, describe_gain, find_best, find_gain
from study_operator.ledger.trial import (
    REFUSED,
    WAITS,
    Attempt,
    Continuation,
    DatasetCounts,
    EarlierAttempts,
    Folded,
    GainOnTest,
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
from study_operator.ledger.usage import Usage, measure_usage
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.study import Study, is_share
from trial_trainer.contract import LARGEST_COUNT, ParameterValue, Progress

Raw = Mapping[str, Any]

TRIAL_MESSAGE_BYTES = 180
"""As JSON, like the others here. There are up to 500 trials, and the whole object stays below a mebibyte."""

MESSAGE_BYTES = 2_000
"""Of what is told of the whole study."""

ACCEPTED_MESSAGE_BYTES = 16_000
"""Of the condition that names everything that is wrong with a manifest at once."""

WORD_LENGTH = 64
"""Of a reason, which is one CamelCase word."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the last report in the bucket told."""

    key: str
    """Changes with each new measurement, promotion, or the end."""
    at: datetime


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """How far a running trial was when it was last looked at."""

    trial: str
    rung: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A status that was read, parsed."""

    raw: Raw
    """Empty before the first write."""
    ledger: Ledger
    conditions: Mapping[str, Condition]
    reported: Reported | None
    progress: tuple[TrialProgress, ...] = ()


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
    storage_problem: tuple[str, str] = ("", ""),
    refusal: tuple[str, str] = NO_REFUSAL,
    left_behind: str = "",
    progress: Sequence[TrialProgress] = (),
    report_uri: str = "",
    settings: Settings = DEFAULTS,
) -> dict[str, Any]:
    """Render the status. What did not change since ``recorded`` is taken from there as it is."""
    recorded = recorded or parse_status(None)
    conditions = derive_conditions(
        study,
        ledger,
        storage_problem=storage_problem,
        refusal=refusal,
        left_behind=left_behind,
        now=now,
        before=recorded.conditions,
        settings=settings,
    )
    return {
        "observedGeneration": study.generation,
        "conditions": [_render_condition(c) for c in conditions],
        **_render_ledger(ledger, recorded),
        **_render_summaries(study, ledger, recorded),
        "reportURI": report_uri,
        "reported": {"key": reported.key, "at": render_time(reported.at)} if reported else None,
        "progress": _render_progress(ledger, progress),
    }


def _render_ledger(ledger: Ledger, recorded: Recorded) -> dict[str, Any]:
    return {
        "trials": _render_trials(ledger.trials, recorded),
        "foldedAttempts": _render_folded(ledger.folded),
        "prepare": _render_stage(ledger.prepare),
        "dataset": _render_dataset(ledger.dataset),
        "search": {"end": ledger.search_end, "message": cut(ledger.search_message, MESSAGE_BYTES)}
        if ledger.search_end
        else None,
        "winner": ledger.winner,
        "judge": _render_stage(ledger.judge),
        "testGain": _render_test_gain(ledger.test_gain),
        "outcome": _render_outcome(ledger.outcome),
        "cleanedAt": render_time(ledger.cleaned_at) if ledger.cleaned_at is not None else None,
    }


def _render_progress(ledger: Ledger, progress: Sequence[TrialProgress]) -> list[Raw] | None:
    """Render how far the trials are that still run."""
    running = {(t.name, t.rung) for t in ledger.trials if t.state is TrialState.RUNNING}
    rendered: list[Raw] = []
    for seen in progress:
        if (seen.trial, seen.rung) not in running:
            continue
        at = seen.progress
        raw: dict[str, Any] = {
            "trial": seen.trial,
            "rung": seen.rung,
            "step": at.step,
            "stopStep": at.stop_step,
            "totalSteps": at.total_steps,
            "phase": cut(at.phase, WORD_LENGTH),
            "updatedAt": cut(at.updated_at, WORD_LENGTH),
        }
        if at.loss is not None:
            raw["loss"] = repr(at.loss)
        if at.eta_seconds is not None:
            raw["etaSeconds"] = min(max(0, round(at.eta_seconds)), LARGEST_COUNT)
        rendered.append(raw)
    return rendered or None


def _parse_progress(raw: Raw) -> TrialProgress:
    loss, eta = raw.get("loss"), raw.get("etaSeconds")
    return TrialProgress(
        trial=raw["trial"],
        rung=raw["rung"],
        progress=Progress(
            step=raw["step"],
            stop_step=raw["stopStep"],
            total_steps=raw["totalSteps"],
            loss=None if loss is None else float(loss),
            phase=raw["phase"],
            eta_seconds=None if eta is None else float(eta),
            updated_at=raw["updatedAt"],
        ),
    )


def render_refused_status(recorded: Recorded, why: str, generation: int, now: datetime) -> Raw:
    """Render what is said where a new ledger cannot be written in any form: the old one stays, and nothing goes on."""
    accepted = recorded.conditions.get("Accepted")
    if accepted is not None and accepted.reason == STATUS_REFUSED:
        return recorded.raw
    said = f"the API server refuses every form of the study's status: {cut(why, SERVER_BYTES)}"
    return render_refusal(recorded, STATUS_REFUSED, [said], generation, now)


def render_refusal(
    recorded: Recorded, reason: str, problems: Sequence[str], generation: int, now: datetime
) -> dict[str, Any]:
    """Render the status of a study that is not accepted. Its ledger, where it has one, stays as it is."""
    conditions = derive_refusal(recorded.conditions, reason, problems, now)
    empty: dict[str, Any] = {
        **_render_ledger(recorded.ledger, recorded),
        **dict.fromkeys(_SUMMARIES),
        "reportURI": "",
        "reported": None,
        "progress": None,
    }
    return {
        **(recorded.raw or empty),
        "observedGeneration": generation,
        "conditions": [_render_condition(c) for c in conditions],
    }


STATUS_SHORTENED, STATUS_REFUSED = "StatusShortened", "StatusRefused"
SHORT_TRIAL_BYTES, SHORT_BYTES, SERVER_BYTES = 60, 300, 500
"""Of messages where the API server does not take longer ones, and of its own words."""


def shorten_status(status: Raw, recorded: Recorded, why: str) -> dict[str, Any]:
    """Return a status without what only people read, and the condition that says so; the ledger is whole."""
    accepted = recorded.conditions.get("Accepted")
    said = f"the API server refuses the whole status, which is cut short: {cut(why, SERVER_BYTES)}"
    if accepted is not None and accepted.reason == STATUS_SHORTENED:
        # The same in other words is no news.
        said = accepted.message
    conditions = [
        {**c, "reason": STATUS_SHORTENED, "message": said} if c["type"] == "Accepted" else _shorten(c, SHORT_BYTES)
        for c in status["conditions"]
    ]
    parts = {name: _shorten(status[name], SHORT_BYTES) for name in ("prepare", "judge", "search", "outcome")}
    trials = [_shorten(trial, SHORT_TRIAL_BYTES) for trial in status["trials"]]
    return {**status, **parts, "conditions": conditions, "trials": trials, "agreement": None, "progress": None}


def _shorten(raw: Any, most_bytes: int) -> Any:
    """Return an object whose message is short; the same where it is."""
    message = (raw or {}).get("message")
    return {**raw, "message": cut(message, most_bytes)} if message else raw


def is_same_status(one: Raw, other: Raw) -> bool:
    """Say whether two statuses say the same: a key that holds null is as good as one that is not there."""
    # A trial holds no nulls, and a ledger of hundreds is compared in each tick.
    if one.get("trials") != other.get("trials"):
        return False
    a, b = (_without_nulls({k: v for k, v in raw.items() if k != "trials"}) for raw in (one, other))
    return bool(a == b)


def _without_nulls(value: Any) -> Any:
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


def cut(text: str, most_bytes: int) -> str:
    """Return a text that takes at most so many bytes in an API server's JSON; one that was cut ends in an ellipsis."""
    # What no UTF-8 can hold (half a surrogate pair) would be refused.
    text = text.encode("utf-8", "replace").decode()
    if len(text) * 6 <= most_bytes or sum(map(_stored_bytes, text)) <= most_bytes:
        return text
    room = most_bytes - len("…".encode())
    for end, character in enumerate(text):
        room -= _stored_bytes(character)
        if room < 0:
            return f"{text[:end]}…"
    return text


def _stored_bytes(character: str) -> int:
    """Return the bytes of a character as Go's encoder writes it into JSON, which escapes for HTML too."""
    if character in '"\\\n\r\t\b\f':
        return 2
    return 6 if character < " " or character in "<>&\u2028\u2029" else len(character.encode())


def _word(reason: str) -> str:
    """Return a reason as conditions take it, whatever the environment's own word was."""
    return "".join(c for c in reason if c.isascii() and c.isalnum()).lstrip("0123456789")[:WORD_LENGTH] or "Unknown"


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


_SUMMARIES = ("summary", "trialCounts", "best", "baseline", "agreement", "usage")


def _render_summaries(study: Study, ledger: Ledger, recorded: Recorded) -> dict[str, Any]:
    known = recorded.ledger.trials
    is_same = len(known) == len(ledger.trials) and all(a is b for a, b in zip(ledger.trials, known, strict=True))
    if recorded.raw and is_same and ledger.test_gain == recorded.ledger.test_gain:
        return {name: recorded.raw.get(name) for name in _SUMMARIES}
    trials = ledger.trials
    best, gain = find_best(study, trials), find_gain(study, ledger)
    baseline = next((t for t in trials if t.origin is Origin.BASELINE), None)
    usage = measure_usage(study, ledger, None)
    saved = usage.saved_accelerator_hours
    agreement = measure_agreement(study, trials) if is_promoting(trials) else None
    return {
        "summary": _summarize(study, best, gain, usage),
        "trialCounts": _count(trials),
        "best": _render_best(study, best, gain),
        "baseline": _render_best(study, baseline, None),
        "agreement": _render_agreement(agreement) if agreement else None,
        "usage": {
            "acceleratorHours": repr(usage.accelerator_hours),
            "savedAcceleratorHours": repr(saved) if saved is not None else None,
            "activeSeconds": repr(usage.active_seconds),
        },
    }


def _summarize(study: Study, best: Trial | None, gain: Gain | None, usage: Usage) -> dict[str, Any]:
    """Return what `kubectl get` shows in its columns, rounded for people; it writes `<no value>` for null."""
    value = best.measurements[-1].value if best is not None and best.measurements else None
    metric, saved = study.objective.metric, usage.saved_accelerator_hours
    return {
        "best": "" if value is None else f"{value:.1%}" if is_share(metric) else f"{value:.4g}",
        "gain": "" if gain is None else describe_gain(gain, metric),
        # Adding 0 makes a rounded -0.0 a 0.0.
        "saved": "" if saved is None else f"{round(saved, 1) + 0.0:.1f} h",
    }


def _count(trials: Sequence[Trial]) -> dict[str, int]:
    counts = {str(state)[0].lower() + str(state)[1:]: 0 for state in TrialState}
    for trial in trials:
        counts[trial.state[0].lower() + trial.state[1:]] += 1
    counts["total"] = len(trials)
    counts["measured"] = sum(bool(t.measurements) for t in trials)
    counts["promoted"] = sum(t.continuation is Continuation.PROMOTED for t in trials)
    return counts


def _render_best(study: Study, trial: Trial | None, gain: Gain | None) -> dict[str, Any] | None:
    last = trial.measurements[-1] if trial is not None and trial.measurements else None
    if trial is None or last is None or last.diverged:
        return None
    objective = study.objective
    return {
        "trial": trial.name,
        "metric": objective.metric,
        "direction": objective.direction,
        "value": repr(last.value),
        "standardError": None if last.standard_error is None else repr(last.standard_error),
        "n": last.n,
        "rung": last.rung,
        "gain": _render_number(gain.estimate if gain is not None else None),
        "gainLow": _render_number(gain.low if gain is not None else None),
        "gainHigh": _render_number(gain.high if gain is not None else None),
        "gainOn": gain.source.value if gain is not None else None,
        "gainAsRead": _render_number(gain.as_read if gain is not None else None),
        "largestOf": gain.largest_of if gain is not None else None,
    }


def _render_number(value: float | None) -> str | None:
    return None if value is None else repr(value)


def _render_agreement(agreement: Agreement) -> dict[str, Any]:
    missed = agreement.missed_winners
    return {
        "audited": agreement.audited,
        "fullLength": agreement.full_length,
        "concordance": None if agreement.concordance is None else repr(agreement.concordance),
        "concordanceLow": None if agreement.concordance is None else repr(agreement.concordance_low),
        "concordanceHigh": None if agreement.concordance is None else repr(agreement.concordance_high),
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
    if trial.earlier is not None:
        raw["earlierAttempts"] = _render_earlier(trial.earlier)
    if trial.message:
        raw["message"] = cut(trial.message, TRIAL_MESSAGE_BYTES)
    return raw


def _render_measurement(measurement: Measurement) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "rung": measurement.rung,
        "step": measurement.step,
        "value": repr(measurement.value),
        "metrics": {name: repr(value) for name, value in measurement.metrics.items()},
    }
    if measurement.standard_error is not None:
        raw["standardError"] = repr(measurement.standard_error)
    if measurement.n is not None:
        raw["n"] = measurement.n
    if measurement.sites is not None:
        raw["sites"] = measurement.sites
    if measurement.checkpoint:
        raw["checkpoint"] = measurement.checkpoint
    if measurement.diverged:
        raw["diverged"] = True
    if measurement.gibberish:
        raw["gibberish"] = True
    if measurement.train_seconds is not None:
        raw["trainSeconds"] = repr(measurement.train_seconds)
    if measurement.fixed_seconds is not None:
        raw["fixedSeconds"] = repr(measurement.fixed_seconds)
    return raw


def _render_attempt(attempt: Attempt) -> dict[str, Any]:
    raw: dict[str, Any] = {"rung": attempt.rung, "id": attempt.id, "startedAt": render_time(attempt.started_at)}
    if attempt.finished_at is not None:
        raw["finishedAt"] = render_time(attempt.finished_at)
    if attempt.exit_code is not None:
        raw["exitCode"] = attempt.exit_code
    if attempt.reason:
        raw["reason"] = _word(attempt.reason)
    return raw


def _render_earlier(earlier: EarlierAttempts) -> dict[str, Any]:
    return {
        "attempts": earlier.attempts,
        "seconds": repr(earlier.seconds),
        "firstRungSeconds": repr(earlier.first_rung_seconds),
        "rung": earlier.rung,
        "faults": earlier.faults,
        "interruptions": earlier.interruptions,
    }


def _render_folded(folded: Folded | None) -> dict[str, Any] | None:
    if folded is None:
        return None
    return {"until": render_time(folded.until), "activeSeconds": repr(folded.active_seconds)}


def _render_stage(stage: Stage) -> dict[str, Any]:
    return {
        "state": stage.state.value,
        "attempts": [_render_attempt(a) for a in stage.attempts] or None,
        "earlierAttempts": None if stage.earlier is None else _render_earlier(stage.earlier),
        "reason": _word(stage.reason) if stage.reason else None,
        "message": cut(stage.message, MESSAGE_BYTES) or None,
    }


def _render_dataset(dataset: DatasetCounts | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "fingerprint": cut(dataset.fingerprint, 200),
        "trainSamples": dataset.train,
        "validationSamples": dataset.validation,
        "testSamples": dataset.test,
    }


def _render_test_gain(gain: GainOnTest | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    return {
        "mean": gain.mean,
        "difference": repr(gain.difference),
        "low": _render_number(gain.low),
        "high": _render_number(gain.high),
        "n": gain.n,
    }


def _render_outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "failed": outcome.failed,
        "reason": _word(outcome.reason),
        "message": cut(outcome.message, MESSAGE_BYTES),
    }


def _render_condition(condition: Condition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": "True" if condition.is_true else "False",
        "reason": _word(condition.reason),
        "message": cut(condition.message, ACCEPTED_MESSAGE_BYTES if condition.type == "Accepted" else MESSAGE_BYTES),
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
            reported=Reported(key=r["key"], at=datetime.fromisoformat(r["at"])) if (r := raw.get("reported")) else None,
            progress=tuple(map(_parse_progress, raw.get("progress") or ())),
        )
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise StatusUnreadableError(f"the study's status must be one that this operator wrote: {error!r}") from error


def _parse_ledger(raw: Raw) -> Ledger:
    search, outcome, dataset, folded = (raw.get(key) for key in ("search", "outcome", "dataset", "foldedAttempts"))
    cleaned_at = raw.get("cleanedAt")
    return Ledger(
        trials=tuple([parse_trial(t) for t in raw["trials"]]),
        folded=None
        if folded is None
        else Folded(until=datetime.fromisoformat(folded["until"]), active_seconds=float(folded["activeSeconds"])),
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
        search_message=search["message"] if search else _parse_search_trouble(raw["conditions"]),
        winner=raw.get("winner"),
        judge=_parse_stage(raw["judge"]),
        test_gain=_parse_test_gain(raw.get("testGain")),
        outcome=Outcome(**outcome) if outcome else None,
        cleaned_at=datetime.fromisoformat(cleaned_at) if cleaned_at else None,
    )


def _parse_search_trouble(conditions: Sequence[Raw]) -> str:
    """Return why a search that goes on does not get on: it is kept in its condition alone."""
    return next((str(c.get("message") or "") for c in conditions if c["type"] == "SearchComplete"), "")


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
        earlier=_parse_earlier(raw.get("earlierAttempts")),
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
    error, train, fixed = raw.get("standardError"), raw.get("trainSeconds"), raw.get("fixedSeconds")
    return Measurement(
        rung=raw["rung"],
        step=raw["step"],
        value=float(raw["value"]),
        standard_error=None if error is None else float(error),
        n=raw.get("n"),
        sites=raw.get("sites"),
        metrics={name: float(value) for name, value in raw["metrics"].items()},
        checkpoint=raw.get("checkpoint", ""),
        diverged=raw.get("diverged", False),
        gibberish=raw.get("gibberish", False),
        train_seconds=None if train is None else float(train),
        fixed_seconds=None if fixed is None else float(fixed),
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
        attempts=tuple([_parse_attempt(a) for a in raw.get("attempts") or ()]),
        earlier=_parse_earlier(raw.get("earlierAttempts")),
        reason=raw.get("reason") or "",
        message=raw.get("message") or "",
    )


def _parse_test_gain(raw: Raw | None) -> GainOnTest | None:
    if raw is None:
        return None
    return GainOnTest(
        mean=raw["mean"],
        difference=float(raw["difference"]),
        low=None if (low := raw.get("low")) is None else float(low),
        high=None if (high := raw.get("high")) is None else float(high),
        n=raw["n"],
    )


def _parse_earlier(raw: Raw | None) -> EarlierAttempts | None:
    if raw is None:
        return None
    return EarlierAttempts(
        attempts=raw["attempts"],
        seconds=float(raw["seconds"]),
        first_rung_seconds=float(raw["firstRungSeconds"]),
        rung=raw["rung"],
        faults=raw["faults"],
        interruptions=raw["interruptions"],
    )


def _parse_condition(raw: Raw) -> Condition:
    return Condition(
        type=raw["type"],
        is_true=raw["status"] == "True",
        reason=raw["reason"],
        message=raw.get("message", ""),
        since=raw["lastTransitionTime"],
    )


# --- Events -----------------------------------------------------------------------------------------------------


def events_between(before: Ledger, after: Ledger) -> list[Event]:
    """Return what happened between two written ledgers, in the order of the trials."""
    events: list[Event] = []
    if before.prepare.state is not after.prepare.state and after.prepare.state is StageState.COMPLETED:
        events.append(Event(reason="DatasetPrepared", message=_say_dataset(after.dataset)))
    events.extend(_events_of_refusal(before.prepare.message, after.prepare.message, "the dataset"))
    events.extend(_events_of_refusal(before.judge.message, after.judge.message, "the test set"))
    known = {t.index: t for t in before.trials}
    for trial in after.trials:
        if trial is not known.get(trial.index):
            events.extend(_events_of_trial(known.get(trial.index), trial))
    events.extend(_events_of_waits(before, after))
    if before.search_end is None and after.search_end is not None:
        is_warning = after.search_end is SearchEnd.NO_MORE_PROPOSALS
        events.append(Event(reason="SearchEnded", message=_say_search(after), is_warning=is_warning))
    if after.search_end is None and after.search_message not in ("", before.search_message):
        events.append(Event(reason="OptimizerDied", message=after.search_message, is_warning=True))
    if before.winner is None and after.winner is not None:
        events.append(Event(reason="WinnerChosen", message=f"trial t{after.winner:03d} won by validation"))
    if before.outcome is None and after.outcome is not None:
        reason = "StudyFailed" if after.outcome.failed else "StudyCompleted"
        said = f"{after.outcome.reason}: {after.outcome.message}"
        events.append(Event(reason=reason, message=said, is_warning=after.outcome.failed))
    return events


def events_of_stall(before: Mapping[str, Condition], status: Raw) -> list[Event]:
    """Say that the cluster refuses jobs for so long that the study is stalled, and that it no longer does."""
    after = {c["type"]: _parse_condition(c) for c in status["conditions"]}
    was_stalled = all(c in before and before[c].is_true for c in ("Stalled", "JobsRefused"))
    is_stalled = after["Stalled"].is_true and after["JobsRefused"].is_true
    if is_stalled and not was_stalled:
        return [Event(reason="StudyStalled", message=after["Stalled"].message, is_warning=True)]
    if was_stalled and not after["JobsRefused"].is_true:
        return [Event(reason="StudyResumed", message="the cluster takes its jobs again")]
    return []


def _events_of_trial(before: Trial | None, trial: Trial) -> Iterator[Event]:
    known = before.attempts if before else ()
    opened = [a for a in trial.attempts if all(a.id != k.id or a.rung != k.rung for k in known)]
    for attempt in opened:
        yield Event(reason="TrialLaunched", message=f"trial {trial.name} runs on rung {attempt.rung}")
    for measurement in trial.measurements[len(before.measurements) if before else 0 :]:
        value = "diverged" if measurement.diverged else f"measured {measurement.value:.6g}"
        value += " (gibberish)" if measurement.gibberish else ""
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
    yield from _events_of_refusal(before.message if before else "", trial.message, f"trial {trial.name}")


def _events_of_refusal(before: str, message: str, of: str) -> Iterator[Event]:
    if message.startswith(REFUSED) and message != before:
        yield Event(reason="ResultRefused", message=f"{of}: {message}", is_warning=True)


def _events_of_waits(before: Ledger, after: Ledger) -> Iterator[Event]:
    """Say once of a reason for which jobs wait, however many they are."""
    known = {_wait_of(of) for _, of in _waiting(before)}
    first: dict[str, tuple[str, str]] = {}
    for name, of in _waiting(after):
        first.setdefault(_wait_of(of), (name, of.message))
    for reason, (name, message) in first.items():
        if reason not in known:
            yield Event(reason="JobWaits", message=f"{name}: {message}", is_warning=True)


def _waiting(ledger: Ledger) -> Iterator[tuple[str, Trial | Stage]]:
    of: list[tuple[str, Trial | Stage]] = [
        ("prepare", ledger.prepare),
        *((f"trial {t.name}", t) for t in ledger.trials if t.is_busy),
        ("judge", ledger.judge),
    ]
    yield from ((name, each) for name, each in of if each.message.startswith(WAITS))


def _wait_of(of: Trial | Stage) -> str:
    """Return the reason for which a job waits."""
    return of.message.removeprefix(WAITS).partition(":")[0]


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
