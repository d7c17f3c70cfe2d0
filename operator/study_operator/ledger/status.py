"""The study's status: the ledger (`codec.py`) and what people read of it, as plain JSON values, and back.

The keys of every object but a trial's are always there, with null for what is not known, because a merge patch takes
away only what it names; but nothing here relies on nulls, because an API server leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from study_operator.ledger.agreement import Agreement, describe_agreements, measure_agreement
from study_operator.ledger.codec import STATUS, Raw, StoredLedger, build_ledger, parse, render_ledger
from study_operator.ledger.conditions import (
    Condition,
    derive_conditions,
    derive_refusal,
    is_promoting,
)
from study_operator.ledger.events import Event
from study_operator.ledger.gain import Gain, describe_gain, find_best, find_gain
from study_operator.ledger.texts import MESSAGE_BYTES, WORD_LENGTH, cut, cut_word, written_up_to
from study_operator.ledger.trial import Continuation, Ledger, Origin, Trial, TrialState
from study_operator.ledger.usage import Usage, measure_usage
from study_operator.reasons import ConditionReason, ConditionType, EventReason, Problem
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.codec import LARGEST_COUNT, Rule
from trial_trainer.contract import Progress

ACCEPTED_MESSAGE_BYTES = 16_000
"""Of the condition that names everything that is wrong with a manifest at once."""


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
    step: int
    stop_step: int
    total_steps: int
    loss: float | None = None
    """Nats per token."""
    phase: Annotated[str, written_up_to(WORD_LENGTH)]
    eta_seconds: int | None = None
    updated_at: Annotated[str, written_up_to(WORD_LENGTH)]

    @classmethod
    def of(cls, trial: Trial, progress: Progress) -> TrialProgress:
        """Take what a trainer wrote, which may be any number, as what a status can hold."""
        eta = progress.eta_seconds
        return cls(
            trial=trial.name,
            rung=trial.rung,
            step=progress.step,
            stop_step=progress.stop_step,
            total_steps=progress.total_steps,
            loss=progress.loss,
            phase=progress.phase,
            eta_seconds=None if eta is None else min(max(0, round(eta)), LARGEST_COUNT),
            updated_at=progress.updated_at,
        )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A status that was read, parsed."""

    raw: Raw
    """Empty before the first write."""
    ledger: Ledger
    conditions: Mapping[str, Condition]
    reported: Reported | None
    progress: tuple[TrialProgress, ...] = ()


# --- Render -----------------------------------------------------------------------------------------------------


def render_status(
    study: Study,
    ledger: Ledger,
    *,
    now: datetime,
    recorded: Recorded | None = None,
    reported: Reported | None = None,
    storage_problem: Problem | None = None,
    refusal: Problem | None = None,
    orphans: str = "",
    progress: Sequence[TrialProgress] = (),
    report_uri: str = "",
    settings: Settings = DEFAULTS,
) -> dict[str, Any]:
    """Render the status. What did not change since ``recorded`` is taken from there as it is."""
    recorded = recorded or parse_status(None)
    agreements = _measure_agreements(study, ledger, recorded)
    conditions = derive_conditions(
        study,
        ledger,
        storage_problem=storage_problem,
        refusal=refusal,
        orphans=orphans,
        agreements=agreements,
        now=now,
        before=recorded.conditions,
        settings=settings,
    )
    return {
        "observedGeneration": study.generation,
        "conditions": [_render_condition(c) for c in conditions],
        **_render_ledger(ledger, recorded),
        **_render_summaries(study, ledger, recorded, agreements),
        "reportURI": report_uri,
        "reported": STATUS.render(Reported | None, reported),
        "progress": _render_progress(ledger, progress),
    }


def _render_ledger(ledger: Ledger, recorded: Recorded) -> dict[str, Any]:
    runs, first = _render_runs(ledger.runs, recorded), len(ledger.trials)
    second = first + len(ledger.confirmations)
    return {
        **render_ledger(ledger),
        "trials": runs[:first],
        "confirmations": runs[first:second] or None,
        "dataCurve": runs[second:] or None,
    }


