"""Every key in the bucket and every Job name. All are functions of study, trial and rung, so that a retry is harmless.

Keys are relative to the study's own prefix, ``<storage uri>/<namespace>/<study>-<uid8>/``.
"""

from __future__ import annotations

from trial_trainer.artifacts import join

API_VERSION = "finetune.study/v1alpha1"
KIND = "FineTuneStudy"

DATASET = "dataset"
JUDGE = "judge"
LEDGER = "ledger.json"
REPORT = "report/report.json"
REPORT_PAGE = "report/index.html"


def study_uri(storage_uri: str, namespace: str, name: str, uid: str) -> str:
    """Return the URI of the prefix of all artifacts of one study."""
    return join(storage_uri, namespace, f"{name}-{uid[:8]}")


def rung_key(trial: str, rung: int) -> str:
    """Return the output prefix of one rung of a trial."""
    return f"trials/{trial}/rungs/{rung}"


def progress_key(trial: str) -> str:
    """Return the key that a running trial refreshes."""
    return f"trials/{trial}/progress.json"


def prepare_job(study: str) -> str:
    """Return the name of the job that prepares the dataset."""
    return f"{study}-prepare"


def trial_job(study: str, trial: str, rung: int) -> str:
    """Return the name of the job of one rung of a trial."""
    return f"{study}-{trial}-r{rung}"


def judge_job(study: str) -> str:
    """Return the name of the job that reads the test set."""
    return f"{study}-judge"
