"""One thread that does things later, for any number of waiting pods."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Timer:
    """Something that is due at a moment, until it is cancelled."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do nothing when the moment comes; harmless afterwards."""
        self.action = None


class Timers:
    """A heap of timers and the thread that empties it. Actions must be short: they hand work to a pool."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self._thread.start()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Do something once, in a while."""
        timer = Timer(action)
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._order), timer))
            self._changed.notify()
        return timer

    def stop(self) -> None:
        """Forget all that waits."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_stopped and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._is_stopped:
                    return
                timer = heapq.heappop(self._heap)[2]
            if (action := timer.action) is not None:
                action()
