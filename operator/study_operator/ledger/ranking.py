"""Ranking within a rung: who continues to the next one, and who won.

Who continues from an early rung is decided once, when all trials on it are measured, so that trials are compared with
others of the same length alone.

Called by the planner with the ledger alone. The test set is unknown here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from study_operator.ledger.merit import find_place
from study_operator.ledger.trial import Continuation, Measurement, Origin, Trial, TrialState
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One trial that continues, and how probable it was that it would."""

    index: int
    continuation: Continuation
    inclusion_probability: float


def find_open_rung(trials: Iterable[Trial]) -> int:
    """Return the furthest rung that a trial is on: who continues from those before it is decided."""
    return max((t.rung for t in trials), default=0)


def choose(study: Study, trials: Sequence[Trial], rung: int) -> list[Choice]:
    """Return who continues from an early rung: the baseline, the best, those audited before, and some newly drawn."""
    able = [t for t in trials if t.rung == rung and t.state is TrialState.PAUSED and not _diverged(t, rung)]
    choices = []
    for trial in able:
        # The baseline takes no slot, and no constraint stops it: everything is compared with it.
        if trial.origin is Origin.BASELINE:
            choices.append(_certain(trial, Continuation.BASELINE))
        # Whoever was drawn runs to full length, so that its probability stays what it was.
        elif trial.stratum is not None:
            probability = trial.inclusion_probability or 1.0
            choices.append(
                Choice(index=trial.index, continuation=Continuation.AUDITED, inclusion_probability=probability)
            )

    # The best.
    others = [t for t in able if t.origin is not Origin.BASELINE and t.stratum is None]
    promoted = _find_best(study, others, rung, study.count_promoted(len(trials))[rung])
    choices.extend(_certain(t, Continuation.PROMOTED) for t in promoted)

    # The audited are drawn once, among those that could continue and do not.
    taken = {t.index for t in promoted}
    rest = [t.index for t in others if t.index not in taken]
    # The first rung's draw is that of studies with one early rung.
    drawn = draw(rest, study.promotion.num_audited, f"{study.seed}" if rung == 0 else f"{study.seed}/{rung}")
    choices.extend(
        Choice(index=i, continuation=Continuation.AUDITED, inclusion_probability=len(drawn) / len(rest)) for i in drawn
    )
    return choices


def choose_replacements(study: Study, trials: Sequence[Trial], rung: int) -> list[Choice]:
    """Return the next best of an early rung whose promotion is decided, for those promoted from it that are lost: they
    left no model, or broke a constraint on the next early rung.

    Called as long as nobody was promoted from the rung after it.
    """
    alive = sum(t.continuation is Continuation.PROMOTED and t.rung > rung and not _is_lost(study, t) for t in trials)
    lacking = study.count_promoted(len(trials))[rung] - alive
    able = [t for t in trials if t.rung == rung and t.state is TrialState.STOPPED and not _diverged(t, rung)]
    others = [t for t in able if t.origin is not Origin.BASELINE]
    return [_certain(t, Continuation.PROMOTED) for t in _find_best(study, others, rung, max(0, lacking))]


def _find_best(study: Study, trials: Iterable[Trial], rung: int, count: int) -> list[Trial]:
    return rank(study, (t for t in trials if satisfies_constraints(study, t.measurement(rung))), rung)[:count]


def rank(study: Study, trials: Iterable[Trial], rung: int) -> list[Trial]:
    """Return those measured at a rung, best first; a diverged trial is last, and the elder goes first among equals."""
    measured = [(find_place(study, m), trial.index, trial) for trial in trials if (m := trial.measurement(rung))]
    return [trial for _, _, trial in sorted(measured, key=lambda placed: placed[:2])]


def choose_winner(study: Study, trials: Iterable[Trial]) -> Trial | None:
    """Return the best of the full-length trials by validation; one that breaks a constraint only where all do."""
    last = study.last_rung
    finished = [t for t in rank(study, trials, last) if t.state is TrialState.COMPLETED and not _diverged(t, last)]
    keeping = [t for t in finished if satisfies_constraints(study, t.measurement(last))]
    return next(iter(keeping or finished), None)


def find_finished_baseline(study: Study, trials: Iterable[Trial]) -> Trial | None:
    """Return the baseline if it has a full-length adapter."""
    for trial in trials:
        is_finished = trial.origin is Origin.BASELINE and trial.state is TrialState.COMPLETED
        if is_finished and not _diverged(trial, study.last_rung):
            return trial
    return None


def satisfies_constraints(study: Study, measurement: Measurement | None) -> bool:
    """Say whether a measurement keeps every outcome constraint of the study."""
    return measurement is not None and all(c.holds(measurement.metrics) for c in study.outcome_constraints)


def draw(indexes: Iterable[int], count: int, seed: int | str) -> list[int]:
    """Draw without replacement, every subset equally likely over seeds; the same on every version of Python."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"audit/{seed}/{index}".encode()).digest()

    return sorted(sorted(indexes, key=key)[:count])


def _is_lost(study: Study, trial: Trial) -> bool:
    """Say whether a trial cannot be promoted any further, or leaves no model."""
    measurement = trial.measurement(trial.rung) if trial.rung < study.last_rung else None
    breaks = measurement is not None and not satisfies_constraints(study, measurement)
    return breaks or trial.has_diverged or trial.state in (TrialState.FAILED, TrialState.ABANDONED)


def _diverged(trial: Trial, rung: int) -> bool:
    measurement = trial.measurement(rung)
    return measurement is None or measurement.diverged


def _certain(trial: Trial, continuation: Continuation) -> Choice:
    return Choice(index=trial.index, continuation=continuation, inclusion_probability=1.0)
