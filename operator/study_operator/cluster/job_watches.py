"""Watches of Jobs, their pods and their FailedCreate events, which fill the cache of `job_cache.py`.

One thread lists and then follows them all, however many namespaces there are; selectors work on the server, so that a
cluster's other ten thousand pods cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from study_operator import names
from study_operator.backoff import wait_after
from study_operator.cluster.api import Kube, KubeError, Raw, WatchBrokenError, has_version, path_of
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.streams import Streams, open_streams

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 15.0
"""Between two tries to list or watch while the API server does not answer."""
LISTS_AT_A_TIME = 8
BEAT_SECONDS, STUCK_SECONDS = 5.0, 60.0
"""The loop has a turn every few seconds; where it has had none for so long, the process is not well."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One collection that is watched."""

    path: str
    query: Mapping[str, str]
    take_event: Callable[[str, Raw], None]
    miss: Callable[[str | None, Set[str]], None]
    """Told the UIDs of all objects that a list held."""
    namespace: str | None
    is_synced: asyncio.Event = field(default_factory=asyncio.Event)
    """It was listed once."""


class Watches:
    """The thread that keeps a `Memory` up to date: of each namespace by itself, or of all together."""

    def __init__(
        self,
        kube: Kube,
        memory: Memory,
        namespaces: Sequence[str],
        *,
        on_synced: Callable[[str | None], None] = lambda _namespace: None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Prepare the watches.

        Args:
            kube: the API server.
            memory: what is kept up to date.
            namespaces: those to watch; empty means all.
            on_synced: told of a namespace of which everything was listed once; of None where all are watched together.
            pause: waits for so many seconds.
        """
        self._kube = kube
        self._on_synced = on_synced
        self._pause = pause
        # Jobs first: of others' pods and events nothing is kept.
        self._kinds = {namespace: _kinds_of(memory, namespace) for namespace in namespaces or (None,)}
        self._told_at = dict.fromkeys((kind.path for kind in self._all()), time.monotonic())
        """When each collection was last listed, or its watch told anything."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._beat_at = time.monotonic()
        """When the loop last had a turn."""
        self._lists = asyncio.Semaphore(LISTS_AT_A_TIME)

    def start(self) -> None:
        """Start the thread."""
        self._told_at = dict.fromkeys(self._told_at, time.monotonic())
        self._beat_at = time.monotonic()
        threading.Thread(target=lambda: asyncio.run(self._run()), name="watches", daemon=True).start()

    def is_synced(self, namespace: str) -> bool:
        """Say whether everything of a namespace was listed once."""
        return all(kind.is_synced.is_set() for kind in self._kinds.get(namespace, self._kinds.get(None, [])))

    def list_unsynced(self) -> list[str]:
        """Return the collections that could not be listed yet."""
        return [kind.path for kind in self._all() if not kind.is_synced.is_set()]

    def idle_seconds(self) -> float:
        """Return how long ago the quietest watch was told anything."""
        return time.monotonic() - min(self._told_at.values())

    def find_trouble(self) -> str:
        """Say what is wrong since `start`, or nothing: a watch that nobody follows, or a loop that is stuck."""
        ended = next((path for path, task in list(self._tasks.items()) if task.done()), None)
        if ended is not None:
            return f"nobody follows {ended} any more"
        seconds = time.monotonic() - self._beat_at
        return f"the watches have been stuck for {seconds:.0f} s" if seconds > STUCK_SECONDS else ""

    def _all(self) -> list[_Kind]:
        return [kind for kinds in self._kinds.values() for kind in kinds]

    async def _run(self) -> None:
        async with open_streams(self._kube) as streams, asyncio.TaskGroup() as tasks:
            for kinds in self._kinds.values():
                for before, kind in zip([None, *kinds], kinds, strict=False):
                    self._tasks[kind.path] = tasks.create_task(self._follow(streams, before, kind))
            while True:
                self._beat_at = time.monotonic()
                await asyncio.sleep(BEAT_SECONDS)

    async def _list(self, streams: Streams, kind: _Kind) -> str:
        """Take in a whole list, page by page; return the version to watch from."""
        listed, version = set[str](), ""
        # Each page is a megabyte or more until it is taken in.
        async with self._lists:
            async for page in streams.pages(kind.path, kind.query):
                for raw in page.items:
                    kind.take_event("ADDED", raw)
                    listed.add(raw["metadata"]["uid"])
                version = page.version
                self._told_at[kind.path] = time.monotonic()
        kind.miss(kind.namespace, listed)
        if not kind.is_synced.is_set():
            kind.is_synced.set()
            if all(k.is_synced.is_set() for k in self._kinds[kind.namespace]):
                self._on_synced(kind.namespace)
        return version

    async def _follow(self, streams: Streams, before: _Kind | None, kind: _Kind) -> None:
        if before is not None:
            await before.is_synced.wait()
        version, tries = "", 1
        while True:
            begun = time.monotonic()
            try:
                if not version:
                    version = await self._list(streams, kind)
                async for event, raw in streams.watch(kind.path, version, kind.query):
                    version = raw["metadata"]["resourceVersion"] if has_version(raw["metadata"]) else version
                    self._told_at[kind.path] = time.monotonic()
                    if event != "BOOKMARK":
                        kind.take_event(event, raw)
            except WatchBrokenError as error:
                # What happened meanwhile is not told, or not to be understood: look at everything again.
                version = ""
                log.log(logging.DEBUG if error.status == 410 else logging.WARNING, "watch of %s: %s", kind.path, error)
            except KubeError as error:
                level = logging.DEBUG if error.is_transient else logging.WARNING
                log.log(level, "cannot watch %s: %s", kind.path, error)
            except Exception:
                # A watch that nobody follows would leave the operator blind, and alive.
                version = ""
                log.exception("cannot follow %s; it is listed again", kind.path)
            wait = wait_after(tries, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
            if time.monotonic() - begun > wait:
                # It went well for a while: something on the way ends connections that are idle, and nobody is to blame.
                tries, wait = 1, FIRST_WAIT_SECONDS
            # Not all replicas of an operator, and not all watches, at once.
            await self._pause(wait * random.uniform(0.5, 1.5))
            tries += 1


def _kinds_of(memory: Memory, namespace: str | None) -> list[_Kind]:
    ours = {"labelSelector": f"{names.STUDY_LABEL},{names.KIND_LABEL}"}
    refusals = {"fieldSelector": "involvedObject.kind=Job,reason=FailedCreate"}
    kinds = (
        ("batch/v1", "jobs", ours, memory.see_job, memory.miss_jobs),
        ("v1", "pods", ours, memory.see_pod, memory.miss_pods),
        ("v1", "events", refusals, memory.see_refusal, lambda _namespace, _listed: None),
    )
    return [
        _Kind(path=path_of(version, plural, namespace), query=query, take_event=take, miss=miss, namespace=namespace)
        for version, plural, query, take, miss in kinds
    ]
