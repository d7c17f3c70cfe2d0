"""How long one tick of a 300-trial study takes, without the optimizer.

    PYTHONPATH=operator:trainer python benchmarks/tick.py [--trials 300] [--repeat 30]

The status is read and written as JSON, every job of the study still exists, and five trials run. Prints the median and
the worst of the repeats for a tick that changes nothing, one that settles a measurement, and the one that promotes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from study_operator import names
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import (
    Attempt,
    DatasetCounts,
    Ledger,
    Measurement,
    Origin,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.optimizer.designer import Suggestion
from study_operator.reasons import EndReason
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from study_operator.reconcile.tick import tick
from study_operator.spec.metrics import METRICS, Direction
from study_operator.spec.study import (
    Categorical,
    Data,
    LogUniform,
    Objective,
    OutcomeConstraint,
    Parameter,
    Promotion,
    Storage,
    Study,
    Uniform,
)
from trial_trainer.contract import BaseModel, LabelSource, Metric, RungMeasurement, Split, TrainerSettings, to_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = 5
ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating")


@dataclass
class Fixed:
    """A world that stands still."""

    status: str
    statuses: Sequence[JobStatus]
    objects: Mapping[str, bytes]
    written: str = ""

    def read(self, key: str | None = None, most_bytes: int | None = None) -> Any:  # noqa: ARG002
        """Read the status, or an object."""
        return (json.loads(self.status), 1) if key is None else self.objects.get(key)

    def write(self, status: Mapping[str, Any], version: Any) -> Any:
        """Write the status, and forget it."""
        self.written = json.dumps(status)
        return version

    def confirm(self, version: Any) -> None:
        """Do nothing: nobody else writes."""

    def jobs(self) -> Sequence[JobStatus]:
        """List the jobs."""
        return self.statuses

    def launch(self, spec: JobSpec) -> None:
        """Do nothing."""

    def delete(self, name: str) -> None:
        """Do nothing."""

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Must not be asked: every trial is in the ledger."""
        raise AssertionError((study.name, len(trials), count))


