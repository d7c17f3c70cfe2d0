"""The CRD on a real API server, and a namespace for studies."""

import secrets
from collections.abc import Iterator

import pytest

from builders.studies_on_a_server import Studies, install_crd
from on_cluster.operators import wait_until
from testcluster.kube import Cluster


@pytest.fixture(scope="session")
def studies(cluster: Cluster) -> Iterator[Studies]:
    """Studies in a namespace of this session's own."""
    install_crd(cluster)
    namespace = cluster.create_namespace(f"studies-{secrets.token_hex(4)}")
    found = Studies(cluster, namespace)
    # kubectl learns of them a moment after the server.
    wait_until(found.are_explained)
    yield found
    cluster.delete_namespace(namespace)
