"""What the operator costs, and how long accelerators wait for it, on a real API server and a real S3 server.

    PYTHONPATH=tools:tests python benchmarks/operating.py [--studies 100] [--trials 10] [--seconds 180]

Pods are scripted, so that all the machine's work but theirs is real: API server, etcd, the Job controller and the
scheduler share the cores with the operator, which can only make it slower than it is. Prints three tables: an empty
place until the next Job is there; one study's requests; the operator with that many studies, and its restart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builders.studies_on_a_server import install_crd
from on_cluster.operators import NAME, OperatorProcess, granted, read_access, wait_until
from on_cluster.studies import BUCKET, StudyOnCluster, a_secret, a_spec
from study_operator import names
from testcluster import build, scripts
from testcluster.bucket import S3Server
from testcluster.kube import ControlPlane
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer
from trial_trainer import contract

NAMESPACE = "shop-ml"
PLACES, TRIALS = 5, 50
"""Of the study whose places are watched."""
TRIAL_SECONDS = (2.0, 3.5, 5.0, 2.5, 4.0, 3.0, 4.5)
"""How long its trials take, in turns, so that they do not end together."""
PATIENCE_SECONDS = 1800.0

Sample = tuple[tuple[str, str], ...]


def main() -> int:
    """Run all three parts on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--trials", type=int, default=10, help="running in each")
    parser.add_argument("--seconds", type=float, default=180.0, help="for which the studies are watched")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="operating-")))
        # The defaults let the Job controller make ten Jobs' pods a second.
        faster = {"controller-manager": ["--kube-api-qps=200", "--kube-api-burst=400", "--concurrent-job-syncs=20"]}
        plane = stack.enter_context(ControlPlane(directory / "plane", build.find_kubernetes(), flags=faster))
        program = build.build(build.VERSITYGW) / "versitygw"
        bucket = stack.enter_context(S3Server(directory / "s3", program))
        bench = stack.enter_context(Bench.open(directory, plane, bucket))
        bench.watch_places()
        bench.watch_many(arguments.studies, arguments.trials, arguments.seconds)
    return 0


