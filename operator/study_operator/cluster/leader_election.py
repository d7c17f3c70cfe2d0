"""Which of several operators works: a Lease of the API server, in a thread of its own.

The rules are those of client-go's leader election: whoever holds the Lease renews it; the others take it once it was
not renewed for its duration by their own clocks; the holder gives up earlier than that, so that there are never two. A
Lease elects and does not fence: that is why every status write and every launch is bound to a version of the study.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from study_operator.cluster.api import Kube, KubeError, Raw, path_of

log = logging.getLogger(__name__)

DURATION_SECONDS = 15
"""A Lease that was not renewed for so long may be taken: with the wait between two looks, within 18 s of a kill."""
RENEW_DEADLINE_SECONDS = 10.0
"""Whoever could not renew for so long stops, 5 seconds before anybody else may begin."""
RETRY_SECONDS = 2.0
CLOCK_SECONDS = 0.5
"""Between two looks at how old the last renewal is."""


@dataclass
class _Seen:
    """The Lease as last seen, and when by our own clock that was news: clocks of other machines are not trusted."""

    holder: str = ""
    renewed: str = ""
    duration_seconds: float = 0.0
    at: float = float("-inf")


class Election:
    """One candidate."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a candidate; `start` lets it stand.

        Args:
            kube: the API server.
            namespace: of the Lease.
            name: of the Lease.
            identity: this process's own name, different from every other's.
            on_lost: called, from the election's thread, when the Lease was held and is not any more.
            clock: seconds.
        """
        self._kube = kube
        self._collection = path_of("coordination.k8s.io/v1", "leases", namespace)
        self._path = path_of("coordination.k8s.io/v1", "leases", namespace, name)
        self._name = name
        self._identity = identity
        self._on_lost = on_lost
        self._clock = clock
        self._seen = _Seen()
        self._complained = ""
        self._stopping = threading.Event()
        self._losing = threading.Lock()
        self.elected = threading.Event()
        """Set while this candidate holds the Lease."""
        self._renewed = float("-inf")
        """When the last request began that made or renewed the Lease."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Stand for election."""
        self._thread.start()
        # A request may hang for longer than the Lease lasts, so somebody else looks at the clock.
        threading.Thread(target=self._watch_clock, name="lease-clock", daemon=True).start()

    def resign(self) -> None:
        """Stop, and give the Lease back at once where it is held."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_DEADLINE_SECONDS)
        if not self.elected.is_set():
            return
        self.elected.clear()
        try:
            lease = self._kube.get(self._path)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                self._kube.replace(self._path, lease)
        except KubeError as error:
            log.info("the lease runs out by itself: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            begun = self._clock()
            if self._try():
                self._renewed = begun
                if not self.elected.is_set():
                    log.info("elected: %s", self._identity)
                    self.elected.set()
            elif self._seen.holder not in ("", self._identity):
                self._lose()
            self._stopping.wait(RETRY_SECONDS * random.uniform(1.0, 1.2))

    def _watch_clock(self) -> None:
        while not self._stopping.wait(CLOCK_SECONDS):
            if self._clock() - self._renewed > RENEW_DEADLINE_SECONDS:
                self._lose()

    def _lose(self) -> None:
        """Say once that the Lease was held and is not any more."""
        with self._losing:
            if not self.elected.is_set():
                return
            self.elected.clear()
        self._on_lost()

    def _try(self) -> bool:
        """Take or renew the Lease; say whether it is ours now."""
        try:
            lease = self._kube.get(self._path)
            if lease is None:
                self._kube.create(self._collection, self._build(None))
                return True
            self._look(lease)
            if self._seen.holder not in ("", self._identity) and not self._has_run_out():
                return False
            self._look(self._kube.replace(self._path, self._build(lease)))
        except KubeError as error:
            # Somebody else was quicker, or there is no answer; anything else needs somebody who sees it.
            is_usual = error.is_transient or error.status == 409
            if not is_usual and str(error) != self._complained:
                log.warning("nobody can be elected: %s", error)
                self._complained = str(error)
            return False
        return True

    def _look(self, lease: Raw) -> None:
        spec = lease.get("spec") or {}
        holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
        if (holder, renewed) != (self._seen.holder, self._seen.renewed):
            duration = float(spec.get("leaseDurationSeconds") or DURATION_SECONDS)
            self._seen = _Seen(holder=holder, renewed=renewed, duration_seconds=duration, at=self._clock())

    def _has_run_out(self) -> bool:
        return self._clock() - self._seen.at > self._seen.duration_seconds

    def _build(self, before: Raw | None) -> Raw:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = (before.get("spec") or {}) if before is not None else {}
        is_ours = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": before["metadata"] if before is not None else {"name": self._name},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": spec.get("acquireTime") if is_ours else now,
                "renewTime": now,
                "leaseTransitions": transitions if is_ours or before is None else transitions + 1,
            },
        }
