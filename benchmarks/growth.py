"""What the operator costs where there is much and little happens, on a real API server and a real S3 server.

    PYTHONPATH=tools:tests:operator:trainer:manifests:benchmarks python benchmarks/growth.py [--studies 1000]
        [--running 100] [--namespaces 200] [--seconds 180] [--logs DIRECTORY]

Nine of ten studies have ended; each has twenty Jobs with their pods, which are kept although they have ended, and each
namespace has its own credentials. All of it is written as it would be found, by many clients at once, while there is no
controller; then the operator is started, once with every namespace named and once for all of them together. What the
writer has left out it adds at first, so that it is watched once it writes nothing any more. Prints a table for both.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import urllib3

from builders.studies_on_a_server import install_crd
from on_cluster.operators import NAME, OperatorProcess, granted, read_access, wait_until
from on_cluster.studies import SECRET, a_secret, a_spec
from operating import Operating, requests_of, sum_of
from study_operator import names
from study_operator.cluster.job_manifest import Credentials, PodDefaults, build_job
from study_operator.ledger.conditions import render_time
from study_operator.ledger.status import Reported, render_status
from study_operator.ledger.trial import (
    Attempt,
    DatasetCounts,
    Ledger,
    Measurement,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.reasons import EndReason
from study_operator.reconcile.job_specs import build_final_evaluation_job, build_prepare_job, build_trial_job
from study_operator.reconcile.tick import report_key
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study
from testcluster import build
from testcluster.api import Api
from testcluster.bucket import S3Server
from testcluster.kube import ControlPlane

HOME = "growth"
TRIALS = 18
"""With the Jobs that prepare the data and evaluate the winner, twenty Jobs a study."""
RUNNING = 5
"""Trials that run, of a study that has not ended."""
CLIENTS = 12
BEGUN = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
RAN = timedelta(minutes=40)
KEPT_SECONDS = 30 * 24 * 3600
"""For which Jobs that have ended are kept."""
AS_IN_ITS_IMAGE = {"MALLOC_ARENA_MAX": "1"}
FINGERPRINT = "00ff" * 16
PATIENCE_SECONDS = 1800.0
ALIVE = ("serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller")
CREDENTIALS = Credentials(secret=SECRET, keys={name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")})

Raw = dict[str, Any]


def main() -> int:
    """Write everything, and run the operator twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--running", type=int, default=100, help="studies that have not ended")
    parser.add_argument("--namespaces", type=int, default=200)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds without a write, after which it is watched")
    parser.add_argument("--seconds", type=float, default=180.0, help="for which the operator is watched")
    parser.add_argument("--logs", type=Path, help="a directory for the operators' logs")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growth-")))
        flags = {
            "apiserver": ["--audit-log-path=/dev/null"],
            "controller-manager": [f"--controllers={','.join(ALIVE)}"],
        }
        plane = stack.enter_context(ControlPlane(directory / "plane", build.find_kubernetes(), flags=flags))
        plane.kill("scheduler")
        program = build.build(build.VERSITYGW) / "versitygw"
        bucket = stack.enter_context(S3Server(directory / "s3", program))
        cluster = stack.enter_context(Cluster.open(plane, bucket, arguments.namespaces))
        begun = time.monotonic()
        objects = cluster.fill(arguments.studies, arguments.running)
        passed = time.monotonic() - begun
        print(f"{objects} Jobs and pods of {arguments.studies} studies after {passed:.0f} s", file=sys.stderr)
        plane.kill("controller-manager")
        home = plane.service_account_kubeconfig(HOME, NAME, directory)
        print(f"| {arguments.studies} studies, of which {arguments.running} run, {objects // 2} Jobs | |\n|---|---|")
        for word, namespaces in (("each by itself", cluster.namespaces), ("all together", [])):
            flags_of_it = [flag for name in namespaces for flag in ("--namespace", name)]
            operator = OperatorProcess(
                home,
                (arguments.logs or directory) / word.replace(" ", "-"),
                config={},
                arguments=["--lease-namespace", HOME, *flags_of_it],
                environment=AS_IN_ITS_IMAGE,
            )
            try:
                watch(
                    Operating(operator), f"{arguments.namespaces} namespaces {word}", max(1, len(namespaces)), arguments
                )
            except Exception:
                print(f"the operator ended with {operator.process.poll()}:\n{operator.log[-4000:]}", file=sys.stderr)
                raise
            finally:
                operator.kill()
    return 0


