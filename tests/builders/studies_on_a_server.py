"""Studies on a real API server that has our CRD, and that nobody runs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from on_cluster.operators import wait_until
from study_operator import names
from testcluster.api import ApiError, Object
from testcluster.kube import Cluster

CRD_FILE = Path(__file__).resolve().parents[2] / "manifests/crd/crd.yaml"
CRD: Mapping[str, Any] = yaml.safe_load(CRD_FILE.read_text(encoding="utf-8"))


def install_crd(cluster: Cluster) -> None:
    """Apply the CRD, and wait until studies can be created."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRD_FILE))

    def are_served() -> bool:
        try:
            # Until there is room for them the answer is 404, or 429.
            return cluster.api.get(f"/apis/{names.API_VERSION}/{names.PLURAL}") is not None
        except ApiError:
            return False

    wait_until(are_served)


def in_todays_words(refusal: str) -> str:
    """Return a refusal in the words of the newest release; an older API server has others around a rule."""
    refusal = re.sub(r'Invalid value: "(?:object|array|string|integer|number|boolean)": ', "Invalid value: ", refusal)
    refusal = refusal.replace("may not be longer than", "may not be more than")
    return refusal.replace('of type integer: "number"', 'of type int32: "number"')


class Studies:
    """The studies of one namespace, as an API server with our CRD has them."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._path = f"/apis/finetune.study/v1alpha1/namespaces/{namespace}/finetunestudies"

    def are_explained(self) -> bool:
        """Say whether kubectl can find and explain them; it asks anew, not what it has kept of an earlier answer."""
        listed = self.cluster.kubectl("api-resources", "--api-group=finetune.study", "-o", "name").stdout
        return bool(listed.strip()) and self.cluster.kubectl("explain", "fts.spec", check=False).returncode == 0

    def find_refusal(self, manifest: Mapping[str, Any]) -> str:
        """Return why the server does not take a new study; nothing where it does. Strict, as kubectl asks."""
        try:
            self.cluster.api.create(self._path, manifest, dryRun="All", fieldValidation="Strict")
        except ApiError as error:
            return in_todays_words(error.message)
        return ""

    def create(self, manifest: Mapping[str, Any]) -> Object:
        return self.cluster.api.create(self._path, manifest, fieldValidation="Strict")

    def kubectl_apply(self, manifest: Mapping[str, Any]) -> str:
        """Apply as `kubectl apply` does by default: it computes a patch itself, and keeps a copy of the manifest."""
        # As JSON: Python's YAML leaves the quotes of "1e-4" away, and Go's reads a number then.
        text = json.dumps(manifest)
        return self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", text=text).stdout

    def replace(self, study: Mapping[str, Any], **query: str) -> Object:
        return self.cluster.api.replace(f"{self._path}/{study['metadata']['name']}", study, **query)

    def find_refused_change(self, study: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
        """Return why the server does not take another spec for a study that is there; nothing where it does."""
        try:
            self.replace({**study, "spec": spec}, dryRun="All", fieldValidation="Strict")
        except ApiError as error:
            return in_todays_words(error.message)
        return ""

    def write_status(self, study: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
        """Write a status as the operator does: whole, over the version that was read."""
        path = f"{self._path}/{study['metadata']['name']}/status"
        return self.cluster.api.replace(path, {**study, "status": status}, fieldValidation="Strict")

    def get(self, name: str) -> Object:
        found = self.cluster.api.get(f"{self._path}/{name}")
        assert found is not None
        return found

    def delete(self, name: str) -> None:
        self.cluster.api.delete(f"{self._path}/{name}")
