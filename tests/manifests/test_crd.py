"""What people see of the CRD: that it is taken, its columns, its explanations; and that its files are up to date."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import ledgers
from builders.some_manifests import FULL_MANIFEST, a_manifest
from builders.studies_on_a_server import CRD, CRD_FILE, Studies
from study_operator.ledger.agreement import LEAST_AUDITED
from study_operator.ledger.status import parse_status, render_refusal, render_status
from study_operator.ledger.trial import Continuation, Ledger
from study_operator.spec.manifest import read_manifest
from study_operator.spec.parse import parse_study

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = sorted((REPOSITORY / "manifests" / "samples").glob("*.yaml"))
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
CLIENT_SIDE_BYTES = 262_144
"""Of all annotations together, into which `kubectl apply` writes a copy of the whole object."""


def fields_of(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return every field under a schema, by the path that `kubectl explain` takes."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields_of(child, f"{path}.{name}")
        yield from fields_of(child.get("items", {}), f"{path}.{name}")


OURS = [(path, schema) for path, schema in fields_of(SCHEMA, "fts") if path.split(".")[1] in ("spec", "status")]


def test_the_generated_files_are_those_that_would_be_generated() -> None:
    program = [sys.executable, REPOSITORY / "manifests" / "generate.py", "--check"]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_link_of_the_reference_leads_to_a_section() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    sections = {re.sub(r"[^a-z0-9]", "", heading.lower()) for heading in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert "specparameterssearchspace" in links and links <= sections
    missing = [path for path, _ in OURS if f"`{path.rpartition('.')[2]}`" not in page]
    assert missing == []


def test_names_are_those_of_the_design() -> None:
    names = CRD["spec"]["names"]
    assert (CRD["spec"]["group"], CRD["spec"]["scope"]) == ("finetune.study", "Namespaced")
    assert (names["kind"], names["plural"], names["shortNames"]) == ("FineTuneStudy", "finetunestudies", ["fts"])
    # Not `all`: `kubectl delete all --all` must not take studies.
    assert names["categories"] == ["ml"]


def test_every_field_is_described_in_a_sentence_and_bounded() -> None:
    for path, schema in OURS:
        assert re.fullmatch(r"[A-Z].{10,}[.)]?", schema["description"]), path
        assert schema["description"].endswith(".") or "such as:" in schema["description"], path
        match schema.get("type"):
            case "string":
                assert "maxLength" in schema or "enum" in schema, path
            case "integer":
                assert "minimum" in schema and ("maximum" in schema or path.endswith("observedGeneration")), path
            case "array":
                assert "maxItems" in schema and schema["x-kubernetes-list-type"] in ("atomic", "map"), path
            case "object":
                assert "properties" in schema or "maxProperties" in schema, path
            case other:
                assert other == "boolean" or schema["x-kubernetes-preserve-unknown-fields"], path


def test_the_api_server_has_it_as_it_is_written(studies: Studies) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD['metadata']['name']}"
    stored = studies.cluster.api.get(path)
    assert stored is not None
    # Types that Go's YAML reads otherwise than Python's would show here: a bare `n` is false.
    assert stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == SCHEMA
    violations = [c for c in stored["status"]["conditions"] if c["type"] == "NonStructuralSchema"]
    assert not violations


def test_it_can_be_applied_on_the_client_and_on_the_server(studies: Studies) -> None:
    # `kubectl apply` keeps a copy as JSON in an annotation; a second version of the API must fit beside this one.
    copy = json.dumps(yaml.safe_load(CRD_FILE.read_text()), separators=(",", ":"))
    assert len(copy.encode()) < CLIENT_SIDE_BYTES / 2
    for how in ([], ["--server-side"]):
        studies.cluster.kubectl("apply", *how, "--dry-run=server", "-f", str(CRD_FILE))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_api_server_takes_every_sample(studies: Studies, path: Path) -> None:
    assert studies.find_refusal(yaml.safe_load(path.read_text())) == ""
    # And with the absolute paths that the command line makes of it.
    assert studies.find_refusal(read_manifest(path)) == ""


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_that_audits_from_several_rungs_audits_enough_to_tell(path: Path) -> None:
    study = parse_study(read_manifest(path))
    assert study.last_rung == 1 or study.promotion.num_audited == 0 or study.promotion.num_audited >= LEAST_AUDITED


def test_the_api_server_takes_the_study_of_the_first_page(studies: Studies) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown
    assert [studies.find_refusal(yaml.safe_load(text)) for text in shown] == [""] * len(shown)


def test_the_api_server_takes_a_study_with_every_field(studies: Studies) -> None:
    assert studies.find_refusal(FULL_MANIFEST) == ""
    parse_study(FULL_MANIFEST)


def test_server_side_apply_takes_it_too(studies: Studies) -> None:
    manifest = a_manifest({"metadata.name": "applied"}, FULL_MANIFEST)
    path = f"/apis/finetune.study/v1alpha1/namespaces/{studies.namespace}/finetunestudies/applied"
    applied = studies.cluster.api.patch(path, manifest, kind="apply", fieldManager="test", fieldValidation="Strict")
    assert applied["spec"] == manifest["spec"]
    studies.delete("applied")


def test_kubectl_explain_reads_like_documentation(studies: Studies) -> None:
    text = studies.cluster.kubectl("explain", "fts.spec.promotion").stdout
    message = " ".join(text.split())
    assert "Which trials continue to full length. The baseline always does, and does not count among them." in message
    assert "numPromoted <integer> How many trials continue to full length" in message


def test_kubectl_explains_every_field(studies: Studies) -> None:
    assert "outcomeConstraints" in studies.cluster.kubectl("explain", "fts", "--recursive").stdout
    # What `kubectl explain` shows comes from here; one request instead of a hundred commands.
    document = studies.cluster.api.get("/openapi/v3/apis/finetune.study/v1alpha1")
    assert document is not None
    served = document["components"]["schemas"]["study.finetune.v1alpha1.FineTuneStudy"]
    shown = dict(fields_of(served, "fts"))
    assert {path: shown[path].get("description") for path, _ in OURS} == {
        path: schema["description"] for path, schema in OURS
    }


@pytest.mark.parametrize(
    "path",
    [
        "fts.spec.parameters.searchSpace.categorical",
        "fts.spec.trainer.template",
        "fts.spec.trainer.targetModules",
        "fts.spec.baseline",
        "fts.status.trials.measurements",
        "fts.status.conditions",
    ],
)
def test_kubectl_explains_what_lies_deep(studies: Studies, path: str) -> None:
    description = " ".join(dict(OURS)[path]["description"].split())
    assert description in " ".join(studies.cluster.kubectl("explain", path).stdout.split())


def get_columns(studies: Studies, name: str) -> dict[str, str]:
    """Return what `kubectl get fts` shows, by column; columns are two or more blanks apart."""
    head, line = studies.cluster.kubectl("get", "fts", name, "-n", studies.namespace).stdout.splitlines()
    edges = [match.start() for match in re.finditer(r"\S+", head)] + [len(head) + len(line)]
    return {head[a:b].strip(): line[a:b].strip() for a, b in itertools.pairwise(edges)}


def test_columns_tell_the_story(studies: Studies) -> None:
    created = studies.create(a_manifest({"metadata.name": "columns"}))
    study = parse_study(created)
    assert list(get_columns(studies, "columns")) == [
        *("NAME", "TRIALS", "MEASURED", "PROMOTED", "BEST", "GAIN", "SAVED", "STATUS", "AGE"),
    ]
    now = datetime.now(UTC) - timedelta(minutes=5)
    ledger = ledgers.a_ledger(
        ledgers.continued(ledgers.paused(0, 0.31), 0.35, Continuation.BASELINE),
        ledgers.continued(ledgers.paused(1, 0.41), 0.48),
        ledgers.stopped(2, 0.2),
        ledgers.running(ledgers.a_trial(3)),
    )
    written = studies.write_status(created, render_status(study, ledger, now=now))
    shown = get_columns(studies, "columns")
    expected = {"TRIALS": "4", "MEASURED": "3", "PROMOTED": "1", "BEST": "48.0%"}
    expected["GAIN"] = "+13.0 (+6.7 to +18.5) best of 2, one seed"
    assert {name: shown[name] for name in expected} == expected
    assert shown["SAVED"] == written["status"]["summary"]["saved"] and shown["SAVED"].endswith(" h")
    assert shown["STATUS"] == "Promoting"
    assert re.fullmatch(r"\d+[sm].*", shown["AGE"])
    studies.delete("columns")


def test_columns_of_a_study_that_is_not_accepted_say_so(studies: Studies) -> None:
    created = studies.create(a_manifest({"metadata.name": "refused-columns"}))
    studies.write_status(created, render_refusal(parse_status(None), "SpecInvalid", ["no"], 1, datetime.now(UTC)))
    shown = get_columns(studies, "refused-columns")
    assert (shown["STATUS"], shown["BEST"]) == ("NotAccepted", "")
    studies.delete("refused-columns")


def test_categories_and_the_short_name_find_studies(studies: Studies) -> None:
    created = studies.create(a_manifest({"metadata.name": "found"}))
    studies.write_status(created, render_status(parse_study(created), Ledger(), now=datetime.now(UTC)))
    for word in ("fts", "ml", "finetunestudies", "finetunestudies.finetune.study"):
        listed = studies.cluster.kubectl("get", word, "-n", studies.namespace, "-o", "name").stdout.split()
        assert "finetunestudy.finetune.study/found" in listed
    studies.delete("found")
