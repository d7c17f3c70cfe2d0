"""What happened since the last tick: job statuses and measurements into a new ledger. Tells whose fault an end was.

Called by `reconcile.tick`; imports nothing that can act. Seeing the same thing twice changes nothing: an attempt is
known by the runner's own word for it, and what was settled is not settled again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from study_operator import names
from study_operator.clocks import fit_span
from study_operator.ledger.folding import fold_attempts
from study_operator.ledger.gain import find_test_gain
from study_operator.ledger.merit import list_ranking_metrics
from study_operator.ledger.overfitting import find_winner_change
from study_operator.ledger.trial import (
    GIVEN_UP,
    WAITS,
    Attempt,
    DatasetCounts,
    Ledger,
    Measurement,
    Stage,
    StageState,
    Trial,
    TrialState,
    count_attempts_against,
    move,
)
from study_operator.ledger.usage import with_seconds
from study_operator.reasons import EndReason
from study_operator.reconcile.runner import EndedAttempt, JobPhase, JobStatus
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec import limits
from study_operator.spec.metrics import METRICS, WORST_VALUES, is_share
from study_operator.spec.study import Arm, Study
from trial_trainer.artifacts import join
from trial_trainer.contract import DatasetSummary, ExitCode, FinalEvaluation, RungMeasurement

OUT_OF_MEMORY_KILL = "OOMKilled"
"""The environment's word for a process that the kernel killed because it used too much memory."""

GIBBERISH_SHARE = 0.5
"""Of the answers: so many without sense, and no right one, are gibberish."""

