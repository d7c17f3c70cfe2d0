"""Random lives of studies among servers that fail in every way that we know: they end right, or say why not.

    make faults LIVES=300             # by night; SEED=17 begins with another life

Thirty lives share an operator, in five namespaces; a sixth has studies that nothing befalls. At first the requests of
each life are struck, and a healthy study must not notice; then watches, lists and the Lease besides, which all share.
A batch of lives that fails says its seed, with which it is lived again: `make faults LIVES=30 SEED=...`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from on_cluster.fates import SHARED_KINDS, Fates, Life, draw_life, draw_trouble
from on_cluster.operators import FAST, HOME, MANIFESTS, OperatorProcess, read_manifests, wait_until
from on_cluster.proxy import Proxy
from on_cluster.studies import StudyOnCluster, a_secret, a_spec, created_jobs, read_json
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

BATCH = 30
TENANTS = 5
TROUBLED_SECONDS = 40.0
"""Troubles end by then, met or not."""
RECOVERY_SECONDS = 300.0
"""By then each life has ended: what failed or was refused is looked at again after a minute at most, and the busiest
machine takes minutes for the pods of all."""
UNHARMED_SECONDS = 120.0
"""For a whole study of another namespace meanwhile, on the busiest machine; on a quiet one it takes seconds."""
MEMORY_BYTES = 2 * 1024**3
"""The chart's limit."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cut the lives that are asked for into batches."""
    if "seeds" in metafunc.fixturenames:
        first, count = int(os.environ.get("FAULTS_SEED", "0")), int(os.environ.get("FAULTS_LIVES", str(BATCH)))
        batches = [range(at, min(at + BATCH, first + count)) for at in range(first, first + count, BATCH)]
        metafunc.parametrize("seeds", batches, ids=[f"seed-{batch[0]}" for batch in batches])


class Deployment:
    """One replica after the other: whenever it ends, the next one begins."""

    def __init__(self, start: Callable[[int], OperatorProcess]) -> None:
        self._start = start
        self._is_over = threading.Event()
        self.replicas = [start(0)]
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()
        self.peak_bytes = 0

    @property
    def current(self) -> OperatorProcess:
        """The one that runs, or is about to be replaced."""
        return self.replicas[-1]

    @property
    def log(self) -> str:
        """Of all."""
        return "\n".join(replica.log for replica in self.replicas)

    def is_well(self) -> bool:
        """Ask its health."""
        try:
            return self.current.process.poll() is None and self.current.ask_health() == 200
        except (AssertionError, urllib3.exceptions.HTTPError):
            return False

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self._thread.join()
        for replica in self.replicas:
            replica.kill()

    def _supervise(self) -> None:
        while not self._is_over.wait(0.2):
            process = self.current.process
            if process.poll() is None:
                self.peak_bytes = max(self.peak_bytes, read_peak_bytes(process.pid))
            else:
                self.replicas.append(self._start(len(self.replicas)))


