"""The last lines of this process's log, kept in the bucket: a pod, and its log with it, goes when its result is known.

Called by `__main__` alone. Standard library only until something is written; whatever goes wrong then is said on stderr
and changes no exit code.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque

from trial_trainer.artifacts import open_store, within
from trial_trainer.contract import ATTEMPT, LOGS

LINES = 1_000
LINE_CHARACTERS = 2_000
WRITE_SECONDS = 10.0


class LogTail(logging.Handler):
    """Remembers what is logged, and what is added, as far as there is room."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._prefix = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a record as it is printed."""
        self.add(self.format(record))

    def add(self, text: str) -> None:
        """Remember what is printed past the log, such as a trace."""
        self._lines.extend(line[:LINE_CHARACTERS] for line in text.splitlines())

    def keep_under(self, prefix: str) -> None:
        """Say where results of this process go; the log lies beside them."""
        self._prefix = prefix

    def write(self, *, has_failed: bool) -> None:
        """Put the lines into the bucket. Of several ranks the first does, and any other that failed."""
        rank = os.environ.get("RANK", "0")
        if not self._prefix or not self._lines or (rank != "0" and not has_failed):
            return
        name = os.environ.get(ATTEMPT) or "log"
        key = f"{LOGS}/{name}.txt" if rank == "0" else f"{LOGS}/{name}-rank{rank}.txt"
        try:
            with within(WRITE_SECONDS):
                open_store(self._prefix).write(key, "".join(f"{line}\n" for line in self._lines).encode())
        except Exception as error:  # noqa: BLE001  # how the process ends is decided already
            if not has_failed:
                # Else there is something more important to say.
                print(f"the last lines of the log are not kept: {error}", file=sys.stderr, flush=True)
