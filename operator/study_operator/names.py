"""Every key in the bucket and every Job name. All are functions of study, trial and rung, so that a retry is harmless.

Keys are relative to the study's own prefix, ``<storage uri>/<namespace>/<study>-<uid8>/``.
"""

from __future__ import annotations

from trial_trainer import contract
from trial_trainer.artifacts import join

API_VERSION = "finetune.study/v1alpha1"
KIND = "FineTuneStudy"

DATASET = "dataset"
FINAL_EVALUATION = "final-evaluation"
TRIALS = "trials"
LEDGER = contract.LEDGER
PROBE = "write-test"
"""Written where trials have left nothing, to find out whether anybody may write."""
FINAL_EVALUATION_PROGRESS = f"{FINAL_EVALUATION}/progress.json"
REPORT = "report/report.json"
REPORT_PAGE = "report/index.html"
MODEL_READING = "report/model.json"
"""What the optimizer's model says, for the report: written where the optimizer is, read wherever a page is made."""


def study_uri(storage_uri: str, namespace: str, name: str, uid: str) -> str:
    """Return the URI of the prefix of all artifacts of one study."""
    return join(storage_uri, namespace, f"{name}-{uid[:8]}")


def teacher_answers_uri(storage_uri: str, namespace: str) -> str:
    """Return the prefix of all answers of teachers, which the studies of a namespace share. No study has its name."""
    return join(storage_uri, namespace, "teacher-answers")


def earlier_ledger_key(index: int) -> str:
    """Return the key of the ledger of an earlier study that the job that prepares has copied."""
    return f"{DATASET}/{contract.earlier_key(index)}"


def named_ledger_key(study: str) -> str:
    """Return the key of the ledger of an earlier study that the operator has copied."""
    return f"earlier/{study}.json"


def rung_key(trial: str, rung: int) -> str:
    """Return the output prefix of one rung of a trial."""
    return f"{TRIALS}/{trial}/rungs/{rung}"


def progress_key(trial: str) -> str:
    """Return the key that a running trial refreshes."""
    return f"{TRIALS}/{trial}/progress.json"


def prepare_job(study: str) -> str:
    """Return the name of the job that prepares the dataset."""
    return f"{study}-prepare"


def trial_job(study: str, trial: str, rung: int) -> str:
    """Return the name of the job of one rung of a trial."""
    return f"{study}-{trial}-r{rung}"


def final_evaluation_job(study: str) -> str:
    """Return the name of the job that reads the test set."""
    return f"{study}-final-evaluation"


# --- On a cluster -----------------------------------------------------------------------------------------------

StudyKey = tuple[str, str]
"""Which study of a cluster: namespace and name."""

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "finetunestudies"

STUDY_LABEL = f"{GROUP}/study"
STUDY_UID_LABEL = f"{GROUP}/study-uid"
"""Tells whose a pod is that has lost its Job: another study may have had the same name."""
KIND_LABEL = f"{GROUP}/kind"
TRIAL_LABEL = f"{GROUP}/trial"
RUNG_LABEL = f"{GROUP}/rung"
DIGEST_LABEL = f"{GROUP}/digest"
"""Of all that decides a job's result: a Job of the same name with another one is another arm's."""
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "finetune-study-operator"

BUCKET_LABEL = f"{GROUP}/bucket"
"""On a Secret, ``"true"``: the operator may read it."""

QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Kueue reads them from a Job's own labels and from nowhere else."""

FINALIZER = f"{GROUP}/bucket"
"""On a study whose prefix in the bucket is deleted with it."""


def service(study: str) -> str:
    """Return the name of the headless Service through which the ranks of a study's many-node trials meet."""
    return f"finetune-{study}"
