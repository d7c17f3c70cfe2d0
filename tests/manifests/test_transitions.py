"""What may change in a study: everything until it is accepted, and afterwards only what can be followed."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from builders.some_manifests import FULL_MANIFEST, a_manifest
from builders.studies_on_a_server import CRD, Studies

Changes = dict[str, Any]

FROZEN = "must not change once the study is accepted: only suspend, parallelTrials, numTrials, budget and"
MUTABLE = {"suspend", "parallelTrials", "numTrials", "budget", "ttlSecondsAfterFinished"}
SPEC = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

OTHER_VALUES: dict[str, Any] = {
    "objective.metric": "accuracy/name",
    "objective.direction": None,
    "outcomeConstraints": ["invalid_output_rate <= 0.3"],
    "parameters[].name": [
        {"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}},
        {"name": "lora_rank", "searchSpace": {"categorical": {"values": ["4", "16", "64"], "ordered": True}}},
        {"name": "lora_dropout", "searchSpace": {"uniform": {"min": "0", "max": "0.5"}}},
    ],
    "parameterConstraints": ["weight_decay <= 0.3"],
    "baseline": {"learning_rate": "1e-3", "lora_rank": "16", "weight_decay": "0.10"},
    "startingArms": [],
    "maxFailedTrials": 4,
    "seed": 2,
    "typicalArms": 2,
    "warmStartFrom": [{"uri": "s3://studies/shop/other-0a1b2c3d"}],
    "earlyEvaluation.checkpointPercent": 30,
    "earlyEvaluation.rungs": [5, 30],
    "earlyEvaluation.extraPercents": [10, 15],
    "promotion.numPromoted": 3,
    "promotion.promotedPercents": [40],
    "promotion.rankBy": "ValidationLoss",
    "promotion.numAudited": 0,
    "promotion.confirmSeeds": 2,
    "dataCurve.sampleSizes": [200, 800],
    "dataCurve.seeds": 3,
    "dataCurve.arm": "Baseline",
    "dataCurve.balanced": False,
    "dataCurve.leastGain": "0.03",
    "dataCurve.compareAugmentation": True,
    "data.source": "s3://shop/other-pages/",
    "data.testSource": "s3://shop/other-audited-pages/",
    "data.attributes": ["price", "name"],
    "data.labels.from": "Markup",
    "data.labels.missing": "Absent",
    "data.labels.teacher.endpoint": "https://other.example/v1",
    "data.labels.teacher.model": "large-2",
    "data.labels.teacher.secretName": "other-teacher",
    "data.labels.teacher.secretKey": "other-key",
    "data.labels.teacher.answerFormat": "JSONObject",
    "data.labels.teacher.instructions": "Prices are those of yesterday.",
    "data.labels.teacher.temperature": "0.0",
    "data.labels.teacher.maxAnswerTokens": 513,
    "data.labels.teacher.maxTokens": 1_000_001,
    "data.labels.teacher.whenTokensRunOut": "Use",
    "data.labels.teacher.selfConsistencySamples": 51,
    "data.labels.teacher.parallelRequests": 9,
    "data.labels.teacher.timeoutSeconds": 61,
    "data.augment.copies": 2,
    "data.augment.edits": ["DropLines"],
    "data.split.by": "Page",
    "data.split.validationPercent": 30,
    "data.split.testPercent": None,
    "data.maxPages": 1001,
    "data.template.metadata": {"labels": {"of": "nobody"}},
    # The key alone changes: as many keys as before, and the same value.
    "data.template.spec": {"nodeName": {"pool": "cpu"}},
    "trainer.baseModel.uri": "hf://owner/large",
    "trainer.baseModel.revision": "4567def",
    "trainer.epochs": 4,
    "trainer.maxLengthTokens": 1024,
    "trainer.precision": "BFloat16",
    "trainer.targetModules": ["q_proj", "k_proj"],
    "trainer.rsLora": False,
    "trainer.warmupPercent": 6,
    "trainer.weightDecay": "0.010",
    "trainer.nodes": 1,
    "trainer.acceleratorsPerNode": 8,
    "trainer.template.metadata": {"annotations": {"of": "trainer"}},
    "trainer.template.spec": {
        "containers": [{"name": "trainer", "image": "trainer:2"}],
        "nodeSelector": {"pool": "gpu"},
    },
    "storage.uri": "s3://bucket/other-prefix",
    "storage.endpoint": "https://other.example",
    "storage.region": "us-east-1",
    "storage.addressingStyle": "Auto",
    "storage.caBundle.configMapName": "other-certificates",
    "storage.caBundle.secretName": None,
    "storage.caBundle.key": "other.crt",
    "storage.secretName": "other-credentials",
    "storage.deletionPolicy": "Retain",
}
"""A valid other value of every field that may not change."""


def find_leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Return the path of every field that has a value of its own."""
    for name, child in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        if child.get("type") == "array" and name == "parameters":
            yield f"{at}[].name"
        elif "properties" in child:
            yield from find_leaves(child, at)
        else:
            yield at


