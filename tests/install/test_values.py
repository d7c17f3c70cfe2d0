"""The chart's values: each is explained, and a slip of the pen is refused with its place."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
import yaml

from install.helm import CHART, Helm, HelmError
from study_operator.settings import Settings
from trial_trainer.codec import to_camel_case

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

REFUSED = [
    ({"imge": {"tag": "1"}}, "'imge' not allowed"),
    ({"image": {"tagg": "1"}}, "at '/image': additional properties 'tagg' not allowed"),
    ({"image": {"tag": 1.0}}, "at '/image/tag': got number, want string"),
    ({"image": {"digest": "sha256:12"}}, "at '/image/digest': 'sha256:12' does not match pattern"),
    ({"image": {"repository": "https://registry.example/a"}}, "at '/image/repository': .* does not match pattern"),
    ({"image": {"pullPolicy": "always"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
    ({"imagePullSecrets": ["registry"]}, "at '/imagePullSecrets/0': got string, want object"),
    ({"imagePullSecrets": [{"secret": "registry"}]}, "missing property 'name'"),
    ({"crds": {"enabld": True}}, "at '/crds': additional properties 'enabld' not allowed"),
    ({"crds": {"keep": "yes"}}, "at '/crds/keep': got string, want boolean"),
    ({"config": {"trainerimage": "a"}}, "at '/config': additional properties 'trainerimage' not allowed"),
    ({"config": {"limits": {"attempts": 3}}}, "at '/config/limits': additional properties 'attempts' not allowed"),
    ({"config": {"limits": {"attemptsLimit": 0}}}, "minimum: got 0, want 1"),
    ({"config": {"limits": {"backoffSeconds": "10s"}}}, "got string, want number"),
    ({"config": {"identities": {"shop-ml": {"uri": "s3://a"}}}}, "/shop-ml': got object, want array"),
    ({"config": {"identities": {"shop-ml": [{"url": "s3://a"}]}}}, "additional properties 'url' not allowed"),
    ({"config": {"identities": {"shop-ml": [{"uri": "minio/a"}]}}}, "/uri': 'minio/a' does not match pattern"),
    ({"config": {"endpoints": "https://minio.example"}}, "got string, want null or array"),
    ({"config": {"endpoints": ["minio.example"]}}, "/endpoints/0': 'minio.example' does not match pattern"),
    ({"config": {"identities": {"Shop": []}}}, "'Shop' does not match pattern"),
    ({"watchNamespaces": "shop-ml"}, "at '/watchNamespaces': got string, want array"),
    ({"watchNamespaces": ["shop-ml", "shop-ml"]}, "items at 0 and 1 are equal"),
    ({"secrets": {"namespace": ["a"]}}, "at '/secrets': additional properties 'namespace' not allowed"),
    ({"watchNamespaces": ["a"], "secrets": {"namespaces": ["b"]}}, "must be some of watchNamespaces, got b"),
    ({"serviceAccount": {"annotation": {}}}, "at '/serviceAccount': additional properties 'annotation' not allowed"),
    (
        {"serviceAccount": {"annotations": {"role": 5}}},
        "at '/serviceAccount/annotations/role': got number, want string",
    ),
    ({"rbac": {"enabled": False}}, "at '/rbac': additional properties 'enabled' not allowed"),
    ({"replicas": "2"}, "at '/replicas': got string, want integer"),
    ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
    ({"podDisruptionBudget": {"minAvailable": 1}}, "additional properties 'minAvailable' not allowed"),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "at '/podDisruptionBudget/maxUnavailable'"),
    ({"priorityClass": "high"}, "additional properties 'priorityClass' not allowed"),
    ({"topologySpreadConstraints": {"maxSkew": 1}}, "got object, want array"),
    ({"affinity": {"nodeAfinity": {}}}, "at '/affinity': additional properties 'nodeAfinity' not allowed"),
    ({"resources": {"limit": {}}}, "at '/resources': additional properties 'limit' not allowed"),
    ({"podLabels": {"azure.workload.identity/use": True}}, "got boolean, want string"),
    ({"extraEnv": {"HTTPS_PROXY": "a"}}, "at '/extraEnv': got object, want array"),
    ({"extraEnv": [{"name": "A", "vale": "b"}]}, "at '/extraEnv/0': additional properties 'vale' not allowed"),
    ({"extraEnv": [{"name": "A", "value": 1}]}, "at '/extraEnv/0/value': got number, want string"),
    ({"extraVolumes": [{"name": "tmp"}]}, "at '/extraVolumes/0/name': 'not' failed"),
    ({"extraVolumeMounts": [{"name": "a", "mountPath": "/tmp"}]}, "at '/extraVolumeMounts/0/mountPath': 'not' failed"),
    ({"extraArgs": ["threads=4"]}, "at '/extraArgs/0': 'threads=4' does not match pattern"),
    ({"metrics": {"serviceMonitor": {"enable": True}}}, "additional properties 'enable' not allowed"),
    ({"metrics": {"serviceMonitor": {"interval": 30}}}, "got number, want string"),
    ({"metrics": {"port": 0}}, "minimum: got 0, want 1"),
    ({"metrics": {"dashboards": {}}}, "at '/metrics': additional properties 'dashboards' not allowed"),
    ({"networkPolicy": {"from": []}}, "at '/networkPolicy': additional properties 'from' not allowed"),
    ({"networkPolicy": {"egress": []}}, "at '/networkPolicy/egress': got array, want object"),
    ({"networkPolicy": {"egress": {"dnsPorts": []}}}, "at '/networkPolicy/egress/dnsPorts': minItems: got 0, want 1"),
    ({"networkPolicy": {"egress": {"apiServerPorts": [0]}}}, "minimum: got 0, want 1"),
    (
        {"metrics": {"authentication": {"enabled": True}}},
        "metrics.tls.secretName must be given where metrics.authentication.enabled is true",
    ),
    ({"metrics": {"tls": {"secret": "a"}}}, "at '/metrics/tls': additional properties 'secret' not allowed"),
    (
        {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
        "metrics.service.enabled must be true where metrics.serviceMonitor.enabled is",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_a_slip_of_the_pen_is_refused_with_its_place(helm: Helm, values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(values)
    assert re.search(message, str(refused.value)), refused.value


def find_objects(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return every object of the schema whose fields are named."""
    if "properties" in schema:
        yield path, schema
        for name, child in schema["properties"].items():
            yield from find_objects(child, f"{path}.{name}")
    if "items" in schema:
        yield from find_objects(schema["items"], f"{path}[]")


