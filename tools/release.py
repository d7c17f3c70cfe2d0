"""Makes a release as it would be published: wheel, chart, kubectl plugin, images, checksums.

    make release VERSION=0.2.0                     # into dist/0.2.0
    python tools/release.py 0.2.0 --helm HELM --uv UV [--images docker|podman|buildah]

What is committed is released, stamped with the version; what lies around in the working copy is not. In the folder are

    finetune_study-0.2.0-py3-none-any.whl           both packages and their commands
    requirements-*.txt                              the pinned, hashed requirements that it was tested with
    finetune-study-operator-0.2.0.tgz               the chart, with Artifact Hub's annotations, for `helm push`
    kubectl-finetune-0.2.0.tar.gz, finetune.yaml    the kubectl plugin, and its manifest for krew
    finetune-study-{operator,trainer}-0.2.0.tar     the images as OCI or Docker archives, where a tool is named
    notes.md                                        what has changed, from the changelog
    SHA256SUMS                                      of all of them

Exit codes: 0 made; 1 something is wrong, said in one sentence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = Path("charts/finetune-study-operator")
VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?")
"""Semantic versions without build metadata, which image tags cannot hold."""
STAMPED = {
    "pyproject.toml": r'(?m)^version = "(.*)"$',
    str(CHART / "Chart.yaml"): r"(?m)^(?:version|appVersion): (.*)$",
    str(CHART / "values.yaml"): r"finetune-study-trainer:(\S+)",
    "manifests/operator/operator.yaml": r"finetune-study-trainer:(\S+)",
    "manifests/operator/deployment.yaml": r"finetune-study-operator:(\S+)",
}
"""Where a version stands in the tree, by file."""
REQUIREMENTS = ("torch", "trainer", "operator")
KINDS = {"Added": "added", "Changed": "changed", "Deprecated": "deprecated", "Removed": "removed", "Fixed": "fixed"}
"""Artifact Hub's kinds of changes, by the heading of the changelog."""


class ReleaseError(Exception):
    """The release cannot be made; one sentence."""


