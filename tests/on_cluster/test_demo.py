"""`make demo-cluster`: a study of a laptop on a cluster, from apply to the winner, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders.tiny_study import save_model, write_pages
from testcluster import build
from testcluster.fixtures import FindPrograms

STUDY = {
    "apiVersion": "finetune.study/v1alpha1",
    "kind": "FineTuneStudy",
    "metadata": {"name": "tiny"},
    "spec": {
        "objective": {"metric": "validation_loss", "direction": "Minimize"},
        "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}}],
        "baseline": {"learning_rate": "1e-3"},
        "startingArms": [{"learning_rate": "2e-3"}],
        "numTrials": 2,
        "parallelTrials": 2,
        "promotion": {"numPromoted": 1, "numAudited": 0},
        "data": {
            "source": "pages.jsonl",
            "attributes": ["name", "price"],
            "labels": {"from": "Markup"},
            "split": {"validationPercent": 40, "testPercent": 0},
        },
        "trainer": {"baseModel": {"uri": "model"}, "epochs": 2, "maxLengthTokens": 500, "precision": "Float32"},
        "storage": {"uri": "runs"},
    },
}


@pytest.mark.slow
def test_the_demo_takes_a_study_from_apply_to_its_winner_with_kubectl(tmp_path: Path, programs: FindPrograms) -> None:
    programs(build.find_kubernetes)
    programs(lambda: build.build(build.VERSITYGW))
    save_model(tmp_path / "model")
    write_pages(tmp_path / "pages.jsonl")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    paths = [str(build.HERE.parent), *(str(build.HERE.parents[1] / name) for name in ("operator", "trainer"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(temporary)}
    environment.pop("KUBECONFIG", None)
    shown = subprocess.run(
        [sys.executable, "-m", "testcluster.demo", "--study", str(tmp_path / "study.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    lines = shown.stdout.splitlines()
    assert any(line.split()[:1] == ["NAME"] and "STATUS" in line for line in lines)
    assert any(line.startswith("tiny") and "Exploring" in line for line in lines)
    assert "finetunestudy.finetune.study/tiny condition met" in lines
    assert any(line.startswith("WinnerChosen ") for line in lines)
    assert any(line.startswith("Completed: trial t00") for line in lines)
    assert not list(temporary.iterdir())
