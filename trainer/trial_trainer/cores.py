"""How many cores this process may use. Called by the trainer for its threads, and by the laptop that starts trainers.

The standard library imports only; the operator may use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def count_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may use: those it is bound to, or its container's CPU quota if that is less.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A quota of half a core still runs one thread; one and a half cores keep two busy.
    return max(1, min([cores, *(round(quota) for quota in _read_quotas(root))]))


def _read_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of this process's control groups and of all that they lie in."""
    for controllers, group in _read_groups(root / "proc/self/cgroup"):
        is_v2 = not controllers
        if not is_v2 and "cpu" not in controllers.split(","):
            continue
        for mount in ("",) if is_v2 else ("cpu", controllers):
            # In a container the group's path may be the host's: what the container sees of it is the mount's root.
            for inner in (group, *group.parents):
                directory = root / "sys/fs/cgroup" / mount / inner.relative_to("/")
                quota = _read_v2(directory) if is_v2 else _read_v1(directory)
                if quota is not None:
                    yield quota


def _read_groups(path: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield controllers ("" in version 2) and group of each line, "4:cpu,cpuacct:/pods/a" (cgroups(7))."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if group.startswith("/"):
            yield controllers, PurePosixPath(group)


def _read_v2(directory: Path) -> float | None:
    """Read `cpu.max`: quota and period in microseconds, or "max" and period."""
    return _share(*(*_words(directory / "cpu.max"), "", "")[:2])


def _read_v1(directory: Path) -> float | None:
    """Read quota, -1 for none, and period in microseconds."""
    quota, period = (next(iter(_words(directory / f"cpu.cfs_{name}_us")), "") for name in ("quota", "period"))
    return _share(quota, period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []


def _share(quota: str, period: str) -> float | None:
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None