MANY_SITES = 1_000
"""An error of so many sites is known as well as any, and the ledger of hundreds of trials has its bound."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the awaited jobs have written so far."""

    measurements: Mapping[tuple[int, int], RungMeasurement] = field(default_factory=dict)
    """By index of the trial and rung."""
    summary: DatasetSummary | None = None
    final_evaluation: FinalEvaluation | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    """By name of the job: why what it has written cannot be used."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """By name of the job: what of another arm, data or model was found in its place, and does not count."""


def list_awaited(study: Study, ledger: Ledger, jobs: Mapping[str, JobStatus]) -> Iterator[Trial]:
    """Yield the trials whose job is over or not there: a measurement of theirs may have been written."""
    for trial in ledger.runs:
        if trial.is_busy and not is_live(jobs.get(names.trial_job(study.name, trial.name, trial.rung))):
            yield trial


def settle(
    study: Study,
    ledger: Ledger,
    jobs: Mapping[str, JobStatus],
    results: Results,
    now: datetime,
    settings: Settings = DEFAULTS,
    *,
    away_until: datetime | None = None,
    held: Set[str] = frozenset(),
) -> Ledger:
    """Return the ledger with all that is seen now.

    A run that went well, over three ticks:

        seen              job runs         job is over, measurement.json    (trial paused; nothing is awaited)
        trial    Pending ─────────> Running ─────────────────────> Paused
        attempt           opened           closed: Succeeded

    One that was evicted, and whose next attempt diverged:

        seen              job runs        job is over, no measurement,    job runs       job is over,
                                          pod says Evicted                           exit code 10
        trial    Pending ────────> Running ─────────────> Pending ────────> Running ─────────────> Paused, diverged
        attempt           opened          closed: Evicted           opened          closed: Diverged
                                          (the cluster's fault:                     (the arm's own: a measurement
                                          tried again)                              with the worst value)

    Args:
        study: what is wanted.
        ledger: what is written.
        jobs: as they are seen, by name.
        results: what they have written.
        now: the time.
        settings: limits and waits.
        away_until: when the bucket could be used again: what ended before, without a result, is its fault.
        held: names of jobs that are not settled yet.
    """
    folded_until = ledger.folded.until if ledger.folded is not None else None
    is_halted = study.suspend or ledger.outcome is not None
    jobs = {name: _fit_into_the_past(job, now) for name, job in jobs.items()}
    seen = _Seen(
        study,
        ledger.trials,
        jobs,
        results,
        now,
        settings,
        is_halted=is_halted,
        away_until=away_until,
        held=held,
        folded_until=folded_until,
    )
    runs = tuple(_say_refused(_settle_trial(run, seen), seen) for run in ledger.runs)
    prepare = _settle_stage(ledger.prepare, names.prepare_job(study.name), seen, is_done=results.summary is not None)
    final_evaluation = ledger.final_evaluation
    test_gain, winner_change = ledger.test_gain, ledger.winner_change
    if ledger.winner is not None:
        final_evaluation = _settle_stage(
            final_evaluation, names.final_evaluation_job(study.name), seen, is_done=results.final_evaluation is not None
        )
        if results.final_evaluation is not None and final_evaluation.state is StageState.COMPLETED:
            test_gain = find_test_gain(results.final_evaluation)
            winner_change = find_winner_change(results.final_evaluation)
    dataset = ledger.dataset
    if dataset is None and results.summary is not None and prepare.state is StageState.COMPLETED:
        dataset = _count_samples(results.summary)
    return fold_attempts(
        replace(
            ledger.with_runs(give_worst_values(study, runs)),
            prepare=prepare,
            final_evaluation=final_evaluation,
            test_gain=test_gain,
            winner_change=winner_change,
            dataset=dataset,
        )
    )


def find_new_faults(study: Study, before: Ledger, after: Ledger) -> frozenset[str]:
    """Return the jobs of which an attempt has newly ended without a result, and without a word whose fault it was."""
    attempts = [
        *before.prepare.attempts,
        *before.final_evaluation.attempts,
        *(a for t in before.runs for a in t.attempts),
    ]
    known = {(a.id, a.rung) for a in attempts if not a.is_open}

    def has_fault(of: Trial | Stage) -> bool:
        return any(
            a.reason in (*_MAYBE_THE_BUCKETS, EndReason.STORAGE_FAILED) and (a.id, a.rung) not in known
            for a in of.attempts
        )

    stages = (
        (names.prepare_job(study.name), after.prepare),
        (names.final_evaluation_job(study.name), after.final_evaluation),
    )
    found = {name for name, stage in stages if has_fault(stage)}
    found |= {names.trial_job(study.name, t.name, t.rung) for t in after.runs if has_fault(t)}
    return frozenset(found)


def is_live(job: JobStatus | None) -> bool:
    """Say whether a job exists and has not ended."""
    return job is not None and job.phase is not JobPhase.FINISHED


def give_worst_values(study: Study, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Give every diverged measurement the objective's worst value, which moves while worse measurements come in."""
    if not any(t.has_diverged for t in trials):
        return trials
    worst = _find_worst_value(study, trials)
    return tuple(_with_worst_value(t, worst) if t.has_diverged else t for t in trials)


def why_it_ended(job: JobStatus | EndedAttempt) -> str:
    """Return the reason of an end without a measurement: whose fault it was follows from it."""
    if job.reason == OUT_OF_MEMORY_KILL:
        return EndReason.OUT_OF_MEMORY
    match job.exit_code:
        case ExitCode.STOP_STEP_REACHED:
            return EndReason.NO_MEASUREMENT
        case ExitCode.DIVERGED:
            return EndReason.DIVERGED
        case ExitCode.ARM_CANNOT_RUN:
            return EndReason.ARM_CANNOT_RUN
        case ExitCode.STUDY_CANNOT_RUN:
            return EndReason.STUDY_CANNOT_RUN
        case ExitCode.ASKED_TO_STOP:
            return EndReason.INTERRUPTED
        case _:
            return job.reason or EndReason.CRASHED


def _fit_into_the_past(job: JobStatus, now: datetime) -> JobStatus:
    """Return a job whose runs began and ended by now: a clock that is ahead costs no hours, and delays no next try."""
    fitted = _with_span_until(job, now)
    if not job.earlier:
        return fitted
    return replace(fitted, earlier=tuple(_with_span_until(past, now) for past in job.earlier))


