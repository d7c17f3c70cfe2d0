"""The ledger as plain JSON values, and back.

It makes the round trip exactly: fractional numbers and parameter values are strings, as `repr` writes them, and only
texts for people are cut, at lengths that keep the largest study's object small. The dataclasses of the ledger are the
format: what they say is what `trial_trainer.codec` reads and writes.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from study_operator.errors import StatusUnreadableError
from study_operator.ledger.conditions import render_time
from study_operator.ledger.texts import Message
from study_operator.ledger.trial import (
    ConfirmationsEnd,
    CurveEnd,
    DatasetCounts,
    Folded,
    GainOnTest,
    Ledger,
    Outcome,
    SearchEnd,
    Stage,
    Trial,
    WinnerChange,
)
from trial_trainer.codec import Codec, Problem, has_wrong, to_camel_case
from trial_trainer.contract import ParameterValue

Raw = Mapping[str, Any]


def _parse_number(raw: Any, problems: list[Problem]) -> float | None:
    try:
        number = float(raw) if isinstance(raw, str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        problems.append(Problem("must be a finite number in quotes", raw))
    return number


def _parse_time(raw: Any, problems: list[Problem]) -> datetime | None:
    try:
        time = datetime.fromisoformat(raw) if isinstance(raw, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        problems.append(Problem("must be a time with its zone", raw))
    return time


def _parse_value(raw: Any, problems: list[Problem]) -> ParameterValue | None:
    value = _read_value(raw) if isinstance(raw, str) else None
    if value is None:
        problems.append(Problem("must be a parameter's value as Python writes it", raw))
    return value


@functools.lru_cache(maxsize=10_000)
def _read_value(text: str) -> ParameterValue | None:
    """Read a parameter's value, which the arms of a study share, as `repr` wrote it; None where it did not."""
    try:
        if text[:1] in ("'", '"'):
            value: Any = ast.literal_eval(text)
        else:
            value = int(text) if text.lstrip("-").isdecimal() else float(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    is_value = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return cast(ParameterValue, value) if is_value and repr(value) == text else None


STATUS = Codec(
    key=to_camel_case,
    scalars={
        float: (_parse_number, repr),
        datetime: (_parse_time, render_time),
        ParameterValue: (_parse_value, repr),
    },
    # An API server leaves nulls out.
    null_is_absent=True,
)

T = TypeVar("T")


def parse(kind: type[T], raw: Any, name: str = "status") -> T:
    """Parse a part of the status; fields of a newer version are passed over.

    Raises:
        StatusUnreadableError: with everything that is not as `STATUS` writes it.
    """
    value, problems = STATUS.parse(kind, raw, name)
    if has_wrong(problems):
        wrong = "; ".join(str(problem) for problem in problems if not problem.is_unknown_field)
        raise StatusUnreadableError(f"the study's status must be one that this operator wrote: {wrong}")
    return value


@dataclass(frozen=True, kw_only=True)
class _Search:
    end: SearchEnd
    message: Message


@dataclass(frozen=True, kw_only=True)
class _ConfirmationsEnd:
    end: ConfirmationsEnd
    message: Message


@dataclass(frozen=True, kw_only=True)
class _CurveEnd:
    end: CurveEnd
    message: Message


@dataclass(frozen=True, kw_only=True)
class StoredLedger:
    """The ledger's part of the status. Of a search that goes on, the message is kept in its condition alone."""

    trials: tuple[Trial, ...]
    folded_attempts: Folded | None
    prepare: Stage
    dataset: DatasetCounts | None
    search: _Search | None
    winner: int | None
    final_evaluation: Stage
    test_gain: GainOnTest | None
    winner_change: WinnerChange | None
    outcome: Outcome | None
    cleaned_at: datetime | None
    confirmations: tuple[Trial, ...] = ()
    confirmations_end: _ConfirmationsEnd | None
    data_curve: tuple[Trial, ...] = ()
    data_curve_end: _CurveEnd | None


def render_ledger(ledger: Ledger) -> dict[str, Any]:
    """Render all of the ledger but its runs; every key is there, with null for what is not known."""
    search = _Search(end=ledger.search_end, message=ledger.search_message) if ledger.search_end else None
    stored = StoredLedger(
        trials=(),
        folded_attempts=ledger.folded,
        prepare=ledger.prepare,
        dataset=ledger.dataset,
        search=search,
        winner=ledger.winner,
        final_evaluation=ledger.final_evaluation,
        test_gain=ledger.test_gain,
        winner_change=ledger.winner_change,
        outcome=ledger.outcome,
        cleaned_at=ledger.cleaned_at,
        confirmations_end=_ConfirmationsEnd(end=ledger.confirmations_end, message=ledger.confirmations_message)
        if ledger.confirmations_end
        else None,
        data_curve_end=_CurveEnd(end=ledger.curve_end, message=ledger.curve_message) if ledger.curve_end else None,
    )
    return cast(dict[str, Any], STATUS.render(StoredLedger, stored))


def build_ledger(stored: StoredLedger, trouble: str) -> Ledger:
    """Build the ledger of its stored form; the trouble is that of a search that goes on."""
    return Ledger(
        trials=stored.trials,
        folded=stored.folded_attempts,
        prepare=stored.prepare,
        dataset=stored.dataset,
        search_end=stored.search.end if stored.search else None,
        search_message=stored.search.message if stored.search else trouble,
        winner=stored.winner,
        confirmations=stored.confirmations,
        confirmations_end=stored.confirmations_end.end if stored.confirmations_end else None,
        confirmations_message=stored.confirmations_end.message if stored.confirmations_end else "",
        curve=stored.data_curve,
        curve_end=stored.data_curve_end.end if stored.data_curve_end else None,
        curve_message=stored.data_curve_end.message if stored.data_curve_end else "",
        final_evaluation=stored.final_evaluation,
        test_gain=stored.test_gain,
        winner_change=stored.winner_change,
        outcome=stored.outcome,
        cleaned_at=stored.cleaned_at,
    )
