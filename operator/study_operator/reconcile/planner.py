"""What to do next, as the values of `actions.py`. Imports nothing that can act.

`plan` is called by `reconcile.tick` with the settled ledger; the same arguments always give the same actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from study_operator import names
from study_operator.ledger import confirmation_runs
from study_operator.ledger.confirmation_runs import list_confirmation_runs
from study_operator.ledger.curve_runs import describe_end, find_curve_trial, list_curve_runs
from study_operator.ledger.ranking import (
    Choice,
    choose,
    choose_replacements,
    choose_winner,
    find_finished_baseline,
    find_open_rung,
    rank,
)
from study_operator.ledger.trial import (
    GIVEN_UP,
    WAITS,
    ConfirmationsEnd,
    Continuation,
    CurveEnd,
    Ledger,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
    retry_at,
)
from study_operator.ledger.usage import count_affordable, is_budget_exhausted
from study_operator.reasons import EndReason, FailureReason, Problem, StudyStage, WaitReason
from study_operator.reconcile.actions import (
    Action,
    AddConfirmation,
    AddCurveRun,
    Attach,
    ChooseWinner,
    CleanUp,
    DeleteJob,
    EndConfirmations,
    EndCurve,
    EndSearch,
    EvaluateWinner,
    Finish,
    Launch,
    Prepare,
    Promote,
    Stop,
    Suggest,
)
from study_operator.reconcile.runner import JobKind, JobPhase, JobStatus
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.study import Study

NOTHING_TRAINS_AFTER = 5
"""Abandoned arms beside the baseline after which a study is given up."""


def plan(
    study: Study,
    ledger: Ledger,
    jobs: Mapping[str, JobStatus],
    now: datetime,
    settings: Settings = DEFAULTS,
) -> list[Action]:
    """Decide what to do next. The same arguments always give the same actions."""
    trials = sorted(ledger.trials, key=lambda t: t.index)
    is_halted = study.suspend or ledger.outcome is not None
    deletions = _plan_deletions(study, ledger, jobs, now, settings, is_halted=is_halted)
    if ledger.outcome is not None:
        return deletions + _plan_afterwards(study, ledger, trials, jobs)
    if is_halted:
        return deletions
    failure = _find_failure(study, ledger, trials)
    if failure is not None:
        return [*deletions, _fail(failure)]

    # Before a GPU is touched: the data.
    if ledger.prepare.state is not StageState.COMPLETED:
        name = names.prepare_job(study.name)
        if _is_launchable(ledger.prepare, jobs.get(name), now, settings):
            return [*deletions, Prepare(reason="the dataset is not prepared")]
        return deletions

    # What the ledger already promises.
    actions = [*deletions, *_plan_launches(study, ledger.runs, jobs, now, settings)]
    busy = sum(t.is_busy for t in trials)

    # First rung: fill free slots until every trial has been proposed, then wait for all of them.
    rung = find_open_rung(trials)
    if rung == 0:
        end = _find_search_end(study, ledger, now)
        if end is None:
            return actions + _plan_proposals(study, trials, free=study.parallel_trials - busy)
        if busy:
            return actions
        return actions + _plan_promotion(study, ledger, trials, rung, end)

    # Each later rung: the next best replaces a promoted trial that failed; then wait for all of them.
    replacements = [
        _promote(choice, "the next best: a promoted trial left no model")
        for choice in choose_replacements(study, trials, rung - 1)
    ]
    if replacements or busy:
        return actions + replacements
    if rung < study.last_rung:
        return actions + _plan_promotion(study, ledger, trials, rung, ledger.search_end)
    return actions + _plan_end(study, ledger, trials, jobs, now, settings)


def _plan_afterwards(
    study: Study, ledger: Ledger, trials: Sequence[Trial], jobs: Mapping[str, JobStatus]
) -> list[Action]:
    """Tidy up once after the end."""
    if ledger.cleaned_at is not None or any(job.phase is not JobPhase.FINISHED for job in jobs.values()):
        return []
    return [CleanUp(kept=_find_kept(study, trials), reason="the study has ended")]


def _find_kept(study: Study, trials: Sequence[Trial]) -> tuple[tuple[str, int], ...]:
    """Return the checkpoints that stay: of full-length trials, or else the best of the furthest rung."""
    full = [t for t in trials if t.state is TrialState.COMPLETED and not t.measurements[-1].diverged]
    if full:
        return tuple((t.name, study.last_rung) for t in full)
    for rung in reversed(range(study.last_rung)):
        for best in rank(study, trials, rung)[:1]:
            return ((best.name, rung),)
    return ()


def _find_failure(study: Study, ledger: Ledger, trials: Sequence[Trial]) -> Problem | None:
    """Return why the study cannot go on."""
    for stage, reason in (
        (ledger.prepare, FailureReason.PREPARE_FAILED),
        (ledger.final_evaluation, FailureReason.FINAL_EVALUATION_FAILED),
    ):
        if stage.state is StageState.FAILED:
            return Problem(reason, stage.message)
    for trial in trials:
        if any(a.reason == EndReason.STUDY_CANNOT_RUN for a in trial.attempts):
            return Problem(FailureReason.STUDY_CANNOT_RUN, f"trial {trial.name}: {trial.message}")
    failed = [t for t in trials if t.state is TrialState.FAILED]
    if len(failed) > study.max_failed_trials:
        last = failed[-1]
        limit = f"{len(failed)} trials failed, and spec.maxFailedTrials is {study.max_failed_trials}"
        return Problem(FailureReason.TOO_MANY_FAILED_TRIALS, f"{limit}; trial {last.name}: {last.message}")
    first = trials[: NOTHING_TRAINS_AFTER + (study.baseline is not None)]
    expected = min(study.num_trials, NOTHING_TRAINS_AFTER + (study.baseline is not None))
    if len(first) >= expected and all(t.state is TrialState.ABANDONED for t in first):
        message = f"the first {len(first)} arms cannot run; trial {first[0].name}: {first[0].message}"
        return Problem(FailureReason.NOTHING_TRAINS, message)
    return None


def _fail(problem: Problem) -> Finish:
    return Finish(outcome=Outcome(failed=True, reason=problem.reason, message=problem.message), reason=problem.message)


def _plan_deletions(
    study: Study,
    ledger: Ledger,
    jobs: Mapping[str, JobStatus],
    now: datetime,
    settings: Settings,
    *,
    is_halted: bool,
) -> list[Action]:
    """Delete jobs that must stop, that stand in the way of the next attempt, or whose result is in the ledger."""
    runs = ledger.runs
    actions = _plan_deletions_of_foreign(study, runs, jobs)
    stages: list[tuple[str, Stage]] = [(names.prepare_job(study.name), ledger.prepare)]
    stages.append((names.final_evaluation_job(study.name), ledger.final_evaluation))
    for name, stage in stages:
        if name not in jobs or jobs[name].is_foreign:
            continue
        reason = ""
        if stage.state in (StageState.PENDING, StageState.RUNNING):
            reason = _why_delete(stage, 0, jobs[name], now, settings, is_halted=is_halted)
        elif stage.state is StageState.FAILED and jobs[name].phase is not JobPhase.FINISHED:
            reason = "it is given up"
        if reason:
            actions.append(DeleteJob(name=name, index=None, reason=reason))
    for trial in runs:
        name = names.trial_job(study.name, trial.name, trial.rung)
        if name not in jobs or jobs[name].is_foreign:
            continue
        reason = ""
        if trial.is_busy:
            reason = _why_delete(trial, trial.rung, jobs[name], now, settings, is_halted=is_halted)
        elif trial.state in GIVEN_UP and jobs[name].phase is not JobPhase.FINISHED:
            reason = "its trial is given up"
        if reason:
            actions.append(DeleteJob(name=name, index=trial.index, reason=reason))
    # A namespace may have a quota on Jobs: where there is no room for the next one, none is kept any longer.
    messages = [ledger.prepare.message, ledger.final_evaluation.message, *(t.message for t in runs)]
    is_room_wanted = any(message.startswith(f"{WAITS}{WaitReason.QUOTA_EXCEEDED}") for message in messages)
    return actions + [
        DeleteJob(name=name, index=index, reason="its result is in the ledger")
        for name, index, expires in find_settled_jobs(study, ledger, jobs, now)
        if is_room_wanted or expires <= now
    ]


def find_settled_jobs(
    study: Study, ledger: Ledger, jobs: Mapping[str, JobStatus], now: datetime
) -> Iterator[tuple[str, int | None, datetime]]:
    """Yield each job that ended and has told all that it had to tell, the trial that it is of, and when it may go."""
    if all(job.phase is not JobPhase.FINISHED for job in jobs.values()):
        return
    kept = timedelta(seconds=study.ttl_seconds_after_finished or 0)
    settled: list[tuple[str, int | None, Trial | Stage]] = []
    stages = (
        (names.prepare_job(study.name), ledger.prepare),
        (names.final_evaluation_job(study.name), ledger.final_evaluation),
    )
    settled += [
        (name, None, stage) for name, stage in stages if stage.state in (StageState.COMPLETED, StageState.FAILED)
    ]
    for trial in ledger.runs:
        rungs = trial.rung if trial.is_busy else trial.rung + 1
        settled += [(names.trial_job(study.name, trial.name, rung), trial.index, trial) for rung in range(rungs)]
    for name, index, of in settled:
        job = jobs.get(name)
        if job is not None and job.phase is JobPhase.FINISHED:
            # The ledger's times are by a clock that is trusted.
            attempt = next((a for a in reversed(of.attempts) if a.id == job.attempt), None)
            ended = attempt.finished_at if attempt is not None else job.finished_at
            yield name, index, min(now, ended or now) + kept


def _plan_deletions_of_foreign(study: Study, trials: Sequence[Trial], jobs: Mapping[str, JobStatus]) -> list[Action]:
    """Delete the jobs of other arms that have names of this study's."""
    rungs = range(study.last_rung + 1)
    index_by_name = {names.trial_job(study.name, t.name, rung): t.index for t in trials for rung in rungs}
    return [
        DeleteJob(name=job.name, index=index_by_name.get(job.name), reason="it is of another arm, data or model")
        for job in jobs.values()
        if job.is_foreign
    ]


