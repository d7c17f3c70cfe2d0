"""docs/troubleshooting.md tells every word that a person can meet in a condition, an event or an attempt."""

import re
from pathlib import Path

from study_operator.cluster import job_status
from study_operator.ledger.trial import SearchEnd
from study_operator.reasons import (
    ConditionReason,
    ConditionType,
    EndReason,
    EventReason,
    FailureReason,
    StudyStage,
    WaitReason,
)
from trial_trainer import artifacts

PAGE = (Path(__file__).parents[1] / "docs/troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def words_of(section: str) -> set[str]:
    """Return what the first column of a section's table names."""
    rows = re.findall(r"^\| (.+?) \|", SECTIONS[section], re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([A-Z]\w+)`", row)}


def test_every_condition_has_a_section() -> None:
    # Stalled has the reasons of Failed and of JobsRefused.
    assert {*ConditionType} - {ConditionType.STALLED} <= set(SECTIONS)


def test_every_reason_of_a_condition_is_told() -> None:
    told_anywhere = set().union(*(words_of(section) for section in SECTIONS))
    # That of Stalled where nothing stalls.
    assert {*ConditionReason, *StudyStage} - {ConditionReason.PROGRESSING} <= told_anywhere
    assert {*StudyStage} == words_of("Complete")


def test_every_trouble_of_a_bucket_is_told() -> None:
    reasons = {reason for reason, _ in artifacts._HINTS.values()}
    source = Path(artifacts.__file__).read_text()
    reasons |= set(re.findall(r'return "([A-Z]\w+)", ', source))
    assert words_of("StorageReady") == reasons | {ConditionReason.STORAGE_REFUSED, ConditionReason.REACHABLE}


def test_every_end_of_a_search_a_study_and_an_attempt_is_told() -> None:
    going = {ConditionReason.SEARCHING, ConditionReason.WAITS_FOR_STUDY, ConditionReason.OPTIMIZER_DIED}
    assert words_of("SearchComplete") == going | {*SearchEnd}
    assert words_of("Failed") == {ConditionReason.NOT_FAILED, *FailureReason}
    # The last row tells of a kubelet's words.
    assert words_of("Ends of attempts") == {*EndReason, "DeadlineExceeded"}
    assert {*job_status._DISRUPTIONS.values()} <= {*EndReason}


def test_every_wait_is_told() -> None:
    # The API server's own word stands for the last.
    waits = {*WaitReason} - {WaitReason.JOB_REFUSED}
    assert waits <= words_of("Waiting")
    # What no rule refuses: a queue, a full cluster, an image that is pulled, a quota.
    for_room = {WaitReason.QUEUED, WaitReason.UNSCHEDULABLE, WaitReason.QUOTA_EXCEEDED}
    starting = {WaitReason.CONTAINER_CREATING, WaitReason.IMAGE_PULL_BACK_OFF}
    assert words_of("JobsRefused") == waits - for_room - starting | {ConditionReason.NOT_REFUSED}


def test_every_event_is_told() -> None:
    assert words_of("Events") == {*EventReason}
