"""Jobs on stand-in nodes end as on real ones, as far as the real controllers and the real scheduler can see."""

import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from testcluster import scripts
from testcluster.api import Object
from testcluster.containers import Image, find_marked
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import GPU, StandIn
from testcluster.scripts import Script

Nodes = Callable[..., StandIn]

FAULTS_OF_THE_ARM = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [10, 11, 12]}}
DISRUPTION = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
KILLS = {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [137, 143]}}


def a_job(
    name: str = "job",
    *,
    rules: tuple[Object, ...] = (),
    backoff_limit: int = 0,
    spec: Mapping[str, Any] | None = None,
    pod: Mapping[str, Any] | None = None,
    **container: Any,
) -> Object:
    template = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "trainer", "image": "none", **container}],
        **(pod or {}),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": backoff_limit,
            "template": {"spec": template},
            **({"podFailurePolicy": {"rules": list(rules)}} if rules else {}),
            **(spec or {}),
        },
    }


def a_program(source: str) -> dict[str, Any]:
    """Return what makes a container run a Python program."""
    return {"command": [sys.executable, "-u", "-c", source]}


class Workplace:
    """One test's namespace, seen by its jobs."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.api = cluster.api
        self.namespace = namespace
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    def run(self, job: Object) -> None:
        self.api.create(self.jobs, job)

    def wait_for_end(self, name: str = "job", *, seconds: float = 120.0) -> tuple[str, str]:
        """Return the condition that a job ends with, and its reason."""
        job = self.api.wait_for(self.jobs, name, lambda job: bool(job and ends_of(job)), seconds=seconds)
        assert job is not None
        return ends_of(job)[0]

    def wait_for_pod(self, is_so: Callable[[Object], bool], name: str = "job") -> Object:
        """Return the job's newest pod once something holds for it."""
        found = self._first_pod(name)
        seen = self.api.wait_for(self.pods, found["metadata"]["name"], lambda pod: pod is None or is_so(pod))
        assert seen is not None, "the pod was deleted before it came to hold"
        return seen

    def wait_until_gone(self, pod: Object) -> Object:
        """Return a pod as it was last seen."""
        last = pod

        def is_gone(found: Object | None) -> bool:
            nonlocal last
            last = found or last
            return found is None

        self.api.wait_for(self.pods, pod["metadata"]["name"], is_gone)
        return last

    def pods_of(self, name: str = "job") -> list[Object]:
        pods = self.api.list(self.pods, labelSelector=f"batch.kubernetes.io/job-name={name}")
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def _first_pod(self, name: str) -> Object:
        self.api.wait_for(self.jobs, name, lambda job: bool(job and (counts_of(job) or ends_of(job))))
        return self.pods_of(name)[-1]


def counts_of(job: Object) -> dict[str, int]:
    status = job.get("status", {})
    return {key: status[key] for key in ("active", "succeeded", "failed") if status.get(key)}


def ends_of(job: Object) -> list[tuple[str, str]]:
    return [
        (condition["type"], condition.get("reason", ""))
        for condition in job.get("status", {}).get("conditions", ())
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True"
    ]


def end_of(pod: Object) -> tuple[str, int, str]:
    """Return phase, exit code and reason of a pod's first container."""
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return pod["status"]["phase"], ended["exitCode"], ended["reason"]


def condition_of(pod: Object, kind: str) -> tuple[str, str]:
    found = [each for each in pod["status"].get("conditions", ()) if each["type"] == kind]
    return (found[0]["status"], found[0].get("reason", "")) if found else ("", "")


def is_over(pod: Object) -> bool:
    return pod["status"].get("phase") in {"Succeeded", "Failed"}


def is_running(pod: Object) -> bool:
    return bool(pod["status"].get("phase") == "Running")


def is_unschedulable(pod: Object) -> bool:
    return condition_of(pod, "PodScheduled") == ("False", "Unschedulable")


@pytest.fixture
def place(cluster: Cluster, namespace: str) -> Workplace:
    return Workplace(cluster, namespace)


