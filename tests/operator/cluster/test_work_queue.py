"""Who is reconciled next, and that no tenant's slow reconciliations hold up another tenant's."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from study_operator.cluster.work_queue import ON_PROBATION, TransientError, WorkQueue
from study_operator.metrics import Metrics
from study_operator.names import StudyKey

SECONDS = 20.0
"""More than any of this takes."""


class World:
    """Studies whose reconciliations hang until they are let go, and what was seen of them."""

    def __init__(self) -> None:
        self.hanging: set[str] = set()
        """Namespaces whose reconciliations hang."""
        self.let_go = threading.Event()
        self.changed = threading.Condition()
        self.reconciled: Counter[StudyKey] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def reconcile(self, key: StudyKey) -> float | None:
        with self.changed:
            self.under_way[key[0]] += 1
            self.most[key[0]] = max(self.most[key[0]], self.under_way[key[0]])
            self.changed.notify_all()
        if key[0] in self.hanging:
            self.let_go.wait(SECONDS)
        with self.changed:
            self.under_way[key[0]] -= 1
            self.reconciled[key] += 1
            self.changed.notify_all()
        return 3600.0

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)


@contextmanager
def a_queue(world: World, threads: int = 2) -> Iterator[WorkQueue]:
    queue = WorkQueue(world.reconcile, Metrics(), threads=threads, slow_seconds=0.05)
    queue.start()
    try:
        yield queue
    finally:
        world.let_go.set()
        assert queue.stop(SECONDS)


def keys(namespace: str, count: int) -> list[StudyKey]:
    return [(namespace, f"study-{number}") for number in range(count)]


def test_slow_reconciliations_of_one_namespace_do_not_hold_up_another() -> None:
    world = World()
    world.hanging = {"bad"}
    with a_queue(world) as queue:
        for key in keys("bad", 12):
            queue.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 2)
        for key in keys("good", 30):
            queue.wake(key)
        world.wait_until(lambda: sum(world.reconciled[key] for key in keys("good", 30)) == 30)
        assert world.under_way["bad"] == world.most["bad"] == ON_PROBATION


def test_a_namespace_whose_reconciliations_were_slow_is_reconciled_to_the_end_and_then_like_any_other() -> None:
    world = World()
    world.hanging = {"bad"}
    with a_queue(world, threads=4) as queue:
        for key in keys("bad", 12):
            queue.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 4)
        time.sleep(0.2)
        world.hanging.clear()
        world.let_go.set()
        world.wait_until(lambda: all(world.reconciled[key] == 1 for key in keys("bad", 12)))
        assert world.most["bad"] == 4
        # Off probation: what waits is begun by as many threads as there are.
        world.let_go.clear()
        world.hanging = {"bad"}
        for key in keys("bad", 12):
            queue.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 4)


def test_threads_that_stood_in_for_slow_reconciliations_go_when_those_have_ended() -> None:
    world = World()
    world.hanging = {f"bad-{number}" for number in range(10)}
    with a_queue(world) as queue:
        for namespace in sorted(world.hanging):
            queue.wake((namespace, "study"))
        world.wait_until(lambda: sum(world.under_way.values()) == 10)
        world.let_go.set()
        world.wait_until(lambda: len(world.reconciled) == 10)
        deadline = time.monotonic() + SECONDS
        while len(queue._threads) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(queue._threads) == 2
        queue.wake(("good", "study"))
        world.wait_until(lambda: world.reconciled["good", "study"] == 1)


def test_a_study_is_reconciled_by_one_thread_at_a_time_and_news_of_meanwhile_counts() -> None:
    world = World()
    world.hanging = {"shop"}
    with a_queue(world, threads=4) as queue:
        queue.wake(("shop", "one"))
        world.wait_until(lambda: world.under_way["shop"] == 1)
        for _ in range(5):
            queue.wake(("shop", "one"))
        time.sleep(0.2)
        assert world.under_way["shop"] == 1
        world.let_go.set()
        world.wait_until(lambda: world.reconciled["shop", "one"] == 2)


def test_a_reconciliation_that_fails_is_made_again_and_one_of_a_study_that_is_gone_is_not() -> None:
    seen: list[StudyKey] = []
    again = threading.Event()

    def reconcile(key: StudyKey) -> float | None:
        seen.append(key)
        if key[1] == "gone":
            return None
        if seen.count(key) < 2:
            raise TransientError("not now")
        again.set()
        return 3600.0

    queue = WorkQueue(reconcile, Metrics(), threads=1)
    queue.start()
    queue.wake(("shop", "gone"))
    queue.wake(("shop", "here"))
    assert again.wait(SECONDS)
    assert queue.stop(SECONDS)
    assert seen == [("shop", "gone"), ("shop", "here"), ("shop", "here")]
