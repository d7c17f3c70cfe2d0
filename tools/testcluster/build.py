"""Builds the programs that cluster tests need, once, from the Go modules beside this file.

    python tools/testcluster/build.py [--node]         # --node: kubelet and kube-proxy too, for a real node by hand

The programs of a module lie in `<cache>/<module>/<hash of go.mod, go.sum and flags>/`, where the cache is
`FINETUNE_STUDY_CACHE`, or `.cache` of the working copy. A first build takes about twenty minutes on two cores. Any
number of builders may run at once: one builds, the others wait, and a program gets its name only when it is whole.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
KUBERNETES_VERSION = "v1.36.3"
HELM_VERSION = "v3.22.0"


class BuildError(Exception):
    """The programs can't be built, and should be. The message is one line."""


class GoMissingError(BuildError):
    """There is no Go here, or it is too old: what needs the programs is skipped, and says so in one line."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One `go.mod` and the programs that are built from it."""

    directory: str
    """Beside this file; also the name in the cache."""
    packages: Mapping[str, str]
    """Package by program."""
    extra_packages: Mapping[str, str] = field(default_factory=dict)
    """Programs that no test needs."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that are taken as they are: by name, the required module and the path in it, with `//` between them."""
    linker_flags: str = "-s -w"
    patches: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """By program: a text that it holds once, and one of the same length in its place."""
    tags: str = ""
    """What is built in or left out, with commas between."""

    def find_directory(self) -> Path:
        """Return where the programs lie, or will."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((HERE / self.directory / name).read_bytes())
        digest.update(f"{self.linker_flags}{self.tags}{dict(self.patches) or ''}".encode())
        cache = os.environ.get("FINETUNE_STUDY_CACHE") or REPOSITORY / ".cache"
        return Path(cache).absolute() / self.directory / digest.hexdigest()[:16]


def _kubernetes_flags() -> str:
    """Set what a Kubernetes build sets: without it the server takes itself for v0.0.0."""
    major, minor = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())


def _helm_flags() -> str:
    """Set what a Helm build sets: without it charts that are rendered or linted are for Kubernetes 1.20."""
    major, minor = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]
    values = {
        "internal/version.version": HELM_VERSION,
        **{
            f"pkg/{package}.k8sVersion{name}": value
            for package in ("chartutil", "lint/rules")
            for name, value in (("Major", major), ("Minor", minor))
        },
    }
    return " ".join(f"-X helm.sh/helm/v3/{name}={value}" for name, value in values.items())


KUBERNETES = Module(
    directory="kubernetes",
    packages={
        "etcd": "go.etcd.io/etcd/server/v3",
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    },
    extra_packages={
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    },
    linker_flags=f"-s -w {_kubernetes_flags()}",
)
VERSITYGW = Module(
    directory="versitygw",
    packages={"versitygw": "github.com/versity/versitygw/cmd/versitygw"},
)
HELM = Module(
    directory="helm",
    packages={"helm": "helm.sh/helm/v3/cmd/helm"},
    linker_flags=f"-s -w {_helm_flags()}",
)
LINTERS = Module(
    directory="linters",
    packages={
        "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
        "kube-score": "github.com/zegl/kube-score/cmd/kube-score",
        "glua": "github.com/yuin/gopher-lua/cmd/glua",
    },
)
PROMETHEUS_OPERATOR = Module(
    directory="prometheus_operator",
    packages={},
    files={
        f"{plural}.yaml": (
            "github.com/prometheus-operator/prometheus-operator"
            f"//example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml"
        )
        for plural in ("servicemonitors", "prometheusrules")
    },
)
PROMETHEUS = Module(
    directory="prometheus",
    packages={"promtool": "github.com/prometheus/prometheus/cmd/promtool"},
    # Without the clients of every cloud, which take half of the build: rules are tested here, and no target is found.
    tags="remove_all_sd",
)
KUEUE = Module(
    directory="kueue",
    packages={"kueue": "sigs.k8s.io/kueue/cmd/kueue"},
    files={
        **{
            f"crd-{plural}.yaml": f"sigs.k8s.io/kueue//config/components/crd/bases/kueue.x-k8s.io_{plural}.yaml"
            for plural in (
                "admissionchecks",
                "clusterqueues",
                "cohorts",
                "localqueues",
                "multikueueclusters",
                "multikueueconfigs",
                "provisioningrequestconfigs",
                "resourceflavors",
                "topologies",
                "workloadpriorityclasses",
                "workloads",
            )
        },
        "webhooks.yaml": "sigs.k8s.io/kueue//config/components/webhook/manifests.yaml",
    },
    # It wants a certificate at this place of the machine, for metrics that it does not serve here; now it looks for it
    # where it is started.
    patches={"kueue": (b"/etc/kueue/metrics/certs", b"./" * 12)},
)
KSTATUS = Module(
    directory="kstatus",
    packages={"kapply": "sigs.k8s.io/cli-utils/cmd"},
)
REGISTRY = Module(
    directory="registry",
    packages={"crane": "github.com/google/go-containerregistry/cmd/crane"},
)
MODULES = (KUBERNETES, VERSITYGW, HELM, LINTERS, KSTATUS, PROMETHEUS_OPERATOR, PROMETHEUS, KUEUE, REGISTRY)


def find_kubernetes() -> Path:
    """Return the directory with etcd and Kubernetes' programs: `KUBEBUILDER_ASSETS`, or built here.

    Raises:
        BuildError: `KUBEBUILDER_ASSETS` lacks some of them, or they can't be built.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return build(KUBERNETES)
    if missing := _missing(Path(assets), KUBERNETES.packages):
        raise BuildError(
            f"KUBEBUILDER_ASSETS must hold {', '.join(KUBERNETES.packages)}; {assets} lacks {', '.join(missing)}"
        )
    return Path(assets)