OfJobs = TypeVar("OfJobs", JobStatus, EndedAttempt)


def _with_span_until(run: OfJobs, now: datetime) -> OfJobs:
    started_at, finished_at = fit_span(run.started_at, run.finished_at, earliest=run.placed_at, latest=now)
    if (started_at, finished_at) == (run.started_at, run.finished_at):
        return run
    return replace(run, started_at=started_at, finished_at=finished_at)


@dataclass(frozen=True)
class _Seen:
    study: Study
    trials: Sequence[Trial]
    """As they were before."""
    jobs: Mapping[str, JobStatus]
    results: Results
    now: datetime
    settings: Settings
    is_halted: bool
    away_until: datetime | None
    held: Set[str]
    folded_until: datetime | None


def _settle_trial(trial: Trial, seen: _Seen) -> Trial:
    if not trial.is_busy and trial.state not in GIVEN_UP:
        return trial
    name = names.trial_job(seen.study.name, trial.name, trial.rung)
    if name in seen.held:
        return trial
    job = seen.jobs.get(name)
    for past in job.earlier if job is not None else ():
        trial = _settle_past(trial, past, seen)
    if not trial.is_busy:
        return _settle_given_up(trial, job, seen)
    if job is not None and is_live(job):
        return _settle_live(trial, job, seen)
    result = seen.results.measurements.get((trial.index, trial.rung))
    if result is not None:
        return _settle_measurement(trial, job, result, seen)
    ended = _close(trial.attempts, trial.rung, job, seen)
    if ended is None:
        return trial
    return _settle_end(replace(trial, attempts=ended), ended[-1], _message_of(job, seen), seen)


def _message_of(job: JobStatus | None, seen: _Seen) -> str:
    """Return why a job that is over has no result: what is wrong with the one it wrote, or its own last words."""
    if job is None:
        return ""
    results = seen.results
    return results.problems.get(job.name) or results.refused.get(job.name) or job.message


def _say_refused(trial: Trial, seen: _Seen) -> Trial:
    """Say of a trial that waits for its job what of another arm was found in its place."""
    if not trial.is_busy or not seen.results.refused:
        return trial
    message = seen.results.refused.get(names.trial_job(seen.study.name, trial.name, trial.rung), trial.message)
    return trial if message == trial.message else replace(trial, message=message)


def _settle_past(trial: Trial, past: EndedAttempt, seen: _Seen) -> Trial:
    """Settle a run that has ended while its job goes on."""
    is_folded = _is_before(past, seen.folded_until) and _find(trial.attempts, trial.rung, past.attempt) is None
    ended = None if is_folded else _close(trial.attempts, trial.rung, past, seen)
    if ended is None:
        return trial
    trial = replace(trial, attempts=ended)
    return _settle_end(trial, ended[-1], past.message, seen) if trial.is_busy else trial


def _is_before(past: EndedAttempt, time: datetime | None) -> bool:
    """Say whether a run ended so long ago that it stands in the sums of what was folded."""
    end = past.finished_at or past.started_at
    return time is not None and end is not None and end <= time


def _settle_given_up(trial: Trial, job: JobStatus | None, seen: _Seen) -> Trial:
    """Write down what the job of a trial still costs that was given up while a cluster ran its next attempt."""
    if job is not None and is_live(job):
        attempts = _open(trial.attempts, trial.rung, job, is_halted=True)
    else:
        attempts = _close(trial.attempts, trial.rung, job, seen) or trial.attempts
    return trial if attempts is trial.attempts else replace(trial, attempts=attempts)


