"""One tick of a study: observe, settle, plan, act, record.

The same tick drives a laptop and a cluster: they differ in the runner, the artifact store and the status store
that they hand in. It is level-triggered: it may run at any time, any number of times, and only looks at the present.

What makes it safe to kill between any two steps:

* a job is created or deleted only for a trial whose recorded entry is what the tick still believes;
* before the first job is touched the status store confirms that what the tick read is still what is written;
* what a tick decides is written once, last, with the version that it read; a conflict drops the tick;
* job names and object keys are functions of study, trial and rung, so that doing something twice does it once;
* an ended job is deleted only after its end is in the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar

from study_operator import names
from study_operator.clocks import read_time
from study_operator.errors import ConflictError, StatusRefusedError
from study_operator.ledger.bucket_copy import MOST_BYTES as MOST_BYTES_OF_LEDGER
from study_operator.ledger.bucket_copy import LedgerRefusedError, parse_copy
from study_operator.ledger.events import Event, events_between
from study_operator.ledger.status import (
    Recorded,
    Reported,
    TrialProgress,
    events_of_stall,
    is_same_status,
    parse_status,
    render_refusal,
    render_refused_status,
    render_status,
    shorten_status,
)
from study_operator.ledger.trial import REFUSED, WAITS, Ledger, StageState, Trial, TrialState, retry_at
from study_operator.optimizer.designer import Designer, ProposalPendingError
from study_operator.optimizer.reading import ModelReading
from study_operator.reasons import ConditionType, EventReason, Problem, WaitReason
from study_operator.reconcile.act import Hands, act
from study_operator.reconcile.actions import Action, Attach, DeleteJob, Suggest
from study_operator.reconcile.job_specs import artifacts_uri, build_job_of
from study_operator.reconcile.planner import find_settled_jobs, plan
from study_operator.reconcile.runner import JobKind, JobSpec, JobStatus, TrialRunner
from study_operator.reconcile.settle import Results, find_new_faults, is_live, list_awaited, settle
from study_operator.reconcile.warm_start import FindStudy, Lessons, learn
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError, ArtifactStore, join
from trial_trainer.contract import (
    FINAL_EVALUATION,
    MEASUREMENT,
    SUMMARY,
    ContractError,
    DatasetSummary,
    Examples,
    FinalEvaluation,
    Progress,
    RungMeasurement,
    from_json,
)

log = logging.getLogger(__name__)

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 1.0, 60.0
"""Between two looks at a bucket that cannot be used; the wait doubles."""

MOST_NAMED = 10
"""Pods in one command."""

MOST_BYTES: Mapping[type, int] = {
    Progress: 64 * 1024,
    RungMeasurement: 1024 * 1024,
    DatasetSummary: 4 * 1024 * 1024,
    FinalEvaluation: 4 * 1024 * 1024,
    Examples: 1024 * 1024,
    ModelReading: 1024 * 1024,
}
"""How much of what jobs write, or may have written over, is read into the operator's memory; the largest seen had a
twentieth of it."""

T = TypeVar("T")
OfResult = TypeVar("OfResult", RungMeasurement, DatasetSummary, FinalEvaluation)


class StatusStore(Protocol):
    """Where the status is kept, with optimistic locking."""

    def read(self) -> tuple[Mapping[str, Any] | None, Any]:
        """Return the status (None before the first write) and its version."""
        ...

    def confirm(self, version: Any) -> None:
        """Make sure that nothing was written since a version was read, where `read` may have been behind.

        Raises:
            ConflictError: where something was.
        """
        ...

    def write(self, status: Mapping[str, Any], version: Any) -> Any:
        """Write the status if its version is still the one that was read.

        Raises:
            ConflictError: where it is not.
            StatusRefusedError: where it is none that is taken.
        """
        ...


Reporter = Callable[[Study, Ledger, Mapping[str, Any]], None]
"""Writes the report of a recorded ledger, given the whole status with it; raises `ProposalPendingError` where it waits
for the optimizer, which wakes the study. Handed in: reports are of a layer above."""


@dataclass(frozen=True, kw_only=True)
class TickResult:
    """What a tick saw and did."""

    status: Mapping[str, Any]
    """The status as it is written now."""
    ledger: Ledger
    actions: Sequence[Action] = ()
    """What was done or decided."""
    events: Sequence[Event] = ()
    is_idle: bool = True
    """Nothing was written and nothing was launched: the next tick waits for news or for ``wake_at``."""
    is_done: bool = False
    """The study has ended, its end is written and reported, and none of its jobs lives."""
    is_settled: bool = False
    """What was seen of the jobs is written down; it is not while the bucket cannot be read."""
    is_refused: bool = False
    """A job was refused, and none was launched: it is to be tried again."""
    refused: int = 0
    """Objects that jobs wrote and nobody can use."""
    refusal: str = ""
    """Why the ledger that lies in the bucket is not taken up, or nothing can be learnt from an earlier study: until
    that is mended nothing of the study runs."""
    is_dropped: bool = False
    """Somebody else wrote the status: nothing that this tick decided counts."""
    wake_at: datetime | None = None
    """When a clock alone will give the next tick something to do."""


def tick(
    study: Study,
    *,
    statuses: StatusStore,
    runner: TrialRunner,
    artifacts: ArtifactStore,
    designer: Designer,
    now: datetime,
    settings: Settings = DEFAULTS,
    reporter: Reporter | None = None,
    is_progress_wanted: bool = False,
    recorded: Recorded | None = None,
    storage_problem: Problem | None = None,
    find_study: FindStudy | None = None,
) -> TickResult:
    """Bring a study one step further.

    1. Observe: the status, the jobs, and the results of jobs that are over. Nothing is read after this.
    2. Settle: what was seen becomes the new ledger; whose fault each end was is decided here.
    3. Plan: the ledger and the jobs become actions, each with a reason.
    4. Act: jobs are created and deleted, and the optimizer is asked last.
    5. Report: into the bucket, where there is something new to tell.
    6. Record: one write of the status, with the version that was read. A conflict drops the tick.

    Args:
        study: what is wanted.
        statuses: where the status is.
        runner: the study's jobs.
        artifacts: the store at `job_specs.artifacts_uri(study)`.
        designer: proposes arms; asked at most once a tick, after everything else was launched.
        now: the time, with its zone.
        settings: the operator's limits and waits.
        reporter: writes the report; None where nobody wants one.
        is_progress_wanted: whether to read how far the running trials are, and to write it down. Each time is a
            request a trial and a status write, so that whoever calls decides how often.
        recorded: the status that ``statuses`` will read, parsed, where the caller has it.
        storage_problem: why ``artifacts`` cannot be used, where the caller knows that.
        find_study: looks up the studies that this one learns from; None where there is no other.
    """
    # 1. Observe: everything that is read is read here.
    raw, version = statuses.read()
    recorded = recorded or parse_status(raw)
    jobs = _mark_foreign(study, recorded.ledger, {job.name: job for job in runner.jobs()})
    ours = {name: job for name, job in jobs.items() if not job.is_foreign}
    results, problem, progress, lessons = None, storage_problem, recorded.progress, Lessons()
    try:
        if recorded.ledger == Ledger() and (copy := _read_copy(study, artifacts)) is not None:
            return _take_up(study, copy, artifacts, statuses, version, now)
        results = _read_results(study, recorded.ledger, jobs, artifacts)
        lessons = learn(study, recorded.ledger, artifacts, find_study)
        if lessons.earlier:
            study = replace(study, earlier=lessons.earlier)
        if is_progress_wanted:
            progress = _read_progress(study, recorded.ledger, artifacts)
    except LedgerRefusedError as error:
        return _refuse(study, recorded, error, statuses, version, now)
    except ArtifactError as error:
        problem = Problem(error.reason, str(error))

    # 2. Settle. Without the bucket nobody knows what was measured: everything waits.
    ledger, done, launched, refused = recorded.ledger, list[Action](), False, False
    refusal = _refusal_as_before(recorded)
    held: frozenset[str] = frozenset()
    if results is not None:
        away_until = _find_end_of_outage(recorded, now)
        ledger = settle(study, recorded.ledger, ours, results, now, settings, away_until=away_until)
        # Whoever left nothing may have been let write nothing. Then that is the bucket's fault, and nobody else's.
        suspects = find_new_faults(study, recorded.ledger, ledger)
        if suspects and problem is None:
            problem = _find_write_problem(artifacts)
        if suspects and problem:
            held = suspects
            ledger = settle(study, recorded.ledger, ours, results, now, settings, held=held)
        if lessons.waits or ledger.search_message.startswith(WAITS):
            ledger = replace(ledger, search_message=lessons.waits)
        # 3. Plan.
        actions = plan(study, ledger, jobs, now, settings)
        if problem:
            # What must stop is stopped; nothing begins.
            actions = [action for action in actions if isinstance(action, DeleteJob)]
        if study.warm_start_from and not study.earlier:
            # A slot is free, or the data are there, only now: the next tick reads what was copied, and no arm is tried
            # before it is known that there is something to learn.
            actions = [action for action in actions if not isinstance(action, Attach | Suggest)]
        # 4. Act.
        hands = Hands(runner, artifacts, results.refused, lambda: statuses.confirm(version))
        try:
            for key, text in () if problem else lessons.copies.items():
                artifacts.write(key, text)
            ledger, done = act(study, actions, ledger, recorded, hands, designer, now, settings)
        except ConflictError as error:
            return _dropped(recorded, error)
        except ArtifactError as error:
            # Cleaning up uses the bucket, and so does what clears another arm's result away before a launch.
            problem = Problem(error.reason, str(error))
        launched, refused = hands.has_more_to_do, hands.refusal is not None
        refused_for = timedelta(seconds=settings.waiting_said_after_seconds)
        kept_out = [j for j in ours.values() if j.is_refused and j.waits_since and now - j.waits_since >= refused_for]
        refusal = _find_refusal(study, recorded, ledger, ours, kept_out, hands)
    # 5. Report.
    reported, problem = _report(study, recorded, reporter, now, settings, problem)
    orphans = _say_orphaned(study, ledger, jobs)

    # 6. Record: once, last, and only if nobody wrote in between.
    status: Mapping[str, Any] = render_status(
        study,
        ledger,
        now=now,
        recorded=recorded,
        reported=reported,
        storage_problem=problem,
        refusal=refusal,
        orphans=orphans,
        progress=progress,
        report_uri=join(artifacts_uri(study), names.REPORT),
        settings=settings,
    )
    try:
        written = _record(study, statuses, status, version, recorded, now)
    except ConflictError as error:
        return _dropped(recorded, error)
    status, is_changed = written.status, written.is_news
    if not written.has_ledger:
        return TickResult(status=status, ledger=recorded.ledger, events=written.events, is_idle=not launched)
    events = [*events_between(study, recorded.ledger, ledger), *events_of_stall(recorded.conditions, status)]
    events += written.events
    known = recorded.conditions.get(ConditionType.COMPLETE)
    if orphans and is_changed and (known is None or orphans not in known.message):
        events.append(Event(reason=EventReason.POD_ORPHANED, message=orphans, is_warning=True))
    for event in events:
        log.log(logging.WARNING if event.is_warning else logging.INFO, "%s", event.message)
    is_reported = reporter is None or (reported is not None and reported.key == report_key(ledger))
    is_tidy = ledger.outcome is not None and ledger.cleaned_at is not None and not any(map(is_live, jobs.values()))
    is_over = is_tidy and is_reported and not problem
    return TickResult(
        status=status,
        ledger=ledger,
        actions=done,
        events=events,
        is_idle=not is_changed and not launched,
        is_done=is_over and not is_changed,
        is_settled=results is not None and not held,
        refused=len(results.problems) if results is not None else 0,
        is_refused=refused and not launched,
        wake_at=_find_wake(study, ledger, jobs, status, reported, reporter is not None, now, settings),
    )


def _take_up(
    study: Study, copy: Recorded, artifacts: ArtifactStore, statuses: StatusStore, version: Any, now: datetime
) -> TickResult:
    """Give a study that has no ledger the one that lies in its bucket."""
    uri = join(artifacts_uri(study), names.REPORT)
    status = render_status(study, copy.ledger, now=now, recorded=copy, reported=copy.reported, report_uri=uri)
    try:
        statuses.write(status, version)
    except ConflictError as error:
        return _dropped(copy, error)
    trials = copy.ledger.trials
    measured = sum(bool(t.measurements) for t in trials)
    message = f"{artifacts.uri}/{names.LEDGER} is taken up: {len(trials)} trials, {measured} measured"
    log.info("study %s: %s", study.name, message)
    events = [Event(reason=EventReason.LEDGER_TAKEN_UP, message=message)]
    return TickResult(status=status, ledger=copy.ledger, events=events, is_idle=False)


def _refuse(
    study: Study, recorded: Recorded, error: LedgerRefusedError, statuses: StatusStore, version: Any, now: datetime
) -> TickResult:
    """Say that what lies in the bucket belongs to another study, or that an earlier one teaches nothing; do nothing."""
    refusal = str(error)
    status = render_refusal(recorded, error.reason, [refusal], study.generation, now)
    is_changed = not is_same_status(status, recorded.raw)
    if is_changed:
        try:
            statuses.write(status, version)
        except ConflictError as conflict:
            return _dropped(recorded, conflict)
        log.warning("study %s: %s", study.name, refusal)
    events = [Event(reason=error.reason, message=refusal, is_warning=True)] if is_changed else []
    return TickResult(status=status, ledger=recorded.ledger, events=events, is_idle=not is_changed, refusal=refusal)


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """What stands now."""

    status: Mapping[str, Any]
    is_news: bool
    has_ledger: bool = True
    """Whether what was decided is in it."""
    events: Sequence[Event] = ()


def _record(
    study: Study, statuses: StatusStore, status: Mapping[str, Any], version: Any, recorded: Recorded, now: datetime
) -> _Standing:
    """Write the status; one that is not taken in smaller forms, which say so.

    Raises:
        ConflictError: where somebody else wrote it.
        StatusRefusedError: where no form is taken.
    """
    if is_same_status(status, recorded.raw):
        return _Standing(status=status, is_news=False)
    try:
        statuses.write(status, version)
    except StatusRefusedError as error:
        why = str(error)
    else:
        return _Standing(status=status, is_news=True)
    short = shorten_status(status, recorded, why)
    if is_same_status(short, recorded.raw):
        return _Standing(status=short, is_news=False)
    try:
        statuses.write(short, version)
    except StatusRefusedError as error:
        why = str(error)
    else:
        return _Standing(status=short, is_news=True, events=_news_of(recorded, EventReason.STATUS_SHORTENED, why))
    least = render_refused_status(recorded, why, study.generation, now)
    if is_same_status(least, recorded.raw):
        return _Standing(status=least, is_news=False, has_ledger=False)
    statuses.write(least, version)
    return _Standing(
        status=least, is_news=True, has_ledger=False, events=_news_of(recorded, EventReason.STATUS_REFUSED, why)
    )


def _news_of(recorded: Recorded, reason: str, why: str) -> list[Event]:
    """Return the event that tells of a form of the status, where it has another one now."""
    accepted = recorded.conditions.get("Accepted")
    is_known = accepted is not None and accepted.reason == reason
    return [] if is_known else [Event(reason=reason, message=f"the API server says: {why}", is_warning=True)]


def _dropped(recorded: Recorded, error: ConflictError) -> TickResult:
    log.debug("tick dropped: %s", error)
    return TickResult(status=recorded.raw, ledger=recorded.ledger, is_idle=False, is_dropped=True)


def report_key(ledger: Ledger) -> str:
    """Return a word that changes with each new measurement, promotion, or the end: of a stage, of the study."""
    measured = sum(len(t.measurements) for t in ledger.runs)
    continued = sum(t.rung for t in ledger.trials)
    ends = "".join(f"/{end}" for end in (ledger.confirmations_end, ledger.curve_end) if end is not None)
    return f"{measured}/{continued}/{ledger.outcome.reason if ledger.outcome else ''}{ends}"


# --- Observe ----------------------------------------------------------------------------------------------------


def _read_copy(study: Study, artifacts: ArtifactStore) -> Recorded | None:
    """Read the ledger that lies in the bucket; None where there is none, or nothing is in it."""
    place = f"{artifacts.uri}/{names.LEDGER}"
    try:
        text = artifacts.read(names.LEDGER, MOST_BYTES_OF_LEDGER)
    except ArtifactError as error:
        if error.reason == "ObjectTooLarge":
            raise LedgerRefusedError(f"{place} must be a ledger that this operator wrote: {error}") from error
        raise
    copy = None if text is None else parse_copy(study, text, place)
    return None if copy is None or copy.ledger == Ledger() else copy


def _mark_foreign(study: Study, ledger: Ledger, jobs: Mapping[str, JobStatus]) -> Mapping[str, JobStatus]:
    """Mark the jobs that are other arms': after a restore of the status one may have the name of this study's next.

    A job that has ended matters only where its trial waits for one of that name.
    """
    if not any(job.digest for job in jobs.values()):
        return jobs
    of: dict[str, Trial | JobKind] = {}
    if ledger.prepare.state is not StageState.COMPLETED:
        of[names.prepare_job(study.name)] = JobKind.PREPARE
    if ledger.winner is not None and ledger.final_evaluation.state is not StageState.COMPLETED:
        of[names.final_evaluation_job(study.name)] = JobKind.FINAL_EVALUATION
    for trial in ledger.runs:
        for rung in range(study.last_rung + 1):
            name = names.trial_job(study.name, trial.name, rung)
            if is_live(jobs.get(name)) or (trial.is_busy and rung == trial.rung):
                of[name] = trial
    return {
        name: replace(job, is_foreign=True)
        if job.digest and name in of and job.digest != build_job_of(study, ledger, of[name]).digest
        else job
        for name, job in jobs.items()
    }


def _read_results(study: Study, ledger: Ledger, jobs: Mapping[str, JobStatus], artifacts: ArtifactStore) -> Results:
    """Read what the jobs have written that are over or not there; of what is another arm's, only that it is there."""
    problems: dict[str, str] = {}
    refused = {
        name: f"{REFUSED}job {name} is of another arm, data or model, with the digest {job.digest}"
        for name, job in jobs.items()
        if job.is_foreign
    }
    ours = {name: job for name, job in jobs.items() if not job.is_foreign}

    def read(cls: type[OfResult], name: str, key: str, of: Trial | JobKind, *, has_run: bool) -> OfResult | None:
        value, problem = _load_result(cls, artifacts, key)
        if problem:
            problems[name] = problem
        if value is None:
            return None
        # Most looks find nothing, and a digest is made only of what there is to compare.
        why = _why_refused(value, build_job_of(study, ledger, of), has_run=has_run or name in ours)
        if why:
            refused[name] = f"{REFUSED}{key} {why}"
            return None
        return value

    summary, final_evaluation, measurements = None, None, {}
    prepare, evaluation_stage = ledger.prepare, ledger.final_evaluation
    name = names.prepare_job(study.name)
    if prepare.state is not StageState.COMPLETED and not is_live(ours.get(name)):
        key = f"{names.DATASET}/{SUMMARY}"
        summary = read(DatasetSummary, name, key, JobKind.PREPARE, has_run=bool(prepare.attempts))
    name = names.final_evaluation_job(study.name)
    if ledger.winner is not None and evaluation_stage.state is not StageState.COMPLETED and not is_live(ours.get(name)):
        key = f"{names.FINAL_EVALUATION}/{FINAL_EVALUATION}"
        final_evaluation = read(
            FinalEvaluation, name, key, JobKind.FINAL_EVALUATION, has_run=bool(evaluation_stage.attempts)
        )
    for trial in list_awaited(study, ledger, ours):
        has_run = any(a.rung == trial.rung for a in trial.attempts)
        has_run |= trial.earlier_attempts is not None and trial.earlier_attempts.rung == trial.rung
        name = names.trial_job(study.name, trial.name, trial.rung)
        key = f"{names.rung_key(trial.name, trial.rung)}/{MEASUREMENT}"
        measurement = read(RungMeasurement, name, key, trial, has_run=has_run)
        if measurement is None:
            continue
        why = _why_no_measurement(study, trial, measurement)
        if why:
            refused[name] = f"{REFUSED}{key} {why}"
        else:
            measurements[trial.index, trial.rung] = measurement
    return Results(
        measurements=measurements,
        summary=summary,
        final_evaluation=final_evaluation,
        problems=problems,
        refused=refused,
    )


