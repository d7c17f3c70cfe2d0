"""A restored status takes no measurement for another arm's; a study without a status goes on from its ledger."""

from __future__ import annotations

import copy
from collections.abc import Callable

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.studies import RATES, StudyOnCluster, a_spec, created_jobs, read_json
from testcluster import scripts
from testcluster.api import Object
from testcluster.bucket import S3Server
from testcluster.kube import Cluster
from testcluster.trainer import ScriptedTrainer


def write_status(study: StudyOnCluster, status: Object | None) -> None:
    """Put a status, or none, in the place of the one that is there, as a restore does."""
    raw = {name: value for name, value in study.refresh().seen.items() if name != "status"}
    restored = raw if status is None else {**raw, "status": status}
    study.cluster.api.replace(f"{study.collection}/{study.name}/status", restored)


def accuracy_of_rate(rate: float, rung: int) -> float:
    """Every arm has a value of its own."""
    return 0.5 + rate + 0.1 * rung


def test_a_status_that_is_rolled_back_or_lost_takes_no_measurement_for_another_arm(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    stage.trainer = ScriptedTrainer(
        accuracy=lambda config: accuracy_of_rate(float(config.arm["learning_rate"]), config.rung)
    )
    # The last arm is held back, so that the study is in its middle.
    stage.play["t003-r0"] = scripts.runs()
    operator = make_operator()
    study.apply(a_spec(s3, arms=4, parallel=4))
    study.wait(lambda s: s.states() == ["Paused", "Paused", "Paused", "Running"])
    assert operator.stop() == 0

    # Rolled back to when arms of other rates had been entered under the names of two that are measured by now, and of
    # the one that runs.
    earlier = copy.deepcopy(dict(study.refresh().status))
    other_rates = {1: 0.05, 2: 0.06, 3: 0.07}
    for index, rate in other_rates.items():
        trial = earlier["trials"][index]
        for name in ("measurements", "attempts", "message"):
            trial.pop(name, None)
        trial |= {"state": "Pending", "arm": {"learning_rate": repr(rate)}}
    write_status(study, earlier)
    foreign = study.jobs()["shop-t003-r0"]["metadata"]["uid"]
    stage.play.clear()
    operator = make_operator()
    study.wait_for_condition("Complete")

    # Each value is that of its own arm, and what was refused was said.
    rates = [float(RATES[0]), *other_rates.values()]
    assert [float(t["arm"]["learning_rate"]) for t in study.trials] == rates
    expected = {
        (t["index"], m["rung"]): repr(accuracy_of_rate(rates[t["index"]], m["rung"]))
        for t in study.trials
        for m in t["measurements"]
    }
    assert study.measurements() == expected, study.describe()
    assert study.status["winner"] == 3
    wait_until(lambda: "StudyCompleted" in study.reasons())
    message = {e["message"].split(" is of ")[0] for e in study.events() if e["reason"] == "ResultRefused"}
    assert {
        "trial t001: refused: trials/t001/rungs/0/measurement.json",
        "trial t002: refused: trials/t002/rungs/0/measurement.json",
        "trial t003: refused: job shop-t003-r0",
    } <= message
    # The Job of the other arm was cleared away first.
    deleted = cluster.audited(verb="delete", resource="jobs", namespace=namespace)
    assert "shop-t003-r0" in {event["objectRef"]["name"] for event in deleted}
    assert foreign not in {job["metadata"]["uid"] for job in study.jobs().values()}

    # Without a status it goes on from its ledger: nothing is trained again.
    wait_until(lambda: read_json(s3, f"{study.prefix()}ledger.json").get("cleanedAt") is not None)
    assert operator.stop() == 0
    made, before = created_jobs(cluster, namespace), study.refresh().status
    write_status(study, None)
    operator = make_operator()
    study.wait_for_condition("Complete")
    wait_until(lambda: "LedgerTakenUp" in study.reasons())
    assert study.trials == before["trials"]
    assert study.status["best"] == before["best"]
    assert created_jobs(cluster, namespace) == made

    # One of another spec is not mixed with this one.
    assert operator.stop() == 0
    write_status(study, None)
    study.patch(seed=7)
    make_operator()
    study.wait(lambda s: s.condition("Accepted")["reason"] == "LedgerRefused")
    assert "must be of this spec, got that of another one" in study.condition("Accepted")["message"]
    assert not study.trials
    assert created_jobs(cluster, namespace) == made