def _why_delete(
    of: Trial | Stage, rung: int, job: JobStatus, now: datetime, settings: Settings, *, is_halted: bool
) -> str:
    attempt = next((a for a in reversed(of.attempts) if a.rung == rung and a.id == job.attempt), None)
    if job.phase is JobPhase.FINISHED:
        is_recorded = attempt is not None and not attempt.is_open
        is_due = is_recorded and not is_halted and _is_due(of, now, settings)
        return "it ended and makes way for the next attempt" if is_due else ""
    if attempt is None:
        return "it must not start" if is_halted and job.phase is JobPhase.PENDING else ""
    if not attempt.is_open:
        return "its attempt is given up"
    return "it must stop" if attempt.reason == EndReason.ASKED_TO_STOP else ""


def _plan_launches(
    study: Study, runs: Sequence[Trial], jobs: Mapping[str, JobStatus], now: datetime, settings: Settings
) -> list[Action]:
    """Launch what waits, as far as there is room: what has begun first, then in order of rank or index."""
    busy = [(t, names.trial_job(study.name, t.name, t.rung)) for t in runs if t.is_busy]
    # Every live job holds a slot, whatever a ledger that may be stale says of its trial. One that ended keeps its
    # trial's slot until it is deleted; one that is gone gives it up.
    occupied = {job.name for job in jobs.values() if job.kind is JobKind.TRIAL and job.phase is not JobPhase.FINISHED}
    occupied |= {name for t, name in busy if t.state is TrialState.RUNNING or name in jobs}
    free = study.parallel_trials - len(occupied)
    if free <= 0:
        return []
    waiting = [
        t for t, name in busy if t.state is TrialState.PENDING and _is_launchable(t, jobs.get(name), now, settings)
    ]
    ranks = {t.index: position for position, t in enumerate(rank(study, waiting, find_open_rung(runs) - 1))}
    waiting.sort(key=lambda t: (not any(a.rung == t.rung for a in t.attempts), ranks.get(t.index, -1), t.index))
    return [Launch(index=t.index, rung=t.rung, reason=_why_launch(t)) for t in waiting[:free]]


