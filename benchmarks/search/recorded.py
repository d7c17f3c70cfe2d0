"""Arms that were recorded to full length: measurements on the way, at the end, and on held-out data.

A search asks for any point of a space. What it gets is the nearest recorded arm, whole: its measurements with their
noise, its length and its divergence. Near means near in a metric whose weights are fitted so that an arm's neighbour
ends where it does; how well that succeeds is `RecordedArms.neighbour_error`. Where arms are few, several points would
get the same arm with the same noise, and a search would promote one arm three times: there each arm is given once.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import record_arms
from study_operator.optimizer.gaps import place
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Arm,
    Categorical,
    LogUniform,
    Objective,
    Parameter,
    TypicalArm,
    Uniform,
)
from study_operator.spec.typical_arms import CENTRE, find_centre, find_typical_arms

DATA = Path(__file__).resolve().parent.parent / "data"

EXPLODES_AT = 3.0
"""Times the untrained loss: what the trainer calls diverged."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""What a coordinate's squared distance may count, next to the others'."""

TOLERANCE = 1e-3
"""Of the full length: a measurement that lies so little before what was asked for is the one."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recorded arm under one seed, to its full length or to where it diverged."""

    arm: Arm
    shares: Floats
    """Of the full length, increasing: where it was measured."""
    values: Floats
    """The objective there, on the validation set."""
    losses: Floats | None = None
    """Validation loss there, nats per token, where it was recorded beside the objective."""
    evaluated: float
    """The same at full length on data that nothing is chosen by; NaN where the run diverged."""
    length: float
    """Of the whole run, in the table's own unit of compute."""
    fixed: float = 0.0
    """What each job of it costs besides, however long it trains: its start and an evaluation."""
    diverged_at: float | None = None
    """Share of the full length at which it was found to have diverged; nothing was measured from there on."""

    def measure(self, share: float) -> tuple[float, float] | None:
        """Return where the first measurement at or after a share of the full length lies, and what it says.

        None where the run has diverged by then.
        """
        at = self._find(share)
        return (float(self.shares[at]), float(self.values[at])) if at < len(self.shares) else None

    def find_loss(self, share: float) -> float | None:
        """Return the validation loss of the measurement that `measure` finds; None where there is none."""
        at = self._find(share)
        return float(self.losses[at]) if self.losses is not None and at < len(self.losses) else None

    def _find(self, share: float) -> int:
        return int(np.searchsorted(self.shares, share - TOLERANCE))


