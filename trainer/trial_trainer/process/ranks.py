"""More than one process: ranks under accelerate's launcher, and a parent that knows how they ended.

On many nodes each has a parent and a launcher of its own; the launchers join up all ranks.

Parent and ranks speak past the launcher, through a directory of their own:

    parent  (`python -m trial_trainer`)         makes the directory, signals the ranks, decides the exit code
    └── launcher  (`python -m trial_trainer.process.ranks`)   accelerate's, which starts the ranks and joins them up
        └── ranks  (`python -m trial_trainer`)  each holds a lock on `rank-<n>` while it lives, notes there its
                                                process id, and at its end adds a line to `ends`

torch's `elastic_launch`, which accelerate's launcher calls, is not enough for that (seen with torch 2.15). Its
`ChildFailedError` holds the exit codes of ranks that fail, but a SIGTERM to it ends in a `SignalException` without any:
whether the ranks saved a checkpoint (143), diverged or crashed on the way is lost. Besides, the first rank to end with
143 counts as a failure for which the others are signalled, it tells no sentence unless ranks import torch to write one,
and nothing ends its ranks when it is killed.

No process outlives its parent: on Linux the kernel kills it. Standard library only; the launcher imports accelerate.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trial_trainer.contract import GRACE, MASTER_ADDRESS, MASTER_PORT, NODE_INDEX, ExitCode, TrainerSettings
from trial_trainer.errors import ENVIRONMENT, TrainerError
from trial_trainer.files import write_whole
from trial_trainer.stop import StopRequest

DEFAULT_GRACE_SECONDS = 300.0
MATES_SECONDS = 30.0
"""How long ranks may go on after one of them failed: they stop by themselves, or wait in a collective forever."""
POLL_SECONDS = 0.05

_DIRECTORY = "TRIAL_RANKS_DIRECTORY"
_PARENT = "TRIAL_RANKS_PARENT"
_LAUNCHER = "TRIAL_RANKS_LAUNCHER"
_ENDS = "ends"
_ARM_OR_STUDY = (ExitCode.DIVERGED, ExitCode.ARM_CANNOT_RUN, ExitCode.STUDY_CANNOT_RUN)


@dataclass(frozen=True, kw_only=True)
class End:
    """How a rank ended, in its own words."""

    rank: int
    code: int
    sentence: str = ""


# The rank's side -----------------------------------------------------------------------------------------------------


class Membership:
    """This process as one rank of several. The lock that it holds says that it lives."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.rank = rank
        self._directory = directory
        self._is_told = False
        self._lock = (directory / f"rank-{rank}").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._note({"pid": os.getpid(), "trains": False})

    def start_training(self) -> None:
        """Note that from now on a request to stop must wait for a checkpoint."""
        self._note({"pid": os.getpid(), "trains": True})

    def tell_end(self, code: int, sentence: str = "") -> None:
        """Leave the exit code for the parent; only the first counts."""
        if self._is_told:
            return
        self._is_told = True
        line = json.dumps(asdict(End(rank=self.rank, code=code, sentence=sentence)))
        # One write in append mode: lines of several ranks don't mix, and stand in the order of time.
        descriptor = os.open(self._directory / _ENDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def _note(self, note: Mapping[str, int | bool]) -> None:
        write_whole(self._directory / f"note-{self.rank}", json.dumps(note))


def is_rank() -> bool:
    """Return whether this process was started by our own launcher."""
    return _DIRECTORY in os.environ


def join(ranks: int) -> Membership:
    """Take this process's place among the ranks of its node.

    Raises:
        TrainerError: where the launcher started another number of ranks than it was told.
    """
    _die_with(int(os.environ[_LAUNCHER]))
    membership = Membership(Path(os.environ[_DIRECTORY]), int(os.environ["LOCAL_RANK"]))
    started = os.environ.get("WORLD_SIZE")
    if started != str(ranks):
        raise TrainerError(f"the launcher must start {ranks} ranks, got {started}")
    return membership


# The parent's side ---------------------------------------------------------------------------------------------------


def run_ranks(command: Sequence[str], settings: TrainerSettings, stop: StopRequest) -> int:
    """Run a module as several ranks and return the exit code that this node's agree to, or the first failing one's.

    Args:
        command: the module's name and its arguments.
        settings: how many ranks, on how many nodes.
        stop: protected; once it is requested the ranks are signalled and may save a checkpoint.
    """
    processes = settings.processes
    directory = Path(tempfile.mkdtemp(prefix="trial-ranks-"))
    try:
        launcher = _start_launcher(command, settings, directory)
        try:
            _watch(launcher, processes, directory, stop)
        finally:
            _kill_all(launcher, processes, directory)
        ends = _read_ends(directory)
        code = decide(ends, processes, asked_to_stop=stop.requested, is_one_of_many=settings.nodes > 1)
        _say(ends, code)
        return code
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def decide(ends: Sequence[End], processes: int, *, asked_to_stop: bool, is_one_of_many: bool = False) -> int:
    """Return the exit code of the trial, from what its ranks said in the order of time.

    A rank that knows whose fault it is outweighs its mates, whose collectives merely broke.

    Args:
        ends: what the ranks of this node said.
        processes: how many ranks this node has.
        asked_to_stop: whether this node was asked.
        is_one_of_many: whether there are other nodes, one of which may have been asked.
    """
    for end in ends:
        if end.code in _ARM_OR_STUDY:
            return end.code
    codes = {end.code for end in ends}
    if len(ends) == processes and codes == {ExitCode.STOP_STEP_REACHED}:
        return ExitCode.STOP_STEP_REACHED
    if asked_to_stop and (not ends or ExitCode.ASKED_TO_STOP in codes):
        return ExitCode.ASKED_TO_STOP
    # Another node was asked, and all ranks agreed to stop with it.
    if is_one_of_many and len(ends) == processes and codes == {ExitCode.ASKED_TO_STOP}:
        return ExitCode.ASKED_TO_STOP
    return ENVIRONMENT


def _start_launcher(command: Sequence[str], settings: TrainerSettings, directory: Path) -> subprocess.Popen[bytes]:
    grace = _grace_seconds()
    place = _find_place(settings)
    environment = os.environ | {
        _DIRECTORY: str(directory),
        _PARENT: str(os.getpid()),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(grace)),
        # accelerate reads a person's own configuration from there.
        "ACCELERATE_CONFIG_FILE": "",
    }
    if sys.platform == "linux" and settings.nodes == 1:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # `--multi_gpu` is what its path to torch's launcher is called; with `--cpu` it starts one process. Whether ranks
    # are on accelerators they find out for themselves.
    flags = ["--multi_gpu", "--num_processes", str(settings.ranks), "--num_machines", str(settings.nodes)]
    flags += ["--machine_rank", str(place.index), "--main_process_ip", place.address]
    flags += ["--main_process_port", str(place.port), "--rdzv_backend", "static"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--module"]
    # In a session of its own: a person's Ctrl-C is for the parent alone.
    return subprocess.Popen(
        [sys.executable, "-m", "trial_trainer.process.ranks", *flags, *command], env=environment, start_new_session=True
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Which of many nodes this is, and where the first one is met."""

    index: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def _find_place(settings: TrainerSettings) -> _Place:
    if settings.nodes == 1:
        return _Place()
    index, address, port = (os.environ.get(name, "") for name in (NODE_INDEX, MASTER_ADDRESS, MASTER_PORT))
    if not (index.isdecimal() and int(index) < settings.nodes):
        raise TrainerError(
            f"{NODE_INDEX} must be from 0 to {settings.nodes - 1} on {settings.nodes} nodes, got {index!r}"
        )
    if not address or not port.isdecimal():
        raise TrainerError(
            f"{MASTER_ADDRESS} and {MASTER_PORT} must say where the first of {settings.nodes} nodes is met, "
            f"got {address!r} and {port!r}"
        )
    return _Place(index=int(index), address=address, port=int(port))


def _watch(launcher: subprocess.Popen[bytes], processes: int, directory: Path, stop: StopRequest) -> None:
    """Wait until every rank ended, or cannot be waited for any longer."""
    signalled: set[int] = set()
    deadline = float("inf")
    failure_seen = False
    while launcher.poll() is None and time.monotonic() < deadline:
        ranks = {rank: note for rank in range(processes) if (note := _read_note(directory, rank)) is not None}
        alive = {rank for rank in ranks if _is_alive(directory, rank)}
        ends = {end.rank: end.code for end in _read_ends(directory)}
        if len(ranks) == processes and not alive:
            return
        if stop.requested:
            if not all(note["trains"] for note in ranks.values()) or len(ranks) < processes:
                # No rank takes a step before all have come: there is nothing to save.
                return
            if not signalled:
                deadline = min(deadline, time.monotonic() + _grace_seconds())
            for rank in alive - signalled:
                os.kill(ranks[rank]["pid"], signal.SIGTERM)
                signalled.add(rank)
        has_failed = any(
            ends.get(rank, ENVIRONMENT) not in (0, ExitCode.ASKED_TO_STOP) for rank in ranks.keys() - alive
        )
        if has_failed and not failure_seen:
            failure_seen = True
            deadline = min(deadline, time.monotonic() + MATES_SECONDS)
        time.sleep(POLL_SECONDS)


def _kill_all(launcher: subprocess.Popen[bytes], processes: int, directory: Path) -> None:
    """Leave nobody behind. The kernel kills the ranks with their launcher; elsewhere than on Linux we do."""
    alive = [rank for rank in range(processes) if _is_alive(directory, rank)]
    for rank in alive:
        note = _read_note(directory, rank)
        if note is not None:
            _kill(note["pid"])
    launcher.kill()
    launcher.wait()
    for rank in range(processes):
        lock = directory / f"rank-{rank}"
        if lock.exists():
            with lock.open() as file:
                # Held until the rank is gone.
                fcntl.flock(file, fcntl.LOCK_EX)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_alive(directory: Path, rank: int) -> bool:
    try:
        with (directory / f"rank-{rank}").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read_note(directory: Path, rank: int) -> dict[str, int] | None:
    try:
        note: dict[str, int] = json.loads((directory / f"note-{rank}").read_bytes())
    except FileNotFoundError:
        return None
    return note


def _read_ends(directory: Path) -> list[End]:
    try:
        lines = (directory / _ENDS).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [End(**json.loads(line)) for line in lines]


def _say(ends: Sequence[End], code: int) -> None:
    """Print one rank's sentence: all of them met the same thing."""
    sentence = next((end.sentence for end in ends if end.code == code and end.sentence), "")
    if not sentence and code == ENVIRONMENT:
        reported = ", ".join(f"rank {end.rank} with {end.code}" for end in ends) or "no rank said why"
        sentence = f"the ranks ended without agreeing: {reported}"
    if sentence:
        print(sentence, file=sys.stderr, flush=True)


def _grace_seconds() -> float:
    given = os.environ.get(GRACE, "")
    try:
        seconds = float(given) if given else DEFAULT_GRACE_SECONDS
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise TrainerError(f"{GRACE} must be a number of seconds, at least 0, got {given!r}")
    return seconds


# The launcher's side -------------------------------------------------------------------------------------------------


def _launch() -> None:
    _die_with(int(os.environ[_PARENT]))
    os.environ[_LAUNCHER] = str(os.getpid())
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What went wrong is told by the ranks, in one sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch.main()
    except ChildFailedError:
        sys.exit(ENVIRONMENT)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, or end now where it is gone already."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ENVIRONMENT)


if __name__ == "__main__":
    _launch()
