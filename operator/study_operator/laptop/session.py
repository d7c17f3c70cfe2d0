"""A study on this machine: the same tick as on a cluster, with processes for Jobs and files for the API server.

Called by `__main__`. Here manifest, directory, artifact store, runner, optimizer and loop meet; what a person sees
comes from `live` and `report`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from study_operator import names
from study_operator.errors import OperatorError, StatusUnreadableError, StudyInvalidError
from study_operator.laptop.loop import Ending, Ticked, Wakes, drive, handling_signals
from study_operator.laptop.runner import GRACE_SECONDS, LocalRunner, StudyBusyError, environment_of, exclusive
from study_operator.laptop.state_dir import SpecChangedError, Workspace
from study_operator.ledger.conditions import name_stage
from study_operator.ledger.status import Recorded, parse_status
from study_operator.ledger.trial import Ledger, Origin, StageState, Trial, TrialState
from study_operator.optimizer.designer import Optimizer, Suggestion
from study_operator.optimizer.reading import ModelReading
from study_operator.reasons import ConditionType
from study_operator.reconcile.job_specs import artifacts_uri, build_prepare_job, build_trial_job, count_steps
from study_operator.reconcile.runner import JobKind
from study_operator.reconcile.tick import TickResult, is_of_last_attempt, read_result, tick
from study_operator.reconcile.warm_start import FoundStudy, NoSuchStudyError
from study_operator.report.estimate import Calibration, parse_calibration
from study_operator.report.live import Snapshot
from study_operator.report.losses import KeptLosses
from study_operator.report.report import Report
from study_operator.report.write import LedgerKeeper, build_report, write_report
from study_operator.spec.manifest import ManifestError, read_manifest
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Arm, Categorical, DeletionPolicy, Study, Uniform
from trial_trainer import contract
from trial_trainer.artifacts import ArtifactError, ArtifactStore, S3Access, join, open_store
from trial_trainer.contract import SUMMARY, ContractError, DatasetSummary, Progress, TrialConfig, from_json, to_json

log = logging.getLogger(__name__)

T = TypeVar("T")

TRAINER = (sys.executable, "-m", "trial_trainer")
"""The command that keeps the trial contract."""

ACCESS = S3Access().impatient()
"""How this process reaches a bucket: a person waits for it, and what cannot be read now is read at the next tick. The
jobs keep their patience."""

CALIBRATION_PATIENCE_SECONDS = 300
"""A calibration measures for 20 seconds; the rest is loading the model."""


class UsageError(OperatorError):
    """The manifest, a flag or a path cannot be used. One sentence a line."""

    reason = "UsageWrong"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A manifest that was read, with the directory that its study has on this machine."""

    raw: Mapping[str, Any]
    study: Study
    """Its uid is that of the study that was run here, else the parser's default."""
    workspace: Workspace

    @property
    def is_begun(self) -> bool:
        """Whether the study was ever run here."""
        return self.workspace.read_uid() is not None


@contextmanager
def sentences(workspace: Workspace | None = None) -> Iterator[None]:
    """Turn what a user can cause into a `UsageError`; a bug stays what it is."""
    try:
        yield
    except (ManifestError, StudyBusyError, ArtifactError, ContractError) as error:
        raise UsageError(str(error)) from None
    except StatusUnreadableError as error:
        # What was read of the file itself names it already.
        where = "" if workspace is None or str(workspace.directory) in str(error) else f"{workspace.status.path}: "
        raise UsageError(f"{where}{error}") from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        if workspace is None:
            raise
        raise UsageError(f"{workspace.directory} must be a directory that can be written") from error


def open_manifest(manifest: Path, directory: Path | None) -> Opened:
    """Read a manifest and find its study's directory.

    Raises:
        UsageError: with everything that is wrong with the manifest.
    """
    with sentences():
        raw = read_manifest(manifest)
    try:
        study = parse_study(raw)
    except StudyInvalidError as error:
        raise UsageError("\n".join(f"{manifest}: {problem}" for problem in error.problems)) from None
    workspace = Workspace(_find_directory(study, manifest, directory))
    with sentences(workspace):
        uid = workspace.read_uid()
    return Opened(raw=raw, study=replace(study, uid=uid) if uid else study, workspace=workspace)