@dataclass
class Bench:
    """One cluster, one bucket, and operators one after the other."""

    directory: Path
    plane: ControlPlane
    bucket: S3Server
    home: Path
    """The operator's kubeconfig."""
    script: Callable[[Any], scripts.Script] = lambda _pod: scripts.runs()

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path, plane: ControlPlane, bucket: S3Server) -> Iterator[Bench]:
        """Prepare everything but the operator."""
        install_crd(plane)
        plane.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        user = bucket.add_user("trainer")
        bucket.make_bucket(BUCKET, users=[user])
        with granted(plane, read_access(NAMESPACE)):
            plane.apply(a_secret(NAMESPACE, user))
            home = plane.service_account_kubeconfig(NAMESPACE, NAME, directory)
            bench = cls(directory, plane, bucket, home)
            with StandIn(plane.kubeconfig, nodes=2, gpus=4000, script=lambda pod: bench.script(pod)):
                yield bench

    @contextlib.contextmanager
    def operating(self, word: str) -> Iterator[Operating]:
        """Run an operator."""
        operator = OperatorProcess(
            self.home, self.directory / word, config={}, arguments=["--lease-namespace", NAMESPACE]
        )
        try:
            yield Operating(operator)
        finally:
            operator.kill()

    def watch_places(self) -> None:
        """Part one and two: a study of many short trials, all of whose arms are in its manifest."""
        trainer = ScriptedTrainer()
        seconds = iter(TRIAL_SECONDS * TRIALS)
        self.script = lambda pod: scripts.works(
            trainer, after_seconds=next(seconds) if names.TRIAL_LABEL in pod["metadata"]["labels"] else 0.0
        )
        study = StudyOnCluster(self.plane, NAMESPACE, "places")
        rates = [f"{1e-4 * 1.05**number:.3g}" for number in range(TRIALS)]
        spec = a_spec(self.bucket, parallel=PLACES, promoted=5)
        spec |= {"numTrials": TRIALS, "startingArms": [{"learning_rate": rate} for rate in rates[1:]]}
        with self.operating("places") as operating, Onlooker.open(self.plane) as onlooker:
            study.apply(spec)
            study.wait_for_condition("Complete", seconds=PATIENCE_SECONDS)
            reported = operating.operator.scrape()
            waits = onlooker.waits()
            print("| an idle slot, 50 trials on 5 places, no optimizer | p50, s | p95, s | worst, s |")
            print("|---|---|---|---|")
            for name, values in waits.items():
                cuts = statistics.quantiles(values, n=20)
                print(f"| {name} | {statistics.median(values):.2f} | {cuts[-1]:.2f} | {max(values):.2f} |")
            runs = sum(len(trial["measurements"]) for trial in study.trials)
            print(
                f"\n| requests of that study, {runs} measurements of {TRIALS} trials | all | a measurement |\n"
                "|---|---|---|"
            )
            print_requests(requests_of(reported), runs)
        study.delete()
        study.wait_until_gone()

    def watch_many(self, studies: int, trials: int, seconds: float) -> None:
        """Part three: studies whose trials all run; then the operator is killed, and then it is asked to end."""
        trainer = ScriptedTrainer()
        self.script = lambda pod: (
            scripts.runs() if names.TRIAL_LABEL in pod["metadata"]["labels"] else scripts.works(trainer)
        )
        with contextlib.ExitStack() as stack:
            operating = stack.enter_context(self.operating("many"))
            begun = time.monotonic()
            for number in range(studies):
                spec = a_spec(self.bucket, arms=trials, parallel=trials)
                StudyOnCluster(self.plane, NAMESPACE, f"many-{number:03d}").apply(spec)
            total = studies * trials
            wait_until(lambda: count_running(operating) == total, seconds=PATIENCE_SECONDS)
            print(f"\n{total} trials of {studies} studies run after {time.monotonic() - begun:.0f} s.", file=sys.stderr)
            stack.enter_context(Reporter.open(self.bucket, self.plane))
            time.sleep(90.0)
            before, used, at = operating.operator.scrape(), operating.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - at
            cores = (operating.cpu_seconds() - used) / passed
            print(f"\n| the operator with {studies} studies of {trials} running trials | |\n|---|---|")
            print(f"| CPU, cores | {cores:.3f} |")
            print(f"| memory, MB | {operating.memory_megabytes():.0f} |")
            after = operating.operator.scrape()
            minutes = passed / 60
            per = requests_of(after) - requests_of(before)
            print(f"| requests to the API server a minute | {sum_of(per, 'API server') / minutes:.0f} |")
            print(f"| operations on the bucket a minute | {sum_of(per, 'bucket') / minutes:.0f} |")
            metric = "finetune_study_operator_reconcile_seconds_count"
            count = sum(after[metric].values()) - sum(before[metric].values())
            print(f"| reconciliations a minute | {count / minutes:.0f} |")
            operating.operator.kill()
            self._restart("after kill -9", studies, total)
            self._restart("after it was asked to end", studies, total)
            self._watch_worker()

    def _restart(self, why: str, studies: int, total: int) -> None:
        begun = time.monotonic()
        with self.operating(f"again-{len(why)}") as operating:
            operating.operator.wait_until_works()
            works = time.monotonic() - begun

            def is_steady() -> bool:
                reported = operating.operator.scrape()
                seen = reported.get("finetune_study_operator_reconcile_seconds_count", {})
                return seen.get((("outcome", "ok"),), 0) >= studies and count_running(operating) == total

            wait_until(is_steady, seconds=PATIENCE_SECONDS)
            steady = time.monotonic() - begun
            print(f"| restart {why}: it works after, s | {works:.1f} |")
            print(f"| every study was reconciled and {total} trials are known to run after, s | {steady:.1f} |")
            assert operating.operator.stop() == 0

    def _watch_worker(self) -> None:
        """State the memory of the optimizer's process apart."""
        trainer = ScriptedTrainer()
        self.script = lambda _pod: scripts.works(trainer)
        with self.operating("worker") as operating:
            spec = {**a_spec(self.bucket, arms=4, parallel=2), "numTrials": 8}
            study = StudyOnCluster(self.plane, NAMESPACE, "worker")
            study.apply(spec)
            study.wait(lambda study: len(study.trials) == 8, seconds=PATIENCE_SECONDS)
            children = operating.children()
            memory = [f"{memory_megabytes(pid):.0f}" for pid in children]
            print(f"| memory of the optimizer's process, MB | {', '.join(memory)} |")


@dataclass(frozen=True)
class Operating:
    """A running operator, as the machine sees it."""

    operator: OperatorProcess

    @property
    def pid(self) -> int:
        """Its process."""
        return self.operator.process.pid

    def cpu_seconds(self) -> float:
        """Return what it has used, without the optimizer's process."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def memory_megabytes(self) -> float:
        """Return its resident set, without the optimizer's process."""
        return memory_megabytes(self.pid)

    def children(self) -> list[int]:
        """Return the processes that it has started."""
        return [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if f"\nPPid:\t{self.pid}\n" in (path / "status").read_text()
        ]


def memory_megabytes(pid: int) -> float:
    """Return the resident set of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1000


def count_running(operating: Operating) -> int:
    """Return how many trials the operator knows to run."""
    reported: Mapping[Sample, float] = operating.operator.scrape().get("finetune_study_trials", {})
    return int(sum(value for labels, value in reported.items() if ("state", "running") in labels))


def requests_of(reported: Mapping[str, Mapping[Sample, float]]) -> Counter[tuple[str, str]]:
    """Return the requests so far, by server and kind."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in reported["finetune_study_operator_api_request_seconds_count"].items():
        message = dict(labels)
        found["API server", f"{message['verb']} {message['resource']}"] += int(value)
    for labels, value in reported.get("finetune_study_operator_bucket_request_seconds_count", {}).items():
        found["bucket", dict(labels)["operation"]] += int(value)
    return found