def _settle_live(trial: Trial, job: JobStatus, seen: _Seen) -> Trial:
    stuck = _give_up_stuck(trial.attempts, trial.rung, job, seen)
    if stuck is not None:
        return _settle_end(replace(trial, attempts=stuck), stuck[-1], job.message, seen)
    attempts = _open(trial.attempts, trial.rung, job, is_halted=seen.is_halted)
    if attempts is not trial.attempts:
        trial = replace(trial, attempts=attempts)
    attempt = _find(attempts, trial.rung, job.attempt)
    if attempt is not None and not attempt.is_open:
        # Given up already: the job is on its way out.
        return trial
    if attempt is not None and job.phase is JobPhase.RUNNING and trial.state is TrialState.PENDING:
        return move(trial, TrialState.RUNNING)
    message = _say_waiting(trial.message, job, seen)
    return trial if message == trial.message else replace(trial, message=message)


def _give_up_stuck(attempts: tuple[Attempt, ...], rung: int, job: JobStatus, seen: _Seen) -> tuple[Attempt, ...] | None:
    """Count a job that could not start for too long as an attempt that the environment ended; None where it is not."""
    limit = timedelta(seconds=seen.settings.stuck_limit_seconds)
    if job.phase is not JobPhase.PENDING or not job.is_stuck or job.waits_since is None:
        return None
    if seen.now - job.waits_since < limit or _find(attempts, rung, job.attempt) is not None:
        return None
    why = job.reason or EndReason.CRASHED
    attempt = Attempt(rung=rung, started_at=seen.now, finished_at=seen.now, reason=why, id=job.attempt)
    return (*_without_open(attempts, seen.now), attempt)


def _say_waiting(message: str, job: JobStatus, seen: _Seen) -> str:
    """Return what is said of a job that does not run: why it waits, if it has waited for long; else what was said."""
    if job.waits_since is None or not job.reason:
        return "" if message.startswith(WAITS) else message
    if seen.now - job.waits_since < timedelta(seconds=seen.settings.waiting_said_after_seconds):
        return message
    # What the environment says of one and the same reason changes every minute; each change would be a write.
    if message.startswith(f"{WAITS}{job.reason}"):
        return message
    return f"{WAITS}{job.reason}" + (f": {job.message}" if job.message else "")


def _settle_measurement(trial: Trial, job: JobStatus | None, result: RungMeasurement, seen: _Seen) -> Trial:
    ended = _close(trial.attempts, trial.rung, job, seen, reason=EndReason.SUCCEEDED)
    trial = replace(trial, attempts=ended) if ended is not None else trial
    metric = seen.study.objective.metric
    uses = dict.fromkeys(list_ranking_metrics(seen.study, trial.rung), "that trials are ranked by")
    uses[metric] = "that is the objective"
    for needed, use in uses.items():
        if needed not in result.metrics:
            found = ", ".join(sorted(result.metrics))
            message = f"the measurement must hold the metric {needed} {use}, got {found}"
            return move(_blame(trial, EndReason.STUDY_CANNOT_RUN, seen), TrialState.FAILED, message=message)
    means = [*uses, *needed_metrics(seen.study)]
    empty = [name for name in means if name in result.metrics and result.metrics[name].n == 0]
    if empty:
        message = f"the validation set must hold at least 1 question that {empty[0]} is a mean of, got none"
        return move(_blame(trial, EndReason.STUDY_CANNOT_RUN, seen), TrialState.FAILED, message=message)
    if len(result.checkpoint) > limits.CHECKPOINT_LENGTH:
        message = f"the measurement's checkpoint must have at most {limits.CHECKPOINT_LENGTH} characters"
        message += f", got {len(result.checkpoint)}"
        return move(_blame(trial, EndReason.STUDY_CANNOT_RUN, seen), TrialState.FAILED, message=message)
    checkpoint = join(names.rung_key(trial.name, trial.rung), result.checkpoint)
    measurement = replace(build_measurement(seen.study, result), rung=trial.rung, checkpoint=checkpoint)
    measurement = with_seconds(measurement, trial, result)
    share = _find_gibberish(result)
    if share is None:
        return _measured(seen.study, trial, measurement, message=_say_begun(trial, result))
    message = f"gibberish: no answer is right, and {share:.0%} of them make no sense"
    return _measured(seen.study, trial, replace(measurement, gibberish=True), message=message)


