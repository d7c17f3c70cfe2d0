"""A study that names another one of its namespace: it waits for its end, and learns from it though it may not read its
bucket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess
from on_cluster.studies import RATES, StudyOnCluster, a_secret, a_spec, created_jobs, read_json, read_keys
from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster

OTHER_BUCKET = "other-studies"
OPTIMIZER_SECONDS = 600.0
"""The arm is proposed by a process that imports Ax: seconds on a quiet machine, minutes on a busy one."""


@pytest.mark.slow
def test_a_study_waits_for_the_one_that_it_names_and_begins_with_its_best_arm(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    make_operator()
    # The earlier study's bucket is one that the later one's credentials may not read.
    owner = s3.add_user("owner")
    s3.make_bucket(OTHER_BUCKET, users=[owner])
    cluster.apply(a_secret(namespace, owner, name="owners"))
    earlier = StudyOnCluster(cluster, namespace, "earlier")
    learner = a_spec(s3, arms=1, parallel=1, numTrials=2, warmStartFrom=[{"study": "earlier"}])
    learner["baseline"] = {"learning_rate": RATES[1]}

    # There is none of that name.
    study.apply(learner)
    study.wait(lambda study: study.condition("Accepted")["reason"] == "WarmStartRefused")
    rule = (
        f"spec.warmStartFrom[0].study must name a study of namespace {namespace}, got 'earlier', which does not exist"
    )
    assert study.condition("Accepted")["message"] == rule
    assert study.condition("Stalled")["status"] == "True"
    assert created_jobs(cluster, namespace) == []

    # It goes on: the data are prepared, no trial begins.
    stage.play["earlier-t002-r0"] = scripts.runs()
    earlier.apply(a_spec(s3, arms=3, parallel=3, storage={"uri": f"s3://{OTHER_BUCKET}/team", "secretName": "owners"}))
    earlier.wait(lambda earlier: sorted(earlier.states()) == ["Paused", "Paused", "Running"])
    study.patch(parallelTrials=2)
    study.wait(lambda study: study.condition("SearchComplete")["reason"] == "WaitsForStudy")
    study.wait(lambda study: study.condition("Prepared")["status"] == "True")
    assert (
        "must name a study that has ended, got 'earlier', which is Exploring" in study.condition("Complete")["message"]
    )
    assert study.condition("Accepted")["status"] == "True"
    assert (study.states(), study.condition("Stalled")["status"]) == ([], "False")
    assert {name for name in created_jobs(cluster, namespace) if name.startswith("shop-")} == {"shop-prepare"}

    # It has ended, and is deleted as soon as it is copied.
    del stage.play["earlier-t002-r0"]
    [pod] = earlier.live_pods("t002")
    stage.nodes.evict(namespace, pod["metadata"]["name"])
    earlier.wait_for_condition("Complete")
    study.patch(parallelTrials=1)
    study.wait(lambda study: study.trials)
    earlier.delete()
    earlier.wait_until_gone()
    study.wait_for_condition("Complete", seconds=OPTIMIZER_SECONDS)
    assert [(t["generationNode"], float(t["arm"]["learning_rate"])) for t in study.trials[1:]] == [
        ("WarmStart", float(RATES[0]))
    ]
    copy = f"{study.prefix()}earlier/earlier.json"
    assert copy in read_keys(s3, study.prefix())
    assert len(read_json(s3, copy)["trials"]) == 3
    assert {"WarmStartRefused", "WaitsForStudy"} <= study.reasons()
