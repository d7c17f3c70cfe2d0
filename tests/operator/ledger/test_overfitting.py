"""What became of the winner between its first rung and its end: which signs of overfitting count, and their words."""

from dataclasses import replace
from typing import Any

import pytest

from builders.ledgers import NOW, a_ledger, a_study
from study_operator.ledger.overfitting import describe_change, find_winner_change, name_sign
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import Change, WinnerChange
from trial_trainer import contract
from trial_trainer.contract import FinalEvaluation, Interval

UP = Change(difference=0.03, low=-0.01, high=0.07, n=160)
DOWN = Change(difference=-0.04, low=-0.07, high=-0.01, n=500)
MAYBE = Change(difference=-0.04, low=-0.09, high=0.01, n=500)
FALLING_LOSS = Change(difference=-0.2, low=-0.3, high=-0.1, n=160)
RISING_LOSS = Change(difference=0.2, low=0.1, high=0.3, n=160)


def a_change(**changes: Any) -> WinnerChange:
    change = WinnerChange(validation=UP, test=UP, loss=FALLING_LOSS, training_loss_before=0.8, training_loss_after=0.3)
    return replace(change, **changes)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        pytest.param(a_change(), "NotSeen", id="both rise"),
        pytest.param(a_change(test=DOWN), "TestFell", id="validation up and test down"),
        pytest.param(a_change(test=MAYBE), "NotSeen", id="the test set fell by what chance may be"),
        pytest.param(a_change(test=replace(DOWN, low=None, high=None)), "NotSeen", id="no interval"),
        pytest.param(a_change(validation=DOWN, test=DOWN), "NotSeen", id="validation fell too"),
        pytest.param(a_change(validation=None, test=DOWN), "NotSeen", id="validation is not known"),
        pytest.param(a_change(loss=RISING_LOSS), "ValidationLossRose", id="validation loss up and training loss down"),
        pytest.param(a_change(loss=replace(RISING_LOSS, low=-0.1)), "NotSeen", id="loss up by what may be chance"),
        pytest.param(a_change(loss=RISING_LOSS, training_loss_after=0.9), "NotSeen", id="training loss rose too"),
        pytest.param(a_change(loss=RISING_LOSS, training_loss_before=None), "NotSeen", id="no training losses"),
    ],
)
def test_overfitting_is_seen_where_an_interval_excludes_chance(change: WinnerChange, sign: str) -> None:
    assert name_sign(change) == sign
    status = render_status(a_study(), a_ledger(winner_change=change), now=NOW)
    (condition,) = (c for c in status["conditions"] if c["type"] == "Overfitting")
    assert (condition["status"], condition["reason"]) == ("False" if sign == "NotSeen" else "True", sign)
    assert condition["message"] == describe_change(a_study(), change)
    assert parse_status(status).ledger.winner_change == change


def test_before_the_test_set_is_read_nothing_is_known() -> None:
    status = render_status(a_study(), a_ledger(), now=NOW)
    (condition,) = (c for c in status["conditions"] if c["type"] == "Overfitting")
    assert (condition["status"], condition["reason"], condition["message"]) == ("Unknown", "NotEvaluated", "")


def test_the_sentence_has_every_number_with_its_interval() -> None:
    assert describe_change(a_study(), a_change(test=DOWN)) == (
        "from 20 % of its length to its end the winner's accuracy changed by +3.0 points (95 % interval -1.0 to +7.0, "
        "n = 160) on validation and by -4.0 points (95 % interval -7.0 to -1.0, n = 500) on the test set; its "
        "validation loss changed by -0.200 nats (95 % interval -0.300 to -0.100, n = 160); its training loss went from "
        "0.800 to 0.300"
    )
    alone = WinnerChange(
        validation=replace(UP, low=None, high=None),
        test=None,
        loss=None,
        training_loss_before=None,
        training_loss_after=None,
    )
    assert describe_change(a_study(), alone).endswith("by +3.0 points (no interval, n = 160) on validation")


def test_it_is_taken_from_the_final_evaluation_by_the_mean_that_is_read_there() -> None:
    interval = Interval(difference=-0.04, low=-0.07, high=-0.01, n=500, sites=60)
    of_nothing = Interval(difference=0.0, low=-1.0, high=1.0, n=0, sites=0)
    evaluation = FinalEvaluation(
        study="s1",
        winner="t002",
        predictors={},
        gains={"hand_labelled/winner-winner_early": of_nothing, "all_asked/winner-winner_early": interval},
        seconds={},
        winner_change=contract.WinnerChange(
            accuracy=None, loss=replace(interval, difference=0.2), training_loss_before=0.8, training_loss_after=0.3
        ),
    )
    found = find_winner_change(evaluation)
    assert found is not None and found.test == DOWN
    assert (found.validation, found.loss) == (None, replace(DOWN, difference=0.2))
    # Trainers of earlier versions read no first rung.
    assert find_winner_change(replace(evaluation, gains={}, winner_change=None)) is None
    # Somebody else's trainer may leave nothing that both rungs have.
    empty = contract.WinnerChange(accuracy=None, loss=None, training_loss_before=None, training_loss_after=None)
    assert find_winner_change(replace(evaluation, gains={}, winner_change=empty)) is None