def build_measurement(study: Study, result: RungMeasurement) -> Measurement:
    """Return what the ledger keeps of what a trainer measured, which must hold the objective; without a checkpoint."""
    objective = result.metrics[study.objective.metric]
    return Measurement(
        rung=result.rung,
        step=result.step,
        value=objective.value,
        standard_error=None if (error := objective.standard_error) is None else float(f"{error:.6g}"),
        n=objective.n,
        sites=objective.sites if objective.sites is not None and objective.sites < MANY_SITES else None,
        # In as many digits as tell anything: a ledger of hundreds of trials has its bound.
        metrics={
            name: float(f"{result.metrics[name].value:.9g}")
            for name in kept_metrics(study)
            if name in result.metrics and result.metrics[name].n
        },
        checkpoint="",
    )


def _say_begun(trial: Trial, result: RungMeasurement) -> str:
    """Say of a trial that continued that it began anew; its result is the same, and took longer."""
    has_begun = trial.measurement(trial.rung - 1) is not None
    is_anew = has_begun and result.trained_steps is not None and result.trained_steps >= result.step
    return "it began at its first step: it found no checkpoint of its own to go on from" if is_anew else ""


def _find_gibberish(result: RungMeasurement) -> float | None:
    """Return the share of answers without sense of a model that makes none. It trained, so that it did not diverge."""
    accuracy = result.metrics.get("accuracy")
    senseless = result.metrics.get("gibberish_rate")
    if accuracy is None or senseless is None or not accuracy.n or not senseless.n:
        return None
    return senseless.value if accuracy.value == 0 and senseless.value >= GIBBERISH_SHARE else None


def _settle_end(trial: Trial, attempt: Attempt, message: str, seen: _Seen) -> Trial:
    match attempt.reason:
        case EndReason.DIVERGED:
            step = max([m.step for m in trial.measurements], default=0)
            return _measured(seen.study, trial, _diverged(seen.study, trial.rung, step), message=message)
        case EndReason.ARM_CANNOT_RUN:
            return move(trial, TrialState.ABANDONED, message=message or "the arm cannot run")
        case EndReason.OUT_OF_MEMORY:
            smaller, sentence = _find_smaller(trial, seen.trials)
            message = f"{message}; {sentence}" if message else sentence
            if smaller is not None:
                return move(trial, TrialState.ABANDONED, message=message)
        case EndReason.STUDY_CANNOT_RUN:
            return move(trial, TrialState.FAILED, message=message or "the data or the model cannot be used")
        case EndReason.ASKED_TO_STOP:
            return _wait_again(trial, "")
    problem = _find_limit(trial, trial.rung, seen.settings)
    if problem is not None:
        return move(trial, TrialState.FAILED, message=f"{problem}, the last with {_say(attempt, message)}")
    return _wait_again(trial, f"attempt {trial.attempts_so_far} ended with {_say(attempt, message)}; it is tried again")


def _find_smaller(trial: Trial, trials: Sequence[Trial]) -> tuple[Trial | None, str]:
    """Return a trial whose run shows that a kill is this arm's fault, and what there is to say of it.

    The kernel kills for the sum of all there is. The arm's part in it shows beside others, which have the same pod
    template and so the same limit: where one that needs no more has run, it is the arm. One that has run on its own
    first rung is not to blame on a later one, nor in a confirmation or a run of the data curve, whose arm has run to
    its full length.
    """
    if trial.measurement(0) is not None or not trial.is_candidate:
        return None, "it has run in the same memory before, so that it is not the arm's fault"
    size = _size_of(trial.arm)
    for other in trials:
        if other.measurement(0) is not None and all(a <= b for a, b in zip(_size_of(other.arm), size, strict=True)):
            return other, f"trial {other.name}, which needs no more, has run in the same memory"
    return None, "no smaller arm has run in the same memory yet, so that it is not known to be the arm's fault"