def _find_directory(study: Study, manifest: Path, directory: Path | None) -> Path:
    """Return where the study's status is kept: beside its artifacts, so that both are thrown away as one."""
    if directory is not None:
        return directory.absolute()
    parts = urlsplit(study.storage.uri)
    beside = manifest.absolute().parent if parts.scheme == "s3" else Path(parts.path)
    return beside / ".finetune-study" / study.namespace / study.name


# --- Run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    ending: Ending
    has_failed: bool
    report: Report


class Display:
    """What a run shows while it goes on. This one shows nothing."""

    def show(self, snapshot: Callable[[], Snapshot]) -> None:
        """Draw the present; called every second and after each tick."""

    def say(self, sentence: str) -> None:
        """Print one sentence."""


def run(
    opened: Opened,
    display: Display,
    *,
    trainer: Sequence[str] = TRAINER,
    designer: Optimizer | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Ended:
    """Run a study until it has ended or somebody interrupts; go on with it where an earlier run was cut off.

    Args:
        opened: the study.
        display: what a person sees.
        trainer: the command that keeps the trial contract.
        designer: proposes arms and tells of its model; None means Ax, which is imported while the data is prepared.
        grace_seconds: time for a checkpoint between SIGTERM and SIGKILL.

    Raises:
        UsageError: where the study cannot be run: paths, a changed spec, another command that runs it.
    """
    workspace = opened.workspace
    with sentences(workspace), exclusive(workspace.directory):
        study = _accept(opened, trainer)
        ignored = [f"`{field}`" for field in name_cluster_fields(study)]
        if ignored:
            display.say(f"for a cluster, and ignored here: {', '.join(ignored)}")
        session = _Session(study, workspace, trainer, designer, grace_seconds)
        with handling_signals(session.wakes):
            ending = drive(
                session.tick,
                session.runner,
                session.wakes,
                show=lambda: display.show(session.snapshot),
                say=display.say,
            )
        recorded = parse_status(workspace.status.read()[0])
        outcome = recorded.ledger.outcome
        return Ended(
            ending=ending,
            has_failed=outcome is not None and outcome.failed,
            report=build_report(study, recorded, session.artifacts),
        )


def name_cluster_fields(study: Study) -> list[str]:
    """Name the given fields that mean something on a cluster only."""
    given = {
        "spec.ttlSecondsAfterFinished": study.ttl_seconds_after_finished is not None,
        "spec.data.template": study.data.template is not None,
        "spec.trainer.template": study.trainer_template is not None,
        "spec.storage.caBundle": study.storage.ca_bundle is not None,
        "spec.storage.secretName": study.storage.secret_name is not None,
        "spec.storage.deletionPolicy": study.storage.deletion_policy is DeletionPolicy.DELETE,
    }
    return [field for field, is_given in given.items() if is_given]


def _accept(opened: Opened, trainer: Sequence[str]) -> Study:
    """Take the manifest's spec for the study, where this machine can run it and the paths that it needs exist."""
    study, workspace = opened.study, opened.workspace
    if study.nodes > 1:
        raise UsageError(f"`spec.trainer.nodes` must be 1 on one machine, got {study.nodes}")
    is_prepared = _is_prepared(workspace)
    missing = name_missing_paths(opened)
    teacher = study.data.teacher
    if not is_prepared and teacher is not None and teacher.secret_name and not os.environ.get(contract.TEACHER_API_KEY):
        needs = f"`spec.data.labels.teacher.secretName` ({teacher.secret_name!r}) says that the teacher wants a key"
        missing.append(f"the environment variable {contract.TEACHER_API_KEY} must hold the teacher's key: {needs}")
    if missing:
        raise UsageError("\n".join(missing))
    try:
        uid = workspace.accept(opened.raw["spec"], before_forgetting=lambda: _stop_jobs(workspace, trainer))
    except SpecChangedError as error:
        raise UsageError(
            f"{error}\nto try another study, give it another metadata.name; to begin anew, delete {workspace.directory}"
        ) from None
    return replace(study, uid=uid)


def name_missing_paths(opened: Opened) -> list[str]:
    """Return a sentence for each path that the study still needs and that does not exist; URIs are not looked up."""
    study = opened.study
    places = {"spec.trainer.baseModel.uri": study.base_model.uri}
    with sentences(opened.workspace):
        if not _is_prepared(opened.workspace):
            places |= {"spec.data.source": study.data.source, "spec.data.testSource": study.data.test_source or ""}
    note = "; on a cluster a volume may hold it" if may_be_for_pods(study) else ""
    notes = {"spec.trainer.baseModel.uri": f"{note}; a model on the hub is hf://owner/name"}
    return [
        f"`{field}` must exist, got {place!r} (a relative path is relative to the manifest's directory)"
        f"{notes.get(field, note)}"
        for field, place in places.items()
        if place and (path := _as_path(place)) is not None and not path.exists()
    ]


def may_be_for_pods(study: Study) -> bool:
    """Say whether pods can run it, too: it lies in a bucket, and its paths may be those of volumes."""
    return _as_path(study.storage.uri) is None


def _is_prepared(workspace: Workspace) -> bool:
    status, _ = workspace.status.read()
    return bool(status and status.get("dataset"))


def _as_path(place: str) -> Path | None:
    parts = urlsplit(place)
    if "://" in place and parts.scheme != "file":
        return None
    return Path(parts.path if parts.scheme == "file" else place)


def _stop_jobs(workspace: Workspace, trainer: Sequence[str]) -> None:
    wakes = Wakes()
    runner = LocalRunner(workspace.directory, 1, command=trainer, on_change=wakes.changed)
    runner.stop()
    while runner.running():
        wakes.wait(1.0)


class _Session:
    """One run of a study: what the loop calls, and what the display asks."""

    def __init__(
        self,
        study: Study,
        workspace: Workspace,
        trainer: Sequence[str],
        designer: Optimizer | None,
        grace_seconds: float,
    ) -> None:
        self.study = study
        self.wakes = Wakes()
        self._workspace = workspace
        self._statuses = workspace.status
        self._began = time.monotonic()
        set_storage_environment(study)
        self.artifacts = open_store(artifacts_uri(study), ACCESS)
        # A bucket that cannot be reached now is a user's mistake; one that is away later is waited for.
        self.artifacts.read(names.LEDGER)
        self._storage_problem = ""
        self._ledger = LedgerKeeper()
        self._losses = KeptLosses()
        self._recorded = parse_status(self._statuses.read()[0])
        self.runner = LocalRunner(
            workspace.directory,
            study.parallel_trials,
            command=trainer,
            grace_seconds=grace_seconds,
            on_change=self.wakes.changed,
        )
        self._designer = designer or AxInBackground(is_wanted=_has_search_left(study, self._recorded.ledger))

    def tick(self, is_suspended: bool) -> Ticked:
        """Bring the study one step further."""
        now = datetime.now(UTC)
        result = tick(
            replace(self.study, suspend=self.study.suspend or is_suspended),
            statuses=self._statuses,
            runner=self.runner,
            artifacts=self.artifacts,
            designer=self._designer,
            now=now,
            reporter=self._write_report,
            find_study=self._find_study,
        )
        if result.refusal:
            raise UsageError(result.refusal)
        self._recorded = parse_status(result.status)
        self._tell_storage()
        self._ledger.keep(self.study, result, self.artifacts)
        return Ticked(
            is_done=result.is_done or (self.study.suspend and result.is_idle and not self.runner.running()),
            is_idle=result.is_idle,
            wake_in_seconds=_seconds_until(result, now),
        )

    def _find_study(self, name: str) -> FoundStudy:
        """Return a study that was run beside this one; nobody waits here for one that has not ended."""
        workspace = Workspace(self._workspace.directory.parent / name)
        try:
            spec, uid = workspace.read_spec(), workspace.read_uid()
            if spec is None or uid is None:
                raise NoSuchStudyError(f"which was not run here: there is no {workspace.directory / 'study.json'}")
            metadata = {"name": name, "namespace": self.study.namespace, "uid": uid}
            study = parse_study(
                {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}
            )
            recorded = parse_status(workspace.status.read()[0])
        except StudyInvalidError as error:
            raise NoSuchStudyError(f"whose spec is not valid: {error.problems[0]}") from error
        except StatusUnreadableError as error:
            raise NoSuchStudyError(f"which cannot be read: {error}") from error
        if recorded.ledger.outcome is None:
            stage = name_stage(study, recorded.ledger)
            raise NoSuchStudyError(f"which is {stage}: run it to its end before, with finetune-study run")
        return FoundStudy(study, recorded)

    def _tell_storage(self) -> None:
        condition = self._recorded.conditions.get(ConditionType.STORAGE_READY)
        problem = condition.message if condition is not None and not condition.is_true else ""
        if problem != self._storage_problem:
            log.warning("%s", f"{problem}; it is tried again" if problem else "the storage is back")
            self._storage_problem = problem

    def snapshot(self) -> Snapshot:
        """Return what a person sees now."""
        recorded = self._recorded
        return take_snapshot(self.study, recorded, self.artifacts, time.monotonic() - self._began)

    def _write_report(self, study: Study, ledger: Ledger, raw: Mapping[str, Any]) -> None:
        write_report(study, ledger, raw, self.artifacts, self._designer, self._losses)


def _seconds_until(result: TickResult, now: datetime) -> float | None:
    return None if result.wake_at is None else max(0.0, (result.wake_at - now).total_seconds())


def _has_search_left(study: Study, ledger: Ledger) -> bool:
    fixed = len(study.starting_arms) + (study.baseline is not None)
    return ledger.search_end is None and max(len(ledger.trials), fixed) < study.num_trials


class AxInBackground:
    """Ax, imported in a thread as soon as it is known that somebody will want it: that takes seconds.

    The operator asks Ax in a process of its own (`optimizer/proposals.py`), so that no study can take the others down
    with it. Here there is one study, its command may wait, and another process would import Ax once more.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        if is_wanted:
            threading.Thread(target=_import_ax_designer, name="import-ax", daemon=True).start()

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Ask Ax; the first time, wait for its import."""
        return _import_ax_designer().suggest(study, trials, count)

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool) -> ModelReading:
        """Read the model, of this ledger in any case."""
        return _import_ax_designer().read_model(study, trials, through, is_last=is_last)


