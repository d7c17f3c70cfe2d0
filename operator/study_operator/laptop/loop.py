"""The loop behind `finetune-study run`: when to tick, when to draw, and how to stop.

It is woken by what happens (a job ended, a signal came, a tick is done) and otherwise only by slow timers. The tick
runs in a thread of its own, because asking the optimizer takes seconds in which a person still wants to see progress
and to press Ctrl-C. It knows nothing of studies: it is given what to call.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

TICK_SECONDS = 30.0
"""A tick without any news, for what nobody tells: a deadline, a bucket that is back."""
SHOW_SECONDS = 1.0
KILL_PATIENCE_SECONDS = 10.0
"""How long we wait for killed jobs to be gone before we leave anyway."""


class Ending(StrEnum):
    """Why the loop ended."""

    DONE = "Done"
    INTERRUPTED = "Interrupted"
    KILLED = "Killed"


@dataclass(frozen=True, kw_only=True)
class Ticked:
    """What a tick tells the loop."""

    is_done: bool
    """The study has ended; there is nothing left to wait for."""
    is_idle: bool
    """It changed nothing: the next one waits for news."""
    wake_in_seconds: float | None = None
    """When a clock alone will give the next one something to do."""


class Jobs(Protocol):
    """What the loop asks of a runner."""

    def running(self) -> int:
        """Return how many jobs have a process."""
        ...

    def kill(self) -> None:
        """End every job at once."""
        ...


class Wakes:
    """What wakes the loop. Safe to call from threads and from signal handlers (`SimpleQueue.put` is reentrant)."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def changed(self) -> None:
        """Tell that a job ended."""
        self._queue.put("changed")

    def ticked(self) -> None:
        """Tell that the tick is done."""
        self._queue.put("ticked")

    def interrupted(self) -> None:
        """Tell that a person, or the system, asked us to stop."""
        self._queue.put("interrupted")

    def wait(self, timeout_seconds: float) -> str | None:
        """Return the next piece of news, or None after the timeout."""
        try:
            return self._queue.get(timeout=timeout_seconds)
        except queue.Empty:
            return None


def drive(
    tick: Callable[[bool], Ticked],
    jobs: Jobs,
    wakes: Wakes,
    *,
    show: Callable[[], None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Tick until the study has ended or somebody interrupts.

    Args:
        tick: one reconciliation; its argument says whether the study is suspended. Never called twice at once.
        jobs: the study's jobs.
        wakes: the news; signals must be installed by the caller (`handling_signals`).
        show: draw the progress.
        say: print one sentence.
        clock: seconds, for the slow timers.

    Raises:
        Exception: whatever the tick raised; the jobs go on, and the next command adopts them.
    """
    ticker = _Ticker(tick, wakes)
    interrupts = 0
    has_news = True
    due = clock()
    while True:
        if not ticker.is_busy and (has_news or clock() >= due):
            has_news, due = False, clock() + TICK_SECONDS
            ticker.start(is_suspended=interrupts > 0)
        match wakes.wait(SHOW_SECONDS):
            case "changed":
                has_news = True
            case "ticked":
                ticked = ticker.result()
                show()
                if ticked.is_done:
                    return Ending.DONE
                # Idle: the ledger knows of every end.
                if ticker.was_suspended and ticked.is_idle and jobs.running() == 0:
                    return Ending.INTERRUPTED
                has_news = has_news or not ticked.is_idle
                if ticked.wake_in_seconds is not None:
                    due = min(due, clock() + ticked.wake_in_seconds)
            case "interrupted":
                interrupts += 1
                if interrupts > 1:
                    say("killing the jobs; what they did since their last checkpoint is done again next time")
                    _kill(jobs, ticker, wakes, clock)
                    return Ending.KILLED
                say("stopping: the jobs write their checkpoints; press Ctrl-C again to kill them instead")
                has_news = True
            case _:
                show()


class _Ticker:
    """Runs one tick at a time in a thread that never keeps the process alive."""

    def __init__(self, tick: Callable[[bool], Ticked], wakes: Wakes) -> None:
        self._tick = tick
        self._wakes = wakes
        self._result: Ticked | BaseException | None = None
        self.is_busy = False
        self.was_suspended = False

    def start(self, *, is_suspended: bool) -> None:
        self.is_busy = True
        self.was_suspended = is_suspended
        threading.Thread(target=self._run, args=(is_suspended,), name="tick", daemon=True).start()

    def result(self) -> Ticked:
        self.is_busy = False
        if isinstance(self._result, BaseException):
            raise self._result
        if self._result is None:
            raise RuntimeError("a tick must have ended")
        return self._result

    def _run(self, is_suspended: bool) -> None:
        try:
            self._result = self._tick(is_suspended)
        except BaseException as error:  # noqa: BLE001  # handed to the loop, which raises it
            self._result = error
        self._wakes.ticked()


def _kill(jobs: Jobs, ticker: _Ticker, wakes: Wakes, clock: Callable[[], float]) -> None:
    """End the jobs at once, and let the ledger know if that takes no time."""
    jobs.kill()
    end = clock() + KILL_PATIENCE_SECONDS
    is_told = False
    while clock() < end:
        if not ticker.is_busy and not jobs.running():
            if is_told:
                return
            ticker.start(is_suspended=True)
            is_told = True
        if wakes.wait(0.2) == "ticked":
            ticker.is_busy = False


@contextlib.contextmanager
def handling_signals(wakes: Wakes) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into news, and put back the old handlers at the end."""
    # `nohup` ignores SIGHUP, and a shell's background job SIGINT: that is the person's word.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: wakes.interrupted()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
