"""What the chart renders: valid for the API server, sound for linters, and the same rights as the manifests give."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from install.helm import CHART, Helm, by_name
from install.schemas import LOCATION, write_schemas
from on_cluster.operators import HOME, MANIFESTS, read_manifests
from testcluster.kube import Cluster

NAME = "finetune-study-operator"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
EVERYTHING: Mapping[str, Any] = {
    "image": {
        "repository": "registry.example:5000/ml/finetune-study-operator",
        "digest": DIGEST,
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "registry"}],
    "crds": {"keep": False},
    "config": {
        "trainerImage": f"registry.example:5000/ml/trainer@{DIGEST}",
        "identities": {"shop-ml": [{"uri": "s3://ml/shop"}]},
        "endpoints": ["https://minio.example"],
        "limits": {"attemptsLimit": 10},
    },
    "secrets": {"namespaces": ["shop-ml"]},
    "serviceAccount": {
        "name": "studies",
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/studies"},
        "labels": {"team": "ml"},
    },
    "replicas": 3,
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "priorityClassName": "system-cluster-critical",
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "podLabels": {"azure.workload.identity/use": "true"},
    "podAnnotations": {"note": "a"},
    "annotations": {"note": "b"},
    "podSecurityContext": {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [
        {
            "name": "identity",
            "projected": {"sources": [{"serviceAccountToken": {"audience": "sts.amazonaws.com", "path": "token"}}]},
        }
    ],
    "extraVolumeMounts": [{"name": "identity", "mountPath": "/var/run/identity", "readOnly": True}],
    "extraArgs": ["--threads=16"],
    "metrics": {
        "service": {"annotations": {"prometheus.io/scrape": "true"}},
        "tls": {"secretName": "metrics-tls"},
        "authentication": {
            "enabled": True,
            "readers": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}],
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Training"}},
    },
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": {
            "apiServerTo": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
            "objectStoragePorts": [8333],
            "objectStorageTo": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "seaweed"}}}],
            "further": [{"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]}],
        },
    },
}
MATRIX: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "named namespaces": {"watchNamespaces": ["shop-ml", "news-ml"], "secrets": {"everywhere": True}},
    "named namespaces and one's Secrets": {
        "watchNamespaces": ["shop-ml", "news-ml"],
        "secrets": {"namespaces": ["news-ml"]},
    },
    "Secrets everywhere": {"secrets": {"everywhere": True}},
    "nothing that may be left out": {
        "crds": {"enabled": False},
        "serviceAccount": {"create": False, "name": "theirs"},
        "rbac": {"create": False, "aggregate": False},
        "podDisruptionBudget": {"enabled": False},
        "topologySpreadConstraints": [],
        "resources": {},
        "metrics": {"service": {"enabled": False}},
        "networkPolicy": {"enabled": False},
    },
}

COMPLAINTS = {
    "everything": [
        f"[CRITICAL] {NAME}-uninstall/shop-system batch/v1/Job: The pod does not have a matching NetworkPolicy"
    ],
    "nothing that may be left out": [
        f"[CRITICAL] {NAME}/shop-system apps/v1/Deployment: The pod does not have a matching NetworkPolicy",
        f"[CRITICAL] {NAME}/shop-system apps/v1/Deployment: No matching PodDisruptionBudget was found",
    ],
}
"""What kube-score says of somebody's own wish, and of the pod that asks the API server to delete studies, and ends."""

KUBE_SCORE_IGNORES = {
    "container-resources": "the limit of CPU would only slow it down",
    "container-ephemeral-storage-request-and-limit": "an emptyDir for a few temporary files",
    "container-security-context-user-group-id": "the image says the user; values can, too",
    "container-image-pull-policy": "a tag of ours never changes; values can say Always",
    "deployment-has-host-podantiaffinity": "topology spread does it",
    "pod-probes-identical": "one process, one question",
}


