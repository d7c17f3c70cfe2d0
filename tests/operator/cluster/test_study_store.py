"""The studies as last seen, and what a watch that was away has missed."""

from typing import Any, cast

from builders.kube_of_dicts import KubeOfDicts
from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw
from study_operator.cluster.study_store import Studies, study_path


class World:
    def __init__(self) -> None:
        self.kube = KubeOfDicts()
        self.studies = Studies(cast(Kube, cast(Any, self.kube)))

    def put(self, name: str, uid: str = "1") -> Raw:
        metadata = {"name": name, "namespace": "team", "uid": uid}
        return self.kube.put(study_path(("team", name)), {"kind": names.KIND, "metadata": metadata})

    def names(self) -> dict[str, str]:
        return {body["metadata"]["name"]: body["metadata"]["uid"] for body in self.studies.bodies()}


def test_what_happened_while_the_watch_was_away_is_found() -> None:
    world = World()
    for name in ("kept", "changed", "gone", "replaced"):
        world.studies.put(world.put(name))
    world.put("changed")
    world.put("replaced", uid="2")
    world.put("new")
    del world.kube.objects[study_path(("team", "gone"))]

    changed = world.studies.sweep("team")

    assert {name for _, name in changed} == {"gone", "changed", "replaced", "new"}
    assert world.names() == {"kept": "1", "changed": "1", "replaced": "2", "new": "1"}
    assert world.studies.sweep("team") == []


def test_one_that_cannot_be_read_keeps_no_news_of_the_others() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.put(name)
    get = world.kube.get

    def get_but_one(path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("/b"):
            raise KubeError(0, "", "cut off")
        return get(path, *arguments, **options)

    cast(Any, world.kube).get = get_but_one
    assert {name for _, name in world.studies.sweep("team")} == {"a", "c"}
    cast(Any, world.kube).get = get
    assert world.studies.sweep("team") == [("team", "b")]


def test_studies_of_other_namespaces_are_left_alone() -> None:
    world = World()
    world.studies.put(world.put("kept"))
    assert world.studies.sweep("other") == []
    assert world.names() == {"kept": "1"}


def test_one_that_is_made_while_the_list_is_on_its_way_stays() -> None:
    world = World()
    listing = world.kube.list

    def list_and_make(*arguments: Any, **options: Any) -> Any:
        found = listing(*arguments, **options)
        world.studies.put(world.put("late"))
        return found

    cast(Any, world.kube).list = list_and_make
    world.studies.sweep("team")
    assert world.names() == {"late": "1"}
