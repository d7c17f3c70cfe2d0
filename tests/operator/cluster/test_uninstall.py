"""Before the API goes its studies go, and whoever lets it go waits until the last one has."""

import pytest

from builders.kube_of_dicts import KubeOfDicts
from study_operator import names
from study_operator.cluster.api import KubeError, Raw, path_of
from study_operator.cluster.study_store import study_path
from study_operator.cluster.uninstall import delete_all_studies


class SlowKube(KubeOfDicts):
    """Studies with a finalizer stay, as ones that are being deleted, until somebody takes it off."""

    def list(self, path: str, query: object = None) -> tuple[list[Raw], str]:
        assert path == path_of(names.API_VERSION, names.PLURAL)
        return list(self.objects.values()), "1"

    def delete(self, path: str, *, uid: str) -> bool:
        self.requests.append(("DELETE", path))
        if self.objects[path]["metadata"].get("finalizers"):
            self.objects[path]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            del self.objects[path]
        return True


def a_study(namespace: str, name: str, **metadata: object) -> Raw:
    return {"metadata": {"namespace": namespace, "name": name, "uid": f"uid-{name}", **metadata}}


def test_every_study_is_deleted_once_and_the_last_one_is_waited_for() -> None:
    kube = SlowKube()
    kept, held = ("shop-ml", "kept"), ("news-ml", "held")
    kube.put(study_path(kept), a_study(*kept))
    kube.put(study_path(held), a_study(*held, finalizers=[names.FINALIZER]))
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            del kube.objects[study_path(held)]

    delete_all_studies(kube, sleep)  # type: ignore[arg-type]
    assert not kube.objects
    assert sorted(kube.requests) == [("DELETE", study_path(held)), ("DELETE", study_path(kept))]
    assert len(looks) == 3


def test_where_there_is_no_study_nothing_is_done() -> None:
    kube = SlowKube()
    delete_all_studies(kube, lambda seconds: None)  # type: ignore[arg-type]
    assert not kube.requests


class KubeWithoutStudies(KubeOfDicts):
    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status

    def list(self, path: str, query: object = None) -> tuple[list[Raw], str]:
        raise KubeError(self._status, "Any", "no")


def test_where_the_api_is_gone_every_study_is() -> None:
    delete_all_studies(KubeWithoutStudies(404), lambda seconds: None)  # type: ignore[arg-type]


def test_a_refusal_is_not_taken_for_that() -> None:
    with pytest.raises(KubeError):
        delete_all_studies(KubeWithoutStudies(403), lambda seconds: None)  # type: ignore[arg-type]
