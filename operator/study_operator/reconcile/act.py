"""Carry out what was planned: launch, promote, delete; what was decided goes into the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar, assert_never

from study_operator import names
from study_operator.errors import LaunchRefusedError
from study_operator.ledger.confirmation_runs import ConfirmationRun
from study_operator.ledger.curve_runs import CurveRun
from study_operator.ledger.status import Recorded
from study_operator.ledger.trial import WAITS, Continuation, Ledger, Origin, SearchEnd, Stage, Trial, TrialState, move
from study_operator.optimizer.designer import Designer, DesignerError, ProposalPendingError
from study_operator.reasons import WaitReason
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
from study_operator.reconcile.job_specs import build_job_of, count_steps
from study_operator.reconcile.runner import JobKind, JobSpec, TrialRunner
from study_operator.settings import Settings
from study_operator.spec.study import Arm, Study
from trial_trainer.artifacts import ArtifactStore
from trial_trainer.contract import CHECKPOINTS, FINAL_EVALUATION, MEASUREMENT, SUMMARY

log = logging.getLogger(__name__)

OfJob = TypeVar("OfJob", Trial, Stage)


def act(
    study: Study,
    actions: Sequence[Action],
    ledger: Ledger,
    recorded: Recorded,
    hands: Hands,
    designer: Designer,
    now: datetime,
    settings: Settings,
) -> tuple[Ledger, list[Action]]:
    """Carry out the actions; return the ledger with what was decided, and what was done."""
    written = _Written(recorded, ledger)
    done: list[Action] = []
    for action in actions:
        match action:
            # Jobs: only for what is recorded as it is; what this tick decides gets its job in the next one.
            case Prepare():
                if not written.prepare():
                    continue
                result = f"{names.DATASET}/{SUMMARY}"
                job = build_job_of(study, ledger, JobKind.PREPARE)
                refusal = hands.launch(job, result, "to prepare the dataset")
                ledger = replace(ledger, prepare=_with_refusal(ledger.prepare, refusal))
            case Launch(index=index):
                trial = ledger.runs[index]
                if not written.trial(index):
                    continue
                result = f"{names.rung_key(trial.name, trial.rung)}/{MEASUREMENT}"
                refusal = hands.launch(build_job_of(study, ledger, trial), result, _say_rung(study, trial))
                ledger = _with_trial(ledger, _with_refusal(trial, refusal))
            case EvaluateWinner():
                winner = ledger.trials[ledger.winner or 0]
                if not written.final_evaluation():
                    continue
                result = f"{names.FINAL_EVALUATION}/{FINAL_EVALUATION}"
                job = build_job_of(study, ledger, JobKind.FINAL_EVALUATION)
                refusal = hands.launch(job, result, f"to evaluate trial {winner.name} on the test set")
                ledger = replace(ledger, final_evaluation=_with_refusal(ledger.final_evaluation, refusal))
            case DeleteJob(name=name, index=None):
                if not (written.prepare() if name == names.prepare_job(study.name) else written.final_evaluation()):
                    continue
                hands.delete(name)
            case DeleteJob(name=name, index=int(index)):
                if not written.trial(index):
                    continue
                hands.delete(name)
            # The bucket: after the recorded end alone, and a bounded part at a time.
            case CleanUp(kept=kept):
                if recorded.ledger.outcome is None:
                    continue
                if hands.clean_up(kept, settings.cleaned_at_once):
                    ledger = replace(ledger, cleaned_at=now)
                    log.info("deleted the checkpoints that nobody needs, of study %s", study.name)
            # The ledger alone: proposed arms, and everything that is decided.
            case Suggest(count=count):
                ledger = _suggest(study, ledger, designer, count)
            case _:
                ledger = _decide(study, ledger, action)
        done.append(action)
    return ledger, done


@dataclass(frozen=True)
class _Written:
    """What of the ledger is recorded as it is: only there a job may be touched."""

    recorded: Recorded
    ledger: Ledger

    def trial(self, index: int) -> bool:
        known = self.recorded.ledger.runs
        return index < len(known) and known[index] is self.ledger.runs[index]

    def prepare(self) -> bool:
        accepted = self.recorded.conditions.get("Accepted")
        is_accepted = accepted is not None and accepted.is_true is True
        return is_accepted and self.recorded.ledger.prepare == self.ledger.prepare

    def final_evaluation(self) -> bool:
        known = self.recorded.ledger
        return (
            known.winner is not None
            and known.winner == self.ledger.winner
            and known.final_evaluation == self.ledger.final_evaluation
        )


def _checkpoints_of(key: str) -> str:
    """Return the prefix of all checkpoints of the rung that an object belongs to; empty where it is none of one."""
    parts = key.split("/")
    return "/".join(parts[:5]) if len(parts) > 5 and parts[4] == CHECKPOINTS else ""


def _with_refusal(of: OfJob, refusal: LaunchRefusedError | None) -> OfJob:
    """Return a trial or stage that says why its job is refused; the same where there is nothing new to say.

    What a server says of one and the same reason changes each time (a figure, a time); each change would be a write.
    """
    if refusal is None or of.message.startswith(f"{WAITS}{refusal.reason}"):
        return of
    return replace(of, message=f"{WAITS}{refusal.reason}: {refusal}")


class Hands:
    """Touches jobs and checkpoints, after it was confirmed once that the tick has read what is written."""

    def __init__(
        self,
        runner: TrialRunner,
        artifacts: ArtifactStore,
        refused: Mapping[str, str],
        confirm: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._artifacts = artifacts
        self._refused = refused
        self._confirm = confirm
        self._is_confirmed = False
        self.has_more_to_do = False
        self.refusal: LaunchRefusedError | None = None
        """The last one."""

    def launch(self, job: JobSpec, result: str, why: str) -> LaunchRefusedError | None:
        """Launch a job, whose result will be at a key; return why it is refused."""
        if self.refusal is not None and self.refusal.reason == WaitReason.QUOTA_EXCEEDED:
            # There is no room for the others either.
            return self.refusal
        self._confirm_once()
        if job.name in self._refused:
            # Trainers take a result that stands for their own.
            self._artifacts.delete(result)
            log.warning("deleted %s/%s: %s", self._artifacts.uri, result, self._refused[job.name])
        try:
            self._runner.launch(job)
        except LaunchRefusedError as error:
            self.refusal = error
            return error
        self.has_more_to_do = True
        log.info("launched job %s %s", job.name, why)
        return None

    def delete(self, name: str) -> None:
        self._confirm_once()
        self._runner.delete(name)

    def clean_up(self, kept: Sequence[tuple[str, int]], most: int) -> bool:
        """Delete checkpoints but for those of some rungs; say whether none are left that should go."""
        self._confirm_once()
        spared = {f"{names.rung_key(trial, rung)}/{CHECKPOINTS}" for trial, rung in kept}
        found = {_checkpoints_of(key) for key in self._artifacts.list(f"{names.TRIALS}/")}
        going = sorted(prefix for prefix in found - spared if prefix)
        for prefix in going[:most]:
            self._artifacts.delete(prefix)
        self.has_more_to_do |= len(going) > most
        return len(going) <= most

    def _confirm_once(self) -> None:
        if not self._is_confirmed:
            self._confirm()
            self._is_confirmed = True


def _say_rung(study: Study, trial: Trial) -> str:
    end = study.stop_step(trial.total_steps, trial.rung)
    return f"for trial {trial.name} (rung {trial.rung}, stop at step {end} of {trial.total_steps})"


def _decide(study: Study, ledger: Ledger, action: Action) -> Ledger:
    """Return the ledger with a decision in it."""
    match action:
        case Attach(arm=arm, origin=origin):
            return _enter(study, ledger, arm, origin, "")
        case EndSearch(end=end, reason=reason):
            return replace(ledger, search_end=end, search_message=reason)
        case Promote(index=index):
            return _with_trial(ledger, _continued(ledger.trials[index], action))
        case Stop(index=index):
            trial = move(ledger.trials[index], TrialState.STOPPED)
            # One that was drawn had its probability, although it diverged.
            probability = None if trial.stratum is None else trial.inclusion_probability
            return _with_trial(ledger, replace(trial, inclusion_probability=probability))
        case ChooseWinner(index=index):
            return replace(ledger, winner=index)
        case AddConfirmation(run=confirmation):
            begun = _begin_confirmation(study, ledger, confirmation)
            return replace(ledger, confirmations=(*ledger.confirmations, begun))
        case EndConfirmations(end=confirmed, reason=reason):
            return replace(ledger, confirmations_end=confirmed, confirmations_message=reason)
        case AddCurveRun(of=of, run=run):
            return replace(ledger, curve=(*ledger.curve, _begin_curve_run(study, ledger, ledger.trials[of].arm, run)))
        case EndCurve(end=end, reason=reason):
            return replace(ledger, curve_end=end, curve_message=reason)
        case Finish(outcome=outcome):
            return replace(ledger, outcome=outcome)
        case Prepare() | Launch() | EvaluateWinner() | DeleteJob() | Suggest() | CleanUp():
            raise TypeError(f"{type(action).__name__} must be carried out, not decided")
        case _:
            assert_never(action)


def _begin_confirmation(study: Study, ledger: Ledger, run: ConfirmationRun) -> Trial:
    """Return winner or baseline under another seed, which goes to its full length at once."""
    of = ledger.trials[run.of]
    return Trial(
        index=len(ledger.runs),
        arm=of.arm,
        origin=Origin.CONFIRMATION,
        rung=study.last_rung,
        total_steps=of.total_steps,
        seed=run.seed,
        repeats=of.index,
    )


def _begin_curve_run(study: Study, ledger: Ledger, arm: Arm, run: CurveRun) -> Trial:
    """Return a run of the data curve, which goes to its full length at once."""
    return Trial(
        index=len(ledger.runs),
        arm=arm,
        origin=Origin.DATA_CURVE,
        rung=study.last_rung,
        total_steps=run.total_steps,
        train_samples=run.train_samples,
        seed=run.seed,
        without_variants=run.without_variants,
    )


def _continued(trial: Trial, promotion: Promote) -> Trial:
    """Return a trial on its way along the next rung."""
    is_drawn = promotion.continuation is Continuation.AUDITED and trial.stratum is None
    return replace(
        move(trial, TrialState.PENDING),
        rung=trial.rung + 1,
        continuation=promotion.continuation,
        inclusion_probability=promotion.inclusion_probability,
        # Of the first rung it goes without saying.
        audited_at=trial.rung or None if is_drawn else trial.audited_at,
    )


def _suggest(study: Study, ledger: Ledger, designer: Designer, count: int) -> Ledger:
    """Enter proposals into the ledger; where there can be none any more, end the search and say why."""
    try:
        suggestions = designer.suggest(study, ledger.trials, count)
        problem = "" if suggestions or any(t.is_busy for t in ledger.trials) else "it proposed nothing"
    except ProposalPendingError as pending:
        return replace(ledger, search_message=str(pending))
    except DesignerError as error:
        suggestions, problem = (), str(error)
    if problem:
        return replace(ledger, search_end=SearchEnd.NO_MORE_PROPOSALS, search_message=problem)
    ledger = replace(ledger, search_message="")
    for suggestion in suggestions[:count]:
        ledger = _enter(study, ledger, suggestion.arm, Origin.SUGGESTED, suggestion.generation_node)
    return ledger


def _enter(study: Study, ledger: Ledger, arm: Arm, origin: Origin, node: str) -> Ledger:
    """Add a trial; one whose batch is larger than the data is known at once not to run."""
    samples = ledger.dataset.train_samples if ledger.dataset is not None else 0
    total = count_steps(study, arm, samples)
    trial = Trial(
        index=len(ledger.trials), arm=dict(arm), origin=origin, generation_node=node, total_steps=max(1, total)
    )
    if total < 1:
        message = f"batch_size must be at most {samples}, the number of training samples, got {arm.get('batch_size')}"
        trial = move(trial, TrialState.ABANDONED, message=message)
    return replace(ledger, trials=(*ledger.trials, trial))


def _with_trial(ledger: Ledger, trial: Trial) -> Ledger:
    runs = ledger.runs
    return ledger.with_runs((*runs[: trial.index], trial, *runs[trial.index + 1 :]))
