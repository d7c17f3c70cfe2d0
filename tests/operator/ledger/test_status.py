"""The ledger makes the round trip through the status exactly, and people can read what stands beside it."""

import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import NOW, a_ledger, a_study, a_trial, continued, minimizing, paused, running, stopped
from study_operator.errors import StatusUnreadableError
from study_operator.ledger.codec import STATUS, parse
from study_operator.ledger.events import events_between
from study_operator.ledger.status import Reported, TrialProgress, is_same_status, parse_status, render_status
from study_operator.ledger.texts import TRIAL_MESSAGE_BYTES, cut
from study_operator.ledger.trial import (
    Attempt,
    Continuation,
    DatasetCounts,
    EarlierAttempts,
    EndReason,
    Folded,
    Ledger,
    Measurement,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.spec.study import Promotion
from trial_trainer.contract import ParameterValue, Progress

numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=8)
times = st.integers(0, 10**15).map(lambda n: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=n))
attempts = st.builds(
    Attempt,
    rung=st.integers(0, 1),
    started_at=times,
    finished_at=st.none() | times,
    exit_code=st.none() | st.integers(0, 255),
    reason=st.sampled_from(["", "Evicted", *EndReason]),
    id=st.text(max_size=8),
)
measurements = st.builds(
    Measurement,
    rung=st.integers(0, 1),
    step=st.integers(0, 10**6),
    value=numbers,
    standard_error=st.none() | numbers,
    metrics=st.dictionaries(names, numbers, max_size=3),
    n=st.none() | st.integers(0, 10**6),
    sites=st.none() | st.integers(0, 10**6),
    checkpoint=st.text(max_size=8),
    diverged=st.booleans(),
    train_seconds=st.none() | numbers,
    fixed_seconds=st.none() | numbers,
)
trials = st.builds(
    Trial,
    index=st.integers(0, 499),
    arm=st.dictionaries(names, numbers | st.integers(-(10**20), 10**20) | st.text(max_size=8), max_size=4),
    origin=st.sampled_from(Origin),
    generation_node=st.text(max_size=8),
    state=st.sampled_from(TrialState),
    rung=st.integers(0, 1),
    total_steps=st.integers(1, 10**6),
    continuation=st.none() | st.sampled_from(Continuation),
    inclusion_probability=st.none() | st.floats(0, 1),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    earlier_attempts=st.none()
    | st.builds(
        EarlierAttempts,
        attempts=st.integers(1, 999),
        seconds=numbers,
        first_rung_seconds=numbers,
        rung=st.integers(0, 1),
        faults=st.integers(0, 9),
        interruptions=st.integers(0, 99),
    ),
    message=st.text(max_size=20),
)


@given(trials)
def test_a_trial_makes_the_round_trip_exactly(trial: Trial) -> None:
    back = parse(Trial, json.loads(json.dumps(STATUS.render(Trial, trial))))
    assert back == trial
    assert {k: (type(v), repr(v)) for k, v in back.arm.items()} == {k: (type(v), repr(v)) for k, v in trial.arm.items()}


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-5, 16, 16.0, "16", "it's", 10**20, -0.0])
def test_parameter_values_keep_their_type_and_every_digit(value: float | int | str) -> None:
    back = parse(ParameterValue, repr(value))
    assert (type(back), repr(back)) == (type(value), repr(value))


LEDGERS = [
    Ledger(),
    Ledger(prepare=Stage(state=StageState.FAILED, reason="StudyCannotRun", message="no price")),
    a_ledger(running(a_trial(0)), a_trial(1, message="it is tried again")),
    a_ledger(
        continued(paused(0, 0.3), 0.4, Continuation.BASELINE),
        stopped(1, 0.2),
        folded=Folded(until=NOW, active_seconds=12.5),
        search_end=SearchEnd.NO_MORE_PROPOSALS,
        search_message="the space is exhausted",
        winner=0,
        final_evaluation=Stage(state=StageState.COMPLETED),
        outcome=Outcome(failed=False, reason="Completed", message="trial t000 is the winner"),
    ),
]


@pytest.mark.parametrize("ledger", LEDGERS, ids=["new", "unprepared", "exploring", "complete"])
def test_a_ledger_makes_the_round_trip_exactly(ledger: Ledger) -> None:
    reported = Reported(key="1/0/", at=NOW)
    status = json.loads(json.dumps(render_status(a_study(), ledger, now=NOW, reported=reported)))
    recorded = parse_status(status)
    assert recorded.ledger == ledger
    assert recorded.reported == reported
    again = render_status(a_study(), recorded.ledger, now=NOW + timedelta(days=1), recorded=recorded, reported=reported)
    assert again == status


