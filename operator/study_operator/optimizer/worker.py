"""A process that asks Ax and nothing else, so that its 800 MB and its seconds are nobody else's.

    python -m study_operator.optimizer.worker

Started by `optimizer/proposals.py`, with which it speaks in pickles over its own pipes: a question `("suggest", study,
trials, count)` or `("read", study, trials, arm)` in, an answer `("arms", suggestions)`, `("reading", reading)` or
`("problem", sentence)` out, one at a time. It ends when its input does.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

from study_operator.optimizer.designer import DesignerError, Optimizer

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def answer(optimizer: Optimizer, question: Any) -> tuple[str, Any]:
    """Answer one question."""
    kind, study, trials, rest = question
    try:
        if kind == "read":
            return "reading", optimizer.read_model(study, trials, rest, is_last=True)
        return "arms", optimizer.suggest(study, trials, rest)
    except DesignerError as error:
        return "problem", str(error)


def serve(optimizer: Optimizer, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer questions until there are no more."""
    while True:
        try:
            question = pickle.load(questions)  # noqa: S301  # our own parent's
        except EOFError:
            return
        pickle.dump(answer(optimizer, question), answers)
        answers.flush()


def _end_with_parent() -> None:
    """Be killed with the parent: while Ax is imported and fits, nobody here sees that the pipe has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve the parent. What a library prints goes where errors go: the pipe is for answers."""
    _end_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from study_operator.optimizer.ax import AxDesigner

    serve(AxDesigner(), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