def sum_of(requests: Mapping[tuple[str, str], int], server: str) -> int:
    """Return all requests to a server."""
    return sum(count for (whom, _), count in requests.items() if whom == server)


def print_requests(requests: Counter[tuple[str, str]], runs: int) -> None:
    """Print a row a kind, and a sum a server."""
    for server in ("API server", "bucket"):
        kinds = [(kind, count) for (whom, kind), count in requests.most_common() if whom == server]
        # Of the Lease there are more the longer it takes, whoever is served.
        kinds = [(kind, count) for kind, count in kinds if not kind.endswith("leases")]
        total = sum(count for _, count in kinds)
        print(f"| {server}, without the Lease | {total} | {total / runs:.1f} |")
        for kind, count in kinds:
            print(f"| … {kind} | {count} | {count / runs:.2f} |")


@dataclass
class Onlooker:
    """Notes when pods and Jobs of trials come and go, by one clock and as anybody who watches sees it."""

    ended: dict[str, float] = field(default_factory=dict)
    """When a Job's pod was seen to have ended."""
    complete: dict[str, float] = field(default_factory=dict)
    created: dict[str, float] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def open(cls, plane: ControlPlane) -> Iterator[Onlooker]:
        """Watch until the end of the block."""
        onlooker = cls()
        with contextlib.ExitStack() as stack:
            for path, see in (
                (f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", onlooker._see_job),
                (f"/api/v1/namespaces/{NAMESPACE}/pods", onlooker._see_pod),
            ):
                version = plane.api.call("GET", path)["metadata"]["resourceVersion"]
                watch = stack.enter_context(
                    plane.api.watch(path, resource_version=version, labelSelector=names.TRIAL_LABEL)
                )
                threading.Thread(target=_follow, args=(watch, see), daemon=True).start()
                stack.callback(watch.stop)
            yield onlooker

    def _see_job(self, kind: str, job: Any) -> None:
        name, now = job["metadata"]["name"], time.monotonic()
        if kind == "ADDED":
            self.created.setdefault(name, now)
        conditions = job.get("status", {}).get("conditions", ())
        if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions):
            self.complete.setdefault(name, now)

    def _see_pod(self, _kind: str, pod: Any) -> None:
        if pod["status"].get("phase") in ("Succeeded", "Failed"):
            self.ended.setdefault(pod["metadata"]["labels"]["batch.kubernetes.io/job-name"], time.monotonic())

    def waits(self) -> dict[str, list[float]]:
        """Return what passed from each end to the creation of the Job that took the place."""
        first = [name for name in self.created if name.endswith("-r0")]
        created = sorted(self.created[name] for name in first)[PLACES:]
        ended, complete = (sorted(seen[name] for name in first) for seen in (self.ended, self.complete))
        return {
            "its pod ended → the next Job is there": _between(ended, created),
            "its pod ended → its Job is Complete, by the Job controller": _between(ended, complete),
        }


def _between(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(ones, others, strict=False)]


def _follow(watch: Any, see: Callable[[str, Any], None]) -> None:
    for event in watch:
        if event["type"] not in ("BOOKMARK", "ERROR"):
            see(event["type"], event["object"])


class Reporter:
    """Writes the progress of every running trial once in half a minute, as trainers do."""

    def __init__(self, bucket: S3Server, plane: ControlPlane) -> None:
        self._client = bucket.client()
        self._stop = threading.Event()
        self._keys = []
        for study in plane.api.list(f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"):
            prefix = f"shop/{NAMESPACE}/{study['metadata']['name']}-{study['metadata']['uid'][:8]}"
            for trial in study["status"]["trials"]:
                self._keys.append(f"{prefix}/{names.progress_key(name_of(trial))}")

    @classmethod
    @contextlib.contextmanager
    def open(cls, bucket: S3Server, plane: ControlPlane) -> Iterator[None]:
        """Write until the end of the block."""
        reporter = cls(bucket, plane)
        threading.Thread(target=reporter._write, daemon=True).start()
        try:
            yield
        finally:
            reporter._stop.set()

    def _write(self) -> None:
        step = 0
        while not self._stop.is_set():
            begun, step = time.monotonic(), step + 10
            for key in self._keys:
                progress = contract.Progress(
                    step=step,
                    stop_step=10_000,
                    total_steps=50_000,
                    loss=1.25,
                    phase="train",
                    eta_seconds=3600.0,
                    updated_at=datetime.now(UTC).isoformat(),
                )
                body = contract.to_json(progress).encode()
                self._client.put_object(Bucket=BUCKET, Key=key, Body=body)
                if self._stop.is_set():
                    return
            self._stop.wait(max(0.0, 30.0 - (time.monotonic() - begun)))


def name_of(trial: Mapping[str, Any]) -> str:
    """Return a trial's name, from its entry in the ledger."""
    return f"t{trial['index']:03d}"


if __name__ == "__main__":
    sys.exit(main())
