"""Times of other machines' clocks, made to agree with those that are trusted.

A container's times are its node's; a pod's, its Job's and their conditions' are the control plane's, and so is `now`,
which the API server's answers tell. Called by `cluster/api.py`, `cluster/job_status.py` and `reconcile/settle.py`.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
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


ANSWERS = 31
"""So many of the last answers are looked at: of several API servers most are right."""
LEAST_SKEW_SECONDS = 2.0
"""Answers tell whole seconds, and take their time: what differs by less is taken for the same."""
PROMPT_SECONDS = 5.0
"""Of an answer that took longer it is not known when its time was told."""


def read_clock() -> datetime:
    """Return the time by this machine's clock."""
    return datetime.now(UTC)


class ServerClock:
    """The time by a server's clock, as the ``Date`` headers of its answers tell it. May be used by many threads."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        """Know nothing yet: until the first answer the time is this machine's, or that of ``clock``."""
        self._clock = clock or (lambda: read_clock())
        self._lock = threading.Lock()
        self._skews: deque[float] = deque(maxlen=ANSWERS)
        self._skew = 0.0

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        return self._clock() + timedelta(seconds=self._skew)

    def see(self, date: str | None, took_seconds: float) -> None:
        """Take in the header of an answer that has just come in."""
        if date is None or took_seconds > PROMPT_SECONDS:
            return
        try:
            reported = parsedate_to_datetime(date).astimezone(UTC)
        except (ValueError, OverflowError):
            return
        # Told in the middle of the request, and in the middle of the second that it names.
        skew = (reported - self._clock()).total_seconds() + took_seconds / 2 + 0.5
        with self._lock:
            self._skews.append(skew)
            median = statistics.median_low(self._skews)
            if abs(median - self._skew) > LEAST_SKEW_SECONDS:
                self._skew = median if abs(median) > LEAST_SKEW_SECONDS else 0.0
