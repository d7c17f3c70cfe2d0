"""Where datasets, checkpoints and readings live: one bucket prefix, or one directory on a laptop.

Keys are relative to the store's URI and use ``/``. A write is atomic: a reader sees the whole object or none.
The only importer of boto3, which is loaded when the first ``s3://`` URI is opened.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol


class ArtifactError(Exception):
    """The store cannot be used: named bucket or directory, and why."""

    def __init__(self, message: str, reason: str = "StorageUnreachable") -> None:
        super().__init__(message)
        self.reason = reason
        """A CamelCase word for it."""


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """How buckets are reached."""

    is_from_environment: bool = True
    """Whether what is None below comes from the environment (``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``,
    ``S3_ADDRESSING_STYLE``, ``AWS_CA_BUNDLE``). False: from nowhere, and no endpoint is that of AWS itself."""
    endpoint: str | None = None
    region: str | None = None
    addressing_style: str | None = None
    """``path``, ``virtual`` or ``auto``."""
    ca_bundle: str | None = None
    """A file of certificates."""
    access_key_id: str | None = None
    """None: credentials come from boto3's own chain, as a workload identity does."""
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    connect_seconds: float = 5.0
    read_seconds: float = 60.0
    attempts: int = 6
    """Of one request, with a jittered wait between two: a trial that has trained for hours is patient."""

    def impatient(self) -> S3Access:
        """Return the access of somebody who tries again anyway, and wants to say soon that a bucket is away."""
        return replace(self, read_seconds=20.0, attempts=2)


FROM_ENVIRONMENT = S3Access()


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


def open_store(uri: str, access: S3Access = FROM_ENVIRONMENT) -> ArtifactStore:
    """Open the store of a URI: ``s3://bucket/prefix``, ``file:///path``, or a path.

    Args:
        uri: where the store is.
        access: how it is reached, where it is a bucket.

    Raises:
        ArtifactError: where the scheme is none of these.
    """
    scheme, separator, rest = uri.partition("://")
    match scheme if separator else "":
        case "s3":
            return S3Store(uri, access)
        case "file" if rest.startswith("/"):
            return DirectoryStore(rest)
        case "" if uri:
            return DirectoryStore(uri)
    raise ArtifactError(f"the storage URI must start with s3:// or file:///, or be a path, got {uri!r}")


def join(uri: str, *keys: str) -> str:
    """Append keys to a store's URI."""
    return "/".join([uri.rstrip("/"), *(key.strip("/") for key in keys)])


def open_object(uri: str) -> tuple[ArtifactStore, str]:
    """Split the URI of one object into its store and its key."""
    scheme, separator, path = uri.rpartition("://")
    head, slash, key = path.rstrip("/").rpartition("/")
    if not key or (scheme == "s3" and not head):
        raise ArtifactError(f"the URI of an object must name a store and a key, got {uri!r}")
    return open_store(f"{scheme}{separator}{head or slash or '.'}"), key


def _check_key(key: str) -> str:
    """Return a key that stays in its store."""
    if key.startswith("/") or ".." in key.split("/"):
        raise ArtifactError(f"the key must be relative to its store, without '..', got {key!r}")
    return key


def _is_under(key: str, prefix: str) -> bool:
    return not prefix or key == prefix or key.startswith(f"{prefix.rstrip('/')}/")


@dataclass(frozen=True)
class DirectoryStore:
    """A directory on this machine; objects are files."""

    uri: str

    @property
    def root(self) -> Path:
        """The directory, which need not exist before the first write."""
        return Path(self.uri)

    def read(self, key: str) -> bytes | None:
        with self._translated(key) as path:
            return path.read_bytes() if path.is_file() else None

    def write(self, key: str, data: bytes) -> None:
        with self._translated(key) as path, _written_beside(path) as temporary:
            temporary.write_bytes(data)
            os.replace(temporary, path)

    def write_new(self, key: str, data: bytes) -> bool:
        with self._translated(key) as path, _written_beside(path) as temporary:
            temporary.write_bytes(data)
            try:
                # A hard link fails where the name is taken: the same promise as `If-None-Match: *`.
                os.link(temporary, path)
            except FileExistsError:
                return False
            return True

    def upload(self, key: str, source: Path) -> None:
        with source.open("rb") as file, self._translated(key) as path, _written_beside(path) as temporary:
            with temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy)
            os.replace(temporary, path)

    def download(self, key: str, target: Path) -> bool:
        with self._translated(key) as path:
            if not path.is_file():
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            return True

    def list(self, prefix: str = "") -> Iterator[str]:
        # Only the deepest directory of the prefix: a study's store holds thousands of files beside it.
        with self._translated(prefix.rpartition("/")[0]) as top:
            keys = sorted(
                Path(directory, name).relative_to(self.root).as_posix()
                for directory, _, names in os.walk(top, onerror=_raise_unless_missing)
                for name in names
                if not name.startswith(_TEMPORARY)
            )
        return (key for key in keys if key.startswith(prefix))

    def delete(self, prefix: str) -> int:
        name = prefix.rstrip("/")
        keys = [*self.list(f"{name}/" if name else "")]
        with self._translated(name) as path:
            if path.is_dir():
                shutil.rmtree(path)
            elif name == prefix and path.exists():
                path.unlink()
                keys.append(name)
        return len(keys)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[Path]:
        try:
            yield self.root / _check_key(key)
        except OSError as error:
            raise ArtifactError(f"the directory {self.root} cannot be used: {error}") from error