def watch(operating: Operating, word: str, places: int, arguments: argparse.Namespace) -> None:
    """Wait until every study was reconciled, let it come to rest, and say what it costs from then on."""

    wait_until(lambda: operating.operator.log.count(" working in ") >= places, seconds=PATIENCE_SECONDS)
    age = time.monotonic() - operating.operator.begun_at
    print(f"| {word}: all were listed after, s; CPU until then, s | {age:.0f}; {operating.cpu_seconds():.0f} |")
    wait_for_rest(operating, arguments.rest)
    age = time.monotonic() - operating.operator.begun_at
    print(
        f"| … it wrote nothing for {arguments.rest:.0f} s after, s; CPU, s | {age:.0f}; {operating.cpu_seconds():.0f} |"
    )
    before, used, at = operating.operator.scrape(), operating.cpu_seconds(), time.monotonic()
    time.sleep(arguments.seconds)
    passed = time.monotonic() - at
    cores = (operating.cpu_seconds() - used) / passed
    after = operating.operator.scrape()
    minutes = passed / 60
    per = requests_of(after) - requests_of(before)
    name = "finetune_study_operator_reconcile_seconds_count"
    count = sum(after[name].values()) - sum(before[name].values())
    status = Path(f"/proc/{operating.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1000
    threads = next(line.split()[1] for line in status.splitlines() if line.startswith("Threads:"))
    print(f"| … CPU, cores | {cores:.3f} |")
    print(f"| … memory, MB; its highest so far | {operating.memory_megabytes():.0f}; {peak:.0f} |")
    print(f"| … threads | {threads} |")
    print(f"| … reconciliations a minute | {count / minutes:.0f} |")
    print(f"| … requests to the API server a minute | {sum_of(per, 'API server') / minutes:.0f} |")
    print(f"| … operations on the bucket a minute | {sum_of(per, 'bucket') / minutes:.0f} |", flush=True)
    assert operating.operator.ask_health() == 200


def wait_for_rest(operating: Operating, seconds: float) -> None:
    """Wait until nothing was written for a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    writes, since = -1.0, time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, f"it still writes: {operating.operator.log[-4000:]}"
        time.sleep(5.0)
        try:
            found = operating.operator.scrape()["finetune_study_operator_api_request_seconds_count"]
        except urllib3.exceptions.HTTPError:
            # A thousand studies are reconciled at once, and the machine has other things to do.
            since = time.monotonic()
            continue
        now = sum(
            count
            for labels, count in found.items()
            if dict(labels)["verb"] in ("create", "update", "patch", "delete") and dict(labels)["resource"] != "leases"
        )
        if now != writes:
            writes, since = now, time.monotonic()


@dataclass
class Cluster:
    """Namespaces of tenants, with what a long time of use leaves in them."""

    api: Api
    bucket: S3Server
    namespaces: list[str]

    @classmethod
    @contextlib.contextmanager
    def open(cls, plane: ControlPlane, bucket: S3Server, count: int) -> Iterator[Cluster]:
        """Make the namespaces, each with a bucket and credentials of its own."""
        install_crd(plane)
        api = Api(plane.kubeconfig, connections=CLIENTS)
        namespaces = [f"team-{number:03d}" for number in range(count)]
        together(lambda name: api.create("/api/v1/namespaces", {"metadata": {"name": name}}), [HOME, *namespaces])
        users = [bucket.add_user(name) for name in namespaces]
        for name, user in zip(namespaces, users, strict=True):
            bucket.make_bucket(name, users=[user])
        access = read_access(HOME)
        [secrets] = [each for each in access if each["kind"] == "RoleBinding" and "secrets" in each["roleRef"]["name"]]
        everywhere = {**secrets, "kind": "ClusterRoleBinding", "metadata": {"name": "growth-secrets"}}
        with granted(plane, [*access, everywhere]):
            together(
                lambda pair: api.create(f"/api/v1/namespaces/{pair[0]}/secrets", a_secret(pair[0], pair[1])),
                zip(namespaces, users, strict=True),
            )
            yield cls(api, bucket, namespaces)

    def fill(self, studies: int, running: int) -> int:
        """Write studies, their Jobs and their pods; return how many of the latter."""
        places = itertools.islice(itertools.cycle(self.namespaces), studies)
        orders = [(place, f"study-{number:04d}", number < running) for number, place in enumerate(places)]
        return sum(together(lambda order: self._write_study(*order), orders))

    def _write_study(self, namespace: str, name: str, is_running: bool) -> int:
        path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
        storage = {"uri": f"s3://{namespace}/shop"}
        spec = {
            **a_spec(self.bucket, storage=storage),
            "numTrials": TRIALS,
            "parallelTrials": RUNNING,
            "startingArms": [],
            # Without it nothing is left of a Job whose result is known.
            "ttlSecondsAfterFinished": KEPT_SECONDS,
        }
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": spec,
        }
        body = self.api.create(path, manifest)
        study = parse_study({**manifest, "metadata": body["metadata"]})
        jobs = [*self._write_jobs(study, is_running)]
        ledger = a_ledger(is_running, [pod["metadata"]["uid"] for _, pod in jobs])
        now = BEGUN + timedelta(days=1)
        reported = Reported(key=report_key(ledger), at=now)
        status = render_status(study, ledger, now=now, reported=reported)
        self.api.replace(f"{path}/{name}/status", {**body, "status": status})
        return 2 * len(jobs)

    def _write_jobs(self, study: Study, is_running: bool) -> Iterator[tuple[Raw, Raw]]:
        ledger = a_ledger(is_running, [f"pod-{number}" for number in range(TRIALS + 2)])
        specs = [build_prepare_job(study)]
        specs += [build_trial_job(study, replace(trial, rung=0), FINGERPRINT) for trial in ledger.trials]
        specs += [] if is_running else [build_final_evaluation_job(study, ledger.trials[0], None, FINGERPRINT)]
        for number, spec in enumerate(specs):
            runs = is_running and TRIALS - RUNNING < number <= TRIALS
            path = f"/apis/batch/v1/namespaces/{study.namespace}/jobs"
            made = self.api.create(path, build_job(study, spec, CREDENTIALS, PodDefaults(image="trainer")))
            status = {"startTime": render_time(BEGUN), "active": 1, "ready": 1} if runs else a_complete_job()
            made = self.api.replace(f"{path}/{spec.name}/status", {**made, "status": status})
            yield made, self._write_pod(study.namespace, made, runs)

    def _write_pod(self, namespace: str, job: Raw, runs: bool) -> Raw:
        path, name = f"/api/v1/namespaces/{namespace}/pods", job["metadata"]["name"]
        template = job["spec"]["template"]
        uid = job["metadata"]["uid"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
        metadata = {"name": f"{name}-x7k2p", "labels": template["metadata"]["labels"], "ownerReferences": [owner]}
        pod = self.api.create(path, {"metadata": metadata, "spec": {**template["spec"], "nodeName": "node-1"}})
        return self.api.replace(f"{path}/{metadata['name']}/status", {**pod, "status": a_pod_status(runs)})


def together(do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Do something with each of many things, a dozen at a time."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(do, items))


def a_complete_job() -> Raw:
    """Return the status of a Job that succeeded."""
    ended = render_time(BEGUN + RAN)
    conditions = [
        {"type": word, "status": "True", "lastProbeTime": ended, "lastTransitionTime": ended}
        for word in ("SuccessCriteriaMet", "Complete")
    ]
    return {"startTime": render_time(BEGUN), "completionTime": ended, "succeeded": 1, "conditions": conditions}


def a_pod_status(runs: bool) -> Raw:
    """Return the status of a pod that runs, or has succeeded."""
    begun, ended = render_time(BEGUN), render_time(BEGUN + RAN)
    state = {"running": {"startedAt": begun}}
    if not runs:
        state = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": begun, "finishedAt": ended}}
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": begun}]
    container = {"name": "trainer", "image": "trainer", "imageID": "", "ready": runs, "restartCount": 0, "state": state}
    return {
        "phase": "Running" if runs else "Succeeded",
        "startTime": begun,
        "conditions": conditions,
        "containerStatuses": [container],
    }


def a_ledger(is_running: bool, pods: list[str]) -> Ledger:
    """Return the ledger of a study that has ended, or in which the last trials run."""
    trials = tuple(
        a_trial(number, pods[number + 1], TrialState.PAUSED if is_running else TrialState.STOPPED)
        if number < TRIALS - RUNNING or not is_running
        else a_trial(number, pods[number + 1], TrialState.RUNNING)
        for number in range(TRIALS)
    )
    ledger = Ledger(
        trials=trials,
        prepare=Stage(state=StageState.COMPLETED, attempts=(an_attempt(pods[0]),)),
        dataset=DatasetCounts(fingerprint=FINGERPRINT, train_samples=3200, validation_samples=640, test_samples=1000),
    )
    if is_running:
        return ledger
    return replace(
        ledger,
        search_end=SearchEnd.ALL_TRIALS_MEASURED,
        winner=0,
        final_evaluation=Stage(state=StageState.COMPLETED, attempts=(an_attempt(pods[-1]),)),
        outcome=Outcome(failed=False, reason="Completed", message="winner: t000"),
        cleaned_at=BEGUN + timedelta(hours=30),
    )


def an_attempt(pod: str, *, runs: bool = False) -> Attempt:
    """Return the one attempt of a Job."""
    if runs:
        return Attempt(rung=0, started_at=BEGUN, id=pod)
    return Attempt(rung=0, started_at=BEGUN, finished_at=BEGUN + RAN, exit_code=0, reason=EndReason.SUCCEEDED, id=pod)


def a_trial(number: int, pod: str, state: TrialState) -> Trial:
    """Return a trial that runs, or was measured once."""
    trial = Trial(
        index=number,
        arm={"learning_rate": 1e-4 * (1 + number / 7)},
        origin=Origin.SUGGESTED if number else Origin.BASELINE,
        generation_node="MBM" if number else "",
        total_steps=1200,
        attempts=(an_attempt(pod, runs=state is TrialState.RUNNING),),
        state=state,
    )
    if state is TrialState.RUNNING:
        return trial
    metrics = ("invalid_output_rate", "false_value_rate", "validation_loss", "accuracy/name", "accuracy/price")
    measurement = Measurement(
        rung=0,
        step=240,
        value=0.2 + number / 37,
        standard_error=0.0234567,
        n=640,
        sites=40,
        metrics=dict.fromkeys(metrics, 0.123456789 + number / 100),
        checkpoint=f"trials/t{number:03d}/rungs/0/checkpoints/240-abcdef",
        train_seconds=1800.0,
        fixed_seconds=600.0,
    )
    return replace(trial, measurements=(measurement,))


if __name__ == "__main__":
    sys.exit(main())
