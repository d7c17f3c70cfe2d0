"""Killed anywhere, any number of times; servers that refuse, drop, restart: nothing twice, nothing lost, same end.

Between the operator and its two servers stand proxies that see every request. They kill the operator before a request
reaches the server, or after it was carried out and before the answer arrives.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.processes import is_alive
from builders.studies_on_a_server import install_crd
from on_cluster.conftest import Stage
from on_cluster.fates import LIST, WATCH
from on_cluster.operators import (
    ANY_PORTS,
    FAST,
    NAME,
    OperatorProcess,
    granted,
    operator_environment,
    read_access,
    wait_until,
)
from on_cluster.proxy import Call, Fate, Proxy, Treatment
from on_cluster.studies import StudyOnCluster, a_secret, a_spec, created_jobs, read_json
from on_cluster.zygote import Zygote
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.demo import ON_LOOPBACK
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

KILLS = 200
ARMS = 24
DEEPEST = 20
"""How many requests an operator may make at most in a life that ends with any of them; half of them look around."""
CHANGES = ("POST jobs", "PUT finetunestudies/status")
TARGETS = ("", "", *CHANGES, *CHANGES, "GET finetunestudies", "POST events", "s3 GET", "s3 PUT")
"""What a life ends with; empty means anything."""
QUIET_SECONDS = 1.5
"""An operator that asks for nothing for so long waits for pods, and would not reach the request at which it dies."""


def a_long_spec(server: S3Server, endpoint: str, arms: int = ARMS) -> dict[str, Any]:
    """Return a study of many arms that differ, whose pods reach the bucket without the proxy."""
    spec = a_spec(server, arms=1, parallel=6, promoted=4, audited=2, storage={"endpoint": endpoint})
    spec["numTrials"] = arms
    spec["startingArms"] = [{"learning_rate": f"{1.05**number * 1e-3:.6e}"} for number in range(1, arms)]
    [container] = spec["trainer"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "AWS_ENDPOINT_URL_S3", "value": server.endpoint}]
    return spec


def check_end(cluster: Cluster, study: StudyOnCluster, s3: S3Server, *, is_calm: bool = True) -> None:
    """Check that a study ended as it does without faults, and that no Job was ever created twice."""
    assert study.condition("Complete")["reason"] == "Completed", study.describe()
    states = Counter(study.states())
    assert states == {"Completed": 7, "Stopped": ARMS - 7}, study.describe()
    measured = study.measurements()
    assert {rung for _, rung in measured} == {0, 1}
    assert [number for number, rung in measured if rung == 0] == [*range(ARMS)]
    continued = {t["index"]: t["continuation"] for t in study.trials if "continuation" in t}
    assert [number for number, why in continued.items() if why == "Promoted"] == [1, 2, 3, 4]
    assert study.status["winner"] == 0
    jobs = Counter(created_jobs(cluster, study.namespace))
    attempts = {
        f"{study.name}-t{t['index']:03d}-r{rung}": [a["reason"] for a in t["attempts"] if a["rung"] == rung]
        for t in study.trials
        for rung in (0, 1)
    }
    twice = {name for name, count in jobs.items() if count > max(1, len(attempts.get(name, ())))}
    assert not twice, study.describe()
    assert len({name for name in jobs if name.startswith(f"{study.name}-")}) == ARMS + 7 + 2
    # Each measurement of the bucket is in the ledger, as it was read.
    for (number, rung), value in measured.items():
        measurement = read_json(s3, f"{study.prefix()}trials/t{number:03d}/rungs/{rung}/measurement.json")
        assert repr(measurement["metrics"]["accuracy"]["value"]) == value
    # With pods that never fail, each rung took one attempt.
    assert not is_calm or all(set(ends) <= {"Succeeded"} and len(ends) < 2 for ends in attempts.values()), attempts


class Executioner:
    """Kills the operator at one request of its life after the other, before or after the server has done it."""

    def __init__(self, zygote: Zygote, arguments: list[str], on_death: Callable[[], None]) -> None:
        self._zygote, self._arguments, self._on_death = zygote, arguments, on_death
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._process = 0
        self._countdown: int | None = None
        self._fate = Fate.LOST
        self._target = ""
        self._asked_at = 0.0
        self.is_dead = threading.Event()
        self.points: Counter[tuple[str, str]] = Counter()
        """How often it died at which request, and whether before or after."""

    def live(self, is_over: Callable[[], bool] | None = None) -> None:
        """Let an operator live until it dies, or until nothing is left to do; for good where nobody says when."""
        is_mortal = is_over is not None
        self.is_dead.clear()
        self._fate = self._random.choice([Fate.LOST, Fate.UNANSWERED])
        self._target = self._random.choice(TARGETS)
        self._countdown = self._random.randint(1, 2 if self._target else DEEPEST) if is_mortal else None
        self._asked_at = time.monotonic()
        self._process = self._zygote.start(self._arguments)
        while is_over is not None and not self.is_dead.wait(0.05):
            with self._lock:
                is_quiet = time.monotonic() - self._asked_at > QUIET_SECONDS
                if is_quiet:
                    # The next request is its last one.
                    self._countdown, self._target = 1, ""
                    self._asked_at = time.monotonic()
            if is_quiet and is_over():
                self._countdown = 0
                self._kill()
            # In this order: it is struck before it is dead.
            assert is_alive(self._process) or self._countdown == 0, self._zygote.log.read_text()[-3000:]

    def decide(self, call: Call) -> Fate:
        """Say what becomes of a request of the operator."""
        if "/leases" in call.path:
            return Fate.FORWARD
        with self._lock:
            if self._countdown is None:
                return Fate.FORWARD
            if self._countdown == 0:
                return Fate.LOST
            self._asked_at = time.monotonic()
            if self._target in ("", call.kind):
                self._countdown -= 1
            else:
                return Fate.FORWARD
            if self._countdown > 0:
                return Fate.FORWARD
            # A watch has no end: its beginning is what can be lost.
            fate = Fate.LOST if call.is_watch else self._fate
            self.points[call.kind, fate] += 1
            if fate is Fate.LOST:
                self._kill()
            else:
                # In the middle of its request, which the server carries out meanwhile.
                os.kill(self._process, signal.SIGSTOP)
                threading.Timer(0.1, self._kill).start()
            return fate

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        wait_until(lambda: not is_alive(self._process))
        self._on_death()
        self.is_dead.set()


@pytest.fixture
def behind_proxies(
    cluster: Cluster, home: Path, s3: S3Server, tmp_path: Path
) -> Iterator[Callable[[Callable[[Call], Treatment]], tuple[Path, Proxy, Proxy]]]:
    """Puts proxies before both servers; gives the operator's kubeconfig and both."""
    with contextlib.ExitStack() as stack:

        def put(decide: Callable[[Call], Treatment]) -> tuple[Path, Proxy, Proxy]:
            content = yaml.safe_load(home.read_text())
            [entry] = content["clusters"]
            (tmp_path / "ca.crt").write_bytes(base64.b64decode(entry["cluster"].pop("certificate-authority-data")))
            api = Proxy(entry["cluster"]["server"], name="kubernetes", decide=decide, ca_file=str(tmp_path / "ca.crt"))
            bucket = Proxy(s3.endpoint, name="s3", decide=decide)
            for proxy in (api, bucket):
                stack.callback(proxy.stop)
            entry["cluster"]["server"] = api.url
            kubeconfig = tmp_path / "proxied.kubeconfig"
            kubeconfig.write_text(yaml.safe_dump(content))
            return kubeconfig, api, bucket

        yield put


