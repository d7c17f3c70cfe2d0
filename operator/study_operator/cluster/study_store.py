"""Studies as the watch told them, and their status, which is the status subresource."""

from __future__ import annotations

import json
import logging
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.errors import ConflictError, StatusRefusedError
from study_operator.names import StudyKey

log = logging.getLogger(__name__)

TOO_LARGE = ("request is too large", "larger than max")
"""What etcd, and its client, say of an object that is; the API server answers as if something in itself were broken."""


def study_path(key: StudyKey, part: str = "") -> str:
    """Return the path of a study."""
    return path_of(names.API_VERSION, names.PLURAL, key[0], key[1], part)


def manifest_of(body: Raw) -> Raw:
    """Return what a person wrote of a study, with what the API server has added that a study needs."""
    return {name: body[name] for name in ("apiVersion", "kind", "metadata", "spec") if name in body}


class Studies:
    """The studies as last seen. May be used by many threads."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._lock = threading.Lock()
        self._known: dict[StudyKey, _Known] = {}

    def get(self, key: StudyKey) -> Raw | None:
        """Return a study; None where it is not known, or gone."""
        with self._lock:
            known = self._known.get(key)
        return None if known is None else known.unpack()

    def list_keys(self) -> list[StudyKey]:
        """Return which studies are known."""
        with self._lock:
            return list(self._known)

    def bodies(self) -> Iterator[Raw]:
        """Yield every known study as last seen."""
        for key in self.list_keys():
            body = self.get(key)
            if body is not None:
                yield body

    def put(self, body: Raw) -> None:
        """Take in a study, unless a newer state of it is known."""
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        key = (metadata["namespace"], metadata["name"])
        reported = _Known.pack({**body, "metadata": metadata})
        with self._lock:
            known = self._known.get(key)
            if known is None or known.uid != reported.uid or known.version < reported.version:
                self._known[key] = reported

    def drop(self, key: StudyKey, uid: str) -> None:
        """Forget a study that is gone."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.uid == uid:
                del self._known[key]

    def sweep(self, namespace: str | None) -> list[StudyKey]:
        """Compare what is known with the API server; return the studies that are gone or newer there.

        Raises:
            KubeError: where there is no answer.
        """
        with self._lock:
            # One that is made while the list is on its way is not in it.
            before = {key: known for key, known in self._known.items() if namespace in (None, key[0])}
        items, _ = self._kube.list(path_of(names.API_VERSION, names.PLURAL, namespace), only_metadata=True)
        there = {(m["namespace"], m["name"]): m for m in (item["metadata"] for item in items)}
        gone = [key for key, known in before.items() if there.get(key, {}).get("uid") != known.uid]
        for key in gone:
            self.drop(key, before[key].uid)
        behind = [
            key
            for key, metadata in there.items()
            if key in gone or key not in before or before[key].version < int(metadata["resourceVersion"])
        ]
        news = list(gone)
        for key in behind:
            try:
                self.refresh(key)
            except KubeError as error:
                # The others have their news all the same; this one is behind the next time, too.
                log.debug("study %s/%s cannot be read: %s", *key, error)
                continue
            news.append(key)
        return list(dict.fromkeys(news))

    def refresh(self, key: StudyKey) -> Raw | None:
        """Look at the API server, and return the study as it is there."""
        body = self._kube.get(study_path(key))
        if body is None:
            with self._lock:
                self._known.pop(key, None)
            return None
        self.put(body)
        return self.get(key)


class _Known(NamedTuple):
    """One study as last seen. As a dictionary it would take thirty times the memory, and few are looked at often."""

    uid: str
    version: int
    content: bytes

    @classmethod
    def pack(cls, body: Raw) -> _Known:
        content = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1)
        return cls(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]), content)

    def unpack(self) -> Raw:
        return cast(Raw, json.loads(zlib.decompress(self.content)))


@dataclass(frozen=True)
class ClusterStatuses:
    """The status of one study, with the API server's own optimistic locking."""

    kube: Kube
    studies: Studies
    body: Raw
    """The study as this tick sees it; its ``resourceVersion`` is the version of the status."""

    def read(self) -> tuple[Mapping[str, Any] | None, str]:
        """Return the status (None before the first write) and its version."""
        return self.body.get("status") or None, self.body["metadata"]["resourceVersion"]

    def confirm(self, version: str) -> None:
        """Make sure that the study was not changed since this tick saw it.

        Raises:
            ConflictError: where it was, or is gone or being deleted.
        """
        now = self.kube.get(study_path(self._key), only_metadata=True)
        metadata = now["metadata"] if now is not None else {}
        if metadata.get("uid") != self.body["metadata"]["uid"] or "deletionTimestamp" in metadata:
            raise ConflictError(f"study {self._key[1]} is being deleted")
        if metadata["resourceVersion"] != version:
            raise ConflictError(f"study {self._key[1]} is at {metadata['resourceVersion']}, but {version} was read")

    def write(self, status: Mapping[str, Any], version: str) -> str:
        """Write the status if the study is still the one that was read; return the new version.

        Raises:
            ConflictError: where it is not.
            StatusRefusedError: where the API server does not take this one.
        """
        metadata = {**self.body["metadata"], "resourceVersion": version}
        body = {**self.body, "metadata": metadata, "status": dict(status)}
        try:
            written = self.kube.replace(study_path(self._key, "status"), body)
        except KubeError as error:
            if error.is_not_found or error.reason == "Conflict":
                raise ConflictError(error.message) from error
            if not error.is_transient or any(words in error.message for words in TOO_LARGE):
                raise StatusRefusedError(error.message) from error
            raise
        self.studies.put(written)
        return str(written["metadata"]["resourceVersion"])

    @property
    def _key(self) -> StudyKey:
        return self.body["metadata"]["namespace"], self.body["metadata"]["name"]
