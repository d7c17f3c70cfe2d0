"""Old attempts made into sums, so that a ledger has its bound. Called by settle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from study_operator.ledger.trial import (
    Attempt,
    EarlierAttempts,
    Folded,
    Ledger,
    Stage,
    StageState,
    Trial,
    count_attempts_against,
)
from study_operator.ledger.usage import seconds_of, union_seconds

ATTEMPTS_KEPT = 200
"""Of all trials together. An attempt takes 200 bytes of an object that must stay below a megabyte, and a study that is
preempted every hour for a weekend, or suspended every night, makes thousands."""

STAGE_ATTEMPTS_KEPT = 20
"""Of prepare and of final evaluation, each."""


def fold_attempts(ledger: Ledger, most: int = ATTEMPTS_KEPT, most_of_stage: int = STAGE_ATTEMPTS_KEPT) -> Ledger:
    """Return the ledger with its oldest ended attempts folded into sums, as many as it has too many.

    No usage changes by it, and no count. What runs stays, and so does the last attempt of a rung that is not over: the
    wait for the next one begins with its end.
    """
    prepare, final_evaluation = (
        _fold_stage(stage, most_of_stage) for stage in (ledger.prepare, ledger.final_evaluation)
    )
    if prepare is not ledger.prepare or final_evaluation is not ledger.final_evaluation:
        ledger = replace(ledger, prepare=prepare, final_evaluation=final_evaluation)
    runs = ledger.runs
    excess = sum(len(t.attempts) for t in runs) - most
    if excess <= 0:
        return ledger
    ended = [(end, t.index, i) for t in runs for i, end in _foldable(t.attempts, t.rung if t.is_busy else -1)]
    oldest = sorted(ended)[:excess]
    if not oldest:
        return ledger
    chosen = defaultdict[int, set[int]](set)
    for _, index, i in oldest:
        chosen[index].add(i)
    until, before = oldest[-1][0], ledger.folded
    active = union_seconds(
        (_cut(a, until) for t in runs for a in t.attempts if a.started_at < until),
        None,
        before.until if before is not None else None,
    )
    return replace(
        ledger.with_runs(tuple(_fold(t, chosen[t.index]) if t.index in chosen else t for t in runs)),
        folded=Folded(
            until=max(until, before.until) if before is not None else until,
            active_seconds=active + (before.active_seconds if before is not None else 0.0),
        ),
    )


def _foldable(attempts: Sequence[Attempt], rung: int) -> list[tuple[int, datetime]]:
    """Return position and end of the attempts that may go; of the rung, the last one stays."""
    last = max((i for i, a in enumerate(attempts) if a.rung == rung), default=-1)
    return [(i, a.finished_at) for i, a in enumerate(attempts) if a.finished_at is not None and i != last]


def _fold_stage(stage: Stage, most: int) -> Stage:
    is_over = stage.state in (StageState.COMPLETED, StageState.FAILED)
    excess = len(stage.attempts) - most
    if excess <= 0:
        return stage
    return _fold(stage, {i for i, _ in _foldable(stage.attempts, -1 if is_over else 0)[:excess]})


OfAttempts = TypeVar("OfAttempts", Trial, Stage)


def _fold(of: OfAttempts, positions: set[int]) -> OfAttempts:
    """Move attempts, given by their positions, into the sums."""
    going = [a for i, a in enumerate(of.attempts) if i in positions]
    if not going:
        return of
    before = of.earlier_attempts
    rung = max(a.rung for a in going)
    if before is not None:
        rung = max(rung, before.rung)
    faults, interruptions = count_attempts_against(going, rung, before)
    earlier = EarlierAttempts(
        attempts=len(going) + (before.attempts if before is not None else 0),
        seconds=sum(seconds_of(a, None) for a in going) + (before.seconds if before is not None else 0.0),
        first_rung_seconds=sum(seconds_of(a, None) for a in going if a.rung == 0)
        + (before.first_rung_seconds if before is not None else 0.0),
        rung=rung,
        faults=faults,
        interruptions=interruptions,
    )
    return replace(
        of, attempts=tuple(a for i, a in enumerate(of.attempts) if i not in positions), earlier_attempts=earlier
    )


def _cut(attempt: Attempt, until: datetime) -> Attempt:
    """Return the part of an attempt that lies before a time."""
    end = attempt.finished_at
    return attempt if end is not None and end <= until else replace(attempt, finished_at=until)