def find_optional(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Return the path of every field, or object, that can be left out and is not assumed then."""
    for name, child in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        if name not in schema.get("required", ()) and "default" not in child:
            yield at
        yield from find_optional(child, at)


FROZEN_LEAVES = [path for path in find_leaves(SPEC) if path.partition(".")[0] not in MUTABLE]
# A rule says that these must be given, or must not.
NEEDED = (
    "storage.caBundle.configMapName",
    "data.attributes",
    "data.labels.teacher",
    "earlyEvaluation.checkpointPercent",
    "earlyEvaluation.rungs",
)
FROZEN_OPTIONAL = [path for path in find_optional(SPEC) if path.partition(".")[0] not in MUTABLE and path not in NEEDED]


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a full spec with one field changed."""
    if path == "storage.caBundle.secretName":
        changes = {"spec.storage.caBundle": {"secretName": "certificates", "key": "s3.crt"}}
    elif path == "earlyEvaluation.checkpointPercent":
        changes = {"spec.earlyEvaluation": {"checkpointPercent": value}, "spec.promotion.promotedPercents": []}
    elif path == "data.labels.from":
        changes = {"spec.data.labels": {"from": value, "missing": "Unknown"}}
    elif path == "parameters[].name":
        arm = {"learning_rate": "1e-3", "lora_rank": "16", "lora_dropout": "0.1"}
        changes = {
            "spec.parameters": value,
            "spec.baseline": arm,
            "spec.startingArms": [],
            "spec.parameterConstraints": [],
        }
    else:
        changes = {f"spec.{path}": value}
    spec: dict[str, Any] = a_manifest(changes, FULL_MANIFEST)["spec"]
    return spec


def without(path: str) -> dict[str, Any]:
    spec: dict[str, Any] = a_manifest({f"spec.{path}": None}, FULL_MANIFEST)["spec"]
    return spec


def accept(studies: Studies, study: Mapping[str, Any], status: str = "True") -> dict[str, Any]:
    """Write that a study is accepted, or that it is not."""
    condition = {
        "type": "Accepted",
        "status": status,
        "reason": "Valid" if status == "True" else "SpecInvalid",
        "message": "",
        "lastTransitionTime": "2026-11-27T12:00:00Z",
    }
    return studies.write_status(study, {"conditions": [condition]})


def a_study(studies: Studies, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return studies.create({**FULL_MANIFEST, "metadata": {"name": name}, "spec": spec})


@pytest.fixture(scope="module")
def new(studies: Studies) -> Iterator[dict[str, Any]]:
    """A study with every field, that nobody has looked at."""
    yield a_study(studies, "new", FULL_MANIFEST["spec"])
    studies.delete("new")


@pytest.fixture(scope="module")
def refused(studies: Studies) -> Iterator[dict[str, Any]]:
    """The same, not accepted."""
    yield accept(studies, a_study(studies, "refused", FULL_MANIFEST["spec"]), "False")
    studies.delete("refused")


@pytest.fixture(scope="module")
def accepted(studies: Studies) -> Iterator[dict[str, Any]]:
    """The same, accepted."""
    yield accept(studies, a_study(studies, "accepted", FULL_MANIFEST["spec"]))
    studies.delete("accepted")


def test_the_table_holds_every_field_that_may_not_change() -> None:
    assert sorted(OTHER_VALUES) == sorted(FROZEN_LEAVES)
    assert set(SPEC["properties"]) >= MUTABLE


@pytest.mark.parametrize("path", FROZEN_LEAVES)
def test_every_field_may_change_until_the_study_is_accepted_and_not_after(
    studies: Studies, new: dict[str, Any], refused: dict[str, Any], accepted: dict[str, Any], path: str
) -> None:
    spec = changed(path, OTHER_VALUES[path])
    assert studies.find_refused_change(new, spec) == ""
    assert studies.find_refused_change(refused, spec) == ""
    refusal = studies.find_refused_change(accepted, spec)
    assert f"spec.{path.partition('.')[0].removesuffix('[]')}: Forbidden: {FROZEN}" in refusal


@pytest.mark.parametrize("path", FROZEN_OPTIONAL)
def test_an_optional_field_can_neither_go_nor_come_once_the_study_is_accepted(
    studies: Studies, accepted: dict[str, Any], path: str
) -> None:
    is_absent = path == "storage.caBundle.secretName"
    spec = FULL_MANIFEST["spec"] if is_absent else without(path)
    if path == "storage.caBundle":
        spec = a_manifest({"spec.storage.caBundle": None}, FULL_MANIFEST)["spec"]
    if path == "baseline":
        # Further seeds are the winner's and the baseline's.
        spec = a_manifest({"spec.baseline": None, "spec.promotion.confirmSeeds": None}, FULL_MANIFEST)["spec"]
    if not is_absent:
        assert FROZEN in studies.find_refused_change(accepted, spec)
    shorter = accept(studies, a_study(studies, "shorter", spec))
    longer = changed(path, None) if is_absent else FULL_MANIFEST["spec"]
    assert FROZEN in studies.find_refused_change(shorter, longer)
    studies.delete("shorter")


MUTABLE_CHANGES: list[Any] = [
    pytest.param({"spec.suspend": True}, id="suspended"),
    pytest.param({"spec.suspend": None}, id="suspend left out"),
    pytest.param({"spec.parallelTrials": 1}, id="fewer at a time"),
    pytest.param({"spec.parallelTrials": 10}, id="more at a time"),
    pytest.param({"spec.numTrials": 9}, id="more trials"),
    pytest.param({"spec.budget": None}, id="no budget any more"),
    pytest.param({"spec.budget.acceleratorHours": "300"}, id="more hours"),
    pytest.param({"spec.budget.acceleratorHours": None}, id="no limit of hours"),
    pytest.param({"spec.budget.activeDeadlineSeconds": 60}, id="a shorter deadline"),
    pytest.param({"spec.ttlSecondsAfterFinished": None}, id="kept for ever"),
    pytest.param({"spec.ttlSecondsAfterFinished": 0}, id="kept for no time"),
]


@pytest.mark.parametrize("changes", MUTABLE_CHANGES)
def test_what_can_be_followed_may_change_at_any_time(
    studies: Studies, new: dict[str, Any], accepted: dict[str, Any], changes: Changes
) -> None:
    spec = a_manifest(changes, FULL_MANIFEST)["spec"]
    assert studies.find_refused_change(new, spec) == ""
    assert studies.find_refused_change(accepted, spec) == ""


def test_a_budget_and_a_time_to_live_may_come(studies: Studies) -> None:
    bare = a_manifest({"spec.budget": None, "spec.ttlSecondsAfterFinished": None}, FULL_MANIFEST)["spec"]
    study = accept(studies, a_study(studies, "bare", bare))
    assert studies.find_refused_change(study, FULL_MANIFEST["spec"]) == ""
    studies.delete("bare")


def test_the_number_of_trials_may_be_raised_and_not_lowered(
    studies: Studies, new: dict[str, Any], accepted: dict[str, Any]
) -> None:
    fewer = a_manifest({"spec.numTrials": 7}, FULL_MANIFEST)["spec"]
    assert studies.find_refused_change(new, fewer) == ""
    refusal = studies.find_refused_change(accepted, fewer)
    assert "spec.numTrials: Forbidden: must not be lowered once the study is accepted" in refusal


def test_labels_annotations_and_finalizers_may_change(studies: Studies, accepted: dict[str, Any]) -> None:
    metadata = accepted["metadata"] | {"labels": {"team": "shop"}, "finalizers": ["finetune.study/bucket"]}
    studies.replace({**accepted, "metadata": metadata}, dryRun="All")


def test_the_operator_may_write_every_status_of_an_accepted_study(studies: Studies) -> None:
    study = accept(studies, a_study(studies, "written", FULL_MANIFEST["spec"]))
    study = accept(studies, study, "False")
    assert studies.find_refused_change(study, changed("seed", 7)) == ""
    assert studies.find_refused_change(accept(studies, study), changed("seed", 7)) != ""
    studies.delete("written")


def test_a_study_with_trials_stays_as_it_is_even_when_it_is_not_accepted_any_more(studies: Studies) -> None:
    created = a_study(studies, "with-trials", FULL_MANIFEST["spec"])
    status = accept(studies, created, "False")["status"]
    trial = {"index": 0, "arm": {}, "origin": "Baseline", "state": "Pending", "rung": 0, "totalSteps": 10}
    written = studies.write_status(studies.get("with-trials"), status | {"trials": [trial]})
    assert FROZEN in studies.find_refused_change(written, changed("seed", 7))
    assert studies.find_refused_change(written, changed("suspend", True)) == ""
    studies.delete("with-trials")


def test_applying_the_same_manifest_again_changes_nothing(studies: Studies) -> None:
    manifest = a_manifest({"metadata.name": "again"})
    assert "created" in studies.kubectl_apply(manifest)
    accept(studies, studies.get("again"))
    assert "unchanged" in studies.kubectl_apply(manifest)
    assert "configured" in studies.kubectl_apply(manifest | {"spec": manifest["spec"] | {"suspend": True}})
    studies.delete("again")


def test_defaults_may_be_written_out_once_the_study_is_accepted(studies: Studies) -> None:
    short = a_manifest({"metadata.name": "short", "spec.earlyEvaluation": None, "spec.promotion": None})
    study = accept(studies, studies.create(short))
    spelt = a_manifest({"spec.earlyEvaluation": {"checkpointPercent": 20}, "spec.promotion": {"numPromoted": 1}})[
        "spec"
    ]
    assert studies.find_refused_change(study, spelt) == ""
    spelt["earlyEvaluation"] = {"rungs": [20]}
    assert studies.find_refused_change(study, spelt) == ""
    spelt["earlyEvaluation"] = {"rungs": [10, 20]}
    assert FROZEN in studies.find_refused_change(study, spelt)
    studies.delete("short")