def _why_launch(trial: Trial) -> str:
    if any(a.rung == trial.rung for a in trial.attempts):
        return "its last attempt ended early"
    return f"it continues: {trial.continuation}" if trial.continuation else "it is new"


def _is_launchable(of: Trial | Stage, job: JobStatus | None, now: datetime, settings: Settings) -> bool:
    return job is None and _is_due(of, now, settings)


def _is_due(of: Trial | Stage, now: datetime, settings: Settings) -> bool:
    due = retry_at(of, settings)
    return due is None or due <= now


def _find_search_end(study: Study, ledger: Ledger, now: datetime) -> SearchEnd | None:
    if ledger.search_end is not None:
        return ledger.search_end
    if len(ledger.trials) >= study.num_trials:
        return SearchEnd.ALL_TRIALS_MEASURED
    return SearchEnd.BUDGET_EXHAUSTED if is_budget_exhausted(study, ledger, now) else None


def _plan_proposals(study: Study, trials: Sequence[Trial], *, free: int) -> list[Action]:
    count = min(free, study.num_trials - len(trials))
    if count <= 0:
        return []
    given = [*([(study.baseline, Origin.BASELINE)] if study.baseline is not None else [])]
    given += [(arm, Origin.STARTING_ARM) for arm in study.starting_arms]
    if all(t.origin is not Origin.SUGGESTED for t in trials):
        given += [(typical.arm, Origin.TYPICAL_ARM) for typical in study.typical_arms]
    attached: list[Action] = [
        Attach(arm=arm, origin=origin, reason=_SAY_ORIGIN[origin])
        for arm, origin in given[len(trials) : len(trials) + count]
    ]
    if len(attached) < count:
        attached.append(Suggest(count=count - len(attached), reason="there is room"))
    return attached