def read_peak_bytes(process: int) -> int:
    """Return the most memory that a process has had."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return 0


@dataclass
class Stage:
    """Namespaces with nodes, and the operator behind its proxies."""

    cluster: Cluster
    namespaces: list[str]
    """The last one is that of the studies that nothing befalls."""
    lives: list[Life]
    fates: Fates
    deployment: Deployment
    api: Proxy
    bucket: Proxy
    s3: S3Server
    studies: dict[str, StudyOnCluster] = field(default_factory=dict)

    def begin(self, lives: Sequence[Life]) -> None:
        """Create the studies of these lives."""
        for number, life in enumerate(lives):
            namespace = self.namespaces[number % (len(self.namespaces) - 1)]
            self.studies[life.name] = StudyOnCluster(self.cluster, namespace, life.name)
        self.cluster.apply(
            *(self.studies[life.name].manifest(self.spec(self.bucket.url, **life.spec)) for life in lives)
        )

    def spec(self, endpoint: str, **options: Any) -> dict[str, Any]:
        """Return a study whose pods reach the bucket as ever."""
        storage = {"endpoint": endpoint, **options.pop("storage", {})}
        spec = a_spec(self.s3, **options, storage=storage)
        [container] = spec["trainer"]["template"]["spec"]["containers"]
        container["env"] = [{"name": "AWS_ENDPOINT_URL_S3", "value": self.s3.endpoint}]
        return spec

    def live_unharmed(self, name: str, problems: list[str]) -> float:
        """Let a study live that nothing befalls; return how many seconds it took, and add what is wrong."""
        study = StudyOnCluster(self.cluster, self.namespaces[-1], name)
        begun = time.monotonic()
        study.apply(self.spec(self.s3.endpoint, arms=2, parallel=2))
        try:
            study.wait_for_condition("Complete", seconds=UNHARMED_SECONDS)
        except AssertionError as error:
            problems.append(f"a healthy study was harmed: {error}\n{self.deployment.log[-6000:]}")
        return time.monotonic() - begun


@pytest.fixture
def stage(
    cluster: Cluster,
    namespace: str,
    home: Path,
    user: User,
    s3: S3Server,
    seeds: range,
    tmp_path: Path,
) -> Iterator[Stage]:
    lives = [draw_life(seed) for seed in seeds]
    by_name = {life.name: life for life in lives}
    trainer = ScriptedTrainer()
    chance = random.Random(-1 - seeds[0])
    shared = [draw_trouble(chance, "kubernetes", SHARED_KINDS) for _ in range(5)]
    fates = Fates(lives, shared, seeds[0])

    def choose(pod: Any) -> scripts.Script:
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        life = by_name.get("-".join(job.split("-")[:2]))
        works = scripts.works(trainer, after_seconds=0.2)
        return life.script(job, works) if life is not None else works

    namespaces = [f"{namespace}-{letter}" for letter in "abcdef"[: TENANTS + 1]]
    with contextlib.ExitStack() as stack:
        for name in namespaces:
            cluster.create_namespace(name)
            stack.callback(cluster.delete_namespace, name)
            cluster.apply(a_secret(name, user), *read_bindings(name, namespace))
            nodes = StandIn(cluster.kubeconfig, name=name, pool=name, script=choose, directory=tmp_path / name)
            stack.enter_context(nodes)
        kubeconfig, api, bucket = stand_before(home, s3, fates, tmp_path, stack)
        flags = [word for name in namespaces for word in ("--namespace", name)]

        def start(number: int) -> OperatorProcess:
            return OperatorProcess(
                kubeconfig,
                tmp_path / f"operator-{number}",
                config={"limits": FAST},
                arguments=[*flags, "--lease-namespace", namespace],
            )

        deployment = Deployment(start)
        stack.callback(deployment.stop)
        yield Stage(cluster, namespaces, lives, fates, deployment, api, bucket, s3)


def read_bindings(namespace: str, home: str) -> list[dict[str, Any]]:
    """Return what lets an operator at home in one namespace read the Secrets of another."""
    objects = read_manifests(MANIFESTS / "operator/per-namespace/secrets.yaml")
    for each in objects:
        each["metadata"]["namespace"] = namespace
        each["roleRef"]["name"] += f"-{home}"
        for subject in each["subjects"]:
            assert subject["namespace"] == HOME
            subject["namespace"] = home
    return objects


def stand_before(
    home: Path, s3: S3Server, fates: Fates, directory: Path, stack: contextlib.ExitStack
) -> tuple[Path, Proxy, Proxy]:
    """Put proxies before both servers; return the operator's kubeconfig and both."""
    content = yaml.safe_load(home.read_text())
    [entry] = content["clusters"]
    authority = directory / "ca.crt"
    authority.write_bytes(base64.b64decode(entry["cluster"].pop("certificate-authority-data")))
    api = Proxy(entry["cluster"]["server"], name="kubernetes", decide=fates.decide, ca_file=str(authority))
    bucket = Proxy(s3.endpoint, name="s3", decide=fates.decide)
    for proxy in (api, bucket):
        stack.callback(proxy.stop)
    entry["cluster"]["server"] = api.url
    kubeconfig = directory / "proxied.kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(content))
    return kubeconfig, api, bucket


