"""The study's conditions as values: what holds now, and since when.

All are present from the first status on. A reason is one CamelCase word; the message is for people; the transition time
moves only when the status changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from study_operator.ledger.agreement import Agreement, describe_reliability, is_reliable
from study_operator.ledger.confirmation_runs import list_confirmation_runs
from study_operator.ledger.curve_runs import list_curve_runs
from study_operator.ledger.overfitting import describe_change, name_sign
from study_operator.ledger.ranking import find_open_rung
from study_operator.ledger.stagnation import describe_stagnation, find_stagnation
from study_operator.ledger.trial import WAITS, Ledger, SearchEnd, Stage, StageState, Trial, TrialState, WinnerChange
from study_operator.reasons import ConditionReason, ConditionType, Problem, StudyStage
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One line of ``status.conditions``."""

    type: str
    is_true: bool | None
    """None: nobody knows."""
    reason: str
    message: str = ""
    since: str = ""
    """ISO 8601, UTC."""


def derive_conditions(
    study: Study,
    ledger: Ledger,
    *,
    storage_problem: Problem | None,
    refusal: Problem | None = None,
    orphans: str = "",
    agreements: Sequence[Agreement] | None = (),
    now: datetime,
    before: Mapping[str, Condition],
    settings: Settings = DEFAULTS,
) -> tuple[Condition, ...]:
    """Return every condition, with its transition time.

    Where ``agreements`` is None they are as they were, and so is what follows from them.
    """
    stage = name_stage(study, ledger)
    outcome = ledger.outcome
    has_failed = outcome is not None and outcome.failed
    failure, failure_message = (
        (outcome.reason, outcome.message) if outcome and outcome.failed else (ConditionReason.NOT_FAILED, "")
    )
    # What to type comes first: a message that is too long is cut at its end.
    message = "; ".join(filter(None, (orphans, _say_stage(study, ledger, stage))))
    refused = _dated(_jobs_refused(refusal), before.get(ConditionType.JOBS_REFUSED), now)
    conditions = (
        _accepted(study, ledger),
        Condition(
            type=ConditionType.STORAGE_READY,
            is_true=storage_problem is None,
            reason=storage_problem.reason if storage_problem else ConditionReason.REACHABLE,
            message=storage_problem.message if storage_problem else "",
        ),
        _prepared(ledger.prepare),
        Condition(
            type=ConditionType.SUSPENDED,
            is_true=study.suspend,
            reason=StudyStage.SUSPENDED if study.suspend else ConditionReason.NOT_SUSPENDED,
        ),
        _search_complete(ledger),
        Condition(
            type=ConditionType.COMPLETE, is_true=outcome is not None and not has_failed, reason=stage, message=message
        ),
        Condition(type=ConditionType.FAILED, is_true=has_failed, reason=failure, message=failure_message),
        refused,
        Condition(type=ConditionType.STALLED, is_true=True, reason=failure, message=failure_message)
        if has_failed
        else _stalled(ledger, refused, now, settings),
        _overfitting(study, ledger.winner_change),
        _search_stagnating(study, ledger),
        before[ConditionType.EARLY_EVALUATION_RELIABLE]
        if agreements is None
        else _early_evaluation_reliable(agreements),
    )
    return tuple(_dated(condition, before.get(condition.type), now) for condition in conditions)


def derive_refusal(
    before: Mapping[str, Condition], reason: str, problems: Sequence[str], now: datetime
) -> tuple[Condition, ...]:
    """Return the conditions of a study that is not accepted; what else is known of it stays."""
    message = "\n".join(problems)
    fresh = (
        Condition(type=ConditionType.ACCEPTED, is_true=False, reason=reason, message=message),
        Condition(type=ConditionType.STORAGE_READY, is_true=False, reason=ConditionReason.NOT_ACCEPTED),
        Condition(type=ConditionType.PREPARED, is_true=False, reason=ConditionReason.NOT_ACCEPTED),
        Condition(type=ConditionType.SUSPENDED, is_true=False, reason=ConditionReason.NOT_SUSPENDED),
        Condition(type=ConditionType.SEARCH_COMPLETE, is_true=False, reason=ConditionReason.NOT_ACCEPTED),
        Condition(type=ConditionType.COMPLETE, is_true=False, reason=ConditionReason.NOT_ACCEPTED, message=message),
        Condition(type=ConditionType.FAILED, is_true=False, reason=ConditionReason.NOT_FAILED),
        Condition(type=ConditionType.JOBS_REFUSED, is_true=False, reason=ConditionReason.NOT_REFUSED),
        Condition(type=ConditionType.STALLED, is_true=True, reason=reason, message=message),
        Condition(type=ConditionType.OVERFITTING, is_true=None, reason=ConditionReason.NOT_ACCEPTED),
        Condition(type=ConditionType.SEARCH_STAGNATING, is_true=False, reason=ConditionReason.NOT_ACCEPTED),
        Condition(type=ConditionType.EARLY_EVALUATION_RELIABLE, is_true=None, reason=ConditionReason.NOT_ACCEPTED),
    )
    was_accepted = ConditionType.ACCEPTED in before and (
        before[ConditionType.ACCEPTED].is_true or before[ConditionType.PREPARED].reason != ConditionReason.NOT_ACCEPTED
    )
    kept = (
        {}
        if not was_accepted
        else {t: c for t, c in before.items() if t not in (ConditionType.ACCEPTED, ConditionType.STALLED)}
    )
    return tuple(kept.get(c.type) or _dated(c, before.get(c.type), now) for c in fresh)


