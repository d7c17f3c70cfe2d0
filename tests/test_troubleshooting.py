"""docs/troubleshooting.md tells every word that a person can meet in a condition or an attempt."""

import re
from pathlib import Path

from study_operator.cluster import job_runner, job_status
from study_operator.ledger import conditions, status
from study_operator.ledger.trial import EndReason, SearchEnd
from study_operator.reconcile import planner
from study_operator.reconcile.runner import QUOTA_EXCEEDED
from trial_trainer import artifacts

PAGE = (Path(__file__).parents[1] / "docs/troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def words_of(section: str) -> set[str]:
    """Return what the first column of a section's table names."""
    rows = re.findall(r"^\| (.+?) \|", SECTIONS[section], re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([A-Z]\w+)`", row)}


def literals(module: object, pattern: str) -> set[str]:
    """Return the CamelCase words that a module's source names in a way."""
    source = Path(str(module.__file__)).read_text()
    return set(re.findall(pattern, source))


def test_every_reason_of_a_condition_is_told() -> None:
    reported = set().union(*(words_of(section) for section in SECTIONS))
    used = literals(conditions, r'(?:reason=|else |return )"([A-Z]\w+)"') - {"Progressing"}
    assert {"Exploring", "Preparing", "Promoting", "Evaluating", "NumTrialsIgnored"} <= used
    assert used <= reported


def test_every_form_of_a_status_is_told() -> None:
    assert {status.STATUS_SHORTENED, status.STATUS_REFUSED} <= words_of("Accepted")


def test_every_trouble_of_a_bucket_is_told() -> None:
    used = {reason for reason, _ in artifacts._HINTS.values()}
    used |= literals(artifacts, r'return "([A-Z]\w+)", ') | {"StorageRefused", "Reachable"}
    assert words_of("StorageReady") == used


def test_every_end_of_a_search_a_study_and_an_attempt_is_told() -> None:
    assert words_of("SearchComplete") == {"Searching", "OptimizerDied", *SearchEnd}
    failures = literals(planner, r'(?:return |_fail\(|, )"([A-Z]\w+)"[,)]')
    assert {"TooManyFailedTrials", "NothingTrains", "PrepareFailed"} <= failures
    assert failures <= words_of("Failed")
    ends = {*EndReason, *job_status._DISRUPTIONS.values(), "PodLost", "Killed"}
    assert ends <= words_of("Ends of attempts")


def test_every_wait_is_told() -> None:
    waits = literals(job_status, r'reason="([A-Z]\w+)"') | {"Unschedulable", "ImagePullBackOff"}
    waits |= {word for _, word in job_status._REFUSALS} | {"FailedCreate"}
    waits |= literals(job_runner, r'LaunchRefusedError\("([A-Z]\w+)"')
    assert waits <= words_of("Waiting")
    refusals = {word for _, word in job_status._REFUSALS} - {QUOTA_EXCEEDED} | {"FailedCreate"}
    assert refusals | literals(job_runner, r'LaunchRefusedError\("([A-Z]\w+)"') <= words_of("JobsRefused")