@pytest.mark.slow
def test_lives_among_every_fault_end_right_or_say_why_not(stage: Stage, seeds: range) -> None:
    again = f"live it again with: make faults LIVES={len(seeds)} SEED={seeds[0]}"
    stage.deployment.current.wait_until_says("metrics: port")
    first, second = stage.lives[::2], stage.lives[1::2]
    stage.begin(first)
    touch(stage, first)
    problems: list[str] = []
    among = stage.live_unharmed("quiet-1", problems)
    stage.begin(second)
    stage.fates.are_shared_struck = True
    stage.api.end_watches()
    touch(stage, second)
    deadline = time.monotonic() + TROUBLED_SECONDS
    while time.monotonic() < deadline and not all(t.is_over for life in stage.lives for t in life.troubles):
        time.sleep(0.2)
    stage.fates.is_calm = True
    ended_by = time.monotonic() + RECOVERY_SECONDS
    ends: Counter[str] = Counter()
    for life in stage.lives:
        try:
            ends[end_of(stage, life, max(1.0, ended_by - time.monotonic()))] += 1
        except AssertionError as error:
            problems.append(f"{life}\n{error}")
    after = stage.live_unharmed("quiet-2", problems)
    if not stage.deployment.is_well():
        problems.append("the operator is not well")
    problems += find_traces(stage.deployment.log)
    if stage.deployment.peak_bytes > MEMORY_BYTES:
        problems.append(f"the operator has taken {stage.deployment.peak_bytes / 1e6:.0f} MB")
    replicas, peak, met = stage.deployment.replicas, stage.deployment.peak_bytes, stage.fates.met
    print(
        f"\nseed {seeds[0]}: {len(seeds)} lives: {dict(ends)}; healthy studies took {among:.1f} s among faults and "
        f"{after:.1f} s after; the operator began {len(replicas)} times, at most {peak / 1e6:.0f} MB; "
        f"{met.total()} requests were struck by {len(met)} fates"
    )
    assert not problems, "\n\n".join([again, *problems, again])


def touch(stage: Stage, lives: Sequence[Life]) -> None:
    """Do what people do in the middle of studies."""
    for life in lives:
        study = stage.studies[life.name]
        deeds: dict[str, list[tuple[float, Callable[[], None]]]] = {
            "Suspend": [(1.0, partial(study.patch, suspend=True)), (4.0, partial(study.patch, suspend=False))],
            "Widen": [(1.0, partial(study.patch, parallelTrials=4))],
            "Delete": [(2.0, study.delete)],
        }
        for seconds, do in deeds.get(life.event, ()):
            threading.Timer(seconds, do).start()


def end_of(stage: Stage, life: Life, seconds: float) -> str:
    """Wait for the end of a life, and check it; return in a word what it was."""
    study = stage.studies[life.name]
    if life.event == "Delete":
        try:
            study.wait_until_gone(seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"it is not gone: {study.refresh().seen}") from None
        wait_until(lambda: not study.jobs() and not study.pods(), why=lambda: f"left behind: {study.jobs().keys()}")
        return "deleted"
    study.wait(
        lambda study: any(study.condition(end)["status"] == "True" for end in ("Complete", "Failed")), seconds=seconds
    )
    created = Counter(name for name in created_jobs(stage.cluster, study.namespace) if name.startswith(f"{life.name}-"))
    check_ledger(study, created, stage.s3, is_touched=life.event == "Suspend")
    if study.condition("Complete")["status"] == "True":
        return str(study.condition("Complete")["reason"])
    failed = study.condition("Failed")
    assert failed["reason"] and failed["message"], study.describe()
    return f"failed: {failed['reason']}"


def check_ledger(study: StudyOnCluster, created: Mapping[str, int], s3: S3Server, *, is_touched: bool) -> None:
    """Check that a ledger is at an end, agrees with the bucket, and that no Job was made twice for one attempt."""
    assert set(study.states()) <= {"Completed", "Stopped", "Failed", "Abandoned"}, study.describe()
    for trial in study.trials:
        attempts = trial.get("attempts", ())
        assert all("finishedAt" in attempt for attempt in attempts), study.describe()
        for rung in (0, 1):
            name = f"{study.name}-t{trial['index']:03d}-r{rung}"
            allowed = len([attempt for attempt in attempts if attempt["rung"] == rung]) + is_touched
            assert created.get(name, 0) <= max(1, allowed), (
                f"{name} was created {created[name]} times\n{study.describe()}"
            )
        for measured in trial.get("measurements", ()):
            if not measured.get("diverged"):
                key = f"{study.prefix()}trials/t{trial['index']:03d}/rungs/{measured['rung']}/measurement.json"
                assert repr(read_json(s3, key)["metrics"]["accuracy"]["value"]) == measured["value"], study.describe()
    if study.condition("Complete")["reason"] == "Completed":
        assert study.trial(study.status["winner"])["state"] == "Completed", study.describe()


def find_traces(log: str) -> list[str]:
    """Return each exception that nobody foresaw, with what it was about."""
    records = re.split(r"\n(?=\d{4}-)", log)
    # Of kopf, whose end ends the process, and of that end itself.
    foreseen = re.compile(r" (kopf\.|asyncio |__main__ studies can't be watched any more)")
    return [each[:3000] for each in records if "Traceback" in each and not foreseen.search(each.partition("\n")[0])][:5]