def name_stage(study: Study, ledger: Ledger) -> str:
    """Return where the study is in one word: the reason of ``Complete``, which the STATUS column shows."""
    if ledger.outcome is not None:
        return StudyStage.FAILED if ledger.outcome.failed else ledger.outcome.reason
    if study.suspend:
        return StudyStage.SUSPENDED
    if ledger.prepare.state is not StageState.COMPLETED:
        return StudyStage.PREPARING
    if ledger.winner is not None:
        if study.promotion.confirm_seeds and ledger.confirmations_end is None:
            return StudyStage.CONFIRMING_SEEDS
        is_measuring = study.data_curve is not None and ledger.curve_end is None
        return StudyStage.MEASURING_DATA_CURVE if is_measuring else StudyStage.EVALUATING
    return StudyStage.PROMOTING if is_promoting(ledger.trials) else StudyStage.EXPLORING


def is_promoting(trials: Sequence[Trial]) -> bool:
    """Say whether the promotion has been decided."""
    return any(t.continuation or t.state is TrialState.STOPPED for t in trials)


def _accepted(study: Study, ledger: Ledger) -> Condition:
    count = len(ledger.trials)
    is_raised = ledger.search_end is SearchEnd.ALL_TRIALS_MEASURED and study.num_trials > count
    message = (
        f"spec.numTrials must not be raised after the first promotion, got {study.num_trials}; "
        f"the study goes on with its {count} trials"
        if is_raised and is_promoting(ledger.trials)
        else ""
    )
    return Condition(
        type=ConditionType.ACCEPTED,
        is_true=True,
        reason=ConditionReason.NUM_TRIALS_IGNORED if message else ConditionReason.VALID,
        message=message,
    )


def _prepared(stage: Stage) -> Condition:
    match stage.state:
        case StageState.COMPLETED:
            return Condition(type=ConditionType.PREPARED, is_true=True, reason=ConditionReason.PREPARED)
        case StageState.FAILED:
            return Condition(
                type=ConditionType.PREPARED, is_true=False, reason=stage.reason or "Failed", message=stage.message
            )
        case _:
            return Condition(
                type=ConditionType.PREPARED, is_true=False, reason=StudyStage.PREPARING, message=stage.message
            )


def _jobs_refused(refusal: Problem | None) -> Condition:
    if refusal is None:
        return Condition(type=ConditionType.JOBS_REFUSED, is_true=False, reason=ConditionReason.NOT_REFUSED)
    return Condition(type=ConditionType.JOBS_REFUSED, is_true=True, reason=refusal.reason, message=refusal.message)


def _stalled(ledger: Ledger, refused: Condition, now: datetime, settings: Settings) -> Condition:
    """Say whether a study waits in vain for the cluster to take its jobs, while none of them runs."""
    is_running = any(t.state is TrialState.RUNNING for t in ledger.runs)
    is_running |= StageState.RUNNING in (ledger.prepare.state, ledger.final_evaluation.state)
    limit = timedelta(seconds=settings.refusal_limit_seconds)
    if not refused.is_true or is_running or now - datetime.fromisoformat(refused.since) < limit:
        return Condition(type=ConditionType.STALLED, is_true=False, reason=ConditionReason.PROGRESSING)
    message = f"the cluster has refused its jobs since {refused.since}, and is asked again: {refused.message}"
    return Condition(type=ConditionType.STALLED, is_true=True, reason=refused.reason, message=message)


