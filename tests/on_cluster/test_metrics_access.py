"""Who may scrape an operator, as a real API server evaluates tokens and rights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3

from on_cluster.operators import NAME, OperatorProcess, wait_until
from testcluster.kube import Authority, Cluster

READER = "metrics-reader"


@contextlib.contextmanager
def bound(cluster: Cluster, name: str, role: str, account: str, namespace: str) -> Iterator[None]:
    """Bind a role of the cluster to a service account."""
    cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
    )
    try:
        yield
    finally:
        cluster.api.delete(f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}")


def test_only_who_may_get_the_path_scrapes_an_operator_that_asks_for_tokens(
    cluster: Cluster, namespace: str, make_operator: Callable[..., OperatorProcess], home: Path, tmp_path: Path
) -> None:
    ca = tmp_path / "ca"
    ca.mkdir()
    for name, content in zip(("tls.crt", "tls.key"), Authority.load(ca).issue("operator", ()), strict=True):
        (tmp_path / name).write_bytes(content)
    role = f"{READER}-{namespace}"
    cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
        },
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
            for name in ("prometheus", "somebody")
        ),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.api.delete, f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")
        stack.enter_context(bound(cluster, role, role, "prometheus", namespace))
        stack.enter_context(bound(cluster, f"{role}-delegator", "system:auth-delegator", NAME, namespace))
        operator = OperatorProcess(
            home,
            tmp_path / "operator",
            config={},
            arguments=[
                *("--namespace", namespace, "--lease-namespace", namespace),
                f"--metrics-certificates={tmp_path}",
                "--metrics-authentication",
            ],
        )
        stack.callback(operator.kill)
        port = operator.wait_until_says(r"metrics: port (\d+)")[1]
        url = f"https://127.0.0.1:{port}/metrics"
        pool = stack.enter_context(urllib3.PoolManager(ca_certs=str(ca / "ca.crt"), retries=False, timeout=10.0))

        def ask(token: str | None) -> Any:
            return pool.request("GET", url, headers={} if token is None else {"Authorization": f"Bearer {token}"})

        reader, other = (cluster.service_account_token(namespace, name) for name in ("prometheus", "somebody"))
        # An authorizer learns late of what was just bound.
        wait_until(lambda: ask(reader).status == 200, seconds=60)
        assert b"finetune_study_operator_leader" in ask(reader).data
        assert (ask(other).status, ask(None).status, ask("of.no.one").status) == (403, 401, 401)
        assert reader not in operator.log
