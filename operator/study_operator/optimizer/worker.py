"""A process that asks Ax and nothing else, so that its 800 MB and its seconds are nobody else's.

    python -m study_operator.optimizer.worker

Started by `optimizer/proposals.py`, with which it speaks in pickles over its own pipes: a question `(study, trials,
count)` in, an answer `("arms", suggestions)` or `("problem", sentence)` out, one at a time. It ends when its input
does.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any, BinaryIO

from study_operator.optimizer.designer import Designer, DesignerError


def answer(designer: Designer, question: Any) -> tuple[str, Any]:
    """Answer one question."""
    study, trials, count = question
    try:
        return "arms", designer.suggest(study, trials, count)
    except DesignerError as error:
        return "problem", str(error)


def serve(designer: Designer, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer questions until there are no more."""
    while True:
        try:
            question = pickle.load(questions)  # noqa: S301  # our own parent's
        except EOFError:
            return
        pickle.dump(answer(designer, question), answers)
        answers.flush()


def main() -> None:
    """Serve the parent. What a library prints goes where errors go: the pipe is for answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from study_operator.optimizer.ax import AxDesigner

    serve(AxDesigner(), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
