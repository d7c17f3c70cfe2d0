"""Ranking within a rung: who continues to full length, and who won.

Called by the planner with the ledger alone. The test set is unknown here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from study_operator.ledger.trial import Continuation, Measurement, Origin, Trial, TrialState
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One trial that continues, and how probable it was that it would."""

    index: int
    continuation: Continuation
    inclusion_probability: float


def choose(study: Study, trials: Sequence[Trial]) -> list[Choice]:
    """Return who continues and does not yet: the baseline, the best, the audited; later the next best for who failed.

    Called again after its choices were made it returns none, until a promoted trial fails or diverges: either leaves no
    model.
    """
    is_first = not any(t.continuation or t.state is TrialState.STOPPED for t in trials)
    choices: list[Choice] = []

    # The baseline takes no slot, and no constraint stops it: everything is compared with it.
    baseline = next((t for t in trials if t.origin is Origin.BASELINE), None)
    if baseline and is_first and _can_continue(baseline):
        choices.append(_certain(baseline, Continuation.BASELINE))

    # The best by the first rung, as many as are lacking.
    others = [t for t in trials if t.origin is not Origin.BASELINE and _can_continue(t)]
    alive = sum(t.continuation is Continuation.PROMOTED and not _is_lost(t) for t in trials)
    lacking = max(0, study.promotion.num_promoted - alive)
    promoted = rank(study, (t for t in others if satisfies_constraints(study, t.measurement(0))), 0)[:lacking]
    choices.extend(_certain(t, Continuation.PROMOTED) for t in promoted)

    # The audited are drawn once, among those that could continue and do not.
    if is_first:
        taken = {t.index for t in promoted}
        rest = [t.index for t in others if t.index not in taken]
        drawn = draw(rest, study.promotion.num_audited, study.seed)
        choices.extend(
            Choice(index=i, continuation=Continuation.AUDITED, inclusion_probability=len(drawn) / len(rest))
            for i in drawn
        )
    return choices


def rank(study: Study, trials: Iterable[Trial], rung: int) -> list[Trial]:
    """Return those measured at a rung, best first; a diverged trial is last, and the elder goes first among equals."""

    def key(measured: tuple[Trial, Measurement]) -> tuple[bool, float, int]:
        trial, measurement = measured
        return (measurement.diverged, -study.objective.merit(measurement.value), trial.index)

    measured = [(trial, m) for trial in trials if (m := trial.measurement(rung)) is not None]
    return [trial for trial, _ in sorted(measured, key=key)]


def choose_winner(study: Study, trials: Iterable[Trial]) -> Trial | None:
    """Return the best of the full-length trials by validation; one that breaks a constraint only where all do."""
    finished = [t for t in rank(study, trials, 1) if t.state is TrialState.COMPLETED and not _diverged(t, 1)]
    keeping = [t for t in finished if satisfies_constraints(study, t.measurement(1))]
    return next(iter(keeping or finished), None)


def satisfies_constraints(study: Study, measurement: Measurement | None) -> bool:
    """Say whether a measurement keeps every outcome constraint of the study."""
    return measurement is not None and all(c.holds(measurement.metrics) for c in study.outcome_constraints)


def draw(indexes: Iterable[int], count: int, seed: int) -> list[int]:
    """Draw without replacement, every subset equally likely over seeds; the same on every version of Python."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"audit/{seed}/{index}".encode()).digest()

    return sorted(sorted(indexes, key=key)[:count])


def _is_lost(trial: Trial) -> bool:
    has_diverged = any(m.rung == 1 and m.diverged for m in trial.measurements)
    return has_diverged or trial.state in (TrialState.FAILED, TrialState.ABANDONED)


def _can_continue(trial: Trial) -> bool:
    is_waiting = trial.state in (TrialState.PAUSED, TrialState.STOPPED) and trial.continuation is None
    return is_waiting and not _diverged(trial, 0)


def _diverged(trial: Trial, rung: int) -> bool:
    measurement = trial.measurement(rung)
    return measurement is None or measurement.diverged


def _certain(trial: Trial, continuation: Continuation) -> Choice:
    return Choice(index=trial.index, continuation=continuation, inclusion_probability=1.0)
