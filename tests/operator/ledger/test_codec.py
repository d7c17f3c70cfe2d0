"""The ledger makes the round trip through JSON exactly."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study_operator.ledger.codec import STATUS, _read_value, parse
from study_operator.ledger.trial import (
    Attempt,
    Continuation,
    EarlierAttempts,
    Measurement,
    Origin,
    Trial,
    TrialState,
)
from study_operator.reasons import EndReason
from trial_trainer.contract import ParameterValue

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


@pytest.mark.parametrize("text", ["+".join(["'a'"] * 3000), "'a',1", "1_000", "1e3", "nan", "True", ""])
def test_what_repr_did_not_write_is_no_value_of_a_parameter(text: str) -> None:
    assert _read_value(text) is None