def _size_of(arm: Arm) -> tuple[float, ...]:
    """Return what an arm's memory grows with; where it is not searched it is the same for all."""
    numbers = {name: value for name, value in arm.items() if not isinstance(value, str)}
    return numbers.get("batch_size", 0), numbers.get("lora_rank", 0), float(numbers.get("lora_dropout", 0) > 0)


def _wait_again(trial: Trial, message: str) -> Trial:
    if trial.state is TrialState.PENDING:
        return replace(trial, message=message)
    return move(trial, TrialState.PENDING, message=message)


def _measured(study: Study, trial: Trial, measurement: Measurement, message: str = "") -> Trial:
    state = TrialState.PAUSED if measurement.rung < study.last_rung else TrialState.COMPLETED
    trial = replace(trial, measurements=(*trial.measurements, measurement))
    return move(trial, state, message=message)


def _blame(trial: Trial, reason: EndReason, seen: _Seen) -> Trial:
    """Write a fault down as the reason of the last attempt; where none was seen, one of no length stands for it."""
    if trial.attempts and trial.attempts[-1].rung == trial.rung:
        return replace(trial, attempts=(*trial.attempts[:-1], replace(trial.attempts[-1], reason=reason)))
    attempt = Attempt(rung=trial.rung, started_at=seen.now, finished_at=seen.now, reason=reason, id="")
    return replace(trial, attempts=(*trial.attempts, attempt))


def _settle_stage(stage: Stage, name: str, seen: _Seen, *, is_done: bool) -> Stage:
    """Settle prepare or final evaluation: as a trial, but there is no arm to be at fault."""
    if stage.state in (StageState.COMPLETED, StageState.FAILED) or name in seen.held:
        return stage
    stage = _settle_unfinished(stage, seen.jobs.get(name), seen, is_done=is_done)
    message = seen.results.refused.get(name, stage.message)
    if stage.state in (StageState.COMPLETED, StageState.FAILED) or message == stage.message:
        return stage
    return replace(stage, message=message)


def _settle_unfinished(stage: Stage, job: JobStatus | None, seen: _Seen, *, is_done: bool) -> Stage:
    kept_from = stage.attempts[0].started_at if stage.earlier_attempts is not None and stage.attempts else None
    for past in job.earlier if job is not None else ():
        ended = None if _is_before(past, kept_from) else _close(stage.attempts, 0, past, seen)
        stage = stage if ended is None else _settle_end_of_stage(replace(stage, attempts=ended), past.message, seen)
        if stage.state is StageState.FAILED:
            return stage
    if job is not None and is_live(job):
        return _settle_live_stage(stage, job, seen)
    ended = _close(stage.attempts, 0, job, seen, reason=EndReason.SUCCEEDED if is_done else "")
    if is_done:
        return replace(stage, attempts=ended or stage.attempts, state=StageState.COMPLETED, message="")
    if ended is None:
        return stage
    return _settle_end_of_stage(replace(stage, attempts=ended), _message_of(job, seen), seen)


def _settle_live_stage(stage: Stage, job: JobStatus, seen: _Seen) -> Stage:
    stuck = _give_up_stuck(stage.attempts, 0, job, seen)
    if stuck is not None:
        return _settle_end_of_stage(replace(stage, attempts=stuck), job.message, seen)
    attempts = _open(stage.attempts, 0, job, is_halted=seen.is_halted)
    attempt = _find(attempts, 0, job.attempt)
    if attempt is not None and not attempt.is_open:
        return stage
    is_new = job.phase is JobPhase.RUNNING and stage.state is not StageState.RUNNING
    message = "" if is_new else _say_waiting(stage.message, job, seen)
    if attempts is stage.attempts and not is_new and message == stage.message:
        return stage
    return replace(stage, attempts=attempts, state=StageState.RUNNING if is_new else stage.state, message=message)


