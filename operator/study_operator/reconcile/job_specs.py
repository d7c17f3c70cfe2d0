"""What each job is told: the study and the ledger as the trial contract's configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from study_operator import names
from study_operator.ledger.confirmation_runs import ConfirmedPair, list_confirmed_pairs
from study_operator.ledger.ranking import find_finished_baseline
from study_operator.ledger.trial import Ledger, Trial, TrialState
from study_operator.reconcile.runner import JobKind, JobSpec
from study_operator.spec.study import Arm, Study, complete_arm, step_at
from trial_trainer.artifacts import join
from trial_trainer.contract import (
    ADAPTER,
    Candidate,
    Confirmation,
    FinalEvaluationConfig,
    PrepareConfig,
    TeacherSettings,
    TrialConfig,
    count_total_steps,
    digest_of,
    to_json,
)


def artifacts_uri(study: Study) -> str:
    """Return the URI of the prefix of the study's artifacts."""
    return names.study_uri(study.storage.uri, study.namespace, study.name, study.uid)


def adapter_uri(study: Study, trial: Trial, rung: int | None = None) -> str:
    """Return where a trial's adapter of a rung lies; of its full length where none is given."""
    rung = study.last_rung if rung is None else rung
    return join(artifacts_uri(study), names.rung_key(trial.name, rung), ADAPTER)


def count_steps(study: Study, arm: Arm, train_samples: int) -> int:
    """Return the optimizer steps of an arm's full length; zero where a batch is larger than the data."""
    return count_total_steps(train_samples, int(complete_arm(arm)["batch_size"]), study.trainer.epochs)


def build_prepare_job(study: Study) -> JobSpec:
    """Build the job that makes the dataset."""
    config = PrepareConfig(
        study=study.name,
        source=study.data.source,
        attributes=study.data.attributes,
        labels_from=study.data.labels_from,
        split=study.data.split,
        seed=study.seed,
        base_model=study.base_model,
        max_length_tokens=study.trainer.max_length_tokens,
        dataset=join(artifacts_uri(study), names.DATASET),
        test_source=study.data.test_source,
        max_pages=study.data.max_pages,
        missing_labels=study.data.missing_labels,
        teacher=_build_teacher_settings(study),
        augment=study.data.augment,
        earlier=tuple(source.uri for source in study.warm_start_from),
    )
    return _spec(names.prepare_job(study.name), JobKind.PREPARE, config)


def _build_teacher_settings(study: Study) -> TeacherSettings | None:
    """Return how the teacher is asked; never its key."""
    teacher = study.data.teacher
    if teacher is None:
        return None
    return TeacherSettings(
        endpoint=teacher.endpoint,
        model=teacher.model,
        kept_answers=names.teacher_answers_uri(study.storage.uri, study.namespace),
        answer_format=teacher.answer_format,
        instructions=teacher.instructions,
        temperature=teacher.temperature,
        max_answer_tokens=teacher.max_answer_tokens,
        max_tokens=teacher.max_tokens,
        when_tokens_run_out=teacher.when_tokens_run_out,
        self_consistency_samples=teacher.self_consistency_samples,
        parallel_requests=teacher.parallel_requests,
        timeout_seconds=teacher.timeout_seconds,
    )


def build_trial_job(study: Study, trial: Trial, fingerprint: str) -> JobSpec:
    """Build the job of the rung that a trial is on.

    Args:
        study: the study.
        trial: its trial.
        fingerprint: of the dataset.
    """
    root = artifacts_uri(study)
    end = study.stop_step(trial.total_steps, trial.rung)
    # Confirmations and runs of the data curve go straight to their end.
    is_straight, is_part = not trial.is_candidate, trial.train_samples is not None
    before = join(root, names.rung_key(trial.name, trial.rung - 1)) if trial.rung > 0 and not is_straight else None
    config = TrialConfig(
        study=study.name,
        trial=trial.name,
        rung=trial.rung,
        seed=study.seed if trial.seed is None else trial.seed,
        arm=complete_arm(trial.arm),
        base_model=study.base_model,
        dataset=join(root, names.DATASET),
        output=join(root, names.rung_key(trial.name, trial.rung)),
        total_steps=trial.total_steps,
        stop_step=end,
        trainer=replace(study.trainer, nodes=study.nodes),
        evaluate_at_steps=() if is_straight else _steps_on_the_way(study, trial, end),
        train_samples=trial.train_samples,
        balanced=is_part and study.data_curve is not None and study.data_curve.balanced,
        is_augmented=not trial.without_variants,
        resume_from=before,
        progress=join(root, names.progress_key(trial.name)),
        dataset_fingerprint=fingerprint,
    )
    job = _spec(names.trial_job(study.name, trial.name, trial.rung), JobKind.TRIAL, config)
    return replace(job, trial=trial.name, rung=trial.rung, processes=study.trainer.processes)


