"""Events are derived from the ledger before and after."""

from dataclasses import replace

from builders.ledgers import a_ledger, a_study, a_trial, continued, paused, running
from study_operator.ledger.events import events_between
from study_operator.ledger.trial import (
    Ledger,
    Outcome,
    SearchEnd,
    TrialState,
)


def test_events_are_derived_from_the_ledger_before_and_after() -> None:
    started = a_ledger(running(a_trial(0)), a_trial(1))
    measured = a_ledger(paused(0, 0.3), a_trial(1, state=TrialState.ABANDONED, message="no memory"))
    promoted = a_ledger(continued(paused(0, 0.3), None), measured.trials[1], search_end=SearchEnd.ALL_TRIALS_MEASURED)
    over = replace(promoted, winner=0, outcome=Outcome(failed=True, reason="NoWinner", message="none is left"))

    def reported(before: Ledger, after: Ledger) -> list[tuple[str, str, bool]]:
        return [(e.reason, e.message, e.is_warning) for e in events_between(a_study(), before, after)]

    assert reported(Ledger(), a_ledger()) == [
        ("DatasetPrepared", "320 training, 80 validation and 100 test samples", False)
    ]
    assert reported(a_ledger(a_trial(0), a_trial(1)), started) == [
        ("TrialLaunched", "trial t000 runs on rung 0", False)
    ]
    reasons = [reason for reason, _, _ in reported(started, measured)]
    assert reasons == ["TrialLaunched", "TrialMeasured", "TrialAbandoned"]
    assert reported(measured, promoted) == [
        ("TrialPromoted", "trial t000 goes on to step 100 (Promoted)", False),
        ("SearchEnded", "2 trials: AllTrialsMeasured", False),
    ]
    assert reported(promoted, over)[-1] == ("StudyFailed", "NoWinner: none is left", True)
    assert reported(over, over) == []
