"""Where datasets, checkpoints and readings live: one bucket prefix, or one directory on a laptop.

Keys are relative to the store's URI and use ``/``. A write is atomic: a reader sees the whole object or none.
The only importer of boto3, which is loaded when the first ``s3://`` URI is opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit


class ArtifactError(Exception):
    """The store cannot be used: named bucket or directory, and why."""


class ArtifactStore(Protocol):
    """Objects under one prefix."""

    @property
    def uri(self) -> str:
        """The prefix, as it was opened."""
        ...

    def read(self, key: str) -> bytes | None:
        """Return the object, or None where there is none."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put the object, whole or not at all."""
        ...

    def write_new(self, key: str, data: bytes) -> bool:
        """Put the object unless there is one; return whether it was put."""
        ...

    def upload(self, key: str, source: Path) -> None:
        """Put a file."""
        ...

    def download(self, key: str, target: Path) -> bool:
        """Fetch an object into a file; return whether there was one."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under a prefix, sorted."""
        ...

    def delete(self, prefix: str) -> int:
        """Delete every object whose key is ``prefix`` or lies under it; return how many."""
        ...


def open_store(uri: str) -> ArtifactStore:
    """Open the store of a URI: ``s3://bucket/prefix``, ``file:///path``, or a path.

    Raises:
        ArtifactError: where the scheme is none of these.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return S3Store(uri)
    if parts.scheme in ("", "file"):
        return DirectoryStore(parts.path if parts.scheme == "file" else uri)
    raise ArtifactError(f"the storage URI must start with s3:// or file://, or be a path, got {uri!r}")


def join(uri: str, *keys: str) -> str:
    """Append keys to a store's URI."""
    return "/".join([uri.rstrip("/"), *(key.strip("/") for key in keys)])


def open_object(uri: str) -> tuple[ArtifactStore, str]:
    """Split the URI of one object into its store and its key."""
    head, _, tail = uri.rstrip("/").rpartition("/")
    return open_store(head or "/"), tail


@dataclass(frozen=True)
class DirectoryStore:
    """A directory on this machine; objects are files."""

    uri: str

    @property
    def root(self) -> Path:
        """The directory, which need not exist before the first write."""
        return Path(self.uri)

    def read(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def write(self, key: str, data: bytes) -> None:
        with self._replacing(key) as temporary:
            temporary.write_bytes(data)

    def write_new(self, key: str, data: bytes) -> bool:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(target)
        try:
            temporary.write_bytes(data)
            # A hard link fails where the name is taken: the same promise as `If-None-Match: *`.
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def upload(self, key: str, source: Path) -> None:
        with self._replacing(key) as temporary:
            shutil.copyfile(source, temporary)

    def download(self, key: str, target: Path) -> bool:
        if not (self.root / key).is_file():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / key, target)
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        paths = sorted(self.root.rglob("*")) if self.root.is_dir() else []
        for path in paths:
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and path.is_file() and not path.name.startswith(_TEMPORARY):
                yield key

    def delete(self, prefix: str) -> int:
        keys = [key for key in self.list(prefix) if key == prefix or key.startswith(prefix.rstrip("/") + "/")]
        for key in keys:
            (self.root / key).unlink(missing_ok=True)
        if prefix and (self.root / prefix).is_dir():
            shutil.rmtree(self.root / prefix)
        return len(keys)

    @contextlib.contextmanager
    def _replacing(self, key: str) -> Iterator[Path]:
        target = self.root / key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = _temporary_beside(target)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ArtifactError(f"the directory {target.parent} cannot be written: {error}") from error
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


_TEMPORARY = ".writing-"


def _temporary_beside(target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    os.close(handle)
    return Path(name)


class S3Store:
    """A prefix of an S3-compatible bucket. Endpoint, region, addressing and credentials come from the environment:
    ``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``, ``S3_ADDRESSING_STYLE`` (``path`` or ``virtual``) and boto3's own chain."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if not parts.netloc:
            raise ArtifactError(f"the storage URI must name a bucket, got {uri!r}")
        self.uri = uri
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self._client = _s3_client()

    def read(self, key: str) -> bytes | None:
        with self._translated(key):
            try:
                body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
            return body

    def write(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def write_new(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._translated(key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    return False
                raise
            return True

    def upload(self, key: str, source: Path) -> None:
        with self._translated(key):
            self._client.upload_file(str(source), self._bucket, self._key(key))

    def download(self, key: str, target: Path) -> bool:
        from botocore.exceptions import ClientError

        target.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(key):
            try:
                self._client.download_file(self._bucket, self._key(key), str(target))
            except ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                    return False
                raise
            return True

    def list(self, prefix: str = "") -> Iterator[str]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            skip = len(self._prefix) + 1 if self._prefix else 0
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"][skip:]

    def delete(self, prefix: str) -> int:
        keys = [key for key in self.list(prefix) if not prefix or key == prefix or key.startswith(f"{prefix.rstrip('/')}/")]
        with self._translated(prefix):
            for start in range(0, len(keys), 1000):
                batch = [{"Key": self._key(key)} for key in keys[start : start + 1000]]
                self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
        return len(keys)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise ArtifactError(f"s3://{self._bucket}/{self._key(key)}: {error}") from error


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    style = os.environ.get("S3_ADDRESSING_STYLE", "auto")
    return boto3.client(
        "s3",
        region_name=os.environ.get("AWS_REGION", "us-east-1"),
        config=Config(
            s3={"addressing_style": style},
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 6},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
