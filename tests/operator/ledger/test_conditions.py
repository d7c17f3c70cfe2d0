"""Every condition is there from the start, with a reason and the time of its last transition."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from builders.ledgers import NOW, a_ledger, a_study, a_trial, continued, of_three_rungs, paused, stopped
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import (
    Continuation,
    Ledger,
    Outcome,
    SearchEnd,
)
from study_operator.spec.study import Study


def conditions_of(ledger: Ledger, **changes: object) -> dict[str, tuple[str, str]]:
    """Return each condition's status and reason."""
    status = render_status(a_study(**changes), ledger, now=NOW)
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def test_all_conditions_are_there_from_the_first_status_on() -> None:
    assert conditions_of(Ledger()) == {
        "Accepted": ("True", "Valid"),
        "StorageReady": ("True", "Reachable"),
        "Prepared": ("False", "Preparing"),
        "Suspended": ("False", "NotSuspended"),
        "SearchComplete": ("False", "Searching"),
        "Complete": ("False", "Preparing"),
        "Failed": ("False", "NotFailed"),
        "JobsRefused": ("False", "NotRefused"),
        "Stalled": ("False", "Progressing"),
        "EarlyEvaluationReliable": ("Unknown", "NotPromoted"),
        "Overfitting": ("Unknown", "NotEvaluated"),
        "SearchStagnating": ("False", "TooFewTrials"),
    }


@pytest.mark.parametrize(
    ("ledger", "reason"),
    [
        pytest.param(Ledger(), "Preparing", id="preparing"),
        pytest.param(a_ledger(a_trial(0)), "Exploring", id="exploring"),
        pytest.param(a_ledger(continued(paused(0, 0.3), None), stopped(1, 0.1)), "Promoting", id="promoting"),
        pytest.param(a_ledger(continued(paused(0, 0.3), 0.4), winner=0), "Evaluating", id="final evaluation"),
        pytest.param(
            a_ledger(outcome=Outcome(failed=False, reason="BudgetExhausted", message="")),
            "BudgetExhausted",
            id="budget",
        ),
        pytest.param(a_ledger(outcome=Outcome(failed=True, reason="NothingTrains", message="")), "Failed", id="failed"),
    ],
)
def test_the_reason_of_the_condition_complete_names_the_stage(ledger: Ledger, reason: str) -> None:
    assert conditions_of(ledger)["Complete"][1] == reason


def test_the_reason_is_suspended_unless_the_study_has_ended() -> None:
    assert conditions_of(a_ledger(), suspend=True)["Complete"][1] == "Suspended"
    over = a_ledger(outcome=Outcome(failed=False, reason="Completed", message=""))
    assert conditions_of(over, suspend=True)["Complete"] == ("True", "Completed")


def test_a_failed_study_is_stalled_with_its_reason() -> None:
    conditions = conditions_of(a_ledger(outcome=Outcome(failed=True, reason="NothingTrains", message="")))
    assert conditions["Failed"] == conditions["Stalled"] == ("True", "NothingTrains")


def test_a_transition_time_moves_only_with_the_status() -> None:
    study, later = a_study(), NOW + timedelta(hours=1)
    before = parse_status(render_status(study, Ledger(), now=NOW))
    after = render_status(study, a_ledger(a_trial(0)), now=later, recorded=before)
    times = {c["type"]: c["lastTransitionTime"] for c in after["conditions"]}
    assert datetime.fromisoformat(times["Complete"]) == NOW
    assert datetime.fromisoformat(times["Prepared"]) == later


def at_full_length(audited: dict[float, float]) -> Ledger:
    """Return a baseline, a promoted trial and all others audited, by what they measured early and at full length."""
    trials = [continued(paused(0, 0.01), 0.01, Continuation.BASELINE), continued(paused(1, 0.9), 0.9)]
    trials += [
        continued(paused(i, early), final, Continuation.AUDITED) for i, (early, final) in enumerate(audited.items(), 2)
    ]
    return a_ledger(*trials)


RISING = [i / 40 for i in range(2, 32)]
SOME_AGREE = {0.1: 0.2, 0.2: 0.1, 0.3: 0.4, 0.4: 0.3}


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        pytest.param(a_ledger(paused(0, 0.3), paused(1, 0.4)), ("Unknown", "NotPromoted"), id="before the promotion"),
        pytest.param(
            a_ledger(
                continued(paused(0, 0.3), 0.4, Continuation.BASELINE), continued(paused(1, 0.5), 0.6), stopped(2, 0.1)
            ),
            ("Unknown", "TooFewTrials"),
            id="nothing audited",
        ),
        pytest.param(
            at_full_length(SOME_AGREE),
            ("Unknown", "TooFewTrials"),
            id="few audited, of which some agree",
        ),
        pytest.param(at_full_length(dict(zip(RISING, RISING, strict=True))), ("True", "PairsAgree"), id="alike"),
        pytest.param(
            at_full_length(dict(zip(RISING, reversed(RISING), strict=True))), ("False", "PairsDisagree"), id="opposite"
        ),
    ],
)
def test_early_evaluation_is_reliable_where_pairs_agree_and_unknown_where_trials_do_not_tell(
    ledger: Ledger, expected: tuple[str, str]
) -> None:
    assert conditions_of(ledger)["EarlyEvaluationReliable"] == expected


def test_an_unknown_condition_is_read_as_it_was_written_and_keeps_its_time_and_figures() -> None:
    study, ledger = a_study(), at_full_length(SOME_AGREE)
    first = render_status(study, ledger, now=NOW)
    before = parse_status(first)
    assert before.conditions["EarlyEvaluationReliable"].is_true is None
    # The same runs: nothing is measured anew, in an hour that has come to nothing.
    again = render_status(study, before.ledger, now=NOW + timedelta(hours=1), recorded=before)
    assert again["conditions"][-1] == first["conditions"][-1]
    assert again["agreement"] == first["agreement"] is not None
    assert "90 % interval" in first["conditions"][-1]["message"]
    # A status of an earlier version has no such condition.
    older = parse_status({**first, "conditions": first["conditions"][:-1]})
    renewed = render_status(study, older.ledger, now=NOW, recorded=older)
    assert renewed["conditions"][-1] == first["conditions"][-1]


def test_accepted_reports_that_num_trials_was_raised_too_late() -> None:
    ledger = a_ledger(continued(paused(0, 0.3), None), stopped(1, 0.1), search_end=SearchEnd.ALL_TRIALS_MEASURED)
    status = render_status(a_study(num_trials=9), ledger, now=NOW)
    accepted = status["conditions"][0]
    assert (accepted["status"], accepted["reason"]) == ("True", "NumTrialsIgnored")
    assert accepted["message"] == (
        "spec.numTrials must not be raised after the first promotion, got 9; the study goes on with its 2 trials"
    )


def test_the_message_says_how_far_the_promoted_trials_go() -> None:
    first = a_ledger(continued(paused(0, 0.3), None), stopped(1, 0.1))
    last = a_ledger(replace(continued(paused(0, 0.3), None), rung=2), stopped(1, 0.1))

    def message_of(ledger: Ledger, study: Study) -> str:
        conditions = render_status(study, ledger, now=NOW)["conditions"]
        return str(next(c["message"] for c in conditions if c["type"] == "Complete"))

    assert message_of(first, a_study()) == "1 trials are on their way to full length"
    assert message_of(first, of_three_rungs()) == "1 trials are on their way to 50 % of their full length"
    assert message_of(last, of_three_rungs()) == "1 trials are on their way to full length"
