"""The CRD on a real API server, and a namespace for studies."""

import secrets
import time
from collections.abc import Iterator

import pytest

from cluster.api import Object
from cluster.kube import Cluster
from studies_on_a_server import CRD, CRD_FILE, Studies


@pytest.fixture(scope="session")
def studies(cluster: Cluster) -> Iterator[Studies]:
    """Studies in a namespace of this session's own."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRD_FILE))
    name = CRD["metadata"]["name"]
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    cluster.api.wait_for(path, name, _is_established)
    namespace = cluster.create_namespace(f"studies-{secrets.token_hex(4)}")
    found = Studies(cluster, namespace)
    # Established, it is served a moment later.
    while not (found.are_served() and found.are_explained()):
        time.sleep(0.05)
    yield found
    cluster.delete_namespace(namespace)


def _is_established(crd: Object | None) -> bool:
    conditions = (crd or {}).get("status", {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