@dataclass(frozen=True, kw_only=True)
class RecordedArms:
    """One table: a task, its search space, and every run of it."""

    name: str
    kind: str
    """Tables of one kind count as one in a summary."""
    objective: Objective
    parameters: tuple[Parameter, ...]
    runs: tuple[Run, ...]
    """Those that were drawn from the space, and then others, each of which stands for its own arm alone."""
    others: int = 0
    gives_each_once: bool = False
    """Whether a search gets no drawn arm again before it has got all of them."""
    typical_arms: tuple[TypicalArm, ...] = ()
    """What is known to be good for the task, published before and not looked for in the table; and the centre."""

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The runs whose arms were drawn from the space: what all that is said of the table is about."""
        return self.runs[: len(self.runs) - self.others]

    @property
    def has_losses(self) -> bool:
        """Whether a validation loss was recorded beside the objective."""
        return all(run.losses is not None for run in self.runs)

    @cached_property
    def mean_length(self) -> float:
        """The mean length of a run that does not diverge: the unit in which compute is reported."""
        return float(np.mean([run.length + run.fixed for run in self.drawn if run.diverged_at is None]))

    @cached_property
    def best(self) -> int:
        """The row that the validation set would choose among all of them."""
        losses = [math.inf if (loss := run.find_loss(1.0)) is None else loss for run in self.drawn]
        return max(range(len(losses)), key=lambda row: (self._merits[row], -losses[row]))

    def distance(self, row: int) -> float:
        """Return how far an arm is from the floor that choosing by the validation set leaves, on the other data.

        Positive is worse than the arm that validation would choose of the whole table; it may be negative.
        """
        return self.objective.merit(self.runs[self.best].evaluated) - self.objective.merit(self.runs[row].evaluated)

    def nearest(self, arm: Arm, taken: Sequence[int] = ()) -> int:
        """Return the row of the recorded arm that stands for an arm, in a search that has taken some rows already."""
        drawn = len(self.drawn)
        for row in range(drawn, len(self.runs)):
            if self.runs[row].arm == arm:
                return row
        distances = (self.points - _coordinates(self.parameters, arm)) ** 2 @ self._weights
        if self.gives_each_once:
            times = np.bincount([row for row in taken if row < drawn], minlength=drawn)
            distances[times > times.min()] = np.inf
        return int(np.argmin(distances))

    def neighbour_error(self) -> tuple[float, float]:
        """Return how an arm and its nearest neighbour differ at full length.

        Returns:
            The median absolute difference, of the best tenth and their neighbours that did not diverge, and the rank
            correlation over all of them.
        """
        neighbours = self._find_neighbours(self._weights)
        better = np.flatnonzero(self._ranks >= 0.9)
        differences = np.abs(self._merits[better] - self._merits[neighbours[better]])
        correlation = np.corrcoef(self._ranks, self._ranks[neighbours])[0, 1]
        return float(np.median(differences[np.isfinite(differences)])), float(correlation)

    @cached_property
    def _merits(self) -> Floats:
        """At full length on the validation set; the higher, the better."""
        return np.array([
            -math.inf if run.diverged_at is not None else self.objective.merit(float(run.values[-1]))
            for run in self.drawn
        ])  # fmt: skip

    @cached_property
    def _ranks(self) -> Floats:
        """Of the merits, from 0 (worst) to 1; diverged runs share the lowest."""
        distinct, inverse = np.unique(self._merits, return_inverse=True)
        counts = np.bincount(inverse, minlength=len(distinct))
        middle = np.cumsum(counts) - (counts + 1) / 2
        return middle[inverse] / max(1, len(self.drawn) - 1)

    @cached_property
    def points(self) -> Floats:
        """Of the drawn arms, in the unit cube."""
        return np.array([_coordinates(self.parameters, run.arm) for run in self.drawn])

    @cached_property
    def _weights(self) -> Floats:
        """Fit the weights by leaving each arm out: one after the other, until none can be changed for the better."""
        weights = np.ones(len(self.parameters))
        error = self._weights_error(weights)
        is_better = True
        while is_better:
            is_better = False
            for at in range(len(weights)):
                for weight in WEIGHTS:
                    tried = weights.copy()
                    tried[at] = weight
                    if tried.any() and (tried_error := self._weights_error(tried)) < error - 1e-9:
                        weights, error, is_better = tried, tried_error, True
        return weights

    def _weights_error(self, weights: Floats) -> float:
        return float(np.mean(np.abs(self._ranks - self._ranks[self._find_neighbours(weights)])))

    def _find_neighbours(self, weights: Floats) -> NDArray[np.intp]:
        """Return the nearest other row of each row."""
        scaled = (self.points * np.sqrt(weights)).astype(np.float32)
        lengths = (scaled**2).sum(axis=1)
        distances = lengths[:, None] + lengths[None, :] - 2 * scaled @ scaled.T
        np.fill_diagonal(distances, np.inf)
        return np.argmin(distances, axis=1)


def _coordinates(parameters: Sequence[Parameter], arm: Arm) -> Floats:
    """Return an arm as a point of the unit cube, in which every choice of the tables has an order."""
    return np.array([coordinate for _, coordinate in place(parameters, arm)])


# The tables.


def read_tables(names: Sequence[str] = ()) -> list[RecordedArms]:
    """Return the tables of some names, or all that there are.

    Raises:
        SystemExit: where there is none of a name.
    """
    readers = _readers()
    missing = [name for name in names if name not in readers]
    if missing:
        raise SystemExit(f"--tables must be some of {', '.join(readers)}, got {', '.join(missing)}")
    return [read() for name, read in readers.items() if not names or name in names]


def _readers() -> Mapping[str, Callable[[], RecordedArms]]:
    readers: dict[str, Callable[[], RecordedArms]] = {"deberta": read_deberta}
    for path in sorted((DATA / "taskset-imdb-arms").glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz").removeprefix("imdb_")
        readers[name] = partial(read_taskset, name, path)
    for recording, least in record_arms.LEAST_ARMS.items():
        if count_recorded(recording) >= least:
            readers[f"lora-{recording}"] = partial(read_lora, recording)
    return readers


def count_recorded(recording: str) -> int:
    """Return how many LoRA arms of a recording are there."""
    import pyarrow.parquet

    path = DATA / "lora-arms" / f"{recording}-arms.parquet"
    return len({*pyarrow.parquet.read_table(path)["arm"].to_pylist()}) if path.exists() else 0


def read_deberta() -> RecordedArms:
    """Return the arms of DeBERTa-base on MNLI, chosen by the matched validation set and evaluated by the mismatched.

    Compute is the samples that a run trains on. An accuracy stands every 1,000 steps, 1 to 16 % of a run.
    """

    def read(line: Mapping[str, Any]) -> Run:
        steps = line["total_model_steps"]
        curve = np.array(line["learning_curves"]["matched"], dtype=float)
        return Run(
            arm={
                "learning_rate": line["learning_rate"],
                "epochs": line["num_train_epochs"],
                "train_batch_size": line["train_batch_size"],
                "warmup_epochs": line["warmup_steps"] * line["num_train_epochs"] / steps,
                "dropout": line["cls_drop_out"],
            },
            shares=curve[:, 0] / steps,
            values=curve[:, 1],
            evaluated=line["learning_curves"]["mismatched"][-1][1],
            length=float(steps * line["train_batch_size"]),
        )

    parameters = (
        Parameter(name="learning_rate", search_space=LogUniform(min=1e-6, max=1e-3)),
        Parameter(name="epochs", search_space=Categorical(values=(1, 2, 3, 4), ordered=True)),
        Parameter(name="train_batch_size", search_space=Uniform(min=16, max=64)),
        Parameter(name="warmup_epochs", search_space=Uniform(min=0, max=0.6)),
        Parameter(name="dropout", search_space=Uniform(min=0, max=0.3)),
    )
    return RecordedArms(
        name="deberta",
        kind="DeBERTa on MNLI",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        parameters=parameters,
        runs=tuple(map(read, _read_lines(DATA / "deberta-mnli-arms" / "arms.jsonl.gz"))),
        typical_arms=(
            TypicalArm(
                # 500 steps are 0.08 epochs.
                arm={"learning_rate": 2e-5, "epochs": 3, "train_batch_size": 64, "warmup_epochs": 0.08, "dropout": 0.1},
                source="He et al. (2021), DeBERTaV3: MNLI with the base model",
            ),
            _centre(parameters),
        ),
    )


def read_taskset(name: str, path: Path) -> RecordedArms:
    """Return one task's arms, chosen by validation loss and evaluated by test loss. All runs are equally long."""
    lines = list(_read_lines(path))
    untrained = float(np.median([line["valid"][0] for line in lines]))

    def read(line: Mapping[str, Any]) -> Run:
        arm = line["arm"]
        values = np.array(line["valid"], dtype=float)
        explodes = np.flatnonzero(~(values[1:] <= EXPLODES_AT * untrained))
        end = 1 + int(explodes[0]) if len(explodes) else len(values)
        last = len(values) - 1
        return Run(
            arm={
                "learning_rate": arm["learning_rate"],
                "one_minus_beta1": 1 - arm["beta1"],
                "one_minus_beta2": 1 - arm["beta2"],
                **{key: arm[key] for key in ("epsilon", "l1", "l2", "linear_decay", "exponential_decay")},
            },
            shares=np.arange(1, end) / last,
            values=values[1:end],
            evaluated=float(line["test"][-1]) if end > last else math.nan,
            length=1.0,
            diverged_at=end / last if end <= last else None,
        )

    bounds = {
        "learning_rate": (1e-8, 10),
        "one_minus_beta1": (1e-4, 1),
        "one_minus_beta2": (1e-6, 1),
        "epsilon": (1e-10, 1e3),
        "l1": (1e-8, 10),
        "l2": (1e-8, 10),
        "linear_decay": (1e-7, 1e-4),
        "exponential_decay": (1e-6, 1e-3),
    }
    parameters = tuple(
        Parameter(name=key, search_space=LogUniform(min=low, max=high)) for key, (low, high) in bounds.items()
    )
    return RecordedArms(
        name=name,
        kind="TaskSet on IMDb",
        objective=Objective(metric="validation_loss", direction=Direction.MINIMIZE),
        parameters=parameters,
        runs=tuple(map(read, lines)),
        typical_arms=(
            TypicalArm(
                arm={"learning_rate": 1e-3, "one_minus_beta1": 0.1, "one_minus_beta2": 1e-3, "epsilon": 1e-8}
                | {name: bounds[name][0] for name in ("l1", "l2", "linear_decay", "exponential_decay")},
                source="Kingma and Ba (2015), Adam: the defaults, without regularization or decay",
            ),
            _centre(parameters),
        ),
    )


