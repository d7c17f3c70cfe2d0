"""Whether the winner overfitted between its first rung and its end: what it learnt by heart helps no other page.

Two signs, each told with its interval: accuracy that rose on validation and fell on the test set, and a loss that rose
on validation while that of training fell. Nothing is chosen by either. Called by settle, the status and the report.
"""

from __future__ import annotations

from study_operator.ledger.trial import Change, WinnerChange
from study_operator.reasons import ConditionReason
from study_operator.spec.study import Study
from trial_trainer.contract import FinalEvaluation, Interval

MEANS = ("hand_labelled", "all_asked")


def find_winner_change(final_evaluation: FinalEvaluation) -> WinnerChange | None:
    """Return what a final evaluation says of the winner at its first rung and at its end; None where nothing."""
    gains = (final_evaluation.gains.get(f"{mean}/winner-winner_early") for mean in MEANS)
    test = next((gain for gain in gains if gain is not None and gain.n), None)
    change = final_evaluation.winner_change
    if test is None and (change is None or (change.accuracy is None and change.loss is None)):
        # The loss of training alone falls in any case.
        return None
    return WinnerChange(
        validation=_build_change(change.accuracy if change is not None else None),
        test=_build_change(test),
        loss=_build_change(change.loss if change is not None else None),
        training_loss_before=change.training_loss_before if change is not None else None,
        training_loss_after=change.training_loss_after if change is not None else None,
    )


def _build_change(interval: Interval | None) -> Change | None:
    if interval is None:
        return None
    return Change(difference=interval.difference, low=interval.low, high=interval.high, n=interval.n)


def name_sign(change: WinnerChange) -> ConditionReason:
    """Return the sign of overfitting that is seen, or that none is: chance is excluded where an interval excludes 0."""
    rose = change.validation is not None and change.validation.difference > 0
    if rose and change.test is not None and change.test.high is not None and change.test.high < 0:
        return ConditionReason.TEST_FELL
    before, after = change.training_loss_before, change.training_loss_after
    learnt = before is not None and after is not None and after < before
    if learnt and change.loss is not None and change.loss.low is not None and change.loss.low > 0:
        return ConditionReason.VALIDATION_LOSS_ROSE
    return ConditionReason.NOT_SEEN


def describe_change(study: Study, change: WinnerChange) -> str:
    """Return one sentence on what became of the winner from its first rung to its end."""
    measured = ((change.validation, "on validation"), (change.test, "on the test set"))
    by = [f"by {_describe(of, 100, ' points')} {where}" for of, where in measured if of is not None]
    parts = [f"accuracy changed {' and '.join(by)}"] if by else []
    if change.loss is not None:
        parts.append(f"validation loss changed by {_describe(change.loss, 1, ' nats')}")
    if change.training_loss_before is not None and change.training_loss_after is not None:
        parts.append(f"training loss went from {change.training_loss_before:.3f} to {change.training_loss_after:.3f}")
    percent = study.early_evaluation.rungs[0]
    return f"from {percent} % of its length to its end the winner's {'; its '.join(parts)}" if parts else ""


def _describe(change: Change, scale: float, unit: str) -> str:
    form = "+.1f" if scale == 100 else "+.3f"
    value = f"{format(change.difference * scale, form)}{unit}"
    if change.low is None or change.high is None:
        return f"{value} (no interval, n = {change.n})"
    low, high = format(change.low * scale, form), format(change.high * scale, form)
    return f"{value} (95 % interval {low} to {high}, n = {change.n})"
