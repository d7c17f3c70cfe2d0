"""Times of other machines' clocks, made to agree with those that are trusted.

A container's times are its node's; a pod's, its Job's and their conditions' are the control plane's; `now` is the
operator's. Called by `job_states.py` and `settle.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_NO_TIMES = (datetime.min.replace(tzinfo=UTC), datetime.fromtimestamp(0, UTC))
"""How Go and Unix write that there is no time: a container that was never started began at the second one."""


def read_time(value: Any) -> datetime | None:
    """Return a time of the Kubernetes API; None where there is none, or what nobody can read."""
    try:
        time = datetime.fromisoformat(value)
        time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if time in _NO_TIMES else time


def fit_span(
    started: datetime | None,
    finished: datetime | None,
    *,
    earliest: datetime | None = None,
    latest: datetime | None = None,
) -> tuple[datetime | None, datetime | None]:
    """Return when something began and ended, moved between two times.

    A span that is short enough moves as a whole: its clock is wrong, and its length is right. One that is not, as where
    the clock was set in between, is cut off.

    Args:
        started: by the clock that may be wrong; None where it is not known.
        finished: the same.
        earliest: by a better clock, before which it cannot have begun.
        latest: by a better clock, after which it cannot have ended; not looked at where it lies before ``earliest``.
    """
    if earliest is not None and latest is not None and latest < earliest:
        latest = None

    def clip(time: datetime) -> datetime:
        time = time if earliest is None else max(time, earliest)
        return time if latest is None else min(time, latest)

    if started is None or finished is None:
        return (clip(started) if started else None), (clip(finished) if finished else None)
    length = finished - started
    if finished < started:
        # Which of the two is right cannot be known: where one of them is possible as it is, that one.
        begun = clip(started)
        return begun, max(begun, clip(finished))
    if earliest is not None and latest is not None and length > latest - earliest:
        return clip(started), clip(finished)
    if earliest is not None and started < earliest:
        return earliest, earliest + length
    if latest is not None and finished > latest:
        return latest - length, latest
    return started, finished
