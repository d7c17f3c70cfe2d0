"""Which study is reconciled next: a queue, worked off by a few threads.

A study is reconciled by one thread at a time. It is woken by news, or comes again when its last reconciliation said so;
one that failed is tried again after a wait that doubles. Called by `cluster/operator.py`; knows nothing of what
reconciling does.

A reconciliation may hang for as long as a tenant's bucket lets it, and must not hold up another tenant's. So a slow one
no longer counts among the threads: another thread starts in its place. Its namespace is on probation from then on, with
no more than `ON_PROBATION` reconciliations at a time, until one of them is quick again.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from study_operator.backoff import wait_after
from study_operator.errors import OperatorError
from study_operator.metrics import Metrics
from study_operator.names import StudyKey

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
SLOW_SECONDS = 3.0
"""A reconciliation takes tens of milliseconds, and a few seconds where a bucket is far away."""
ON_PROBATION = 2
"""Reconciliations at a time of a namespace whose reconciliations have become slow."""
MOST_SLOW = 64
"""Reconciliations that other threads are started for. Beyond that the threads are shared with slow ones after all."""


class TransientError(OperatorError):
    """A reconciliation could not be finished for a reason that passes: one sentence, and no trace."""

    reason = "TryAgain"


@dataclass
class _Entry:
    due: float | None = None
    """When it is to be reconciled; None where it is not waiting."""
    is_running: bool = False
    is_woken: bool = False
    """News came while it was reconciled."""
    failures: int = 0
    not_before: float = field(default=0.0)


_Item = tuple[float, int, StudyKey]


class WorkQueue:
    """The queue and its threads."""

    def __init__(
        self,
        reconcile: Callable[[StudyKey], float | None],
        metrics: Metrics,
        *,
        threads: int = 8,
        slow_seconds: float = SLOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a queue; `start` starts its threads.

        Args:
            reconcile: reconciles a study, and returns after how many seconds it wants to be reconciled again without
                news; None where the study is gone.
            metrics: where reconciliations are counted.
            threads: how many studies are reconciled at the same time, slow reconciliations aside.
            slow_seconds: how long a reconciliation may take before it is a slow one.
            clock: seconds.
        """
        self._reconcile = reconcile
        self._metrics = metrics
        self._threads_wanted = threads
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[StudyKey, _Entry] = {}
        self._heap: list[_Item] = []
        self._held: defaultdict[str, list[_Item]] = defaultdict(list)
        """By namespace on probation: studies that were due while it had its reconciliations under way."""
        self._begun: dict[StudyKey, float] = {}
        """When the reconciliations under way began that are not slow yet, in that order."""
        self._slow: set[StudyKey] = set()
        self._busy: Counter[str] = Counter()
        """Reconciliations under way by namespace."""
        self._on_probation: set[str] = set()
        self._counter = itertools.count()
        self._is_stopping = False
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Start the threads."""
        threading.Thread(target=self._watch_clock, name="reconciliation-clock", daemon=True).start()
        with self._changed:
            for _ in range(self._threads_wanted):
                self._start_thread()

    def stop(self, timeout_seconds: float) -> bool:
        """Begin no more reconciliations, and wait for those under way; say whether they ended."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            threads = [*self._threads]
        deadline = time.monotonic() + timeout_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def wake(self, key: StudyKey) -> None:
        """Reconcile a study soon: there is news."""
        with self._changed:
            entry = self._entries.setdefault(key, _Entry())
            if entry.is_running:
                entry.is_woken = True
            else:
                self._schedule(key, entry, self._clock())

    def longest_running_seconds(self) -> float:
        """Return for how long the oldest reconciliation under way has gone on, for a health check."""
        with self._changed:
            now = self._clock()
            return max((now - e.not_before for e in self._entries.values() if e.is_running), default=0.0)

    def _schedule(self, key: StudyKey, entry: _Entry, due: float) -> None:
        due = max(due, entry.not_before)
        if entry.due is not None and entry.due <= due:
            return
        entry.due = due
        heapq.heappush(self._heap, (due, next(self._counter), key))
        self._changed.notify_all()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"reconciliation-{next(self._counter)}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while (key := self._take()) is not None:
            wait, has_failed = self._try(key)
            with self._changed:
                is_replaced = self._end(key)
                entry = self._entries[key]
                entry.is_running = False
                now = self._clock()
                entry.failures = entry.failures + 1 if has_failed else 0
                entry.not_before = (
                    now + wait_after(entry.failures, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS) if has_failed else 0.0
                )
                if entry.is_woken or has_failed:
                    entry.is_woken = False
                    self._schedule(key, entry, now)
                elif wait is not None:
                    self._schedule(key, entry, now + wait)
                else:
                    del self._entries[key]
                if is_replaced:
                    self._threads.discard(threading.current_thread())
                    return

    def _take(self) -> StudyKey | None:
        """Wait for the next study that is due; None where no more are to be reconciled."""
        with self._changed:
            while True:
                if self._is_stopping:
                    return None
                now = self._clock()
                while self._heap and not self._is_current(self._heap[0]):
                    heapq.heappop(self._heap)
                if not self._heap or self._heap[0][0] > now:
                    self._changed.wait(self._heap[0][0] - now if self._heap else None)
                    continue
                item = heapq.heappop(self._heap)
                key = item[2]
                if key[0] in self._on_probation and self._busy[key[0]] >= ON_PROBATION:
                    self._held[key[0]].append(item)
                    continue
                self._begin(key, now)
                return key

    def _begin(self, key: StudyKey, now: float) -> None:
        entry = self._entries[key]
        entry.due, entry.is_running, entry.is_woken, entry.not_before = None, True, False, now
        self._begun[key] = now
        self._busy[key[0]] += 1
        if len(self._begun) == 1:
            # The clock has something to look at.
            self._changed.notify_all()

    def _end(self, key: StudyKey) -> bool:
        """Note that a reconciliation has ended; say whether another thread has taken its thread's place."""
        namespace = key[0]
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]
        is_slow = key in self._slow
        if is_slow:
            self._slow.discard(key)
        else:
            del self._begun[key]
            self._on_probation.discard(namespace)
        for item in self._held.pop(namespace, ()):
            heapq.heappush(self._heap, item)
        self._changed.notify_all()
        return is_slow and len(self._threads) > self._threads_wanted

    def _watch_clock(self) -> None:
        """Find reconciliations that have become slow, and start other threads in their place."""
        with self._changed:
            while not self._is_stopping:
                now = self._clock()
                key, begun = next(iter(self._begun.items()), (None, now))
                if key is None:
                    self._changed.wait()
                elif now - begun < self._slow_seconds:
                    self._changed.wait(begun + self._slow_seconds - now)
                else:
                    del self._begun[key]
                    self._slow.add(key)
                    self._on_probation.add(key[0])
                    if len(self._threads) - self._threads_wanted < MOST_SLOW:
                        self._start_thread()

    def _is_current(self, item: _Item) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.due == item[0]

    def _try(self, key: StudyKey) -> tuple[float | None, bool]:
        begun, outcome = time.perf_counter(), "ok"
        try:
            return self._reconcile(key), False
        except TransientError as error:
            outcome = "again"
            log.info("study %s/%s is reconciled again: %s", *key, error)
        except Exception:  # a bug in one study must not stop the others
            outcome = "error"
            log.exception("study %s/%s could not be reconciled", *key)
        finally:
            self._metrics.observe_reconcile(outcome, time.perf_counter() - begun)
        return None, True