# By script


@pytest.mark.parametrize(
    ("script", "ends", "pod_end"),
    [
        (scripts.exits(0), ("Complete", "CompletionsReached"), ("Succeeded", 0, "Completed")),
        (scripts.exits(7), ("Failed", "BackoffLimitExceeded"), ("Failed", 7, "Error")),
        (scripts.exits(137), ("Failed", "BackoffLimitExceeded"), ("Failed", 137, "Error")),
        (scripts.runs_out_of_memory(), ("Failed", "BackoffLimitExceeded"), ("Failed", 137, "OOMKilled")),
    ],
    ids=["exit 0", "exit 7", "killed", "out of memory"],
)
def test_a_job_ends_as_its_only_pod_does(
    place: Workplace, make_nodes: Nodes, script: Script, ends: tuple[str, str], pod_end: tuple[str, int, str]
) -> None:
    make_nodes(script=lambda pod: script)
    place.run(a_job())
    assert place.wait_for_end() == ends
    pod = place.wait_for_pod(is_over)
    assert end_of(pod) == pod_end
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["startedAt"] <= ended["finishedAt"]
    assert condition_of(pod, "Ready") == ("False", "PodCompleted" if pod_end[1] == 0 else "PodFailed")
    assert "finalizers" not in pod["metadata"]  # the Job controller has counted it


@pytest.mark.parametrize("code", [10, 11, 12])
def test_the_arms_fault_fails_the_job_at_once(place: Workplace, make_nodes: Nodes, code: int) -> None:
    make_nodes(script=lambda pod: scripts.exits(code))
    place.run(a_job(rules=(FAULTS_OF_THE_ARM, DISRUPTION, KILLS), backoff_limit=3))
    assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
    assert len(place.pods_of()) == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (scripts.is_evicted(), ("True", "TerminationByKubelet")),
        (scripts.is_preempted(after_seconds=0.5), ("True", "PreemptionByScheduler")),
        (scripts.sees_its_node_shut_down(), ("True", "TerminationByKubelet")),
    ],
    ids=["evicted", "preempted", "node shut down"],
)
def test_a_disruption_is_not_counted_and_another_pod_comes(
    place: Workplace, make_nodes: Nodes, script: Script, reason: tuple[str, str]
) -> None:
    seen: list[str] = []

    def choose(pod: Object) -> Script:
        seen.append(pod["metadata"]["name"])
        return script if len(seen) == 1 else scripts.exits(0)

    make_nodes(nodes=2, script=choose)
    # A watch from before: preempted pods are gone at their end.
    place.run(a_job(rules=(FAULTS_OF_THE_ARM, DISRUPTION, KILLS)))
    first = place.wait_for_pod(lambda pod: condition_of(pod, "DisruptionTarget") != ("", ""))
    assert condition_of(first, "DisruptionTarget") == reason
    assert place.wait_for_end() == ("Complete", "CompletionsReached")
    assert len(seen) == 2
    job = place.api.get(f"{place.jobs}/job")
    assert job is not None and "failed" not in counts_of(job)


def test_a_pod_that_fills_its_disk_is_evicted_without_being_disrupted(place: Workplace, make_nodes: Nodes) -> None:
    """As a kubelet does it: its Job sees nothing but the exit code of a pod that was asked to stop."""
    ends = [scripts.fills_its_disk(), scripts.exits(0)]
    make_nodes(script=lambda pod: ends.pop(0))
    place.run(a_job(rules=(FAULTS_OF_THE_ARM, DISRUPTION, KILLS)))
    pod = place.wait_for_pod(is_over)
    assert pod["status"]["reason"] == "Evicted"
    assert pod["status"]["message"] == 'Usage of EmptyDir volume "finetune-tmp" exceeds the limit "1Gi". '
    assert end_of(pod) == ("Failed", 143, "Error")
    assert condition_of(pod, "DisruptionTarget") == ("", "")
    assert place.wait_for_end() == ("Complete", "CompletionsReached")


