"""Where datasets, checkpoints and measurements live: one bucket prefix, or one directory on a laptop.

Keys are relative to the store's URI and use ``/``. A write is atomic: a reader sees the whole object or none.
The only importer of boto3, which is loaded when the first ``s3://`` URI is opened.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import ipaddress
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_plus

from trial_trainer.files import TEMPORARY, beside, write_whole
from trial_trainer.s3_guard import AddressRefusedError, check_time, guard, within

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from botocore.exceptions import ClientError

__all__ = [
    "ArtifactError",
    "ArtifactStore",
    "DirectoryStore",
    "S3Access",
    "S3Store",
    "Version",
    "join",
    "open_object",
    "open_store",
    "within",
]

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
PART_BYTES = 8 * 1024 * 1024
"""What boto3 moves at a time of larger objects."""
CONFLICT_WAITS_SECONDS = (0.1, 0.3, 1.0, 3.0)
"""Between two tries to put an object that a server calls a conflict though nothing stands there."""


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
    refused_networks: tuple[str, ...] = ()
    """Such as ``127.0.0.0/8``: no connection is made to an address in one of these, whatever the endpoint's name."""
    attempts: int = 6
    """Of one request, with a jittered wait between two: a trial that has trained for hours is patient."""

    def impatient(self) -> S3Access:
        """Return the access of somebody who tries again anyway, and wants to say soon that a bucket is away."""
        return replace(self, read_seconds=20.0, attempts=2)


FROM_ENVIRONMENT = S3Access()


@dataclass(frozen=True, kw_only=True)
class Version:
    """An object as it was read."""

    data: bytes
    tag: str
    """Changes with the object."""


class ArtifactStore(Protocol):
    """Objects under one prefix."""

    @property
    def uri(self) -> str:
        """The prefix, as it was opened."""
        ...

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        """Return the object, or None where there is none.

        Raises:
            ArtifactError: with the reason ``ObjectTooLarge`` where it has more bytes than that; they are not read.
        """
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


def open_store(uri: str, access: S3Access = FROM_ENVIRONMENT) -> DirectoryStore | S3Store:
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


def _read_most(file: Any, uri: str, most_bytes: int | None) -> bytes:
    """Read a file or the body of an answer, if it is no longer than that: what a server says of it may be false."""
    if most_bytes is None:
        return bytes(file.read())
    parts, size = [], 0
    # To the very end: only there an answer that was cut off is told from a whole one.
    while part := file.read(READ_BYTES):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise ArtifactError(f"{uri} must have at most {most_bytes} bytes", "ObjectTooLarge")
    return b"".join(parts)


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

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        with self._translated(key) as path:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                return _read_most(file, f"{self.root}/{key}", most_bytes)

    def read_news(self, key: str, seen: str | None, most_bytes: int | None = None) -> Version | None:
        """Return the object if it is another one than was seen; None where it is the same, or there is none.

        Args:
            key: of the object.
            seen: the tag of the version that was read last; None where none was.
            most_bytes: as for `read`.
        """
        with self._translated(key) as path:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                # Of the file that is open: another may take its name meanwhile.
                status = os.fstat(file.fileno())
                tag = f"{status.st_ino}/{status.st_mtime_ns}/{status.st_size}"
                if tag == seen:
                    return None
                return Version(data=_read_most(file, f"{self.root}/{key}", most_bytes), tag=tag)

    def write(self, key: str, data: bytes) -> None:
        with self._translated(key) as path:
            write_whole(path, data)

    def write_new(self, key: str, data: bytes) -> bool:
        with self._translated(key) as path, beside(path) as temporary:
            temporary.write_bytes(data)
            try:
                # A hard link fails where the name is taken: the same promise as `If-None-Match: *`.
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                # A file system without hard links, as buckets that are mounted: between two writers at the same
                # moment nothing decides.
                if path.exists():
                    return False
                os.replace(temporary, path)
            return True

    def upload(self, key: str, source: Path) -> None:
        with source.open("rb") as file, self._translated(key) as path, beside(path) as temporary:
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
                if not name.startswith(TEMPORARY)
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


