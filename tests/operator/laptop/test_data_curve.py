"""A whole small study with the real trainer, whose data curve ends on the test set."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.report_pages import Page
from builders.tiny_study import ROOT, save_model, write_pages

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 900


def run_study(place: Path, curve: dict[str, Any], data: dict[str, Any]) -> Path:
    """Run a study of two trials and a data curve to its end; return its prefix in the bucket."""
    save_model(place / "model")
    write_pages(place / "pages.jsonl", count=60)
    spec = {
        "objective": {"metric": "accuracy", "direction": "Maximize"},
        "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}}],
        "baseline": {"learning_rate": "1e-3"},
        "numTrials": 2,
        "parallelTrials": 2,
        "promotion": {"numPromoted": 1},
        "maxFailedTrials": 0,
        "dataCurve": curve,
        "data": {
            "source": "pages.jsonl",
            "attributes": ["name", "price"],
            "split": {"validationPercent": 35, "testPercent": 20},
            **data,
        },
        "trainer": {"baseModel": {"uri": "model"}, "epochs": 2, "maxLengthTokens": 500, "precision": "Float32"},
        "storage": {"uri": "runs"},
    }
    metadata = {"name": "tiny", "uid": "0123456789"}
    manifest = {"apiVersion": "finetune.study/v1alpha1", "kind": "FineTuneStudy", "metadata": metadata, "spec": spec}
    (place / "study.yaml").write_text(json.dumps(manifest))

    done = subprocess.run(
        [sys.executable, "-m", "study_operator", "run", str(place / "study.yaml"), "--plain"],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer")]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (prefix,) = (place / "runs" / "default").iterdir()
    return prefix


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_tiny_model_is_trained_on_nested_parts_and_each_is_measured_on_both_sets(tmp_path: Path) -> None:
    prefix = run_study(tmp_path, {"sampleSizes": [16, 32, 5000], "seeds": 2, "balanced": True}, {})

    curve = read(prefix / "report" / "report.json")["dataCurve"]
    assert "4 of 4 runs of the data curve were measured" in curve["message"]
    assert "5000 is left out" in curve["message"]
    for point in curve["points"]:
        assert len(point["validation"]["values"]) == len(point["test"]["values"]) == 2
        assert point["validation"]["n"] > 0 and point["test"]["n"] > 0
    for name, samples, seed in (("t002", 16, 0), ("t003", 16, 1), ("t004", 32, 0), ("t005", 32, 1)):
        measurement = read(prefix / "trials" / name / "rungs" / "1" / "measurement.json")
        # 2 epochs of batches of 16.
        assert measurement["step"] == measurement["total_steps"] == 2 * samples // 16, (name, seed)
        assert measurement["samples_seen"] == 2 * samples
        for metric in ("accuracy", "validation_loss"):
            sums = measurement["by_site"][metric].values()
            mean = sum(s["total"] for s in sums) / sum(s["weight"] for s in sums)
            assert mean == pytest.approx(measurement["metrics"][metric]["value"])
    trial = read(prefix / "trials" / "t000" / "rungs" / "0" / "measurement.json")
    assert trial["by_site"] == {}

    # The pages that the report shows are those that the model read, without what its template puts around them.
    examples = read(prefix / "final-evaluation" / "examples.json")
    assert examples["reference"] in ("baseline", "untrained") and examples["pages"]
    for shown in examples["pages"]:
        number = shown["page"].removeprefix("p")
        assert f"# Kettle {number}" in shown["lines"] and "<|im_start|>" not in "".join(shown["lines"])
        for question in shown["questions"]:
            assert [question["gold"][0] in shown["lines"][line] for line in question["lines"]] == [True]
    page = Page((prefix / "report" / "index.html").read_text())
    assert "a page where" in page.text and "Pages" in page.texts
    losses = page.charts["losses"]["data"]["values"]
    assert {value["trial"] for value in losses} == {"t000", "t001"}


def test_with_and_without_variants_the_same_part_is_trained_on_for_as_long_and_both_are_reported(
    tmp_path: Path,
) -> None:
    curve = {"sampleSizes": [16, 32], "seeds": 1, "compareAugmentation": True}
    prefix = run_study(tmp_path, curve, {"augment": {"copies": 3}})

    assert read(prefix / "dataset" / "summary.json")["variants"] > 0
    runs = [
        (run["trainSamples"], run.get("withoutVariants", False)) for run in read(prefix / "ledger.json")["dataCurve"]
    ]
    assert runs == [(16, True), (16, False), (32, True), (32, False)]
    for plain, augmented in (("t002", "t003"), ("t004", "t005")):
        pair = [prefix / "trials" / name / "rungs" / "1" for name in (plain, augmented)]
        one, other = (read(rung / "measurement.json") for rung in pair)
        assert (one["step"], one["samples_seen"]) == (other["step"], other["samples_seen"])
        assert one["metrics"]["accuracy"]["n"] == other["metrics"]["accuracy"]["n"]
        # Other texts are read, from the first step or a later one.
        losses = [json.loads((rung / "training-losses.json").read_text()) for rung in pair]
        assert losses[0] != losses[1]
    found = read(prefix / "report" / "report.json")["dataCurve"]
    assert [(point["samples"], point["augmented"]) for point in found["points"]] == [
        (16, False),
        (16, True),
        (32, False),
        (32, True),
    ]
    assert [(gain["samples"], gain["pairs"]) for gain in found["comparison"]["gains"]] == [(16, 1), (32, 1)]
    assert found["comparison"]["shift"]["ratio"] is None
    assert {row["attribute"] for row in found["attributes"]} == {None, "name", "price"}
    page = (prefix / "report" / "index.html").read_text()
    assert "How augmentation moves the saturation point is not identifiable from these sizes" in page
