"""A real S3 server of our own: versitygw on a directory, with users whose rights are real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import urllib3
from botocore.config import Config

from testcluster import processes

REGION = "us-east-1"
START_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody with keys. What they may do is said by the policies of the buckets."""

    access_key: str
    secret_key: str


class Request(NamedTuple):
    """One request, as the server's access log has it."""

    user: str
    operation: str
    """Such as `PutObject`, as in S3's reference."""
    key: str
    status: str


# As in S3's server access logs: owner, bucket, [time], address, user, request, operation, key, path, status.
_LINE = re.compile(r"\S+ \S+ \[[^]]*\] \S+ (\S+) \S+ s3_(\w+) (\S+) \S+ (\d+) ")


class S3Server:
    """An S3 server and its data. Objects, users and buckets survive a restart, and so does the address.

    Args:
        directory: For data, users and logs.
        program: The versitygw binary.
        address: Where it listens: at an address of this machine alone, unless somebody else must reach it.
    """

    def __init__(self, directory: Path, program: Path, *, address: str = "127.0.0.1") -> None:
        self.directory = directory
        self.root = User(access_key="root", secret_key=secrets.token_hex(16))
        """Who may do everything."""
        self._program = program
        self._address = address
        self._access_log = directory / "access.log"
        self._port = processes.pick_ports(1)[0]
        self._users: dict[str, User] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def endpoint(self) -> str:
        """The address that clients use, with path-style buckets."""
        return f"http://{self._address}:{self._port}"

    def requests(self) -> list[Request]:
        """Return the requests that were answered so far; the last ones may be noted a moment later."""
        found = (_LINE.match(line) for line in self._access_log.read_text().splitlines())
        return [Request(*match.groups()) for match in found if match is not None]

    # Life

    def start(self) -> None:
        """Start the server; returns when it answers."""
        for name in ("buckets", "users"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._write_users()
        command: list[str | Path] = [
            self._program,
            f"--port={self._address}:{self._port}",
            f"--region={REGION}",
            f"--iam-dir={self.directory / 'users'}",
            "--iam-cache-disable",
            f"--access-log={self._access_log}",
            "--health=/health",
            "--quiet",
            "posix",
            *self._metadata_flags(),
            self.directory / "buckets",
        ]
        environment = {"ROOT_ACCESS_KEY": self.root.access_key, "ROOT_SECRET_KEY": self.root.secret_key}
        log = self.directory / "versitygw.log"
        self._process = processes.spawn(command, log=log, environment=environment)
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{self.endpoint}/health", retries=False, timeout=2.0).status == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"versitygw did not come up: {log.read_text(errors='replace')[-1000:]}")

    def stop(self) -> None:
        """Ask the server to end, and wait for it."""
        if self._process is not None:
            processes.end(self._process, grace_seconds=10.0)
            self._process = None

    def kill(self) -> None:
        """Kill the server; what it was writing is left half written."""
        if self._process is not None:
            processes.kill(self._process)
            self._process = None

    def restart(self) -> None:
        """Kill the server and start it again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let the server take connections and answer none, as behind a dead link."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # Buckets and users

    def client(self, user: User | None = None) -> Any:
        """Return boto3's client of a user, root by default."""
        user = user or self.root
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def make_bucket(self, name: str, *, users: Sequence[User] = (), prefix: str = "") -> str:
        """Make a bucket whose objects, or those under a prefix, these users may list, read, write and delete."""
        client = self.client()
        client.create_bucket(Bucket=name)
        if users:
            everyone = [user.access_key for user in users]
            allow = {"Effect": "Allow", "Principal": {"AWS": everyone}}
            objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
            listing = ["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"]
            statements = [
                {**allow, "Action": objects, "Resource": f"arn:aws:s3:::{name}/{prefix}*"},
                {**allow, "Action": listing, "Resource": f"arn:aws:s3:::{name}"},
            ]
            policy = {"Version": "2012-10-17", "Statement": statements}
            client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
        return name

    def add_user(self, name: str) -> User:
        """Add somebody who may do nothing yet; `make_bucket` gives rights."""
        user = self._users[name] = User(access_key=name, secret_key=secrets.token_hex(16))
        self._write_users()
        return user

    def environment(self, user: User | None = None) -> dict[str, str]:
        """Return what boto3 reads of the environment, for a user."""
        user = user or self.root
        return {
            "AWS_ACCESS_KEY_ID": user.access_key,
            "AWS_SECRET_ACCESS_KEY": user.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _write_users(self) -> None:
        accounts = {
            name: {"access": name, "secret": user.secret_key, "role": "user", "userID": 0, "groupID": 0, "projectID": 0}
            for name, user in self._users.items()
        }
        file = self.directory / "users" / "users.json"
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps({"accessAccounts": accounts}))
        os.replace(draft, file)

    def _metadata_flags(self) -> list[str]:
        """Metadata go into extended attributes; where the file system has none, into files beside the objects."""
        try:
            os.setxattr(self.directory, "user.finetune-study", b"1")  # type: ignore[attr-defined,unused-ignore]
        except (OSError, AttributeError):
            (self.directory / "metadata").mkdir(exist_ok=True)
            return [f"--sidecar={self.directory / 'metadata'}"]
        return []