def test_every_object_whose_fields_are_ours_refuses_others() -> None:
    # Entries of Kubernetes' own types have fields that only the API server knows.
    theirs = {".extraVolumes[]", ".extraVolumeMounts[]"}
    found = dict(find_objects(SCHEMA))
    assert {path for path, each in found.items() if each.get("additionalProperties") is not False} == theirs


def paths_of(values: Mapping[str, Any], schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        at = f"{path}.{name}"
        child = schema["properties"][name]
        yield at
        if isinstance(value, dict) and "properties" in child:
            yield from paths_of(value, child, at)


INNER = (".config.limits.", ".affinity.", ".resources.", ".global")
"""What a value's entries may be is told by the schema alone; `global` is Helm's own."""


def test_values_and_schema_have_the_same_fields() -> None:
    wanted = {
        f"{path}.{name}" for path, each in find_objects(SCHEMA) for name in each["properties"] if "[]" not in path
    }
    assert {path for path in paths_of(VALUES, SCHEMA) if not path.startswith(INNER)} == {
        path for path in wanted if not path.startswith(INNER)
    }


def test_every_value_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    names = {path.rpartition(".")[2] for path in paths_of(VALUES, SCHEMA) if not path.startswith(INNER)}
    is_explained = {}
    for i, line in enumerate(lines):
        if (found := re.match(r" *([A-Za-z]+):(.*)", line)) and found[1] in names:
            above = i - 1
            while lines[above].lstrip().startswith("#") and "# -- " not in lines[above]:
                above -= 1
            has_children = not found[2] and lines[i + 1].startswith(" ")
            is_explained[found[1]] = "# -- " in lines[above] or has_children or is_explained.get(found[1], False)
    assert set(is_explained) == names
    assert [name for name, explained in is_explained.items() if not explained] == []


def test_limits_are_those_of_the_operator() -> None:
    limits = SCHEMA["properties"]["config"]["properties"]["limits"]["properties"]
    kinds = {int: "count", float: "seconds"}
    expected = {
        to_camel_case(each.name): {"$ref": f"#/definitions/{kinds[type(each.default)]}"} for each in fields(Settings)
    }
    assert limits == expected


def test_config_is_what_the_operator_reads(helm: Helm) -> None:
    config = {
        "trainerImage": "registry.example/trainer@sha256:0",
        "identities": {"shop-ml": [{"uri": "s3://ml/shop", "endpoint": "https://minio.example"}]},
        "endpoints": ["https://*.example"],
        "limits": {"attemptsLimit": 1_000_000, "backoffSeconds": 0.5},
    }
    objects = helm.render_objects({"config": config})
    message = yaml.safe_load(objects["ConfigMap/shop-system/finetune-study-operator-config"]["data"]["operator.yaml"])
    assert message == config
    assert isinstance(message["limits"]["attemptsLimit"], int)


def test_the_chart_is_of_the_version_of_the_project() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project, project)
    assert VALUES["config"]["trainerImage"].endswith(f":{project}")
