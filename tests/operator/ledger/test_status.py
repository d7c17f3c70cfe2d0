"""The ledger makes the round trip through the status exactly, and people can read what stands beside it."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from statistics import NormalDist

import pytest

from builders.ledgers import NOW, a_ledger, a_study, a_trial, continued, minimizing, paused, running, stopped
from study_operator.errors import StatusUnreadableError
from study_operator.ledger.status import Reported, TrialProgress, is_same_status, parse_status, render_status
from study_operator.ledger.texts import TRIAL_MESSAGE_BYTES
from study_operator.ledger.trial import (
    Continuation,
    DatasetCounts,
    Folded,
    Ledger,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    TrialState,
)
from study_operator.spec.study import Promotion
from trial_trainer.contract import Progress

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


def test_only_trials_that_changed_are_rendered_again() -> None:
    study = a_study()
    before = parse_status(render_status(study, a_ledger(paused(0, 0.3), running(a_trial(1))), now=NOW))
    first, second = before.ledger.trials
    after = replace(before.ledger, trials=(first, replace(second, state=TrialState.FAILED, message="gone")))
    rendered = render_status(study, after, now=NOW, recorded=before)
    assert rendered["trials"][0] is before.raw["trials"][0]
    assert rendered == render_status(study, after, now=NOW) | {"conditions": rendered["conditions"]}


def test_long_reasons_and_messages_are_cut_to_what_the_schema_allows() -> None:
    stage = Stage(state=StageState.FAILED, reason="9 Lives: " + "x" * 300, message="m" * 10_000)
    trial = a_trial(0, state=TrialState.FAILED, message="é" * 1000)
    status = render_status(a_study(), a_ledger(trial, prepare=stage), now=NOW)
    prepared = next(c for c in status["conditions"] if c["type"] == "Prepared")
    assert re.fullmatch("Livesx{59}", prepared["reason"]) and prepared["reason"] == status["prepare"]["reason"]
    assert len(prepared["message"]) < 2000
    assert len(status["trials"][0]["message"].encode()) <= TRIAL_MESSAGE_BYTES


def test_a_status_without_its_nulls_is_the_same_status() -> None:
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


def test_the_printer_columns_are_rounded() -> None:
    ledger = a_ledger(continued(paused(0, 1 / 3), None), stopped(1, 0.4375))
    assert render_status(a_study(), ledger, now=NOW)["summary"] == {
        "best": "43.8%",
        "gain": "+10.4 (+4.9 to +16.0) best of 1, one seed",
        "saved": "0.2 h",
    }
    assert render_status(minimizing(), ledger, now=NOW)["summary"]["best"] == "0.3333"
    # As kubectl shows an empty string, and not null: with nothing.
    assert render_status(a_study(), a_ledger(), now=NOW)["summary"] == {"best": "", "gain": "", "saved": "0.0 h"}


def test_every_wrong_field_of_a_status_is_named() -> None:
    status = render_status(a_study(), a_ledger(running(a_trial(0)), paused(1, 0.3)), now=NOW)
    status["trials"][0] |= {"index": "0", "arm": {"lora_rank": 16}, "state": "Lost"}
    status["trials"][0]["attempts"][0]["startedAt"] = "yesterday"
    status["trials"][1]["measurements"][0]["value"] = "nan"
    status["conditions"][0]["status"] = True
    del status["prepare"]
    with pytest.raises(StatusUnreadableError) as refusal:
        parse_status(status)
    start, _, sentences = str(refusal.value).partition(": ")
    assert start == "the study's status must be one that this operator wrote"
    assert sentences.split("; ") == [
        "status.trials[0].index must be a whole number, got '0'",
        "status.trials[0].arm['lora_rank'] must be a parameter's value as Python writes it, got 16",
        f"status.trials[0].state must be one of {', '.join(TrialState)}, got 'Lost'",
        "status.trials[0].attempts[0].startedAt must be a time with its zone, got 'yesterday'",
        "status.trials[1].measurements[0].value must be a finite number in quotes, got 'nan'",
        "status.prepare must be given",
        "status.conditions[0].status must be a string, got True",
    ]


JUNK = [
    None,
    True,
    -1,
    1.5,
    "",
    "x",
    "1e999",
    "'a",
    "2026-13-01T00:00:00Z",
    [],
    {},
    [1],
    {"a": 1},
    10**400,
    "1" * 400,
    "1" * 5000,
]


def places_in(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything that a status holds."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places_in(part, (*path, key))


def test_junk_anywhere_in_a_status_gives_a_ledger_or_one_error() -> None:
    status = json.dumps(render_status(a_study(), LEDGERS[-1], now=NOW))
    refused = 0
    for *parents, last in places_in(json.loads(status)):
        for junk in JUNK:
            changed = json.loads(status)
            inside = changed
            for key in parents:
                inside = inside[key]
            inside[last] = junk
            try:
                parse_status(changed)
            except StatusUnreadableError:
                refused += 1
    assert refused > 500


def test_the_best_trial_is_rendered_with_its_metric_error_and_gain() -> None:
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
        "gainSeeds": 1,
    }


def test_usage_reports_spent_and_saved_accelerator_hours() -> None:
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


def test_the_dataset_is_rendered_in_samples() -> None:
    counts = DatasetCounts(fingerprint="00ff", train_samples=3, validation_samples=2, test_samples=1)
    status = render_status(a_study(), a_ledger(dataset=counts), now=NOW)
    assert status["dataset"] == {
        "fingerprint": "00ff",
        "trainSamples": 3,
        "validationSamples": 2,
        "testSamples": 1,
    }


@pytest.mark.parametrize(("eta", "seconds"), [(-0.6, 0), (1e300, 2**53)])
def test_the_progress_that_a_trainer_writes_is_cut_to_what_the_schema_allows(eta: float, seconds: int) -> None:
    progress = Progress(
        step=1, stop_step=20, total_steps=100, loss=None, phase="p" * 100, eta_seconds=eta, updated_at="u" * 100
    )
    ledger = a_ledger(running(a_trial(0)))
    seen = [TrialProgress.of(ledger.trials[0], progress)]
    (reported,) = render_status(a_study(), ledger, now=NOW, progress=seen)["progress"]
    assert reported["etaSeconds"] == seconds
    assert len(reported["phase"].encode()) <= 64 and len(reported["updatedAt"].encode()) <= 64
