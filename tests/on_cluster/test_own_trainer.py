"""The trainer of docs/own-trainer.md takes a study to its winner, in pods that are processes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from on_cluster.operators import OperatorProcess
from on_cluster.studies import StudyOnCluster, read_json
from testcluster.bucket import REGION, S3Server
from testcluster.node import StandIn

PAGE = (Path(__file__).resolve().parents[2] / "docs/own-trainer.md").read_text()


def block(name: str) -> str:
    """Return what stands between two markers of the page."""
    found = re.search(rf"<!-- {name}:begin -->\n```\w+\n(.*?)\n```\n<!-- {name}:end -->", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_the_trainer_of_the_page_takes_its_study_to_the_winner(
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
    tmp_path: Path,
) -> None:
    program = tmp_path / "trainer.py"
    program.write_text(block("trainer"))
    spec = yaml.safe_load(block("study"))["spec"]
    # What is of this machine: where the program lies, and the bucket's address.
    [container] = spec["trainer"]["template"]["spec"]["containers"]
    container["command"] = [sys.executable, str(program)]
    spec["storage"] |= {"endpoint": s3.endpoint, "region": REGION, "addressingStyle": "Path"}
    make_nodes()
    make_operator()
    study.apply(spec)
    study.wait_for_condition("Complete")

    assert study.states() == ["Completed", "Completed", "Stopped"]
    assert study.status["winner"] == 1
    assert study.trial(2)["measurements"][0]["diverged"]
    measurement = read_json(s3, f"{study.prefix()}trials/t001/rungs/1/measurement.json")
    # Fifty steps of 1e-2, in two parts that are as one.
    assert measurement["step"] == 50
    assert measurement["metrics"]["validation_loss"]["value"] == pytest.approx(3 * (1 - 6e-2) ** 100, rel=1e-9)