def test_a_process_that_writes_too_much_into_its_volume_is_evicted(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    source = "import time; open('/data/much', 'wb').write(bytes(8 << 20)); time.sleep(600)"
    volumes = [{"name": "data", "emptyDir": {"sizeLimit": "4Mi"}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    place.run(a_job(pod={"volumes": volumes}, volumeMounts=mounts, **a_program(source)))
    pod = place.wait_for_pod(is_over)
    assert (pod["status"]["reason"], end_of(pod)) == ("Evicted", ("Failed", 143, "Error"))
    assert pod["status"]["message"] == 'Usage of EmptyDir volume "data" exceeds the limit "4Mi". '


def test_an_evicted_pod_says_why(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes(script=lambda pod: scripts.is_evicted())
    place.run(a_job())
    assert place.wait_for_end() == ("Failed", "BackoffLimitExceeded")
    pod = place.wait_for_pod(is_over)
    assert pod["status"]["reason"] == "Evicted"
    assert pod["status"]["message"].startswith("The node was low on resource: memory.")
    assert end_of(pod) == ("Failed", 143, "Error")


def test_a_pod_without_an_image_waits_and_never_fails_its_job(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes(script=lambda pod: scripts.cannot_pull())
    place.run(a_job())

    def is_waiting(pod: Object) -> bool:
        states = pod["status"].get("containerStatuses", [{"state": {}}])
        return bool(states[0]["state"].get("waiting", {}).get("reason") == "ImagePullBackOff")

    pod = place.wait_for_pod(is_waiting)
    assert pod["status"]["phase"] == "Pending"
    job = place.api.get(f"{place.jobs}/job")
    assert job is not None and ends_of(job) == []
    place.api.delete(f"{place.pods}/{pod['metadata']['name']}")
    place.wait_until_gone(pod)


def test_a_deaf_pod_is_killed_after_its_grace_period(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes(script=lambda pod: scripts.runs(stop_seconds=None))
    place.run(a_job(pod={"terminationGracePeriodSeconds": 1}))
    pod = place.wait_for_pod(is_running)
    place.api.delete(f"{place.pods}/{pod['metadata']['name']}")
    last = place.wait_until_gone(pod)
    assert end_of(last) == ("Failed", 137, "Error")


def test_a_script_gets_the_environment_of_its_container(cluster: Cluster, place: Workplace, make_nodes: Nodes) -> None:
    got: list[dict[str, str]] = []

    def work(environment: Mapping[str, str]) -> int:
        got.append(dict(environment))
        return 11

    make_nodes(script=lambda pod: scripts.works(work))
    cluster.kubectl("-n", place.namespace, "create", "secret", "generic", "keys", "--from-literal=id=secret words")
    place.run(
        a_job(
            rules=(FAULTS_OF_THE_ARM,),
            env=[
                {"name": "TRIAL_CONFIG", "value": json.dumps({"trial": "t003"})},
                {"name": "TRIAL_ATTEMPT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "id"}}},
                {"name": "BOTH", "value": "$(TRIAL_ATTEMPT)/$(KEY)/$(UNKNOWN)/$$(KEY)"},
            ],
        )
    )
    assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
    uid = place.pods_of()[0]["metadata"]["uid"]
    assert got == [
        {
            "TRIAL_CONFIG": '{"trial": "t003"}',
            "TRIAL_ATTEMPT": uid,
            "KEY": "secret words",
            "BOTH": f"{uid}/secret words/$(UNKNOWN)/$(KEY)",
        }
    ]


def test_what_a_script_raises_is_what_its_pod_dies_of(place: Workplace, make_nodes: Nodes) -> None:
    def work(environment: Mapping[str, str]) -> None:
        raise RuntimeError("no such bucket")

    make_nodes(script=lambda pod: scripts.works(work))
    place.run(a_job())
    assert place.wait_for_end() == ("Failed", "BackoffLimitExceeded")
    pod = place.wait_for_pod(is_over)
    assert "no such bucket" in pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]


# Scheduling


def test_the_scheduler_gives_no_gpu_twice(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes(nodes=2, gpus=2, script=lambda pod: scripts.runs())
    for number in range(3):
        place.run(a_job(f"job-{number}", resources={"limits": {GPU: "2"}}))

    def count(pods: list[Object]) -> tuple[int, int]:
        return sum(map(is_running, pods)), sum(map(is_unschedulable, pods))

    def all_pods() -> list[Object]:
        return [pod for number in range(3) for pod in place.pods_of(f"job-{number}")]

    for number in range(3):
        place.wait_for_pod(
            lambda pod: is_running(pod) or condition_of(pod, "PodScheduled")[0] == "False", f"job-{number}"
        )
    assert count(all_pods()) == (2, 1)
    assert len({pod["spec"].get("nodeName") for pod in all_pods()}) == 3
    waiting = next(pod for pod in all_pods() if not is_running(pod))
    running = next(pod for pod in all_pods() if is_running(pod))
    place.api.delete(f"{place.jobs}/{running['metadata']['labels']['job-name']}", propagationPolicy="Foreground")
    place.wait_for_pod(is_running, waiting["metadata"]["labels"]["job-name"])


def test_a_pod_of_higher_priority_takes_the_place_of_another(
    cluster: Cluster, place: Workplace, make_nodes: Nodes
) -> None:
    name = f"{place.namespace}-high"
    cluster.kubectl("create", "priorityclass", name, "--value=1000")
    make_nodes(gpus=1, script=lambda pod: scripts.runs(stop_seconds=0.2))
    place.run(a_job("low", rules=(DISRUPTION,), resources={"limits": {GPU: "1"}}))
    low = place.wait_for_pod(is_running, "low")
    place.run(a_job("high", pod={"priorityClassName": name}, resources={"limits": {GPU: "1"}}))
    last = place.wait_until_gone(low)
    assert condition_of(last, "DisruptionTarget") == ("True", "PreemptionByScheduler")
    place.wait_for_pod(is_running, "high")
    job = place.api.get(f"{place.jobs}/low")
    assert job is not None and ends_of(job) == []
    cluster.kubectl("delete", "priorityclass", name)


# As processes


def test_a_process_runs_with_its_arguments_and_its_exit_code_ends_the_job(place: Workplace, make_nodes: Nodes) -> None:
    nodes = make_nodes()
    source = "import os, sys; print(os.environ['HOSTNAME'], sys.argv[1:], os.environ['TMPDIR']); sys.exit(12)"
    place.run(
        a_job(
            rules=(FAULTS_OF_THE_ARM,),
            args=["--word", "$(WORD)"],
            env=[{"name": "WORD", "value": "a b"}],
            **a_program(source),
        )
    )
    assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
    pod = place.pods_of()[0]
    assert end_of(pod) == ("Failed", 12, "Error")
    name = pod["metadata"]["name"]
    place_of_pod = nodes.place(pod)
    assert nodes.log(place.namespace, name) == f"{name} ['--word', 'a b'] {place_of_pod}/tmp\n"


def test_the_real_trainer_runs_in_a_pod_and_says_what_is_wrong(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    trainer: dict[str, Any] = {
        "command": ["python", "-m", "trial_trainer"],
        "env": [{"name": "TRIAL_CONFIG", "value": json.dumps({"study": "s1", "contract_version": 2})}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    place.run(a_job(rules=(FAULTS_OF_THE_ARM,), **trainer))
    assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
    pod = place.pods_of()[0]
    assert end_of(pod) == ("Failed", 12, "Error")
    assert "trial" in pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]


@pytest.mark.parametrize(
    ("name", "is_operator"),
    [
        ("finetune-study-operator", True),
        ("registry.example:5000/ml/finetune-study-operator:0.1.0", True),
        ("finetune-study-operator@sha256:0123", True),
        ("finetune-study-trainer:0.1.0", False),
        ("finetune-study-operator/trainer", False),
    ],
)
def test_the_operators_image_is_known_by_its_name(name: str, is_operator: bool) -> None:
    image = Image(entrypoint=["trainer"], operator=["operator"])
    assert image.find_entrypoint(name) == (["operator"] if is_operator else ["trainer"])


def test_the_image_knows_its_command(place: Workplace, make_nodes: Nodes) -> None:
    image = Image(entrypoint=[sys.executable, "-c", "import sys; print('trainer', *sys.argv[1:])"])
    nodes = make_nodes(image=image)
    place.run(a_job(args=["prepare"]))
    assert place.wait_for_end() == ("Complete", "CompletionsReached")
    assert nodes.log(place.namespace, place.pods_of()[0]["metadata"]["name"]) == "trainer prepare\n"


def test_deleting_a_pod_sends_sigterm_and_leaves_no_process(place: Workplace, make_nodes: Nodes) -> None:
    # The child is in a session of its own, as those of torch's launcher are, and hears nothing.
    source = """
import signal, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True,
)
def stop(*_):
    print("saved a checkpoint", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("running", flush=True)
time.sleep(600)
"""
    nodes = make_nodes()
    place.run(a_job(**a_program(source)))
    pod = place.wait_for_pod(is_running)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    wait_for_log(nodes, place.namespace, name, "running\n")
    assert len(find_marked(uid)) == 2
    place.api.delete(f"{place.pods}/{name}")
    last = place.wait_until_gone(pod)
    assert end_of(last) == ("Failed", 143, "Error")
    assert (nodes.place(pod) / "trainer.log").read_text() == "running\nsaved a checkpoint\n"
    assert find_marked(uid) == []


def test_a_process_that_does_not_listen_is_killed(place: Workplace, make_nodes: Nodes) -> None:
    source = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    nodes = make_nodes()
    place.run(
        a_job(
            backoff_limit=3,
            spec={"podReplacementPolicy": "Failed"},
            pod={"terminationGracePeriodSeconds": 1},
            **a_program(source),
        )
    )
    pod = place.wait_for_pod(is_running)
    wait_for_log(nodes, place.namespace, pod["metadata"]["name"], "deaf\n")
    place.api.delete(f"{place.pods}/{pod['metadata']['name']}")
    last = place.wait_until_gone(pod)
    assert end_of(last) == ("Failed", 137, "Error")
    assert find_marked(pod["metadata"]["uid"]) == []


def test_a_process_above_its_memory_limit_is_killed_for_it(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    source = "import time; held = bytearray(200_000_000); time.sleep(600)"
    place.run(a_job(resources={"limits": {"memory": "100Mi"}}, **a_program(source)))
    assert place.wait_for_end() == ("Failed", "BackoffLimitExceeded")
    assert end_of(place.pods_of()[0]) == ("Failed", 137, "OOMKilled")


def test_volumes_are_directories_and_paths_below_them_are_found(
    cluster: Cluster, place: Workplace, make_nodes: Nodes, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cluster.kubectl("-n", place.namespace, "create", "configmap", "authority", "--from-literal=ca.crt=certificate")
    source = """
import json, os, pathlib, sys
config = json.loads(os.environ["TRIAL_CONFIG"])
pathlib.Path(os.environ["HOME"], "cache").mkdir()
print(pathlib.Path(config["model"], "config.json").read_text(), pathlib.Path(os.environ["AWS_CA_BUNDLE"]).read_text())
pathlib.Path(sys.argv[1]).write_text("last words")
sys.exit(10)
"""
    nodes = make_nodes()
    place.run(
        a_job(
            rules=(FAULTS_OF_THE_ARM,),
            args=["/dev/termination-log"],
            env=[
                {"name": "TRIAL_CONFIG", "value": json.dumps({"model": "/models/base"})},
                {"name": "AWS_CA_BUNDLE", "value": "/etc/study/ca.crt"},
                {"name": "HOME", "value": "/tmp/home"},
            ],
            volumeMounts=[
                {"name": "models", "mountPath": "/models/base"},
                {"name": "authority", "mountPath": "/etc/study"},
                {"name": "scratch", "mountPath": "/tmp/home"},
            ],
            pod={
                "volumes": [
                    {"name": "models", "hostPath": {"path": str(tmp_path / "model")}},
                    {"name": "authority", "configMap": {"name": "authority"}},
                    {"name": "scratch", "emptyDir": {}},
                ]
            },
            **a_program(source),
        )
    )
    assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
    pod = place.pods_of()[0]
    assert nodes.log(place.namespace, pod["metadata"]["name"]) == "{} certificate\n"
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "last words"


def test_a_pod_waits_for_its_secret(cluster: Cluster, place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "id"}}}
    place.run(a_job(env=[variable], **a_program("import os; assert os.environ['KEY'] == 'words'")))

    def is_waiting(pod: Object) -> bool:
        states = pod["status"].get("containerStatuses", [{"state": {}}])
        waiting = states[0]["state"].get("waiting", {})
        return waiting.get("reason") == "CreateContainerConfigError" and 'secret "keys" not found' in waiting["message"]

    place.wait_for_pod(is_waiting)
    cluster.kubectl("-n", place.namespace, "create", "secret", "generic", "keys", "--from-literal=id=words")
    assert place.wait_for_end() == ("Complete", "CompletionsReached")


def test_init_containers_come_first(place: Workplace, make_nodes: Nodes) -> None:
    nodes = make_nodes()
    shared = {"name": "shared", "mountPath": "/shared"}
    write = "echo from init > /shared/file"
    first = {"name": "first", "image": "none", "command": ["sh", "-c", write], "volumeMounts": [shared]}
    place.run(
        a_job(
            command=["sh", "-c", "cat /shared/file"],
            volumeMounts=[shared],
            pod={"initContainers": [first], "volumes": [{"name": "shared", "emptyDir": {}}]},
        )
    )
    assert place.wait_for_end() == ("Complete", "CompletionsReached")
    assert nodes.log(place.namespace, place.pods_of()[0]["metadata"]["name"]) == "from init\n"


def test_a_container_is_restarted_where_its_pod_says_so(place: Workplace, make_nodes: Nodes, tmp_path: Path) -> None:
    make_nodes()
    file = tmp_path / "seen"
    script = f"test -e {shlex.quote(str(file))} || {{ touch {shlex.quote(str(file))}; exit 3; }}"
    place.run(a_job(backoff_limit=3, command=["sh", "-c", script], pod={"restartPolicy": "OnFailure"}))
    assert place.wait_for_end() == ("Complete", "CompletionsReached")
    status = place.pods_of()[0]["status"]["containerStatuses"][0]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 3)


# Nodes and the API server come and go


def test_a_pod_on_a_lost_node_is_marked_and_ends_when_the_node_is_back(
    make_control_plane: Callable[..., ControlPlane], tmp_path: Path
) -> None:
    plane = make_control_plane(node_grace_seconds=6, toleration_seconds=1)
    place = Workplace(plane, plane.create_namespace("shop"))
    scripts_by_turn = iter([scripts.runs(), scripts.exits(0)])
    nodes = StandIn(
        plane.kubeconfig, nodes=2, pool="shop", script=lambda pod: next(scripts_by_turn), directory=tmp_path
    )
    with nodes:
        place.run(a_job(rules=(DISRUPTION,), spec={"podReplacementPolicy": "Failed"}))
        pod = place.wait_for_pod(is_running)
        nodes.lose(pod["spec"]["nodeName"])
        marked = place.wait_for_pod(lambda pod: "deletionTimestamp" in pod["metadata"])
        assert condition_of(marked, "DisruptionTarget") == ("True", "DeletionByTaintManager")
        assert marked["status"]["phase"] == "Running"  # nobody knows better
        job = plane.api.get(f"{place.jobs}/job")
        assert job is not None and ends_of(job) == []
        nodes.recover(pod["spec"]["nodeName"])
        assert place.wait_for_end() == ("Complete", "CompletionsReached")


@pytest.mark.slow  # the controllers wait for 40 s before they believe it
def test_pods_of_a_removed_node_are_collected_and_replaced(
    make_control_plane: Callable[..., ControlPlane], tmp_path: Path
) -> None:
    plane = make_control_plane()
    place = Workplace(plane, plane.create_namespace("shop"))
    scripts_by_turn = iter([scripts.runs(), scripts.exits(0)])
    nodes = StandIn(
        plane.kubeconfig, nodes=2, pool="shop", script=lambda pod: next(scripts_by_turn), directory=tmp_path
    )
    with nodes:
        place.run(a_job(rules=(DISRUPTION,)))
        pod = place.wait_for_pod(is_running)
        nodes.remove(pod["spec"]["nodeName"])
        assert place.wait_for_end(seconds=150) == ("Complete", "CompletionsReached")


def test_what_happens_while_the_api_server_is_away_is_told_when_it_is_back(
    make_control_plane: Callable[..., ControlPlane], tmp_path: Path
) -> None:
    plane = make_control_plane()
    place = Workplace(plane, plane.create_namespace("shop"))
    done = tmp_path / "done"
    source = f"import pathlib, time; time.sleep(2); pathlib.Path({str(done)!r}).touch(); raise SystemExit(11)"
    with StandIn(plane.kubeconfig, pool="shop", directory=tmp_path / "pods"):
        place.run(a_job(rules=(FAULTS_OF_THE_ARM,), **a_program(source)))
        pod = place.wait_for_pod(is_running)
        plane.kill("apiserver")
        while not done.exists():
            os.sched_yield()
        plane.start("apiserver")
        assert place.wait_for_end() == ("Failed", "PodFailurePolicy")
        assert end_of(place.pods_of()[0]) == ("Failed", 11, "Error")
        assert place.pods_of()[0]["metadata"]["uid"] == pod["metadata"]["uid"]


def test_many_pods_cost_no_thread_each(place: Workplace, make_nodes: Nodes) -> None:
    import threading

    make_nodes(nodes=2, gpus=0, script=lambda pod: scripts.runs())
    before = threading.active_count()
    place.run(a_job(spec={"parallelism": 60, "completions": 60}))
    place.api.wait_for(place.jobs, "job", lambda job: bool(job and job.get("status", {}).get("ready") == 60))
    assert threading.active_count() - before <= 8


def wait_for_log(nodes: StandIn, namespace: str, pod: str, text: str) -> None:
    while nodes.log(namespace, pod) != text:
        os.sched_yield()


def test_kubectl_shows_what_a_process_says(cluster: Cluster, place: Workplace, make_nodes: Nodes) -> None:
    nodes = make_nodes()
    source = "import time; print('first'); print('second'); time.sleep(1); print('last')"
    place.run(a_job(**a_program(source)))
    name = place.wait_for_pod(is_running)["metadata"]["name"]
    wait_for_log(nodes, place.namespace, name, "first\nsecond\n")
    logs = ("-n", place.namespace, "logs", name)
    assert cluster.kubectl(*logs, "--tail=1").stdout == "second\n"
    assert cluster.kubectl(*logs, "--follow").stdout == "first\nsecond\nlast\n"
    assert place.wait_for_end() == ("Complete", "CompletionsReached")
    assert cluster.kubectl(*logs).stdout == "first\nsecond\nlast\n"


def test_a_pod_has_an_address_before_its_containers_start(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    place.run(a_job("waits", envFrom=[{"configMapRef": {"name": "nobodys"}}]))
    place.run(a_job("ends", command=["/no/such/program"]))
    waiting = place.wait_for_pod(lambda pod: "CreateContainerConfigError" in json.dumps(pod["status"]), "waits")
    ended = place.wait_for_pod(is_over, "ends")
    assert all(pod["status"]["podIP"] for pod in (waiting, ended))
    message = ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert message.startswith("failed to create containerd task: ")
    assert message.endswith('exec: "/no/such/program": stat /no/such/program: no such file or directory')


def test_a_container_that_is_restarted_is_seen_to_have_ended_first(place: Workplace, make_nodes: Nodes) -> None:
    make_nodes()
    container = {"name": "trainer", "image": "none", "command": ["sh", "-c", "exit 4"]}
    spec = {"restartPolicy": "OnFailure", "containers": [container]}
    pod = place.api.create(place.pods, {"metadata": {"name": "a"}, "spec": spec})
    seen: list[tuple[str, int]] = []
    version = pod["metadata"]["resourceVersion"]
    with place.api.watch(place.pods, resource_version=version, fieldSelector="metadata.name=a") as events:
        for event in events:
            for status in event["object"].get("status", {}).get("containerStatuses", ()):
                kind, state = next(iter(status["state"].items()))
                seen.append((f"{kind} {state.get('reason', '')}".strip(), status["restartCount"]))
            if seen and seen[-1][0].endswith("CrashLoopBackOff"):
                break
    # Seen with a kubelet: the first restart comes at once.
    assert [state for state, _ in itertools.groupby(seen)][1:] == [
        ("running", 0),
        ("terminated Error", 0),
        ("running", 1),
        ("terminated Error", 1),
        ("waiting CrashLoopBackOff", 1),
    ]


# As seen with a kubelet and containerd (Kubernetes 1.36.3): phase, state of the container, reason of its readiness.
SEEN = {
    "exits 0": [
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Running", "running", ""),
        ("Running", "terminated Completed", "PodCompleted"),
        ("Succeeded", "terminated Completed", "PodCompleted"),
    ],
    "exits 7": [
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Running", "running", ""),
        ("Running", "terminated Error", "PodFailed"),
        ("Failed", "terminated Error", "PodFailed"),
    ],
    "has no such program": [
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Pending", "terminated StartError", "PodFailed"),
        ("Failed", "terminated StartError", "PodFailed"),
    ],
    "is deleted while it runs": [
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Running", "running", ""),
        ("Failed", "terminated Error", "PodFailed"),
    ],
    "is deleted while it waits": [
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Pending", "waiting CreateContainerConfigError", "ContainersNotReady"),
        ("Pending", "waiting ContainerCreating", "ContainersNotReady"),
        ("Failed", "terminated ContainerStatusUnknown", "ContainersNotReady"),
    ],
}
CONTAINERS: dict[str, dict[str, Any]] = {
    "exits 0": {"command": ["true"]},
    "exits 7": {"command": ["sh", "-c", "exit 7"]},
    "has no such program": {"command": ["no-such-program"]},
    "is deleted while it runs": {"command": ["sleep", "600"]},
    "is deleted while it waits": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "a"}}}]},
}


@pytest.mark.parametrize("case", SEEN)
def test_a_pod_goes_through_the_states_that_a_kubelet_shows(place: Workplace, make_nodes: Nodes, case: str) -> None:
    make_nodes()
    spec = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "none", **CONTAINERS[case]}]}
    pod = place.api.create(place.pods, {"metadata": {"name": "a", "finalizers": ["test/hold"]}, "spec": spec})
    seen: list[tuple[str, str, str]] = []
    moment_to_delete = SEEN[case][1] if "deleted" in case else None
    version = pod["metadata"]["resourceVersion"]
    with place.api.watch(place.pods, resource_version=version, fieldSelector="metadata.name=a") as events:
        for event in events:
            for status in event["object"].get("status", {}).get("containerStatuses", ()):
                kind, state = next(iter(status["state"].items()))
                phase, readiness = event["object"]["status"]["phase"], condition_of(event["object"], "Ready")[1]
                seen.append((phase, f"{kind} {state.get('reason', '')}".strip(), readiness))
            if seen and seen[-1] == moment_to_delete:
                moment_to_delete = None
                place.api.delete(f"{place.pods}/a")
            if seen and seen[-1] == SEEN[case][-1]:
                break
    place.api.patch(f"{place.pods}/a", {"metadata": {"finalizers": None}})
    assert [state for state, _ in itertools.groupby(seen)] == SEEN[case]
