"""Memory that runs out: how it is known, and what is the study's fault because it fails whatever the arm."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trial_trainer.errors import StudyError

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "std::bad_alloc",
    "_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other errors; torch names it differently on each device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def must_fit(subject: str) -> Iterator[None]:
    """Make it the study's fault when something does not fit into memory that every arm needs.

    Raises:
        StudyError: where an allocation fails inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split())
        raise StudyError(f"{subject} does not fit into memory, whatever the arm: {message}") from error


def free_memory() -> None:
    """Give back what nobody refers to any more, after an allocation failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
