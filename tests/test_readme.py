"""What the documentation says is so: its commands run, its manifests parse, its tables name the fields that exist."""

import dataclasses
import gzip
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.odd_teacher import KEY, OddTeacher
from builders.some_studies import a_report, a_summary, a_trial
from builders.tiny_tokenizer import save_tokenizer
from study_operator.__main__ import _parser
from study_operator.errors import StudyInvalidError
from study_operator.reconcile.job_specs import adapter_uri, build_prepare_job
from study_operator.report.report import asking_lines, loading_lines
from study_operator.spec import fields
from study_operator.spec.manifest import read_manifest
from study_operator.spec.parse import PARAMETERS, parse_study
from study_operator.spec.study import Study, complete_arm
from trial_trainer import contract
from trial_trainer.contract import TEACHER_API_KEY, BaseModel, ExitCode, from_json
from trial_trainer.dataset.prepare import prepare

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
STUDY_PAGE = (REPOSITORY / "docs/study.md").read_text()
CONTRACT_PAGE = (REPOSITORY / "docs/trial-contract.md").read_text()
BENCHMARKS_PAGE = (REPOSITORY / "docs/benchmarks.md").read_text()
ADAPTER_PAGE = (REPOSITORY / "docs/adapter.md").read_text()
DEMO_PAGE = (REPOSITORY / "docs/demo.md").read_text()
METHOD_PAGE = (REPOSITORY / "docs/method.md").read_text()
PAGES = [README, ADAPTER_PAGE, METHOD_PAGE, STUDY_PAGE, CONTRACT_PAGE, BENCHMARKS_PAGE]
SAMPLES = REPOSITORY / "manifests/samples"
MODEL = REPOSITORY / ".cache/smollm2-135m-instruct"

# A manifest in which every field is given; kinds that exclude each other are in items of one list.
WHOLE = """
apiVersion: finetune.study/v1alpha1
kind: FineTuneStudy
metadata: {name: whole, namespace: default, uid: "0123", generation: 1}
status: {}
spec:
  suspend: false
  objective: {metric: accuracy, direction: Maximize}
  outcomeConstraints: ["invalid_output_rate <= 0.2"]
  parameters:
    - {name: learning_rate, searchSpace: {logUniform: {min: "1e-4", max: "1e-2"}}}
    - {name: lora_dropout, searchSpace: {uniform: {min: "0", max: "0.2"}}}
    - {name: batch_size, searchSpace: {categorical: {values: ["8", "16"], ordered: true}}}
  parameterConstraints: ["lora_dropout <= 0.15"]
  baseline: {learning_rate: "1e-3", lora_dropout: "0", batch_size: "8"}
  startingArms: [{learning_rate: "2e-3", lora_dropout: "0", batch_size: "8"}]
  typicalArms: 2
  warmStartFrom: [{study: first}, {uri: "s3://studies/shop/first-0a1b2c3d"}]
  numTrials: 12
  parallelTrials: 2
  maxFailedTrials: 3
  seed: 1
  earlyEvaluation: {checkpointPercent: 20, extraPercents: [10]}
  promotion: {numPromoted: 2, numAudited: 1, rankBy: Objective, confirmSeeds: 3}
  budget: {acceleratorHours: "2", activeDeadlineSeconds: 3600}
  dataCurve:
    {sampleSizes: [100, 200], seeds: 2, arm: Winner, balanced: true, leastGain: "0.02", compareAugmentation: false}
  data:
    source: pages.jsonl
    testSource: test.jsonl
    maxPages: 100
    augment: {copies: 2, edits: [DropLines]}
    attributes: [name, price]
    labels:
      from: Teacher
      missing: Absent
      teacher:
        endpoint: https://llm.example/v1
        model: large
        secretName: teacher
        secretKey: key
        answerFormat: Text
        instructions: Prices are those of today.
        temperature: "0"
        maxAnswerTokens: 512
        maxTokens: 1000000
        whenTokensRunOut: Refuse
        selfConsistencySamples: 50
        parallelRequests: 8
        timeoutSeconds: 60
    split: {by: Site, validationPercent: 20, testPercent: 0}
    template: {spec: {containers: [{name: trainer, image: "trainer:1"}]}}
  trainer:
    baseModel: {uri: "hf://owner/model", revision: main}
    epochs: 3
    maxLengthTokens: 512
    precision: Float32
    targetModules: [q_proj]
    rsLora: true
    warmupPercent: 5
    weightDecay: "0.1"
    nodes: 2
    acceleratorsPerNode: 2
    template: {spec: {containers: [{name: trainer, image: "trainer:1"}]}}
  storage:
    uri: s3://bucket/prefix
    endpoint: https://s3.example
    region: here
    addressingStyle: Path
    caBundle: {configMapName: certificates, key: s3.crt}
    secretName: credentials
    deletionPolicy: Delete
  ttlSecondsAfterFinished: 3600
"""