_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


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
        from boto3.s3.transfer import TransferConfig

        # Of a shared client only this thread's requests are signed.
        self._transfer = TransferConfig(use_threads=access.is_from_environment)

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        from botocore.exceptions import ClientError

        with self._translated(key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            except ClientError as error:
                self._raise_unless_missing(error, key)
                return None
            # What is left of it unread is not waited for.
            with contextlib.closing(body):
                return _read_most(body, f"s3://{self._bucket}/{self._key(key)}", most_bytes)

    def read_news(self, key: str, seen: str | None, most_bytes: int | None = None) -> Version | None:
        """Do the same with a conditional request, so that an object that has not changed is not sent again."""
        from botocore.exceptions import ClientError

        condition = {} if seen is None else {"IfNoneMatch": seen}
        with self._translated(key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), **condition)
            except ClientError as error:
                if _status_of(error) == 304:
                    return None
                self._raise_unless_missing(error, key)
                return None
            with contextlib.closing(answer["Body"]) as body:
                tag = str(answer.get("ETag") or "")
                # A server that knows no condition sends the same once more.
                if tag and tag == seen:
                    return None
                data = _read_most(body, f"s3://{self._bucket}/{self._key(key)}", most_bytes)
            return Version(data=data, tag=tag or hashlib.sha256(data).hexdigest())

    def write(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def write_new(self, key: str, data: bytes) -> bool:
        # A server may ignore the condition without a word, so nothing is put where something is to be seen; and what
        # stands afterwards tells whose object it is, whatever the server said. Only of two writers at the same moment,
        # on a server without conditions, both may believe that they were first.
        if self.read(key) is not None:
            return False
        with self._translated(key):
            for wait_seconds in CONFLICT_WAITS_SECONDS:
                answer = self._put_if_new(key, data)
                standing = self.read(key)
                if answer is _Put.DONE or standing is not None:
                    return standing is None or standing == data
                if answer is not _Put.CONFLICT:
                    break
                time.sleep(wait_seconds)
            # Nothing stands, and the condition was refused: this server does not know it.
            log.warning("the server of s3://%s takes no If-None-Match: %s is written without it", self._bucket, key)
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)
            return self.read(key) in (data, None)

    def _put_if_new(self, key: str, data: bytes) -> _Put:
        """Put an object under the condition that there is none; 409 and 412 mean different things to servers."""
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except ClientError as error:
            status, code = _status_of(error), error.response["Error"]["Code"]
            if status == 409:
                return _Put.CONFLICT
            # A proxy that takes the header away spoils the signature.
            if status in (304, 412) or _is_unknown_to_server(error) or code == "SignatureDoesNotMatch":
                return _Put.REFUSED
            raise
        return _Put.DONE

    def upload(self, key: str, source: Path) -> None:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import ClientError

        with self._translated(key):
            try:
                self._client.upload_file(str(source), self._bucket, self._key(key), Config=self._transfer)
            except (S3UploadFailedError, KeyError) as error:
                # Without uploads in parts, or with parts that have no ETag.
                cause = error.__cause__ or error.__context__
                is_refused = isinstance(cause, ClientError) and _is_unknown_to_server(cause)
                if not is_refused and not isinstance(error, KeyError):
                    raise
                with source.open("rb") as file:
                    self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=file)

    def download(self, key: str, target: Path) -> bool:
        from botocore.exceptions import ClientError
        from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError

        target.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(key):
            try:
                self._client.download_file(self._bucket, self._key(key), str(target), Config=self._transfer)
            except ClientError as error:
                if not _is_unknown_to_server(error):
                    self._raise_unless_missing(error, key)
                    return False
            except (S3DownloadFailedError, S3ValidationError, LookupError, TypeError, ValueError) as error:
                log.info("s3://%s/%s is fetched again in one piece: %s", self._bucket, self._key(key), error)
            else:
                if self._is_whole(key, target):
                    return True
            return self._download_plainly(key, target)

    def _is_whole(self, key: str, target: Path) -> bool:
        """Say whether a file that came in parts is as long as the object.

        A server that answers with the whole object where a part is asked for makes it longer, and nobody complains.
        """
        length = target.stat().st_size
        if length <= PART_BYTES:
            return True
        return bool(self._client.head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"] == length)

    def _download_plainly(self, key: str, target: Path) -> bool:
        """Fetch an object in one piece, from a server that knows no ranges, or whose ETags change."""
        from botocore.exceptions import ClientError

        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
        except ClientError as error:
            self._raise_unless_missing(error, key)
            return False
        with beside(target) as temporary:
            with temporary.open("wb") as file:
                for chunk in body.iter_chunks(1024 * 1024):
                    file.write(chunk)
            os.replace(temporary, target)
        return True

    def _raise_unless_missing(self, error: ClientError, key: str) -> None:
        """Raise an error again unless it says that there is no such object."""
        code = error.response["Error"]["Code"]
        if code == "NoSuchKey":
            return
        if _status_of(error) != 404 or code == "NoSuchBucket":
            raise error
        # The answer to a HEAD, and that of some servers, does not tell a missing object from a missing bucket. The
        # bucket may have come back meanwhile, and the object with it.
        found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(key), MaxKeys=1)
        if any(item["Key"] == self._key(key) for item in found.get("Contents", ())):
            raise error

    def list(self, prefix: str = "") -> Iterator[str]:
        # A key that ends in a slash is a folder of somebody's console, and no object.
        return (key for key in self._list(prefix) if key and not key.endswith("/"))

    def _list(self, prefix: str) -> Iterator[str]:
        skip = len(self._prefix) + 1 if self._prefix else 0
        with self._translated(prefix):
            start = self._key(prefix)
            for page in self._pages(start):
                for key in page:
                    # A server may not know prefixes.
                    if key.startswith(start):
                        yield key[skip:]

    def _pages(self, prefix: str) -> Iterator[Sequence[str]]:
        """Yield pages of keys. Every page must bring something new: a list may else never end."""
        from botocore.exceptions import ClientError

        asked: dict[str, str] = {"Bucket": self._bucket, "Prefix": prefix}
        ask, last = "list_objects_v2", ""
        while True:
            try:
                answer = getattr(self._client, ask)(**asked)
            except ClientError as error:
                if ask == "list_objects" or not _is_unknown_to_server(error):
                    raise
                ask = "list_objects"
                continue
            keys = [_as_asked(entry["Key"], prefix) for entry in answer.get("Contents") or []]
            yield keys
            if not answer.get("IsTruncated"):
                return
            token = answer.get("NextContinuationToken")
            if token and ask == "list_objects_v2":
                following = {"ContinuationToken": token}
            else:
                # The first version of lists goes on behind a key, and is what some servers give when asked for the
                # second.
                ask, token = "list_objects", answer.get("NextMarker") or (keys[-1] if keys else "")
                following = {"Marker": token}
            if not token or token == last:
                raise ArtifactError(f"s3://{self._bucket}/{prefix} cannot be listed: its server repeats a page")
            last = token
            asked = {"Bucket": self._bucket, "Prefix": prefix, **following}

    def delete(self, prefix: str) -> int:
        keys = [key for key in self._list(prefix) if _is_under(key, prefix)]
        with self._translated(prefix):
            for start in range(0, len(keys), 1000):
                self._delete_together(
                    [self._key(key) if key else f"{self._prefix}/" for key in keys[start : start + 1000]]
                )
        return len(keys)

    def _delete_together(self, keys: Sequence[str]) -> None:
        """Delete up to a thousand objects by one request, or one by one where the server does not take that."""
        from botocore.exceptions import ClientError

        try:
            objects = [{"Key": key} for key in keys]
            answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        except ClientError as error:
            if not _is_unknown_to_server(error):
                raise
            for key in keys:
                self._client.delete_object(Bucket=self._bucket, Key=key)
            return
        for refusal in answer.get("Errors", []):
            message = refusal.get("Message") or refusal.get("Code")
            raise ArtifactError(f"s3://{self._bucket}/{refusal['Key']} cannot be deleted: {message}")

    def _key(self, key: str) -> str:
        _check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
            check_time()
        except (BotoCoreError, ClientError, Boto3Error, ResponseParserError, TimeoutError) as error:
            reason, hint = _explain(error)
            # Not what a parser says of an answer: it repeats all of it, and it may be anything's.
            why = "its server's answer is none of S3" if isinstance(error, ResponseParserError) else str(error)
            message = f"s3://{self._bucket}/{self._key(key)} cannot be used: {f'{hint}: ' if hint else ''}{why:.1000}"
            for word in self._secrets:
                message = message.replace(word, "…")
            raise ArtifactError(message, reason) from error


