"""The operator's process: `finetune-study-operator`, or `python -m study_operator.cluster.operator`.

    finetune-study-operator --config operator.yaml [--namespace shop-ml ...]

Of several replicas one works and the others wait for its Lease. Exit codes: 0 asked to stop, 1 the Lease was lost or
something broke (start it again), 2 a flag or the configuration cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from study_operator import names
from study_operator.cluster.api import DEEPEST_OBJECT, Kube, KubeError, connect
from study_operator.cluster.buckets import Buckets
from study_operator.cluster.controller import Controller
from study_operator.cluster.health import serve_health
from study_operator.cluster.installation import ConfigurationError, Installation, read_installation
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_manifest import PodDefaults
from study_operator.cluster.job_watches import Watches
from study_operator.cluster.leader_election import Election
from study_operator.cluster.metrics_server import CertificateError, Certificates, Reviewer, serve_metrics
from study_operator.cluster.streams import use_small_buffers
from study_operator.cluster.study_metrics import StudyCollector
from study_operator.cluster.study_store import Studies
from study_operator.cluster.study_watch import run_kopf
from study_operator.cluster.uninstall import delete_all_studies
from study_operator.cluster.work_queue import WorkQueue
from study_operator.logs import log_to_stderr
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.optimizer.proposals import Proposals

log = logging.getLogger(__name__)

STOPPED, BROKEN, UNUSABLE = 0, 1, 2

LEASE = "finetune-study-operator"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
STOP_SECONDS = 20.0
"""How long reconciliations under way may take after a request to stop; the API server and the bucket answer within
that."""
UNSYNCED_SECONDS = 60.0
"""Between two complaints that a namespace cannot be listed; its studies are woken when it is."""
SWEEP_SECONDS = 120.0
"""Between two looks at which studies there are, each a list of their metadata."""
API_SECONDS = 2.0
"""Between two looks whether the API server knows studies already. Where it no longer does, kopf gives up."""
STUCK_SECONDS = 900.0
"""A reconciliation that takes so long will not end: every request in it has a timeout. The process is then not well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the operator; return its exit code."""
    arguments = _parser().parse_args(argv)
    log_to_stderr()
    # Python's own limit is a thousand, and an object within it hides all others of its list.
    sys.setrecursionlimit(DEEPEST_OBJECT + sys.getrecursionlimit())
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        installation = read_installation(arguments.config)
        metrics = Metrics()
        kube = connect(metrics)
    except (ConfigurationError, KubeError) as error:
        print(f"finetune-study-operator: {error}", file=sys.stderr)
        return UNUSABLE
    if arguments.delete_all_studies:
        return _clear(kube)
    if arguments.metrics_authentication and arguments.metrics_certificates is None:
        message = (
            "--metrics-authentication must be given with --metrics-certificates: tokens would be sent in the clear"
        )
        print(f"finetune-study-operator: {message}", file=sys.stderr)
        return UNUSABLE
    operator = Operator(kube, installation, arguments.namespace, arguments.threads, metrics)
    try:
        server = serve_metrics(
            arguments.metrics_port,
            metrics.registry,
            certificates=Certificates(directory=place) if (place := arguments.metrics_certificates) else None,
            review=Reviewer(kube).review if arguments.metrics_authentication else None,
        )
    except CertificateError as error:
        print(f"finetune-study-operator: --metrics-certificates: {error}", file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"finetune-study-operator: --metrics-port {arguments.metrics_port}: {error}", file=sys.stderr)
        return UNUSABLE
    log.info("metrics: port %d", server.server_port)
    return operator.run(lease_namespace=arguments.lease_namespace, health_port=arguments.health_port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-study-operator", description="Runs FineTuneStudies on a cluster.")
    parser.add_argument(
        "--namespace", action="append", default=[], metavar="NAMESPACE", help="watch this one (may be repeated)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the installation's YAML: trainerImage, identities, endpoints, limits",
    )
    parser.add_argument("--lease-namespace", default=_own_namespace(), metavar="NAMESPACE", help="of the Lease")
    parser.add_argument("--health-port", type=int, default=8080, metavar="PORT", help="of /healthz; 0: any free one")
    parser.add_argument("--metrics-port", type=int, default=8081, metavar="PORT", help="of /metrics; 0: any free one")
    parser.add_argument(
        "--metrics-certificates",
        type=Path,
        metavar="DIRECTORY",
        help="serve /metrics with TLS: where tls.crt and tls.key lie, which may change",
    )
    parser.add_argument(
        "--metrics-authentication",
        action="store_true",
        help="let only those scrape who may get /metrics by RBAC",
    )
    parser.add_argument(
        "--delete-all-studies", action="store_true", help="delete the studies of every namespace, wait for it, and end"
    )
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="studies that are worked on at a time")
    return parser


def _clear(kube: Kube) -> int:
    try:
        delete_all_studies(kube, time.sleep)
    except KubeError as error:
        print(f"finetune-study-operator: {error}", file=sys.stderr)
        return BROKEN
    return STOPPED


def _own_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return "default"


class Operator:
    """Everything that one process holds."""

    def __init__(
        self, kube: Kube, installation: Installation, namespaces: Sequence[str], threads: int, metrics: Metrics
    ) -> None:
        self._kube = kube
        self._metrics = metrics
        self._namespaces = tuple(namespaces)
        self._stop = threading.Event()
        self._is_working = False
        self._studies = Studies(kube)
        self._memory = Memory(metrics, self._wake)
        self._watches = Watches(kube, self._memory, self._namespaces, on_synced=self._wake_namespace)
        self._proposals = Proposals(self._wake, metrics)
        self._controller = Controller(
            kube=kube,
            studies=self._studies,
            memory=self._memory,
            buckets=Buckets(
                kube,
                installation.identities,
                metrics,
                endpoints=installation.endpoints,
                own_addresses=kube.addresses(),
            ),
            proposals=self._proposals,
            defaults=PodDefaults(image=installation.trainer_image),
            metrics=metrics,
            settings=installation.limits,
            clock=kube.clock.now,
        )
        self._queue = WorkQueue(self._reconcile, metrics, threads=threads)
        metrics.registry.register(StudyCollector(self._studies.bodies))

    def run(self, *, lease_namespace: str, health_port: int) -> int:
        """Wait for the Lease, work until asked to stop; return the exit code."""
        threading.excepthook = _end_with_thread
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        health = serve_health(health_port, self._find_trouble)
        log.info("healthz: port %d", health.server_port)
        election = Election(
            self._kube,
            namespace=lease_namespace,
            name=LEASE,
            identity=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            on_lost=_leave_at_once,
        )
        election.start()
        while not election.elected.wait(0.5):
            if self._stop.is_set():
                election.resign()
                return STOPPED
        self._metrics.leader.set(1)
        use_small_buffers()
        self._watches.start()
        self._is_working = True
        self._metrics.watch_idle.set_function(self._watches.idle_seconds)
        threading.Thread(target=self._complain_of_unsynced, name="sync", daemon=True).start()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self._queue.start()
        try:
            if self._wait_for_api():
                run_kopf(self._kube, self._studies, self._wake, namespaces=self._namespaces)
            code = STOPPED
        except Exception:
            log.exception("studies can't be watched any more")
            code = BROKEN
        log.info("stopping")
        self._queue.stop(STOP_SECONDS)
        election.resign()
        return code

    def _wake(self, key: StudyKey) -> None:
        self._queue.wake(key)

    def _reconcile(self, key: StudyKey) -> float | None:
        """Reconcile a study, but not before everything of its namespace was listed once: then all of them are woken."""
        return self._controller.reconcile(key) if self._watches.is_synced(key[0]) else UNSYNCED_SECONDS

    def _wake_namespace(self, namespace: str | None) -> None:
        log.info("working in %s", "all namespaces" if namespace is None else f"namespace {namespace}")
        for key in self._studies.list_keys():
            if namespace in (None, key[0]):
                self._queue.wake(key)

    def _complain_of_unsynced(self) -> None:
        """Say once a minute what cannot be listed: a namespace that is gone, a role that is not bound there."""
        while not self._stop.wait(UNSYNCED_SECONDS):
            missing = self._watches.list_unsynced()
            if not missing:
                return
            log.warning("waiting for the first list of %s", ", ".join(missing))

    def _sweep(self) -> None:
        """Look now and then at which studies there are: what happened while the watch was away it does not tell."""
        while not self._stop.wait(SWEEP_SECONDS):
            for namespace in self._namespaces or (None,):
                try:
                    changed = self._studies.sweep(namespace)
                except KubeError as error:
                    log.debug("studies cannot be listed: %s", error)
                    continue
                for key in changed:
                    self._queue.wake(key)

    def _wait_for_api(self) -> bool:
        """Wait until the API server knows studies; False where this process is asked to stop meanwhile."""
        is_told = False
        while not self._stop.is_set():
            if self._is_api_there():
                return True
            if not is_told:
                log.warning("the API server does not know %s: waiting for the CRD to be installed", names.KIND)
                is_told = True
            self._stop.wait(API_SECONDS)
        return False

    def _is_api_there(self) -> bool:
        try:
            self._kube.request("GET", f"/apis/{names.API_VERSION}")
        except KubeError as error:
            # Who may not ask has to believe it.
            return not error.is_transient and error.status != 404
        return True

    def _find_trouble(self) -> str:
        seconds = self._queue.longest_running_seconds()
        if seconds > STUCK_SECONDS:
            return f"a study has been reconciled for {seconds:.0f} s"
        return self._watches.find_trouble() if self._is_working else ""


def _leave_at_once() -> None:
    """End this process now: somebody else may begin in a moment, and half a tick is harmless."""
    log.error("the lease is lost")
    logging.shutdown()
    os._exit(BROKEN)


def _end_with_thread(ended: threading.ExceptHookArgs) -> None:
    """End this process with a thread that something unforeseen ended: half an operator looks well and is not."""
    name = ended.thread.name if ended.thread is not None else "a thread"
    trace = None if ended.exc_value is None else (ended.exc_type, ended.exc_value, ended.exc_traceback)
    log.critical("thread %s died, and the process with it", name, exc_info=trace)
    logging.shutdown()
    os._exit(BROKEN)


if __name__ == "__main__":
    sys.exit(main())