def _why_refused(result: RungMeasurement | DatasetSummary | FinalEvaluation, job: JobSpec, *, has_run: bool) -> str:
    """Say why a result is not that of its job. One without a digest, as trainers that know none write it, is taken
    where the job is known to have run."""
    if result.digest == job.digest or (not result.digest and has_run):
        return ""
    if not result.digest:
        return "has no digest, and was there before the job had run"
    return f"is of another arm, data or model: its digest must be {job.digest}, got {result.digest:.32}"


def _why_no_measurement(study: Study, trial: Trial, measurement: RungMeasurement) -> str:
    """Say why a measurement is not that of the rung that a trial is on."""
    if (measurement.trial, measurement.rung) != (trial.name, trial.rung):
        return (
            f"must be of trial {trial.name} and rung {trial.rung}, got {measurement.trial:.20} and {measurement.rung}"
        )
    end = study.stop_step(trial.total_steps, trial.rung)
    return "" if measurement.step == end else f"must be read at step {end}, got {measurement.step}"


def _read_progress(study: Study, ledger: Ledger, artifacts: ArtifactStore) -> tuple[TrialProgress, ...]:
    """Read how far each running trial is; what an earlier run or another arm left behind says nothing of this one."""
    seen = []
    for trial in ledger.runs:
        if trial.state is not TrialState.RUNNING:
            continue
        progress = read_result(Progress, artifacts, names.progress_key(trial.name))
        if progress is not None and is_of_last_attempt(study, ledger, trial, progress):
            seen.append(TrialProgress.of(trial, progress))
    return tuple(seen)