class _Put(Enum):
    """What became of an object that was to be put where there is none."""

    DONE = auto()
    CONFLICT = auto()
    """Somebody else is at it, or was there first."""
    REFUSED = auto()
    """There is one already, or the server does not know what was asked."""


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


_NOT_OF_THE_SERVER = frozenset(
    {
        *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed", "RequestTimeout"),
        *(
            "RequestExpired",
            "EntityTooLarge",
            "KeyTooLongError",
            "InvalidBucketName",
            "IllegalLocationConstraintException",
        ),
    }
)
"""Words of a 400 for what the same server would refuse in any other form."""


def _is_unknown_to_server(error: ClientError) -> bool:
    """Say whether a server may have refused a request because it does not know the operation, or a header of it."""
    return _status_of(error) in (400, 405, 411, 415, 501) and error.response["Error"]["Code"] not in _NOT_OF_THE_SERVER


def _as_asked(key: str, prefix: str) -> str:
    """Return a listed key as it is; some servers write it as in a URL and do not say so."""
    return key if key.startswith(prefix) or not (plain := unquote_plus(key)).startswith(prefix) else plain


def _explain(error: Exception) -> tuple[str, str]:
    """Return a CamelCase word for what a bucket's server said, and what a person can do about it."""
    refused = _find_cause(error, AddressRefusedError)
    if refused is not None:
        return "EndpointRefused", str(refused)
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code") or "")
    # `upload_file` and `download_file` tell the server's code in their text alone.
    known = next((word for word in _HINTS if word == code or f"({word})" in str(error)), "")
    if known:
        return _HINTS[known]
    if type(error).__name__ in ("ResponseStreamingError", "IncompleteReadError"):
        return "ObjectTruncated", "the answer was cut off"
    if type(error).__name__ == "NoCredentialsError":
        return "CredentialsMissing", _NO_CREDENTIALS
    return "StorageUnreachable", ""


