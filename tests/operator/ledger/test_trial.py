"""Attempts of a trial: which count against it, and when the next one is due."""

from builders.ledgers import (
    NOW,
    a_trial,
)
from study_operator.ledger.trial import (
    Attempt,
    count_attempts_against,
    retry_at,
)
from study_operator.settings import Settings


def test_the_wait_before_the_next_attempt_doubles_up_to_a_limit() -> None:
    settings = Settings(backoff_seconds=10, backoff_limit_seconds=35)
    attempts: tuple[Attempt, ...] = ()
    waits = []
    for n in range(4):
        crashed = Attempt(rung=0, started_at=NOW, finished_at=NOW, exit_code=1, reason="Crashed", id=str(n))
        attempts = (*attempts, crashed)
        due = retry_at(a_trial(0, attempts=attempts), settings)
        assert due is not None
        waits.append((due - NOW).total_seconds())
    assert waits == [10, 20, 35, 35]


def test_faults_on_the_first_rung_do_not_count_on_the_second() -> None:
    crashed = Attempt(rung=0, started_at=NOW, finished_at=NOW, exit_code=1, reason="Crashed", id="x")
    assert count_attempts_against((crashed, crashed), 0) == (2, 0)
    assert count_attempts_against((crashed, crashed), 1) == (0, 0)
