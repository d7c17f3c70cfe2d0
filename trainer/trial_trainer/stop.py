"""A request to stop, by SIGTERM or SIGINT. Standard library only: it is installed before anything heavy is imported.

Until `protect` is called there is nothing to lose, and a request ends the process at once, even in the middle of
`import torch`. From then on it only sets a flag, which the training loop reads between steps; until `release`, when all
is saved.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from trial_trainer.contract import ExitCode


class StopRequest:
    """Whether somebody asked this process to stop."""

    def __init__(self, before_leaving: Callable[[int], None] = lambda _code: None) -> None:
        """Make a request that nobody has made yet.

        Args:
            before_leaving: called with the exit code where a request ends the process at once.
        """
        self.requested = False
        self._is_protected = False
        self._before_leaving = before_leaving

    def install(self) -> StopRequest:
        """Handle SIGTERM and SIGINT from now on. The kernel drops a signal that PID 1 has no handler for."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def protect(self) -> None:
        """From now on a request only sets the flag: there is work to save."""
        self._is_protected = True

    def release(self) -> None:
        """From now on a request, also an earlier one, ends the process at once: all that was done is saved."""
        self._is_protected = False
        if self.requested:
            self._leave()

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._is_protected:
            self._leave()

    def _leave(self) -> None:
        self._before_leaving(ExitCode.ASKED_TO_STOP)
        # Not `sys.exit`: an exception in the middle of an import of native code may be swallowed, or crash it.
        os._exit(ExitCode.ASKED_TO_STOP)
