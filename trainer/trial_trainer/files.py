"""Files that a reader finds whole or as they were before. Called by whoever writes one that another process may read.

Standard library only; the operator may use it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".writing-"
"""How the names of files begin that are not whole yet, or were left by a process that was killed."""


def write_whole(target: Path, data: bytes | str, *, mode: int = 0o666, is_durable: bool = False) -> None:
    """Write a file so that a reader sees all of it or what was there before.

    Args:
        target: the file; its directory is made where there is none.
        data: what it shall hold; text as UTF-8.
        mode: its permissions, less the umask.
        is_durable: whether that also holds for a machine that loses its power; takes a disk's time.
    """
    with beside(target) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Name a new file beside another, to be written and moved over it; what is left of it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{os.urandom(16).hex()}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
