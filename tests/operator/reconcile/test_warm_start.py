"""A study that names another one: it waits for its end, copies what it has measured, and needs it no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders.desk import Desk, a_desk, a_proposal, conditions_of, run
from builders.ledgers import NOW, a_ledger, a_study, minimizing, paused
from study_operator.ledger.bucket_copy import render_copy
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import Ledger, Outcome, Trial
from study_operator.optimizer.designer import Suggestion
from study_operator.reconcile.warm_start import FindStudy, FoundStudy, NoSuchStudyError
from study_operator.spec.study import EarlierStudy, Parameter, Study, Uniform, WarmStart

ENDED = Outcome(failed=False, reason="Completed", message="")
COPY = "earlier/first.json"


def a_learner(**changes: Any) -> Study:
    return a_study(warm_start_from=(WarmStart(study="first"),), **changes)


def some_trials(count: int = 3) -> list[Trial]:
    return [paused(index, 0.1 * index) for index in range(count)]


def finds(*trials: Trial, outcome: Outcome | None = ENDED, study: Study | None = None) -> FindStudy:
    """Return what finds a study of these trials under the name `first`."""
    first = replace(study or a_study(), name="first")
    status = render_status(first, a_ledger(*trials, outcome=outcome), now=NOW)

    def find(name: str) -> FoundStudy | None:
        return FoundStudy(first, parse_status(status)) if name == "first" else None

    return find


def find_nothing_usable(name: str) -> FoundStudy:
    raise NoSuchStudyError("which is being deleted")


def a_waiting_desk(ledger: Ledger | None = None) -> tuple[Desk, list[tuple[EarlierStudy, ...]]]:
    """Return a desk, and what its optimizer is told of earlier studies at each request."""
    seen: list[tuple[EarlierStudy, ...]] = []
    desk = a_desk(ledger or a_ledger(), proposals=[a_proposal()], study=a_learner(baseline=None))

    def suggest(study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        seen.append(study.earlier)
        return Desk.suggest(desk, study, trials, count)

    desk.suggest = suggest  # type: ignore[method-assign]
    return desk, seen


def test_a_named_study_is_copied_once_and_its_trials_are_learnt_from() -> None:
    desk, seen = a_waiting_desk()
    run(desk, a_learner(baseline=None), find_study=finds(*some_trials()))
    # It is deleted, and learnt from all the same.
    run(desk, a_learner(baseline=None))

    assert COPY in desk.objects
    assert [[trial.arm for trial in earlier.trials] for (earlier,) in seen] == [[t.arm for t in some_trials()]] * 2


def test_a_bucket_that_takes_no_copy_begins_no_trial() -> None:
    desk, seen = a_waiting_desk()
    desk.is_read_only = True
    result = run(desk, a_learner(), find_study=finds(*some_trials()))

    assert (seen, desk.ledger.trials) == ([], ())
    assert conditions_of(result)["StorageReady"] == ("False", "AccessDenied")


def test_a_study_waits_for_the_one_that_it_names_and_says_so() -> None:
    desk, seen = a_waiting_desk()
    going = finds(*some_trials(), outcome=None)
    result = run(desk, a_learner(), find_study=going)

    assert (desk.ledger.trials, seen, desk.objects) == ((), [], {})
    assert conditions_of(result)["Accepted"] == ("True", "Valid")
    assert conditions_of(result)["SearchComplete"] == ("False", "WaitsForStudy")
    sentence = "spec.warmStartFrom[0].study must name a study that has ended, got 'first', which is Exploring"
    assert [(e.reason, e.message, e.is_warning) for e in result.events] == [
        ("WaitsForStudy", f"it waits: {sentence}", False)
    ]
    complete = next(c for c in result.status["conditions"] if c["type"] == "Complete")
    assert complete["message"] == f"0 of 4 trials measured; it waits: {sentence}"
    # There is nothing to do until that has ended.
    again = run(desk, a_learner(), find_study=going)
    assert (again.is_idle, again.events) == (True, [])

    after = run(desk, a_learner(), find_study=finds(*some_trials()))
    assert conditions_of(after)["SearchComplete"] == ("False", "Searching")
    assert len(desk.ledger.trials) == 2
    assert COPY in desk.objects


def test_the_data_are_prepared_while_a_study_waits() -> None:
    desk = a_desk()
    going = finds(*some_trials(), outcome=None)
    run(desk, a_learner(), find_study=going)
    run(desk, a_learner(), find_study=going)
    assert [job.name for job in desk.launched] == ["s1-prepare"]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (lambda name: None, "study must name a study of namespace team, got 'first', which does not exist"),
        (find_nothing_usable, "study must name a study of namespace team, got 'first', which is being deleted"),
        (finds(*some_trials(2)), "study must have at least 3 measured trials, got 2"),
        (
            finds(outcome=None, study=minimizing()),
            "study must be of a study with the same objective, Maximize accuracy, got Minimize",
        ),
        (
            finds(
                outcome=None,
                study=a_study(parameters=(Parameter(name="lora_dropout", search_space=Uniform(min=0, max=0.1)),)),
            ),
            "study must have searched one of learning_rate, got lora_dropout",
        ),
    ],
    ids=[
        "it does not exist",
        "it goes",
        "it has measured too little",
        "it will have another objective",
        "it searches elsewhere",
    ],
)
def test_a_named_study_that_nothing_can_be_learnt_from_is_refused_before_anything_runs(
    found: FindStudy, sentence: str
) -> None:
    desk = a_desk()
    for _ in range(2):
        result = run(desk, a_learner(), find_study=found)

    assert f"spec.warmStartFrom[0].{sentence}" in result.refusal
    assert conditions_of(result)["Accepted"] == ("False", "WarmStartRefused")
    assert (desk.launched, desk.ledger, desk.objects) == ([], Ledger(), {})


def test_a_refused_study_goes_on_once_there_is_one_of_that_name() -> None:
    desk, _ = a_waiting_desk()
    run(desk, a_learner())
    for _ in range(2):
        result = run(desk, a_learner(), find_study=finds(*some_trials()))
    assert conditions_of(result)["Accepted"] == ("True", "Valid")
    assert len(desk.ledger.trials) == 2


def test_studies_by_name_and_by_prefix_are_learnt_from_together() -> None:
    study = a_study(warm_start_from=(WarmStart(study="first"), WarmStart(uri="s3://studies/second")), baseline=None)
    desk, seen = a_waiting_desk()
    desk.objects["dataset/earlier/1.json"] = render_copy(
        a_study(), render_status(a_study(), a_ledger(*some_trials(4)), now=NOW)
    )
    run(desk, study, find_study=finds(*some_trials()))
    assert [[len(earlier.trials) for earlier in request] for request in seen] == [[3, 4]]