def whole() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(WHOLE)
    return raw


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its two head lines."""
    section = re.split(r"^#+ ", page.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


FIELDS = {cells[0].strip("`"): cells[1] for cells in rows(STUDY_PAGE, "The manifest")}
CONTRACT_TYPES = re.findall(r"^### (\w+)$", CONTRACT_PAGE, re.MULTILINE)


def block(name: str) -> str:
    """Return the code between two markers of the page of the adapter."""
    found = re.search(rf"<!-- {name}:begin -->\n```python\n(.*?)\n```\n<!-- {name}:end -->", ADAPTER_PAGE, re.DOTALL)
    assert found is not None
    return found[1]


# --- Commands ---------------------------------------------------------------------------------------------------


def make_commands() -> list[str]:
    inline = {command for page in PAGES for command in re.findall(r"`(make [a-z][^`]*)`", page)}
    shown = {command.strip() for command in re.findall(r"^\$ (make [^#\n]+)", README, re.MULTILINE)}
    return sorted(inline | shown)


def dry_run(command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    ran = subprocess.run(
        [*shlex.split(command), "--dry-run"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_readme_shows_the_demo_its_quick_size_and_the_tests():
    assert {"make demo", "make demo QUICK=1", "make test", "make test-all"} <= set(make_commands())


@pytest.mark.parametrize("command", make_commands())
def test_every_make_command_of_the_documentation_is_a_target(command: str):
    assert dry_run(command)


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        pytest.param("make demo", "finetune-study run manifests/samples/bookings.yaml", id="whole"),
        pytest.param("make demo QUICK=1", "finetune-study run manifests/samples/bookings-quick.yaml", id="quick"),
        pytest.param("make demo-pages", "finetune-study run manifests/samples/laptop.yaml", id="product pages"),
        pytest.param("make test", '-m "not slow"', id="quick tests"),
        pytest.param("make test-all", "-m pytest -n", id="every test"),
    ],
)
def test_a_make_command_runs_what_the_readme_says(command: str, runs: str):
    assert runs in dry_run(command)


@pytest.mark.parametrize(
    "command", [line.strip() for line in re.findall(r"^\$ (finetune-study [^#\n]+)", README, re.MULTILINE)]
)
def test_every_command_line_of_the_readme_has_flags_that_exist(command: str):
    arguments = _parser().parse_args(shlex.split(command)[1:])

    # `watch` takes a prefix in a bucket, too, which is no path.
    assert str(getattr(arguments, "manifest", None) or arguments.study) == "study.yaml"


def test_every_command_of_the_command_line_is_in_the_readme():
    commands = next(action.choices for action in _parser()._actions if action.dest == "command")

    assert commands
    assert all(f"$ finetune-study {command} study.yaml" in README for command in commands)


def test_every_file_that_the_documentation_names_is_there():
    named = {target for page in PAGES for target in re.findall(r"\b(?:benchmarks|docs|manifests)/[\w./-]*\w", page)}
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert links
    missing = [target for target in named | links if not (REPOSITORY / target).exists()]
    assert missing == []


def test_the_readme_is_short_and_so_is_what_it_shows_of_a_run():
    lines = README.splitlines()
    assert len(lines) <= 120
    shown = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert shown
    for block in shown:
        output = [line for line in block.splitlines() if not line.startswith("$ ")]
        assert len(output) <= 15


# --- Manifests --------------------------------------------------------------------------------------------------


FOR_CLUSTERS = {SAMPLES / "cluster.yaml", SAMPLES / "gpus.yaml"}


@pytest.mark.parametrize("sample", sorted(FOR_CLUSTERS), ids=lambda path: path.stem)
def test_a_sample_for_a_cluster_parses_and_names_buckets(sample: Path):
    study = parse_study(read_manifest(sample))
    assert {uri.partition("://")[0] for uri in (study.data.source, study.base_model.uri, study.storage.uri)} == {"s3"}


@pytest.mark.parametrize("sample", sorted({*SAMPLES.glob("*.yaml")} - FOR_CLUSTERS), ids=lambda path: path.stem)
def test_a_sample_manifest_parses_and_its_data_are_there(sample: Path):
    study = parse_study(read_manifest(sample))

    assert Path(study.data.source).is_file()
    assert study.data.test_source is not None
    assert Path(study.data.test_source).is_file()
    assert Path(study.base_model.uri) == MODEL


def test_the_sample_with_a_teacher_asks_about_every_message_but_those_of_the_test_set(tmp_path, monkeypatch):
    with gzip.open(SAMPLES / "data/restaurant8k/train.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = {record["text"]: record for record in map(json.loads, lines)}
    study = parse_study(read_manifest(SAMPLES / "teacher.yaml"))
    teacher = study.data.teacher
    assert teacher is not None
    monkeypatch.setenv(TEACHER_API_KEY, KEY)

    def answer(prompt: str) -> dict[str, str | None]:
        (labels,) = (record["labels"] for text, record in records.items() if text in prompt)
        return {attribute: labels.get(attribute) for attribute in study.data.attributes}

    with OddTeacher(answer) as server:
        here = replace(
            study,
            data=replace(study.data, teacher=replace(teacher, endpoint=server.endpoint)),
            base_model=BaseModel(uri=str(save_tokenizer(tmp_path / "model"))),
            # Its tokens are bytes.
            trainer=replace(study.trainer, max_length_tokens=2000),
            storage=replace(study.storage, uri=str(tmp_path)),
        )
        summary = prepare(from_json(contract.PrepareConfig, build_prepare_job(here).config))

    assert {name: split.pages for name, split in summary.splits.items()} == {"train": 36, "validation": 24, "test": 80}
    assert summary.teacher is not None and summary.audit is not None
    assert (summary.teacher.pages, summary.teacher.pages_again) == ({"Labelled": 60}, {"Labelled": 20})
    assert len(server.requests) == 80
    given = next(found for found in summary.audit.agreements if found.other == "Given" and found.attribute is None)
    # A null of the teacher's is held against a null by hand.
    assert (given.metric.value, given.metric.n, given.metric.sites) == (1.0, 24 * 5, 24)


def test_the_study_in_the_readme_parses():
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown is not None

    assert parse_study(yaml.safe_load(shown[1])).name == "product-attributes"


def test_the_picture_is_of_the_demo():
    study = parse_study(read_manifest(SAMPLES / "laptop.yaml"))
    going_on = study.promotion.num_promoted + study.promotion.num_audited + 1
    runs = study.num_trials * 0.2 + going_on * 0.8

    assert (
        f"{study.num_trials} × 20 % + {going_on} × 80 % = {runs:.1f} full runs instead of {study.num_trials}"
        in METHOD_PAGE
    )


# --- The table of fields ----------------------------------------------------------------------------------------


def taken_fields(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the path of every field that the parser takes; what an arm or a template holds is the user's own."""
    taken: set[str] = set()
    real = fields.Fields.take

    def take(self: Any, name: str, default: Any = None) -> Any:
        taken.add(re.sub(r"\[\d+\]", "[]", self._join(name)))
        return real(self, name, default)

    monkeypatch.setattr(fields.Fields, "take", take)
    parse_study(raw)
    return {path for path in taken if not re.match(r"spec\.(baseline|startingArms\[\]|\w+\.template)\.", path)}


