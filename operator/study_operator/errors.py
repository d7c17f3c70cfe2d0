"""What can go wrong that is not data.

    OperatorError
    ├── StudyInvalidError        SpecInvalid        the manifest, with every problem at once
    ├── StatusUnreadableError    StatusUnreadable   the recorded status is not one of ours
    ├── ConflictError            StatusConflict     the status was written since it was read: the tick is dropped
    ├── StatusRefusedError       StatusRefused      the status is none that is taken: it is written in a smaller form
    ├── LaunchRefusedError       (its own)          a cluster does not take a job: said in a condition, tried again
    └── IllegalMoveError         IllegalMove        a trial was moved in a way that the table does not know: a bug

Each carries a CamelCase ``reason`` that goes unchanged into conditions and events. A trial's failure is none of these:
it is data, in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class OperatorError(Exception):
    """The root of this tree."""

    reason: ClassVar[str] = "OperatorError"


class StudyInvalidError(OperatorError):
    """A manifest that cannot be accepted; its message is one sentence a line."""

    reason = "SpecInvalid"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
        """Every problem, as a sentence with field, rule and value."""


class StatusUnreadableError(OperatorError):
    """The recorded status cannot be parsed."""

    reason = "StatusUnreadable"


class ConflictError(OperatorError):
    """The status was written by somebody else since it was read."""

    reason = "StatusConflict"


class StatusRefusedError(OperatorError):
    """The status is not taken as it is: too large, or against a rule of somebody's."""

    reason = "StatusRefused"


class LaunchRefusedError(OperatorError):
    """A job cannot be created as things are: a quota, a policy, a name that is taken."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.word = reason
        """The environment's CamelCase word for it."""


class IllegalMoveError(OperatorError):
    """A trial was moved in a way that the table of legal moves does not know."""

    reason = "IllegalMove"
