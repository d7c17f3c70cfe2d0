"""The ledger as plain JSON values, and back.

It makes the round trip exactly: fractional numbers and parameter values are strings, as `repr` writes them, and only
texts for people are cut, at lengths that keep the largest study's object small.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from study_operator.ledger.conditions import render_time
from study_operator.ledger.trial import (
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
from trial_trainer.contract import ParameterValue

Raw = Mapping[str, Any]

TRIAL_MESSAGE_BYTES = 180
"""As JSON, like the others here. There are up to 500 trials, and the whole object stays below a mebibyte."""

MESSAGE_BYTES = 2_000
"""Of what is told of the whole study."""

WORD_LENGTH = 64
"""Of a reason, which is one CamelCase word."""


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


def cut_word(reason: str) -> str:
    """Return a reason as conditions take it, whatever the environment's own word was."""
    return "".join(c for c in reason if c.isascii() and c.isalnum()).lstrip("0123456789")[:WORD_LENGTH] or "Unknown"


def render_number(value: float | None) -> str | None:
    return None if value is None else repr(value)


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
        raw["reason"] = cut_word(attempt.reason)
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


def render_folded(folded: Folded | None) -> dict[str, Any] | None:
    if folded is None:
        return None
    return {"until": render_time(folded.until), "activeSeconds": repr(folded.active_seconds)}


def render_stage(stage: Stage) -> dict[str, Any]:
    return {
        "state": stage.state.value,
        "attempts": [_render_attempt(a) for a in stage.attempts] or None,
        "earlierAttempts": None if stage.earlier is None else _render_earlier(stage.earlier),
        "reason": cut_word(stage.reason) if stage.reason else None,
        "message": cut(stage.message, MESSAGE_BYTES) or None,
    }


def render_dataset(dataset: DatasetCounts | None) -> dict[str, Any] | None:
    if dataset is None:
        return None
    return {
        "fingerprint": cut(dataset.fingerprint, 200),
        "trainSamples": dataset.train,
        "validationSamples": dataset.validation,
        "testSamples": dataset.test,
    }


def render_test_gain(gain: GainOnTest | None) -> dict[str, Any] | None:
    if gain is None:
        return None
    return {
        "mean": gain.mean,
        "difference": repr(gain.difference),
        "low": render_number(gain.low),
        "high": render_number(gain.high),
        "n": gain.n,
    }


def render_outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "failed": outcome.failed,
        "reason": cut_word(outcome.reason),
        "message": cut(outcome.message, MESSAGE_BYTES),
    }


def parse_ledger(raw: Raw) -> Ledger:
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
        final_evaluation=_parse_stage(raw["finalEvaluation"]),
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
