"""What `make release` makes can be installed: the wheel where nothing else is, the chart from an OCI registry."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from install.helm import Helm
from on_cluster.operators import wait_until
from testcluster import build
from testcluster.fixtures import FindPrograms
from testcluster.kube import ControlPlane

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "7.8.9-rc.1"
CHART = f"finetune-study-operator-{VERSION}.tgz"
UV = shutil.which("uv") or str(REPOSITORY / ".uv/bin/uv")

pytestmark = pytest.mark.slow


def make_release(
    out: Path, helm: Path | str, version: str = VERSION, images: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/release.py", version, "--out", out, "--helm", helm, "--uv", UV]
    command += ["--registry", "images.example/ml", *(["--images", images] if images is not None else [])]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def release(helm_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("release")
    made = make_release(out, helm_program)
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture
def registry(programs: FindPrograms) -> Iterator[str]:
    """Address of an OCI registry on this machine."""
    crane = programs(lambda: build.build(build.REGISTRY)) / "crane"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([crane, "registry", "serve", "--address", address], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: subprocess.run([crane, "catalog", "--insecure", address], check=False).returncode == 0)
        yield address
    finally:
        server.terminate()
        server.wait()


def test_every_file_is_in_the_checksums(release: Path) -> None:
    lines = dict(reversed(line.split("  ")) for line in (release / "SHA256SUMS").read_text().splitlines())
    assert set(lines) == {file.name for file in release.iterdir()} - {"SHA256SUMS"}
    for name, digest in lines.items():
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest
    kinds = {re.sub(r"-[\d.]+-?(rc\.?1)?[\w.-]*(?=\.)", "", name) for name in lines}
    assert {"finetune_study.whl", "finetune-study-operator.tgz", "kubectl-finetune.gz", "finetune.yaml"} <= kinds


def test_the_wheel_holds_what_its_commands_need_and_no_tests(release: Path) -> None:
    (wheel,) = release.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} >= {"study_operator", "trial_trainer"}
    assert not [name for name in names if name.startswith(("tests", "tools", "benchmarks"))]
    assert any(name.endswith("py.typed") for name in names)


def test_the_wheel_runs_where_nothing_else_is_installed(release: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*command: str | Path, cwd: Path = tmp_path) -> str:
        ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def install(*packages: str | Path) -> None:
        # The working copy's environment was made of the same pins, so that they lie in uv's cache.
        run(UV, "pip", "install", "--offline", "--quiet", "--no-deps", "--python", place, *packages)

    run(UV, "venv", "--quiet", "--python", sys.executable, place)
    for part in ("torch", "trainer", "operator"):
        install("--require-hashes", "-r", release / f"requirements-{part}.txt")
    install(*release.glob("*.whl"))

    manifest = REPOSITORY / "manifests/samples/bookings-quick.yaml"
    planned = run(place / "bin/finetune-study", "plan", manifest)
    assert "jobs" in planned
    assert run(place / "bin/kubectl-finetune", "plan", manifest) == planned
    assert "usage" in run(place / "bin/finetune-study-operator", "--help")
    found = run(place / "bin/python", "-c", "import importlib.metadata as m; print(m.version('finetune-study'))")
    assert found.strip() == "7.8.9rc1"


def test_the_chart_installs_from_a_registry(
    release: Path, registry: str, plane: ControlPlane, plane_helm: Helm
) -> None:
    plane_helm.run("push", release / CHART, f"oci://{registry}/charts", "--plain-http")
    address = f"oci://{registry}/charts/finetune-study-operator"
    plane_helm.run(
        *("install", "finetune-study", address, "--version", VERSION, "--plain-http"),
        *("--namespace", "release-system", "--create-namespace"),
    )
    deployed = plane.kubectl(
        *("get", "deployment", "finetune-study-operator", "-n", "release-system", "-o"),
        "jsonpath={.spec.template.spec.containers[0].image}",
    )
    assert deployed.stdout == f"images.example/ml/finetune-study-operator:{VERSION}"
    configured = plane.kubectl("get", "configmap", "-n", "release-system", "-o", "yaml").stdout
    assert f"images.example/ml/finetune-study-trainer:{VERSION}" in configured
    assert plane.kubectl("get", "crd", "finetunestudies.finetune.study").returncode == 0


def annotations_of(release: Path) -> dict[str, Any]:
    with tarfile.open(release / CHART) as packed:
        member = packed.extractfile("finetune-study-operator/Chart.yaml")
        assert member is not None
        chart = yaml.safe_load(member.read())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    return {name.removeprefix("artifacthub.io/"): yaml.safe_load(text) for name, text in chart["annotations"].items()}


def test_images_are_labelled_with_version_and_commit(helm_program: Path, tmp_path: Path) -> None:
    # Stands for docker: writes down what it is asked to build, and saves nothing.
    tool, asked = tmp_path / "docker", tmp_path / "asked"
    tool.write_text(f'#!/bin/sh\ncase $1 in build) echo "$@" >> {asked} ;; save) touch "$3" ;; esac\n')
    tool.chmod(0o755)
    made = make_release(tmp_path / "out", helm_program, images=tool)
    assert made.returncode == 0, made.stderr
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    builds = asked.read_text().splitlines()
    for name, line in zip(("operator", "trainer"), builds, strict=True):
        assert f"--tag finetune-study-{name}:{VERSION}" in line
        assert f"VERSION={VERSION} --build-arg REVISION={commit.stdout.strip()}" in line
    assert {f"finetune-study-{name}-{VERSION}.tar" for name in ("operator", "trainer")} < {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_the_chart_tells_artifact_hub_of_crds_examples_images_and_changes(release: Path) -> None:
    annotations = annotations_of(release)
    (crd,) = annotations["crds"]
    assert (crd["kind"], crd["name"], crd["version"]) == (
        "FineTuneStudy",
        "finetunestudies.finetune.study",
        "v1alpha1",
    )
    assert annotations["crdsExamples"][0]["kind"] == "FineTuneStudy"
    assert {image["image"] for image in annotations["images"]} == {
        f"images.example/ml/finetune-study-{name}:{VERSION}" for name in ("operator", "trainer")
    }
    assert {change["kind"] for change in annotations["changes"]} >= {"added"}
    assert all(change["description"] for change in annotations["changes"])
    assert annotations["prerelease"] is True


def test_the_notes_are_what_the_changelog_says_of_this_version_alone(release: Path) -> None:
    changelog, notes = (REPOSITORY / "CHANGELOG.md").read_text(), (release / "notes.md").read_text()

    assert notes.strip() in changelog and "### Added" in notes
    assert "## [" not in notes and len(notes) < len(changelog)


def test_krew_finds_the_plugin_that_is_in_the_archive(release: Path) -> None:
    plugin = yaml.safe_load((release / "finetune.yaml").read_text())
    assert (plugin["metadata"]["name"], plugin["spec"]["version"]) == ("finetune", f"v{VERSION}")
    (platform,) = plugin["spec"]["platforms"]
    archive = release / platform["uri"].rpartition("/")[2]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == platform["sha256"]
    with tarfile.open(archive) as packed:
        assert packed.getmember(platform["bin"]).mode & 0o111
        assert {member.rpartition(".")[2] for member in packed.getnames()} >= {"whl", "txt"}


def test_the_workflow_publishes_with_targets_that_exist() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/release.yaml").read_text())
    commands = "\n".join(step.get("run", "") for step in workflow["jobs"]["release"]["steps"])
    assert "make release VERSION=" in commands
    asked = subprocess.run(
        ["make", "release", "VERSION=1.2.3", "--dry-run"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert asked.returncode == 0


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        pytest.param("1.2", "VERSION must be a semantic version such as 0.2.0, got '1.2'", id="two numbers"),
        pytest.param("", "VERSION must be a semantic version such as 0.2.0, got ''", id="none"),
        pytest.param("1.2.3+build", "VERSION must be a semantic version", id="no tag of an image"),
    ],
)
def test_a_version_that_is_none_is_refused(version: str, sentence: str, tmp_path: Path) -> None:
    refused = make_release(tmp_path / "out", "helm", version)
    assert refused.returncode == 1
    assert sentence in refused.stderr


def test_a_release_is_made_once_and_needs_its_programs(release: Path, tmp_path: Path) -> None:
    again = make_release(release, "helm")
    assert again.returncode == 1
    assert "must be empty or not be there" in again.stderr
    without_helm = make_release(tmp_path / "out", tmp_path / "no-helm")
    assert without_helm.returncode == 1
    assert "no-helm cannot be run" in without_helm.stderr