def _render_progress(ledger: Ledger, progress: Sequence[TrialProgress]) -> list[Raw] | None:
    """Render how far the trials are that still run."""
    running = {(t.name, t.rung) for t in ledger.runs if t.state is TrialState.RUNNING}
    return [STATUS.render(TrialProgress, at) for at in progress if (at.trial, at.rung) in running] or None


def render_refused_status(recorded: Recorded, why: str, generation: int, now: datetime) -> Raw:
    """Render what is said where a new ledger cannot be written in any form: the old one stays, and nothing goes on."""
    accepted = recorded.conditions.get(ConditionType.ACCEPTED)
    if accepted is not None and accepted.reason == ConditionReason.STATUS_REFUSED:
        return recorded.raw
    message = f"the API server refuses every form of the study's status: {cut(why, SERVER_BYTES)}"
    return render_refusal(recorded, ConditionReason.STATUS_REFUSED, [message], generation, now)


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


RUNS = ("trials", "confirmations", "dataCurve")
"""The lists of runs, in the order of their indexes."""

SHORT_TRIAL_BYTES, SHORT_BYTES, SERVER_BYTES = 60, 300, 500
"""Of messages where the API server does not take longer ones, and of its own words."""


def shorten_status(status: Raw, recorded: Recorded, why: str) -> dict[str, Any]:
    """Return a status without what only people read, and the condition that says so; the ledger is whole."""
    accepted = recorded.conditions.get(ConditionType.ACCEPTED)
    message = f"the API server refuses the whole status, which is cut short: {cut(why, SERVER_BYTES)}"
    if accepted is not None and accepted.reason == ConditionReason.STATUS_SHORTENED:
        # The same in other words is no news.
        message = accepted.message
    conditions = [
        {**c, "reason": str(ConditionReason.STATUS_SHORTENED), "message": message}
        if c["type"] == ConditionType.ACCEPTED
        else _shorten(c, SHORT_BYTES)
        for c in status["conditions"]
    ]
    of_study = ("prepare", "finalEvaluation", "search", "confirmationsEnd", "dataCurveEnd", "outcome")
    parts = {name: _shorten(status[name], SHORT_BYTES) for name in of_study}
    runs = {n: [_shorten(run, SHORT_TRIAL_BYTES) for run in status[n] or ()] for n in RUNS}
    return {**status, **parts, **runs, "conditions": conditions, "agreement": None, "progress": None}


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


def _render_runs(runs: Sequence[Trial], recorded: Recorded) -> list[Raw]:
    raw, known = [run for name in RUNS for run in recorded.raw.get(name) or ()], recorded.ledger.runs
    return [raw[i] if i < len(known) and run is known[i] else STATUS.render(Trial, run) for i, run in enumerate(runs)]


_SUMMARIES = ("summary", "trialCounts", "best", "baseline", "agreement", "usage")


def _has_same_runs(ledger: Ledger, recorded: Recorded) -> bool:
    known, runs = recorded.ledger.runs, ledger.runs
    return bool(recorded.raw) and len(known) == len(runs) and all(a is b for a, b in zip(runs, known, strict=True))


def _measure_agreements(study: Study, ledger: Ledger, recorded: Recorded) -> list[Agreement] | None:
    """Return what is known of each early rung, nothing before the promotion; None where it is as it was."""
    if ConditionType.EARLY_EVALUATION_RELIABLE in recorded.conditions and _has_same_runs(ledger, recorded):
        return None
    rungs = range(study.last_rung) if is_promoting(ledger.trials) else ()
    return [measure_agreement(study, ledger.trials, rung) for rung in rungs]


