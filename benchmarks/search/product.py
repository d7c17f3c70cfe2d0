"""The operator's own tick, planner, promotion and designers, on the simulated clock.

`run_study` hands `tick` a runner whose jobs are recorded arms. A job's configuration says how far its trial goes, so
that whatever rungs a study has are taken as they are; a trial that continues pays for what it has not run yet.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_never

from search.clock import Span, Trace, find_end, finish
from search.recorded import RecordedArms
from study_operator import names
from study_operator.ledger.merit import LOSS
from study_operator.ledger.trial import Ledger, Trial
from study_operator.optimizer.designer import Designer, Suggestion
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from study_operator.reconcile.tick import tick
from study_operator.settings import Settings
from study_operator.spec.study import (
    Categorical,
    Data,
    EarlyEvaluation,
    LogUniform,
    Parameter,
    Promotion,
    Storage,
    Study,
    Uniform,
)
from study_operator.spec.typical_arms import count_by_default
from trial_trainer.contract import BaseModel, ExitCode, LabelSource, ParameterValue, Split, TrainerSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
UNIT_SECONDS = 10_000.0
"""Of simulated time for a run of mean length: long beside the whole seconds that a status is written in."""

TRAIN_SAMPLES = 160_000
"""Enough that a percentage of an arm's steps is exact to a thousandth at every batch size."""

MOST_TICKS = 10_000
SETTINGS = Settings()


def a_study(
    table: RecordedArms,
    *,
    seed: int,
    slots: int,
    num_trials: int,
    promotion: Promotion | None = None,
    early_evaluation: EarlyEvaluation | None = None,
    tries_typical_arms: bool = False,
) -> Study:
    """Return a study of a table's search space."""
    return Study(
        name="replay",
        namespace="benchmarks",
        uid="0",
        objective=table.objective,
        parameters=table.parameters,
        baseline=None,
        num_trials=num_trials,
        parallel_trials=slots,
        max_failed_trials=0,
        seed=seed,
        early_evaluation=early_evaluation or EarlyEvaluation(),
        typical_arms=table.typical_arms[: count_by_default(num_trials)] if tries_typical_arms else (),
        promotion=promotion or Promotion(num_promoted=1),
        data=Data(source="pages", attributes=("name",), labels_from=LabelSource.GIVEN, split=Split()),
        base_model=BaseModel(uri="model"),
        trainer=TrainerSettings(epochs=1, max_length_tokens=512),
        storage=Storage(uri="runs"),
    )


def run_study(table: RecordedArms, study: Study, designer: Designer) -> Trace:
    """Run a study to its end.

    Raises:
        RuntimeError: where it fails, or does not end.
    """
    cluster = _Cluster(table=table, study=study)
    for _ in range(MOST_TICKS):
        result = tick(
            study,
            statuses=cluster.statuses,
            runner=cluster,
            artifacts=cluster.artifacts,
            designer=designer,
            now=cluster.now,
            settings=SETTINGS,
        )
        if result.is_done:
            return cluster.end(result.ledger)
        if result.is_idle and not cluster.advance():
            raise RuntimeError(f"{table.name}, seed {study.seed}: the study waits for nothing: {result.status}")
    raise RuntimeError(f"{table.name}, seed {study.seed}: the study has not ended after {MOST_TICKS} ticks")


class RememberingDesigner:
    """Asks a designer once for each ledger: studies that differ in what they promote ask the same questions."""

    def __init__(self, designer: Designer) -> None:
        self._designer = designer
        self._known: dict[Hashable, tuple[Suggestion, ...]] = {}

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return the designer's arms."""
        entries = [(tuple(t.arm.items()), t.state, t.measurements) for t in trials]
        key = (study.seed, study.parallel_trials, study.promotion.rank_by, count, repr(entries))
        if key not in self._known:
            self._known[key] = self._designer.suggest(study, trials, count)
        return self._known[key]


