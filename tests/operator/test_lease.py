"""The election says what only people can mend, and says it once."""

import logging

import pytest

from kube_of_dicts import KubeOfDicts
from study_operator.kube import Answer, KubeError, Raw
from study_operator.lease import Election

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
