"""What Flux makes of a study: by kstatus, which it uses without expressions, and by those that the docs give.

The CEL of the expressions is the one in the API server: a validating policy evaluates them on statuses as the operator
writes them, and says in its refusal what they are.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.some_manifests import MANIFEST
from builders.studies_on_a_server import Studies, install_crd
from install.bodies import BODIES
from on_cluster.operators import REPOSITORY, wait_until
from testcluster.api import ApiError
from testcluster.kube import Cluster

DOCS = REPOSITORY / "docs/gitops.md"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

SAID: Mapping[str, str] = {
    "preparing": "InProgress",
    "exploring": "InProgress",
    "suspended": "InProgress",
    "bucket away": "InProgress",
    "complete": "Current",
    "complete and suspended": "Current",
    "failed": "Failed",
    "not accepted": "Failed",
}


KSTATUS: Mapping[str, tuple[str, str]] = {
    "new": ("Current", "Resource is current"),
    "changed": ("InProgress", "FineTuneStudy generation is 1, but latest observed generation is 0"),
    "exploring": ("Current", "Resource is current"),
    "suspended": ("Current", "Resource is current"),
    "complete": ("Current", "Resource is current"),
    "failed": ("Failed", "the first six arms diverged"),
    "not accepted": ("Failed", "`spec.storage.uri` must be there"),
}
"""Without expressions: a study that runs counts as current, or every wait would time out over a weekend."""


def read_expressions(file: Path) -> dict[str, str]:
    """Return the expressions that the docs give for studies."""
    found = re.search(r"<!-- flux:begin -->\n```yaml\n(.*?)```", file.read_text(), re.DOTALL)
    assert found is not None
    [check] = yaml.safe_load(found[1])["spec"]["healthCheckExprs"]
    assert (check.pop("apiVersion"), check.pop("kind")) == ("finetune.study/v1alpha1", "FineTuneStudy")
    return dict(check)


def a_policy(name: str, namespace: str, expressions: Mapping[str, str]) -> dict[str, Any]:
    """Return a policy that refuses every status, and tells what the expressions make of it."""
    # The parts of an object have names of their own for Flux; a macro gives them one here.
    reported = " + ' ' + ".join(
        f"'{key}=' + string([object.status].all(status, {each}))" for key, each in expressions.items()
    )
    return {
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [
                    {
                        "apiGroups": ["finetune.study"],
                        "apiVersions": ["v1alpha1"],
                        "operations": ["UPDATE"],
                        "resources": ["finetunestudies/status"],
                    }
                ],
            },
            "validations": [{"expression": "object.metadata.name == ''", "messageExpression": reported}],
        },
    }


@pytest.fixture(scope="module")
def studies(cluster: Cluster) -> Iterator[Studies]:
    """Studies of a namespace where the docs' expressions are told."""
    install_crd(cluster)
    name = cluster.create_namespace(f"flux-{secrets.token_hex(4)}")
    cluster.api.create(POLICIES, a_policy(name, name, read_expressions(DOCS)))
    binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}}
    cluster.api.create(f"{POLICIES.removesuffix('ies')}ybindings", binding)
    studies = Studies(cluster, name)
    study = studies.create({**MANIFEST, "metadata": {"name": "shop"}})
    wait_until(lambda: "current=" in find_told(studies, study, BODIES["complete"]["status"]))
    yield studies
    cluster.api.delete(f"{POLICIES.removesuffix('ies')}ybindings/{name}")
    cluster.api.delete(f"{POLICIES}/{name}")
    cluster.delete_namespace(name)


def find_told(studies: Studies, study: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Return what the policy says of a status."""
    path = f"/apis/finetune.study/v1alpha1/namespaces/{studies.namespace}/finetunestudies/{study['metadata']['name']}"
    try:
        studies.cluster.api.replace(f"{path}/status", {**study, "status": dict(status)}, dryRun="All")
    except ApiError as error:
        return error.message
    return ""


@pytest.mark.parametrize("case", SAID)
def test_a_study_counts_as_the_docs_say(studies: Studies, case: str) -> None:
    reported = find_told(studies, studies.get("shop"), BODIES[case]["status"])
    results = {key: json.loads(value) for key, value in re.findall(r"(\w+)=(true|false)", reported)}
    assert results.keys() == {"failed", "current"}, reported
    # In Flux's order; what is neither goes on.
    assert ("Failed" if results["failed"] else "Current" if results["current"] else "InProgress") == SAID[case]


def test_the_policy_finds_no_fault_in_the_expressions(studies: Studies) -> None:
    policy = wait_until(
        lambda: (
            (found := studies.cluster.api.get(f"{POLICIES}/{studies.namespace}"))
            and "typeChecking" in found.get("status", {})
            and found
        )
    )
    assert not policy["status"]["typeChecking"].get("expressionWarnings")


def test_without_expressions_only_what_is_stalled_has_failed(
    cluster: Cluster, namespace: str, kapply: Path, tmp_path: Path
) -> None:
    install_crd(cluster)
    studies = Studies(cluster, namespace)
    entries = {}
    for case in KSTATUS:
        name = case.replace(" ", "-")
        study = studies.create({**MANIFEST, "metadata": {"name": name}})
        entries[f"{namespace}_{name}_finetune.study_FineTuneStudy"] = ""
        if status := BODIES[case].get("status"):
            observed = study["metadata"]["generation"] - (case == "changed")
            studies.write_status(study, {**status, "observedGeneration": observed})
    # What kapply would have applied, as it writes it down.
    inventory = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "inventory",
            "namespace": namespace,
            "labels": {"cli-utils.sigs.k8s.io/inventory-id": namespace},
        },
    }
    cluster.apply({**inventory, "data": entries})
    (tmp_path / "inventory.yaml").write_text(json.dumps(inventory))
    reported = subprocess.run(
        [kapply, "--kubeconfig", cluster.kubeconfig, "status", tmp_path, "--timeout", "60s"],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.findall(rf"{namespace}/(\S+) is (\w+): (.*)", reported)
    assert {name.replace("-", " "): (status, message) for name, status, message in found} == KSTATUS
