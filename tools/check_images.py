"""Builds both images and runs each as a cluster would: as nobody in particular, with a root that cannot be written.

    python tools/check_images.py [--base IMAGE] [--keep]

The operator says its `--help`; the trainer prepares thirty pages and runs a trial of a random model on them, without a
network. docker, podman or buildah builds, whichever is there; buildah's images are run by runc. Without `--base` the
images are built on Debian's own Python, which debootstrap brings, so that no image registry is needed.

Exit codes: 0 both images work, 1 one of them does not, 2 nothing can build images here: there is no tool, no base
image, no room, or no package index that is reached while one is built.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
for folder in ("tests", "trainer"):
    sys.path.insert(0, str(REPOSITORY / folder))

from builders.tiny_study import ARM, save_model, write_pages  # noqa: E402  # found by the path above
from trial_trainer import contract  # noqa: E402

BASE = "finetune-study-base:debian"
TAG = "check"
SUITE = "bookworm"
"""Debian's release with Python 3.11."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
USER = 65532
ROOM_BYTES = 20 << 30
"""torch brings CUDA, and lies in layers, in a working container, and in what is put together of both."""
WORKS, BROKEN, NO_TOOL = 0, 1, 2


class CheckError(Exception):
    """Something is not as it must be; one sentence."""


class UnableError(Exception):
    """This machine cannot build images, whatever is in them; one sentence."""


def main() -> int:
    """Check both images; return the exit code."""
    parser = argparse.ArgumentParser(description="Build both images and run each.")
    parser.add_argument("--base", help="base image; without it one is made of Debian's packages")
    parser.add_argument("--keep", action="store_true", help="keep the images")
    arguments = parser.parse_args()
    tool = find_tool()
    if tool is None:
        print("images: not checked, none of docker, podman and buildah (with runc) works here", flush=True)
        return NO_TOOL
    try:
        base = find_base(tool, arguments.base)
        for name in ("operator", "trainer"):
            build(tool, name, base)
        check_operator(tool)
        with tempfile.TemporaryDirectory(prefix="images-") as place:
            check_trainer(tool, Path(place))
    except UnableError as error:
        print(f"images: not checked, {error}", flush=True)
        return NO_TOOL
    except CheckError as error:
        print(f"images: {error}", file=sys.stderr)
        return BROKEN
    finally:
        if not arguments.keep:
            for name in ("operator", "trainer"):
                call([tool, "rmi", image_of(name)], check=False)
    return WORKS


def find_tool() -> str | None:
    """Return the first tool that answers: a docker without its daemon does not."""
    for tool in ("docker", "podman", "buildah"):
        if shutil.which(tool) and (tool != "buildah" or shutil.which("runc")):
            answer = subprocess.run([tool, "info"], capture_output=True, check=False)
            if answer.returncode == 0:
                return tool
    return None


def image_of(name: str) -> str:
    """Return the reference of an image of this check."""
    return f"finetune-study-{name}:{TAG}"


# Build


def find_base(tool: str, given: str | None) -> str:
    """Return the base image, once it is known that something can be built on it here.

    Raises:
        UnableError: Nothing can.
    """
    free = shutil.disk_usage("/var/tmp").free
    if free < ROOM_BYTES:
        raise UnableError(f"{ROOM_BYTES >> 30} GiB must be free, got {free >> 30}")
    try:
        base = given or make_base(tool)
        # The stage that fetches no more than the installer.
        call([tool, "build", *arguments_of(base), "--target=tools", "--file=Dockerfile.trainer", "."])
    except CheckError as error:
        raise UnableError(f"nothing can be built: {error}") from error
    return base


