"""One cluster for all the processes of a test run: who comes first starts it, who leaves last ends it.

    python -m testcluster.shared DIRECTORY             # started by `borrow`: runs a control plane until nobody holds it

Every borrower holds a shared lock on a file for as long as it lives, so that one that is killed counts as gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from testcluster import build
from testcluster.kube import START_SECONDS, Cluster, ControlPlane

_keepers: list[subprocess.Popen[bytes]] = []
"""Nobody waits for them: they end after us."""
_USERS = "users.lock"
_READY = "ready.json"


@contextlib.contextmanager
def borrow(directory: Path) -> Iterator[Cluster]:
    """Give the cluster of a directory, started now if it is not there yet.

    Raises:
        BuildError: The programs can't be had.
    """
    programs = build.find_kubernetes()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _USERS).open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with (directory / "start.lock").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if not (directory / _READY).exists():
                _start(directory)
        ready = json.loads((directory / _READY).read_text())
        yield Cluster(Path(ready["kubeconfig"]), kubectl=programs / "kubectl", audit_log=Path(ready["audit_log"]))


def _start(directory: Path) -> None:
    log = directory / "keeper.log"
    with log.open("wb") as output:
        # Of a session of its own, and not tied to us: others may need it when we are gone.
        keeper = subprocess.Popen(
            [sys.executable, "-m", "testcluster.shared", str(directory)],
            cwd=build.HERE.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _keepers.append(keeper)
    deadline = time.monotonic() + 4 * START_SECONDS
    while not (directory / _READY).exists():
        assert keeper.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.05)


def main(directory: Path) -> None:
    """Run a control plane until the last borrower is gone."""
    with ControlPlane(directory / "control-plane", build.find_kubernetes()) as cluster:
        draft = directory / "ready.draft"
        draft.write_text(json.dumps({"kubeconfig": str(cluster.kubeconfig), "audit_log": str(cluster.audit_log)}))
        draft.rename(directory / _READY)
        with (directory / _USERS).open("r") as users:
            # Ours as soon as nobody shares it any more.
            fcntl.flock(users, fcntl.LOCK_EX)
            (directory / _READY).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
