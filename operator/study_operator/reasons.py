"""Every CamelCase word that the operator itself puts into conditions, events and attempts.

They are an interface: people, scripts and alerts read them, and `docs/troubleshooting.md` explains each. Words that
come from elsewhere (the kubelet's, the API server's) are passed on as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Problem:
    """Why something cannot be done at the moment: a CamelCase word, and a sentence for people."""

    reason: str
    message: str


class ConditionType(StrEnum):
    """What is said of a study, each true or false; of one it may be unknown."""

    ACCEPTED = "Accepted"
    STORAGE_READY = "StorageReady"
    PREPARED = "Prepared"
    SUSPENDED = "Suspended"
    SEARCH_COMPLETE = "SearchComplete"
    COMPLETE = "Complete"
    FAILED = "Failed"
    JOBS_REFUSED = "JobsRefused"
    EARLY_EVALUATION_RELIABLE = "EarlyEvaluationReliable"
    STALLED = "Stalled"
    OVERFITTING = "Overfitting"
    SEARCH_STAGNATING = "SearchStagnating"


class ConditionReason(StrEnum):
    """Why a condition is as it is; those of `StudyStage`, `FailureReason` and `WaitReason` are reasons, too."""

    VALID = "Valid"
    SPEC_INVALID = "SpecInvalid"
    LEDGER_REFUSED = "LedgerRefused"
    WARM_START_REFUSED = "WarmStartRefused"
    NUM_TRIALS_IGNORED = "NumTrialsIgnored"
    STATUS_SHORTENED = "StatusShortened"
    STATUS_REFUSED = "StatusRefused"
    NOT_ACCEPTED = "NotAccepted"
    REACHABLE = "Reachable"
    STORAGE_REFUSED = "StorageRefused"
    PREPARED = "Prepared"
    NOT_SUSPENDED = "NotSuspended"
    SEARCHING = "Searching"
    WAITS_FOR_STUDY = "WaitsForStudy"
    OPTIMIZER_DIED = "OptimizerDied"
    NOT_FAILED = "NotFailed"
    NOT_REFUSED = "NotRefused"
    PROGRESSING = "Progressing"
    PAIRS_AGREE = "PairsAgree"
    PAIRS_DISAGREE = "PairsDisagree"
    TOO_FEW_TRIALS = "TooFewTrials"
    NOT_PROMOTED = "NotPromoted"
    NOT_EVALUATED = "NotEvaluated"
    NOT_SEEN = "NotSeen"
    TEST_FELL = "TestFell"
    VALIDATION_LOSS_ROSE = "ValidationLossRose"
    RISING = "Rising"
    NO_RISE = "NoRise"


class StudyStage(StrEnum):
    """Where a study is: the reason of `Complete`, which the STATUS column shows."""

    PREPARING = "Preparing"
    EXPLORING = "Exploring"
    PROMOTING = "Promoting"
    CONFIRMING_SEEDS = "ConfirmingSeeds"
    MEASURING_DATA_CURVE = "MeasuringDataCurve"
    EVALUATING = "Evaluating"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    FAILED = "Failed"


class FailureReason(StrEnum):
    """Why a study failed."""

    PREPARE_FAILED = "PrepareFailed"
    FINAL_EVALUATION_FAILED = "FinalEvaluationFailed"
    STUDY_CANNOT_RUN = "StudyCannotRun"
    TOO_MANY_FAILED_TRIALS = "TooManyFailedTrials"
    NO_WINNER = "NoWinner"
    NOTHING_TRAINS = "NothingTrains"


class WaitReason(StrEnum):
    """Why a job cannot start. A scheduler, a kubelet and an API server have further words."""

    QUEUED = "Queued"
    UNSCHEDULABLE = "Unschedulable"
    CONTAINER_CREATING = "ContainerCreating"
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_SECURITY_REFUSED = "PodSecurityRefused"
    ADMISSION_DENIED = "AdmissionDenied"
    WEBHOOK_FAILED = "WebhookFailed"
    NAME_TAKEN = "NameTaken"
    FAILED_CREATE = "FailedCreate"
    JOB_REFUSED = "JobRefused"


class EndReason(StrEnum):
    """How an attempt ended. A kubelet has further words."""

    SUCCEEDED = "Succeeded"
    DIVERGED = "Diverged"
    OUT_OF_MEMORY = "OutOfMemory"
    ARM_CANNOT_RUN = "ArmCannotRun"
    STUDY_CANNOT_RUN = "StudyCannotRun"
    ASKED_TO_STOP = "AskedToStop"
    """We asked, because the study was suspended or had ended; counts against nobody."""
    INTERRUPTED = "Interrupted"
    """Somebody else asked, and the checkpoint was saved."""
    STORAGE_FAILED = "StorageFailed"
    """It left nothing, and the bucket could not be used: counts against nobody."""
    JOB_GONE = "JobGone"
    NO_MEASUREMENT = "NoMeasurement"
    """It said that it was done, and left nothing."""
    CRASHED = "Crashed"
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    POD_LOST = "PodLost"
    KILLED = "Killed"
    CANNOT_START = "CannotStart"
    """On a laptop: its process could not be started."""


class EventReason(StrEnum):
    """What happened, for `kubectl get events`."""

    DATASET_PREPARED = "DatasetPrepared"
    TRIAL_LAUNCHED = "TrialLaunched"
    TRIAL_MEASURED = "TrialMeasured"
    TRIAL_PROMOTED = "TrialPromoted"
    TRIAL_CONTINUED = "TrialContinued"
    TRIAL_FAILED = "TrialFailed"
    TRIAL_ABANDONED = "TrialAbandoned"
    TRIAL_INTERRUPTED = "TrialInterrupted"
    RESULT_REFUSED = "ResultRefused"
    JOB_WAITS = "JobWaits"
    SEARCH_ENDED = "SearchEnded"
    OPTIMIZER_DIED = "OptimizerDied"
    WINNER_CHOSEN = "WinnerChosen"
    CONFIRMATIONS_ENDED = "ConfirmationsEnded"
    DATA_CURVE_CUT = "DataCurveCut"
    DATA_CURVE_ENDED = "DataCurveEnded"
    STUDY_COMPLETED = "StudyCompleted"
    STUDY_FAILED = "StudyFailed"
    STUDY_STALLED = "StudyStalled"
    STUDY_RESUMED = "StudyResumed"
    STATUS_SHORTENED = "StatusShortened"
    STATUS_REFUSED = "StatusRefused"
    LEDGER_TAKEN_UP = "LedgerTakenUp"
    LEDGER_REFUSED = "LedgerRefused"
    WARM_START_REFUSED = "WarmStartRefused"
    WAITS_FOR_STUDY = "WaitsForStudy"
    POD_ORPHANED = "PodOrphaned"
    BUCKET_NOT_DELETED = "BucketNotDeleted"