@pytest.fixture(scope="session")
def schemas(cluster: Cluster, prometheus_crds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("schemas")
    write_schemas(cluster.api, directory, [*sorted(prometheus_crds.glob("*.yaml")), MANIFESTS / "crd/crd.yaml"])
    return directory


def kubeconform(linters: Path, schemas: Path, text: str) -> str:
    """Return what kubeconform finds wrong."""
    command = [linters / "kubeconform", "-schema-location", f"{schemas}/{LOCATION}"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == (not result.stdout)
    return result.stdout + result.stderr


def kube_score(linters: Path, text: str) -> list[str]:
    """Return what kube-score complains of."""
    ignored = [word for test in KUBE_SCORE_IGNORES for word in ("--ignore-test", test)]
    command = [linters / "kube-score", "score", "--output-format", "ci", *ignored, "-"]
    scored = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return [line for line in scored.stdout.splitlines() if not line.startswith(("[OK]", "[SKIPPED]"))]


@pytest.mark.parametrize("case", MATRIX)
def test_whatever_is_asked_for_is_valid_and_sound(
    helm: Helm, linters: Path, schemas: Path, case: str, tmp_path: Path
) -> None:
    values = MATRIX[case]
    (tmp_path / "lint.yaml").write_text(json.dumps(values))
    helm.run("lint", "--strict", CHART, "--values", tmp_path / "lint.yaml")
    text = helm.render(values)
    assert kubeconform(linters, schemas, text) == ""
    assert kube_score(linters, text) == COMPLAINTS.get(case, [])


@pytest.mark.parametrize("overlay", ["cluster-wide", "namespaced"])
def test_overlays_are_valid_and_sound(cluster: Cluster, linters: Path, schemas: Path, overlay: str) -> None:
    text = cluster.kubectl("kustomize", str(MANIFESTS / "overlays" / overlay)).stdout
    assert kubeconform(linters, schemas, text) == ""
    assert kube_score(linters, text) == []


def test_kubeconform_sees_a_field_that_is_not_there(helm: Helm, linters: Path, schemas: Path) -> None:
    text = helm.render()
    for wrong in ("replicas: 2", "      app.kubernetes.io/name"):
        assert wrong in text
    assert "additional properties 'replica' not allowed" in kubeconform(
        linters, schemas, text.replace("replicas: 2", "replica: 2")
    )


def test_rights_are_those_of_the_manifests(helm: Helm) -> None:
    ours = by_name(
        [*read_manifests(MANIFESTS / "operator/access.yaml"), *read_manifests(MANIFESTS / "operator/people.yaml")]
    )
    chart = helm.render_objects(namespace=HOME)
    kinds = ("ClusterRole/", "Role/", "ClusterRoleBinding/", "RoleBinding/")
    assert {name for name in chart if name.startswith(kinds)} == {name for name in ours if name.startswith(kinds)}
    for name, each in ours.items():
        if name.startswith(kinds):
            assert {part: chart[name].get(part) for part in ("rules", "roleRef", "subjects")} == {
                part: each.get(part) for part in ("rules", "roleRef", "subjects")
            }, name
    for name in (f"ClusterRole/{NAME}-view", f"ClusterRole/{NAME}-edit"):
        assert ours[name]["metadata"]["labels"].items() <= chart[name]["metadata"]["labels"].items()


def test_the_deployment_is_that_of_the_manifests(helm: Helm) -> None:
    [ours] = [each for each in read_manifests(MANIFESTS / "operator/deployment.yaml") if each["kind"] == "Deployment"]
    pods = [
        without_selectors(each["spec"]["template"]["spec"])
        for each in (ours, helm.render_objects()[f"Deployment/shop-system/{NAME}"])
    ]
    assert pods[0] == pods[1]
    config = yaml.safe_load((MANIFESTS / "operator/operator.yaml").read_text())
    assert config == yaml.safe_load((CHART / "values.yaml").read_text())["config"]


def without_selectors(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod without what differs by release, and what Kubernetes would say by itself."""
    pod["containers"][0].pop("imagePullPolicy", None)
    for each in pod["topologySpreadConstraints"]:
        del each["labelSelector"]
    return pod


def test_in_named_namespaces_nothing_of_the_cluster_is_granted(helm: Helm) -> None:
    objects = helm.render_objects(MATRIX["named namespaces and one's Secrets"])
    assert {name for name in objects if name.startswith("Cluster")} == {
        f"ClusterRole/{NAME}-view",
        f"ClusterRole/{NAME}-edit",
    }
    assert {name for name in objects if name.startswith("RoleBinding")} == {
        f"RoleBinding/shop-system/{NAME}",
        f"RoleBinding/shop-ml/{NAME}-studies",
        f"RoleBinding/news-ml/{NAME}-studies",
        f"RoleBinding/news-ml/{NAME}-bucket-secrets",
    }
    [container] = objects[f"Deployment/shop-system/{NAME}"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][1:] == ["--namespace=shop-ml", "--namespace=news-ml"]


def test_everything_that_is_asked_for_arrives(helm: Helm) -> None:
    objects = helm.render_objects(EVERYTHING)
    deployment = objects[f"Deployment/shop-system/{NAME}"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert deployment["spec"]["replicas"] == 3
    assert container["image"] == f"registry.example:5000/ml/finetune-study-operator@{DIGEST}"
    assert container["env"][-1] == EVERYTHING["extraEnv"][0]
    assert container["envFrom"] == EVERYTHING["extraEnvFrom"]
    assert container["volumeMounts"][-1] == EVERYTHING["extraVolumeMounts"][0]
    assert pod["volumes"][-1] == EVERYTHING["extraVolumes"][0]
    assert container["args"] == [
        "--config=/etc/finetune-study/operator.yaml",
        "--metrics-certificates=/etc/finetune-study-metrics",
        "--metrics-authentication",
        "--threads=16",
    ]
    for field in ("imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations", "affinity"):
        assert pod[field] == EVERYTHING[field]
    assert pod["serviceAccountName"] == "studies"
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["fsGroup"] == 65532
    assert deployment["spec"]["template"]["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    [spread] = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"] == deployment["spec"]["selector"]
    policy = objects[f"NetworkPolicy/shop-system/{NAME}"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][1]["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]
    message = EVERYTHING["networkPolicy"]["egress"]
    _, api_server, stores, *further = policy["egress"]
    assert api_server["to"] == message["apiServerTo"]
    assert (stores["to"], stores["ports"]) == (message["objectStorageTo"], [{"port": 8333, "protocol": "TCP"}])
    assert further == message["further"]
    account = objects["ServiceAccount/shop-system/studies"]
    assert account["metadata"]["annotations"] == EVERYTHING["serviceAccount"]["annotations"]
    assert objects[f"RoleBinding/shop-ml/{NAME}-secrets"]["subjects"][0]["name"] == "studies"
    assert "annotations" not in objects["CustomResourceDefinition/finetunestudies.finetune.study"]["metadata"]


def test_metrics_with_tls_and_tokens_are_scraped_so(helm: Helm) -> None:
    objects = helm.render_objects(EVERYTHING)
    [endpoint] = objects[f"ServiceMonitor/shop-system/{NAME}"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {
        "ca": {"secret": {"name": "metrics-tls", "key": "ca.crt"}},
        "serverName": f"{NAME}-metrics.shop-system.svc",
    }
    assert endpoint["bearerTokenFile"] == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert objects[f"ClusterRoleBinding/{NAME}-auth-delegator"]["roleRef"]["name"] == "system:auth-delegator"
    assert objects[f"ClusterRoleBinding/{NAME}-auth-delegator"]["subjects"][0]["name"] == "studies"
    [rule] = objects[f"ClusterRole/{NAME}-metrics-reader"]["rules"]
    assert rule == {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}
    readers = EVERYTHING["metrics"]["authentication"]["readers"]
    assert objects[f"ClusterRoleBinding/{NAME}-metrics-reader"]["subjects"] == readers
    pod = objects[f"Deployment/shop-system/{NAME}"]["spec"]["template"]["spec"]
    assert {"name": "metrics-tls", "secret": {"secretName": "metrics-tls"}} in pod["volumes"]
    theirs = {"tlsConfig": {"insecureSkipVerify": True}, "authorization": {"credentials": {"name": "a", "key": "b"}}}
    monitored = {**EVERYTHING["metrics"], "serviceMonitor": {"enabled": True, **theirs}}
    objects = helm.render_objects({**EVERYTHING, "metrics": monitored})
    [endpoint] = objects[f"ServiceMonitor/shop-system/{NAME}"]["spec"]["endpoints"]
    assert theirs.items() <= endpoint.items()
    assert "bearerTokenFile" not in endpoint


def test_by_default_its_pods_talk_to_name_service_api_server_and_stores_alone(helm: Helm) -> None:
    policies = [
        helm.render_objects()[f"NetworkPolicy/shop-system/{NAME}"],
        yaml.safe_load((MANIFESTS / "operator/network.yaml").read_text()),
    ]
    rendered, written = (policy["spec"] for policy in policies)
    assert rendered == {**written, "podSelector": rendered["podSelector"]}
    deployment = helm.render_objects()[f"Deployment/shop-system/{NAME}"]["spec"]["template"]
    assert rendered["podSelector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    named = {port["name"] for port in deployment["spec"]["containers"][0]["ports"]}
    assert {port["port"] for rule in rendered["ingress"] for port in rule["ports"]} == named
    assert {port["port"] for rule in rendered["egress"] for port in rule["ports"]} == {53, 5353, 443, 6443, 9000}
    # Nothing at the addresses at which clouds give credentials to whoever asks, and no plain HTTP.
    assert not any(port["port"] == 80 for rule in rendered["egress"] for port in rule["ports"])


@pytest.mark.parametrize(
    ("values", "kinds"),
    [({"enabled": False}, None), ({"egress": {"enabled": False}}, ["Ingress"]), ({}, ["Ingress", "Egress"])],
)
def test_the_network_policy_can_be_narrowed_to_ingress_or_left_out(
    helm: Helm, values: Mapping[str, Any], kinds: list[str] | None
) -> None:
    policy = helm.render_objects({"networkPolicy": values}).get(f"NetworkPolicy/shop-system/{NAME}")
    assert (policy and policy["spec"]["policyTypes"]) == kinds


def test_alerts_and_dashboard_are_the_files_as_they_are(helm: Helm) -> None:
    objects = helm.render_objects(EVERYTHING)
    alerts = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    assert objects[f"PrometheusRule/shop-system/{NAME}"]["spec"] == alerts
    [dashboard] = objects[f"ConfigMap/shop-system/{NAME}-dashboard"]["data"].values()
    assert json.loads(dashboard) == json.loads((CHART / "files/dashboard.json").read_text())


def test_pods_start_anew_with_another_configuration_and_not_with_another_chart(helm: Helm) -> None:
    def template(values: Mapping[str, Any] | None = None, *arguments: str) -> Any:
        objects = by_name(yaml.safe_load_all(helm.render(values, *arguments)))
        return objects[f"Deployment/shop-system/{NAME}"]["spec"]["template"]

    tagged = {"image": {"tag": "1"}}
    assert template(tagged) == template({**tagged, "metrics": {"dashboard": {"enabled": True}}})
    assert template() != template({"config": {"limits": {"attemptsLimit": 7}}})
    packed = by_name(yaml.safe_load_all(helm.run("template", "a", helm.package("9.9.9"), values=tagged)))
    packed_now = by_name(yaml.safe_load_all(helm.run("template", "a", CHART, values=tagged)))
    found = [each[f"Deployment/default/{NAME}"]["spec"]["template"] for each in (packed, packed_now)]
    assert found[0] == found[1]


def test_a_kept_api_carries_helms_annotation(helm: Helm) -> None:
    crd = helm.render_objects()["CustomResourceDefinition/finetunestudies.finetune.study"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    [ours] = read_manifests(MANIFESTS / "crd/crd.yaml")
    assert crd["spec"] == ours["spec"]
