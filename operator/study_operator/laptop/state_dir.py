"""A study's own directory on this machine: who the study is, what was accepted, and its status.

    study.json    the study's uid and the spec that it runs with
    status.json   the status with its version; a write names the version that it read
    run.lock, jobs/, logs/    see `laptop/runner.py`

What Kubernetes keeps in its API server is kept here in files. Called by the command line.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from study_operator.errors import ConflictError, OperatorError, StatusUnreadableError
from trial_trainer.contract import ContractError, from_json
from trial_trainer.files import write_whole

CHANGEABLE = ("suspend", "parallelTrials", "numTrials", "budget", "ttlSecondsAfterFinished")
"""Fields of the spec that may change once the study has trials; `numTrials` only upwards."""


class SpecChangedError(OperatorError):
    """The manifest differs from what the study runs with, in fields that may not change. One sentence a field."""

    reason = "SpecChanged"


@dataclass(frozen=True, kw_only=True)
class StoredStatus:
    """What ``status.json`` holds."""

    version: int
    status: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AcceptedStudy:
    """What ``study.json`` holds."""

    uid: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class StatusFile:
    """The study's status with optimistic locking, as a file."""

    path: Path

    def read(self) -> tuple[Mapping[str, Any] | None, int]:
        """Return the status (None before the first write) and its version.

        Raises:
            StatusUnreadableError: where the file is not one that was written here.
        """
        stored = _read(self.path, StoredStatus)
        return (None, 0) if stored is None else (stored.status, stored.version)

    def confirm(self, version: int) -> None:
        """Make sure that nothing was written since a version was read.

        Raises:
            ConflictError: where something was.
        """
        _, current = self.read()
        if current != version:
            raise ConflictError(f"the status has version {current}, but version {version} was read")

    def write(self, status: Mapping[str, Any], version: int) -> int:
        """Write the status if its version is still the one that was read; return the new version.

        Raises:
            ConflictError: where it is not.
        """
        self.confirm(version)
        _write_private(self.path, json.dumps({"version": version + 1, "status": status}, allow_nan=False))
        return version + 1


@dataclass(frozen=True)
class Workspace:
    """The directory of one study."""

    directory: Path

    @property
    def status(self) -> StatusFile:
        """The study's status."""
        return StatusFile(self.directory / "status.json")

    def read_uid(self) -> str | None:
        """Return the study's uid; None where it was never run."""
        accepted = self._read_accepted()
        return accepted.uid if accepted else None

    def read_spec(self) -> Mapping[str, Any] | None:
        """Return the spec that the study runs with; None where it was never run."""
        accepted = self._read_accepted()
        return accepted.spec if accepted else None

    def accept(self, spec: Mapping[str, Any], before_forgetting: Callable[[], None] = lambda: None) -> str:
        """Take a spec for the study of this directory, and return the study's uid.

        A study that has no trials yet starts anew with a changed spec: so one whose data could not be prepared is
        mended by mending its manifest.

        Args:
            spec: the manifest's spec.
            before_forgetting: called before the earlier study's jobs are forgotten, to end them.

        Raises:
            SpecChangedError: naming every field that may not change.
        """
        accepted = self._read_accepted()
        if accepted is not None and accepted.spec != spec:
            problems = list(describe_changes(accepted.spec, spec))
            if problems and self._has_trials():
                raise SpecChangedError("\n".join(problems))
            if problems:
                before_forgetting()
                self._forget()
                accepted = None
        uid = accepted.uid if accepted else str(uuid.uuid4())
        self.directory.mkdir(parents=True, exist_ok=True)
        _write_private(self.directory / "study.json", json.dumps({"uid": uid, "spec": spec}, indent=1))
        return uid

    def _read_accepted(self) -> AcceptedStudy | None:
        return _read(self.directory / "study.json", AcceptedStudy)

    def _has_trials(self) -> bool:
        status, _ = self.status.read()
        return bool(status and status.get("trials"))

    def _forget(self) -> None:
        self.status.path.unlink(missing_ok=True)
        shutil.rmtree(self.directory / "jobs", ignore_errors=True)


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each field of the spec that changed and must not."""
    sentences = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if name == "numTrials" and isinstance(old, int) and isinstance(new, int) and new < old:
            sentences.append(f"`spec.numTrials` must not be lowered once the study has trials: it was {old}, got {new}")
        elif old != new and name not in CHANGEABLE:
            sentences.append(
                f"`spec.{name}` must not change once the study has trials: it was {_short(old)}, got {_short(new)}"
            )
    return sentences


T = TypeVar("T")


def _read(path: Path, kind: type[T]) -> T | None:
    """Read what was written here; None where there is no file."""
    try:
        return from_json(kind, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ContractError as error:
        raise StatusUnreadableError(f"{path} must be as it was written here: {error}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _write_private(path: Path, text: str) -> None:
    write_whole(path, text, mode=0o600, is_durable=True)
