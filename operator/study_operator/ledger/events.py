"""What happened between two written ledgers, as events for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from study_operator.ledger.curve_runs import describe_too_large
from study_operator.ledger.trial import (
    REFUSED,
    WAITS,
    ConfirmationsEnd,
    Continuation,
    CurveEnd,
    DatasetCounts,
    Ledger,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.reasons import EventReason
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, for people."""

    reason: str
    message: str
    is_warning: bool = False


def events_between(study: Study, before: Ledger, after: Ledger) -> list[Event]:
    """Return what happened between two written ledgers, in the order of the trials."""
    events: list[Event] = []
    if before.prepare.state is not after.prepare.state and after.prepare.state is StageState.COMPLETED:
        events.append(Event(reason=EventReason.DATASET_PREPARED, message=_say_dataset(after.dataset)))
    events.extend(_events_of_refusal(before.prepare.message, after.prepare.message, "the dataset"))
    events.extend(_events_of_refusal(before.final_evaluation.message, after.final_evaluation.message, "the test set"))
    known = {t.index: t for t in before.runs}
    for trial in after.runs:
        if trial is not known.get(trial.index):
            events.extend(_events_of_trial(study, known.get(trial.index), trial))
    events.extend(_events_of_waits(before, after))
    if before.search_end is None and after.search_end is not None:
        is_warning = after.search_end is SearchEnd.NO_MORE_PROPOSALS
        events.append(Event(reason=EventReason.SEARCH_ENDED, message=_say_search(after), is_warning=is_warning))
    if after.search_end is None and after.search_message not in ("", before.search_message):
        waits = after.search_message.startswith(WAITS)
        reason = EventReason.WAITS_FOR_STUDY if waits else EventReason.OPTIMIZER_DIED
        events.append(Event(reason=reason, message=after.search_message, is_warning=not waits))
    if before.winner is None and after.winner is not None:
        events.append(Event(reason=EventReason.WINNER_CHOSEN, message=f"trial t{after.winner:03d} won by validation"))
    if before.dataset is None and after.dataset is not None and (left_out := describe_too_large(study, after)):
        events.append(Event(reason=EventReason.DATA_CURVE_CUT, message=left_out, is_warning=True))
    if before.confirmations_end is None and after.confirmations_end is not None:
        is_warning = after.confirmations_end is not ConfirmationsEnd.ALL_RUNS_ENDED
        message = after.confirmations_message
        events.append(Event(reason=EventReason.CONFIRMATIONS_ENDED, message=message, is_warning=is_warning))
    if before.curve_end is None and after.curve_end is not None:
        is_warning = after.curve_end is not CurveEnd.ALL_RUNS_ENDED
        events.append(Event(reason=EventReason.DATA_CURVE_ENDED, message=after.curve_message, is_warning=is_warning))
    if before.outcome is None and after.outcome is not None:
        reason = EventReason.STUDY_FAILED if after.outcome.failed else EventReason.STUDY_COMPLETED
        message = f"{after.outcome.reason}: {after.outcome.message}"
        events.append(Event(reason=reason, message=message, is_warning=after.outcome.failed))
    return events


def _events_of_trial(study: Study, before: Trial | None, trial: Trial) -> Iterator[Event]:
    known = before.attempts if before else ()
    opened = [a for a in trial.attempts if all(a.id != k.id or a.rung != k.rung for k in known)]
    for attempt in opened:
        yield Event(reason=EventReason.TRIAL_LAUNCHED, message=f"trial {trial.name} runs on rung {attempt.rung}")
    for measurement in trial.measurements[len(before.measurements) if before else 0 :]:
        value = "diverged" if measurement.diverged else f"measured {measurement.value:.6g}"
        value += " (gibberish)" if measurement.gibberish else ""
        message = (
            f"trial {trial.name} {value} on rung {measurement.rung} at step {measurement.step} of {trial.total_steps}"
        )
        yield Event(reason=EventReason.TRIAL_MEASURED, message=message)
    if trial.continuation is not None and trial.rung > (before.rung if before else 0):
        reason = (
            EventReason.TRIAL_PROMOTED if trial.continuation is Continuation.PROMOTED else EventReason.TRIAL_CONTINUED
        )
        end = study.stop_step(trial.total_steps, trial.rung)
        message = f"trial {trial.name} goes on to step {end} ({trial.continuation})"
        yield Event(reason=reason, message=message)
    if before is None or before.state is not trial.state:
        yield from _events_of_state(before, trial)
    yield from _events_of_refusal(before.message if before else "", trial.message, f"trial {trial.name}")


def _events_of_refusal(before: str, message: str, of: str) -> Iterator[Event]:
    if message.startswith(REFUSED) and message != before:
        yield Event(reason=EventReason.RESULT_REFUSED, message=f"{of}: {message}", is_warning=True)


def _events_of_waits(before: Ledger, after: Ledger) -> Iterator[Event]:
    """Say once of a reason for which jobs wait, however many they are."""
    known = {_wait_of(of) for _, of in _waiting(before)}
    first: dict[str, tuple[str, str]] = {}
    for name, of in _waiting(after):
        first.setdefault(_wait_of(of), (name, of.message))
    for reason, (name, message) in first.items():
        if reason not in known:
            yield Event(reason=EventReason.JOB_WAITS, message=f"{name}: {message}", is_warning=True)


def _waiting(ledger: Ledger) -> Iterator[tuple[str, Trial | Stage]]:
    of: list[tuple[str, Trial | Stage]] = [
        ("prepare", ledger.prepare),
        *((f"trial {t.name}", t) for t in ledger.runs if t.is_busy),
        ("the final evaluation", ledger.final_evaluation),
    ]
    yield from ((name, each) for name, each in of if each.message.startswith(WAITS))


def _wait_of(of: Trial | Stage) -> str:
    """Return the reason for which a job waits."""
    return of.message.removeprefix(WAITS).partition(":")[0]


def _events_of_state(before: Trial | None, trial: Trial) -> Iterator[Event]:
    match trial.state:
        case TrialState.FAILED:
            yield Event(
                reason=EventReason.TRIAL_FAILED, message=f"trial {trial.name}: {trial.message}", is_warning=True
            )
        case TrialState.ABANDONED:
            yield Event(
                reason=EventReason.TRIAL_ABANDONED, message=f"trial {trial.name}: {trial.message}", is_warning=True
            )
        case TrialState.PENDING if before is not None and before.state is TrialState.RUNNING and trial.message:
            yield Event(reason=EventReason.TRIAL_INTERRUPTED, message=f"trial {trial.name}: {trial.message}")
        case _:
            return


def _say_dataset(dataset: DatasetCounts | None) -> str:
    if dataset is None:
        return "the dataset is prepared"
    train, validation, test = dataset.train_samples, dataset.validation_samples, dataset.test_samples
    return f"{train} training, {validation} validation and {test} test samples"


def _say_search(ledger: Ledger) -> str:
    return f"{len(ledger.trials)} trials: {ledger.search_end}" + (
        f": {ledger.search_message}" if ledger.search_message else ""
    )