def _import_ax_designer() -> Optimizer:
    from study_operator.optimizer.ax import AxDesigner  # most commands don't need it

    return AxDesigner()


def set_storage_environment(study: Study) -> None:
    """Tell the artifact store, here and in every job, how to reach the study's bucket."""
    storage = study.storage
    if storage.endpoint is not None:
        os.environ["AWS_ENDPOINT_URL_S3"] = storage.endpoint
    if storage.region is not None:
        os.environ["AWS_REGION"] = storage.region
    if storage.addressing_style != "Auto":
        os.environ["S3_ADDRESSING_STYLE"] = storage.addressing_style.lower()


# --- Read -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A study as it stands, read without disturbing who runs it."""

    snapshot: Snapshot
    report: Report
    artifacts: ArtifactStore
    """Where the rest of it lies."""


def look(opened: Opened) -> Seen:
    """Read a study, running or finished.

    Raises:
        UsageError: where it was never run here, or its status cannot be read.
    """
    workspace = opened.workspace
    with sentences(workspace):
        spec = workspace.read_spec()
        if spec is None:
            where = workspace.directory / "study.json"
            elsewhere = "; `finetune-study watch` reads those of a cluster" if may_be_for_pods(opened.study) else ""
            raise UsageError(f"the study {opened.study.name} must have been run here: there is no {where}{elsewhere}")
        # As it runs, which may be an earlier version of the manifest.
        study = replace(parse_study({**opened.raw, "spec": spec}), uid=opened.study.uid)
        set_storage_environment(study)
        recorded = parse_status(workspace.status.read()[0])
        artifacts = open_store(artifacts_uri(study), ACCESS)
        return Seen(
            snapshot=take_snapshot(study, recorded, artifacts, None),
            report=build_report(study, recorded, artifacts),
            artifacts=artifacts,
        )


