"""The operator's own identity reaches every team's prefix; a study reaches its own team's alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess
from on_cluster.studies import BUCKET, SECRET, StudyOnCluster, a_secret, a_spec, read_keys
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster

OWN = f"s3://{BUCKET}/team-a"


@pytest.fixture
def everywhere(s3: S3Server, user: User) -> User:
    """The operator's own identity, which may do everything in the bucket."""
    return s3.root


@pytest.fixture
def start(make_operator: Callable[..., OperatorProcess], s3: S3Server, everywhere: User, namespace: str) -> Any:
    """Starts an operator with an identity of its own, that serves the test's namespace."""

    def run(identities: Any) -> OperatorProcess:
        keys = {"AWS_ACCESS_KEY_ID": everywhere.access_key, "AWS_SECRET_ACCESS_KEY": everywhere.secret_key}
        return make_operator(identities=identities, environment=keys)

    return run


def a_spec_without_secret(s3: S3Server, uri: str, **storage: Any) -> dict[str, Any]:
    spec = a_spec(s3, arms=2, storage={"uri": uri, **storage})
    del spec["storage"]["secretName"]
    return spec


def test_the_operators_own_identity_is_for_the_prefixes_of_a_namespace_only(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    start: Callable[[Any], OperatorProcess],
    s3: S3Server,
    everywhere: User,
    user: User,
) -> None:
    start({namespace: [{"uri": OWN, "endpoint": s3.endpoint}], "team-b": [{"uri": f"s3://{BUCKET}/team-b"}]})
    s3.client().put_object(Bucket=BUCKET, Key="team-b/secret.txt", Body=b"figures")
    attempts = {
        "neighbour": a_spec_without_secret(s3, f"s3://{BUCKET}/team-b"),
        "longer": a_spec_without_secret(s3, f"s3://{BUCKET}/team-abc"),
        "root": a_spec_without_secret(s3, f"s3://{BUCKET}"),
        "climber": a_spec_without_secret(s3, f"{OWN}/../team-b"),
        "doubled": a_spec_without_secret(s3, f"s3://{BUCKET}//team-a"),
        "elsewhere": a_spec_without_secret(s3, OWN, endpoint="http://127.0.0.1:9"),
        "aws": a_spec_without_secret(s3, OWN),
    }
    del attempts["aws"]["storage"]["endpoint"]
    for name, spec in attempts.items():
        study = StudyOnCluster(cluster, namespace, name)
        study.apply(spec)
        study.wait(lambda study: study.condition("Accepted")["status"] == "False")
        message = study.condition("Accepted")["message"]
        if name in ("climber", "doubled"):
            assert "`spec.storage.uri` must not hold '..' or an empty part" in message, (name, message)
        else:
            assert f"`spec.storage.secretName` must be given: in namespace {namespace} the operator's own" in message, (
                name
            )
            assert f"{OWN} at {s3.endpoint}" in message
        assert not study.jobs()
    # With a prefix of its own a study runs; its pods have an identity of their own.
    spec = a_spec_without_secret(s3, f"{OWN}/search")
    [container] = spec["trainer"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": SECRET}}]
    study = StudyOnCluster(cluster, namespace, "own")
    study.apply(spec)
    study.wait_for_condition("Complete")
    # Of the operator's requests none was outside.
    asked = {r.key for r in s3.requests() if r.user == everywhere.access_key and r.operation != "CreateBucket"}
    prefix = f"team-a/search/{namespace}/own-{study.uid[:8]}/"
    outside = {key for key in asked - {"-", "team-b/secret.txt"} if not key.startswith(prefix)}
    assert not outside
    assert read_keys(s3, "team-b/") == ["team-b/secret.txt"]


def test_a_secret_is_used_only_where_it_is_labelled_and_only_for_what_it_may(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    user: User,
) -> None:
    operator = make_operator()
    stranger = s3.add_user("stranger")
    cluster.apply(
        a_secret(namespace, user, name="unlabelled", is_labelled=False), a_secret(namespace, stranger, name="strangers")
    )
    unlabelled, strangers = (StudyOnCluster(cluster, namespace, name) for name in ("unlabelled", "strangers"))
    for study in (unlabelled, strangers):
        study.apply(a_spec(s3, arms=2, storage={"secretName": study.name}))
    unlabelled.wait(lambda study: study.condition("Accepted")["status"] == "False")
    assert 'with the label finetune.study/bucket: "true"' in unlabelled.condition("Accepted")["message"]
    # Keys that are valid and may do nothing here: the condition says so, and the study goes on once they may.
    strangers.wait(lambda study: study.condition("StorageReady")["reason"] == "AccessDenied")
    assert "the credentials do not allow it" in strangers.condition("StorageReady")["message"]
    for word in (user.secret_key, stranger.secret_key):
        assert word not in operator.log
        assert word not in str(strangers.seen) + str(unlabelled.refresh().seen)
    cluster.apply(a_secret(namespace, user, name="strangers"))
    strangers.patch(parallelTrials=1)
    strangers.wait(lambda study: study.condition("StorageReady")["status"] == "True")
    strangers.wait_for_condition("Complete")
