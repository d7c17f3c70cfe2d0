"""Runs a study's jobs as processes of this machine, and keeps its ledger in a file.

Called by the command line. One directory holds all that is not an artifact:

    run.lock            held by the command that drives the study; a second one is refused
    jobs/<name>/        one job: what was ordered, its attempt, how it ended; gone when the job is deleted
    logs/<name>-<attempt>.log

The command may be killed at any moment. Each job has a supervisor (`laptop/supervisor.py`) that goes on without us,
holds an flock for as long as the job lives, and writes down its end; a later command adopts what it finds. Nothing
polls: a thread a job waits for that lock. The directory must be on a local file system, where flock is honoured.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study_operator.errors import OperatorError
from study_operator.laptop import supervisor
from study_operator.reasons import EndReason
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from trial_trainer import contract
from trial_trainer.contract import TEACHER_API_KEY
from trial_trainer.cores import count_cores

log = logging.getLogger(__name__)

GRACE_SECONDS = 120
"""How long a job may take to write its checkpoint after SIGTERM; a laptop's disk is slow."""

MEMORY_KILLS = "/proc/vmstat"
"""Where Linux counts the processes that it killed for lack of memory."""

_SUBCOMMAND = {JobKind.PREPARE: ("prepare",), JobKind.TRIAL: (), JobKind.FINAL_EVALUATION: ("final-evaluation",)}
_CONFIG_VARIABLE = {
    JobKind.PREPARE: contract.PREPARE_CONFIG,
    JobKind.TRIAL: contract.TRIAL_CONFIG,
    JobKind.FINAL_EVALUATION: contract.FINAL_EVALUATION_CONFIG,
}