def is_of_last_attempt(
    study: Study, ledger: Ledger, of: Trial | Literal[JobKind.FINAL_EVALUATION], progress: Progress
) -> bool:
    """Say whether a progress was written of this arm or this winner, since the last attempt began."""
    if progress.digest and progress.digest != build_job_of(study, ledger, of).digest:
        return False
    attempts = of.attempts if isinstance(of, Trial) else ledger.final_evaluation.attempts
    started = attempts[-1].started_at if attempts else None
    try:
        return started is None or datetime.fromisoformat(progress.updated_at) >= started
    except (ValueError, TypeError):
        return False


def read_result(cls: type[T], artifacts: ArtifactStore, key: str) -> T | None:
    """Return what a job wrote; None where it wrote nothing, or nothing that can be used."""
    value, problem = _load_result(cls, artifacts, key)
    if problem:
        log.warning("%s/%s", artifacts.uri, problem)
    return value


def _load_result(cls: type[T], artifacts: ArtifactStore, key: str) -> tuple[T | None, str]:
    """Return what a job wrote, and why it cannot be used; whoever can write there may have written anything."""
    try:
        text = artifacts.read(key, MOST_BYTES.get(cls))
        return (None if text is None else from_json(cls, text)), ""
    except ContractError as error:
        return None, f"{key} must be of the trial contract: {error}"
    except ArtifactError as error:
        if error.reason != "ObjectTooLarge":
            raise
        return None, f"{key} must be of the trial contract: {error}"


