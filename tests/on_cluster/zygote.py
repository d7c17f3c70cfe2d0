"""Operators that start in a moment: a process that has imported everything, and forks one whenever it is asked.

    python -m on_cluster.zygote            # lines of JSON in: arguments and log; lines out: the process

What is forked is the operator's own `main`, in a process of its own that can be killed like any other.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_PDEATHSIG = 1


OPTIMIZER = """
import pickle, sys
while sys.stdin.buffer.peek(1):
    pickle.load(sys.stdin.buffer)
    pickle.dump(("problem", "there is no optimizer here"), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
"""Of the operators: answers every question at once, and ends with its input."""


class Zygote:
    """The process that forks operators; all of them end with it."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.log = directory / "operators.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "on_cluster.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def start(self, arguments: Sequence[str]) -> int:
        """Start an operator; return its process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": list(arguments), "log": str(self.log)}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        """End it, and every operator that still runs."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Fork operators until there is no more to read."""
    import boto3
    import kopf  # noqa: F401

    from study_operator.cluster import operator
    from study_operator.optimizer.proposals import Proposals

    # Two hundred operators would import Ax two hundred times, ten seconds each, for a report.
    Proposals.__init__.__kwdefaults__["command"] = (sys.executable, "-c", OPTIMIZER)
    boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        reported = json.loads(line)
        process = os.fork()
        if process == 0:
            _become_operator(reported["arguments"], reported["log"], operator.main)
        print(process, flush=True)


def _become_operator(arguments: Sequence[str], log: str, run: object) -> NoReturn:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    code = 1
    try:
        code = run(arguments)  # type: ignore[operator]
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