class StudyBusyError(OperatorError):
    """Another command drives this study."""

    reason = "StudyBusy"


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the right to drive the study of a directory.

    Raises:
        StudyBusyError: where another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StudyBusyError(
                f"the study in {directory} is already being run by process {file.read().strip() or 'unknown'}; "
                "stop that one with Ctrl-C, or watch it with `finetune-study trials`"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class LocalRunner:
    """Jobs of one study as processes. Only the holder of `exclusive` may make one."""

    def __init__(
        self,
        directory: Path,
        parallel: int,
        *,
        command: Sequence[str] = (sys.executable, "-m", "trial_trainer"),
        environment: Mapping[str, str] | None = None,
        grace_seconds: float = GRACE_SECONDS,
        memory_kills: str = MEMORY_KILLS,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over the jobs of earlier commands.

        Args:
            directory: the study's own directory.
            parallel: how many trials share this machine's cores.
            command: what starts the trainer; the subcommand is appended.
            environment: variables that are added to ours for every job.
            grace_seconds: time between SIGTERM and SIGKILL.
            memory_kills: a file with a line "oom_kill N".
            on_change: called from other threads whenever a job ended or is gone.
        """
        self._jobs = directory.absolute() / "jobs"
        self._logs = directory.absolute() / "logs"
        self._parallel = parallel
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._grace_seconds = grace_seconds
        self._memory_kills = memory_kills
        self._on_change = on_change
        self._jobs.mkdir(parents=True, exist_ok=True)
        self._adopt()

    def jobs(self) -> Sequence[JobStatus]:
        """Return every job that exists, finished ones included, until it is deleted."""
        statuses = (_read_status(path) for path in _directories_of_jobs(self._jobs))
        return tuple(status for status in statuses if status is not None)

    def launch(self, spec: JobSpec) -> None:
        """Start a job; a no-op where one of that name exists."""
        job = self._jobs / spec.name
        if job.exists():
            return
        # Whole or not at all: from the rename on the job exists, and whoever comes after us starts it if we can't.
        new = self._jobs / f".new-{uuid.uuid4().hex}"
        new.mkdir()
        (new / supervisor.ORDER).write_text(json.dumps(self._build_order(spec)))
        (new / supervisor.LOCK).touch()
        new.rename(job)
        self._start(job)

    def delete(self, name: str) -> None:
        """Ask a job to stop and forget it once it is gone, which `on_change` tells."""
        job = self._jobs / name
        if not job.exists() or (job / supervisor.DELETED).exists():
            return
        (job / supervisor.DELETED).touch()
        self._finish_deleting(job)

    def stop(self) -> None:
        """Delete every job that has not ended: it writes its checkpoint, and a later tick launches it again."""
        for job in self.jobs():
            if job.phase is not JobPhase.FINISHED:
                self.delete(job.name)

    def kill(self) -> None:
        """End every job at once, without a checkpoint: for a person who does not want to wait."""
        for job in _directories_of_jobs(self._jobs):
            if _is_held(job):
                _kill(job)

    def running(self) -> int:
        """Return how many jobs still have a process."""
        return sum(_is_held(job) for job in _directories_of_jobs(self._jobs))

    def _adopt(self) -> None:
        for leftover in self._jobs.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for job in _directories_of_jobs(self._jobs):
            if (job / supervisor.DELETED).exists():
                self._finish_deleting(job)
            elif _is_held(job):
                log.info("job %s still runs: adopted", job.name)
                self._watch(job)
            elif not (job / supervisor.ATTEMPT).exists():
                self._start(job)

    def _build_order(self, spec: JobSpec) -> dict[str, Any]:
        attempt = uuid.uuid4().hex[:12]
        sharing = self._parallel if spec.kind is JobKind.TRIAL else 1
        threads = max(1, count_cores() // (sharing * spec.processes))
        return {
            "kind": spec.kind,
            "digest": spec.digest,
            "attempt": attempt,
            "command": [*self._command, *_SUBCOMMAND[spec.kind]],
            "environment": {
                "OMP_NUM_THREADS": str(threads),
                "PYTHONUNBUFFERED": "1",
                **self._environment,
                contract.ATTEMPT: attempt,
                _CONFIG_VARIABLE[spec.kind]: spec.config,
            },
            "log": str(self._logs / f"{spec.name}-{attempt}.log"),
            "graceSeconds": self._grace_seconds,
            "memoryKills": self._memory_kills,
        }

    def _start(self, job: Path) -> None:
        order = _read_json(job / supervisor.ORDER) or {}
        supervisor.write_whole(job / supervisor.ORDER, {**order, "startedAt": supervisor.now()})
        with (job / supervisor.LOCK).open("a") as lock:
            # Held from before the supervisor exists, and by nobody else: only we start jobs, and we are one.
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(job), str(lock.fileno())],
                env=environment_of(JobKind(order["kind"])),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        self._watch(job, process)

    def _watch(self, job: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        threading.Thread(target=self._wait_for_end, args=(job, process), name=f"watch-{job.name}", daemon=True).start()

    def _wait_for_end(self, job: Path, process: subprocess.Popen[bytes] | None) -> None:
        _wait_until_free(job)
        if process is not None:
            process.wait()
        self._on_change()

    def _finish_deleting(self, job: Path) -> None:
        threading.Thread(target=self._delete, args=(job,), name=f"delete-{job.name}", daemon=True).start()

    def _delete(self, job: Path) -> None:
        if _is_held(job):
            _ask_to_stop(job)
        # The supervisor keeps the grace period; this is for a job whose supervisor is dead.
        timer = threading.Timer(self._grace_seconds + 10, _kill, (job,))
        timer.daemon = True
        timer.start()
        _wait_until_free(job)
        timer.cancel()
        gone = job.with_name(f".gone-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            job.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        self._on_change()


def environment_of(kind: JobKind | None) -> dict[str, str]:
    """Return the environment that a job inherits from us: a teacher's key is for preparing alone, and is in no file.

    Args:
        kind: of the job; None for what is no job.
    """
    return {name: value for name, value in os.environ.items() if kind is JobKind.PREPARE or name != TEACHER_API_KEY}


def _directories_of_jobs(jobs: Path) -> list[Path]:
    return sorted(path for path in jobs.iterdir() if not path.name.startswith("."))


def _read_status(job: Path) -> JobStatus | None:
    """Return what is known of a job; None where it has just been forgotten."""
    order = _read_json(job / supervisor.ORDER)
    if order is None:
        return None
    # The lock before the files: what is written is written before the lock is let go.
    is_held = _is_held(job)
    attempt = _read_json(job / supervisor.ATTEMPT)
    end = _read_json(job / supervisor.EXIT)
    status = JobStatus(
        name=job.name,
        kind=JobKind(order["kind"]),
        phase=JobPhase.PENDING,
        attempt=order["attempt"],
        digest=order.get("digest", ""),
    )
    if attempt is None and not is_held:
        return status
    status = replace(status, phase=JobPhase.RUNNING, started_at=datetime.fromisoformat(order["startedAt"]))
    if end is not None:
        return replace(
            status,
            phase=JobPhase.FINISHED,
            finished_at=datetime.fromisoformat(end["finishedAt"]),
            exit_code=end["exitCode"],
            reason=end["reason"],
            message=end["message"],
        )
    if is_held:
        return status
    return replace(
        status,
        phase=JobPhase.FINISHED,
        finished_at=_last_sign_of_life(job, Path(order["log"])),
        reason=EndReason.NODE_LOST,
        message="the machine stopped, or the job's supervisor was killed",
    )


def _last_sign_of_life(job: Path, log_file: Path) -> datetime:
    times = [path.stat().st_mtime for path in (job / supervisor.ATTEMPT, log_file) if path.exists()]
    return datetime.fromtimestamp(max(times, default=0.0), UTC)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return value


def _is_held(job: Path) -> bool:
    """Say whether a process of the job lives: its supervisor, or what that has started."""
    try:
        with (job / supervisor.LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _wait_until_free(job: Path) -> None:
    with contextlib.suppress(FileNotFoundError), (job / supervisor.LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _ask_to_stop(job: Path) -> None:
    """Send SIGTERM to the job's supervisor, or to its process where the supervisor is dead."""
    attempt = _read_json(job / supervisor.ATTEMPT) or {}
    if not _signal(attempt.get("supervisor"), os.kill, signal.SIGTERM):
        _signal(attempt.get("process"), os.kill, signal.SIGTERM)


def _kill(job: Path) -> None:
    """End a job's processes at once."""
    attempt = _read_json(job / supervisor.ATTEMPT) or {}
    if not _signal(attempt.get("supervisor"), os.kill, signal.SIGALRM):
        _signal(attempt.get("process"), os.killpg, signal.SIGKILL)


def _signal(identity: list[Any] | None, kill: Callable[[int, int], None], number: int) -> bool:
    """Signal a process if it is still the one that was written down; say whether it is."""
    if identity is None or supervisor.identify(identity[0]) != identity:
        return False
    return supervisor.send(kill, identity[0], number)
