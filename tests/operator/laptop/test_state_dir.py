"""A study's directory: versioned status, one identity, and which changes of a manifest are taken."""

from pathlib import Path

import pytest

from study_operator.errors import ConflictError, StatusUnreadableError
from study_operator.laptop.state_dir import SpecChangedError, StatusFile, Workspace

SPEC = {"numTrials": 8, "parallelTrials": 1, "data": {"source": "/pages"}, "trainer": {"epochs": 3}}


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "study")


def with_trials(workspace: Workspace) -> None:
    """Make the study one that has begun."""
    _, version = workspace.status.read()
    workspace.status.write({"trials": [{"index": 0}]}, version)


def test_a_status_is_written_only_over_the_version_that_was_read(workspace):
    workspace.accept(SPEC)
    status, version = workspace.status.read()
    assert (status, version) == (None, 0)
    assert workspace.status.write({"trials": []}, version) == 1

    with pytest.raises(ConflictError, match=r"^the status has version 1, but version 0 was read$"):
        workspace.status.write({"trials": ["late"]}, version)

    assert workspace.status.read() == ({"trials": []}, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "StoredStatus must be JSON: "),
        ('{"version": "1", "status": {}}', "StoredStatus.version must be a whole number, got '1'"),
        ('{"version": 1}', "StoredStatus.status must be given"),
    ],
)
def test_a_status_that_was_not_written_here_is_refused_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(StatusUnreadableError) as refusal:
        StatusFile(tmp_path / "status.json").read()
    assert str(refusal.value).startswith(f"{tmp_path / 'status.json'} must be as it was written here: {sentence}")


def test_a_status_that_is_no_json_leaves_the_old_one(workspace):
    workspace.accept(SPEC)
    workspace.status.write({"trials": []}, 0)

    with pytest.raises(ValueError):
        workspace.status.write({"best": float("nan")}, 1)

    assert workspace.status.read() == ({"trials": []}, 1)
    assert sorted(path.name for path in workspace.directory.iterdir()) == ["status.json", "study.json"]


def test_a_study_keeps_its_identity(workspace):
    uid = workspace.accept(SPEC)

    assert workspace.accept(SPEC) == uid == workspace.read_uid()
    assert Workspace(workspace.directory.with_name("other")).read_uid() is None


def test_a_study_without_trials_starts_anew_with_a_mended_manifest(workspace):
    uid = workspace.accept(SPEC)
    workspace.status.write({"trials": []}, 0)

    assert workspace.accept({**SPEC, "data": {"source": "/better"}}) != uid
    assert workspace.status.read() == (None, 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"parallelTrials": 2}, id="more in parallel"),
        pytest.param({"numTrials": 12}, id="more trials"),
        pytest.param({"suspend": True}, id="suspended"),
        pytest.param({"budget": {"acceleratorHours": "3"}}, id="a budget"),
    ],
)
def test_what_may_change_changes_without_a_new_study(workspace, change):
    uid = workspace.accept(SPEC)
    with_trials(workspace)

    assert workspace.accept({**SPEC, **change}) == uid


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        pytest.param(
            {"numTrials": 7},
            ["`spec.numTrials` must not be lowered once the study has trials: it was 8, got 7"],
            id="fewer trials",
        ),
        pytest.param(
            {"seed": 1}, ["`spec.seed` must not change once the study has trials: it was null, got 1"], id="a new field"
        ),
        pytest.param(
            {"trainer": {"epochs": 4}, "data": None},
            [
                '`spec.data` must not change once the study has trials: it was {"source": "/pages"}, got null',
                '`spec.trainer` must not change once the study has trials: it was {"epochs": 3}, got {"epochs": 4}',
            ],
            id="two fields, both said",
        ),
    ],
)
def test_what_may_not_change_is_refused_with_a_sentence_each(workspace, change, sentences):
    uid = workspace.accept(SPEC)
    with_trials(workspace)

    with pytest.raises(SpecChangedError) as refusal:
        workspace.accept({**SPEC, **change})

    assert str(refusal.value).splitlines() == sentences
    assert workspace.accept(SPEC) == uid
