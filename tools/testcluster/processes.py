"""Processes that tests start: none of them outlives the test run, however that ends."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SETPRIV = shutil.which("setpriv")
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
"""Linux ends the children when the *thread* that started them ends, so one thread that lasts starts all of them."""


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, its output appended to a file; where it can be, it ends when we do.

    Raises:
        OSError: The program can't be started.
    """
    guard = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )

    return _starter.submit(start).result()


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process started by `spawn` and to its children; nothing where they are gone."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def end(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """Ask a process to end, and kill its group after the grace period. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    return kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process and its children. Returns its exit code."""
    signal_group(process, signal.SIGKILL)
    return process.wait()


def pick_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on, below those that the system hands out for connections."""
    ports: list[int] = []
    generator = random.SystemRandom()
    while len(ports) < count:
        port = generator.randrange(20_000, 30_000)
        with socket.socket() as probe:
            # As servers do: ports of connections that ended a moment ago are free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports
