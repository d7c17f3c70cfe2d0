"""How pods and Jobs look on a cluster while they end in every way that matters: the same on real and stand-in nodes?

    python -m lab.shapes --kubeconfig FILE [--image python:3.11-slim] [--only NAME ...] >shapes.json
    python -m lab.shapes --compare real.json stand-in.json

Each case is a Job with one container that runs a shell; what is done to its pod is done through the API alone. Every
status that was written is kept, without what differs from run to run: times, identities, addresses.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path
from typing import Any

from testcluster.api import Api, ApiError, Object, UnreachableError

PATIENCE_SECONDS = 60.0
SLEEPS = "trap 'exit 143' TERM; i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done"
DEAF = "trap '' TERM; i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done"
RULES = [
    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [10, 11, 12]}},
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [137, 143]}},
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to end."""

    shell: str = ""
    """What the container runs."""
    container: Mapping[str, Any] = field(default_factory=dict)
    pod: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    then: str = ""
    """What is done once it runs: `delete` the pod, `evict` it through the API, `delete job` in the foreground."""
    until: str = "over"
    """When enough was seen: the Job is `over`, the pod has `ended` or is `gone`, or it `waits`."""


CASES: Mapping[str, Case] = {
    "exits with 0": Case(shell="echo done"),
    "exits with 7": Case(shell="echo first; echo last >&2; exit 7"),
    "exits with 11": Case(shell="echo cannot; exit 11"),
    "leaves a message": Case(shell="echo of its own >/dev/termination-log; exit 1"),
    "is deleted": Case(shell=SLEEPS, then="delete", until="gone"),
    "is deleted and deaf": Case(shell=DEAF, pod={"terminationGracePeriodSeconds": 2}, then="delete", until="gone"),
    "loses its Job": Case(shell=SLEEPS, then="delete job", until="gone"),
    "is evicted through the API": Case(shell=SLEEPS, then="evict", until="gone"),
    "is out of memory": Case(
        shell="exec python3 -c 'x = bytearray(512 << 20); import time; time.sleep(30)'",
        container={"resources": {"limits": {"memory": "64Mi"}}},
        until="ended",
    ),
    "fills its disk": Case(
        shell="dd if=/dev/zero of=/data/x bs=1M count=20 2>/dev/null; " + SLEEPS,
        container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        pod={"volumes": [{"name": "data", "emptyDir": {"sizeLimit": "4Mi"}}]},
        until="ended",
    ),
    "has no image": Case(container={"image": "127.0.0.1:1/nobody-has-this:1"}, until="waits"),
    "has no config map": Case(
        container={"envFrom": [{"configMapRef": {"name": "nobodys"}}]},
        until="waits",
    ),
    "has no program": Case(container={"command": ["/no/such/program"]}),
    "has an init container": Case(
        shell="echo main",
        pod={"initContainers": [{"name": "first", "image": "", "command": ["sh", "-c", "echo init"]}]},
    ),
    "has an init container that fails": Case(
        shell="echo main",
        pod={"initContainers": [{"name": "first", "image": "", "command": ["sh", "-c", "echo bad; exit 9"]}]},
    ),
    "is restarted": Case(
        shell="echo again; if [ -e /data/x ]; then exit 0; fi; touch /data/x; exit 4",
        container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        pod={"restartPolicy": "OnFailure", "volumes": [{"name": "data", "emptyDir": {}}]},
    ),
    "has two containers": Case(
        shell="sleep 1; exit 0",
        pod={"containers": [{"name": "another", "image": "", "command": ["sh", "-c", "sleep 2; exit 5"]}]},
    ),
    "passes its deadline": Case(shell=SLEEPS, pod={"activeDeadlineSeconds": 2}, until="ended"),
    "asks for more than there is": Case(
        shell="true",
        container={"resources": {"requests": {"cpu": "100k"}}},
        until="waits",
    ),
}


def main() -> int:
    """Show what is seen on one cluster, or what differs between two."""
    parser = argparse.ArgumentParser(prog="python -m lab.shapes", description="How pods look while they end.")
    parser.add_argument("--kubeconfig", type=Path)
    parser.add_argument("--image", default="python:3.11-slim", help="has sh and python3")
    parser.add_argument("--only", action="append", choices=sorted(CASES))
    parser.add_argument("--compare", nargs=2, type=Path, metavar="SHAPES")
    arguments = parser.parse_args()
    if arguments.compare:
        return compare(*arguments.compare)
    api = Api(arguments.kubeconfig)
    shapes = {}
    for name in arguments.only or CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        shapes[name] = watch_case(api, CASES[name], arguments.image)
    json.dump(shapes, sys.stdout, indent=1)
    return 0


def watch_case(api: Api, case: Case, image: str) -> dict[str, list[str]]:
    """Run a case in a namespace of its own; return what was seen of the pod and of the Job, one line each."""
    namespace = f"shape-{secrets.token_hex(3)}"
    api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    api.wait_for(f"/api/v1/namespaces/{namespace}/serviceaccounts", "default", lambda found: found is not None)
    seen = Seen(api, namespace)
    seen.start()
    try:
        jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        api.create(jobs, make_job(case, image))
        if case.then:
            pod = seen.wait(lambda: next((p for p in seen.pods if is_running(p)), None))
            time.sleep(1.0)
            act(api, namespace, case.then, pod["metadata"]["name"])
        ends: Mapping[str, Callable[[], Any]] = {
            "over": lambda: any(is_over(job) for job in seen.jobs),
            "ended": lambda: any(has_ended(pod) for pod in seen.pods),
            "gone": lambda: seen.first_is_gone,
            "waits": lambda: seen.is_waiting,
        }
        seen.wait(ends[case.until])
        time.sleep(2.0)
    except TimeoutError as error:
        seen.lines["job"].append(str(error))
    finally:
        seen.stop()
        api.delete(f"/api/v1/namespaces/{namespace}")
    return seen.lines


def make_job(case: Case, image: str) -> Object:
    """Make the Job of a case."""
    container = {"name": "trainer", "image": image, "terminationMessagePolicy": "FallbackToLogsOnError"}
    if case.shell:
        container["command"] = ["sh", "-c", case.shell]
    pod = dict(case.pod)
    others = [{**each, "image": image} for each in pod.pop("containers", ())]
    inits = [{**each, "image": image} for each in pod.pop("initContainers", ())]
    template = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": False,
        "tolerations": [],
        **pod,
        "containers": [{**container, **case.container}, *others],
        **({"initContainers": inits} if inits else {}),
    }
    policy = {"podFailurePolicy": {"rules": RULES}} if template["restartPolicy"] == "Never" else {}
    return {
        "metadata": {"name": "job"},
        "spec": {
            "backoffLimit": 0 if policy else 3,
            "podReplacementPolicy": "Failed",
            **policy,
            **case.job,
            "template": {"spec": template},
        },
    }


def act(api: Api, namespace: str, subject: str, pod: str) -> None:
    """Do something to a running pod."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
    if subject == "delete":
        api.delete(path)
    elif subject == "evict":
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        api.create(f"{path}/eviction", eviction)
    else:
        job = f"/apis/batch/v1/namespaces/{namespace}/jobs/job"
        api.delete(job, {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"})


class Seen:
    """What becomes of the first pod and of the Job of a namespace, from watches."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._paths = {
            "pod": f"/api/v1/namespaces/{namespace}/pods",
            "job": f"/apis/batch/v1/namespaces/{namespace}/jobs",
        }
        self._lock = threading.Lock()
        self._watches: list[Any] = []
        self._first = ""
        self._last: dict[str, dict[str, str]] = {kind: {} for kind in self._paths}
        self.lines: dict[str, list[str]] = {kind: [] for kind in self._paths}
        self.pods: list[Object] = []
        self.jobs: list[Object] = []
        self.first_is_gone = False
        self.is_waiting = False

    def start(self) -> None:
        """Begin to watch."""
        for kind in self._paths:
            version = self._api.call("GET", self._paths[kind])["metadata"]["resourceVersion"]
            threading.Thread(target=self._follow, args=(kind, version), daemon=True).start()

    def stop(self) -> None:
        """End the watches."""
        for watch in self._watches:
            watch.stop()

    def wait(self, find: Callable[[], Any]) -> Any:
        """Return what a function finds, as soon as it finds something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if found := find():
                return found
            time.sleep(0.05)
        raise TimeoutError("it did not happen")

    def _follow(self, kind: str, version: str) -> None:
        try:
            with self._api.watch(self._paths[kind], resource_version=version) as events:
                self._watches.append(events)
                for event in events:
                    if event["type"] in {"ADDED", "MODIFIED", "DELETED"}:
                        with self._lock:
                            self._see(kind, event["type"], event["object"])
        except (ApiError, UnreachableError) as error:
            self.lines[kind].append(f"watch: {error}")

    def _see(self, kind: str, subject: str, found: Object) -> None:
        name = found["metadata"]["name"]
        if kind == "pod":
            self._first = self._first or name
            if name != self._first:
                return
            self.pods.append(found)
            self.first_is_gone |= subject == "DELETED"
            self.is_waiting |= waits(found)
        else:
            self.jobs.append(found)
        for line in describe(subject, found):
            key, _, value = line.partition(" = ")
            if self._last[kind].get(key) != value:
                self._last[kind][key] = value
                self.lines[kind].append(line)


def describe(subject: str, found: Object) -> list[str]:
    """Return an object's status, one line a field, without what differs from run to run."""
    metadata, status = found["metadata"], dict(found.get("status", {}))
    lines = [f"exists = {subject != 'DELETED'}"]
    lines.append(f"deletion = {metadata.get('deletionGracePeriodSeconds', '')}")
    lines.append(f"finalizers = {metadata.get('finalizers', [])}")
    for condition in status.pop("conditions", ()):
        words = {k: v for k, v in condition.items() if k not in {"type", "lastTransitionTime", "lastProbeTime"}}
        lines.append(f"condition {condition['type']} = {_text(words)}")
    for group in ("initContainerStatuses", "containerStatuses"):
        for each in status.pop(group, ()):
            seen = {key: value for key, value in each.items() if key not in _OF_THE_MACHINE}
            lines += [f"{group} {each['name']} {key} = {_text(value)}" for key, value in seen.items()]
    # How many pods are ready the Job controller writes when it comes to it, or not at all.
    left_out = {*_OF_THE_MACHINE, "ready"}
    return lines + [f"{key} = {_text(value)}" for key, value in sorted(status.items()) if key not in left_out]


_OF_THE_MACHINE = {"image", "imageID", "user", "resources", "allocatedResources", "volumeMounts"}
_TIMES = {"startedAt", "finishedAt", "startTime", "completionTime"}
_IDENTITIES = {"containerID", "imageID", "podIP", "hostIP", "podIPs", "hostIPs", "uncountedTerminatedPods"}


def _text(value: Any, key: str = "") -> str:
    return normalise(json.dumps(_blank(value), sort_keys=True))


def _blank(value: Any, key: str = "") -> Any:
    if key in _TIMES and value is not None:
        return "epoch" if str(value).startswith("1970") else "TIME"
    if key in _IDENTITIES and value:
        return "ID"
    if isinstance(value, dict):
        return {k: _blank(v, k) for k, v in value.items()}
    return [_blank(each) for each in value] if isinstance(value, list) else value


def normalise(text: str) -> str:
    """Blank out times, identities and addresses."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"job-[a-z0-9]{5}\b", "POD", text)
    text = re.sub(r"shape-[0-9a-f]{6}", "NAMESPACE", text)
    text = re.sub(r"\b10\.\d+\.\d+\.\d+\b|\b127\.0\.0\.1\b", "ADDRESS", text)
    text = re.sub(r"[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
    return re.sub(r"(containerd|stand-in)://\S*?(?=[\"\s]|$)", "ID", text)


def is_running(pod: Object) -> bool:
    """Tell whether a pod's containers run."""
    return bool(pod.get("status", {}).get("phase") == "Running")


def has_ended(pod: Object) -> bool:
    """Tell whether a pod has ended."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def is_over(job: Object) -> bool:
    """Tell whether a Job has ended."""
    conditions = job.get("status", {}).get("conditions", ())
    return any(c["type"] in {"Complete", "Failed"} and c["status"] == "True" for c in conditions)


def waits(pod: Object) -> bool:
    """Tell whether a pod has said why it cannot start, also where the reason goes back and forth."""
    status = pod.get("status", {})
    reasons = {
        each["state"].get("waiting", {}).get("reason", "")
        for group in ("initContainerStatuses", "containerStatuses")
        for each in status.get(group, ())
    }
    unscheduled = any(c["type"] == "PodScheduled" and c["status"] == "False" for c in status.get("conditions", ()))
    return unscheduled or bool(reasons & {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"})


def compare(left: Path, right: Path) -> int:
    """Print what differs, case by case; return 0 where nothing does."""
    shapes = [json.loads(path.read_text()) for path in (left, right)]
    differs = 0
    for name in sorted(shapes[0].keys() & shapes[1].keys()):
        lines: list[str] = []
        for kind in shapes[0][name]:
            seen = [side[name][kind] for side in shapes]
            lines += unified_diff(*seen, f"{left.stem} {kind}", f"{right.stem} {kind}", n=1, lineterm="")
        if lines:
            differs += 1
            print(f"== {name}", *lines, sep="\n")
    print(f"{differs} of {len(shapes[0])} cases differ")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