def _find_end_of_outage(recorded: Recorded, now: datetime) -> datetime | None:
    """Return until when the bucket could not be used, as far as the study's conditions know."""
    ready = recorded.conditions.get(ConditionType.STORAGE_READY)
    if ready is None:
        return None
    if not ready.is_true:
        # What has ended just now counts too.
        return now + timedelta(seconds=1)
    since = read_time(ready.since)
    # Of a time to come nothing follows: a clock was wrong.
    return since if since is not None and since <= now else None


def _find_write_problem(artifacts: ArtifactStore) -> Problem | None:
    """Return why nothing can be written into the bucket."""
    try:
        artifacts.write(names.PROBE, b"")
    except ArtifactError as error:
        return Problem(error.reason, str(error))
    return None


# --- Act --------------------------------------------------------------------------------------------------------


def _say_orphaned(study: Study, ledger: Ledger, jobs: Mapping[str, JobStatus]) -> str:
    """Say which pods run on that ought to stop, and that nobody but a person can stop; empty where there are none."""
    if not any(job.orphans for job in jobs.values()):
        return ""
    wanted = {names.trial_job(study.name, t.name, t.rung) for t in ledger.runs if t.is_busy}
    stages = (
        (names.prepare_job(study.name), ledger.prepare),
        (names.final_evaluation_job(study.name), ledger.final_evaluation),
    )
    wanted |= {name for name, stage in stages if stage.state in (StageState.PENDING, StageState.RUNNING)}
    if study.suspend or ledger.outcome is not None:
        wanted.clear()
    pods = [pod for job in jobs.values() if job.is_foreign or job.name not in wanted for pod in job.orphans]
    if not pods:
        return ""
    command = f"kubectl delete pod -n {study.namespace} {' '.join(sorted(pods)[:MOST_NAMED])}"
    runs = "1 pod runs on without its Job" if len(pods) == 1 else f"{len(pods)} pods run on without their Jobs"
    return f"{runs}, until somebody types: {command}"


