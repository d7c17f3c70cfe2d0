"""Manifests that are wrong: who refuses each, the API server or the operator, and the sentence that says why.

What the API server refuses the parser must refuse too, because a laptop has no API server. What only the parser can see
the API server takes, and the condition `Accepted` tells it.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from builders.some_manifests import a_manifest
from builders.studies_on_a_server import CRD, Studies
from study_operator.errors import StudyInvalidError
from study_operator.spec.parse import parse_study

Changes = dict[str, Any]

SCHEMA = CRD["spec"]["versions"][0]["schema"]

LEARNING_RATE = "spec.parameters[0].searchSpace"
RANK = "spec.parameters[1].searchSpace"
DECAY = "spec.parameters[2].searchSpace"
METRICS = "must be one of accuracy, validation_loss, invalid_output_rate, false_value_rate, or accuracy/ and one of the"
MARKUP = "must be some of name, price, currency, brand, sku, availability, rating, description where labels come from"
AN_ARM = {"learning_rate": "1e-3", "lora_rank": "16", "weight_decay": "0.1"}
NOT_AN_OBJECT = "must be of type object"
NAME = "must begin with a letter and hold only lower-case letters, digits and inner dashes"


A_TEACHER = {"endpoint": "https://llm.example/v1", "model": "large"}


def taught(changes: Changes) -> Changes:
    """Return the changes that make a teacher label, with some of its fields changed."""
    teacher = {name: value for name, value in (A_TEACHER | changes).items() if value is not None}
    return {"spec.data.labels": {"from": "Teacher", "teacher": teacher}}


def numbers(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]


def words(count: int, length: int = 2) -> list[str]:
    return [f"{chr(97 + i // 26)}{chr(97 + i % 26)}".ljust(length, "x") for i in range(count)]


def out_of_bounds(path: str, low: int, high: int) -> list[tuple[str, Changes, str]]:
    """Return two rows of a whole number."""
    field = path.rpartition(".")[2]
    return [
        (f"{field} below its bound", {path: low - 1}, f"{path} in body should be greater than or equal to {low}"),
        (f"{field} above its bound", {path: high + 1}, f"{path} in body should be less than or equal to {high}"),
    ]


def not_given(path: str) -> tuple[str, Changes, str]:
    return (f"without {path.removeprefix('spec.')}", {path: None}, f"{path}: Required value")


def unknown(path: str, value: Any) -> tuple[str, Changes, str]:
    return (f"the unknown field {path.removeprefix('spec.')}", {path: value}, f'unknown field "{path}"')


def of_another_type(path: str, value: Any, kind: str) -> tuple[str, Changes, str]:
    subject = f"{path.removeprefix('spec.')} that is {value!r}"
    return (subject, {path: value}, f"{path} in body must be of type {kind}")


def too_long(path: str, length: int) -> tuple[str, Changes, str]:
    value = "x" * (length + 1)
    return (f"{path.removeprefix('spec.')} that is too long", {path: value}, f"{path}: Too long: may not be more than")


def too_many(path: str, items: list[Any]) -> tuple[str, Changes, str]:
    most = len(items) - 1
    subject = f"{path.removeprefix('spec.')} with too many items"
    return (subject, {path: items}, f"{path}: Too many: {most + 1}: must have at most {most} items")


def searched(name: str, space: Any, takes: str) -> tuple[str, Changes, str]:
    changes = {"spec.parameters[2]": {"name": name, "searchSpace": space}}
    return (f"values that {name} cannot have", changes, f"must hold values of {name}: {takes}")


REFUSED_BY_THE_SERVER: list[tuple[str, Changes, str]] = [
    # The object.
    ("another kind", {"kind": "Experiment"}, 'kind: Invalid value: "Experiment": must be FineTuneStudy'),
    ("another version", {"apiVersion": "finetune.study/v2"}, 'FineTuneStudy in version "v2" cannot be handled'),
    ("a name with capitals", {"metadata.name": "Laptop"}, NAME),
    ("a name that begins with a digit", {"metadata.name": "1-laptop"}, NAME),
    ("a name that ends with a dash", {"metadata.name": "laptop-"}, NAME),
    ("a name with a dot", {"metadata.name": "lap.top"}, NAME),
    ("a name that is too long", {"metadata.name": "a" * 41}, "metadata.name: Invalid value: must have at most 40"),
    ("no name", {"metadata.name": None}, "metadata.name: Required value"),
    ("no spec", {"spec": None}, "spec: Required value"),
    ("a spec that is a list", {"spec": []}, "spec in body must be of type object"),
    # What is missing.
    not_given("spec.objective"),
    not_given("spec.parameters"),
    not_given("spec.parameters[0].name"),
    not_given("spec.parameters[0].searchSpace"),
    not_given(f"{LEARNING_RATE}.logUniform.min"),
    not_given(f"{LEARNING_RATE}.logUniform.max"),
    not_given(f"{DECAY}.uniform.min"),
    not_given(f"{DECAY}.uniform.max"),
    not_given(f"{RANK}.categorical.values"),
    not_given("spec.numTrials"),
    not_given("spec.data"),
    not_given("spec.data.source"),
    not_given("spec.trainer"),
    not_given("spec.trainer.baseModel"),
    not_given("spec.trainer.baseModel.uri"),
    not_given("spec.trainer.epochs"),
    not_given("spec.storage"),
    not_given("spec.storage.uri"),
    # What is not a field, or not yet.
    unknown("spec.paralelTrials", 4),
    unknown("spec.dataCurve.sizes", [200]),
    unknown("spec.objective.target", "0.9"),
    unknown("spec.earlyEvaluation.percent", 20),
    unknown("spec.budget.gpuHours", "200"),
    unknown("spec.data.labels.teacher.apiKey", "sk-0123"),
    unknown("spec.data.split.trainPercent", 70),
    unknown("spec.trainer.quantization", "NF4"),
    unknown("spec.trainer.parameters", "Any"),
    unknown("spec.trainer.baseModel.name", "small"),
    unknown("spec.storage.bucket", "bucket"),
    unknown("spec.storage.caBundle.path", "/etc/ssl"),
    unknown(f"{LEARNING_RATE}.normal", {"mean": "0"}),
    unknown(f"{LEARNING_RATE}.logUniform.step", "2"),
    unknown(f"{RANK}.categorical.sorted", True),
    # What is of another type.
    of_another_type("spec.suspend", "no", "boolean"),
    of_another_type("spec.numTrials", "8", "integer"),
    of_another_type("spec.seed", 1.5, "int32"),
    of_another_type("spec.parameters", "learning_rate", "array"),
    of_another_type("spec.baseline", ["1e-4"], "object"),
    of_another_type("spec.baseline.learning_rate", 0.001, "string"),
    of_another_type("spec.data", "pages", "object"),
    of_another_type("spec.data.attributes", "name", "array"),
    of_another_type("spec.trainer.rsLora", "true", "boolean"),
    of_another_type("spec.trainer.template", "trainer:latest", "object"),
    of_another_type("spec.trainer.weightDecay", 0.1, "string"),
    of_another_type("spec.budget.acceleratorHours", 200, "string"),
    of_another_type("spec.storage.uri", 1, "string"),
    of_another_type(f"{LEARNING_RATE}.logUniform.min", 0.0001, "string"),
    of_another_type(f"{RANK}.categorical.values[0]", 4, "string"),
    # Words that are none of some.
    ("an unknown direction", {"spec.objective.direction": "Up"}, '"Up": supported values: "Maximize", "Minimize"'),
    ("an unknown parameter", {"spec.parameters[1].name": "rank"}, 'supported values: "learning_rate", "lora_rank"'),
    ("labels of nobody", {"spec.data.labels": {"from": "Pupil"}}, 'supported values: "Given", "Markup", "Teacher"'),
    (
        "labels of a teacher without one",
        {"spec.data.labels": {"from": "Teacher"}},
        "must be given where labels come from a",
    ),
    (
        "a teacher whose labels nobody wants",
        {"spec.data.labels": {"teacher": A_TEACHER}},
        "must not be given unless labels",
    ),
    (
        "a teacher of ready samples",
        {"spec.data.labels": {"from": "Teacher", "teacher": A_TEACHER}, "spec.data.attributes": None},
        "must be Given without attributes: ready samples have their completions",
    ),
    (
        "a teacher without an endpoint",
        taught({"endpoint": None}),
        "spec.data.labels.teacher.endpoint: Required value",
    ),
    ("a teacher without a model", taught({"model": None}), "spec.data.labels.teacher.model: Required value"),
    (
        "a teacher at no address",
        taught({"endpoint": "llm.example"}),
        "spec.data.labels.teacher.endpoint in body should match",
    ),
    ("a teacher with a password", taught({"endpoint": "https://me:pw@llm.example"}), "endpoint in body should match"),
    ("a temperature that is too high", taught({"temperature": "2.1"}), "must be from 0 to 2"),
    (
        "an unknown form of answers",
        taught({"answerFormat": "XML"}),
        'supported values: "JSONSchema", "JSONObject", "Text"',
    ),
    ("an unknown end of tokens", taught({"whenTokensRunOut": "Wait"}), 'supported values: "Use", "Refuse"'),
    ("no requests at once", taught({"parallelRequests": 0}), "should be greater than or equal to 1"),
    (
        "a teacher's Secret with capitals",
        taught({"secretName": "Key"}),
        "spec.data.labels.teacher.secretName in body should",
    ),
    ("no variants", {"spec.data.augment": {"copies": 0}}, "should be greater than or equal to 1"),
    ("too many variants", {"spec.data.augment": {"copies": 21}}, "should be less than or equal to 20"),
    ("an unknown edit", {"spec.data.augment": {"edits": ["Shout"]}}, "supported values:"),
    ("no edit", {"spec.data.augment": {"edits": []}}, "should have at least 1 items"),
    ("an edit twice", {"spec.data.augment": {"edits": ["DropLines", "DropLines"]}}, "must hold each edit once"),
    (
        "variants of ready samples",
        {"spec.data.augment": {}, "spec.data.attributes": []},
        "must be left out unless attributes are asked",
    ),
    ("another meaning of silence", {"spec.data.labels.missing": "No"}, 'supported values: "Unknown", "Absent"'),
    (
        "markup whose silence means absence",
        {"spec.data.labels": {"missing": "Absent"}},
        "must be Unknown unless attributes are asked and their labels are Given or a Teacher's",
    ),
    ("an unknown way to split", {"spec.data.split.by": "Shop"}, '"Shop": supported values: "Site", "Page"'),
    ("an unknown precision", {"spec.trainer.precision": "Float16"}, 'supported values: "BFloat16", "Float32"'),
    ("an unknown addressing", {"spec.storage.addressingStyle": "path"}, 'supported values: "Auto", "Path", "Virtual"'),
    ("an unknown deletion policy", {"spec.storage.deletionPolicy": "Keep"}, 'supported values: "Retain", "Delete"'),
    (
        "an unknown way to rank",
        {"spec.promotion.rankBy": "Accuracy"},
        'supported values: "Objective", "ValidationLoss"',
    ),
    # Whole numbers out of their bounds.
    *out_of_bounds("spec.numTrials", 1, 500),
    *out_of_bounds("spec.parallelTrials", 1, 100),
    *out_of_bounds("spec.maxFailedTrials", 0, 500),
    *out_of_bounds("spec.seed", 0, 2**31 - 1)[:1],
    *out_of_bounds("spec.ttlSecondsAfterFinished", 0, 2**31 - 1)[:1],
    *out_of_bounds("spec.earlyEvaluation.checkpointPercent", 1, 99),
    *out_of_bounds("spec.typicalArms", 0, 4),
    (
        "rungs beside their short form",
        {"spec.earlyEvaluation": {"checkpointPercent": 20, "rungs": [5, 20]}},
        "must not be given beside rungs, whose short form it is",
    ),
    ("rungs that descend", {"spec.earlyEvaluation": {"rungs": [20, 5]}}, "must ascend"),
    ("a rung twice", {"spec.earlyEvaluation": {"rungs": [5, 5]}}, "must ascend"),
    ("an extra point at a rung", {"spec.earlyEvaluation": {"rungs": [5], "extraPercents": [5]}}, "must differ from"),
    ("an extra point at the default rung", {"spec.earlyEvaluation": {"extraPercents": [20]}}, "must differ from"),
    (
        "a share of the only early rung",
        {"spec.promotion.promotedPercents": [50]},
        "must hold one item for each early rung but the last",
    ),
    (
        "more measurements than a status holds",
        {"spec.earlyEvaluation": {"rungs": [5, 20]}, "spec.numTrials": 334},
        "must not be so many with so many rungs",
    ),
    too_many("spec.earlyEvaluation.rungs", [1, 2, 3, 4, 5]),
    ("a data curve of no sizes", {"spec.dataCurve": {"sampleSizes": []}}, "should have at least 1 items"),
    ("sizes that descend", {"spec.dataCurve": {"sampleSizes": [400, 200]}}, "must ascend"),
    ("a gain of nothing", {"spec.dataCurve": {"sampleSizes": [200], "leastGain": "0"}}, "must be greater than 0"),
    ("a size twice", {"spec.dataCurve": {"sampleSizes": [200, 200]}}, "must ascend"),
    (
        "more trials and runs than a status holds",
        {"spec.dataCurve": {"sampleSizes": list(range(1, 21)), "seeds": 10}, "spec.numTrials": 301},
        "must not be so many with so many rungs",
    ),
    (
        "the curve of a baseline that is not given",
        {"spec.dataCurve": {"sampleSizes": [200], "arm": "Baseline"}, "spec.baseline": None},
        "must be Winner where there is no baseline",
    ),
    (
        "a gain over a baseline that is not given",
        {"spec.promotion.confirmSeeds": 1, "spec.baseline": None},
        "must be 0 where there is no baseline",
    ),
    (
        "a comparison with variants that are not made",
        {"spec.dataCurve": {"sampleSizes": [200], "compareAugmentation": True}},
        "must be false where there is no data.augment",
    ),
    (
        "more trials and compared runs than a status holds",
        {
            "spec.dataCurve": {"sampleSizes": list(range(1, 21)), "seeds": 10, "compareAugmentation": True},
            "spec.data.augment": {},
            "spec.numTrials": 101,
        },
        "must not be so many with so many rungs",
    ),
    *out_of_bounds("spec.promotion.confirmSeeds", 0, 10),
    *out_of_bounds("spec.promotion.numPromoted", 1, 500),
    *out_of_bounds("spec.promotion.numAudited", 0, 500),
    *out_of_bounds("spec.budget.activeDeadlineSeconds", 1, 2**31 - 1)[:1],
    *out_of_bounds("spec.data.maxPages", 1, 10**9),
    *out_of_bounds("spec.data.split.validationPercent", 1, 90),
    *out_of_bounds("spec.data.split.testPercent", 0, 90),
    *out_of_bounds("spec.trainer.epochs", 1, 10_000),
    *out_of_bounds("spec.trainer.maxLengthTokens", 32, 2**20),
    *out_of_bounds("spec.trainer.warmupPercent", 0, 100),
    *out_of_bounds("spec.trainer.nodes", 1, 64),
    *out_of_bounds("spec.trainer.acceleratorsPerNode", 1, 64),
    # Lists and strings that are too long, or empty.
    too_many("spec.parameters", [{"name": "lora_rank", "searchSpace": {}}] * 21),
    too_many(f"{RANK}.categorical.values", numbers(51)),
    too_many("spec.startingArms", [AN_ARM] * 51),
    too_many("spec.warmStartFrom", [{"uri": f"s3://bucket/{number}"} for number in range(4)]),
    ("no earlier study", {"spec.warmStartFrom": [{}]}, "spec.warmStartFrom[0]: Invalid value"),
    (
        "an earlier study in two ways",
        {"spec.warmStartFrom": [{"study": "first", "uri": "s3://bucket/first"}]},
        "must hold either study or uri",
    ),
    (
        "itself as an earlier study",
        {"spec.warmStartFrom": [{"study": "laptop"}]},
        "must name other studies than this one",
    ),
    ("an earlier study of no name", {"spec.warmStartFrom": [{"study": "../first"}]}, "should match '^[a-z]"),
    (
        "an earlier study of too long a name",
        {"spec.warmStartFrom": [{"study": "x" * 41}]},
        "spec.warmStartFrom[0].study: Too long: may not be more than",
    ),
    too_many("spec.outcomeConstraints", ["false_value_rate <= 0.1"] * 11),
    too_many("spec.parameterConstraints", ["weight_decay <= 0.4"] * 11),
    too_many("spec.earlyEvaluation.extraPercents", list(range(1, 12))),
    too_many("spec.data.attributes", words(51)),
    too_long("spec.data.source", 1000),
    too_long("spec.trainer.baseModel.revision", 200),
    too_long("spec.storage.endpoint", 500),
    too_long("spec.storage.region", 50),
    too_long("spec.storage.secretName", 253),
    too_long(f"{DECAY}.uniform.max", 24),
    too_long("spec.objective.metric", 49),
    ("a constraint that is too long", {"spec.outcomeConstraints": [" " * 201]}, "outcomeConstraints[0]: Too long"),
    ("an attribute that is too long", {"spec.data.attributes": words(1, 41)}, "spec.data.attributes[0]: Too long"),
    ("an empty source", {"spec.data.source": ""}, "spec.data.source in body should be at least 1 chars long"),
    ("an empty revision", {"spec.trainer.baseModel.revision": ""}, "should be at least 1 chars long"),
    ("no parameters", {"spec.parameters": []}, "spec.parameters in body should have at least 1 items"),
    ("a list of one value", {f"{RANK}.categorical.values": ["16"]}, "should have at least 2 items"),
    # Strings of another form.
    ("an endpoint that is no URL", {"spec.storage.endpoint": "minio.example"}, "spec.storage.endpoint in body should"),
    ("an endpoint with a password", {"spec.storage.endpoint": "https://u:p@a.example"}, "should match '^https?://"),
    ("an endpoint with a query", {"spec.storage.endpoint": "https://a.example?b"}, "should match '^https?://"),
    ("a model that is a script", {"spec.trainer.baseModel.uri": "javascript:alert(1)"}, "must be a path or start with"),
    ("a source that is data", {"spec.data.source": "data:text/html,x"}, "must be a path or start with s3://"),
    ("an endpoint with a path", {"spec.storage.endpoint": "https://a.example/b"}, "should match '^https?://"),
    ("a region with capitals", {"spec.storage.region": "EU"}, "should match '^[a-z0-9-]+$'"),
    ("a Secret that cannot be", {"spec.storage.secretName": "Bucket_Key"}, "spec.storage.secretName in body should"),
    (
        "a key that is a path",
        {"spec.storage.caBundle": {"secretName": "a", "key": "a/b"}},
        "caBundle.key in body should",
    ),
    ("an attribute with capitals", {"spec.data.attributes": ["Price"]}, "should match '^[a-z][a-z0-9_]*$'"),
    ("a bound that is no number", {f"{LEARNING_RATE}.logUniform.min": "small"}, "logUniform.min in body should match"),
    ("a bound that is not finite", {f"{LEARNING_RATE}.logUniform.max": "1e999"}, "logUniform.max in body should match"),
    ("a value that is no number", {f"{RANK}.categorical.values": ["4", "many"]}, "values[1] in body should match"),
    ("a budget that is no number", {"spec.budget": {"acceleratorHours": "all"}}, "acceleratorHours in body should"),
    # The objective.
    ("an unknown metric", {"spec.objective": {"metric": "f1"}}, METRICS),
    ("half a metric", {"spec.objective": {"metric": "accuracy/"}}, METRICS),
    (
        "the accuracy of what is not asked",
        {"spec.objective.metric": "accuracy/brand"},
        "spec.objective.metric: Invalid value: must be accuracy/ and one of the asked attributes",
    ),
    ("the wrong way", {"spec.objective.direction": "Minimize"}, "must be 'Maximize' for accuracies and 'Minimize'"),
    (
        "the wrong way for a loss",
        {"spec.objective": {"metric": "validation_loss", "direction": "Maximize"}},
        "spec.objective.direction: Invalid value: must be 'Maximize' for accuracies and 'Minimize'",
    ),
    (
        "a constraint in words",
        {"spec.outcomeConstraints": ["few errors"]},
        "must read like 'invalid_output_rate <= 0.2'",
    ),
    ("a strict constraint", {"spec.outcomeConstraints": ["false_value_rate < 0.2"]}, "must read like 'invalid_output"),
    ("a constraint on no metric", {"spec.outcomeConstraints": ["f1 >= 0.5"]}, "and bound one of accuracy"),
    (
        "a constraint on the objective",
        {"spec.outcomeConstraints": ["accuracy >= 0.5"]},
        "must bound another metric than",
    ),
    # The search space.
    (
        "two search spaces",
        {LEARNING_RATE: {k: {"min": "0.1", "max": "0.2"} for k in ("uniform", "logUniform")}},
        f"{LEARNING_RATE}: Invalid value: must hold one of uniform, logUniform or categorical",
    ),
    ("no search space", {LEARNING_RATE: {}}, "must hold one of uniform, logUniform or categorical"),
    (
        "a parameter given twice",
        {"spec.parameters[1].name": "learning_rate", RANK: {"uniform": {"min": "0.1", "max": "0.2"}}},
        "spec.parameters: Invalid value: must name each parameter once",
    ),
    (
        "alpha twice",
        {
            "spec.parameters[1]": {"name": "lora_alpha", "searchSpace": {"uniform": {"min": "8", "max": "64"}}},
            "spec.parameters[2]": {
                "name": "lora_alpha_over_rank",
                "searchSpace": {"uniform": {"min": "1", "max": "4"}},
            },
        },
        "spec.parameters: Invalid value: must not search lora_alpha and lora_alpha_over_rank together",
    ),
    (
        "bounds in the wrong order",
        {f"{DECAY}.uniform.min": "0.6"},
        "uniform.max: Invalid value: must be greater than min",
    ),
    ("equal bounds", {f"{DECAY}.uniform.min": "5e-1"}, "uniform.max: Invalid value: must be greater than min"),
    (
        "bounds that fall on a log scale",
        {f"{LEARNING_RATE}.logUniform.min": "1"},
        "logUniform.max: Invalid value: must be",
    ),
    ("zero on a log scale", {f"{LEARNING_RATE}.logUniform.min": "0"}, "logUniform.min: Invalid value: must be greater"),
    ("a rank that is a range", {RANK: {"uniform": {"min": "4", "max": "64"}}}, "must be categorical for lora_rank or"),
    (
        "a rank of a half",
        {f"{RANK}.categorical.values": ["4", "8.5"]},
        "lora_rank: a whole number, at least 1 and at most",
    ),
    (
        "a rank of nothing",
        {f"{RANK}.categorical.values": ["0", "4"]},
        "lora_rank: a whole number, at least 1 and at most",
    ),
    (
        "a learning rate above one",
        {f"{LEARNING_RATE}.logUniform.max": "10"},
        "must hold values of learning_rate: a number, greater than 0 and at most 1",
    ),
    ("a weight decay above one, searched", {f"{DECAY}.uniform.max": "1.5"}, "weight_decay: a number, at least 0"),
    (
        "a dropout of everything",
        {"spec.parameters[2]": {"name": "lora_dropout", "searchSpace": {"uniform": {"min": "0", "max": "1"}}}},
        "must hold values of lora_dropout: a number, at least 0 and less than 1",
    ),
    searched("lora_alpha", {"uniform": {"min": "0", "max": "64"}}, "a number, greater than 0 and at most 4096"),
    searched("lora_alpha_over_rank", {"uniform": {"min": "1", "max": "65"}}, "a number, greater than 0 and at most 64"),
    searched("batch_size", {"categorical": {"values": ["8", "8192"]}}, "a whole number, at least 1 and at most 4096"),
    searched("warmup_percent", {"categorical": {"values": ["0", "101"]}}, "a number, at least 0 and at most 100"),
    ("a value given twice", {f"{RANK}.categorical.values": ["4", "16", "16.0"]}, "must hold each value once"),
    ("ordered values that fall", {f"{RANK}.categorical.values": ["16", "4"]}, "must ascend, because they are ordered"),
    (
        "a constraint that is not linear",
        {"spec.parameterConstraints": ["weight_decay * weight_decay <= 1"]},
        "spec.parameterConstraints[0]: Invalid value: ",
    ),
    ("a constraint without a bound", {"spec.parameterConstraints": ["weight_decay"]}, "must be linear and read like"),
    # Arms.
    (
        "a baseline that lacks a parameter",
        {"spec.baseline.lora_rank": None},
        "spec.baseline: Invalid value: must give a",
    ),
    (
        "a baseline with one too many",
        {"spec.baseline.lora_dropout": "0.1"},
        "spec.baseline: Invalid value: must give a",
    ),
    (
        "a baseline outside of its bounds",
        {"spec.baseline.learning_rate": "0.1"},
        "spec.baseline: Invalid value: must lie",
    ),
    ("a baseline outside of the list", {"spec.baseline.lora_rank": "5"}, "must lie in the search space of each"),
    (
        "an empty baseline",
        {"spec.baseline": {}},
        "must give a value of each of the study's parameters, and of no other",
    ),
    (
        "a baseline that is no number",
        {"spec.baseline.lora_rank": "big"},
        "spec.baseline.lora_rank in body should match",
    ),
    (
        "a starting arm that lacks one",
        {"spec.startingArms": [AN_ARM, {}]},
        "spec.startingArms: Invalid value: must each",
    ),
    (
        "a starting arm outside",
        {"spec.startingArms": [AN_ARM | {"lora_rank": "128"}]},
        "spec.startingArms: Invalid value: must each lie in the search space of each parameter",
    ),
    # How many.
    (
        "fewer trials than must run to the end",
        {"spec.numTrials": 3},
        (
            "spec.numTrials: Invalid value: must be at least the number of promoted trials, of audited ones of each "
            "early rung, and the baseline"
        ),
    ),
    (
        "fewer trials than arms to begin with",
        {"spec.startingArms": [AN_ARM] * 8},
        "spec.numTrials: Invalid value: must be at least the number of baseline and starting arms",
    ),
    (
        "more trials than a ledger holds",
        {
            "spec.numTrials": 500,
            "spec.outcomeConstraints": ["accuracy/name >= 0.5", "accuracy/price >= 0.5"],
        },
        "must not be so many with so many constraints on an attribute's accuracy",
    ),
    (
        "an extra measurement at the checkpoint",
        {"spec.earlyEvaluation.extraPercents": [20]},
        "must differ from each rung's",
    ),
    ("an extra measurement twice", {"spec.earlyEvaluation.extraPercents": [5, 5]}, "must hold each percentage once"),
    (
        "an extra measurement at the end",
        {"spec.earlyEvaluation.extraPercents": [100]},
        "should be less than or equal to 99",
    ),
    ("a budget of nothing", {"spec.budget.acceleratorHours": "0"}, "acceleratorHours: Invalid value: "),
    # Data, trainer, storage.
    (
        "a source that is a web site",
        {"spec.data.source": "https://shop.example"},
        "must be a path or start with s3:// or",
    ),
    ("a test set from the web", {"spec.data.testSource": "ftp://shop/pages"}, "must be a path or start with s3:// or"),
    (
        "a base model from the web",
        {"spec.trainer.baseModel.uri": "https://a.example/b"},
        "start with hf:// or s3:// or",
    ),
    (
        "a bucket without a name",
        {"spec.storage.uri": "s3://"},
        "must be a path or start with s3:// or file:// and name",
    ),
    ("a bucket on the hub", {"spec.storage.uri": "hf://owner/name"}, "must be a path or start with s3:// or file://"),
    ("an attribute that markup lacks", {"spec.data.attributes": ["price", "colour"]}, MARKUP),
    ("an attribute asked twice", {"spec.data.attributes": ["price", "price"]}, "must hold each attribute once"),
    (
        "two test sets",
        {"spec.data.testSource": "audited", "spec.data.split.testPercent": 10},
        "spec.data.split.testPercent: Invalid value: must be 0 where spec.data.testSource is given",
    ),
    (
        "nothing left to train on",
        {"spec.data.split.validationPercent": 85},
        "must leave 10 percent for training beside",
    ),
    ("a weight decay above one", {"spec.trainer.weightDecay": "2"}, "must be from 0 to 1"),
    ("a weight decay below zero", {"spec.trainer.weightDecay": "-0.1"}, "must be from 0 to 1"),
    ("certificates from nowhere", {"spec.storage.caBundle": {"key": "ca.crt"}}, "must name either a configMapName or"),
    (
        "certificates from two places",
        {"spec.storage.caBundle": {"configMapName": "a", "secretName": "b"}},
        "spec.storage.caBundle: Invalid value: must name either a configMapName or a secretName",
    ),
    ("a template with more than a pod", {"spec.trainer.template": {"kind": "Pod"}}, 'unknown field "spec.trainer.temp'),
]

MODULES = "`spec.trainer.targetModules` must be 'AllLinear' or a list of"

TOLD_IN_ACCEPTED: list[tuple[str, Changes, str]] = [
    ("target modules in a word", {"spec.trainer.targetModules": "q_proj"}, f"{MODULES} names, got 'q_proj'"),
    ("no target modules", {"spec.trainer.targetModules": []}, f"{MODULES} at least one name, got []"),
    ("target modules by name", {"spec.trainer.targetModules": {"q_proj": True}}, f"{MODULES} names"),
    (
        "too many modules",
        {"spec.trainer.targetModules": words(101)},
        "targetModules` must hold 0 to 100 items, got 101",
    ),
    (
        "a module twice",
        {"spec.trainer.targetModules": ["a", "a"]},
        "`spec.trainer.targetModules[1]` must be given once",
    ),
    ("a module with a space", {"spec.trainer.targetModules": ["a b"]}, "targetModules[0]` must match ^[A-Za-z0-9_.]+$"),
    (
        "a long module",
        {"spec.trainer.targetModules": words(1, 65)},
        "targetModules[0]` must have at most 64 characters",
    ),
    (
        "a constraint on a log scale",
        {"spec.parameterConstraints": ["learning_rate <= 0.001"]},
        "`spec.parameterConstraints[0]` must name only parameters whose search space is uniform",
    ),
    (
        "a constraint on what is not searched",
        {"spec.parameterConstraints": ["lora_dropout <= 0.1"]},
        "`spec.parameterConstraints[0]` must name only parameters whose search space is uniform",
    ),
    (
        "a constraint on nothing",
        {"spec.parameterConstraints": ["1 <= 2"]},
        "parameterConstraints[0]` must be linear and",
    ),
    (
        "a baseline that breaks a constraint",
        {"spec.parameterConstraints": ["2 * weight_decay <= 0.05"]},
        "`spec.baseline` must keep the constraint '2 * weight_decay <= 0.05'",
    ),
    (
        "a starting arm that breaks a constraint",
        {"spec.parameterConstraints": ["weight_decay <= 0.2"], "spec.startingArms": [AN_ARM | {"weight_decay": "0.3"}]},
        "`spec.startingArms[0]` must keep the constraint 'weight_decay <= 0.2'",
    ),
    (
        "a constraint on an attribute that is not asked",
        {"spec.outcomeConstraints": ["accuracy/brand >= 0.5"]},
        "`spec.outcomeConstraints[0]` must bound one of",
    ),
    ("a template whose pod is a word", {"spec.trainer.template": {"spec": "x"}}, "template.spec` must be an object"),
    (
        "a template without the trainer's container",
        {"spec.trainer.template": {"spec": {"containers": [{"name": "main"}]}}},
        "`spec.trainer.template.spec.containers` must hold one that is named 'trainer'",
    ),
    (
        "containers that are no list",
        {"spec.data.template": {"spec": {"containers": {"name": "trainer"}}}},
        "`spec.data.template.spec.containers` must be a list",
    ),
    (
        "a template that is too large",
        {"spec.trainer.template": {"metadata": {"annotations": {"note": "x" * 10_240}}}},
        "`spec.trainer.template` must have at most 10240 bytes as JSON",
    ),
]


def as_parameters(rows: list[tuple[str, Changes, str]]) -> list[Any]:
    return [pytest.param(changes, sentence, id=subject) for subject, changes, sentence in rows]


def test_there_are_enough_of_them() -> None:
    assert len({subject for subject, _, _ in REFUSED_BY_THE_SERVER + TOLD_IN_ACCEPTED}) >= 120


@pytest.mark.parametrize(("changes", "sentence"), as_parameters(REFUSED_BY_THE_SERVER))
def test_the_api_server_refuses_it_and_so_does_the_parser(studies: Studies, changes: Changes, sentence: str) -> None:
    manifest = a_manifest(changes)
    refusal = studies.find_refusal(manifest)
    assert sentence in refusal
    # One that a rule cannot be asked about is told by its own form, and not by how the rule broke.
    assert "evaluating rule" not in refusal or "kind" in changes
    with pytest.raises(StudyInvalidError):
        parse_study(manifest)


@pytest.mark.parametrize(("changes", "sentence"), as_parameters(TOLD_IN_ACCEPTED))
def test_the_api_server_takes_it_and_the_operator_tells(studies: Studies, changes: Changes, sentence: str) -> None:
    manifest = a_manifest(changes)
    assert studies.find_refusal(manifest) == ""
    with pytest.raises(StudyInvalidError) as reported:
        parse_study(manifest)
    assert sentence in "\n".join(reported.value.problems)


def rules_of(schema: Any) -> Iterator[str]:
    """Return what the rules of a schema say, but for those of changes."""
    if isinstance(schema, dict):
        given = schema.get("x-kubernetes-validations", ())
        yield from (rule["message"] for rule in given if "oldSelf" not in rule["rule"])
        for child in schema.values():
            yield from rules_of(child)


def test_every_rule_of_the_schema_refuses_one_of_them(studies: Studies) -> None:
    reported = "\n".join(studies.find_refusal(a_manifest(changes)) for _, changes, _ in REFUSED_BY_THE_SERVER)
    assert [message for message in dict.fromkeys(rules_of(SCHEMA)) if message not in reported] == []


@pytest.mark.parametrize("path", ["spec.suspend", "spec.baseline", "spec.budget", "spec.storage.endpoint"])
def test_null_is_as_if_the_field_were_not_given_here_too(studies: Studies, path: str) -> None:
    manifest = a_manifest({path: "a value"})
    section, field = path.split(".")[-2:]
    (manifest["spec"] if section == "spec" else manifest["spec"][section])[field] = None
    assert studies.find_refusal(manifest) == ""