def main() -> int:
    """Time the three kinds of tick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args()
    logging.disable()

    study = a_study(arguments.trials)
    running = a_ledger(study, RUNNING)
    key = f"{names.rung_key(running.trials[-1].name, 0)}/measurement.json"
    measurement = to_json(a_rung_measurement(running.trials[-1])).encode()
    rows = (
        ("nothing changed", running, {}, RUNNING),
        ("one measurement settled", running, {key: measurement}, RUNNING - 1),
        ("the promotion decided", a_ledger(study, 0), {}, 0),
    )
    print(f"| a tick of {arguments.trials} trials | median, ms | worst, ms |")
    print("|---|---|---|")
    for name, ledger, objects, live in rows:
        world = a_world(study, ledger, objects, live)
        seconds = [measure(lambda world=world: run_tick(study, world)) for _ in range(arguments.repeat)]  # type: ignore[misc]
        print(f"| {name} | {statistics.median(seconds) * 1000:.1f} | {max(seconds) * 1000:.1f} |")
    return 0


def measure(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def run_tick(study: Study, world: Fixed) -> object:
    """Run one tick."""
    return tick(study, statuses=world, runner=world, artifacts=world, designer=world, now=NOW)  # type: ignore[arg-type]


def a_study(trials: int) -> Study:
    """Return a study as large as they get."""
    return Study(
        name="large",
        namespace="default",
        uid="0123456789",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.5),),
        parameters=(
            Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-3)),
            Parameter(name="lora_rank", search_space=Categorical(values=(4, 8, 16), ordered=True)),
            Parameter(name="lora_alpha", search_space=Categorical(values=(8, 16, 32), ordered=True)),
            Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2)),
            Parameter(name="batch_size", search_space=Categorical(values=(8, 16), ordered=True)),
        ),
        baseline=_arm(0),
        num_trials=trials,
        parallel_trials=RUNNING,
        max_failed_trials=5,
        promotion=Promotion(num_promoted=5, num_audited=3),
        data=Data(source="/pages", attributes=ATTRIBUTES, labels_from=LabelSource.MARKUP, split=Split()),
        base_model=BaseModel(uri="/model"),
        trainer=TrainerSettings(epochs=3, max_length_tokens=512),
        storage=Storage(uri="/bucket"),
    )


def a_ledger(study: Study, running: int) -> Ledger:
    """Return a ledger in which all trials but the last few are measured."""
    trials = [
        _measured(Trial(index=i, arm=_arm(i), origin=_origin(i), total_steps=1200)) for i in range(study.num_trials)
    ]
    for i in range(study.num_trials - running, study.num_trials):
        attempt = Attempt(rung=0, started_at=NOW, id=f"attempt-of-{i}")
        trials[i] = replace(trials[i], state=TrialState.RUNNING, measurements=(), attempts=(attempt,))
    return Ledger(
        trials=tuple(trials),
        prepare=Stage(state=StageState.COMPLETED),
        dataset=DatasetCounts(fingerprint="00ff", train_samples=3200, validation_samples=640, test_samples=1000),
    )


def a_world(study: Study, ledger: Ledger, objects: Mapping[str, bytes], live: int) -> Fixed:
    """Return a world in which the last few jobs live and the others have ended."""
    jobs = []
    for trial in ledger.trials:
        is_live = trial.index >= study.num_trials - live
        jobs.append(
            JobStatus(
                name=names.trial_job(study.name, trial.name, 0),
                kind=JobKind.TRIAL,
                phase=JobPhase.RUNNING if is_live else JobPhase.FINISHED,
                attempt=f"attempt-of-{trial.index}",
                started_at=NOW,
                finished_at=None if is_live else NOW + timedelta(minutes=10),
                exit_code=None if is_live else 0,
            )
        )
    # The order of trials and jobs is nobody's promise: what lives is listed first.
    jobs.reverse()
    status = json.dumps(render_status(study, ledger, now=NOW))
    return Fixed(status, jobs, objects)


def a_rung_measurement(trial: Trial) -> RungMeasurement:
    """Return what a trial reads of seven attributes."""
    metrics = {f"accuracy/{name}": Metric(value=0.4, standard_error=0.02, n=100) for name in ATTRIBUTES}
    for name in ("accuracy", "validation_loss", "invalid_output_rate", "false_value_rate"):
        metrics[name] = Metric(value=0.4, standard_error=0.02, n=700)
    return RungMeasurement(
        study="large",
        trial=trial.name,
        rung=0,
        step=240,
        total_steps=1200,
        checkpoint="checkpoints/240-a",
        metrics=metrics,
        samples_seen=1920,
        tokens_per_second=300.0,
        peak_memory_bytes=2**30,
        seconds={"train": 500.0},
    )


def _arm(index: int) -> dict[str, float | int | str]:
    rate = 1e-5 * 100 ** ((index % 97) / 97)
    return {"learning_rate": rate, "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05, "batch_size": 8}


def _origin(index: int) -> Origin:
    return Origin.SUGGESTED if index else Origin.BASELINE


def _measured(trial: Trial) -> Trial:
    measurement = a_rung_measurement(trial)
    value = 0.2 + 0.001 * (trial.index * 37 % 300)
    measurement = Measurement(
        rung=0,
        step=240,
        value=value,
        standard_error=0.02,
        n=160,
        metrics={name: m.value for name, m in measurement.metrics.items() if name in METRICS and name != "accuracy"},
        checkpoint="trials/t000/rungs/0/checkpoints/240-a",
    )
    attempt = Attempt(
        rung=0,
        started_at=NOW,
        finished_at=NOW + timedelta(minutes=10),
        exit_code=0,
        reason=EndReason.SUCCEEDED,
        id=f"attempt-of-{trial.index}",
    )
    return replace(trial, state=TrialState.PAUSED, measurements=(measurement,), attempts=(attempt,))


if __name__ == "__main__":
    sys.exit(main())