_TEMPORARY = ".writing-"


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """Make a file with the usual mode beside the target, to be moved over it; what is left of it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


class S3Store:
    """A prefix of an S3-compatible bucket."""

    def __init__(self, uri: str, access: S3Access = FROM_ENVIRONMENT) -> None:
        # By hand: `#` and `?` are letters of a key.
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise ArtifactError(f"the storage URI must name a bucket, got {uri!r}")
        self.uri = uri
        self._prefix = prefix.strip("/")
        self._secrets = tuple(word for word in (access.secret_access_key, access.session_token) if word)
        with self._translated(""):
            try:
                # What the environment says may change; what is said in full may not.
                self._client = _make_client(access) if access.is_from_environment else _find_client(access)
            except ValueError as error:
                # Such as "Invalid endpoint".
                raise ArtifactError(f"s3://{self._bucket} cannot be used: {error}") from error

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
                if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                    raise
                # The answer to a HEAD does not tell a missing object from a missing bucket.
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(key), MaxKeys=1)
                return False
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
        keys = [key for key in self.list(prefix) if _is_under(key, prefix)]
        with self._translated(prefix):
            for start in range(0, len(keys), 1000):
                batch = [{"Key": self._key(key)} for key in keys[start : start + 1000]]
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                for error in answer.get("Errors", []):
                    raise ArtifactError(f"s3://{self._bucket}/{error['Key']} cannot be deleted: {error['Message']}")
        return len(keys)

    def _key(self, key: str) -> str:
        _check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            reason, hint = _explain(error)
            said = f"s3://{self._bucket}/{self._key(key)} cannot be used: {f'{hint}: ' if hint else ''}{error}"
            for word in self._secrets:
                said = said.replace(word, "…")
            raise ArtifactError(said, reason) from error


def _explain(error: Exception) -> tuple[str, str]:
    """Return a CamelCase word for what a bucket's server said, and what a person can do about it."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code") or "")
    # `upload_file` and `download_file` tell the server's code in their text alone.
    known = next((word for word in _HINTS if word == code or f"({word})" in str(error)), "")
    if known:
        return _HINTS[known]
    if type(error).__name__ in ("ResponseStreamingError", "IncompleteReadError"):
        return "ObjectTruncated", "the answer was cut off"
    if type(error).__name__ == "NoCredentialsError":
        return "CredentialsMissing", ""
    return "StorageUnreachable", ""


_DENIED = ("AccessDenied", "the credentials do not allow it")
_REFUSED = ("CredentialsRefused", "the server does not accept the credentials")
_HINTS = {
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "AllAccessDisabled": _DENIED,
    "InvalidAccessKeyId": _REFUSED,
    "SignatureDoesNotMatch": _REFUSED,
    "InvalidToken": _REFUSED,
    "ExpiredToken": ("CredentialsExpired", "the credentials have expired"),
    "TokenRefreshRequired": ("CredentialsExpired", "the credentials have expired"),
    "NoSuchBucket": ("BucketMissing", "the bucket must exist"),
    "RequestTimeTooSkewed": ("ClockSkewed", "the clocks of this machine and of the server must agree to 15 minutes"),
    "RequestExpired": ("ClockSkewed", "the clocks of this machine and of the server must agree to 15 minutes"),
}


_MAKING = threading.Lock()
"""boto3's session is not made for many threads; its clients are."""


@functools.lru_cache(maxsize=128)
def _find_client(access: S3Access) -> Any:
    """Return one client for all stores that are reached in the same way: it takes 50 ms and a megabyte to make."""
    return _make_client(access)


def _make_client(access: S3Access) -> Any:
    import boto3
    from botocore.config import Config

    def given(value: str | None, *variables: str) -> str | None:
        if value is not None or not access.is_from_environment:
            return value
        return next((word for name in variables if (word := os.environ.get(name))), None)

    credentials: dict[str, Any] = {}
    if access.access_key_id is not None:
        credentials = {
            "aws_access_key_id": access.access_key_id,
            "aws_secret_access_key": access.secret_access_key,
            "aws_session_token": access.session_token,
        }
    with _MAKING:
        return boto3.client(
            "s3",
            region_name=given(access.region, "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            endpoint_url=access.endpoint,
            verify=access.ca_bundle,
            config=Config(
                s3={"addressing_style": given(access.addressing_style, "S3_ADDRESSING_STYLE") or "auto"},
                ignore_configured_endpoint_urls=not access.is_from_environment,
                connect_timeout=access.connect_seconds,
                read_timeout=access.read_seconds,
                retries={"mode": "standard", "max_attempts": access.attempts},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **credentials,
        )
