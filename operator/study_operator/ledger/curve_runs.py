"""Which runs a study's data curve is made of: recomputed from spec and ledger each time, the smallest first.

Called by the planner, and by whoever says how far a study is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study_operator.ledger.ranking import find_finished_baseline
from study_operator.ledger.trial import GIVEN_UP, CurveEnd, Ledger, Trial
from study_operator.spec.study import Arm, CurveArm, Study, complete_arm
from trial_trainer.contract import count_total_steps


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """One run on a part of the training data."""

    train_samples: int
    seed: int
    total_steps: int
    without_variants: bool = False


def find_curve_trial(study: Study, ledger: Ledger) -> Trial | None:
    """Return the trial whose arm the data curve is measured with; None while, or where, it has no model."""
    if study.data_curve is None or ledger.winner is None:
        return None
    if study.data_curve.arm is CurveArm.BASELINE:
        return find_finished_baseline(study, ledger.trials)
    return ledger.trials[ledger.winner]


def list_curve_runs(study: Study, ledger: Ledger) -> list[CurveRun]:
    """Return the runs of the data curve in the order in which they begin; none before there is a winner."""
    trial, curve, dataset = find_curve_trial(study, ledger), study.data_curve, ledger.dataset
    if trial is None or curve is None or dataset is None:
        return []
    batch_size = _batch_size(trial.arm)
    return [
        CurveRun(
            train_samples=size,
            seed=study.seed + k,
            total_steps=count_total_steps(size, batch_size, study.trainer.epochs),
            without_variants=without_variants,
        )
        for size in curve.sample_sizes
        if batch_size <= size <= dataset.train_samples
        for k in range(curve.seeds)
        for without_variants in ((True, False) if curve.compare_augmentation else (False,))
    ]


def describe_too_large(study: Study, ledger: Ledger) -> str:
    """Return one sentence on the sizes that the training split does not have; empty where there are none."""
    if study.data_curve is None or ledger.dataset is None:
        return ""
    most = ledger.dataset.train_samples
    sizes = [size for size in study.data_curve.sample_sizes if size > most]
    if not sizes:
        return ""
    return f"spec.dataCurve.sampleSizes must be at most {most}, the number of training samples: {_leave_out(sizes)}"


def describe_too_small(study: Study, ledger: Ledger) -> str:
    """Return one sentence on the sizes that hold no batch of the curve's arm; empty where there are none."""
    trial = find_curve_trial(study, ledger)
    if study.data_curve is None or trial is None:
        return ""
    batch_size = _batch_size(trial.arm)
    sizes = [size for size in study.data_curve.sample_sizes if size < batch_size]
    if not sizes:
        return ""
    rule = f"spec.dataCurve.sampleSizes must be at least {batch_size}, the batch size of trial {trial.name}"
    return f"{rule}: {_leave_out(sizes)}"


def describe_end(study: Study, ledger: Ledger, end: CurveEnd) -> str:
    """Return one or more sentences on what the data curve has and what it lacks."""
    if end is CurveEnd.NO_MODEL:
        return "there is no data curve: the baseline left no model at full length"
    wanted, last = len(list_curve_runs(study, ledger)), study.last_rung
    measured = sum((m := run.measurement(last)) is not None and not m.diverged for run in ledger.curve)
    parts = [f"{measured} of {wanted} runs of the data curve were measured"]
    diverged = sum(run.has_diverged for run in ledger.curve)
    if diverged:
        parts.append(f"{diverged} diverged")
    lost = [run for run in ledger.curve if run.state in GIVEN_UP]
    if lost:
        parts.append(f"{len(lost)} left no measurement, the first being {lost[0].name}: {lost[0].message}")
    if end is CurveEnd.BUDGET_EXHAUSTED:
        parts.append(f"the budget had no room for {wanted - len(ledger.curve)}")
    return "; ".join(filter(None, [*parts, describe_too_small(study, ledger), describe_too_large(study, ledger)]))


def _batch_size(arm: Arm) -> int:
    return int(complete_arm(arm)["batch_size"])


def _leave_out(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes))} {'is' if len(sizes) == 1 else 'are'} left out"
