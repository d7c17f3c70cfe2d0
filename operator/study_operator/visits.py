"""Who is visited next: a queue of studies, worked off by a few threads.

A study is visited by one thread at a time. It is woken by news, or visited again when its last visit said so; a visit
that failed is made again after a wait that doubles. Called by `serve.py`; knows nothing of what a visit does.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from study_operator.metrics import Metrics
from study_operator.names import StudyKey

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0


class TransientError(Exception):
    """A visit could not be finished for a reason that passes: one sentence, and no trace."""


@dataclass
class _Entry:
    due: float | None = None
    """When it is to be visited; None where it is not waiting."""
    is_running: bool = False
    is_woken: bool = False
    """News came while it was visited."""
    failures: int = 0
    not_before: float = field(default=0.0)


class Visits:
    """The queue and its threads."""

    def __init__(
        self,
        visit: Callable[[StudyKey], float | None],
        metrics: Metrics,
        *,
        threads: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a queue; `start` starts its threads.

        Args:
            visit: visits a study, and returns after how many seconds it wants to be visited again without news; None
                where the study is gone.
            metrics: where visits are counted.
            threads: how many studies are visited at the same time.
            clock: seconds.
        """
        self._visit = visit
        self._metrics = metrics
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[StudyKey, _Entry] = {}
        self._heap: list[tuple[float, int, StudyKey]] = []
        self._counter = itertools.count()
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"visit-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Begin no more visits, and wait for those under way; say whether they ended."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def wake(self, key: StudyKey) -> None:
        """Visit a study soon: there is news."""
        with self._changed:
            entry = self._entries.setdefault(key, _Entry())
            if entry.is_running:
                entry.is_woken = True
            else:
                self._schedule(key, entry, self._clock())

    def longest_running_seconds(self) -> float:
        """Return for how long the oldest visit under way has gone on, for a health check."""
        with self._changed:
            now = self._clock()
            return max((now - e.not_before for e in self._entries.values() if e.is_running), default=0.0)

    def _schedule(self, key: StudyKey, entry: _Entry, due: float) -> None:
        due = max(due, entry.not_before)
        if entry.due is not None and entry.due <= due:
            return
        entry.due = due
        heapq.heappush(self._heap, (due, next(self._counter), key))
        self._changed.notify()

    def _work(self) -> None:
        while True:
            key = self._take()
            if key is None:
                return
            wait, has_failed = self._try(key)
            with self._changed:
                entry = self._entries[key]
                entry.is_running = False
                now = self._clock()
                entry.failures = entry.failures + 1 if has_failed else 0
                entry.not_before = now + _back_off(entry.failures) if has_failed else 0.0
                if entry.is_woken or has_failed:
                    entry.is_woken = False
                    self._schedule(key, entry, now)
                elif wait is not None:
                    self._schedule(key, entry, now + wait)
                else:
                    del self._entries[key]

    def _take(self) -> StudyKey | None:
        """Wait for the next study that is due; None where no more are to be visited."""
        with self._changed:
            while True:
                if self._is_stopping:
                    return None
                now = self._clock()
                while self._heap and not self._is_current(self._heap[0]):
                    heapq.heappop(self._heap)
                if self._heap and self._heap[0][0] <= now:
                    _, _, key = heapq.heappop(self._heap)
                    entry = self._entries[key]
                    entry.due, entry.is_running, entry.is_woken, entry.not_before = None, True, False, now
                    return key
                self._changed.wait(self._heap[0][0] - now if self._heap else None)

    def _is_current(self, item: tuple[float, int, StudyKey]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.due == item[0]

    def _try(self, key: StudyKey) -> tuple[float | None, bool]:
        begun, outcome = time.perf_counter(), "ok"
        try:
            return self._visit(key), False
        except TransientError as error:
            outcome = "again"
            log.info("study %s/%s is visited again: %s", *key, error)
        except Exception:  # a bug in one study must not stop the others
            outcome = "error"
            log.exception("study %s/%s could not be visited", *key)
        finally:
            self._metrics.observe_visit(outcome, time.perf_counter() - begun)
        return None, True


def _back_off(failures: int) -> float:
    return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** (failures - 1))