def _render_summaries(
    study: Study, ledger: Ledger, recorded: Recorded, agreements: Sequence[Agreement] | None
) -> dict[str, Any]:
    if _has_same_runs(ledger, recorded) and ledger.test_gain == recorded.ledger.test_gain:
        return {name: recorded.raw.get(name) for name in _SUMMARIES}
    trials = ledger.trials
    best, gain = find_best(study, trials), find_gain(study, ledger)
    baseline = next((t for t in trials if t.origin is Origin.BASELINE), None)
    usage = measure_usage(study, ledger, None)
    saved = usage.saved_accelerator_hours
    return {
        "summary": _summarize(study, best, gain, usage),
        "trialCounts": _count(study, trials),
        "best": _render_best(study, best, gain),
        "baseline": _render_best(study, baseline, None),
        "agreement": recorded.raw.get("agreement")
        if agreements is None
        else _render_agreement(agreements)
        if agreements
        else None,
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


def _count(study: Study, trials: Sequence[Trial]) -> dict[str, int]:
    counts = {str(state)[0].lower() + str(state)[1:]: 0 for state in TrialState}
    for trial in trials:
        counts[trial.state[0].lower() + trial.state[1:]] += 1
    counts["total"] = len(trials)
    counts["measured"] = sum(bool(t.measurements) for t in trials)
    counts["promoted"] = sum(t.continuation is Continuation.PROMOTED and t.rung == study.last_rung for t in trials)
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
        "gainUncorrected": _render_number(gain.uncorrected if gain is not None else None),
        "bestOf": gain.best_of if gain is not None else None,
        "gainSeeds": None if gain is None else gain.seeds or 1,
    }


def _render_number(value: float | None) -> str | None:
    return None if value is None else repr(value)


def _render_agreement(agreements: Sequence[Agreement]) -> dict[str, Any]:
    """Render the figures of the last early rung, from which is promoted to full length, and a sentence on each."""
    agreement = agreements[-1]
    missed = agreement.missed_winners
    return {
        "percent": agreement.percent,
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
        "sentences": describe_agreements(agreements),
    }


def _render_condition(condition: Condition) -> dict[str, Any]:
    # By hand, because how much is kept of a message depends on the condition's type.
    return {
        "type": str(condition.type),
        "status": "Unknown" if condition.is_true is None else str(condition.is_true),
        "reason": cut_word(condition.reason),
        "message": cut(
            condition.message, ACCEPTED_MESSAGE_BYTES if condition.type == ConditionType.ACCEPTED else MESSAGE_BYTES
        ),
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
    stored = parse(_Stored, raw)
    conditions = {c.type: c.build() for c in stored.conditions}
    trouble = conditions[ConditionType.SEARCH_COMPLETE].message if ConditionType.SEARCH_COMPLETE in conditions else ""
    return Recorded(
        raw=raw,
        ledger=build_ledger(stored, trouble),
        conditions=conditions,
        reported=stored.reported,
        progress=stored.progress,
    )


@dataclass(frozen=True, kw_only=True)
class _StoredCondition:
    type: str
    status: Annotated[str, Rule("must be True, False or Unknown", {"True", "False", "Unknown"}.__contains__)]
    reason: str
    message: str = ""
    last_transition_time: str

    def build(self) -> Condition:
        return Condition(
            type=self.type,
            is_true=None if self.status == "Unknown" else self.status == "True",
            reason=self.reason,
            message=self.message,
            since=self.last_transition_time,
        )


@dataclass(frozen=True, kw_only=True)
class _Stored(StoredLedger):
    """What is read of a status; the rest is only for people."""

    conditions: tuple[_StoredCondition, ...]
    reported: Reported | None
    progress: tuple[TrialProgress, ...] = ()


# --- Events -----------------------------------------------------------------------------------------------------


def events_of_stall(before: Mapping[str, Condition], status: Raw) -> list[Event]:
    """Say that the cluster refuses jobs for so long that the study is stalled, and that it no longer does."""
    after = {c.type: c.build() for c in parse(tuple[_StoredCondition, ...], status["conditions"])}
    if any(
        after[c].is_true for c in (ConditionType.SUSPENDED, ConditionType.COMPLETE, ConditionType.FAILED) if c in after
    ):
        # Nothing is asked of the cluster any more, and nothing is known of what it would take.
        return []
    was_stalled = all(c in before and before[c].is_true for c in (ConditionType.STALLED, ConditionType.JOBS_REFUSED))
    is_stalled = after[ConditionType.STALLED].is_true and after[ConditionType.JOBS_REFUSED].is_true
    if is_stalled and not was_stalled:
        return [Event(reason=EventReason.STUDY_STALLED, message=after[ConditionType.STALLED].message, is_warning=True)]
    if was_stalled and not after[ConditionType.JOBS_REFUSED].is_true:
        return [Event(reason=EventReason.STUDY_RESUMED, message="the cluster takes its jobs again")]
    return []
