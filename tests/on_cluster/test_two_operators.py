"""Two replicas, one Lease: one works, the other takes over within twenty seconds of a kill."""

import time
from collections.abc import Callable

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess
from on_cluster.studies import StudyOnCluster, a_spec, created_jobs
from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster

TAKEN_OVER_SECONDS = 20.0


def test_the_other_operator_takes_over_within_twenty_seconds_of_a_kill(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    stage.play["-r0"] = [scripts.works(stage.trainer, after_seconds=3.0) for _ in range(4)]
    first = make_operator()
    first.wait_until_works()
    second = make_operator()
    assert (first.ask_health(), second.ask_health()) == (200, 200)
    study.apply(a_spec(s3, arms=4, parallel=2))
    study.wait(lambda study: "Running" in study.states())
    # The one that waits touches nothing.
    assert "elected" not in second.log
    first.kill()
    killed_at = time.monotonic()
    second.wait_until_works()
    taken_over_after = time.monotonic() - killed_at
    assert taken_over_after < TAKEN_OVER_SECONDS
    study.wait_for_condition("Complete")
    made = created_jobs(cluster, namespace)
    assert len(made) == len(set(made))
    # One that is asked to stop gives the Lease back, so that nobody waits for it to run out.
    third = make_operator()
    third.wait_until_says("healthz")
    asked_at = time.monotonic()
    assert second.stop() == 0
    third.wait_until_works()
    assert time.monotonic() - asked_at < taken_over_after + TAKEN_OVER_SECONDS / 2


def test_an_operator_that_was_frozen_past_its_lease_ends_before_it_touches_anything(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    first = make_operator()
    first.wait_until_works()
    second = make_operator()
    study.apply(a_spec(s3, arms=6, parallel=1))
    study.wait(lambda study: "Running" in study.states())
    first.freeze()
    second.wait_until_works()
    first.thaw()
    assert first.wait() == 1
    assert "the lease is lost" in first.log
    study.wait_for_condition("Complete")
    made = created_jobs(cluster, namespace)
    assert len(made) == len(set(made))