def _plan_promotion(
    study: Study, ledger: Ledger, trials: Sequence[Trial], rung: int, end: SearchEnd | None
) -> list[Action]:
    choices = choose(study, trials, rung)
    if not choices:
        counts = {s: sum(t.state is s for t in trials) for s in (TrialState.ABANDONED, TrialState.FAILED)}
        diverged = sum(t.has_diverged for t in trials)
        message = (
            f"none of {len(trials)} trials can continue: {diverged} diverged, "
            f"{counts[TrialState.ABANDONED]} cannot run, {counts[TrialState.FAILED]} failed"
        )
        return [_fail(Problem(FailureReason.NOTHING_TRAINS, f"{message}. {ledger.search_message}".strip()))]
    chosen = {c.index for c in choices}
    stopped = [t for t in trials if t.state is TrialState.PAUSED and t.index not in chosen]
    return [
        *([EndSearch(end=end, reason=_SAY_END[end])] if end is not None and ledger.search_end is None else []),
        *(_promote(c, f"{_SAY_CONTINUATION[c.continuation]} rung {rung}") for c in choices),
        *(Stop(index=t.index, reason=f"others were better on rung {rung}") for t in stopped),
    ]


def _promote(choice: Choice, reason: str) -> Promote:
    return Promote(
        index=choice.index,
        continuation=choice.continuation,
        inclusion_probability=choice.inclusion_probability,
        reason=reason,
    )


_SAY_ORIGIN = {
    Origin.BASELINE: "the manifest gives it",
    Origin.STARTING_ARM: "the manifest gives it",
    Origin.TYPICAL_ARM: "it is known to be good for LoRA",
}
_SAY_END = {
    SearchEnd.ALL_TRIALS_MEASURED: "every trial has been tried",
    SearchEnd.BUDGET_EXHAUSTED: "what is spent and the reserve for promotions reach the budget",
    SearchEnd.NO_MORE_PROPOSALS: "the optimizer has nothing more to propose",
}
_SAY_CONTINUATION = {
    Continuation.PROMOTED: "among the best on",
    Continuation.BASELINE: "the baseline always continues from",
    Continuation.AUDITED: "drawn as an audit of",
}


def _plan_confirmations(study: Study, ledger: Ledger, now: datetime) -> list[Action]:
    """Begin winner and baseline under further seeds in free slots, a pair only where the budget has room for both."""
    baseline = find_finished_baseline(study, ledger.trials)
    if baseline is None:
        return [_end_confirmations(study, ledger, ConfirmationsEnd.NO_MODEL)]
    if baseline.index == ledger.winner:
        return [_end_confirmations(study, ledger, ConfirmationsEnd.WINNER_IS_BASELINE)]
    missing = list_confirmation_runs(study, ledger)[len(ledger.confirmations) :]
    busy = sum(run.is_busy for run in ledger.confirmations)
    wanted = [(of := ledger.trials[run.of], of.total_steps) for run in missing]
    affordable = count_affordable(study, ledger, lambda run: ledger.trials[run.repeats or 0], wanted, now)
    if affordable and missing[affordable - 1].of == ledger.winner:
        # The baseline of the same seed comes next, and has no room.
        affordable -= 1
    if missing and missing[0].of != ledger.winner:
        # Its pair has begun, and was reckoned with.
        affordable = max(affordable, 1)
    if missing and affordable:
        begun = missing[: min(max(0, study.parallel_trials - busy), affordable)]
        return [
            AddConfirmation(run=run, reason=f"trial t{run.of:03d} is trained under seed {run.seed}") for run in begun
        ]
    if busy:
        return []
    end = ConfirmationsEnd.BUDGET_EXHAUSTED if missing else ConfirmationsEnd.ALL_RUNS_ENDED
    return [_end_confirmations(study, ledger, end)]


