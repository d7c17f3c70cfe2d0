"""The commands of docs/install.md, one after the other, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import yaml

from cluster import scripts
from cluster.kube import ControlPlane
from cluster.node import StandIn
from install.helm import CHART, Helm
from on_cluster.operators import HOME, REPOSITORY, wait_until

TEXT = (REPOSITORY / "docs/install.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def run(command: str, plane: ControlPlane, helm_program: Path) -> str:
    """Run a command in the repository, with kubectl and Helm at hand."""
    path = os.pathsep.join([str(plane.programs), str(helm_program.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(plane.kubeconfig)}
    result = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def test_the_commands_do_what_the_docs_say(plane: ControlPlane, helm_program: Path) -> None:
    by_helm = [command for command in COMMANDS if command.startswith("helm ")]
    assert [command.split()[1] for command in by_helm] == ["install", "upgrade", "uninstall"]
    uninstall = by_helm[-1]
    # The ways to install exclude each other: first Helm's, then kubectl's.
    first = COMMANDS.index("kubectl apply --server-side -k manifests/overlays/cluster-wide")
    others = COMMANDS[first:]
    with StandIn(plane.kubeconfig, nodes=2, script=lambda pod: scripts.runs()):
        for command in [*COMMANDS[:first], by_helm[1], uninstall]:
            run(command, plane, helm_program)
        assert plane.api.get(f"/apis/apps/v1/namespaces/{HOME}/deployments/finetune-study-operator") is None
        for command in others:
            if command not in by_helm:
                run(command, plane, helm_program)
        # What the namespaced overlay has been applied over goes on to exist: kubectl deletes nothing.
        [deployment] = plane.api.list(f"/apis/apps/v1/namespaces/{HOME}/deployments")
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        assert "--namespace=shop-ml" in container["args"]
        secret = plane.api.get("/api/v1/namespaces/shop-ml/secrets/bucket-credentials")
        assert secret is not None and secret["metadata"]["labels"] == {"finetune.study/bucket": "true"}
        wait_until(lambda: not plane.api.list("/api/v1/pods", fieldSelector="status.phase=Pending"))


def test_the_values_that_the_docs_show_are_taken(helm: Helm) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    values = yaml.safe_load(example)
    rendered = helm.render(values)
    assert f"{values['image']['repository']}@{values['image']['digest']}" in rendered
    for name in re.findall(r"`([a-z][A-Za-z]+(?:\.[A-Za-z]+)*)(?::[^`]*)?`", TEXT):
        if name.split(".")[0] in yaml.safe_load((CHART / "values.yaml").read_text()):
            value = yaml.safe_load((CHART / "values.yaml").read_text())
            for part in name.split("."):
                assert part in value, f"docs/install.md names {name}"
                value = value[part]
