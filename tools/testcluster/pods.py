"""The life of one pod on a stand-in node: what a kubelet's pod worker does, in the order that the API server sees.

A pod goes from Pending to Running to Succeeded or Failed and never back. Deleting it sends SIGTERM, waits for its grace
period, sends SIGKILL, writes the final status and only then deletes the object, with a grace period of zero. Reasons
and sentences are the kubelet's own (pkg/kubelet of Kubernetes 1.36), because people and programs read them.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from testcluster.api import Api, ApiError, Object, UnreachableError
from testcluster.containers import (
    TERMINATION_MESSAGE_BYTES,
    ConfigError,
    Image,
    ProcessPod,
    StartError,
    resolve_environment,
)
from testcluster.scripts import Ending, Script
from testcluster.timers import Timer, Timers

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""After the API server was away."""
CONFIG_RETRY_SECONDS = 3.0
"""Until a container that could not be made is tried again."""
RESTART_SECONDS = 10.0
"""Before the second restart of a container; doubles, up to five minutes."""
PULL_SECONDS = 1.0
"""How long an attempt to pull an image is seen to have failed before it is called a back-off."""
MEMORY_SECONDS = 0.5
"""Between two looks at the memory of a process that has a limit."""
DISK_SECONDS = 1.0
"""Between two looks at what a process has written; a kubelet looks every ten."""
EVICTION_GRACE_SECONDS = 1.0
"""What the kubelet leaves a pod when the node itself is short of something."""
SHUTDOWN_GRACE_SECONDS = 30.0
START_ERROR = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process"
)
"""How containerd begins to say that a program is not there."""


class Host(Protocol):
    """What a pod needs of the machine that its node stands for."""

    api: Api
    timers: Timers
    image: Image

    def submit(self, action: Callable[[], None]) -> None:
        """Run something soon, on a thread of the pool."""

    def is_lost(self, node: str) -> bool:
        """Tell whether a node is cut off from the API server."""

    def lose(self, node: str) -> None:
        """Cut a node off."""

    def shut_down(self, node: str) -> None:
        """Take a node away, with a warning."""

    def place(self, pod: Object) -> Path:
        """Return the directory of a pod."""

    def next_address(self) -> str:
        """Return an address that no other pod has."""


class Runtime(Protocol):
    """What runs containers: processes or a script. Their ends are told to the pod."""

    def start(self, container: Object) -> None:
        """Start a container."""

    def terminate(self) -> None:
        """Send SIGTERM to all."""

    def kill(self) -> None:
        """Send SIGKILL to all."""