def _find_cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind that led to another."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


_DENIED = ("AccessDenied", "the credentials do not allow it")
_NO_CREDENTIALS = "it needs credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the pod's identity"
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


_MAKING = threading.RLock()
"""boto3's session is not made for many threads; its clients are."""

_MOST_PLACES = 256
"""Endpoints and ways to reach them of which clients are kept; each takes a third of a megabyte."""

_credentials: ContextVar[ReadOnlyCredentials] = ContextVar("bucket_credentials")
"""What the requests of this thread are signed with, where they go through a client that stores share."""


class _SharedClient:
    """A client that stores share which differ in their credentials alone; it signs with those of one of them."""

    def __init__(self, client: Any, credentials: ReadOnlyCredentials) -> None:
        self._client = client
        self._credentials = credentials

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return functools.partial(self._call, name) if callable(value) else value

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        token = _credentials.set(self._credentials)
        try:
            return getattr(self._client, name)(*arguments, **options)
        finally:
            _credentials.reset(token)


def _find_client(access: S3Access) -> Any:
    """Return a client. It takes 6 to 35 ms to make one, so that those who reach buckets in the same way share it."""
    if access.access_key_id is None:
        with _MAKING:
            return _find_shared_client(access)
    from botocore.credentials import ReadOnlyCredentials

    place = replace(access, access_key_id=_EACH_ITS_OWN, secret_access_key=None, session_token=None)
    own = ReadOnlyCredentials(access.access_key_id, access.secret_access_key, access.session_token)
    with _MAKING:
        return _SharedClient(_find_shared_client(place), own)


_EACH_ITS_OWN = "each store's own"
"""In the place of a key that the client does not know before it signs a request."""


@functools.lru_cache(maxsize=_MOST_PLACES)
def _find_shared_client(access: S3Access) -> Any:
    return _make_client(access)


@functools.cache
def _shared_session() -> Any:
    """Return the session of clients that sign with the credentials of whoever calls them."""
    import boto3
    import botocore.session
    from botocore.credentials import CredentialProvider, CredentialResolver, Credentials

    class OfTheStore(Credentials):  # type: ignore[misc]
        def get_frozen_credentials(self) -> ReadOnlyCredentials:
            return _credentials.get()

    class Provider(CredentialProvider):  # type: ignore[misc]
        METHOD = "store"

        def load(self) -> Credentials:
            return OfTheStore(_EACH_ITS_OWN, _EACH_ITS_OWN)

    session = botocore.session.Session()
    session.register_component("credential_provider", CredentialResolver([Provider()]))
    return boto3.Session(botocore_session=session)


def _make_client(access: S3Access) -> Any:
    import boto3
    from botocore.config import Config

    def given(value: str | None, *variables: str) -> str | None:
        if value is not None or not access.is_from_environment:
            return value
        return next((word for name in variables if (word := os.environ.get(name))), None)

    credentials: dict[str, Any] = {}
    if access.access_key_id not in (None, _EACH_ITS_OWN):
        credentials = {
            "aws_access_key_id": access.access_key_id,
            "aws_secret_access_key": access.secret_access_key,
            "aws_session_token": access.session_token,
        }
    with _MAKING:
        make = _shared_session().client if access.access_key_id == _EACH_ITS_OWN else boto3.client
        client = make(
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
    if not access.is_from_environment:
        guard(client, [ipaddress.ip_network(network) for network in access.refused_networks])
    client.meta.events.register("before-sign.s3.DeleteObjects", _sum_up_as_all_servers_know)
    return client


def _sum_up_as_all_servers_know(request: Any, **_: Any) -> None:
    """Put an MD5 in the place of a checksum that only newer servers know; a deletion of many objects needs either."""
    for name in [
        name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum"))
    ]:
        del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()