def build(module: Module, *, with_extra: bool = False) -> Path:
    """Return the directory with a module's programs, built now if need be.

    Raises:
        GoMissingError: There is no Go here, or it is too old.
        BuildError: The build fails.
    """
    packages = {**module.packages, **(module.extra_packages if with_extra else {})}
    directory = module.find_directory()
    if _is_whole(directory, packages, module.files):
        return directory
    _require_go(module)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := _missing(directory, packages):
            print(f"building {module.directory}: minutes, once", file=sys.stderr, flush=True)
            _build_programs(module, {program: packages[program] for program in missing}, directory)
        if not _is_whole(directory, packages, module.files):
            _take_files(module, directory)
    return directory


def _missing(directory: Path, programs: Mapping[str, str]) -> list[str]:
    return [program for program in programs if not os.access(directory / program, os.X_OK)]


def _is_whole(directory: Path, programs: Mapping[str, str], files: Mapping[str, str]) -> bool:
    return not _missing(directory, programs) and all((directory / file).exists() for file in files)


def _require_go(module: Module) -> None:
    wanted = re.search(r"^go ([\d.]+)", _read_go_mod(module), re.MULTILINE)
    assert wanted is not None
    release = wanted[1].removesuffix(".0")
    go = shutil.which("go")
    if go is None:
        raise GoMissingError(f"building {module.directory} needs Go {release} or newer, and there is no `go` here")
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.match(r"go([\d.]+)", version)
    # A Go that may fetch toolchains gets the one that go.mod names by itself.
    toolchain = subprocess.run([go, "env", "GOTOOLCHAIN"], capture_output=True, text=True, check=False).stdout.strip()
    is_old = found is None or _numbers(found[1]) < _numbers(release)
    if is_old and toolchain.startswith("local"):
        found_release = version or "no Go"
        raise GoMissingError(f"building {module.directory} needs Go {release} or newer, and this is {found_release}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".") if number)


def _build_programs(module: Module, packages: Mapping[str, str], directory: Path) -> None:
    for left_behind in directory.glob(".build-*"):
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as place:
        flags = [
            "-trimpath",
            "-buildvcs=false",
            "-tags",
            module.tags,
            "-ldflags",
            module.linker_flags,
            "-o",
            f"{place}/",
        ]
        _run_go(["build", *flags, *packages.values()], module)
        for program, package in packages.items():
            # Go names a program after the last element of its path that is no version.
            built = [part for part in package.split("/") if not re.fullmatch(r"v\d+", part)][-1]
            if program in module.patches:
                _patch(Path(place) / built, *module.patches[program])
            os.replace(Path(place) / built, directory / program)


def _patch(program: Path, old: bytes, new: bytes) -> None:
    content = program.read_bytes()
    if content.count(old) != 1 or len(old) != len(new):
        raise BuildError(f"{program.name} must hold {old!r} once, and {new!r} must be as long")
    program.write_bytes(content.replace(old, new))


def _take_files(module: Module, directory: Path) -> None:
    for file, source in module.files.items():
        shutil.copyfile(_find_source(source, module), directory / f".{file}")
        os.replace(directory / f".{file}", directory / file)


def _find_source(source: str, module: Module) -> Path:
    """Return a file of a module, `module//path`: fetched once, and its hash compared to the one in go.sum."""
    name, _, path = source.partition("//")
    return Path(json.loads(_run_go(["mod", "download", "-json", name], module))["Dir"]) / path


def _read_go_mod(module: Module) -> str:
    return (HERE / module.directory / "go.mod").read_text()


def _run_go(arguments: Sequence[str], module: Module) -> str:
    # Static programs: they run wherever the cache is mounted.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    result = subprocess.run(
        ["go", *arguments],
        cwd=HERE / module.directory,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"go build of {module.directory} failed: {last}")
    return result.stdout


def main() -> int:
    """Build everything; where Go is missing say so in one line, and leave it to the tests to be skipped."""
    parser = argparse.ArgumentParser(description="Build the programs that cluster tests need.")
    parser.add_argument("--node", action="store_true", help="build kubelet and kube-proxy too")
    arguments = parser.parse_args()
    try:
        for module in MODULES:
            print(f"{module.directory}: {build(module, with_extra=arguments.node)}", flush=True)
    except GoMissingError as error:
        print(f"no test cluster: {error}", flush=True)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