def build_final_evaluation_job(
    study: Study,
    winner: Trial,
    baseline: Trial | None,
    fingerprint: str,
    *,
    confirmed: Sequence[ConfirmedPair] = (),
    curve: Sequence[Trial] = (),
) -> JobSpec:
    """Build the job that reads the test set; a winner that is the baseline is not read twice.

    Args:
        study: the study.
        winner: that validation chose.
        baseline: with its full-length adapter; None where it has none.
        fingerprint: of the dataset.
        confirmed: winner and baseline under further seeds, where both have an adapter.
        curve: the runs of the data curve that have an adapter.
    """

    def candidate(trial: Trial) -> Candidate:
        digest = build_trial_job(study, trial, fingerprint).digest
        return Candidate(trial=trial.name, adapter=adapter_uri(study, trial), digest=digest)

    # A trial has the same digest on every rung.
    early = replace(candidate(winner), adapter=adapter_uri(study, winner, 0))
    has_baseline = baseline is not None and baseline.index != winner.index
    config = FinalEvaluationConfig(
        study=study.name,
        winner=candidate(winner),
        baseline=candidate(baseline) if baseline is not None and has_baseline else None,
        base_model=study.base_model,
        dataset=join(artifacts_uri(study), names.DATASET),
        output=join(artifacts_uri(study), names.FINAL_EVALUATION),
        trainer=study.trainer,
        winner_early=early,
        confirmations=tuple(
            Confirmation(seed=pair.seed, winner=candidate(pair.winner), baseline=candidate(pair.baseline))
            for pair in confirmed
        ),
        curve=tuple(map(candidate, curve)),
        progress=join(artifacts_uri(study), names.FINAL_EVALUATION_PROGRESS),
        dataset_fingerprint=fingerprint,
    )
    return _spec(names.final_evaluation_job(study.name), JobKind.FINAL_EVALUATION, config)


def _spec(name: str, kind: JobKind, config: PrepareConfig | TrialConfig | FinalEvaluationConfig) -> JobSpec:
    """Return a job whose configuration carries its own digest."""
    digest = digest_of(config)
    return JobSpec(name=name, kind=kind, config=to_json(replace(config, digest=digest)), digest=digest)


def build_job_of(study: Study, ledger: Ledger, of: Trial | JobKind) -> JobSpec:
    """Build the job of a trial's present rung, the one that prepares, or the one that evaluates the ledger's winner."""
    fingerprint = ledger.dataset.fingerprint if ledger.dataset is not None else ""
    match of:
        case JobKind.PREPARE:
            return build_prepare_job(study)
        case JobKind.FINAL_EVALUATION:
            winner = ledger.trials[ledger.winner or 0]
            baseline = find_finished_baseline(study, ledger.trials)
            curve = [run for run in ledger.curve if run.state is TrialState.COMPLETED and not run.has_diverged]
            pairs = list_confirmed_pairs(ledger)
            return build_final_evaluation_job(study, winner, baseline, fingerprint, confirmed=pairs, curve=curve)
        case Trial():
            return build_trial_job(study, of, fingerprint)
        case _:
            raise TypeError(f"a trial or a stage must be given, got {of}")


def _steps_on_the_way(study: Study, trial: Trial, end: int) -> tuple[int, ...]:
    begin = study.stop_step(trial.total_steps, trial.rung - 1) if trial.rung > 0 else 0
    steps = {step_at(trial.total_steps, percent) for percent in study.early_evaluation.extra_percents}
    return tuple(sorted(step for step in steps if begin < step < end))
