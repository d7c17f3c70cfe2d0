"""A whole study whose bucket is S3: moto's server on loopback, reached through the manifest's own storage fields."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from builders import study_command
from trial_trainer.artifacts import S3Store

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, study_command.__file__)
PATIENCE_SECONDS = 180.0
"""How long a test that hangs takes to fail."""
BUCKET = "ml-studies"


class Bench:
    """A manifest whose artifacts go to a bucket, and the command started on it."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.directory = directory
        self.manifest = directory / "study.yaml"
        self.starts = directory / "starts"
        self.endpoint = endpoint
        self.seconds = 0.05
        (directory / "pages.jsonl").touch()
        (directory / "model").mkdir()
        self.write({"uri": f"s3://{BUCKET}/shop"})

    def write(self, storage: dict[str, str]) -> None:
        spec = {
            "objective": {"metric": "accuracy", "direction": "Maximize"},
            "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}}],
            "baseline": {"learning_rate": "1e-3"},
            "numTrials": 4,
            "parallelTrials": 2,
            "promotion": {"numPromoted": 1, "numAudited": 0},
            "data": {
                "source": "pages.jsonl",
                "attributes": ["name", "price"],
                "split": {"validationPercent": 35, "testPercent": 20},
            },
            "trainer": {"baseModel": {"uri": "model"}, "epochs": 3, "maxLengthTokens": 512},
            # Nothing but credentials comes from the environment.
            "storage": {"endpoint": self.endpoint, "region": "eu-north-1", "addressingStyle": "Path", **storage},
        }
        raw = {
            "apiVersion": "finetune.study/v1alpha1",
            "kind": "FineTuneStudy",
            "metadata": {"name": "toy"},
            "spec": spec,
        }
        self.manifest.write_text(json.dumps(raw))

    def start(self, command: str = "run", *flags: str) -> subprocess.Popen[str]:
        behaviour = {"seconds": self.seconds, "starts": str(self.starts)}
        return subprocess.Popen(
            [*COMMAND, command, str(self.manifest), *flags],
            env={**os.environ, "STAND_IN": json.dumps(behaviour)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, command: str = "run", *flags: str) -> tuple[int, str, str]:
        process = self.start(command, *flags)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, output, errors

    def lines(self, word: str) -> list[str]:
        """Return the names of the jobs that noted a word, in order."""
        if not self.starts.exists():
            return []
        return [line.split()[0] for line in self.starts.read_text().splitlines() if line.split()[1] == word]

    def until(self, subject: str, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for {subject}"
            time.sleep(0.05)

    @property
    def home(self) -> Path:
        """Where the study's status is kept: with a bucket, beside the manifest."""
        return self.directory / ".finetune-study" / "default" / "toy"

    def objects(self, monkeypatch: pytest.MonkeyPatch) -> S3Store:
        """Return the study's own prefix of the bucket."""
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", self.endpoint)
        monkeypatch.setenv("S3_ADDRESSING_STYLE", "path")
        prefixes = {"/".join(key.split("/")[:2]) for key in S3Store(f"s3://{BUCKET}/shop").list()}
        assert len(prefixes) == 1
        return S3Store(f"s3://{BUCKET}/shop/{prefixes.pop()}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on a free port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bench(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A study with an empty bucket; the environment knows the credentials and no address."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    return Bench(tmp_path, endpoint)


def test_a_study_runs_from_pages_to_an_evaluated_winner_in_a_bucket(bench, monkeypatch):
    code, output, errors = bench.call()

    assert (code, errors) == (0, "")
    starts = Counter(bench.lines("start"))
    assert starts == Counter(
        ["prepare", "t000-r0", "t001-r0", "t002-r0", "t003-r0", *rung_one(starts), "final-evaluation"]
    )
    # The promoted one and the baseline, which may be one and the same.
    assert 1 <= len(rung_one(starts)) <= 2
    store = bench.objects(monkeypatch)
    report = json.loads(store.read("report/report.json") or b"")
    assert report["stage"] == "Completed" and report["finalEvaluation"]["winner"] == report["winner"]
    assert (store.read("report/index.html") or b"").startswith(b"<!doctype html>")
    assert json.loads(store.read("ledger.json") or b"")["outcome"]["reason"] == "Completed"
    # The directory holds what is not an artifact, and the bucket all the rest.
    assert not list(bench.directory.rglob("measurement.json"))
    measurements = {key for key in store.list("trials/") if key.endswith("/measurement.json")}
    assert len(measurements) == sum(name.startswith("t") for name in starts)
    assert f"s3://{BUCKET}/shop/" in output


def rung_one(starts: Counter[str]) -> list[str]:
    return [name for name in starts if name.endswith("-r1")]


def test_a_study_in_a_bucket_killed_in_the_middle_goes_on_where_it_was(bench, monkeypatch):
    bench.seconds = 5.0
    process = bench.start()
    bench.until("two trials", lambda: sum(name.startswith("t") for name in bench.lines("start")) == 2)
    process.kill()
    process.communicate()

    code, _, errors = bench.call("trials", "--format", "json")
    assert (code, errors) == (0, "")

    bench.seconds = 0.05
    code, _, errors = bench.call()

    assert (code, errors) == (0, "")
    starts = Counter(bench.lines("start"))
    assert set(starts.values()) == {1}, "a job was started twice"
    assert Counter(bench.lines("end")) == starts
    assert json.loads(bench.objects(monkeypatch).read("report/report.json") or b"")["stage"] == "Completed"


def test_the_manifests_storage_reaches_the_environment_of_every_job(bench):
    bench.seconds = 600
    process = bench.start()
    bench.until("two trials", lambda: sum(name.startswith("t") for name in bench.lines("start")) == 2)
    try:
        for attempt in (bench.home / "jobs").glob("*-t00*/attempt.json"):
            number = json.loads(attempt.read_text())["process"][0]
            lines = Path(f"/proc/{number}/environ").read_bytes().decode().split("\0")
            environment = dict(line.split("=", 1) for line in lines if line)
            assert environment["AWS_ENDPOINT_URL_S3"] == bench.endpoint
            assert environment["AWS_REGION"] == "eu-north-1"
            assert environment["S3_ADDRESSING_STYLE"] == "path"
        # Nothing of it, and no credential, is in a file.
        written = b"".join(path.read_bytes() for path in bench.home.rglob("*") if path.is_file())
        assert b"a-secret" not in written
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 130