def take_snapshot(
    study: Study, recorded: Recorded, artifacts: ArtifactStore, elapsed_seconds: float | None
) -> Snapshot:
    """Return a study at this moment, with the progress of what runs."""
    ledger = recorded.ledger
    progress: dict[str, Progress] = {}
    for trial in ledger.runs:
        if trial.state is TrialState.RUNNING:
            value = read_result(Progress, artifacts, names.progress_key(trial.name))
            # What an earlier rung left behind says nothing of this one.
            if value is not None and is_of_last_attempt(study, ledger, trial, value):
                progress[trial.name] = value
    evaluation: Progress | None = None
    if ledger.final_evaluation.state is StageState.RUNNING:
        value = read_result(Progress, artifacts, names.FINAL_EVALUATION_PROGRESS)
        if value is not None and is_of_last_attempt(study, ledger, JobKind.FINAL_EVALUATION, value):
            evaluation = value
    conditions = recorded.conditions
    storage = conditions.get(ConditionType.STORAGE_READY)
    note = conditions["Complete"].message if "Complete" in conditions else ""
    return Snapshot(
        study=study,
        trials=ledger.runs,
        progress=progress,
        final_evaluation=evaluation,
        stage=name_stage(study, ledger),
        note=storage.message if storage is not None and not storage.is_true else note,
        elapsed_seconds=elapsed_seconds,
    )


