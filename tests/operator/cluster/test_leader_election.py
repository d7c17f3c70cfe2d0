"""The election says what only people can mend, and says it once; whoever cannot renew stops in time."""

import logging
import threading
import time

import pytest

from builders.kube_of_dicts import KubeOfDicts
from study_operator.cluster import leader_election as lease_module
from study_operator.cluster.api import Answer, KubeError, Raw
from study_operator.cluster.leader_election import Election

REFUSED = "leases.coordination.k8s.io is forbidden"


class KubeThatRefuses(KubeOfDicts):
    """Refuses to make a Lease."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status

    def create(self, path: str, body: Raw, query: object = None) -> Answer:
        raise KubeError(self._status, "Any", REFUSED)


@pytest.mark.parametrize(
    ("status", "warnings"),
    [(403, [f"nobody can be elected: {REFUSED}"]), (409, []), (503, []), (0, [])],
    ids=["no right", "somebody was quicker", "overloaded", "no answer"],
)
def test_only_what_does_not_go_away_by_itself_is_told_and_once(
    status: int, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    election = Election(
        KubeThatRefuses(status),  # type: ignore[arg-type]
        namespace="home",
        name="operator",
        identity="a",
        on_lost=lambda: None,
    )
    with caplog.at_level(logging.WARNING):
        assert not election._try() and not election._try()
    assert [record.getMessage() for record in caplog.records] == warnings


class KubeThatHangs(KubeOfDicts):
    """Answers like an API server until it is told to hang."""

    def __init__(self) -> None:
        super().__init__()
        self.is_hanging = threading.Event()
        self.may_go_on = threading.Event()

    def get(self, path: str, *, only_metadata: bool = False) -> Raw | None:
        if self.is_hanging.is_set():
            self.may_go_on.wait(30)
        return super().get(path, only_metadata=only_metadata)


def test_whoever_holds_the_lease_stops_in_time_although_a_request_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_DEADLINE_SECONDS", 0.6)
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "CLOCK_SECONDS", 0.02)
    kube, lost = KubeThatHangs(), threading.Event()
    election = Election(kube, namespace="home", name="operator", identity="a", on_lost=lost.set)  # type: ignore[arg-type]
    election.start()
    try:
        assert election.elected.wait(5)
        time.sleep(1.0)
        # As long as it is renewed it is held, however long that is.
        assert election.elected.is_set() and not lost.is_set()
        kube.is_hanging.set()
        assert lost.wait(5)
        assert not election.elected.is_set()
    finally:
        kube.may_go_on.set()
        election.resign()