def main() -> int:
    """Make the release; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="such as 0.2.0 or 0.2.0-rc.1")
    parser.add_argument("--out", type=Path, help="folder to write; dist/VERSION without it")
    parser.add_argument("--helm", required=True, help="Helm's program")
    parser.add_argument("--uv", required=True, help="uv's program")
    parser.add_argument("--images", help="docker, podman or buildah: build the images and save them, too")
    parser.add_argument("--image-arguments", default="", help="for the builds of the images")
    parser.add_argument("--registry", default="registry.example/finetune-study", help="where images will lie")
    parser.add_argument("--downloads", default="https://downloads.example/finetune-study", help="where files will lie")
    arguments = parser.parse_args()
    out = (arguments.out or REPOSITORY / "dist" / arguments.version).absolute()
    try:
        release(out, arguments)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size:>12,} {file.name}")
    if not arguments.images:
        print("images: not built, no tool was named")
    return 0


def release(out: Path, arguments: argparse.Namespace) -> None:
    """Make every file of a release.

    Raises:
        ReleaseError: the version is none, the folder is not empty, or a step fails.
    """
    version: str = arguments.version
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION must be a semantic version such as 0.2.0, got {version!r}")
    if out.exists() and any(out.iterdir()):
        raise ReleaseError(f"{out} must be empty or not be there: a release is made once")
    with tempfile.TemporaryDirectory(prefix="release-") as place:
        # From the commit, stamped with the version.
        tree = Path(place) / "tree"
        export(tree)
        stamp(tree, version)
        name_images(tree, arguments.registry)

        # What is installed from, smallest first.
        out.mkdir(parents=True, exist_ok=True)
        build_wheel(tree, out, arguments.uv)
        build_chart(tree, out, version, arguments.helm, arguments.registry)
        build_plugin(tree, out, version, arguments.downloads)
        (out / "notes.md").write_text(read_section((tree / "CHANGELOG.md").read_text(), version))
        if arguments.images:
            build_images(tree, out, version, arguments.images, arguments.image_arguments)
    write_sums(out)


def export(tree: Path) -> None:
    """Write the commit that is checked out to a folder of its own."""
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode:
        raise ReleaseError(f"git archive failed: {archive.stderr.decode().strip()}")
    run(["tar", "--extract", "--directory", str(tree)], content=archive.stdout)


def stamp(tree: Path, version: str) -> None:
    """Write the version into every file that holds one.

    Raises:
        ReleaseError: a file holds none where one is expected.
    """
    for name, pattern in STAMPED.items():
        text = (tree / name).read_text()
        found = re.compile(pattern)
        if not found.search(text):
            raise ReleaseError(f"{name} must hold a version like {pattern!r}")
        (tree / name).write_text(found.sub(lambda match: match[0].replace(match[1], version), text))


def name_images(tree: Path, registry: str) -> None:
    """Let the chart name the images where they will lie."""
    path = tree / CHART / "values.yaml"
    text = path.read_text()
    for name in ("repository: finetune-study-operator", "trainerImage: finetune-study-trainer"):
        if text.count(name) != 1:
            raise ReleaseError(f"{CHART}/values.yaml must hold {name!r} once")
        text = text.replace(name, name.replace(": ", f": {registry}/"))
    path.write_text(text)


def build_wheel(tree: Path, out: Path, uv: str) -> None:
    """Build the wheel, and put beside it the requirements that it was tested with."""
    run([uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", out], tree)
    (out / ".gitignore").unlink(missing_ok=True)
    for name in REQUIREMENTS:
        shutil.copyfile(tree / f"requirements/{name}.txt", out / f"requirements-{name}.txt")


def build_chart(tree: Path, out: Path, version: str, helm: str, registry: str) -> None:
    """Pack the chart, with what Artifact Hub shows of it."""
    path = tree / CHART / "Chart.yaml"
    chart = yaml.safe_load(path.read_text())
    chart["annotations"] |= annotate(tree, version, registry)
    path.write_text(yaml.safe_dump(chart, sort_keys=False, width=120))
    run([helm, "package", tree / CHART, "--destination", out], tree)


def annotate(tree: Path, version: str, registry: str) -> dict[str, str]:
    """Return Artifact Hub's annotations of a chart: CRDs with examples, images, changes; each is YAML in a string."""
    crd = yaml.safe_load((tree / "manifests/crd/crd.yaml").read_text())
    kind = crd["spec"]["names"]["kind"]
    about = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"]
    crds = [
        {
            "kind": kind,
            "version": crd["spec"]["versions"][0]["name"],
            "name": crd["metadata"]["name"],
            "displayName": kind,
            "description": about,
        }
    ]
    images = [
        {"name": name, "image": f"{registry}/finetune-study-{name}:{version}"} for name in ("operator", "trainer")
    ]
    values = {
        "crds": crds,
        "crdsExamples": [yaml.safe_load((tree / "manifests/samples/cluster.yaml").read_text())],
        "images": images,
        "changes": read_changes((tree / "CHANGELOG.md").read_text(), version),
    }
    # As JSON, in which a number in quotes keeps them: PyYAML takes them off 1e-4.
    texts = {f"artifacthub.io/{name}": json.dumps(value, indent=2) for name, value in values.items()}
    return texts | {"artifacthub.io/prerelease": json.dumps("-" in version)}


def read_section(changelog: str, version: str) -> str:
    """Return what the changelog says of a version, or under [Unreleased] where it has no section yet."""
    sections = {
        match[1]: match[2] for match in re.finditer(r"(?ms)^## \[([^\]]+)\][^\n]*\n(.*?)(?=^## |\Z)", changelog)
    }
    return sections.get(version, sections.get("Unreleased", "")).strip() + "\n"


def read_changes(changelog: str, version: str) -> list[dict[str, str]]:
    """Return the changes of a version as Artifact Hub lists them.

    Raises:
        ReleaseError: the changelog has no section of it, or an empty one.
    """
    text = read_section(changelog, version)
    changes = []
    for heading, items in re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^### |\Z)", text):
        kind = "security" if heading == "Security" else KINDS.get(heading)
        if kind is None:
            raise ReleaseError(f"a heading of CHANGELOG.md must be one of {', '.join(KINDS)}, Security, got {heading}")
        changes += [
            {"kind": kind, "description": " ".join(item.split())}
            for item in re.findall(r"(?ms)^- (.*?)(?=^- |\Z)", items)
        ]
    if not changes:
        raise ReleaseError(f"CHANGELOG.md must have a section [{version}] or [Unreleased] that is not empty")
    return changes