# --- Plan -------------------------------------------------------------------------------------------------------


def read_summary(opened: Opened) -> DatasetSummary | None:
    """Return the dataset's summary, where the study has one already."""
    if not opened.is_begun:
        return None
    set_storage_environment(opened.study)
    with sentences(opened.workspace):
        store = open_store(artifacts_uri(opened.study), ACCESS)
        return read_result(DatasetSummary, store, f"{names.DATASET}/{SUMMARY}")


def count_records(opened: Opened) -> int | None:
    """Return how many pages or texts the source has at most; None where that is not to be seen without fetching it."""
    data = opened.study.data
    path = _as_path(data.source)
    if path is not None and path.is_dir():
        count = sum(file.suffix.lower() in (".html", ".htm") for file in path.rglob("*"))
    elif path is not None and path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            count = sum(bool(line.strip()) for line in lines)
    else:
        return data.max_pages
    return min(count, data.max_pages or count)


def calibrate(opened: Opened, *, trainer: Sequence[str] = TRAINER) -> tuple[DatasetSummary, Calibration]:
    """Prepare the data if that was not done yet, and measure this machine with one arm for 20 seconds.

    What is prepared here is not prepared again by `run`.

    Raises:
        UsageError: where preparing or measuring failed, with what was said.
    """
    with sentences(opened.workspace), exclusive(opened.workspace.directory):
        study = _accept(opened, trainer)
        set_storage_environment(study)
        summary = _prepare(study, opened.workspace, trainer)
        return summary, _measure(study, summary, trainer)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the winner's adapter answered about one file."""

    values: Mapping[str, str | None]
    """By attribute; None where the answer is that there is none."""
    is_cut: bool
    """Whether the file is longer than the study reads its records."""


