"""What the operator's process tells Prometheus about itself: requests, reconciliations, proposals, waits.

What studies say of themselves is in `cluster/study_metrics.py`. One `Metrics` a process, made by `cluster/operator.py`
and handed to whoever has something to count. Names and labels are an interface: alerts and dashboards of installations
use them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
"""An API server answers in milliseconds and is given up after 20 seconds; so is a bucket."""
PROPOSAL_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
WAIT_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
"""For an accelerator: seconds on an idle cluster, a night in a queue."""
IDLE_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Metrics:
    """Counters and histograms of one process. May be used by many threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.leader = Gauge(
            "finetune_study_operator_leader",
            "1 where this process holds the Lease and works, 0 where it waits for its turn.",
            registry=self.registry,
        )
        self.watch_idle = Gauge(
            "finetune_study_operator_watch_idle_seconds",
            "How long ago the quietest watch of Jobs, pods and events last told anything; 0 where this process waits.",
            registry=self.registry,
        )
        self._api = Histogram(
            "finetune_study_operator_api_request_seconds",
            "Requests to the API server until the answer began; code 0: there was none.",
            ["verb", "resource", "code"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._bucket = Histogram(
            "finetune_study_operator_bucket_request_seconds",
            "Operations on buckets; outcome is ok, or the reason that StorageReady would give.",
            ["operation", "outcome"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._reconciliations = Histogram(
            "finetune_study_operator_reconcile_seconds",
            "Reconciliations of studies. outcome: ok, again (no answer, or an old one) or error (a bug).",
            ["outcome"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._proposals = Histogram(
            "finetune_study_operator_proposal_seconds",
            "Proposals of one arm by the optimizer's process; outcome: arms, problem (there is none), or died.",
            ["outcome"],
            buckets=PROPOSAL_SECONDS,
            registry=self.registry,
        )
        self._waits = Histogram(
            "finetune_study_queue_wait_seconds",
            "From the making of a Job, or of a pod that replaces another, to the start of its container.",
            ["namespace", "kind"],
            buckets=WAIT_SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "finetune_study_rejected_objects",
            "Objects that jobs wrote into buckets and that were not taken: too large, or none of the trial contract.",
            ["namespace"],
            registry=self.registry,
        )
        self._idle = Histogram(
            "finetune_study_slot_idle_seconds",
            "From the end of a trial's pod to the launch of the trial that takes its slot.",
            ["namespace"],
            buckets=IDLE_SECONDS,
            registry=self.registry,
        )

    def observe_api_request(
        self, method: str, path: str, query: Mapping[str, str] | None, status: int, seconds: float
    ) -> None:
        """Count one request to the API server.

        Args:
            method: of HTTP.
            path: of the object or the collection.
            query: of the URL.
            status: of HTTP; 0 where there was no answer.
            seconds: until the answer began.
        """
        verb, resource = _name_request(method, path, query or {})
        self._api.labels(verb, resource, str(status)).observe(seconds)

    @contextlib.contextmanager
    def time_bucket(self, operation: str) -> Iterator[None]:
        """Time one operation on a bucket; an error's ``reason`` is its outcome."""
        begun, outcome = time.perf_counter(), "ok"
        try:
            yield
        except Exception as error:
            outcome = str(getattr(error, "reason", "") or type(error).__name__)
            raise
        finally:
            self._bucket.labels(operation, outcome).observe(time.perf_counter() - begun)

    def observe_reconcile(self, outcome: str, seconds: float) -> None:
        """Count one reconciliation of a study."""
        self._reconciliations.labels(outcome).observe(seconds)

    def observe_proposal(self, outcome: str, seconds: float) -> None:
        """Count one answer of the optimizer."""
        self._proposals.labels(outcome).observe(seconds)

    def observe_wait(self, namespace: str, kind: str, seconds: float) -> None:
        """Count how long one pod of a Job was waited for."""
        self._waits.labels(namespace, kind).observe(max(0.0, seconds))

    def count_refused(self, namespace: str, count: int) -> None:
        """Count what jobs wrote and nobody can use."""
        # The series is there from the first reconciliation on: an increase is seen only from something.
        self._refused.labels(namespace).inc(count)

    def observe_idle(self, namespace: str, seconds: float) -> None:
        """Count how long a slot was idle."""
        self._idle.labels(namespace).observe(max(0.0, seconds))


def _name_request(method: str, path: str, query: Mapping[str, str]) -> tuple[str, str]:
    """Return verb and resource as RBAC has them: ``update`` of ``finetunestudies/status``."""
    words = path.strip("/").split("/")
    # Behind api/v1 or apis/group/version, and behind the namespace.
    words = words[2 if words[0] == "api" else 3 :]
    if words[:1] == ["namespaces"] and len(words) > 2:
        words = words[2:]
    resource = "/".join([words[0], *words[2:]]) if words else ""
    if method == "GET":
        verb = "watch" if "watch" in query else "get" if len(words) > 1 else "list"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, method.lower())
    return verb, resource
