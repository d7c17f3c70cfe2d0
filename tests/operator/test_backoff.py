"""Waits between tries."""

from study_operator.backoff import wait_after


def test_a_wait_doubles_from_try_to_try_up_to_the_longest() -> None:
    assert [wait_after(failures, 5.0, 60.0) for failures in (1, 2, 3, 4, 5, 6)] == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_what_fails_for_weeks_still_has_a_wait() -> None:
    assert wait_after(1_000_000, 1.0, 60.0) == 60.0
