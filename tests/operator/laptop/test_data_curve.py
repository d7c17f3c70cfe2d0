"""A whole small study with the real trainer, whose data curve ends on the test set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders.tiny_study import ROOT, save_model, write_pages

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 900


def test_a_tiny_model_is_trained_on_nested_parts_and_each_is_measured_on_both_sets(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    write_pages(tmp_path / "pages.jsonl", count=60)
    spec = {
        "objective": {"metric": "accuracy", "direction": "Maximize"},
        "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}}],
        "baseline": {"learning_rate": "1e-3"},
        "numTrials": 2,
        "parallelTrials": 2,
        "promotion": {"numPromoted": 1},
        "maxFailedTrials": 0,
        "dataCurve": {"sampleSizes": [16, 32, 5000], "seeds": 2, "balanced": True},
        "data": {
            "source": "pages.jsonl",
            "attributes": ["name", "price"],
            "split": {"validationPercent": 35, "testPercent": 20},
        },
        "trainer": {"baseModel": {"uri": "model"}, "epochs": 2, "maxLengthTokens": 500, "precision": "Float32"},
        "storage": {"uri": "runs"},
    }
    metadata = {"name": "tiny", "uid": "0123456789"}
    manifest = {"apiVersion": "finetune.study/v1alpha1", "kind": "FineTuneStudy", "metadata": metadata, "spec": spec}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(manifest))

    done = subprocess.run(
        [sys.executable, "-m", "study_operator", "run", str(tmp_path / "study.yaml"), "--plain"],
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
    (prefix,) = (tmp_path / "runs" / "default").iterdir()
    curve = json.loads((prefix / "report" / "report.json").read_text())["dataCurve"]
    assert "4 of 4 runs of the data curve were measured" in curve["message"]
    assert "5000 is left out" in curve["message"]
    for point in curve["points"]:
        assert len(point["validation"]["values"]) == len(point["test"]["values"]) == 2
        assert point["validation"]["n"] > 0 and point["test"]["n"] > 0
    for name, samples, seed in (("t002", 16, 0), ("t003", 16, 1), ("t004", 32, 0), ("t005", 32, 1)):
        measurement = json.loads((prefix / "trials" / name / "rungs" / "1" / "measurement.json").read_text())
        # 2 epochs of batches of 16.
        assert measurement["step"] == measurement["total_steps"] == 2 * samples // 16, (name, seed)
        assert measurement["samples_seen"] == 2 * samples
        for metric in ("accuracy", "validation_loss"):
            sums = measurement["by_site"][metric].values()
            mean = sum(s["total"] for s in sums) / sum(s["weight"] for s in sums)
            assert mean == pytest.approx(measurement["metrics"][metric]["value"])
    trial = json.loads((prefix / "trials" / "t000" / "rungs" / "0" / "measurement.json").read_text())
    assert trial["by_site"] == {}
