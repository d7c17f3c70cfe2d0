"""The commands of docs/install.md, one after the other, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import yaml

from install.helm import CHART, Helm, by_name
from on_cluster.operators import HOME, MANIFESTS, REPOSITORY
from testcluster import scripts
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import StandIn

TEXT = (REPOSITORY / "docs/install.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def read_values() -> str:
    """Return the values.yaml that the page shows."""
    [example] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    return str(example)


def run(command: str, plane: ControlPlane, helm_program: Path) -> str:
    """Run a command in the repository, with kubectl and Helm at hand."""
    path = os.pathsep.join([str(plane.programs), str(helm_program.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(plane.kubeconfig)}
    result = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def test_the_commands_do_what_the_docs_say(plane: ControlPlane, helm_program: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(read_values())
    by_helm = [command for command in COMMANDS if command.startswith("helm ")]
    assert [command.split()[1] for command in by_helm] == ["install", "upgrade", "uninstall"]
    uninstall = by_helm[-1]
    # The ways to install exclude each other: first Helm's, then kubectl's.
    first = COMMANDS.index("kubectl apply --server-side -k manifests/overlays/cluster-wide")
    others = COMMANDS[first:]
    with StandIn(plane.kubeconfig, nodes=2, script=lambda pod: scripts.runs()):
        for command in COMMANDS[:first]:
            run(command.replace("-f values.yaml", f"-f {values}"), plane, helm_program)
        # Two operators would not know of each other.
        second = run(f"! helm install second {CHART} --namespace default 2>&1", plane, helm_program)
        assert "cannot be imported into the current release: invalid ownership metadata" in second
        run(by_helm[1], plane, helm_program)
        run(uninstall, plane, helm_program)
        assert plane.api.get(f"/apis/apps/v1/namespaces/{HOME}/deployments/finetune-study-operator") is None
        *others, delete_studies, delete = (command for command in others if command not in by_helm)
        for command in others:
            run(command, plane, helm_program)
        # What the namespaced overlay has been applied over goes on to exist: kubectl deletes nothing.
        [deployment] = plane.api.list(f"/apis/apps/v1/namespaces/{HOME}/deployments")
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        assert "--namespace=shop-ml" in container["args"]
        secret = plane.api.get("/api/v1/namespaces/shop-ml/secrets/bucket-credentials")
        assert secret is not None and secret["metadata"]["labels"] == {"finetune.study/bucket": "true"}
        run(delete_studies, plane, helm_program)
        run(delete, plane, helm_program)
        found = plane.kubectl("get", "crd,clusterrole,clusterrolebinding,namespace", "-o", "name").stdout
        assert "finetune" not in found


def test_the_values_that_the_docs_show_are_taken(helm: Helm) -> None:
    values = yaml.safe_load(read_values())
    rendered = helm.render(values)
    assert f"{values['image']['repository']}@{values['image']['digest']}" in rendered
    for name in re.findall(r"`([a-z][A-Za-z]+(?:\.[A-Za-z]+)*)(?::[^`]*)?`", TEXT):
        if name.split(".")[0] in yaml.safe_load((CHART / "values.yaml").read_text()):
            value = yaml.safe_load((CHART / "values.yaml").read_text())
            for part in name.split("."):
                assert part in value, f"docs/install.md names {name}"
                value = value[part]


def test_the_kustomization_that_the_docs_show_sets_images_and_configuration(cluster: Cluster, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/gitops.md").read_text()
    example = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    # From this copy instead of a Git server.
    local, count = re.subn(
        r"https://\S+//manifests/(\S+)\?ref=\S+", rf"{os.path.relpath(MANIFESTS, tmp_path)}/\1", example
    )
    assert count == 1
    (tmp_path / "kustomization.yaml").write_text(local)
    (tmp_path / "operator.yaml").write_text("limits: {attemptsLimit: 10}")
    objects = by_name(yaml.safe_load_all(cluster.kubectl("kustomize", str(tmp_path)).stdout))
    pod = objects[f"Deployment/{HOME}/finetune-study-operator"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/ml/finetune-study-operator:0.1.0"
    [config] = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
    assert objects[f"ConfigMap/{HOME}/{config}"]["data"] == {"operator.yaml": "limits: {attemptsLimit: 10}"}