def _end_confirmations(study: Study, ledger: Ledger, end: ConfirmationsEnd) -> EndConfirmations:
    return EndConfirmations(end=end, reason=confirmation_runs.describe_end(study, ledger, end))


def _plan_curve(study: Study, ledger: Ledger, now: datetime) -> list[Action]:
    """Begin runs of the data curve in free slots, the smallest first, as long as the budget has room for them."""
    trial = find_curve_trial(study, ledger)
    if trial is None:
        return [_end_curve(study, ledger, CurveEnd.NO_MODEL)]
    missing = list_curve_runs(study, ledger)[len(ledger.curve) :]
    busy = sum(run.is_busy for run in ledger.curve)
    wanted = [(trial, run.total_steps) for run in missing]
    affordable = count_affordable(study, ledger, lambda _: trial, wanted, now)
    if affordable and missing[affordable - 1].without_variants:
        # Its pair comes next, and has no room: alone it says nothing of what variants gain.
        affordable -= 1
    if missing and affordable:
        begun = missing[: min(max(0, study.parallel_trials - busy), affordable)]
        reason = f"the data curve is measured with the arm of trial {trial.name}"
        return [AddCurveRun(of=trial.index, run=run, reason=reason) for run in begun]
    if busy:
        return []
    return [_end_curve(study, ledger, CurveEnd.BUDGET_EXHAUSTED if missing else CurveEnd.ALL_RUNS_ENDED)]


def _end_curve(study: Study, ledger: Ledger, end: CurveEnd) -> EndCurve:
    return EndCurve(end=end, reason=describe_end(study, ledger, end))


def _plan_end(
    study: Study,
    ledger: Ledger,
    trials: Sequence[Trial],
    jobs: Mapping[str, JobStatus],
    now: datetime,
    settings: Settings,
) -> list[Action]:
    """Fix the winner, train it and the baseline under further seeds, measure the data curve, read the test set, end."""
    if ledger.winner is None:
        winner = choose_winner(study, trials)
        if winner is None:
            return [_fail(Problem(FailureReason.NO_WINNER, "no trial reached its full length with a usable model"))]
        return [ChooseWinner(index=winner.index, reason="the best validation measurement at full length")]
    if study.promotion.confirm_seeds and ledger.confirmations_end is None:
        return _plan_confirmations(study, ledger, now)
    if study.data_curve is not None and ledger.curve_end is None:
        return _plan_curve(study, ledger, now)
    has_test = ledger.dataset is not None and ledger.dataset.test_samples > 0
    if has_test and ledger.final_evaluation.state is not StageState.COMPLETED:
        name = names.final_evaluation_job(study.name)
        if _is_launchable(ledger.final_evaluation, jobs.get(name), now, settings):
            return [EvaluateWinner(reason="the winner is chosen")]
        return []
    is_short = (
        ledger.search_end is SearchEnd.BUDGET_EXHAUSTED
        or ledger.confirmations_end is ConfirmationsEnd.BUDGET_EXHAUSTED
        or ledger.curve_end is CurveEnd.BUDGET_EXHAUSTED
    )
    message = f"trial t{ledger.winner:03d} is the winner of {len(trials)} trials"
    if ledger.search_end is not SearchEnd.ALL_TRIALS_MEASURED and ledger.search_end is not None:
        message += f"; {_SAY_END[ledger.search_end]}"
    if ledger.confirmations_message:
        message += f"; {ledger.confirmations_message}"
    if ledger.curve_message:
        message += f"; {ledger.curve_message}"
    outcome = Outcome(
        failed=False, reason=StudyStage.BUDGET_EXHAUSTED if is_short else StudyStage.COMPLETED, message=message
    )
    return [Finish(outcome=outcome, reason=message)]
