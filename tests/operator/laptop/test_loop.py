"""The loop of `finetune-study run`: when it ticks, and how it stops."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from study_operator.laptop.loop import (
    KILL_PATIENCE_SECONDS,
    TICK_SECONDS,
    Ending,
    Ticked,
    Wakes,
    drive,
    handling_signals,
)

MOVED = Ticked(is_done=False, is_idle=False)
IDLE = Ticked(is_done=False, is_idle=True)
DONE = Ticked(is_done=True, is_idle=False)


class SomeJobs:
    """Jobs that end when they are told to, and say so."""

    def __init__(self, wakes: Wakes, count: int) -> None:
        self.wakes, self.count = wakes, count
        self.calls: list[str] = []

    def running(self) -> int:
        return self.count

    def kill(self) -> None:
        self.calls.append("kill")
        self.end()

    def end(self) -> None:
        self.count = 0
        self.wakes.changed()


class Scene:
    """A loop with a scripted tick."""

    def __init__(self, *, jobs: int = 0) -> None:
        self.wakes = Wakes()
        self.jobs = SomeJobs(self.wakes, jobs)
        self.ticks: list[bool] = []
        self.messages: list[str] = []
        self.shown = 0
        self.now = 0.0
        self.seconds_a_look = 0.0

    def clock(self) -> float:
        self.now += self.seconds_a_look
        return self.now

    def drive(self, tick: Callable[[int], Ticked], on_show: Callable[[], None] = lambda: None) -> Ending:
        def one(is_suspended: bool) -> Ticked:
            self.ticks.append(is_suspended)
            return tick(len(self.ticks))

        def show() -> None:
            self.shown += 1
            on_show()

        return drive(one, self.jobs, self.wakes, show=show, say=self.messages.append, clock=self.clock)


def test_it_ticks_again_while_ticks_change_something_and_ends_when_the_study_does():
    scene = Scene()

    assert scene.drive(lambda n: MOVED if n < 5 else DONE) is Ending.DONE
    assert scene.ticks == [False] * 5


def test_an_idle_tick_is_followed_by_another_only_when_a_job_changed():
    scene = Scene(jobs=1)

    def wake() -> None:
        if len(scene.ticks) == 1:
            scene.jobs.end()

    assert scene.drive(lambda n: IDLE if n == 1 else DONE, on_show=wake) is Ending.DONE
    assert len(scene.ticks) == 2


def test_it_ticks_when_a_tick_said_that_it_would_have_something_to_do():
    scene = Scene()

    def pass_time() -> None:
        scene.now += 2.0

    soon = Ticked(is_done=False, is_idle=True, wake_in_seconds=1.0)
    assert scene.drive(lambda n: soon if n < 3 else DONE, on_show=pass_time) is Ending.DONE
    assert scene.now < TICK_SECONDS


def test_without_news_it_ticks_after_the_slow_timer():
    scene = Scene()

    def pass_time() -> None:
        scene.now += TICK_SECONDS

    assert scene.drive(lambda n: IDLE if n < 3 else DONE, on_show=pass_time) is Ending.DONE
    assert len(scene.ticks) == 3


def test_news_that_come_while_it_ticks_are_not_lost():
    scene = Scene(jobs=1)

    def tick(number: int) -> Ticked:
        if number == 1:
            scene.wakes.changed()
            return IDLE
        return DONE

    assert scene.drive(tick) is Ending.DONE


def test_an_interrupt_suspends_the_study_and_leaves_once_its_jobs_are_gone_and_the_ledger_knows():
    scene = Scene(jobs=2)

    def tick(number: int) -> Ticked:
        if number == 1:
            scene.wakes.interrupted()
        if number == 3:
            scene.jobs.end()
            return MOVED
        return IDLE if number > 3 else MOVED

    assert scene.drive(tick) is Ending.INTERRUPTED
    assert scene.ticks == [False, True, True, True]
    assert scene.jobs.calls == []
    assert "press Ctrl-C again" in scene.messages[0]


def test_a_second_interrupt_kills():
    scene = Scene(jobs=2)
    scene.wakes.interrupted()
    scene.wakes.interrupted()

    assert scene.drive(lambda _: IDLE) is Ending.KILLED
    assert scene.jobs.calls == ["kill"]
    assert scene.ticks[-1] is True


def test_a_second_interrupt_does_not_wait_for_a_tick_that_hangs():
    scene = Scene(jobs=1)
    scene.seconds_a_look = KILL_PATIENCE_SECONDS / 3
    for_ever = threading.Event()
    scene.wakes.interrupted()
    scene.wakes.interrupted()

    def hang(_: int) -> Ticked:
        for_ever.wait()
        return IDLE

    assert scene.drive(hang) is Ending.KILLED
    for_ever.set()


def test_what_a_tick_raises_is_raised_here():
    scene = Scene()

    def tick(_: int) -> Ticked:
        raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        scene.drive(tick)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_news_and_their_old_handlers_come_back(number):
    wakes = Wakes()
    before = signal.getsignal(number)
    with handling_signals(wakes):
        os.kill(os.getpid(), number)
        assert wakes.wait(5) == "interrupted"
    assert signal.getsignal(number) is before


def test_a_signal_that_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling_signals(Wakes()):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