@pytest.mark.slow
def test_an_operator_killed_at_two_hundred_requests_does_nothing_twice_and_loses_nothing(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    behind_proxies: Callable[..., tuple[Path, Proxy, Proxy]],
    s3: S3Server,
    study: StudyOnCluster,
    tmp_path: Path,
) -> None:
    held: list[Executioner] = []
    kubeconfig, api, bucket = behind_proxies(lambda call: held[0].decide(call))
    config = tmp_path / "operator.yaml"
    config.write_text(yaml.safe_dump({"limits": FAST, **ON_LOOPBACK}))
    zygote = Zygote(tmp_path, operator_environment(kubeconfig))
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{NAME}"
    arguments = ["--config", str(config), *ANY_PORTS, "--namespace", namespace]
    arguments += ["--lease-namespace", namespace]

    def tidy_up() -> None:
        """Do what time does after a death: connections end, and so does the Lease."""
        api.end_watches()
        cluster.api.delete(lease)

    executioner = Executioner(zygote, arguments, tidy_up)
    held.append(executioner)
    try:
        studies = []
        while executioner.points.total() < KILLS:
            study = StudyOnCluster(cluster, namespace, f"shop-{len(studies)}")
            study.apply(a_long_spec(s3, bucket.url))
            studies.append(study)
            while executioner.points.total() < KILLS and not has_ended(study.refresh()):
                executioner.live(lambda study=study: has_ended(study.refresh()))  # type: ignore[misc]
        executioner.live()
        for study in studies:
            study.wait_for_condition("Complete")
    finally:
        zygote.stop()
    for study in studies:
        check_end(cluster, study, s3)
    # What was promoted went on from its checkpoint, each once.
    assert len(stage.trainer.resumed) == 7 * len(studies)
    # Every sort of request was somebody's last, and those that change something both before and after.
    kinds = {kind for kind, _ in executioner.points}
    assert {*TARGETS[2:], "LIST jobs", "WATCH jobs"} <= kinds, executioner.points
    for kind in CHANGES:
        assert min(executioner.points[kind, fate] for fate in (Fate.LOST, Fate.UNANSWERED)) >= 5, executioner.points


