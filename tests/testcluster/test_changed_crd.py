"""What asks for a kind whose CRD is being changed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from builders.studies_on_a_server import CRD, install_crd
from testcluster.kube import Cluster

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.mark.slow
def test_requests_go_through_while_a_crd_is_changed(cluster: Cluster, namespace: str) -> None:
    install_crd(cluster)
    path = f"/apis/finetune.study/v1alpha1/namespaces/{namespace}/finetunestudies"
    trials = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/trials/description"
    before = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["trials"]

    def change(text: str) -> None:
        cluster.api.patch(
            f"{CRDS}/{CRD['metadata']['name']}", [{"op": "add", "path": trials, "value": text}], kind="json"
        )

    def look(_: int) -> int:
        return sum(cluster.api.call("GET", path)["kind"] == "FineTuneStudyList" for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        looks = pool.map(look, range(4))
        for number in range(10):
            change(f"change {number}")
        change(before["description"])
        assert sum(looks) == 400
