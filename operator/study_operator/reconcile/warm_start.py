"""What a study learns from earlier ones: their ledgers, as they were when its first arm was proposed.

The ledger of a study that is given by its prefix is copied by the job that prepares the data. That of one that is named
is its status: it is copied into this study's own prefix once it has ended, whatever bucket it has itself. From then on
the copies count, and nothing changes when an earlier study goes on or is deleted. Called by `reconcile/tick.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from study_operator import names
from study_operator.errors import OperatorError
from study_operator.ledger.bucket_copy import (
    MOST_BYTES,
    WarmStartRefusedError,
    name_place,
    parse_earlier,
    refuse_unlike,
    render_copy,
)
from study_operator.ledger.conditions import name_stage
from study_operator.ledger.status import Recorded
from study_operator.ledger.trial import WAITS, Ledger, StageState
from study_operator.reasons import ConditionType
from study_operator.spec.study import EarlierStudy, Study
from trial_trainer.artifacts import ArtifactStore


class NoSuchStudyError(OperatorError):
    """The study of that name is none to learn from: the end of a sentence, which begins with "which"."""

    reason = "NoSuchStudy"


class FoundStudy(NamedTuple):
    """A study that another one names."""

    study: Study
    recorded: Recorded


FindStudy = Callable[[str], FoundStudy | None]
"""Looks a study of the same namespace up by its name; None where there is none. May raise `NoSuchStudyError`."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What earlier studies have measured."""

    earlier: tuple[EarlierStudy, ...] = ()
    """Of all of them; empty until all can be read, and where no arm is due."""
    copies: Mapping[str, bytes] = field(default_factory=dict)
    """By their keys, ledgers that are to be written before anything follows from them."""
    waits: str = ""
    """For which study this one waits; empty where it waits for none."""


def learn(study: Study, ledger: Ledger, artifacts: ArtifactStore, find_study: FindStudy | None) -> Lessons:
    """Read what earlier studies have measured, where an arm is due.

    Raises:
        WarmStartRefusedError: where nothing can be learnt from one.
        ArtifactError: where the bucket cannot be read.
    """
    is_searching = ledger.search_end is None and len(ledger.trials) < study.num_trials
    has_room = sum(trial.is_busy for trial in ledger.trials) < study.parallel_trials
    if not (study.warm_start_from and is_searching and has_room):
        return Lessons()
    earlier, copies, waits = list[EarlierStudy](), dict[str, bytes](), ""
    for index, source in enumerate(study.warm_start_from):
        if source.study is not None:
            key = names.named_ledger_key(source.study)
            text = artifacts.read(key, MOST_BYTES)
            if text is None:
                other, recorded = _find(study, index, source.study, find_study)
                if recorded.ledger.outcome is None:
                    waits = waits or _say_wait(study, index, other, recorded)
                    continue
                text = copies[key] = render_copy(other, recorded.raw)
        elif ledger.prepare.state is StageState.COMPLETED:
            key = names.earlier_ledger_key(index)
            text = artifacts.read(key, MOST_BYTES)
            if text is None:
                raise WarmStartRefusedError(f"{artifacts.uri}/{key} is missing")
        else:
            continue
        earlier.append(parse_earlier(study, text, index))
    is_whole = len(earlier) == len(study.warm_start_from)
    return Lessons(earlier=tuple(earlier) if is_whole else (), copies=copies, waits=waits)


def read_earlier(study: Study, artifacts: ArtifactStore) -> Study:
    """Return a study that has copied what earlier ones have measured with what it has copied.

    Raises:
        WarmStartRefusedError: where nothing can be learnt from one.
        ArtifactError: where the bucket cannot be read.
    """
    if not study.warm_start_from:
        return study
    found = []
    for index, source in enumerate(study.warm_start_from):
        key = names.earlier_ledger_key(index) if source.study is None else names.named_ledger_key(source.study)
        text = artifacts.read(key, MOST_BYTES)
        if text is None:
            raise WarmStartRefusedError(f"{artifacts.uri}/{key} is missing")
        found.append(parse_earlier(study, text, index))
    return replace(study, earlier=tuple(found))


def _find(study: Study, index: int, name: str, find_study: FindStudy | None) -> FoundStudy:
    """Look a named study up, and refuse what it will never be learnt from before anybody waits for it."""
    found, why = None, "which does not exist"
    try:
        found = None if find_study is None else find_study(name)
    except NoSuchStudyError as error:
        why = str(error)
    if found is None:
        raise WarmStartRefusedError(
            f"{name_place(study, index)} must name a study of namespace {study.namespace}, got {name!r}, {why}"
        )
    refuse_unlike(study, found.study, index)
    return found


def _say_wait(study: Study, index: int, other: Study, recorded: Recorded) -> str:
    complete = recorded.conditions.get(ConditionType.COMPLETE)
    stage = name_stage(other, recorded.ledger) if complete is None else complete.reason
    return f"{WAITS}{name_place(study, index)} must name a study that has ended, got {other.name!r}, which is {stage}"
