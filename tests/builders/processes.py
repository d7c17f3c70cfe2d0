"""Processes that a test has started, or that its processes have."""

from study_operator.laptop import supervisor


def is_alive(process: int) -> bool:
    """Say whether a process runs; one that ended and was not waited for does not."""
    return supervisor.identify(process)[1] not in ("", "ended")