def _refusal_as_before(recorded: Recorded) -> Problem | None:
    known = recorded.conditions.get(ConditionType.JOBS_REFUSED)
    return Problem(known.reason, known.message) if known is not None and known.is_true else None


def _find_refusal(
    study: Study,
    recorded: Recorded,
    ledger: Ledger,
    jobs: Mapping[str, JobStatus],
    kept_out: Sequence[JobStatus],
    hands: Hands,
) -> Problem | None:
    """Return by what rule the cluster keeps a job or its pod out, in its words.

    A quota is no such rule: it says that there is no room now.
    """
    before = _refusal_as_before(recorded)
    refusals = [Problem(hands.refusal.reason, str(hands.refusal))] if hands.refusal is not None else []
    refusals += [Problem(job.reason, job.message) for job in kept_out]
    found = next((refusal for refusal in refusals if refusal.reason != WaitReason.QUOTA_EXCEEDED), None)
    if found is not None:
        # The same in other words is no news.
        return before if before is not None and before.reason == found.reason else found
    if before is None or hands.has_more_to_do or study.suspend or ledger.outcome is not None:
        return None
    # A job that nobody tried to launch now is refused for as long as its trial says so.
    waiting = [(names.trial_job(study.name, t.name, t.rung), t.message) for t in ledger.runs if t.is_busy]
    waiting += [(names.prepare_job(study.name), ledger.prepare.message)]
    waiting += [(names.final_evaluation_job(study.name), ledger.final_evaluation.message)]
    still = any(message.startswith(f"{WAITS}{before.reason}") and name not in jobs for name, message in waiting)
    return before if still else None