def has_ended(study: StudyOnCluster) -> bool:
    """Tell whether a study is over and tidied up."""
    return study.condition("Complete")["status"] == "True" and bool(study.status.get("cleanedAt"))


def test_refusals_lost_answers_and_dropped_watches_change_nothing(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    behind_proxies: Callable[..., tuple[Path, Proxy, Proxy]],
    s3: S3Server,
    study: StudyOnCluster,
    tmp_path: Path,
) -> None:
    chance = random.Random(0)
    fates: Counter[Fate] = Counter()

    def decide(call: Call) -> Fate:
        if "/leases" in call.path:
            return Fate.FORWARD
        bad = [Fate.LOST, Fate.BUSY, Fate.BROKEN]
        if call.is_watch:
            bad = [Fate.CUT]
        elif call.method in ("PUT", "POST"):
            bad = [*bad, Fate.UNANSWERED]
        if call.kind.endswith("/status"):
            bad = [*bad, Fate.CONFLICT]
        unseen = [fate for fate in bad if not fates[fate]]
        if unseen:
            # However few calls of a kind there are, each fate is met.
            fate = unseen[-1]
        else:
            fate = chance.choice(bad) if chance.random() < (0.5 if call.is_watch else 0.1) else Fate.FORWARD
        fates[fate] += 1
        return fate

    kubeconfig, _, bucket = behind_proxies(decide)
    operator = OperatorProcess(
        kubeconfig,
        tmp_path / "operator",
        config={"limits": FAST},
        arguments=["--namespace", namespace, "--lease-namespace", namespace],
    )
    try:
        study.apply(a_long_spec(s3, bucket.url))
        study.wait_for_condition("Complete")
        assert operator.stop() == 0
    finally:
        operator.kill()
    check_end(cluster, study, s3)
    assert {fate for fate, count in fates.items() if count} == {*Fate}, fates
    assert "Traceback" not in operator.log, operator.log


def test_whatever_its_watch_of_studies_is_told_an_operator_goes_on_by_itself(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    behind_proxies: Callable[..., tuple[Path, Proxy, Proxy]],
    s3: S3Server,
    study: StudyOnCluster,
    tmp_path: Path,
) -> None:
    fates = [
        *("410 Expired", "410 as an event", "an error as an event", "401 Unauthorized", "an event of nothing", "HTML"),
        *("an error that is none", "500 InternalError", "a bookmark of another form", "empty", "wrong JSON"),
    ]
    left, refused_lists = list(fates), ["410 Expired", "HTML", "64 MiB of blanks"]

    def decide(call: Call) -> Treatment:
        if call.kind == "WATCH finetunestudies" and left:
            return WATCH[left.pop(0)]
        if call.kind == "LIST finetunestudies" and refused_lists and len(left) < len(fates):
            return LIST[refused_lists.pop(0)]
        return Fate.FORWARD

    kubeconfig, _, _ = behind_proxies(decide)
    operator = OperatorProcess(
        kubeconfig,
        tmp_path / "operator",
        config={"limits": FAST},
        arguments=["--namespace", namespace, "--lease-namespace", namespace],
    )
    try:
        wait_until(lambda: not left and not refused_lists, why=lambda: f"not met: {left}\n{operator.log[-4000:]}")
        study.apply(a_spec(s3, arms=2))
        study.wait_for_condition("Complete")
        # The process that it was.
        assert operator.log.count("elected:") == 1
        assert operator.stop() == 0
    finally:
        operator.kill()
    assert "Traceback" not in operator.log, operator.log


