"""What a pod does on a stand-in node instead of running its command: a table of endings for tests to choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    """How a scripted pod ends."""

    EXIT = "Exit"
    """Its containers end with the script's exit code."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The kernel kills it for its memory: 137, OOMKilled."""
    EVICTED = "Evicted"
    """The kubelet throws it out, because the node is short of memory."""
    DISK_FULL = "DiskFull"
    """The kubelet throws it out, because it has written more than it may; that is marked as no disruption."""
    PREEMPTED = "Preempted"
    """The scheduler marks and deletes it, as for a pod of higher priority."""
    NODE_SHUTDOWN = "NodeShutdown"
    """The machine is taken away after a warning, as a spot instance is."""
    NODE_LOST = "NodeLost"
    """The node falls silent; its pods go on and nobody sees it."""
    NONE = "None"
    """It runs until it is told to stop."""


Work = Callable[[Mapping[str, str]], "int | None"]
"""What a scripted pod does before it ends, given its first container's environment; may return an exit code."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """The life of one pod."""

    ending: Ending = Ending.EXIT
    exit_code: int = 0
    after_seconds: float = 0.0
    """How long it runs before it ends."""
    start_seconds: float = 0.1
    """How long its image is pulled and its containers are made."""
    work: Work | None = None
    stop_seconds: float | None = 0.0
    """How long it goes on after SIGTERM; None: it is deaf and waits for SIGKILL."""
    stop_code: int = 143
    """What it ends with after SIGTERM."""
    message: str = ""
    """What its container leaves as its termination message."""
    waiting_reason: str = ""
    """If set, its containers never start, and this is why: ImagePullBackOff, CreateContainerConfigError."""
    waiting_message: str = ""


def exits(code: int, *, after_seconds: float = 0.0, work: Work | None = None) -> Script:
    """End with an exit code."""
    return Script(exit_code=code, after_seconds=after_seconds, work=work)


def works(work: Work, *, after_seconds: float = 0.0) -> Script:
    """Do something, such as writing a measurement into the bucket, and end with 0."""
    return Script(work=work, after_seconds=after_seconds)


def runs(*, stop_seconds: float | None = 0.0, stop_code: int = 143) -> Script:
    """Run in silence until told to stop."""
    return Script(ending=Ending.NONE, stop_seconds=stop_seconds, stop_code=stop_code)


def runs_out_of_memory(*, after_seconds: float = 0.0) -> Script:
    """Be killed by the kernel."""
    return Script(ending=Ending.OUT_OF_MEMORY, after_seconds=after_seconds)


def is_evicted(*, after_seconds: float = 0.0) -> Script:
    """Be thrown out by the kubelet."""
    return Script(ending=Ending.EVICTED, after_seconds=after_seconds)


def fills_its_disk(*, after_seconds: float = 0.0) -> Script:
    """Be thrown out by the kubelet, for what it has written."""
    return Script(ending=Ending.DISK_FULL, after_seconds=after_seconds)


def is_preempted(*, after_seconds: float = 0.0) -> Script:
    """Make room for a pod of higher priority."""
    return Script(ending=Ending.PREEMPTED, after_seconds=after_seconds)


def sees_its_node_shut_down(*, after_seconds: float = 0.0) -> Script:
    """Lose the node, with a warning."""
    return Script(ending=Ending.NODE_SHUTDOWN, after_seconds=after_seconds)


def loses_its_node(*, after_seconds: float = 0.0) -> Script:
    """Lose the node, without a warning."""
    return Script(ending=Ending.NODE_LOST, after_seconds=after_seconds)


def cannot_pull(message: str = "failed to resolve image: not found") -> Script:
    """Wait for an image that nobody has: ErrImagePull and ImagePullBackOff in turns."""
    return Script(waiting_reason="ImagePullBackOff", waiting_message=message)