LAUNCHER = """#!/bin/sh
# kubectl finetune: installs its own Python environment at the first call, then runs from it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
environment="${{XDG_CACHE_HOME:-$HOME/.cache}}/kubectl-finetune/{version}"
if [ ! -x "$environment/bin/kubectl-finetune" ]; then
    echo "kubectl finetune: installing into $environment, once" >&2
    python3 -m venv "$environment"
    for part in {requirements}; do
        "$environment/bin/python" -m pip install --quiet --require-hashes --no-deps -r "$here/requirements-$part.txt"
    done
    "$environment/bin/python" -m pip install --quiet --no-deps "$here/"*.whl
fi
exec "$environment/bin/kubectl-finetune" "$@"
"""


def build_plugin(tree: Path, out: Path, version: str, downloads: str) -> None:
    """Pack the kubectl plugin, and write its manifest for krew."""
    archive = out / f"kubectl-finetune-{version}.tar.gz"
    launcher = tree / "kubectl-finetune"
    launcher.write_text(LAUNCHER.format(version=version, requirements=" ".join(REQUIREMENTS)))
    launcher.chmod(0o755)
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(launcher, launcher.name)
        packed.add(tree / "LICENSE", "LICENSE")
        for file in [*sorted(out.glob("*.whl")), *sorted(out.glob("requirements-*.txt"))]:
            packed.add(file, file.name)
    manifest = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "finetune"},
        "spec": {
            "version": f"v{version}",
            "shortDescription": "Plan, watch and report fine-tuning studies",
            "description": (
                "Plans the budget of a FineTuneStudy, shows its trials and its report, and runs one on this machine. "
                "Needs Python 3.11 or newer with venv; the first call installs pinned packages.\n"
            ),
            "platforms": [
                {
                    "selector": {
                        "matchExpressions": [{"key": "os", "operator": "In", "values": ["darwin", "linux"]}],
                    },
                    "uri": f"{downloads}/{archive.name}",
                    "sha256": digest_of(archive),
                    "bin": launcher.name,
                }
            ],
        },
    }
    (out / "finetune.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False, width=120))


def build_images(tree: Path, out: Path, version: str, tool: str, arguments: str) -> None:
    """Build both images with the version as their tag, and save each as one file."""
    made = {"IMAGE_TOOL": tool, "IMAGE_TAG": version, "IMAGE_ARGUMENTS": arguments, "REVISION": describe_commit("%H")}
    run(["make", "images", *(f"{name}={value}" for name, value in made.items())], tree)
    for name in ("operator", "trainer"):
        image, file = f"finetune-study-{name}:{version}", out / f"finetune-study-{name}-{version}.tar"
        match tool:
            case "buildah":
                run([tool, "push", "--quiet", image, f"oci-archive:{file}:{image}"], tree)
            case "podman":
                run([tool, "save", "--format", "oci-archive", "--output", file, image], tree)
            case _:
                run([tool, "save", "--output", file, image], tree)


def write_sums(out: Path) -> None:
    """Write `SHA256SUMS`, for `sha256sum --check`."""
    files = sorted(file for file in out.iterdir() if file.name != "SHA256SUMS")
    (out / "SHA256SUMS").write_text("".join(f"{digest_of(file)}  {file.name}\n" for file in files))


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def run(command: Sequence[str | Path], cwd: Path | None = None, content: bytes | None = None) -> None:
    """Run a program.

    Raises:
        ReleaseError: it is not there, or it fails.
    """
    # Times in archives are the commit's, as far as tools heed it.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": describe_commit("%ct")}
    try:
        result = subprocess.run(command, cwd=cwd, env=environment, input=content, capture_output=True, check=False)
    except OSError as error:
        raise ReleaseError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        last = (result.stderr or result.stdout).decode(errors="replace").strip().splitlines()[-5:]
        raise ReleaseError(f"{Path(command[0]).name} failed with {result.returncode}: {' / '.join(last)}")


def describe_commit(form: str) -> str:
    """Return what git says of the commit that is checked out, in a form of its own such as ``%H``."""
    shown = subprocess.run(
        ["git", "show", "--no-patch", f"--format={form}", "HEAD"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or "0"


if __name__ == "__main__":
    sys.exit(main())
