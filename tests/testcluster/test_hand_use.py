"""`make cluster` tells how to reach what it started and leaves nothing behind; a shared cluster outlives nobody."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from testcluster import build
from testcluster.fixtures import FindPrograms

PATIENCE_SECONDS = 90.0


@pytest.fixture(autouse=True)
def _programs(programs: FindPrograms) -> None:
    programs(build.find_kubernetes)
    programs(lambda: build.build(build.VERSITYGW))


class Started:
    """Python started with a directory for its temporary files."""

    def __init__(self, *arguments: str, directory: Path) -> None:
        self._output = directory.with_suffix(f".{len(list(directory.parent.glob('*.[0-9]')))}")
        environment = {**os.environ, "PYTHONPATH": str(build.HERE.parent), "TMPDIR": str(directory)}
        environment.pop("KUBECONFIG", None)
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=output, start_new_session=True
            )

    def wait_for_line(self, start: str) -> list[str]:
        """Return the lines up to one that starts so."""
        wait_until(lambda: any(line.startswith(start) for line in self._lines()))
        return self._lines()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _lines(self) -> list[str]:
        assert self.process.poll() is None
        return self._output.read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_processes(word: str) -> list[str]:
    """Return the command lines and environments that hold a word."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "cmdline").read_bytes() + (directory / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in text:
            found.append(directory.name)
    return found


def test_the_cluster_for_hand_use_tells_how_to_reach_it_and_leaves_nothing_behind(place: Path) -> None:
    started = Started("-m", "testcluster", "--gpus", "3", directory=place)
    lines = started.wait_for_line("# Ctrl-C")
    exported = dict(re.findall(r"(\w+)=(\S+)", "\n".join(line for line in lines if line.startswith("export"))))
    kubectl = [Path(exported["PATH"].split(":")[0]) / "kubectl", "--kubeconfig", exported["KUBECONFIG"]]
    shown = subprocess.run(
        [*kubectl, "get", "nodes", "-o", r"jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "3"
    client = boto3.client(
        "s3",
        endpoint_url=exported["AWS_ENDPOINT_URL"],
        region_name=exported["AWS_REGION"],
        aws_access_key_id=exported["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=exported["AWS_SECRET_ACCESS_KEY"],
    )
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["ml-studies"]
    assert find_processes(str(place))
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(PATIENCE_SECONDS) == 0
    assert list(place.iterdir()) == []
    wait_until(lambda: not find_processes(str(place)))


def test_the_components_end_with_a_killed_owner(place: Path) -> None:
    started = Started("-m", "testcluster", directory=place)
    started.wait_for_line("# Ctrl-C")
    started.kill()
    wait_until(lambda: not find_processes(str(place)))


BORROW = """
import pathlib, sys, time
from testcluster import shared
with shared.borrow(pathlib.Path(sys.argv[1])) as cluster:
    print(cluster.url, flush=True)
    time.sleep(600)
"""


def test_a_shared_cluster_lives_as_long_as_anybody_holds_it(place: Path) -> None:
    first, second = (Started("-c", BORROW, str(place / "shared"), directory=place) for _ in range(2))
    url = first.wait_for_line("http")
    assert second.wait_for_line("http") == url
    first.kill()
    third = Started("-c", BORROW, str(place / "shared"), directory=place)
    assert third.wait_for_line("http") == url
    second.kill()
    third.kill()
    wait_until(lambda: not find_processes(str(place)))
    assert not (place / "shared" / "ready.json").exists()
