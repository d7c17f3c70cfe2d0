"""Spans of time that are moved to where they can have been."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgers import NOW
from study_operator.clocks import fit_span, read_time

times = st.none() | st.datetimes(NOW.replace(tzinfo=None) - timedelta(days=2), NOW.replace(tzinfo=None)).map(
    lambda time: time.replace(tzinfo=NOW.tzinfo)
)


@given(times, times, times, times)
def test_a_span_lies_between_its_bounds_and_is_never_longer_than_told(
    started: datetime | None, finished: datetime | None, earliest: datetime | None, latest: datetime | None
) -> None:
    begun, over = fit_span(started, finished, earliest=earliest, latest=latest)
    assert ((begun is None), (over is None)) == ((started is None), (finished is None))
    is_sound = earliest is None or latest is None or earliest <= latest
    for time in (begun, over):
        assert time is None or earliest is None or time >= earliest
        assert time is None or latest is None or not is_sound or time <= latest
    if begun is not None and over is not None and started is not None and finished is not None:
        assert timedelta(0) <= over - begun
        assert finished < started or over - begun <= finished - started
    assert fit_span(begun, over, earliest=earliest, latest=latest) == (begun, over)


@pytest.mark.parametrize(
    "value",
    [None, "", "yesterday", 5, [], {}, "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"],
)
def test_what_is_no_time_is_none(value: Any) -> None:
    assert read_time(value) is None
