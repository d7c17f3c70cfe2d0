"""A stand-in for nodes: real Node objects with GPUs, and pods that are local processes or follow a script.

    python -m testcluster.node --kubeconfig FILE [--nodes 1] [--gpus 8] [--pool NAMESPACE]

To API server, scheduler and controllers it looks like kubelets: heartbeats, pod status, graceful deletion, evictions.
A test says by a function of the pod which script it follows; without a script its containers run here, as processes.
Scripted pods cost no thread, so that one stand-in carries a thousand.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from testcluster.api import Api, ApiError, Object, UnreachableError, Watch
from testcluster.containers import Image
from testcluster.kube import POOL_LABEL
from testcluster.logs import LogServer
from testcluster.pods import PodWorker
from testcluster.scripts import Script
from testcluster.timers import Timers

log = logging.getLogger(__name__)

GPU = "nvidia.com/gpu"
HEARTBEAT_SECONDS = 3.0
RETRY_SECONDS = 0.5
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

ChooseScript = Callable[[Object], Script | None]
"""Says what a pod does; None: its containers run as processes."""


class StandIn:
    """Some nodes of one cluster.

    Args:
        kubeconfig: Of somebody who may do everything.
        name: Beginning of the nodes' names; must be the only one of its kind in the cluster.
        nodes: How many nodes.
        gpus: GPUs of each node; cores and memory are more than anybody asks for.
        pool: Namespace whose pods these nodes take, as `Cluster.create_namespace` arranges; None: anybody's.
        script: Says what each pod does.
        image: What every image holds, for pods that are processes.
        directory: For volumes and logs of pods; None: a temporary one.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *,
        name: str = "stand-in",
        nodes: int = 1,
        gpus: int = 8,
        pool: str | None = None,
        script: ChooseScript = lambda pod: None,
        image: Image | None = None,
        directory: Path | None = None,
    ) -> None:
        self.api = Api(kubeconfig)
        self.timers = Timers()
        self.image = image or Image()
        self.script = script
        self.nodes = [f"{name}-{number}" for number in range(nodes)]
        self._gpus = gpus
        self._pool = pool
        self._own_directory = tempfile.mkdtemp(prefix="stand-in-") if directory is None else None
        self.directory = Path(self._own_directory or str(directory))
        self._threads = ThreadPoolExecutor(8, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._workers: dict[str, PodWorker] = {}
        self._lost: set[str] = set()
        self._addresses = itertools.count(2)
        self._is_stopped = False
        self._watch: Watch | None = None
        self._logs = LogServer(self.directory / "kubelet", self._find_log)
        self._watcher = threading.Thread(target=self._follow_pods, name=f"{name}-watch", daemon=True)

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life

    def start(self) -> None:
        """Register the nodes; returns when pods may be scheduled on them."""
        for node in self.nodes:
            self._register(node)
        self._watcher.start()
        for node in self.nodes:
            self.api.wait_for("/api/v1/nodes", node, _takes_pods)

    def stop(self) -> None:
        """Take the nodes away, and end all that runs on them."""
        self._is_stopped = True
        self._lost.update(self.nodes)
        if (watch := self._watch) is not None:
            watch.stop()
        self.timers.stop()
        self._logs.stop()
        for worker in list(self._workers.values()):
            worker.kill_processes()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._watcher.join(5.0)
        for node in self.nodes:
            with contextlib.suppress(UnreachableError, ApiError):
                self.api.delete(f"/api/v1/nodes/{node}")
                self.api.delete(f"{_LEASES}/{node}")
        self.api.close()
        if self._own_directory:
            shutil.rmtree(self._own_directory, ignore_errors=True)

    # What tests do to nodes

    def lose(self, node: str) -> None:
        """Cut a node off: no heartbeat, no status, no deletion is seen; its pods go on."""
        self._lost.add(node)

    def recover(self, node: str) -> None:
        """Let a lost node come back; it catches up with what it missed."""
        self._lost.discard(node)
        self.submit(lambda: self._write_node_status(node))
        self._beat(node)
        for worker in self._on(node):
            worker.tell(worker.return_to_life)

    def remove(self, node: str) -> None:
        """Take a node away for good, as a cloud does: machine and object are gone."""
        self.lose(node)
        for worker in self._on(node):
            worker.kill_processes()
        self.api.delete(f"/api/v1/nodes/{node}")

    def shut_down(self, node: str) -> None:
        """Take a node away with a warning, as a spot instance is: its pods end as failed and disrupted."""
        for worker in self._on(node):
            worker.tell(worker.shut_down)
        self.submit(lambda: self._write_node_status(node, ready=False))

    def evict(self, namespace: str, pod: str) -> None:
        """Throw a pod out, because the node is short of memory."""
        worker = self._find(namespace, pod)
        worker.tell(worker.evict)

    def log(self, namespace: str, pod: str, container: str = "trainer") -> str:
        """Return what a pod's process has written so far."""
        worker = self._find(namespace, pod)
        assert worker.processes is not None, "only a pod that is a process has a log"
        file = worker.processes.log(container)
        return file.read_text(errors="replace") if file.exists() else ""

    def _find_log(self, namespace: str, pod: str, container: str) -> tuple[Path, Callable[[], bool]] | None:
        try:
            worker = self._find(namespace, pod)
        except KeyError:
            return None
        if worker.processes is None:
            return None
        return worker.processes.log(container), lambda: not worker.is_over

    def _on(self, node: str) -> list[PodWorker]:
        with self._lock:
            return [worker for worker in self._workers.values() if worker.node == node]

    def _find(self, namespace: str, pod: str) -> PodWorker:
        with self._lock:
            for worker in self._workers.values():
                metadata = worker.pod["metadata"]
                if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                    return worker
        raise KeyError(f"{namespace}/{pod} must be on one of {', '.join(self.nodes)}")

    # What pods need

    def submit(self, action: Callable[[], None]) -> None:
        """Run something soon, on a thread of the pool."""
        with contextlib.suppress(RuntimeError):  # after the end nothing is done
            self._threads.submit(action)

    def is_lost(self, node: str) -> bool:
        """Tell whether a node is cut off from the API server."""
        return node in self._lost

    def place(self, pod: Object) -> Path:
        """Return the directory of a pod."""
        metadata = pod["metadata"]
        directory = self.directory / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def next_address(self) -> str:
        """Return an address that no other pod has; nobody listens there."""
        number = next(self._addresses)
        return f"10.244.{number // 256 % 256}.{number % 256}"

    # Nodes

    def _register(self, node: str) -> None:
        labels = {
            "kubernetes.io/hostname": node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **({POOL_LABEL: self._pool} if self._pool else {}),
        }
        path = f"/api/v1/nodes/{node}"
        if self.api.get(path) is None:
            self.api.create("/api/v1/nodes", {"metadata": {"name": node, "labels": labels}})
        else:
            self.api.patch(path, {"metadata": {"labels": labels}})
        self._write_node_status(node)
        self._beat(node)

    def _write_node_status(self, node: str, *, ready: bool = True) -> None:
        room = {"cpu": "512", "memory": "4Ti", "ephemeral-storage": "100Ti", "pods": "2000", GPU: str(self._gpus)}
        now = _now()
        conditions = {
            "Ready": ("True", "KubeletReady", "kubelet is posting ready status")
            if ready
            else ("False", "KubeletNotReady", "node is shutting down"),
            "MemoryPressure": ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            "DiskPressure": ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            "PIDPressure": ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
        status: dict[str, Any] = {
            "capacity": room,
            "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": node}],
            "conditions": [
                {
                    "type": kind,
                    "status": state,
                    "reason": reason,
                    "message": message,
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
                for kind, (state, reason, message) in conditions.items()
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._logs.port}},
            "nodeInfo": {
                "machineID": node,
                "systemUUID": node,
                "bootID": node,
                "kernelVersion": "stand-in",
                "osImage": "stand-in",
                "containerRuntimeVersion": "stand-in://1",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        }
        try:
            self.api.patch(f"/api/v1/nodes/{node}/status", {"status": status}, kind="strategic")
        except UnreachableError:
            self.timers.after(RETRY_SECONDS, lambda: self.submit(lambda: self._write_node_status(node, ready=ready)))

    def _beat(self, node: str) -> None:
        """Renew the node's lease, now and again and again."""
        if not self.is_lost(node):
            self.submit(lambda: self._renew_lease(node))

    def _renew_lease(self, node: str) -> None:
        renewed = {"spec": {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}
        try:
            try:
                self.api.patch(f"{_LEASES}/{node}", renewed)
            except ApiError as error:
                if error.code != HTTPStatus.NOT_FOUND:
                    raise
                spec = {**renewed["spec"], "holderIdentity": node, "leaseDurationSeconds": 40}
                self.api.create(_LEASES, {"metadata": {"name": node}, "spec": spec})
            # After the API server was away the controllers may have given the node up, and wait for its word.
            if _is_given_up(self.api.get(f"/api/v1/nodes/{node}")):
                self._write_node_status(node)
        except (ApiError, UnreachableError) as error:
            log.debug("heartbeat of %s: %s", node, error)
        self.timers.after(HEARTBEAT_SECONDS, lambda: self._beat(node))

    # Pods

    def _follow_pods(self) -> None:
        """See every pod that is bound to our nodes, from list to watch and back, until the end."""
        while not self._is_stopped:
            try:
                self._follow_pods_once()
            except (ApiError, UnreachableError) as error:
                log.debug("watch of pods: %s", error)
                threading.Event().wait(RETRY_SECONDS)

    def _follow_pods_once(self) -> None:
        selector = f"spec.nodeName={self.nodes[0]}" if len(self.nodes) == 1 else "spec.nodeName!="
        found = self.api.call("GET", "/api/v1/pods", query={"fieldSelector": selector})
        for pod in found["items"]:
            self._see("MODIFIED", pod)
        present = {pod["metadata"]["uid"] for pod in found["items"]}
        for uid in self._workers.keys() - present:
            self._forget(uid)
        version = found["metadata"]["resourceVersion"]
        with self.api.watch("/api/v1/pods", resource_version=version, fieldSelector=selector) as events:
            self._watch = events
            if self._is_stopped:
                return
            for event in events:
                if event["type"] == "ERROR":
                    return
                if event["type"] != "BOOKMARK":
                    self._see(event["type"], event["object"])

    def _see(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            self._forget(uid)
        elif (known := self._workers.get(uid)) is not None:
            known.tell(lambda: known.update(pod))
        elif pod["spec"].get("nodeName") in self.nodes:
            worker = PodWorker(self, pod, self.script(pod))
            with self._lock:
                self._workers[uid] = worker
            worker.tell(worker.begin)

    def _forget(self, uid: str) -> None:
        with self._lock:
            worker = self._workers.pop(uid, None)
        if worker is not None:
            worker.tell(worker.remove)


def _takes_pods(node: Object | None) -> bool:
    """Tell whether the controllers have seen that a node is ready."""
    return node is not None and not any("not-ready" in taint["key"] for taint in node["spec"].get("taints", ()))


def _is_given_up(node: Object | None) -> bool:
    """Tell whether the controllers have marked a node as silent."""
    conditions = (node or {}).get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "Unknown" for each in conditions)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> None:
    """Run nodes for hand use until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Nodes that run pods as processes of this machine.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--pool", help="take the pods of one namespace only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with StandIn(arguments.kubeconfig, nodes=arguments.nodes, gpus=arguments.gpus, pool=arguments.pool) as stand_in:
        print(f"{', '.join(stand_in.nodes)}: {arguments.gpus} GPUs each; logs in {stand_in.directory}", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
