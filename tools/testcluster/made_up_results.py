"""What a trainer writes that trains nothing: whole documents of the trial contract with numbers that depend on the arm.

An accuracy is a smooth function of the arm, so that a search has something to find. Used by the stand-in trainer that
runs as a process and by the scripted one that runs in no process at all.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

from trial_trainer import contract
from trial_trainer.contract import (
    DatasetSummary,
    FinalEvaluation,
    Interval,
    Metric,
    PredictorScores,
    Progress,
    RungMeasurement,
    SplitSummary,
)

ATTRIBUTES = ("name", "price")


def accuracy_of(config: contract.TrialConfig) -> float:
    """Best at a learning rate of 1e-3, better at full length and with more data."""
    distance = abs(math.log10(float(config.arm["learning_rate"])) + 3)
    missing = 0.0 if config.train_samples is None else 4 / config.train_samples
    return 0.6 - 0.2 * distance + (0.1 if config.rung else 0.0) - missing


def make_summary(config: contract.PrepareConfig) -> DatasetSummary:
    """Return the summary of a dataset that does not exist."""
    splits = {
        name: SplitSummary(
            pages=pages,
            samples=pages * 4,
            sites=pages // 2,
            tokens=pages * 400,
            samples_by_attribute=dict.fromkeys(config.attributes, pages * 2),
        )
        for name, pages in (("train", 80), ("validation", 40), ("test", 140))
    }
    return DatasetSummary(
        study=config.study,
        splits=splits,
        skipped_pages={"empty": 2},
        dropped_labels={"price": 7},
        pages_of_test_sites=5,
        warnings=("validation of brand has a standard error of 6 points",),
        fingerprint="00ff",
        digest=config.digest,
    )


def make_measurement(
    config: contract.TrialConfig, accuracy: float, checkpoint: str, *, seconds: float = 0.0
) -> RungMeasurement:
    """Return a measurement of this accuracy."""
    return RungMeasurement(
        study=config.study,
        trial=config.trial,
        rung=config.rung,
        step=config.stop_step,
        total_steps=config.total_steps,
        checkpoint=checkpoint,
        metrics={
            "accuracy": Metric(value=accuracy, standard_error=0.02, n=160),
            "false_value_rate": Metric(value=0.1, standard_error=0.01, n=160),
            "invalid_output_rate": Metric(value=0.01, standard_error=0.01, n=160),
            "validation_loss": Metric(value=2 - accuracy, standard_error=0.05, n=160),
            **{f"accuracy/{a}": Metric(value=accuracy, standard_error=0.04, n=80) for a in ATTRIBUTES},
        },
        samples_seen=config.stop_step * 8,
        tokens_per_second=500.0,
        peak_memory_bytes=1 << 30,
        seconds={"load": 0.1, "train": seconds, "evaluate": 0.1, "save": 0.0},
        digest=config.digest,
    )


def is_ours(result: str | bytes | None, digest: str) -> bool:
    """Say whether a result, or the name of a checkpoint, is there and carries the digest."""
    return result is not None and json.loads(result).get("digest") == digest


def make_progress(config: contract.TrialConfig, step: int) -> Progress:
    """Return what a person watches at a step."""
    return Progress(
        step=step,
        stop_step=config.stop_step,
        total_steps=config.total_steps,
        loss=1.5,
        phase="train",
        eta_seconds=float(config.stop_step - step),
        updated_at=datetime.now(UTC).isoformat(),
        digest=config.digest,
    )


def make_evaluation_progress(config: contract.FinalEvaluationConfig) -> Progress:
    """Return what a person watches while the test set is read."""
    return Progress(
        step=120,
        stop_step=400,
        total_steps=1200,
        loss=None,
        phase="winner",
        eta_seconds=68.0,
        updated_at=datetime.now(UTC).isoformat(),
        digest=config.digest,
    )


def make_final_evaluation(config: contract.FinalEvaluationConfig, *, rules: float = 0.47) -> FinalEvaluation:
    """Return how a test set was read that does not exist."""
    values = {"winner": 0.52, "untrained": 0.02, "rule_based": rules, "constant": 0.2}
    if config.baseline is not None:
        values["baseline"] = 0.48
    gains = {
        f"{measure}/winner-{other}": Interval(
            difference=0.52 - value, low=0.52 - value - 0.04, high=0.52 - value + 0.04, n=140, sites=60
        )
        for measure in ("hand_labelled", "all_asked")
        for other, value in values.items()
        if other != "winner"
    }
    return FinalEvaluation(
        study=config.study,
        winner=config.winner.trial,
        predictors={name: _scores(value) for name, value in values.items()},
        confirmations={c.trial: _scores(0.5) for pair in config.confirmations for c in (pair.winner, pair.baseline)},
        curve={run.trial: _scores(0.4) for run in config.curve},
        gains=gains,
        seconds={"winner": 1.0},
        digest=config.digest,
    )


def _scores(value: float) -> PredictorScores:
    """Return one predictor's row, the same for every attribute."""
    low, high = max(value - 0.06, 0.0), min(value + 0.06, 1.0)
    metric = Metric(value=value, standard_error=0.03, n=140, sites=60, low=low, high=high)
    return PredictorScores(
        hand_labelled=metric,
        all_asked=metric,
        by_attribute=dict.fromkeys(ATTRIBUTES, metric),
        invalid_output_rate=metric,
        false_value_rate=metric,
    )