@pytest.mark.slow
def test_servers_that_restart_or_are_away_for_a_while_cost_time_only(
    make_control_plane: Callable[..., ControlPlane], s3: S3Server, user: User, tmp_path: Path
) -> None:
    plane = make_control_plane()
    install_crd(plane)
    namespace = plane.create_namespace("shop-ml")
    study = StudyOnCluster(plane, namespace, "shop")
    trainer = ScriptedTrainer()
    flags = {
        "config": {"limits": FAST},
        "arguments": ["--namespace", namespace, "--lease-namespace", namespace],
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(granted(plane, read_access(namespace)))
        script = scripts.works(trainer, after_seconds=0.5)
        stack.enter_context(StandIn(plane.kubeconfig, pool=namespace, script=lambda pod: script))
        plane.apply(a_secret(namespace, user))
        kubeconfig = plane.service_account_kubeconfig(namespace, NAME, tmp_path)
        first = OperatorProcess(kubeconfig, tmp_path / "first", **flags)
        stack.callback(first.kill)
        study.apply(a_long_spec(s3, s3.endpoint))
        study.wait(lambda study: len(study.measurements()) >= 2)

        # Restarted: whoever had a watch opens it again.
        plane.restart("apiserver")
        study.wait(lambda study: len(study.measurements()) >= 6)
        # The bucket is away: said in a condition. What a pod could not write is written by its next attempt.
        s3.kill()
        study.wait(lambda study: study.condition("StorageReady")["status"] == "False")
        assert study.condition("StorageReady")["reason"] == "StorageUnreachable"
        s3.start()
        study.patch(parallelTrials=5)
        study.wait(lambda study: study.condition("StorageReady")["status"] == "True")
        # The API server is away for longer than the Lease: the operator ends, and begins again as its Deployment would.
        plane.kill("apiserver")
        assert first.wait() == 1
        second = OperatorProcess(kubeconfig, tmp_path / "second", **flags)
        stack.callback(second.kill)
        second.wait_until_says("healthz")
        plane.start("apiserver")
        study.wait_for_condition("Complete")
        check_end(plane, study, s3, is_calm=False)


def test_a_pod_that_has_lost_its_job_keeps_its_place_also_after_a_restart(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    """One Job is deleted without its pod, another with a pod that takes its time, while no operator sees it."""
    stage.play["t000-r0"] = scripts.runs()
    stage.play["t001-r0"] = scripts.runs(stop_seconds=3600.0)
    first = make_operator()
    study.apply(a_spec(s3, arms=2, parallel=2))
    study.wait(lambda study: study.states() == ["Running", "Running"])
    first.kill()
    cluster.kubectl("delete", "job", "shop-t000-r0", "-n", namespace, "--cascade=orphan")
    cluster.kubectl("delete", "job", "shop-t001-r0", "-n", namespace, "--cascade=background")
    wait_until(lambda: all("ownerReferences" not in pod["metadata"] for pod in study.live_pods("t000")))
    wait_until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in study.live_pods("t001")))
    made = len(created_jobs(cluster, namespace))
    second = make_operator()
    second.wait_until_works()
    # It has looked at everything when it does what it is told.
    study.patch(parallelTrials=3)
    study.wait(lambda study: study.status["observedGeneration"] == study.seen["metadata"]["generation"])
    assert study.states() == ["Running", "Running"]
    assert len(created_jobs(cluster, namespace)) == made
    stage.play.clear()
    # Nobody stops the one that no Job controls, so that a person is told how.
    study.patch(suspend=True)
    study.wait(lambda study: "kubectl delete pod" in study.condition("Complete")["message"])
    command = study.condition("Complete")["message"].partition("kubectl ")[2].split()
    assert command[-1] in {pod["metadata"]["name"] for pod in study.live_pods("t000")}
    cluster.kubectl(*command, "--wait=false")
    study.wait(lambda study: not study.condition("Complete")["message"])
    assert "PodOrphaned" in study.reasons()
    study.patch(suspend=False)
    [pod] = study.live_pods("t001")
    stage.nodes.evict(namespace, pod["metadata"]["name"])
    study.wait_for_condition("Complete")
    for trial in study.trials:
        assert len([a for a in trial["attempts"] if a["rung"] == 0]) == 2, study.describe()
    assert "JobGone" not in {a["reason"] for trial in study.trials for a in trial["attempts"]}