def _early_evaluation_reliable(agreements: Sequence[Agreement]) -> Condition:
    """Say whether early measurements order trials as final ones do, on every early rung."""
    if not agreements:
        return Condition(
            type=ConditionType.EARLY_EVALUATION_RELIABLE, is_true=None, reason=ConditionReason.NOT_PROMOTED
        )
    found = is_reliable(agreements)
    reasons = {True: ConditionReason.PAIRS_AGREE, False: ConditionReason.PAIRS_DISAGREE}
    return Condition(
        type=ConditionType.EARLY_EVALUATION_RELIABLE,
        is_true=found,
        reason=ConditionReason.TOO_FEW_TRIALS if found is None else reasons[found],
        message="; ".join(map(describe_reliability, agreements)),
    )


def _overfitting(study: Study, change: WinnerChange | None) -> Condition:
    if change is None:
        return Condition(type=ConditionType.OVERFITTING, is_true=None, reason=ConditionReason.NOT_EVALUATED)
    sign = name_sign(change)
    is_seen = sign is not ConditionReason.NOT_SEEN
    message = describe_change(study, change)
    return Condition(type=ConditionType.OVERFITTING, is_true=is_seen, reason=sign, message=message)


def _search_stagnating(study: Study, ledger: Ledger) -> Condition:
    stand = find_stagnation(study, ledger.trials)
    if stand.is_stagnating:
        reason = ConditionReason.NO_RISE
    else:
        is_rising = stand.best and stand.measured > stand.window
        reason = ConditionReason.RISING if is_rising else ConditionReason.TOO_FEW_TRIALS
    is_over = ledger.search_end is not None
    message = describe_stagnation(study, stand, is_over=is_over) if stand.is_stagnating else ""
    return Condition(type=ConditionType.SEARCH_STAGNATING, is_true=stand.is_stagnating, reason=reason, message=message)


def _search_complete(ledger: Ledger) -> Condition:
    if ledger.search_end is None:
        reason = ConditionReason.OPTIMIZER_DIED if ledger.search_message else ConditionReason.SEARCHING
        if ledger.search_message.startswith(WAITS):
            reason = ConditionReason.WAITS_FOR_STUDY
        return Condition(
            type=ConditionType.SEARCH_COMPLETE, is_true=False, reason=reason, message=ledger.search_message
        )
    return Condition(
        type=ConditionType.SEARCH_COMPLETE, is_true=True, reason=ledger.search_end, message=ledger.search_message
    )


def _say_stage(study: Study, ledger: Ledger, stage: str) -> str:
    if ledger.outcome is not None:
        return ledger.outcome.message
    if stage == StudyStage.PREPARING:
        return ledger.prepare.message
    measured = sum(bool(t.measurements) for t in ledger.trials)
    if stage == StudyStage.EXPLORING:
        trouble = f"; {ledger.search_message}" if ledger.search_message else ""
        return f"{measured} of {study.num_trials} trials measured{_say_waiting(ledger.trials)}{trouble}"
    if stage == StudyStage.PROMOTING:
        running = sum(t.is_busy for t in ledger.trials)
        rung = find_open_rung(ledger.trials)
        is_last = rung >= study.last_rung
        end = "full length" if is_last else f"{study.early_evaluation.rungs[rung]} % of their full length"
        return f"{running} trials are on their way to {end}{_say_waiting(ledger.trials)}"
    if stage == StudyStage.CONFIRMING_SEEDS:
        ended = sum(not t.is_busy for t in ledger.confirmations)
        of = f"{ended} of {len(list_confirmation_runs(study, ledger))} runs of winner and baseline under further seeds"
        return f"{of} have ended{_say_waiting(ledger.confirmations)}"
    if stage == StudyStage.MEASURING_DATA_CURVE:
        ended = sum(not t.is_busy for t in ledger.curve)
        of = f"{ended} of {len(list_curve_runs(study, ledger))} runs of the data curve have ended"
        return f"{of}{_say_waiting(ledger.curve)}"
    return ledger.final_evaluation.message if stage == StudyStage.EVALUATING else ""


def _say_waiting(trials: Sequence[Trial]) -> str:
    waiting = [t for t in trials if t.is_busy and t.message.startswith(WAITS)]
    if not waiting:
        return ""
    others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return f"; trial {waiting[0].name}{others}: {waiting[0].message}"


def _dated(condition: Condition, before: Condition | None, now: datetime) -> Condition:
    since = before.since if before is not None and before.is_true == condition.is_true else render_time(now)
    dated = replace(condition, since=since)
    return before if before == dated else dated


def render_time(time: datetime) -> str:
    """Return a time (UTC) as Kubernetes writes it."""
    return time.isoformat().replace("+00:00", "Z")
