"""The training losses that trials left in the bucket, for the charts of the report's page.

A trainer of somebody else's may write none, or anything: what is no list of finite numbers is passed over, as a chart
is no reason to have no report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean

from study_operator import names
from study_operator.ledger.trial import Trial
from study_operator.report.charts import MOST_LINES, LossCurve
from study_operator.report.report import ranked
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError, ArtifactStore
from trial_trainer.contract import TRAINING_LOSSES

MOST_POINTS = 120
"""Of one curve at its full length; a screen shows no more."""
MOST_BYTES = 4 * 1024 * 1024


def read_losses(study: Study, trials: Sequence[Trial], artifacts: ArtifactStore) -> tuple[LossCurve, ...]:
    """Return the losses of the best measured trials, in the order of the ranking: each is a request to the bucket.

    Raises:
        ArtifactError: where the bucket cannot be read.
    """
    measured = [trial for trial in ranked(study, trials) if trial.measurements][:MOST_LINES]
    curves = []
    for trial in measured:
        # Each rung's document holds the steps of those before it, too.
        key = f"{names.rung_key(trial.name, trial.measurements[-1].rung)}/{TRAINING_LOSSES}"
        losses = _read(artifacts, key)
        if losses:
            curves.append(LossCurve(trial=trial.name, points=thin(losses, trial.total_steps)))
    return tuple(curves)


def _read(artifacts: ArtifactStore, key: str) -> list[float]:
    try:
        text = artifacts.read(key, MOST_BYTES)
        values = json.loads(text) if text is not None else []
    except ArtifactError as error:
        if error.reason == "ObjectTooLarge":
            return []
        raise
    except (ValueError, RecursionError):
        return []
    is_whole = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    return [float(value) for value in values] if is_whole else []


def thin(losses: Sequence[float], total_steps: int) -> tuple[tuple[int, float], ...]:
    """Return a curve of at most `MOST_POINTS` at full length: each a mean of so many steps, at the last of them.

    Args:
        losses: of each step since the first.
        total_steps: the full length, so that a curve that ends early is thinned as one that does not.
    """
    width = math.ceil(max(total_steps, len(losses)) / MOST_POINTS)
    starts = range(0, len(losses), width)
    return tuple((min(i + width, len(losses)), fmean(losses[i : i + width])) for i in starts)