def read_lora(recording: str, folder: Path = DATA / "lora-arms") -> RecordedArms:
    """Return LoRA arms that `record_arms.py` recorded, chosen by validation accuracy and evaluated on the test set.

    All train on as many samples, and are as long: seconds are of several machines. Starting and evaluating, once for
    each job, cost the part of that which they took of an arm's own training, at the median of those that were drawn. Of
    an arm that was trained under several seeds the first counts. Typical arms stand for themselves where they were
    recorded.
    """
    drawn, typical = (_read_lora_tables(folder, name) for name in (recording, recording + record_arms.TYPICAL))
    parameters = record_arms.list_parameters(sorted({row["batch_size"] for row, _, _ in drawn}))
    percents = sorted({row["percent"] for _, measured, _ in drawn for row in measured})
    fixed = float(np.median([_find_fixed_part(measured) for _, measured, answers in drawn if answers]))
    runs = tuple(
        _lora_run({p.name: row[p.name] for p in parameters}, measured, answers, percents, fixed)
        for row, measured, answers in (*drawn, *typical)
    )
    return RecordedArms(
        name=f"lora-{recording}",
        kind=f"LoRA, {recording}",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        parameters=parameters,
        runs=runs,
        others=len(typical),
        gives_each_once=True,
        typical_arms=tuple(find_typical_arms(parameters, (), record_arms.MODEL.uri, ())),
    )