@dataclass
class Container:
    """What is known of one container."""

    spec: Object
    usual_reason: str
    """Why it does not run yet, while nothing is wrong."""
    waiting_reason: str = ""
    """What is wrong with it."""
    waiting_message: str = ""
    started_at: str = ""
    ended: Object | None = None
    """Its `terminated` state."""
    restarts: int = 0
    last: Object = field(default_factory=dict)
    """The state before the last restart."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    def is_running(self) -> bool:
        return bool(self.started_at) and self.ended is None

    def has_started(self) -> bool:
        return bool(self.started_at or (self.ended and self.ended["startedAt"]))

    def has_succeeded(self) -> bool:
        return self.ended is not None and self.ended["exitCode"] == 0

    def render(self, uid: str, *, is_init: bool) -> Object:
        identity = f"stand-in://{uid}/{self.name}/{self.restarts}"
        if self.ended is not None:
            known = {"containerID": identity} if self.ended["startedAt"] else {}
            state: Object = {"terminated": {**self.ended, **known}}
        elif self.started_at:
            state = {"running": {"startedAt": self.started_at}}
        else:
            message = {"message": self.waiting_message} if self.waiting_message else {}
            state = {"waiting": {"reason": self.waiting_reason or self.usual_reason, **message}}
        has_started = self.has_started()
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": f"stand-in://{self.spec['image']}" if has_started else "",
            "ready": self.ended["exitCode"] == 0 if is_init and self.ended else self.is_running() and not is_init,
            "started": self.is_running(),
            "restartCount": self.restarts,
            "state": state,
            "lastState": self.last,
            **({"containerID": identity} if has_started else {}),
        }


class PodWorker:
    """One pod, from the moment it is bound to a node. All that happens to it goes through `tell`, one by one."""

    def __init__(self, host: Host, pod: Object, script: Script | None) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.node: str = pod["spec"]["nodeName"]
        self.processes: ProcessPod | None = None
        """Where its containers are processes."""
        self._host = host
        self._script = script
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._is_busy = False

        init = pod["spec"].get("initContainers", ())
        waiting = "PodInitializing" if init else "ContainerCreating"
        self._init = [Container(each, waiting) for each in init]
        self._main = [Container(each, waiting) for each in pod["spec"]["containers"]]
        self._has_sandbox = False
        self._had_sandbox = False
        """It has an address, and keeps it."""
        self._runtime: Runtime
        if script is None:
            self._runtime = self.processes = ProcessPod(host.api, pod, host.place(pod), host.image, self._tell_end)
        else:
            self._runtime = ScriptedPod(host, self, script, self._tell_end)

        self._start_time = _now()
        self._address = host.next_address()
        self._conditions: dict[str, Object] = {}
        self._has_begun = False
        self._is_removed = False
        """The object is gone; nothing is written any more."""
        self._turns = 0
        self._is_stopping = False
        self._is_ending = False
        """Its containers have ended by themselves."""
        self.is_over = False
        """Nothing of it runs any more."""
        self._why_failed: Object = {}
        """Reason and message of the pod itself, where it is not its containers that failed."""
        self._disruption: Object | None = None
        self._kill_timer: Timer | None = None
        self._written: Object = {}

    def tell(self, event: Callable[[], None]) -> None:
        """Let something happen to the pod, after all that was told before."""
        with self._lock:
            self._inbox.append(event)
            if self._is_busy:
                return
            self._is_busy = True
        self._host.submit(self._work_off)

    def tell_later(self, seconds: float, event: Callable[[], None]) -> Timer:
        """Let something happen to the pod in a while."""
        return self._host.timers.after(seconds, lambda: self.tell(event))

    def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._inbox:
                    self._is_busy = False
                    return
                event = self._inbox.popleft()
            try:
                event()
            except Exception:  # a fault here must show, and must not take the node along
                log.exception("pod %s: fault of the stand-in", self.pod["metadata"]["name"])

    def _tell_end(self, name: str, code: int, reason: str, message: str = "") -> None:
        self.tell(lambda: self._note_end(name, code, reason, message))

    # What the node tells it

    def begin(self) -> None:
        """Take the pod on."""
        if self._has_begun or self._host.is_lost(self.node):
            return
        self._has_begun = True
        if self.pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            # From before this node's program was started.
            self.is_over = True
        elif self._is_deleted():
            self._stop(0.0)
        else:
            self._write()
            self.tell_later(self._script.start_seconds if self._script else 0.0, self._start)
            if (seconds := self.pod["spec"].get("activeDeadlineSeconds")) is not None:
                self.tell_later(seconds, self._pass_deadline)

    def update(self, pod: Object) -> None:
        """See the object as it is now."""
        self.pod = pod
        self._obey()

    def remove(self) -> None:
        """See that the object is gone: whatever still runs is ended, and nothing more is written."""
        self._is_removed = True
        self._obey()

    def return_to_life(self) -> None:
        """Catch up, after the node was cut off."""
        self.begin()
        self._obey()
        self._write()

    def evict(self, message: str = "The node was low on resource: memory. ") -> None:
        """Throw the pod out, because the node is short of memory."""
        self._stop_for("Evicted", message, EVICTION_GRACE_SECONDS)

    def overflow(self, message: str) -> None:
        """Throw the pod out, because it uses more of the disk than it may: Kubernetes calls that no disruption."""
        if not self.is_over:
            self._why_failed = {"reason": "Evicted", "message": message}
            self._announce("Evicted", message)
            self._stop(EVICTION_GRACE_SECONDS)

    def shut_down(self) -> None:
        """End the pod, because its node is about to be switched off."""
        message = "Pod was terminated in response to imminent node shutdown."
        self._stop_for("Terminated", message, min(SHUTDOWN_GRACE_SECONDS, self._grace_seconds()))

    def kill_processes(self) -> None:
        """End what runs without telling anybody: the machine is gone."""
        self._runtime.kill()

    # Starting

    def _start(self) -> None:
        """Start the next init container, or all the others."""
        if self._is_stopping or self.is_over:
            return
        self._has_sandbox = self._had_sandbox = True
        if self._script and self._script.waiting_reason:
            self._wait_in_vain(self._script)
            return
        pending = next((each for each in self._init if each.ended is None), None)
        for container in [pending] if pending else self._main:
            if container.is_running() or container.ended is not None:
                continue
            try:
                container.started_at = _now()
                container.waiting_reason = container.waiting_message = ""
                self._runtime.start(container.spec)
            except ConfigError as error:
                container.started_at = ""
                container.waiting_reason = "CreateContainerConfigError"
                container.waiting_message = str(error)
                self.tell_later(CONFIG_RETRY_SECONDS, self._start)
            except (UnreachableError, ApiError) as error:
                # Away, or so newly started that it refuses everybody.
                container.started_at = ""
                container.waiting_message = str(error)
                self.tell_later(RETRY_SECONDS, self._start)
            except StartError as error:
                container.started_at = ""
                container.ended = {
                    "exitCode": 128,
                    "reason": "StartError",
                    "message": f"{START_ERROR}: {error}",
                    "startedAt": "1970-01-01T00:00:00Z",
                    "finishedAt": _now(),
                }
                self._go_on_after(container)
        self._write()
        if self.processes is not None:
            if any("memory" in _limits(each) for each in self._main):
                self.tell_later(MEMORY_SECONDS, self._look_at_memory)
            if any("sizeLimit" in volume.get("emptyDir", {}) for volume in self.pod["spec"].get("volumes", ())):
                self.tell_later(DISK_SECONDS, self._look_at_disk)

    def _wait_in_vain(self, script: Script) -> None:
        """Say why the first container does not start: a pull that fails, and fails again after a while, in turns."""
        if self._is_stopping or self.is_over:
            return
        turn = self._turns
        self._turns += 1
        is_pull = script.waiting_reason == "ImagePullBackOff"
        is_attempt = is_pull and turn % 2 == 0
        for container in self._init[:1] or self._main:
            message = script.waiting_message
            container.waiting_reason = "ErrImagePull" if is_attempt else script.waiting_reason
            back_off = f'Back-off pulling image "{container.spec["image"]}": ErrImagePull: {message}'
            container.waiting_message = back_off if is_pull and not is_attempt else message
        self._write()
        self._announce("Failed" if is_attempt or not is_pull else "BackOff", script.waiting_message)
        if is_pull:
            seconds = PULL_SECONDS if is_attempt else min(300.0, RESTART_SECONDS * 2 ** (turn // 2))
            self.tell_later(seconds, lambda: self._wait_in_vain(script))

    def _look_at_memory(self) -> None:
        if self.processes is not None and any(each.is_running() for each in self._main):
            self.processes.kill_if_too_large()
            self.tell_later(MEMORY_SECONDS, self._look_at_memory)

    def _look_at_disk(self) -> None:
        if self.processes is None or not any(each.is_running() for each in self._main):
            return
        if (full := self.processes.find_full_volume()) is not None:
            self.overflow(f'Usage of EmptyDir volume "{full[0]}" exceeds the limit "{full[1]}". ')
        else:
            self.tell_later(DISK_SECONDS, self._look_at_disk)

    # Ending

    def _note_end(self, name: str, code: int, reason: str, message: str) -> None:
        container = next(each for each in self._init + self._main if each.name == name)
        if container.ended is not None or not container.started_at:
            return
        container.ended = {
            "exitCode": code,
            "reason": reason,
            "startedAt": container.started_at,
            "finishedAt": _now(),
            **({"message": message} if message else {}),
        }
        self._go_on_after(container)

    def _go_on_after(self, container: Container) -> None:
        """Do what follows on the end of a container."""
        assert container.ended is not None
        code = container.ended["exitCode"]
        if self._is_stopping:
            if not any(each.is_running() for each in self._init + self._main):
                self._finish()
        elif container in self._init and code == 0:
            self._write()
            self._start()
        elif self._wants_restart(code):
            self._restart(container)
        elif container in self._init or all(each.ended for each in self._main):
            # Seen with a kubelet: containers end first, the phase follows when their sandbox is gone.
            self._is_ending = True
            self._write()
            self.tell(self._finish)
        else:
            self._write()

    def _wants_restart(self, code: int) -> bool:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def _restart(self, container: Container) -> None:
        # Its end is seen first.
        self._write()
        ended = container.render(self.uid, is_init=container in self._init)["state"]
        # The first restart comes at once.
        seconds = min(300.0, RESTART_SECONDS * 2 ** (container.restarts - 1)) if container.restarts else 0.0
        if seconds:
            container.last, container.ended, container.started_at = ended, None, ""
            container.waiting_reason = "CrashLoopBackOff"
            pod = f"{self.pod['metadata']['name']}_{self.pod['metadata']['namespace']}({self.uid})"
            container.waiting_message = (
                f"back-off {seconds:.0f}s restarting failed container={container.name} pod={pod}"
            )
            self._write()
        self.tell_later(seconds, lambda: self._start_again(container, ended))

    def _start_again(self, container: Container, ended: Object) -> None:
        if not self._is_stopping and not self.is_over:
            container.last, container.ended, container.started_at = ended, None, ""
            container.restarts += 1
            self._start()

    def _obey(self) -> None:
        """Do what the object asks: end, if it is being deleted or is gone."""
        if self._host.is_lost(self.node):
            return
        if self._is_removed:
            if not self.is_over:
                self._stop(self._grace_seconds())
        elif self._is_deleted():
            if self.is_over:
                self._confirm_deletion()
            else:
                self._stop(self._grace_seconds())

    def _is_deleted(self) -> bool:
        return "deletionTimestamp" in self.pod["metadata"]

    def _grace_seconds(self) -> float:
        default = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        return float(self.pod["metadata"].get("deletionGracePeriodSeconds", default))

    def _pass_deadline(self) -> None:
        message = "Pod was active on the node longer than the specified deadline"
        if not self._is_stopping and not self.is_over:
            self._why_failed = {"reason": "DeadlineExceeded", "message": message}
            self._stop(self._grace_seconds())

    def _stop_for(self, reason: str, message: str, grace_seconds: float) -> None:
        """End a pod that did nothing wrong."""
        if self.is_over:
            return
        self._why_failed = {"reason": reason, "message": message}
        self._disruption = {"reason": "TerminationByKubelet", "message": message}
        self._announce(reason, message)
        self._stop(grace_seconds)

    def _stop(self, grace_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after the grace period; a later call may only shorten it."""
        is_first, self._is_stopping = not self._is_stopping, True
        if not any(each.is_running() for each in self._init + self._main):
            # What it waited for is forgotten first, as a kubelet does.
            for container in self._init + self._main:
                container.waiting_reason = container.waiting_message = ""
            if not self._is_ending:
                self._write()
            self._finish()
            return
        if is_first:
            self._runtime.terminate()
            self._write()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = self.tell_later(grace_seconds, self._runtime.kill)

    def _finish(self) -> None:
        """Say how the pod ended."""
        if self.is_over:
            return
        self.is_over = True
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._has_sandbox = False
        if all(each.has_succeeded() for each in self._init):
            for container in self._main:
                # The kubelet calls it a failure when it can't know.
                container.ended = container.ended or {
                    "exitCode": 137,
                    "reason": "ContainerStatusUnknown",
                    "message": "The container could not be located when the pod was terminated",
                    "startedAt": None,
                    "finishedAt": None,
                }
        self._write()

    # What the API server is told

    def _write(self) -> None:
        """Write the status as it is now, and delete the object once that is what remains to be done."""
        if self._is_removed or self._host.is_lost(self.node):
            return
        status = self._render()
        if status != self._written:
            body = {"metadata": {"uid": self.uid}, "status": status}
            if not self._try("PATCH", "/status", body, "application/strategic-merge-patch+json"):
                return
            self._written = status
        if self.is_over and self._is_deleted():
            self._confirm_deletion()

    def _confirm_deletion(self) -> None:
        metadata = self.pod["metadata"]
        is_held = metadata.get("deletionGracePeriodSeconds") == 0 and metadata.get("finalizers")
        if self._is_removed or is_held:
            return
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.uid},
        }
        self._try("DELETE", "", body, "application/json")

    def _try(self, method: str, subresource: str, body: Object, content_type: str) -> bool:
        metadata = self.pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}{subresource}"
        try:
            self._host.api.call(method, path, body, content_type=content_type)
        except UnreachableError:
            self.tell_later(RETRY_SECONDS, self._write)
            return False
        except ApiError as error:
            if error.code in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                return False  # gone, or another pod of this name: the watch says so too
            log.warning("%s: %s", path, error)
            self.tell_later(RETRY_SECONDS, self._write)
            return False
        return True

    def _render(self) -> Object:
        # The kubelet sorts them, so that the first need not be the first of the spec.
        statuses = [each.render(self.uid, is_init=False) for each in sorted(self._main, key=lambda each: each.name)]
        init_statuses = [each.render(self.uid, is_init=True) for each in self._init]
        phase = self._phase()
        self._render_conditions()
        host_address = "127.0.0.1"
        return {
            "phase": phase,
            "observedGeneration": self.pod["metadata"].get("generation", 1),
            "startTime": self._start_time,
            "hostIP": host_address,
            "hostIPs": [{"ip": host_address}],
            **({"podIP": self._address, "podIPs": [{"ip": self._address}]} if self._had_sandbox else {}),
            "conditions": [{"type": kind, **condition} for kind, condition in self._conditions.items()],
            "containerStatuses": statuses,
            **({"initContainerStatuses": init_statuses} if init_statuses else {}),
            **(self._why_failed if self.is_over else {}),
        }

    def _phase(self) -> str:
        if self.is_over:
            return self._outcome()
        return "Running" if any(each.started_at or each.restarts for each in self._main) else "Pending"

    def _outcome(self) -> str:
        is_good = all(each.has_succeeded() for each in self._init + self._main) and not self._why_failed
        return "Succeeded" if is_good else "Failed"

    def _render_conditions(self) -> None:
        has_run = any(each.has_started() for each in self._init + self._main)
        outcome = self._outcome() if self.is_over or self._is_ending else ""
        unready = [each.name for each in self._main if not each.is_running()]
        if outcome == "Succeeded":
            ready: Object = {"status": "False", "reason": "PodCompleted"}
        elif outcome == "Failed" and has_run:
            ready = {"status": "False", "reason": "PodFailed"}
        elif unready:
            message = f"containers with unready status: [{' '.join(unready)}]"
            ready = {"status": "False", "reason": "ContainersNotReady", "message": message}
        else:
            ready = {"status": "True"}
        pending = [each.name for each in self._init if not each.has_succeeded()]
        initialized: Object = {"status": "True", **({"reason": "PodCompleted"} if outcome == "Succeeded" else {})}
        if pending:
            message = f"containers with incomplete status: [{' '.join(pending)}]"
            initialized = {"status": "False", "reason": "ContainersNotInitialized", "message": message}
        conditions = {
            "PodReadyToStartContainers": {"status": "True" if self._has_sandbox else "False"},
            "Initialized": initialized,
            "Ready": ready,
            "ContainersReady": ready,
            "PodScheduled": {"status": "True"},
        }
        if self.is_over and self._disruption is not None:
            conditions["DisruptionTarget"] = {"status": "True", **self._disruption}
        for kind, condition in conditions.items():
            before = self._conditions.get(kind, {})
            same = before.get("status") == condition["status"]
            # An emptied field must be said: this is a merge.
            self._conditions[kind] = {
                "reason": None,
                "message": None,
                **condition,
                "observedGeneration": self.pod["metadata"].get("generation", 1),
                "lastProbeTime": None,
                "lastTransitionTime": before["lastTransitionTime"] if same else _now(),
            }

    def _announce(self, reason: str, message: str) -> None:
        """Write a warning event, as people look for with `kubectl describe`."""
        metadata = self.pod["metadata"]
        event = {
            "metadata": {"generateName": f"{metadata['name']}."[:240], "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": self.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": self.node},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        try:
            self._host.api.create(f"/api/v1/namespaces/{metadata['namespace']}/events", event)
        except (ApiError, UnreachableError) as error:
            log.debug("an event was lost: %s", error)


class ScriptedPod:
    """Containers that do what a script says, without a process or a thread of their own."""

    def __init__(
        self, host: Host, worker: PodWorker, script: Script, on_end: Callable[[str, int, str, str], None]
    ) -> None:
        self._host = host
        self._worker = worker
        self._script = script
        self._on_end = on_end
        self._names: list[str] = []
        self._environment: dict[str, str] = {}

    def start(self, container: Object) -> None:
        """Start a container; the first that is none of the init containers plays the script, the others go along."""
        name = str(container["name"])
        if container in self._worker.pod["spec"].get("initContainers", ()):
            self._on_end(name, 0, "Completed", "")
            return
        is_first = not self._names
        if is_first and self._script.work is not None:
            # It may fail, and is then asked again.
            self._environment = resolve_environment(self._host.api, self._worker.pod, container)
        self._names.append(name)
        if is_first and self._script.ending is not Ending.NONE:
            self._host.timers.after(self._script.after_seconds, lambda: self._host.submit(self._come_to_end))

    def terminate(self) -> None:
        """End after a while, if the script hears SIGTERM."""
        if (seconds := self._script.stop_seconds) is not None:
            self._host.timers.after(seconds, lambda: self._end(self._script.stop_code))

    def kill(self) -> None:
        """End at once."""
        self._end(137)

    def _come_to_end(self) -> None:
        worker, script = self._worker, self._script
        code = script.exit_code
        if script.work is not None:
            try:
                reported = script.work(self._environment)
            except Exception:  # whatever a test's function raises is what its pod died of
                log.exception("pod %s: its script failed", worker.pod["metadata"]["name"])
                self._end(1, message=traceback.format_exc()[-TERMINATION_MESSAGE_BYTES:])
                return
            code = code if reported is None else reported
        match script.ending:
            case Ending.EXIT:
                self._end(code, message=script.message)
            case Ending.OUT_OF_MEMORY:
                self._end(137, reason="OOMKilled")
            case Ending.EVICTED:
                worker.tell(worker.evict)
            case Ending.DISK_FULL:
                message = 'Usage of EmptyDir volume "finetune-tmp" exceeds the limit "1Gi". '
                worker.tell(lambda: worker.overflow(message))
            case Ending.PREEMPTED:
                worker.tell(self._preempt)
            case Ending.NODE_SHUTDOWN:
                self._host.shut_down(worker.node)
            case Ending.NODE_LOST:
                self._host.lose(worker.node)
            case Ending.NONE:
                pass

    def _end(self, code: int, *, reason: str = "", message: str = "") -> None:
        for name in self._names:
            self._on_end(name, code, reason or ("Completed" if code == 0 else "Error"), message)

    def _preempt(self) -> None:
        """Do what the scheduler does to a pod that must make room: mark it, then delete it."""
        metadata = self._worker.pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastTransitionTime": _now(),
        }
        try:
            self._host.api.patch(f"{path}/status", {"status": {"conditions": [condition]}}, kind="strategic")
            self._host.api.delete(path)
        except UnreachableError:
            self._worker.tell_later(RETRY_SECONDS, self._preempt)


def _limits(container: Container) -> Object:
    limits: Object = container.spec.get("resources", {}).get("limits", {})
    return limits


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