# --- Record -----------------------------------------------------------------------------------------------------


def _report(
    study: Study,
    recorded: Recorded,
    reporter: Reporter | None,
    now: datetime,
    settings: Settings,
    problem: Problem | None,
) -> tuple[Reported | None, Problem | None]:
    """Report what is recorded, if it is news and the last report is old enough; return what is reported now."""
    last, ledger = recorded.reported, recorded.ledger
    if reporter is None or problem or not recorded.raw:
        return last, problem
    is_due = last is None or ledger.outcome is not None or _report_due(last, settings) <= now
    if not is_due:
        return last, problem
    key = report_key(ledger)
    if last is not None and last.key == key:
        return last, problem
    try:
        reporter(study, ledger, recorded.raw)
    except ProposalPendingError:
        return last, problem
    except ArtifactError as error:
        return last, Problem(error.reason, str(error))
    return Reported(key=key, at=now), problem


def _report_due(last: Reported, settings: Settings) -> datetime:
    return last.at + timedelta(seconds=settings.report_interval_seconds)


def _look_again(storage_ready: Mapping[str, Any], now: datetime) -> datetime | None:
    """Return when to look at a bucket again that cannot be used: soon, and ever more seldom while that lasts."""
    if storage_ready["status"] == "True":
        return None
    passed = (now - datetime.fromisoformat(storage_ready["lastTransitionTime"])).total_seconds()
    return now + timedelta(seconds=min(LONGEST_LOOK_SECONDS, max(FIRST_LOOK_SECONDS, passed)))


