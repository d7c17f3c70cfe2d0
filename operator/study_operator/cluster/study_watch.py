"""kopf: watches the studies and says which one has news. The only importer of kopf.

There is one handler, and it observes. It is an `on.event` handler: with one that kopf has to remember something of
(`on.create`, daemons, timers) kopf would write annotations and finalizers into people's objects.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kopf

from study_operator import names
from study_operator.cluster.api import Kube
from study_operator.cluster.kopf_session import open_session
from study_operator.cluster.study_store import Studies
from study_operator.names import StudyKey

END_SECONDS = 10.0
"""How long kopf may take to end. It waits for each of its watches, and one that is stuck does not end."""

STUDIES_A_PAGE = 10
"""Of 1.5 MiB each at most, which is as much as etcd takes: a page that is too large would never be read."""
LIST_AGAIN_SECONDS = 1.0
"""Before a list that is read again."""

log = logging.getLogger(__name__)


def run_kopf(kube: Kube, studies: Studies, wake: Callable[[StudyKey], None], *, namespaces: Sequence[str]) -> None:
    """Watch studies until this process is asked to stop. Must be called in the main thread, whose signals it takes.

    Args:
        kube: the API server.
        studies: what is kept up to date.
        wake: told which study has news.
        namespaces: those to watch; empty means all.

    Raises:
        Exception: where kopf gives up; the process must end, so that it is started again.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        """Connect as everything else in this process does."""
        return kopf.AiohttpSession(server=kube.connection().server, aiohttp_session=open_session(kube))

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def observe(event: Any, **_: Any) -> None:
        """Take in what happened to a study."""
        body = event["object"]
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if event["type"] == "DELETED":
            studies.drop(key, metadata["uid"])
        else:
            studies.put(dict(body))
        wake(key)

    # Not `asyncio.run`, which waits for stuck tasks as kopf does.
    asyncio.new_event_loop().run_until_complete(_run(registry, namespaces))


async def _run(registry: kopf.OperatorRegistry, namespaces: Sequence[str]) -> None:
    """Run kopf until it is asked to stop or any part of it fails: what is left of it then would look well and be blind.

    Raises:
        Exception: that of the part.
    """
    ignored = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=_make_settings(),
        namespaces=list(namespaces),
        clusterwide=not namespaces,
        standalone=True,
    )
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([asyncio.ensure_future(kopf.run_tasks(tasks, ignored=ignored))], timeout=END_SECONDS)
    for task in ended:
        task.result()


def _make_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Reads neither namespaces nor CRDs again, for which the operator has no rights.
    settings.scanning.disabled = True
    # Events are posted by us, after the status is written.
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # An API server that is away for an hour is waited for.
    settings.networking.error_backoffs = _Backoffs()
    settings.watching.chunk_size = STUDIES_A_PAGE
    settings.watching.reconnect_backoff = LIST_AGAIN_SECONDS
    return settings


class _Backoffs:
    """Waits between tries, without an end; seconds."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 4, 8), itertools.repeat(15.0))
