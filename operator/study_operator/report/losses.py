"""The training losses that trials left in the bucket, for the charts of the report's page.

A trainer of somebody else's may write none, or anything: what is no list of finite numbers is passed over, as a chart
is no reason to have no report. What was measured never changes, so a report reads only what is new since the last one.
"""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from statistics import fmean

from study_operator import names
from study_operator.ledger.trial import Trial
from study_operator.report.charts import MOST_LINES, LossCurve
from study_operator.report.report import ranked
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError, ArtifactStore, join
from trial_trainer.contract import TRAINING_LOSSES

MOST_POINTS = 120
"""Of one curve at its full length; a screen shows no more."""
MOST_BYTES = 4 * 1024 * 1024

MOST_KEPT = 5_000
"""Curves, of 2 KB each: those of fifty large studies. What is beyond is read again."""


class KeptLosses:
    """The curves that were read, by URI and checkpoint. May be used by many threads."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        """Keep nothing yet.

        Args:
            most: how many curves are kept; those that were not asked for longest go first.
        """
        self._most = most
        self._lock = threading.Lock()
        self._curves: OrderedDict[tuple[str, str], tuple[array[int], array[float]]] = OrderedDict()

    def find(self, uri: str, checkpoint: str) -> tuple[tuple[int, float], ...] | None:
        """Return a curve; None where it is not kept."""
        with self._lock:
            found = self._curves.get((uri, checkpoint))
            if found is None:
                return None
            self._curves.move_to_end((uri, checkpoint))
        return tuple(zip(*found, strict=True))

    def keep(self, uri: str, checkpoint: str, points: Sequence[tuple[int, float]]) -> None:
        """Keep a curve."""
        steps, losses = array("q", (step for step, _ in points)), array("d", (loss for _, loss in points))
        with self._lock:
            self._curves[uri, checkpoint] = steps, losses
            while len(self._curves) > self._most:
                self._curves.popitem(last=False)


def read_losses(
    study: Study, trials: Sequence[Trial], artifacts: ArtifactStore, kept: KeptLosses
) -> tuple[LossCurve, ...]:
    """Return the losses of the best measured trials, in the order of the ranking.

    Each that is not kept is a request to the bucket.

    Raises:
        ArtifactError: where the bucket cannot be read.
    """
    measured = [trial for trial in ranked(study, trials) if trial.measurements][:MOST_LINES]
    curves = []
    for trial in measured:
        last = trial.measurements[-1]
        # Each rung's document holds the steps of those before it, too.
        key = f"{names.rung_key(trial.name, last.rung)}/{TRAINING_LOSSES}"
        uri = join(artifacts.uri, key)
        points = kept.find(uri, last.checkpoint)
        if points is None:
            points = thin(_read(artifacts, key), trial.total_steps)
            # A measurement is written last: what is not there beside it never will be.
            kept.keep(uri, last.checkpoint, points)
        if points:
            curves.append(LossCurve(trial=trial.name, points=points))
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
    width = max(1, math.ceil(max(total_steps, len(losses)) / MOST_POINTS))
    starts = range(0, len(losses), width)
    return tuple((min(i + width, len(losses)), fmean(losses[i : i + width])) for i in starts)
