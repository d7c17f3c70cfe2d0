"""Who is visited next, and that no tenant's slow visits hold up another tenant's."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from study_operator.cluster.work_queue import ON_PROBATION, TransientError, Visits
from study_operator.metrics import Metrics
from study_operator.names import StudyKey

SECONDS = 20.0
"""More than any of this takes."""


class World:
    """Studies whose visits hang until they are let go, and what was seen of them."""

    def __init__(self) -> None:
        self.hanging: set[str] = set()
        """Namespaces whose visits hang."""
        self.let_go = threading.Event()
        self.changed = threading.Condition()
        self.visited: Counter[StudyKey] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def visit(self, key: StudyKey) -> float | None:
        with self.changed:
            self.under_way[key[0]] += 1
            self.most[key[0]] = max(self.most[key[0]], self.under_way[key[0]])
            self.changed.notify_all()
        if key[0] in self.hanging:
            self.let_go.wait(SECONDS)
        with self.changed:
            self.under_way[key[0]] -= 1
            self.visited[key] += 1
            self.changed.notify_all()
        return 3600.0

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)


@contextmanager
def visits_of(world: World, threads: int = 2) -> Iterator[Visits]:
    visits = Visits(world.visit, Metrics(), threads=threads, slow_seconds=0.05)
    visits.start()
    try:
        yield visits
    finally:
        world.let_go.set()
        assert visits.stop(SECONDS)


def keys(namespace: str, count: int) -> list[StudyKey]:
    return [(namespace, f"study-{number}") for number in range(count)]


def test_slow_visits_of_one_namespace_do_not_hold_up_another() -> None:
    world = World()
    world.hanging = {"bad"}
    with visits_of(world) as visits:
        for key in keys("bad", 12):
            visits.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 2)
        for key in keys("good", 30):
            visits.wake(key)
        world.wait_until(lambda: sum(world.visited[key] for key in keys("good", 30)) == 30)
        assert world.under_way["bad"] == world.most["bad"] == ON_PROBATION


def test_a_namespace_whose_visits_were_slow_is_visited_to_the_end_and_then_like_any_other() -> None:
    world = World()
    world.hanging = {"bad"}
    with visits_of(world, threads=4) as visits:
        for key in keys("bad", 12):
            visits.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 4)
        time.sleep(0.2)
        world.hanging.clear()
        world.let_go.set()
        world.wait_until(lambda: all(world.visited[key] == 1 for key in keys("bad", 12)))
        assert world.most["bad"] == 4
        # Off probation: what waits is begun by as many threads as there are.
        world.let_go.clear()
        world.hanging = {"bad"}
        for key in keys("bad", 12):
            visits.wake(key)
        world.wait_until(lambda: world.under_way["bad"] == 4)


def test_threads_that_stood_in_for_slow_visits_go_when_those_have_ended() -> None:
    world = World()
    world.hanging = {f"bad-{number}" for number in range(10)}
    with visits_of(world) as visits:
        for namespace in sorted(world.hanging):
            visits.wake((namespace, "study"))
        world.wait_until(lambda: sum(world.under_way.values()) == 10)
        world.let_go.set()
        world.wait_until(lambda: len(world.visited) == 10)
        deadline = time.monotonic() + SECONDS
        while len(visits._threads) > 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(visits._threads) == 2
        visits.wake(("good", "study"))
        world.wait_until(lambda: world.visited["good", "study"] == 1)


def test_a_study_is_visited_by_one_thread_at_a_time_and_news_of_meanwhile_counts() -> None:
    world = World()
    world.hanging = {"shop"}
    with visits_of(world, threads=4) as visits:
        visits.wake(("shop", "one"))
        world.wait_until(lambda: world.under_way["shop"] == 1)
        for _ in range(5):
            visits.wake(("shop", "one"))
        time.sleep(0.2)
        assert world.under_way["shop"] == 1
        world.let_go.set()
        world.wait_until(lambda: world.visited["shop", "one"] == 2)


def test_a_visit_that_fails_is_made_again_and_one_of_a_study_that_is_gone_is_not() -> None:
    seen: list[StudyKey] = []
    again = threading.Event()

    def visit(key: StudyKey) -> float | None:
        seen.append(key)
        if key[1] == "gone":
            return None
        if seen.count(key) < 2:
            raise TransientError("not now")
        again.set()
        return 3600.0

    visits = Visits(visit, Metrics(), threads=1)
    visits.start()
    visits.wake(("shop", "gone"))
    visits.wake(("shop", "here"))
    assert again.wait(SECONDS)
    assert visits.stop(SECONDS)
    assert seen == [("shop", "gone"), ("shop", "here"), ("shop", "here")]