Row = Mapping[str, Any]


def _read_lora_tables(folder: Path, recording: str) -> list[tuple[Row, list[Row], list[Row]]]:
    """Return of each arm that measured anything its row, its measurements, and its test answers at full length."""
    import pyarrow.parquet

    def read(table: str) -> list[Row]:
        path = folder / f"{recording}-{table}.parquet"
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
        return [row for row in rows if row["seed"] == 0]

    measured: dict[int, list[Row]] = {}
    for row in sorted(read("measurements"), key=lambda row: row["percent"]):
        measured.setdefault(row["arm"], []).append(row)
    answers: dict[int, list[Row]] = {}
    for row in read("answers"):
        if (row["split"], row["percent"], row["has_value"]) == ("test", 100, True):
            answers.setdefault(row["arm"], []).append(row)
    return [(row, measured[arm], answers.get(arm, [])) for row in read("arms") if (arm := row["arm"]) in measured]


def _centre(parameters: Sequence[Parameter]) -> TypicalArm:
    return TypicalArm(arm={parameter.name: find_centre(parameter) for parameter in parameters}, source=CENTRE)


def _find_fixed_part(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return what a job of a whole arm took besides training, as a part of all its training."""
    phases = [key for key in rows[0] if key.endswith("_seconds") and key != "train_seconds"]
    besides = float(np.mean([sum(row[key] or 0.0 for key in phases) for row in rows]))
    return besides / sum(row["train_seconds"] for row in rows)


def _lora_run(
    arm: Arm,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    percents: Sequence[int],
    fixed: float,
) -> Run:
    last = rows[-1]["percent"]
    return Run(
        arm=arm,
        shares=np.array([row["percent"] / 100 for row in rows]),
        values=np.array([row["accuracy"] for row in rows]),
        losses=np.array([row["validation_loss"] for row in rows]),
        evaluated=average_over_attributes(answers) if last == 100 else math.nan,
        length=1.0,
        fixed=fixed,
        # Somewhere before the next measurement.
        diverged_at=None if last == 100 else min(percent for percent in percents if percent > last) / 100,
    )


def average_over_attributes(answers: Sequence[Mapping[str, Any]]) -> float:
    """Return the product's accuracy: the mean over attributes of the share of answers that are right; 0 of none."""
    names = sorted({row["attribute"] for row in answers})
    shares = [np.mean([row["is_right"] for row in answers if row["attribute"] == name]) for name in names]
    return float(np.mean(shares or [0.0]))


def _read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