def test_what_did_not_change_is_taken_as_it_was_and_what_did_is_rendered_anew() -> None:
    study = a_study()
    before = parse_status(render_status(study, a_ledger(paused(0, 0.3), running(a_trial(1))), now=NOW))
    first, second = before.ledger.trials
    after = replace(before.ledger, trials=(first, replace(second, state=TrialState.FAILED, message="gone")))
    rendered = render_status(study, after, now=NOW, recorded=before)
    assert rendered["trials"][0] is before.raw["trials"][0]
    assert rendered == render_status(study, after, now=NOW) | {"conditions": rendered["conditions"]}


@given(st.text(), st.integers(3, 60))
def test_a_text_is_cut_to_the_bytes_that_an_api_server_stores(text: str, most: int) -> None:
    message = cut(text, most)
    # Go escapes what HTML would read, and the two line ends of JavaScript.
    stored = json.dumps(message, ensure_ascii=False)[1:-1]
    assert (
        len(stored.encode()) + 5 * sum(map(message.count, "<>&")) + 3 * sum(map(message.count, "\u2028\u2029")) <= most
    )
    assert cut(message, most) == message
    assert message == text.encode("utf-8", "replace").decode() or (
        message.endswith("…") and text.startswith(message[:-1])
    )


def test_half_a_character_is_replaced_because_no_api_server_would_take_it() -> None:
    assert cut("path \udcff", 100) == "path ?"


def test_long_words_of_an_environment_make_no_status_that_is_refused() -> None:
    stage = Stage(state=StageState.FAILED, reason="9 Lives: " + "x" * 300, message="m" * 10_000)
    trial = a_trial(0, state=TrialState.FAILED, message="é" * 1000)
    status = render_status(a_study(), a_ledger(trial, prepare=stage), now=NOW)
    prepared = next(c for c in status["conditions"] if c["type"] == "Prepared")
    assert re.fullmatch("Livesx{59}", prepared["reason"]) and prepared["reason"] == status["prepare"]["reason"]
    assert len(prepared["message"]) < 2000
    assert len(status["trials"][0]["message"].encode()) <= TRIAL_MESSAGE_BYTES


def test_a_status_whose_nulls_were_left_out_is_the_same_status() -> None:
    study, ledger = a_study(), a_ledger(paused(0, 0.3), running(a_trial(1)))
    status = render_status(study, ledger, now=NOW)
    stored = json.loads(json.dumps(status), object_hook=lambda o: {k: v for k, v in o.items() if v is not None})
    assert stored != status
    recorded = parse_status(stored)
    again = render_status(study, recorded.ledger, now=NOW + timedelta(hours=1), recorded=recorded)
    assert recorded.ledger == ledger
    assert is_same_status(again, stored) and is_same_status(stored, again)
    assert not is_same_status(again | {"winner": 0}, stored)
    assert not is_same_status(again | {"trials": []}, stored)


def test_columns_are_rounded_for_people() -> None:
    ledger = a_ledger(continued(paused(0, 1 / 3), None), stopped(1, 0.4375))
    assert render_status(a_study(), ledger, now=NOW)["summary"] == {
        "best": "43.8%",
        "gain": "+10.4 (+4.9 to +16.0) best of 1",
        "saved": "0.2 h",
    }
    assert render_status(minimizing(), ledger, now=NOW)["summary"]["best"] == "0.3333"
    # As kubectl shows an empty string, and not null: with nothing.
    assert render_status(a_study(), a_ledger(), now=NOW)["summary"] == {"best": "", "gain": "", "saved": "0.0 h"}


def test_a_status_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StatusUnreadableError, match="must be one that this operator wrote"):
        parse_status({"trials": [{"index": "none"}]})


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
def test_the_reason_of_complete_says_where_the_study_is(ledger: Ledger, reason: str) -> None:
    assert conditions_of(ledger)["Complete"][1] == reason


def test_a_suspended_study_says_so_unless_it_has_ended() -> None:
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


def test_raising_the_number_of_trials_too_late_is_told() -> None:
    ledger = a_ledger(continued(paused(0, 0.3), None), stopped(1, 0.1), search_end=SearchEnd.ALL_TRIALS_MEASURED)
    status = render_status(a_study(num_trials=9), ledger, now=NOW)
    accepted = status["conditions"][0]
    assert (accepted["status"], accepted["reason"]) == ("True", "NumTrialsIgnored")
    assert accepted["message"] == (
        "spec.numTrials must not be raised after the first promotion, got 9; the study goes on with its 2 trials"
    )


