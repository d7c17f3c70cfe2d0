"""The wait between two tries at what failed: it doubles from try to try, up to a longest one."""

from __future__ import annotations

MOST_DOUBLINGS = 64
"""What fails for days must not overflow a float."""


def wait_after(failures: int, first: float, longest: float) -> float:
    """Return the wait after so many failures in a row, in the unit of the other two."""
    return min(longest, first * 2.0 ** min(failures - 1, MOST_DOUBLINGS))