def _stalls_at(refused: Mapping[str, Any], settings: Settings) -> datetime | None:
    if refused["status"] != "True":
        return None
    return datetime.fromisoformat(refused["lastTransitionTime"]) + timedelta(seconds=settings.refusal_limit_seconds)


def _find_wake(
    study: Study,
    ledger: Ledger,
    jobs: Mapping[str, JobStatus],
    status: Mapping[str, Any],
    reported: Reported | None,
    is_reporting: bool,
    now: datetime,
    settings: Settings,
) -> datetime | None:
    waits = [retry_at(t, settings) for t in ledger.runs if t.state is TrialState.PENDING]
    waits += [retry_at(s, settings) for s in (ledger.prepare, ledger.final_evaluation) if s.state is StageState.PENDING]
    for job in jobs.values():
        if job.waits_since is not None:
            limits = (settings.waiting_said_after_seconds, settings.stuck_limit_seconds if job.is_stuck else 0)
            waits += [job.waits_since + timedelta(seconds=limit) for limit in limits]
    waits += [_look_again(c, now) for c in status["conditions"] if c["type"] == ConditionType.STORAGE_READY]
    waits += [_stalls_at(c, settings) for c in status["conditions"] if c["type"] == ConditionType.JOBS_REFUSED]
    waits += [expires for _, _, expires in find_settled_jobs(study, ledger, jobs, now)]
    if is_reporting and reported is not None and reported.key != report_key(ledger):
        waits.append(_report_due(reported, settings))
    return min((at for at in waits if at is not None and at > now), default=None)