def test_what_a_number_means_is_stated_with_it() -> None:
    status = render_status(a_study(), a_ledger(paused(0, 0.3), paused(1, 0.45)), now=NOW)
    best = status["best"]
    error = NormalDist().inv_cdf(0.975) * math.hypot(0.02, 0.02)
    assert float(best.pop("gainLow")) == pytest.approx(0.15 - error)
    assert float(best.pop("gainHigh")) == pytest.approx(0.15 + error)
    assert best == {
        "trial": "t001",
        "metric": "accuracy",
        "direction": "Maximize",
        "value": "0.45",
        "standardError": "0.02",
        "n": 100,
        "rung": 0,
        "gain": repr(0.45 - 0.3),
        "gainOn": "Validation",
        "gainUncorrected": repr(0.45 - 0.3),
        "bestOf": 1,
    }


def test_usage_says_what_was_spent_and_what_full_runs_would_have_taken_more() -> None:
    # Ten minutes each for 20 of 100 steps, five of them of training: the one that stopped would have trained twenty
    # more, and the one that continues starts and evaluates for five more.
    ledger = a_ledger(continued(paused(0, 0.3), None), stopped(1, 0.2))
    usage = render_status(a_study(nodes=2), ledger, now=NOW)["usage"]
    assert float(usage["acceleratorHours"]) == pytest.approx(2 * 20 / 60)
    assert float(usage["savedAcceleratorHours"]) == pytest.approx(2 * 15 / 60)
    assert float(usage["activeSeconds"]) == 600


def test_a_running_attempt_does_not_change_the_status_every_second() -> None:
    ledger = a_ledger(running(a_trial(0)))
    one, other = (render_status(a_study(), ledger, now=NOW + timedelta(hours=h))["usage"] for h in (1, 2))
    assert one == other


def test_counts_agree_with_the_trials() -> None:
    ledger = a_ledger(
        continued(paused(0, 0.3), 0.5, Continuation.BASELINE), continued(paused(1, 0.4), None), a_trial(2)
    )
    counts = render_status(a_study(promotion=Promotion(num_promoted=1)), ledger, now=NOW)["trialCounts"]
    assert {k: v for k, v in counts.items() if v} == {
        "pending": 2,
        "completed": 1,
        "total": 3,
        "measured": 2,
        "promoted": 1,
    }


def test_events_tell_what_happened_in_between() -> None:
    started = a_ledger(running(a_trial(0)), a_trial(1))
    measured = a_ledger(paused(0, 0.3), a_trial(1, state=TrialState.ABANDONED, message="no memory"))
    promoted = a_ledger(continued(paused(0, 0.3), None), measured.trials[1], search_end=SearchEnd.ALL_TRIALS_MEASURED)
    over = replace(promoted, winner=0, outcome=Outcome(failed=True, reason="NoWinner", message="none is left"))

    def reported(before: Ledger, after: Ledger) -> list[tuple[str, str, bool]]:
        return [(e.reason, e.message, e.is_warning) for e in events_between(before, after)]

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


def test_the_dataset_is_told_in_samples() -> None:
    counts = DatasetCounts(fingerprint="00ff", train_samples=3, validation_samples=2, test_samples=1)
    status = render_status(a_study(), a_ledger(dataset=counts), now=NOW)
    assert status["dataset"] == {
        "fingerprint": "00ff",
        "trainSamples": 3,
        "validationSamples": 2,
        "testSamples": 1,
    }


@pytest.mark.parametrize(("eta", "seconds"), [(-0.6, 0), (1e300, 2**53)])
def test_whatever_a_trainer_says_no_status_is_refused_for_it(eta: float, seconds: int) -> None:
    progress = Progress(
        step=1, stop_step=20, total_steps=100, loss=None, phase="p" * 100, eta_seconds=eta, updated_at="u" * 100
    )
    ledger = a_ledger(running(a_trial(0)))
    seen = [TrialProgress.of(ledger.trials[0], progress)]
    (reported,) = render_status(a_study(), ledger, now=NOW, progress=seen)["progress"]
    assert reported["etaSeconds"] == seconds
    assert len(reported["phase"].encode()) <= 64 and len(reported["updatedAt"].encode()) <= 64