@dataclass(frozen=True, kw_only=True)
class ChoosingDesigner:
    """Proposes the recorded arm that is nearest to each arm of another designer, where a table gives each arm once.

    So what is measured belongs to the arm that is told. An arm of the table that a trial has is not proposed again.
    """

    table: RecordedArms
    designer: Designer

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return the designer's arms, or those that stand for them."""
        suggestions = self.designer.suggest(study, trials, count)
        if not self.table.gives_each_once:
            return suggestions
        taken: list[int] = []
        for trial in trials:
            taken.append(self.table.nearest(trial.arm, taken))
        chosen = []
        for suggestion in suggestions:
            taken.append(self.table.nearest(suggestion.arm, taken))
            chosen.append(replace(suggestion, arm=self.table.runs[taken[-1]].arm))
        return tuple(chosen)


class RandomDesigner:
    """Proposes points of the space at random, by the study's seed and the number of arms before."""

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return as many arms as are asked for."""
        return tuple(
            Suggestion(arm=draw_arm(study.parameters, study.seed, len(trials) + i), generation_node="Random")
            for i in range(count)
        )


def draw_arm(parameters: Sequence[Parameter], seed: int, index: int) -> dict[str, ParameterValue]:
    """Draw the arm of some index of a seed, evenly over the space."""
    chance = random.Random(f"arm/{seed}/{index}")
    return {parameter.name: _draw_value(parameter, chance) for parameter in parameters}


def _draw_value(parameter: Parameter, chance: random.Random) -> ParameterValue:
    match parameter.search_space:
        case Uniform(min=lower, max=upper):
            return chance.uniform(lower, upper)
        case LogUniform(min=lower, max=upper):
            return min(max(math.exp(chance.uniform(math.log(lower), math.log(upper))), lower), upper)
        case Categorical(values=values):
            return chance.choice(values)
        case _ as unknown:
            assert_never(unknown)


# The cluster.


@dataclass
class _Job:
    spec: JobSpec
    attempt: str
    starts_at: datetime
    ends_at: datetime
    exit_code: int
    result: Mapping[str, Any]
    is_ended: bool = False


class _Statuses:
    """The status as one value, with its version."""

    def __init__(self) -> None:
        self._versions: list[Mapping[str, Any] | None] = [None]

    def read(self) -> tuple[Mapping[str, Any] | None, Any]:
        return self._versions[-1], len(self._versions) - 1

    def confirm(self, version: Any) -> None:
        if version != len(self._versions) - 1:
            raise RuntimeError("nobody else writes the status here")

    def write(self, status: Mapping[str, Any], version: Any) -> Any:
        self.confirm(version)
        self._versions.append(status)
        return version + 1


class _Artifacts:
    """The bucket as a dictionary."""

    uri = "memory"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        del most_bytes
        return self._objects.get(key)

    def write(self, key: str, data: bytes) -> None:
        self._objects[key] = data

    def write_new(self, key: str, data: bytes) -> bool:
        raise NotImplementedError(f"the operator writes no result ({key}, {len(data)} bytes)")

    def upload(self, key: str, source: Path) -> None:
        raise NotImplementedError(f"the operator uploads nothing ({source} to {key})")

    def download(self, key: str, target: Path) -> bool:
        raise NotImplementedError(f"the operator downloads nothing ({key} to {target})")

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from sorted(key for key in self._objects if key.startswith(prefix))

    def delete(self, prefix: str) -> int:
        keys = [key for key in self._objects if key == prefix or key.startswith(f"{prefix}/")]
        for key in keys:
            del self._objects[key]
        return len(keys)


class _Cluster:
    """A runner whose trials are recorded arms. Nothing goes wrong but what went wrong when they were recorded."""

    def __init__(self, *, table: RecordedArms, study: Study) -> None:
        self.statuses, self.artifacts = _Statuses(), _Artifacts()
        self.now = START
        self._table, self._study = table, study
        self._jobs: dict[str, _Job] = {}
        self._reached: dict[str, float] = {}
        """Share of the full length that each trial has run, by its name."""
        self._rows: dict[str, int] = {}
        self._trace = Trace(slots=study.parallel_trials)

    def jobs(self) -> Sequence[JobStatus]:
        return [_status_of(job) for job in self._jobs.values()]

    def launch(self, spec: JobSpec) -> None:
        if spec.name in self._jobs:
            return
        length, code, result = 0.0, ExitCode.STOP_STEP_REACHED, _summary(spec)
        if spec.kind is JobKind.TRIAL:
            length, code, result = self._start_trial(spec)
        self._jobs[spec.name] = _Job(
            spec=spec,
            attempt=f"a{len(self._trace.spans)}",
            starts_at=self.now,
            ends_at=self.now + timedelta(seconds=UNIT_SECONDS * length / self._table.mean_length),
            exit_code=int(code),
            result=result,
        )

    def delete(self, name: str) -> None:
        self._jobs.pop(name, None)

    def advance(self) -> bool:
        """Let time pass until the next job ends; return whether one does."""
        running = [job for job in self._jobs.values() if not job.is_ended]
        if not running:
            return False
        self.now = min(job.ends_at for job in running)
        for job in running:
            if job.ends_at <= self.now:
                self._finish(job)
        return True

    def end(self, ledger: Ledger) -> Trace:
        """Return what happened."""
        if ledger.outcome is None or ledger.outcome.failed:
            raise RuntimeError(f"{self._table.name}, seed {self._study.seed}: {ledger.outcome}")
        return self._trace

    def _start_trial(self, spec: JobSpec) -> tuple[float, ExitCode, Mapping[str, Any]]:
        config = json.loads(spec.config)
        arm = {parameter.name: config["arm"][parameter.name] for parameter in self._table.parameters}
        if spec.trial not in self._rows:
            self._rows[spec.trial] = self._table.nearest(arm, self._trace.rows)
            self._trace.rows.append(self._rows[spec.trial])
        row = self._rows[spec.trial]
        share, value = find_end(self._table, row, config["stop_step"] / config["total_steps"])
        run = self._table.runs[row]
        length = run.fixed + run.length * max(0.0, share - self._reached.get(spec.trial, 0.0))
        self._reached[spec.trial] = share
        begin = (self.now - START).total_seconds() / UNIT_SECONDS * self._table.mean_length
        self._trace.spans.append(Span(start=begin, end=begin + length))
        if value is None:
            return length, ExitCode.DIVERGED, {}
        metrics = {self._study.objective.metric: value}
        if (loss := run.find_loss(share)) is not None:
            metrics[LOSS] = loss
        return length, ExitCode.STOP_STEP_REACHED, _measurement(config, metrics)

    def _finish(self, job: _Job) -> None:
        job.is_ended = True
        spec = job.spec
        if spec.kind is JobKind.PREPARE:
            self.artifacts.write(f"{names.DATASET}/summary.json", _dump(job.result))
        elif job.result:
            self.artifacts.write(f"{names.rung_key(spec.trial, spec.rung)}/measurement.json", _dump(job.result))
            if job.result["step"] == job.result["total_steps"]:
                value = job.result["metrics"][self._study.objective.metric]["value"]
                at = (self.now - START).total_seconds() / UNIT_SECONDS * self._table.mean_length
                self._trace.finished.append(finish(self._table, self._rows[spec.trial], at=at, value=value))


def _status_of(job: _Job) -> JobStatus:
    status = JobStatus(
        name=job.spec.name,
        kind=job.spec.kind,
        phase=JobPhase.RUNNING,
        digest=job.spec.digest,
        attempt=job.attempt,
        started_at=job.starts_at,
    )
    if not job.is_ended:
        return status
    return replace(status, phase=JobPhase.FINISHED, finished_at=job.ends_at, exit_code=job.exit_code)


def _measurement(config: Mapping[str, Any], metrics: Mapping[str, float]) -> Mapping[str, Any]:
    return {
        **{key: config[key] for key in ("study", "trial", "rung", "digest", "total_steps")},
        "step": config["stop_step"],
        "checkpoint": f"checkpoints/{config['stop_step']}-a",
        "metrics": {name: {"value": value, "standard_error": None, "n": 1} for name, value in metrics.items()},
        "samples_seen": 1,
        "tokens_per_second": 1.0,
        "peak_memory_bytes": 1,
        "seconds": {},
    }


def _summary(spec: JobSpec) -> Mapping[str, Any]:
    """Return a dataset without a test set: what is evaluated at the end is known to the table alone."""
    split = {"pages": 1, "samples": TRAIN_SAMPLES, "sites": 1, "tokens": 1, "samples_by_attribute": {}}
    return {
        "study": "replay",
        "splits": {"train": split, "validation": split},
        "skipped_pages": {},
        "dropped_labels": {},
        "pages_of_test_sites": 0,
        "warnings": [],
        "fingerprint": "00",
        "digest": spec.digest,
    }


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode()
