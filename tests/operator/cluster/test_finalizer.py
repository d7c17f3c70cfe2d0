"""Taking leave: Jobs first, then the prefix, then the study; who cannot be served is let go after a while."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from builders.kube_of_dicts import KubeOfDicts
from study_operator import names
from study_operator.cluster.api import Kube, Raw, path_of
from study_operator.cluster.buckets import Bucket, Buckets, StorageRefusedError
from study_operator.cluster.finalizer import Farewell, WaitsError
from study_operator.cluster.study_store import Studies, manifest_of, study_path
from study_operator.errors import ConflictError
from study_operator.settings import Settings
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError

KEY = ("shop-ml", "shop")
DELETED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB = path_of("batch/v1", "jobs", "shop-ml", "shop-prepare")


@dataclass
class Store:
    """Counts what is deleted; raises what it is given."""

    problem: ArtifactError | None = None
    deleted: list[str] = field(default_factory=list)

    def delete(self, prefix: str) -> int:
        if self.problem is not None:
            raise self.problem
        self.deleted.append(prefix)
        return 3


@dataclass
class OneBucket:
    """Opens the same store for every study, or refuses."""

    store: Store
    refusal: StorageRefusedError | None = None

    def open(self, study: Study) -> Bucket:
        if self.refusal is not None:
            raise self.refusal
        return Bucket(store=cast(Any, self.store), credentials=None)


class World:
    """One study on an API server of dicts."""

    def __init__(self, policy: str = "Delete", finalizers: tuple[str, ...] = (), *, is_deleted: bool = False) -> None:
        self.kube, self.store = KubeOfDicts(), Store()
        self.bucket = OneBucket(self.store)
        self.studies = Studies(cast(Kube, self.kube))
        metadata: dict[str, Any] = {"name": KEY[1], "namespace": KEY[0], "uid": "u1", "finalizers": [*finalizers]}
        if is_deleted:
            metadata["deletionTimestamp"] = "2026-01-02T03:04:05Z"
        self.kube.put(study_path(KEY), {"metadata": metadata, "spec": a_spec(policy), **HEAD})
        self.farewell = Farewell(
            cast(Kube, self.kube), self.studies, cast(Buckets, self.bucket), Settings(deletion_limit_seconds=600)
        )

    @property
    def body(self) -> Raw:
        return self.kube.objects[study_path(KEY)]

    @property
    def finalizers(self) -> list[str]:
        return list(self.body["metadata"]["finalizers"])

    def hold(self) -> bool:
        return self.farewell.hold(parse_study(manifest_of(self.body)), self.body)

    def let_go(self, after_seconds: float = 1.0) -> list[str]:
        now = DELETED_AT + timedelta(seconds=after_seconds)
        return [event.reason for event in self.farewell.let_go(self.body, now)]


HEAD = {"apiVersion": names.API_VERSION, "kind": names.KIND}


def a_spec(policy: str) -> dict[str, Any]:
    return {
        "objective": {"metric": "accuracy", "direction": "Maximize"},
        "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-5", "max": "1e-1"}}}],
        "numTrials": 4,
        "data": {"source": "s3://shop/pages/", "attributes": ["name"]},
        "trainer": {"baseModel": {"uri": "/models/base"}, "epochs": 3},
        "storage": {"uri": "s3://ml-studies/shop", "deletionPolicy": policy},
    }


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        ("Delete", (), [names.FINALIZER]),
        ("Delete", ("others/own",), ["others/own", names.FINALIZER]),
        ("Retain", (names.FINALIZER, "others/own"), ["others/own"]),
    ],
)
def test_the_finalizer_is_there_where_it_is_wanted_and_nowhere_else(
    policy: str, before: tuple[str, ...], after: list[str]
) -> None:
    world = World(policy, before)
    assert world.hold()
    assert world.finalizers == after
    assert not world.hold()
    assert world.studies.get(KEY) == world.body


def test_a_study_that_was_changed_meanwhile_is_looked_at_again() -> None:
    world = World()
    body = world.body
    world.kube.put(study_path(KEY), body)
    with pytest.raises(ConflictError):
        world.farewell.hold(parse_study(manifest_of(body)), body)


def test_a_prefix_goes_only_after_the_jobs_that_write_into_it() -> None:
    world = World(finalizers=(names.FINALIZER,), is_deleted=True)
    owner = {"uid": "u1", "controller": True, "kind": names.KIND}
    world.kube.put(JOB, {"metadata": {"name": "shop-prepare", "uid": "j1", "ownerReferences": [owner]}})
    foreign = path_of("batch/v1", "jobs", "shop-ml", "foreign")
    world.kube.put(foreign, {"metadata": {"name": "foreign", "uid": "j2", "ownerReferences": [{"uid": "u2"}]}})
    with pytest.raises(WaitsError, match="1 Jobs of study shop are being deleted"):
        world.let_go()
    assert not world.store.deleted
    assert world.kube.requests == [("DELETE", JOB)]
    assert world.let_go() == []
    assert world.store.deleted == [""]
    assert world.finalizers == []
    assert foreign in world.kube.objects


def test_a_job_that_is_being_deleted_is_waited_for() -> None:
    world = World(finalizers=(names.FINALIZER,), is_deleted=True)
    metadata = {"name": "shop-prepare", "uid": "j1", "ownerReferences": [{"uid": "u1"}], "deletionTimestamp": "now"}
    world.kube.put(JOB, {"metadata": metadata})
    with pytest.raises(WaitsError):
        world.let_go()
    assert not world.kube.requests


@pytest.mark.parametrize(
    "obstacle", ["the bucket does not answer", "the Secret is gone"], ids=lambda text: text.replace(" ", "-")
)
def test_after_ten_minutes_a_study_goes_whose_prefix_cannot_be_deleted_and_that_is_said(obstacle: str) -> None:
    world = World(finalizers=(names.FINALIZER, "others/own"), is_deleted=True)
    if "Secret" in obstacle:
        world.bucket.refusal = StorageRefusedError([obstacle])
    else:
        world.store.problem = ArtifactError(obstacle)
    with pytest.raises(WaitsError, match=obstacle):
        world.let_go(after_seconds=599)
    assert names.FINALIZER in world.finalizers
    assert world.let_go(after_seconds=600) == ["BucketNotDeleted"]
    assert world.finalizers == ["others/own"]
