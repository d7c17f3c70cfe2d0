"""A cluster that somebody has set is used where it is on this machine, and left alone everywhere else."""

from pathlib import Path

import pytest
import yaml

from testcluster import fixtures


def write_kubeconfig(path: Path, server: str) -> Path:
    content = {
        "clusters": [{"name": "a", "cluster": {"server": server}}],
        "users": [{"name": "a", "user": {"token": "words"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("server", ["https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443"])
def test_a_cluster_on_this_machine_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", server)))
    found = fixtures.find_given_cluster()
    assert found is not None and found.url == server
    assert fixtures.pytest_report_header() == []


def test_a_cluster_elsewhere_is_left_alone_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_kubeconfig(tmp_path / "config", "https://production.example:6443")
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert fixtures.find_given_cluster() is None
    expected = f"cluster: KUBECONFIG ({path}) names no server on this machine, so that tests start one of their own"
    assert fixtures.pytest_report_header() == [expected]


def test_without_a_cluster_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert fixtures.find_given_cluster() is None
    assert fixtures.pytest_report_header() == []
