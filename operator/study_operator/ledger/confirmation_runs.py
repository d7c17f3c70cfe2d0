"""Which runs confirm a study's winner: its arm and the baseline's under further seeds, in pairs of one seed each.

Recomputed from spec and ledger each time. Called by the planner, for the job of the final evaluation, and by whoever
says how far a study is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from study_operator.ledger.ranking import find_finished_baseline
from study_operator.ledger.trial import GIVEN_UP, ConfirmationsEnd, Ledger, Trial, TrialState
from study_operator.spec.study import Study


@dataclass(frozen=True, kw_only=True)
class ConfirmationRun:
    """One trial's arm under another seed."""

    of: int
    """Index of the trial."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class ConfirmedPair:
    """Winner and baseline under one further seed, both with a model."""

    seed: int
    winner: Trial
    baseline: Trial


def list_confirmation_runs(study: Study, ledger: Ledger) -> list[ConfirmationRun]:
    """Return the confirmations in the order in which they begin, the winner's of a seed before the baseline's.

    None before there is a winner, where that is the baseline, and where the baseline left no model.
    """
    baseline = find_finished_baseline(study, ledger.trials)
    if ledger.winner is None or baseline is None or baseline.index == ledger.winner:
        return []
    return [
        ConfirmationRun(of=of, seed=study.seed + k)
        for k in range(1, study.promotion.confirm_seeds + 1)
        for of in (ledger.winner, baseline.index)
    ]


def list_confirmed_pairs(ledger: Ledger) -> list[ConfirmedPair]:
    """Return the pairs of which both runs have a model."""
    sound = {
        (run.repeats == ledger.winner, run.seed): run
        for run in ledger.confirmations
        if run.state is TrialState.COMPLETED and not run.has_diverged
    }
    return [
        ConfirmedPair(seed=seed, winner=winner, baseline=sound[False, seed])
        for (is_winner, seed), winner in sound.items()
        if is_winner and seed is not None and (False, seed) in sound
    ]


def describe_end(study: Study, ledger: Ledger, end: ConfirmationsEnd) -> str:
    """Return one sentence on what the confirmations have and what they lack."""
    match end:
        case ConfirmationsEnd.NO_MODEL:
            return "there is nothing to confirm: the baseline left no model at full length"
        case ConfirmationsEnd.WINNER_IS_BASELINE:
            return "there is nothing to confirm: the winner is the baseline itself"
        case _:
            return "; ".join(_list_parts(study, ledger, end))


def _list_parts(study: Study, ledger: Ledger, end: ConfirmationsEnd) -> Iterator[str]:
    pairs, asked = len(list_confirmed_pairs(ledger)), study.promotion.confirm_seeds
    yield f"winner and baseline were trained under {pairs} of {asked} further seeds"
    diverged = [run for run in ledger.confirmations if run.has_diverged]
    for of, whose in ((True, "winner"), (False, "baseline")):
        count = sum((run.repeats == ledger.winner) is of for run in diverged)
        if count:
            yield f"{count} of the {whose}'s diverged, so that the gain is that of seeds under which neither does"
    lost = [run for run in ledger.confirmations if run.state in GIVEN_UP]
    if lost:
        yield f"{len(lost)} left no measurement, the first being {lost[0].name}: {lost[0].message}"
    if end is ConfirmationsEnd.BUDGET_EXHAUSTED:
        yield f"the budget had no room for {2 * asked - len(ledger.confirmations)} of {2 * asked} runs"
