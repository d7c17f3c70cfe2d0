"""What the API server takes of one tenant, and others need not read, is in the way of nobody."""

import json
from collections.abc import Callable

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.studies import StudyOnCluster, a_spec
from testcluster.bucket import S3Server
from testcluster.kube import Cluster

LEVELS = 3000
"""The API server takes ten thousand; Python's stack has a thousand at first."""


@pytest.mark.slow
def test_a_study_deeper_than_pythons_stack_hides_no_other(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    deep = StudyOnCluster(cluster, namespace, "deep")
    spec = a_spec(s3, arms=2)
    manifest = deep.manifest({**spec, "trainer": {**spec["trainer"], "targetModules": "NESTED"}})
    text = json.dumps(manifest).replace('"NESTED"', "[" * LEVELS + "]" * LEVELS)
    cluster.kubectl("create", "--validate=false", "-f", "-", text=text)

    # It is in the first list of an operator, and then in its watch.
    operator = make_operator()
    place = ("-n", namespace, "fts/deep")
    reported = "jsonpath={.status.conditions[?(@.type=='Accepted')].message}"
    wait_until(lambda: "targetModules" in cluster.kubectl("get", *place, "-o", reported).stdout)
    cluster.kubectl("label", *place, "touched=yes")
    study.apply(spec)
    study.wait_for_condition("Complete")
    assert "Traceback" not in operator.log, operator.log
