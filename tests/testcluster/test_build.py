"""Programs are built once, appear whole or not at all, and where they can't be had one line says why."""

import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testcluster import build
from testcluster.build import KUBERNETES, PROMETHEUS_OPERATOR, VERSITYGW, BuildError, GoMissingError

GO = """#!/bin/sh
# Stands for Go: notes each build, and makes the programs slowly.
case "$*" in
    "env GOVERSION") echo {version}; exit 0 ;;
    "env GOTOOLCHAIN") echo local; exit 0 ;;
esac
case "$*" in
    "mod download -json "*) echo '{{"Dir": "{notes}.module"}}'; exit 0 ;;
esac
echo build >> {notes}
while [ "$1" != -o ]; do shift; done
place=$2
shift 2
sleep 0.2
for package; do
    case $package in */v3) package=${{package%/v3}} ;; esac
    printf '#!/bin/sh\\n' > "$place/$(basename "$package")"
    chmod +x "$place/$(basename "$package")"
done
{end}
"""


class Machine:
    """A machine with an empty cache and a Go of ours."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.notes = directory / "notes"
        self._programs = directory / "bin"
        self._programs.mkdir()
        patch.setenv("FINETUNE_STUDY_CACHE", str(directory / "cache"))
        patch.delenv("KUBEBUILDER_ASSETS", raising=False)
        patch.setenv("PATH", f"{self._programs}:/usr/bin:/bin")

    def install_go(self, version: str = "go1.99.0", end: str = "exit 0") -> None:
        go = self._programs / "go"
        go.write_text(GO.format(version=version, notes=self.notes, end=end))
        go.chmod(go.stat().st_mode | stat.S_IXUSR)

    def count_builds(self) -> int:
        return len(self.notes.read_text().splitlines()) if self.notes.exists() else 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_module_is_built_once(machine: Machine) -> None:
    machine.install_go()
    first = build.build(KUBERNETES)
    assert {file.name for file in first.iterdir() if not file.name.startswith(".")} == set(KUBERNETES.packages)
    assert build.build(KUBERNETES) == first
    assert machine.count_builds() == 1


def test_builders_at_the_same_time_build_once(machine: Machine) -> None:
    machine.install_go()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(build.build, [KUBERNETES] * 4))
    assert found == {KUBERNETES.find_directory()}
    assert machine.count_builds() == 1


def test_a_build_that_breaks_leaves_no_program_and_its_last_line(machine: Machine) -> None:
    machine.install_go(end="echo one line; echo no space left on device >&2; exit 1")
    with pytest.raises(BuildError, match=r"^go build of versitygw failed: no space left on device$"):
        build.build(VERSITYGW)
    assert [file.name for file in VERSITYGW.find_directory().iterdir()] == [".lock"]


def test_what_a_killed_builder_left_is_cleared_away(machine: Machine) -> None:
    machine.install_go()
    left_behind = VERSITYGW.find_directory() / ".build-killed"
    left_behind.mkdir(parents=True)
    (left_behind / "versitygw").write_text("half")
    directory = build.build(VERSITYGW)
    assert not left_behind.exists()
    assert (directory / "versitygw").read_text() == "#!/bin/sh\n"


def test_the_programs_of_a_node_are_built_only_when_asked_for(machine: Machine) -> None:
    machine.install_go()
    directory = build.build(KUBERNETES)
    assert not (directory / "kubelet").exists()
    assert build.build(KUBERNETES, with_extra=True) == directory
    assert (directory / "kubelet").exists() and (directory / "kube-proxy").exists()


def test_files_of_a_module_are_taken_as_they_are(machine: Machine) -> None:
    machine.install_go()
    [source] = {source.partition("//")[2] for file, source in PROMETHEUS_OPERATOR.files.items() if "rules" in file}
    for each in PROMETHEUS_OPERATOR.files.values():
        fetched = machine.notes.with_suffix(".module") / each.partition("//")[2]
        fetched.parent.mkdir(parents=True, exist_ok=True)
        fetched.write_text(f"what is in {fetched.name}")
    directory = build.build(PROMETHEUS_OPERATOR)
    assert (directory / "prometheusrules.yaml").read_text() == f"what is in {Path(source).name}"
    assert machine.count_builds() == 0


def test_another_dependency_is_another_directory(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = VERSITYGW.find_directory()
    (tmp_path / "versitygw").mkdir()
    for name in ("go.mod", "go.sum"):
        (tmp_path / "versitygw" / name).write_bytes((build.HERE / "versitygw" / name).read_bytes())
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert VERSITYGW.find_directory() == before
    with (tmp_path / "versitygw" / "go.sum").open("a") as file:
        file.write("one more\n")
    assert VERSITYGW.find_directory() != before


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, r"building kubernetes needs Go 1\.26 or newer, and there is no `go` here"),
        ("go1.19.8", r"building kubernetes needs Go 1\.26 or newer, and this is go1\.19\.8"),
    ],
    ids=["no Go", "Go of Debian bookworm"],
)
def test_where_go_will_not_do_one_line_says_so(machine: Machine, version: str | None, sentence: str) -> None:
    if version:
        machine.install_go(version)
    else:
        # Without the system's own.
        os.environ["PATH"] = os.environ["PATH"].split(":")[0]
    with pytest.raises(GoMissingError, match=f"^{sentence}$"):
        build.build(KUBERNETES)


def test_the_command_leaves_it_to_the_tests_to_be_skipped_where_there_is_no_go(machine: Machine) -> None:
    program = [sys.executable, str(build.HERE / "build.py")]
    result = subprocess.run(
        program, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "no test cluster: building kubernetes needs Go 1.26 or newer, and there is no `go` here" in result.stdout


def test_assets_that_are_given_are_used_and_nothing_is_built(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    for program in ("etcd", "kube-apiserver", "kubectl"):
        (assets / program).write_text("#!/bin/sh\n")
        (assets / program).chmod(0o755)
    with pytest.raises(BuildError, match=r"lacks kube-controller-manager, kube-scheduler$"):
        build.find_kubernetes()
    for program in ("kube-controller-manager", "kube-scheduler"):
        (assets / program).write_text("#!/bin/sh\n")
        (assets / program).chmod(0o755)
    assert build.find_kubernetes() == assets


@pytest.mark.parametrize("module", build.MODULES, ids=lambda module: module.directory)
def test_modules_name_every_program_and_no_proxy(module: build.Module) -> None:
    text = (build.HERE / module.directory / "go.mod").read_text()
    for package in {**module.packages, **module.extra_packages}.values():
        assert f"{package}\n" in text
    for source in module.files.values():
        assert re.search(rf"^(require |\t){re.escape(source.partition('//')[0])} v", text, re.MULTILINE)
    assert "://" not in text


def test_the_version_that_the_programs_tell_is_the_one_that_is_required() -> None:
    assert f"k8s.io/kubernetes {build.KUBERNETES_VERSION}" in (build.HERE / "kubernetes/go.mod").read_text()