def _settle_end_of_stage(stage: Stage, message: str, seen: _Seen) -> Stage:
    attempt = stage.attempts[-1]
    if attempt.reason in (EndReason.STUDY_CANNOT_RUN, EndReason.ARM_CANNOT_RUN, EndReason.DIVERGED):
        sentence = message or "the data or the model cannot be used"
        return replace(stage, state=StageState.FAILED, reason=attempt.reason, message=sentence)
    problem = _find_limit(stage, 0, seen.settings)
    if problem is not None:
        sentence = f"{problem}, the last with {_say(attempt, message)}"
        return replace(stage, state=StageState.FAILED, reason=attempt.reason, message=sentence)
    sentence = "" if attempt.reason == EndReason.ASKED_TO_STOP else f"an attempt ended with {_say(attempt, message)}"
    return replace(stage, state=StageState.PENDING, message=sentence)


def _open(attempts: tuple[Attempt, ...], rung: int, job: JobStatus, *, is_halted: bool) -> tuple[Attempt, ...]:
    """Return the attempts with the one that runs; the very same tuple where nothing is new."""
    if job.started_at is None:
        return attempts
    known = _find(attempts, rung, job.attempt)
    if known is None:
        attempt = Attempt(rung=rung, started_at=job.started_at, id=job.attempt)
        attempts = (*_without_open(attempts, job.started_at), attempt)
    elif known.reason == EndReason.JOB_GONE:
        # It was believed gone, and is there: a list of jobs may lag behind.
        attempt = replace(known, finished_at=None, reason="")
        attempts = _replaced(attempts, known, attempt)
    else:
        attempt = known
    if is_halted and attempt.is_open and not attempt.reason:
        attempts = _replaced(attempts, attempt, replace(attempt, reason=EndReason.ASKED_TO_STOP))
    return attempts


def _close(
    attempts: tuple[Attempt, ...],
    rung: int,
    job: JobStatus | EndedAttempt | None,
    seen: _Seen,
    *,
    reason: str = "",
) -> tuple[Attempt, ...] | None:
    """Return the attempts with the ended one last; None where no attempt has newly ended.

    Of one that nobody has seen running, and that ended while the study is halted, the halt is why.
    """
    now = seen.now
    if job is None:
        last = attempts[-1] if attempts else None
        if last is None or not last.is_open:
            return None
        gone = replace(last, finished_at=max(now, last.started_at), reason=reason or last.reason or EndReason.JOB_GONE)
        return _replaced(attempts, last, gone)
    known = _find(attempts, rung, job.attempt)
    if known is not None and not known.is_open and known.reason != EndReason.JOB_GONE:
        return None
    started = job.started_at or job.finished_at or now
    before = known or Attempt(rung=rung, started_at=started, id=job.attempt)
    why = reason or why_it_ended(job)
    is_asked = before.reason == EndReason.ASKED_TO_STOP or (known is None and seen.is_halted)
    if is_asked and why not in _FAULTS_OF_ITS_OWN:
        why = EndReason.ASKED_TO_STOP
    elif why in _MAYBE_THE_BUCKETS and _was_in_outage(before.started_at, job.finished_at or now, seen.away_until):
        why = EndReason.STORAGE_FAILED
    ended = replace(
        before, finished_at=max(job.finished_at or now, before.started_at), exit_code=job.exit_code, reason=why
    )
    others = _without_open(tuple(a for a in attempts if a is not known), ended.started_at)
    return (*others, ended)


def _without_open(attempts: tuple[Attempt, ...], now: datetime) -> tuple[Attempt, ...]:
    """Close what is still open: another run of the same job means that the one before is gone."""
    return tuple(
        replace(a, finished_at=max(now, a.started_at), reason=a.reason or EndReason.JOB_GONE) if a.is_open else a
        for a in attempts
    )