def test_the_table_names_the_fields_that_the_parser_accepts(monkeypatch: pytest.MonkeyPatch):
    taken = taken_fields(whole(), monkeypatch)
    leaves = {p for p in taken if not any(other.startswith((f"{p}.", f"{p}[]")) for other in taken)}

    assert leaves - set(FIELDS) == set()
    assert set(FIELDS) - taken == set()


def holders(raw: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """Yield every object that holds the last part of a path."""
    level: list[Any] = [raw]
    for part in path.split(".")[:-1]:
        name = part.removesuffix("[]")
        found = [item[name] for item in level if isinstance(item, dict) and name in item]
        level = [inner for item in found for inner in item] if part.endswith("[]") else found
    last = path.rpartition(".")[2]
    yield from (item for item in level if last in item)


@pytest.mark.parametrize("path", [path for path, default in FIELDS.items() if default == "required"])
def test_a_field_that_the_table_calls_required_is(path: str):
    raw = whole()
    for holder in list(holders(raw, path)):
        del holder[path.rpartition(".")[2]]

    with pytest.raises(StudyInvalidError) as caught:
        parse_study(raw)
    named = [re.sub(r"\[\d+\]", "[]", problem) for problem in caught.value.problems]
    assert any(problem.startswith(f"`{path}`") for problem in named)


@pytest.mark.parametrize("path", [path for path, default in FIELDS.items() if default == "none"])
def test_a_field_without_a_default_may_be_left_out(path: str):
    raw = whole()
    if path == "spec.baseline":
        # Further seeds are the winner's and the baseline's.
        del raw["spec"]["promotion"]["confirmSeeds"]
    for holder in list(holders(raw, path)):
        del holder[path.rpartition(".")[2]]

    assert parse_study(raw).name == "whole"


@pytest.mark.parametrize(
    ("path", "default"), [(path, text.strip("`")) for path, text in FIELDS.items() if text.startswith("`")]
)
def test_a_default_of_the_table_is_what_a_missing_field_means(path: str, default: str):
    without, given = whole(), whole()
    for raw in (without, given):
        # A share of test pages is for studies without a test source.
        del raw["spec"]["data"]["testSource"]
        if path == "spec.data.labels.from":
            raw["spec"]["data"]["labels"] = {"from": "Teacher"}
    last = path.rpartition(".")[2]
    for holder in list(holders(without, path)):
        del holder[last]
    for holder in list(holders(given, path)):
        holder[last] = yaml.safe_load(default)

    assert parse_study(without) == parse_study(given)
    assert given != without


def test_a_field_that_is_not_in_the_table_is_refused():
    raw = whole()
    raw["spec"]["hyperband"] = {}
    raw["spec"]["trainer"]["quantization"] = "NF4"

    with pytest.raises(StudyInvalidError) as caught:
        parse_study(raw)
    assert len(caught.value.problems) == 2
    assert all("must not be given, because it is not a field" in problem for problem in caught.value.problems)


def test_the_table_of_parameters_is_what_a_study_may_search():
    table = {cells[0].strip("`"): cells[2].strip("`") for cells in rows(STUDY_PAGE, "Parameters")}

    assert list(table) == list(PARAMETERS)
    for name, value in complete_arm({}).items():
        if name != "lora_alpha":
            assert float(table[name]) == value


# --- The trial contract -----------------------------------------------------------------------------------------


def test_the_contract_page_has_every_configuration_and_result():
    assert set(CONTRACT_TYPES) == {
        *("TrialConfig", "TrainerSettings", "PrepareConfig", "FinalEvaluationConfig"),
        *("RungMeasurement", "Metric", "Progress", "DatasetSummary", "FinalEvaluation", "Examples"),
        *("TeacherSettings", "TeacherSummary", "LabelAudit"),
    }


@pytest.mark.parametrize("name", CONTRACT_TYPES)
def test_the_contract_page_names_the_fields_of_the_contract(name: str):
    fields = [field.name for field in dataclasses.fields(getattr(contract, name))]

    assert [cells[0].strip("`") for cells in rows(CONTRACT_PAGE, name)] == fields


def test_the_contract_page_names_the_exit_codes():
    shown = {int(cells[0]): cells[1].strip("`") for cells in rows(CONTRACT_PAGE, "Exit codes")}

    assert shown == {code.value: code.name for code in ExitCode}


def test_the_contract_page_names_the_files_of_a_rung():
    shown = [cells[0].strip("`") for cells in rows(CONTRACT_PAGE, "Files of one rung")]
    heads = {key.partition("/")[0] for key in shown}

    assert heads == {
        *(contract.CHECKPOINTS, contract.LATEST, contract.ADAPTER),
        *(contract.PREDICTIONS, contract.TRAINING_LOSSES, contract.MEASUREMENTS, contract.MEASUREMENT, contract.LOGS),
    }


# --- The adapter ------------------------------------------------------------------------------------------------


def shown_study() -> tuple[Study, int]:
    """Return the study whose adapter the page loads, with relative paths, and the index of the trial."""
    found = re.search(r"runs/default/bookings-([0-9a-f]{8})/trials/t(\d{3})/", block("loading"))
    assert found is not None
    study = parse_study(read_manifest(SAMPLES / "bookings.yaml"))
    return replace(
        study,
        uid=found[1],
        base_model=BaseModel(uri=str(Path(study.base_model.uri).relative_to(REPOSITORY))),
        storage=replace(study.storage, uri=str(Path(study.storage.uri).relative_to(REPOSITORY))),
    ), int(found[2])


def test_the_loading_lines_are_those_that_the_report_prints():
    study, index = shown_study()
    report = a_report(study=study, adapter=adapter_uri(study, a_trial(index)))

    assert block("loading") == loading_lines(report)
    assert block("loading") in DEMO_PAGE


def test_the_asking_lines_are_those_that_the_report_prints():
    study, index = shown_study()
    summary = replace(a_summary(), records={"Text": 700})
    report = a_report(study=study, adapter=adapter_uri(study, a_trial(index)), summary=summary)

    assert block("asking") == asking_lines(report)
    assert block("asking") in DEMO_PAGE
