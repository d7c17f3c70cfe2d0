"""What the optimizer's model says, in sentences. Made from `optimizer.reading`; it decides nothing."""

from __future__ import annotations

from study_operator.ledger.trial import TrialState
from study_operator.optimizer.reading import ModelReading
from study_operator.report.report import Report, describe_parameter


def describe_model(report: Report) -> str:
    """Return what the model rests on and whether it knows anything; nothing before there is one."""
    reading = report.model
    if reading is None:
        return ""
    if reading.problem:
        return f"The optimizer's model cannot be read: {reading.problem}."
    # Of an arm that could not run to its end the model is told this alone.
    modelled = (trial for trial in report.trials if trial.state is not TrialState.ABANDONED)
    measured = sum(trial.measurement(0) is not None for trial in modelled)
    of = f"the {'first ' if reading.measured < measured else ''}{reading.measured} measured trials"
    if reading.tau is None or reading.p is None:
        return f"The optimizer's model knows nothing: {of} are equal. So neither importance nor a curve is drawn."
    test = f"each predicted from others (Kendall's τ = {reading.tau:.2f}, one-sided p = {reading.p:.2g})"
    if not reading.knows:
        return (
            f"The optimizer's model knows nothing yet: it does not rank {of} better than chance, {test}. So neither "
            "importance nor a curve is drawn."
        )
    return f"The optimizer's model, a Gaussian process of the ranks of {of}, ranks them better than chance, {test}."


def describe_slices(report: Report) -> str:
    """Return how the curves behind the points are read; nothing where there are none."""
    reading = report.model
    if reading is None or not reading.knows or not reading.slices:
        return ""
    return (
        f"Line: what the optimizer's model predicts as this parameter varies and all others are those of "
        f"{_name_arm(report, reading)}; shaded: its 90 % band. The model knows ranks: what it predicts beyond the best "
        "or the worst measurement is drawn at it."
    )


def _name_arm(report: Report, reading: ModelReading) -> str:
    names = [trial.name for trial in report.trials if dict(trial.arm) == dict(reading.through)]
    arm = ", ".join(f"{name} {describe_parameter(value)}" for name, value in reading.through.items())
    return f"{names[0]} ({arm})" if names else arm
