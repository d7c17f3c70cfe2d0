"""The few verbs of an API server that modules of the operator use one by one, on a dictionary of objects by path."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from study_operator.cluster.api import Answer, KubeError, Raw


class KubeOfDicts:
    """Stands for `Kube` where a test is not about the API server."""

    def __init__(self) -> None:
        self.objects: dict[str, Raw] = {}
        self.forbidden: set[str] = set()
        """Paths that may not be read."""
        self.requests: list[tuple[str, str]] = []
        """Method and path of those that change something."""
        self._versions = itertools.count(100)

    def put(self, path: str, body: Raw) -> Raw:
        """Let an object be there."""
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(next(self._versions))}}
        self.objects[path] = body
        return body

    def get(self, path: str, *, only_metadata: bool = False) -> Raw | None:
        """Return an object; None where there is none."""
        if path in self.forbidden:
            raise KubeError(403, "Forbidden", f"may not get {path}")
        return self.objects.get(path)

    def list(
        self, path: str, query: Mapping[str, str] | None = None, *, only_metadata: bool = False
    ) -> tuple[list[Raw], str]:
        """Return what is in a collection; selectors are not looked at."""
        found = [body for at, body in self.objects.items() if at.rpartition("/")[0] == path]
        return found, str(next(self._versions))

    def create(self, path: str, body: Raw, query: Mapping[str, str] | None = None) -> Answer:
        """Create an object."""
        self.requests.append(("POST", path))
        metadata = body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{next(self._versions)}"
        return Answer(body=self.put(f"{path}/{name}", body))

    def replace(self, path: str, body: Raw) -> Raw:
        """Replace an object, or the status of one, if its version is the one that is given."""
        self.requests.append(("PUT", path))
        whole = path.removesuffix("/status")
        known = self.objects.get(whole)
        if known is None:
            raise KubeError(404, "NotFound", "gone")
        if _version(body) != _version(known):
            raise KubeError(409, "Conflict", "changed")
        return self.put(whole, {**known, "status": body["status"]} if whole != path else body)

    def patch(self, path: str, body: Raw) -> Raw:
        """Merge metadata into an object, if its version is the one that is given."""
        self.requests.append(("PATCH", path))
        known: dict[str, Any] | None = self.objects.get(path)
        if known is None:
            raise KubeError(404, "NotFound", "gone")
        if body["metadata"].get("resourceVersion", known["metadata"]["resourceVersion"]) != _version(known):
            raise KubeError(409, "Conflict", "changed")
        return self.put(path, {**known, "metadata": {**known["metadata"], **body["metadata"]}})

    def delete(self, path: str, *, uid: str) -> bool:
        """Delete an object."""
        self.requests.append(("DELETE", path))
        return self.objects.pop(path, None) is not None


def _version(body: Raw) -> str:
    return str(body["metadata"]["resourceVersion"])
