"""What can go wrong that is not data: one tree, whose errors lie beside what raises them.

    OperatorError
    ├── StudyInvalidError          SpecInvalid           the manifest breaks a rule; every problem at once
    ├── ManifestError              ManifestUnreadable    its file cannot be read             (spec.manifest)
    ├── SpecChangedError           SpecChanged           it differs where it must not        (laptop.state_dir)
    ├── StatusUnreadableError      StatusUnreadable      the recorded status is not one of ours
    ├── StatusRefusedError         StatusRefused         the status is not taken: it is written in a smaller form
    ├── ConflictError              StatusConflict        the status was written since it was read: the tick is dropped
    ├── LedgerRefusedError         LedgerRefused         the bucket's copy is another study's (ledger.bucket_copy)
    │   └── WarmStartRefusedError  WarmStartRefused      nothing can be learnt from an earlier study
    ├── NoSuchStudyError           NoSuchStudy           none of a name, or none to learn from (reconcile.warm_start)
    ├── LaunchRefusedError         (the environment's)   a job is not taken: said in a condition, tried again
    ├── IllegalMoveError           IllegalMove           a trial was moved as the table does not know: a bug
    ├── DataCurveError             DataCurveUnusable     what was measured is no data curve  (ledger.data_curve)
    ├── StorageRefusedError        StorageRefused        the bucket may not be used so       (cluster.buckets)
    ├── DesignerError              OptimizerFailed       no arm is proposed                  (optimizer.designer)
    ├── ProposalPendingError       ProposalPending       … yet: it will be                   (optimizer.designer)
    ├── OutcomeError               OutcomeUnusable       the ledger lacks what Ax needs      (optimizer.outcomes)
    ├── KubeError                  (the API server's)    a request was refused or not answered (cluster.api)
    │   ├── WatchBrokenError                             … by a watch: list again
    │   └── AnswerTooLargeError    NotUnderstood         … with more bytes than any answer has
    ├── TransientError             TryAgain              a reconciliation is to be made again (cluster.work_queue)
    ├── WaitsError                 DeletionWaits         a study cannot go yet               (cluster.finalizer)
    ├── ConfigurationError         ConfigurationInvalid  a flag or the configuration is wrong (cluster.installation)
    ├── CertificateError           CertificateUnusable   metrics cannot be served with it    (cluster.metrics_server)
    ├── StudyBusyError             StudyBusy             another command drives the study    (laptop.runner)
    └── UsageError                 UsageWrong            a flag or a path cannot be used     (laptop.session)

Each has a CamelCase ``reason``. A trial's failure is none of these: it is data, in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence


class OperatorError(Exception):
    """The root of this tree."""

    reason: str = "OperatorError"


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

    reason = "JobRefused"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IllegalMoveError(OperatorError):
    """A trial was moved in a way that the table of legal moves does not know."""

    reason = "IllegalMove"