def ask(
    opened: Opened,
    files: Sequence[str],
    *,
    attributes: Sequence[str] = (),
    url: str | None = None,
    say: Callable[[str], None],
    trainer: Sequence[str] = TRAINER,
) -> dict[str, Answered]:
    """Ask the winner's adapter about files; ``-`` is stdin.

    Args:
        opened: the study.
        files: pages or texts.
        attributes: some of the study's; all where there are none.
        url: the page's address, where there is one file.
        say: is told what takes seconds.
        trainer: the command that asks.

    Returns:
        By file the answers.

    Raises:
        UsageError: where there is no winner yet, or the files cannot be asked about, with what was said.
    """
    study, adapter = opened.study, look(opened).report.adapter
    if adapter is None:
        raise UsageError(f"study {study.name} must have a winner to be asked, and has none yet")
    set_storage_environment(study)
    flags = ["--dataset", join(artifacts_uri(study), names.DATASET), "--base-model", study.base_model.uri]
    flags += ["--revision", study.base_model.revision] if study.base_model.revision else []
    flags += ["--precision", study.trainer.precision]
    flags += [flag for attribute in attributes for flag in ("--attribute", attribute)]
    flags += ["--url", url] if url else []
    command = [*trainer, "ask", *flags, "--", adapter, *files]
    say(f"loading {study.base_model.uri} with {adapter} …")
    done = subprocess.run(command, env=environment_of(None), capture_output=True, check=False)
    if done.returncode != 0:
        raise UsageError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "the trainer said nothing")
    lines = map(json.loads, done.stdout.split(b"\n")[:-1])
    return {line["file"]: Answered(values=line["answers"], is_cut=line["is_cut"]) for line in lines}


def _prepare(study: Study, workspace: Workspace, trainer: Sequence[str]) -> DatasetSummary:
    artifacts = open_store(artifacts_uri(study), ACCESS)
    job = build_prepare_job(study)
    summary = read_result(DatasetSummary, artifacts, f"{names.DATASET}/{SUMMARY}")
    if summary is not None and summary.digest in ("", job.digest):
        return summary
    wakes = Wakes()
    runner = LocalRunner(workspace.directory, study.parallel_trials, command=trainer, on_change=wakes.changed)
    runner.launch(job)
    while runner.running():
        wakes.wait(1.0)
    summary = read_result(DatasetSummary, artifacts, f"{names.DATASET}/{SUMMARY}")
    if summary is None:
        status = next((status for status in runner.jobs() if status.name == job.name), None)
        message = f"exit code {status.exit_code}: {status.message}" if status is not None else "it was deleted"
        raise UsageError(f"the data must be preparable, but {job.name} ended with {message}")
    return summary


def _measure(study: Study, summary: DatasetSummary, trainer: Sequence[str]) -> Calibration:
    arm = study.baseline or _middle_arm(study)
    total = count_steps(study, arm, summary.splits["train"].samples)
    trial = Trial(index=0, arm=arm, origin=Origin.BASELINE, total_steps=max(1, total))
    config = from_json(TrialConfig, build_trial_job(study, trial, summary.fingerprint).config)
    # Nothing of a calibration may be taken for a trial's.
    config = replace(config, output=f"{artifacts_uri(study)}/calibration", progress=None)
    try:
        done = subprocess.run(
            [*trainer, "calibrate"],
            env={**environment_of(None), contract.TRIAL_CONFIG: to_json(config), contract.ATTEMPT: "calibration"},
            capture_output=True,
            text=True,
            timeout=CALIBRATION_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"the calibration must end within {CALIBRATION_PATIENCE_SECONDS} seconds") from None
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise UsageError(f"the calibration must succeed, but it ended with exit code {done.returncode}: {last}")
    return parse_calibration(done.stdout)


def _middle_arm(study: Study) -> dict[str, contract.ParameterValue]:
    """Return the middle of the search space, for a study without a baseline."""
    arm: dict[str, contract.ParameterValue] = {}
    for parameter in study.parameters:
        match parameter.search_space:
            case Categorical(values=values):
                arm[parameter.name] = values[len(values) // 2]
            case Uniform(min=low, max=high):
                arm[parameter.name] = (low + high) / 2
            case space:
                arm[parameter.name] = float((space.min * space.max) ** 0.5)
    return arm
