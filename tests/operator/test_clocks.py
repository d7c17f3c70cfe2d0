"""Spans of time that are moved to where they can have been."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import NOW
from study_operator.clocks import ServerClock, fit_span, read_time

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


def a_date(time: datetime) -> str:
    return format_datetime(time, usegmt=True)


def test_the_time_is_the_servers_where_its_clock_is_off_and_ones_own_where_it_is_right() -> None:
    own = datetime(2026, 1, 1, 12, 0, 0, 400_000, tzinfo=UTC)
    clock = ServerClock(lambda: own)
    assert clock.now() == own
    # Whole seconds, and the time that an answer takes, are no difference.
    for took in (0.0, 1.5):
        clock.see(a_date(own), took)
    assert clock.now() == own
    for hours in (-1, 1):
        behind = ServerClock(lambda: own)
        behind.see(a_date(own + timedelta(hours=hours)), 0.1)
        assert abs(behind.now() - (own + timedelta(hours=hours))) <= timedelta(seconds=1)


def test_of_several_servers_most_are_right_and_a_clock_that_is_mended_is_believed() -> None:
    own = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = ServerClock(lambda: own)
    for answer in range(90):
        clock.see(a_date(own - timedelta(hours=1 if answer % 3 == 0 else 0)), 0.01)
        assert answer < 4 or clock.now() == own
    for _ in range(31):
        clock.see(a_date(own + timedelta(hours=2)), 0.01)
    assert abs(clock.now() - (own + timedelta(hours=2))) <= timedelta(seconds=1)
    for _ in range(31):
        clock.see(a_date(own), 0.01)
    assert clock.now() == own


@pytest.mark.parametrize("date", [None, "", "now", "Thu, 99 Jan 2026 12:00:00 GMT", "Thu, 01 Jan 99999 12:00:00 GMT"])
def test_a_date_that_nobody_can_read_tells_nothing(date: str | None) -> None:
    own = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = ServerClock(lambda: own)
    clock.see(date, 0.0)
    clock.see(a_date(own - timedelta(hours=1)), 60.0)
    assert clock.now() == own
