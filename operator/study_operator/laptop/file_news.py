"""Tells when a file of a directory was replaced: by the kernel where it can (inotify of Linux), else by looking.

Standard library only: inotify is three calls of the C library. https://man7.org/linux/man-pages/man7/inotify.7.html
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
"""Between two looks where nobody tells."""
IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x8, 0x80, 0x100
EVENTS_BYTES = 64 * 1024


class FileNews:
    """Waits for changes in one directory."""

    def __init__(self, descriptor: int | None) -> None:
        self.is_told = descriptor is not None
        """Whether the kernel tells; else whoever waits looks again after each wait."""
        self._descriptor = descriptor

    def wait(self, seconds: float) -> None:
        """Return when something in the directory has changed, or the time is over."""
        if self._descriptor is None:
            select.select([], [], [], min(seconds, LOOK_SECONDS))
        elif select.select([self._descriptor], [], [], seconds)[0]:
            # What has changed is seen by whoever looks; events that came together are one piece of news.
            os.read(self._descriptor, EVENTS_BYTES)


@contextlib.contextmanager
def follow_directory(directory: Path) -> Iterator[FileNews]:
    """Follow a directory that exists."""
    descriptor = _watch(directory)
    try:
        yield FileNews(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _watch(directory: Path) -> int | None:
    """Return inotify's descriptor; None where there is none, or there are too many."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        return None
    descriptor = int(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        return None
    mask = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE
    if library.inotify_add_watch(descriptor, os.fsencode(directory), mask) < 0:
        os.close(descriptor)
        return None
    return descriptor