_MAYBE_THE_BUCKETS = (EndReason.CRASHED, EndReason.NO_MEASUREMENT)
"""How an attempt ends that could not write its result, among others."""

_FAULTS_OF_ITS_OWN = frozenset(
    {
        EndReason.SUCCEEDED,
        EndReason.DIVERGED,
        EndReason.OUT_OF_MEMORY,
        EndReason.ARM_CANNOT_RUN,
        EndReason.STUDY_CANNOT_RUN,
    }
)


def _was_in_outage(started: datetime, finished: datetime, away_until: datetime | None) -> bool:
    """Say whether an attempt ended before the bucket could be used again.

    None begins in an outage, and Kubernetes tells whole seconds: one of the very second in which the bucket was found
    ready began after that.
    """
    return away_until is not None and started < away_until.replace(microsecond=0) and finished < away_until


def _find(attempts: Sequence[Attempt], rung: int, word: str) -> Attempt | None:
    return next((a for a in reversed(attempts) if a.rung == rung and a.id == word), None)


def _replaced(attempts: Sequence[Attempt], old: Attempt, new: Attempt) -> tuple[Attempt, ...]:
    return tuple(new if a is old else a for a in attempts)


def _find_limit(of: Trial | Stage, rung: int, settings: Settings) -> str | None:
    faults, interruptions = count_attempts_against(of.attempts, rung, of.earlier_attempts)
    if faults >= settings.attempts_limit:
        return f"the environment ended {faults} attempts"
    if interruptions >= settings.interruptions_limit:
        return f"{interruptions} attempts were interrupted"
    return None


def _say(attempt: Attempt, message: str) -> str:
    code = "" if attempt.exit_code is None else f" (exit code {attempt.exit_code})"
    return f"{attempt.reason}{code}" + (f": {message}" if message else "")


def _count_samples(summary: DatasetSummary) -> DatasetCounts:
    train, validation, test = (
        summary.splits[name].samples if name in summary.splits else 0 for name in ("train", "validation", "test")
    )
    return DatasetCounts(
        fingerprint=summary.fingerprint, train_samples=train, validation_samples=validation, test_samples=test
    )


def _diverged(study: Study, rung: int, step: int) -> Measurement:
    value = WORST_VALUES[study.objective.metric.partition("/")[0]]
    return Measurement(
        rung=rung,
        step=step,
        value=value,
        standard_error=None,
        metrics=_diverged_metrics(study),
        checkpoint="",
        diverged=True,
    )


def needed_metrics(study: Study) -> list[str]:
    """Return the metrics that decide: the objective's and the constrained ones."""
    return [study.objective.metric, *(c.metric for c in study.outcome_constraints)]


def kept_metrics(study: Study) -> list[str]:
    """Return the metrics that the ledger keeps beside the objective's."""
    kept = dict.fromkeys([*METRICS, *needed_metrics(study)])
    return [metric for metric in kept if metric != study.objective.metric]


def _diverged_metrics(study: Study) -> dict[str, float]:
    metrics = {"accuracy": 0.0, "invalid_output_rate": 1.0}
    metrics.pop(study.objective.metric, None)
    return metrics


def _find_worst_value(study: Study, trials: Sequence[Trial]) -> float:
    metric = study.objective.metric.partition("/")[0]
    bound = WORST_VALUES[metric]
    if is_share(metric):
        return bound
    # A run on few samples is no measure of what is bad for an arm.
    compared = [t for t in trials if t.is_candidate]
    values = [m.value for t in compared for m in t.measurements if not m.diverged]
    return min(values, key=study.objective.merit, default=bound)


def _with_worst_value(trial: Trial, worst: float) -> Trial:
    if all(m.value == worst for m in trial.measurements if m.diverged):
        return trial
    measurements = tuple(replace(m, value=worst) if m.diverged else m for m in trial.measurements)
    return replace(trial, measurements=measurements)
