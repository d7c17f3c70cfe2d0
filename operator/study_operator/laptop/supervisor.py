"""Watches over one job's process on this machine and writes down how it ended.

    python -I -S laptop/supervisor.py JOB_DIRECTORY LOCK_DESCRIPTOR

Started by `laptop/runner.py` for every job, so that a job's end is known even if the command line was killed meanwhile.
It must stay light (standard library only, one small process a job) and knows nothing of studies.

It inherits an flock on `JOB_DIRECTORY/lock`, and so does the job's process: the job counts as running until both are
gone, whatever happens to process numbers. In the directory it finds `order.json`; it writes `attempt.json` before it
starts anything, and `exit.json` last, each of them whole or not at all.

SIGTERM asks the job to stop and kills it after the grace period; SIGALRM kills it at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

ORDER = "order.json"
ATTEMPT = "attempt.json"
EXIT = "exit.json"
LOCK = "lock"
DELETED = "deleted"

KILLED = 128 + signal.SIGKILL
NOT_STARTED = 127
"""What a shell returns for a command that it cannot start."""

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when its parent dies (prctl(2))."""


class Supervisor:
    """One run of one job."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self.lock = lock
        self.order: dict[str, Any] = json.loads((directory / ORDER).read_text())
        self.is_stopping = False
        self.has_killed = False
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start the job, wait for it, write its end."""
        signal.signal(signal.SIGTERM, self._on_stop_request)
        signal.signal(signal.SIGALRM, self._kill)
        log = Path(self.order["log"])
        kills_before = count_memory_kills(self.order["memoryKills"])
        self._write_attempt()
        # Who deletes the job marks it first and then looks for us: one of us sees the other.
        if (self.directory / DELETED).exists():
            self.is_stopping = True

        exit_code, message = self._run_process(log)
        reason = ""
        if exit_code == KILLED and not self.has_killed:
            kills = count_memory_kills(self.order["memoryKills"]) - kills_before
            reason = "OOMKilled" if kills > 0 else "Killed"
        if exit_code == NOT_STARTED and message:
            reason = "CannotStart"
        write_whole(
            self.directory / EXIT,
            {"exitCode": exit_code, "finishedAt": now(), "reason": reason, "message": message or last_line(log)},
        )

    def _run_process(self, log: Path) -> tuple[int, str]:
        if self._is_asked_to_stop():
            return 128 + signal.SIGTERM, "asked to stop before it was started"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            try:
                self.process = subprocess.Popen(
                    self.order["command"],
                    env={**os.environ, **self.order["environment"]},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(self.lock,),
                    preexec_fn=dying_with(os.getpid()),  # noqa: PLW1509  # one thread here
                )
            except OSError as error:
                return NOT_STARTED, f"cannot start {self.order['command'][0]}: {error}"
        self._write_attempt()
        if self._is_asked_to_stop():
            self._ask_to_stop()
        code = self.process.wait()
        signal.alarm(0)
        # Whatever the job left behind in its group goes with it.
        send(os.killpg, self.process.pid, signal.SIGKILL)
        return (128 - code if code < 0 else code), ""

    def _write_attempt(self) -> None:
        processes = {"supervisor": identify(os.getpid())}
        if self.process is not None:
            processes["process"] = identify(self.process.pid)
        write_whole(self.directory / ATTEMPT, processes)

    def _on_stop_request(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_stopping = True
        self._ask_to_stop()

    def _is_asked_to_stop(self) -> bool:
        # A signal changes it at any moment.
        return self.is_stopping

    def _ask_to_stop(self) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        # To the job's first process alone, as a container runtime does: it hands the signal on to its ranks.
        signal.alarm(max(1, int(self.order["graceSeconds"])))
        send(os.kill, self.process.pid, signal.SIGTERM)

    def _kill(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_stopping = True
        if self.process is not None and self.process.returncode is None:
            self.has_killed = True
            send(os.killpg, self.process.pid, signal.SIGKILL)


def dying_with(parent: int) -> Callable[[], None] | None:
    """Return what makes the new process get SIGTERM when its supervisor is gone; None where the system can't."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        # The supervisor may have died before the request.
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return ask_for_signal


def send(kill: Callable[[int, int], None], target: int, number: int) -> bool:
    """Send a signal to a process or a group, which may have ended a moment ago; say whether it was there."""
    try:
        kill(target, number)
    except (ProcessLookupError, PermissionError):
        # macOS says "not permitted" of a group in which only a zombie is left.
        return False
    return True


def count_memory_kills(path: str) -> int:
    """Return how many processes the kernel has killed for lack of memory; 0 where it does not say (macOS)."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def identify(process: int) -> list[Any]:
    """Return a process's number and when it began, in the kernel's ticks ("" where unknown): numbers are used again."""
    try:
        # The second field, the name, may hold spaces and brackets.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [process, ""]
    return [process, "ended" if fields[0] == "Z" else fields[19]]


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, at most 1,000 characters of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:1000] for line in reversed(lines) if line.strip()), "")


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat()


def write_whole(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    # Not by `trial_trainer.files`: this process has no packages on its path.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1]), int(sys.argv[2])).run()
