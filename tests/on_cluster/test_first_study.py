"""The commands of docs/first-study.md, one after the other, as they stand there."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from on_cluster.operators import OperatorProcess
from on_cluster.studies import StudyOnCluster, read_keys
from testcluster.bucket import REGION, S3Server, User
from testcluster.kube import Cluster
from testcluster.node import StandIn

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/first-study.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
[MANIFEST] = re.findall(r"<!-- study:begin -->\n```yaml\n(.*?)\n```\n<!-- study:end -->", PAGE, re.DOTALL)


def test_the_commands_of_the_page_take_its_study_to_the_winner(
    cluster: Cluster,
    namespace: str,
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    user: User,
    tmp_path: Path,
) -> None:
    study: Any = yaml.safe_load(MANIFEST)
    assert study == yaml.safe_load((REPOSITORY / "manifests/samples/cluster.yaml").read_text())
    # What is of the reader's own: the bucket, and the image with the trainer.
    study["spec"]["storage"] |= {"endpoint": s3.endpoint, "region": REGION, "addressingStyle": "Path"}
    [container] = study["spec"]["trainer"]["template"]["spec"]["containers"]
    container["image"] = "trainer"
    container["command"] = [sys.executable, str(REPOSITORY / "tests/builders/stand_in_trainer.py")]
    container["env"] = [{"name": "STAND_IN", "value": '{"seconds": 3}'}]
    # JSON is YAML: in what PyYAML writes kubectl takes "1e-3" for a number.
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    make_nodes()
    make_operator()

    def run(command: str) -> str:
        """Run a command of the page in the test's namespace."""
        program, *words = shlex.split(command.replace("shop-ml", namespace).replace("24h", "120s"))
        assert program == "kubectl"
        return cluster.kubectl(*words, directory=tmp_path).stdout

    message = {command: run(command) for command in COMMANDS[:-1]}

    # After its end a study tidies up.
    seen = StudyOnCluster(cluster, namespace, "first").wait(lambda study: study.status.get("cleanedAt"))
    assert seen.condition("Complete")["reason"] == "Completed"
    winner = f"t{seen.status['winner']:03d}"
    assert f'"trial":"{winner}"' in next(text for command, text in message.items() if "status.best" in command)
    uri = next(text for command, text in message.items() if "reportURI" in command)
    _, _, key = uri.removeprefix("s3://").partition("/")
    keys = {*read_keys(s3)}
    assert {key, f"{key.rpartition('/')[0]}/index.html"} <= keys
    assert any(f"/trials/{winner}/rungs/1/adapter/" in each for each in keys)
    run(COMMANDS[-1])
    seen.wait_until_gone()
    assert {*read_keys(s3)} == keys
