"""`finetune-study watch` from a manifest whose bucket is on a real S3 server, as of a study that runs on a cluster."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.ledgers import NOW, a_ledger, paused
from builders.some_manifests import a_manifest
from builders.study_command import DrawingDesigner
from study_operator import names
from study_operator.ledger.status import render_status
from study_operator.report.losses import KeptLosses
from study_operator.report.write import write_report
from study_operator.spec.parse import parse_study
from testcluster.bucket import REGION, S3Server, User
from trial_trainer.artifacts import S3Access, open_store

BUCKET = "ml-studies"
UID = "0a1b2c3d-0000-4000-8000-000000000000"
PATIENCE_SECONDS = 120.0
"""How long a test that hangs takes to fail."""


@pytest.fixture
def user(s3: S3Server) -> User:
    """Somebody who may read and write the studies' bucket, which is there now."""
    someone = s3.add_user("researcher")
    s3.make_bucket(BUCKET, users=[someone])
    return someone


class Desk:
    """A manifest of a study that somebody else runs, and what that one writes into the bucket."""

    def __init__(self, directory: Path, s3: S3Server, bucket: str = BUCKET) -> None:
        self.manifest = directory / "study.yaml"
        storage = {
            "uri": f"s3://{bucket}/shop",
            "endpoint": s3.endpoint,
            "region": REGION,
            "addressingStyle": "Path",
        }
        self.raw = a_manifest({"spec.storage": storage})
        self.manifest.write_text(json.dumps(self.raw))
        self._s3 = s3

    def report(self, *values: float) -> str:
        """Write ledger and report of a study with as many measured trials; return its prefix."""
        study = parse_study({**self.raw, "metadata": {**self.raw["metadata"], "uid": UID}})
        trials = [replace(paused(i, v), arm=dict(study.baseline or {})) for i, v in enumerate(values)]
        ledger = a_ledger(*trials)
        uri = names.study_uri(study.storage.uri, study.namespace, study.name, study.uid)
        root = self._s3.root
        access = S3Access(
            endpoint=self._s3.endpoint,
            region=REGION,
            addressing_style="path",
            access_key_id=root.access_key,
            secret_access_key=root.secret_key,
            is_from_environment=False,
        )
        status = render_status(study, ledger, now=NOW)
        write_report(study, ledger, status, open_store(uri, access), DrawingDesigner(), KeptLosses())
        return uri

    def command(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Return how the command is started: nothing but the credentials comes from the environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
        keys = {name: value for name, value in environment.items() if "ENDPOINT" not in name and "REGION" not in name}
        return {
            "args": [sys.executable, "-m", "study_operator", "watch", str(self.manifest), "--port", "0"],
            "env": {**inherited, **keys, "PYTHONUNBUFFERED": "1"},
            "text": True,
        }


@contextmanager
def watching(command: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[str], http.client.HTTPResponse]]]:
    """Start the command; give what it says, and what asks it for a path; interrupt it in the end."""
    process = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        printed = process.stdout.readline()
        address = printed.partition("http://")[2].partition("/")[0]
        assert address, process.communicate()

        def ask(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
            connection.request("GET", path)
            return connection.getresponse()

        yield printed, ask
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def wait_for_event(news: http.client.HTTPResponse, event: str) -> str:
    """Read news until there is one of a kind; return its data."""
    name = ""
    while line := news.readline().decode():
        field, _, value = line.rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data" and name == event:
            return value
    raise AssertionError(f"the news ended without {event}")


@pytest.mark.slow
def test_the_page_of_a_study_in_a_bucket_is_served_and_follows_its_ledger(
    tmp_path: Path, s3: S3Server, user: User
) -> None:
    desk = Desk(tmp_path, s3)
    uri = desk.report(0.5)
    with watching(desk.command(s3.environment(user))) as (printed, ask):
        assert printed.startswith(f"{uri} at http://127.0.0.1:")
        shell = ask("/")
        assert (shell.status, shell.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        news = ask("/news")
        while b"t000" not in (page := ask("/page").read()):
            wait_for_event(news, "page")
        assert b"t001" not in page

        desk.report(0.5, 0.75)
        while b"t001" not in (page := ask("/page").read()):
            wait_for_event(news, "page")
        assert b"0.75" in page or b"75" in page

        # It goes away: the last page stays, and why there is no newer one is printed.
        s3.kill()
        assert uri.removesuffix(f"/{UID[:8]}") in wait_for_event(news, "trouble")
        assert ask("/page").read() == page
        s3.start()
        desk.report(0.5, 0.75, 0.25)
        while b"t002" not in ask("/page").read():
            wait_for_event(news, "page")


@pytest.mark.parametrize(
    ("bucket", "keys", "sentence"),
    [
        ("no-such-bucket", {}, "no-such-bucket"),
        (BUCKET, {"AWS_SECRET_ACCESS_KEY": uuid.uuid4().hex}, BUCKET),
        (BUCKET, {"AWS_ACCESS_KEY_ID": "nobody"}, BUCKET),
        (
            BUCKET,
            {},
            "the study laptop must have been run here or from s3://ml-studies/shop/: nothing of it lies there",
        ),
    ],
    ids=["no such bucket", "a wrong secret", "an unknown user", "no such study"],
)
def test_a_bucket_that_cannot_be_read_is_said_in_one_sentence(
    tmp_path: Path, s3: S3Server, user: User, bucket: str, keys: dict[str, str], sentence: str
) -> None:
    command = Desk(tmp_path, s3, bucket).command({**s3.environment(user), **keys})
    ended = subprocess.run(**command, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout, len(lines)) == (2, "", 1), ended.stderr
    assert lines[0].startswith("finetune-study: ")
    assert sentence in lines[0]
    assert user.secret_key not in ended.stderr