def make_base(tool: str) -> str:
    """Make a base image of Debian's packages, unless it is there.

    Raises:
        CheckError: There is no debootstrap, or something fails.
    """
    if call([tool, "images", "--quiet", BASE], check=False).strip():
        return BASE
    if shutil.which("debootstrap") is None:
        raise CheckError("a base image must be given with --base where there is no debootstrap")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="base-") as place:
        root = Path(place) / "root"
        packages = "python3,python3-venv,ca-certificates"
        call(["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, root])
        for left_over in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / left_over)
        archive = Path(place) / "root.tar"
        call(["tar", "--create", "--file", archive, "--directory", root, "."])
        if tool == "buildah":
            container = call([tool, "from", "scratch"]).strip()
            call([tool, "add", "--quiet", container, archive, "/"])
            call([tool, "commit", "--quiet", "--rm", container, BASE])
        else:
            call([tool, "import", archive, BASE])
    say(f"base image of Debian {SUITE}", started)
    return BASE


def arguments_of(base: str) -> list[str]:
    """Return what each build is given."""
    arguments = [f"--build-arg=BASE={base}", "--network=host"]
    if base == BASE and CERTIFICATES.exists():
        # The proxy that this machine may stand behind is known to it, and not to the base image.
        arguments.append(f"--secret=id=ca,src={CERTIFICATES}")
    return arguments


def build(tool: str, name: str, base: str) -> None:
    """Build one image with `make images`."""
    started = time.monotonic()
    command = ["make", "--no-print-directory", "images", f"IMAGES={name}", f"IMAGE_TOOL={tool}", f"IMAGE_TAG={TAG}"]
    call([*command, f"IMAGE_ARGUMENTS={' '.join(arguments_of(base))}"])
    config = inspect(tool, name)
    if config["User"] != f"{USER}:{USER}":
        raise CheckError(f"the {name}'s user must be {USER}:{USER}, got {config['User']!r}")
    if "Healthcheck" in config:
        raise CheckError(f"the {name}'s image must have no health check")
    say(f"{name}: {call([tool, 'images', '--format={{.Size}}', image_of(name)]).strip()}, built", started)


def inspect(tool: str, name: str) -> dict[str, Any]:
    """Return an image's configuration, as OCI has it."""
    found = json.loads(call([tool, "inspect", "--type=image", image_of(name)]))
    config: dict[str, Any] = found["OCIv1"]["config"] if tool == "buildah" else found[0]["Config"]
    return config


# Run


def check_operator(tool: str) -> None:
    """Ask the operator for its flags."""
    started = time.monotonic()
    ended = run(tool, "operator", ["--help"])
    if ended.returncode != 0 or "--lease-namespace" not in ended.stdout:
        raise CheckError(f"the operator's --help must name its flags, got {ended.returncode}: {_tail(ended)}")
    for module, is_there in (("kopf", True), ("ax", True), ("transformers", False)):
        _check_module(tool, "operator", module, is_there=is_there)
    say("operator: --help", started)


def check_trainer(tool: str, place: Path) -> None:
    """Prepare a dataset and run a trial, both in the image."""
    place.chmod(0o755)
    for file in save_model(place / "model").iterdir():
        file.chmod(0o644)
    write_pages(place / "pages.jsonl")
    (place / "written").mkdir()
    os.chown(place / "written", USER, USER)
    mounts = {place: "/study", place / "written": "/study/written"}
    model = contract.BaseModel(uri="/study/model")
    prepare = contract.PrepareConfig(
        study="s",
        source="/study/pages.jsonl",
        attributes=("name", "price"),
        labels_from=contract.LabelSource.MARKUP,
        split=contract.Split(validation_percent=40, test_percent=0),
        seed=0,
        base_model=model,
        max_length_tokens=500,
        dataset="/study/written/dataset",
    )
    trial = contract.TrialConfig(
        study="s",
        trial="t000",
        rung=0,
        seed=0,
        arm=ARM,
        base_model=model,
        dataset=prepare.dataset,
        output="/study/written/output",
        total_steps=2,
        stop_step=2,
        trainer=contract.TrainerSettings(epochs=1, max_length_tokens=500, precision=contract.Precision.FLOAT32),
    )
    for words, variable, config, result in (
        (["prepare"], contract.PREPARE_CONFIG, prepare, f"dataset/{contract.SUMMARY}"),
        ([], contract.TRIAL_CONFIG, trial, f"output/{contract.MEASUREMENT}"),
    ):
        started = time.monotonic()
        environment = {variable: contract.to_json(config), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ended = run(tool, "trainer", words, environment=environment, mounts=mounts)
        if ended.returncode != 0 or not (place / "written" / result).exists():
            raise CheckError(f"the trainer must end with 0 and {result}, got {ended.returncode}: {_tail(ended)}")
        say(f"trainer: {' '.join(words) or 'trial'}", started)
    measurement = contract.from_json(
        contract.RungMeasurement, (place / "written/output" / contract.MEASUREMENT).read_text()
    )
    print(f"  step {measurement.step} of {measurement.total_steps}, {measurement.metrics}", flush=True)
    for module, is_there in (("transformers", True), ("kopf", False), ("ax", False)):
        _check_module(tool, "trainer", module, is_there=is_there)


def _check_module(tool: str, name: str, module: str, *, is_there: bool) -> None:
    question = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    ended = run(tool, name, ["-c", question], entrypoint=["python"])
    if (ended.returncode == 0) is not is_there:
        raise CheckError(f"the {name}'s image must {'' if is_there else 'not '}carry {module}: {_tail(ended)}")


def run(
    tool: str,
    name: str,
    arguments: Sequence[str],
    *,
    entrypoint: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    mounts: Mapping[Path, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an image without a network, without rights, and with nothing to write to but /tmp and the mounts."""
    environment, mounts = environment or {}, mounts or {}
    if tool == "buildah":
        return _run_with_runc(name, arguments, entrypoint, environment, mounts)
    command = [tool, "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp:mode=1777", "--cap-drop=ALL"]
    command += [f"--env={key}={value}" for key, value in environment.items()]
    command += [f"--volume={source}:{target}" for source, target in mounts.items()]
    command += [f"--entrypoint={entrypoint[0]}"] if entrypoint else []
    return subprocess.run(
        [*command, image_of(name), *entrypoint[1:], *arguments], capture_output=True, text=True, check=False
    )


def _run_with_runc(
    name: str,
    arguments: Sequence[str],
    entrypoint: Sequence[str],
    environment: Mapping[str, str],
    mounts: Mapping[Path, str],
) -> subprocess.CompletedProcess[str]:
    """Run an image of buildah's, which itself runs containers with a root that may be written."""
    config = inspect("buildah", name)
    container = call(["buildah", "from", "--pull-never", image_of(name)]).strip()
    try:
        root = call(["buildah", "mount", container]).strip()
        words = [*(entrypoint or config["Entrypoint"]), *arguments]
        process = {
            "user": {"uid": USER, "gid": USER},
            "args": words,
            "env": [*config["Env"], *(f"{key}={value}" for key, value in environment.items())],
            "cwd": config["WorkingDir"],
            "capabilities": {},
            "noNewPrivileges": True,
        }
        bundle = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": root, "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
                *(
                    {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "rw"]}
                    for source, target in mounts.items()
                ),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }
        with tempfile.TemporaryDirectory(prefix="bundle-") as place:
            (Path(place) / "config.json").write_text(json.dumps(bundle))
            identity = f"finetune-study-check-{os.getpid()}"
            return subprocess.run(
                ["runc", "run", "--bundle", place, identity],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        call(["buildah", "rm", container], check=False)


def _tail(ended: subprocess.CompletedProcess[str]) -> str:
    return (ended.stdout + ended.stderr)[-2000:].strip()


def call(command: Sequence[str | Path], *, check: bool = True) -> str:
    """Run a program and return what it prints.

    Raises:
        CheckError: It fails, and that was not allowed.
    """
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if check and ended.returncode != 0:
        raise CheckError(f"`{' '.join(map(str, command))}` failed: {_tail(ended)}")
    return ended.stdout


def say(text: str, started: float) -> None:
    """Say what was done, and how long it took."""
    print(f"images: {text} in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
