"""Record real LoRA arms: train each to its full length, and keep what every measurement on the way would have said.

    python benchmarks/record_arms.py bookings --runs 72 --minutes 120 --precision Float32
    python benchmarks/record_arms.py pages --runs 24 --minutes 120
    python benchmarks/record_arms.py bookings-typical --minutes 60
    python benchmarks/record_arms.py data-curve --minutes 120
    python benchmarks/record_arms.py augmentation --minutes 120
    python benchmarks/record_arms.py bookings --collect

Arm after arm is trained by the trainer itself, one core each, and read at `PERCENTS` of its length: every question of
the validation set, and at `TEST_PERCENTS` of the test set, with the answer's rightness and loss. What is done is never
done again: a call goes on where the last one ended, on this machine from `runs/recorded`, on another one from the
tables in `benchmarks/data`, to which `--collect` adds the new arms. `benchmarks/data/lora-arms/README.md` says what the
tables hold. `bookings-typical` and `pages-typical` are the arms that the operator tries first, on the same data. The
data curve is one arm on growing parts of the training set, read at its end alone; so is that of augmentation, without
variants of the messages and with them. Where products in bf16 are slower than those in fp32, as with AVX-512 but
without AMX, `--precision Float32` takes less time (15 % for one run); each run says which it was.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Before any library looks for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import qmc

from study_operator.spec.limits import DEFAULT_TYPICAL_ARMS
from study_operator.spec.study import Categorical, LogUniform, Parameter, SearchSpace, Uniform
from study_operator.spec.typical_arms import find_typical_arms
from trial_trainer import contract
from trial_trainer.artifacts import open_store
from trial_trainer.contract import (
    Augmentation,
    BaseModel,
    LabelSource,
    MissingLabel,
    ParameterValue,
    Precision,
    PrepareConfig,
    RungMeasurement,
    Split,
    SplitBy,
    TrainerSettings,
    TrialConfig,
    count_total_steps,
    from_json,
)
from trial_trainer.errors import ArmError, Diverged

ROOT = Path(__file__).resolve().parent.parent
MODEL = BaseModel(uri=str(ROOT / ".cache" / "smollm2-135m-instruct"))
RAW = ROOT / "runs" / "recorded"
DATA = ROOT / "benchmarks" / "data"
TABLES = DATA / "lora-arms"
PERCENTS = (2, 5, 10, 15, 20, 25, 35, 50, 70, 100)
TEST_PERCENTS = (20, 100)
"""The usual rung and the end: answering questions is most of what a run costs."""
SEEDED_ARMS, SEEDS, MOST_ARMS = 6, 3, 256
"""The first arms are trained of three seeds."""
LEAST_ARMS = {"bookings": 40, "pages": 16}
"""By recording: of fewer arms the nearest one is too far away to stand for another."""
CURVE_SIZES, CURVE_SEEDS = (200, 400, 800, 1600, 3200, 8000), 3
AUGMENTED_SIZES, AUGMENTED_COPIES = (50, 100, 200, 400, 800), 2
CURVE_ARM: Mapping[str, ParameterValue] = {
    "learning_rate": 1e-3,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "batch_size": 5,
}
"""A step is one message with its five questions."""
KEY = ("arm", "seed", "train_samples", "is_augmented")
"""Of a run, in every table."""
TEST_MESSAGES = 240
"""Of the bookings: how many messages of the test set are asked about, where `ARM_MESSAGES` does not say less."""
ARM_MESSAGES = 80
"""Of the bookings that arms are trained on and chosen by, half of them each; and as many of the test set."""

LEARNING_RATES = (1e-5, 1e-2)
RANKS = (4, 8, 16, 32, 64)
ALPHAS = (8, 16, 32, 64, 128)
LARGEST_DROPOUT = 0.2
LARGEST_WARMUP_PERCENT = 20
BATCH_SIZES = {"bookings": (4, 8, 16), "pages": (8, 16)}
"""By recording."""
TYPICAL = "-typical"
"""What the name of a recording of typical arms ends with."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm under one seed."""

    arm: int
    seed: int
    parameters: Mapping[str, ParameterValue]
    train_samples: int | None = None
    """None: all."""
    is_augmented: bool = False

    @property
    def name(self) -> str:
        """The folder's."""
        of = "" if self.train_samples is None else f"-samples-{self.train_samples}"
        return f"arm-{self.arm:03d}{of}{'-augmented' if self.is_augmented else ''}-seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One set of runs: the data, and what is the same for all of them."""

    name: str
    prepare: PrepareConfig
    trainer: TrainerSettings
    runs: tuple[Run, ...]
    """In the order in which they are recorded."""
    percents: tuple[int, ...] = PERCENTS
    least_values: int = 2
    """Of the bookings: how many values a message says at least."""

    @property
    def dataset(self) -> str:
        """Where the dataset lies."""
        return self.prepare.dataset


def record_bookings() -> Recording:
    """Five values of messages of people who book a table; what a message does not say is "none"."""
    trainer = TrainerSettings(epochs=3, max_length_tokens=256)
    return Recording(
        name="bookings",
        prepare=replace(_prepare_bookings("bookings", trainer), split=_split_pages(50), max_pages=ARM_MESSAGES),
        trainer=trainer,
        runs=_draw_runs(BATCH_SIZES["bookings"], least=LEAST_ARMS["bookings"]),
    )


def record_data_curve() -> Recording:
    """One arm on growing parts of the bookings that say anything: the largest parts come last, and seed by seed."""
    trainer = TrainerSettings(epochs=1, max_length_tokens=256)
    arm = Run(arm=0, seed=0, parameters=CURVE_ARM)
    return Recording(
        name="data-curve",
        prepare=replace(_prepare_bookings("data-curve", trainer), split=_split_pages(2), max_pages=None),
        trainer=trainer,
        runs=tuple(replace(arm, train_samples=size, seed=seed) for size in CURVE_SIZES for seed in range(CURVE_SEEDS)),
        percents=(100,),
        least_values=1,
    )


def record_augmentation() -> Recording:
    """One arm on growing parts of the bookings, each part without and with variants of its messages."""
    trainer = TrainerSettings(epochs=3, max_length_tokens=256)
    prepare = replace(
        _prepare_bookings("augmentation", trainer),
        split=_split_pages(5),
        max_pages=None,
        augment=Augmentation(copies=AUGMENTED_COPIES),
    )
    arm = Run(arm=0, seed=0, parameters=CURVE_ARM)
    runs = tuple(
        replace(arm, train_samples=size, seed=seed, is_augmented=is_augmented)
        for size in AUGMENTED_SIZES
        for seed in range(CURVE_SEEDS)
        for is_augmented in (False, True)
    )
    return Recording(name="augmentation", prepare=prepare, trainer=trainer, runs=runs, percents=(100,))


def record_pages() -> Recording:
    """Seven attributes of product pages, labelled by their markup for training and by hand for the test set."""
    data = ROOT / "manifests" / "samples" / "data"
    trainer = TrainerSettings(epochs=3, max_length_tokens=512)
    return Recording(
        name="pages",
        prepare=PrepareConfig(
            study="pages",
            source=str(data / "wcxb-product-pages" / "pages.jsonl.gz"),
            test_source=str(data / "zyte-product-pages" / "pages.jsonl.gz"),
            attributes=("name", "price", "currency", "brand", "sku", "availability", "rating"),
            labels_from=LabelSource.MARKUP,
            split=Split(validation_percent=35, test_percent=0),
            seed=0,
            base_model=MODEL,
            max_length_tokens=trainer.max_length_tokens,
            dataset=str(RAW / "pages" / "dataset"),
        ),
        trainer=trainer,
        runs=_draw_runs(BATCH_SIZES["pages"], least=LEAST_ARMS["pages"]),
    )


def record_typical_arms(of: Recording) -> Recording:
    """The arms that the operator tries first, on the data of another recording.

    After those that a study tries by itself come the first of them with each other batch size, and the last.
    """
    batch_sizes = BATCH_SIZES[of.name]
    found = [dict(typical.arm) for typical in find_typical_arms(list_parameters(batch_sizes), (), MODEL.uri, ())]
    others = [{**found[0], "batch_size": size} for size in batch_sizes if size != found[0]["batch_size"]]
    arms = [*found[:DEFAULT_TYPICAL_ARMS], *others, *found[DEFAULT_TYPICAL_ARMS:]]
    runs = tuple(Run(arm=number, seed=0, parameters=arm) for number, arm in enumerate(arms))
    return replace(of, name=f"{of.name}{TYPICAL}", runs=runs)


RECORDINGS = {
    "bookings": record_bookings,
    "pages": record_pages,
    f"bookings{TYPICAL}": lambda: record_typical_arms(record_bookings()),
    f"pages{TYPICAL}": lambda: record_typical_arms(record_pages()),
    "data-curve": record_data_curve,
    "augmentation": record_augmentation,
}


def _prepare_bookings(name: str, trainer: TrainerSettings) -> PrepareConfig:
    return PrepareConfig(
        study=name,
        source=str(RAW / name / "source" / "train.jsonl"),
        test_source=str(RAW / name / "source" / "test.jsonl"),
        attributes=("people", "date", "time", "first_name", "last_name"),
        labels_from=LabelSource.GIVEN,
        missing_labels=MissingLabel.ABSENT,
        split=_split_pages(0),
        seed=0,
        base_model=MODEL,
        max_length_tokens=trainer.max_length_tokens,
        dataset=str(RAW / name / "dataset"),
    )


def _split_pages(validation_percent: int) -> Split:
    return Split(by=SplitBy.PAGE, validation_percent=validation_percent, test_percent=0)


def write_bookings(recording: Recording) -> None:
    """Write the messages that say so many values; of the test set, the first by their digests."""
    source = Path(recording.prepare.source).parent
    source.mkdir(parents=True, exist_ok=True)
    for part, most in (("train", None), ("test", TEST_MESSAGES)):
        lines = gzip.decompress((DATA / "restaurant8k" / f"{part}.jsonl.gz").read_bytes()).splitlines()
        rows = {row["id"]: row for row in map(json.loads, lines) if len(row["labels"]) >= recording.least_values}
        chosen = sorted(rows, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:most]
        text = "".join(json.dumps(rows[name]) + "\n" for name in sorted(chosen))
        (source / f"{part}.jsonl").write_text(text)


def _draw_runs(batch_sizes: Sequence[int], least: int) -> tuple[Run, ...]:
    """Draw the runs in the order in which they are recorded: a Sobol sequence, whose first arms never change.

    The further seeds of the first arms come after those that a replay needs, so that a recording that is cut short
    counts.
    """
    points = qmc.Sobol(d=6, seed=0).random(MOST_ARMS)
    runs = [Run(arm=arm, seed=0, parameters=_build_arm(batch_sizes, point)) for arm, point in enumerate(points)]
    again = [replace(run, seed=seed) for run in runs[:SEEDED_ARMS] for seed in range(1, SEEDS)]
    return (*runs[:least], *again, *runs[least:])


def list_parameters(batch_sizes: Sequence[int]) -> tuple[Parameter, ...]:
    """Return the search space that the arms are drawn from."""
    spaces: Mapping[str, SearchSpace] = {
        "learning_rate": LogUniform(min=LEARNING_RATES[0], max=LEARNING_RATES[1]),
        "lora_rank": Categorical(values=RANKS, ordered=True),
        "lora_alpha": Categorical(values=ALPHAS, ordered=True),
        "lora_dropout": Uniform(min=0, max=LARGEST_DROPOUT),
        "batch_size": Categorical(values=tuple(batch_sizes), ordered=True),
        "warmup_percent": Uniform(min=0, max=LARGEST_WARMUP_PERCENT),
    }
    return tuple(Parameter(name=name, search_space=space) for name, space in spaces.items())


def _build_arm(batch_sizes: Sequence[int], point: Sequence[float]) -> dict[str, ParameterValue]:
    low, high = LEARNING_RATES

    def choose(values: Sequence[int], place: float) -> int:
        return values[int(place * len(values))]

    return {
        "learning_rate": float(f"{low * (high / low) ** point[0]:.4g}"),
        "lora_rank": choose(RANKS, point[1]),
        "lora_alpha": choose(ALPHAS, point[2]),
        "lora_dropout": round(LARGEST_DROPOUT * float(point[3]), 4),
        "batch_size": choose(batch_sizes, point[4]),
        "warmup_percent": round(LARGEST_WARMUP_PERCENT * float(point[5])),
    }


# --- One run ----------------------------------------------------------------------------------------------------------


def record(recording: Recording, run: Run) -> None:
    """Train a run from measurement to measurement, each a rung of the trainer's own, and write `done.json` last."""
    from trial_trainer.stop import StopRequest
    from trial_trainer.training.train import train

    directory = RAW / recording.name / run.name
    summary = contract.from_json(contract.DatasetSummary, Path(recording.dataset, contract.SUMMARY).read_bytes())
    samples = run.train_samples or summary.splits["train"].samples
    total = count_total_steps(samples, int(run.parameters["batch_size"]), recording.trainer.epochs)
    fate = "trained"
    for place, percent in enumerate(recording.percents):
        config = TrialConfig(
            study=recording.name,
            trial=run.name,
            rung=place,
            seed=run.seed,
            arm=run.parameters,
            base_model=MODEL,
            dataset=recording.dataset,
            output=str(directory / str(percent)),
            total_steps=total,
            stop_step=max(1, round(total * percent / 100)),
            trainer=recording.trainer,
            train_samples=run.train_samples,
            is_augmented=run.is_augmented,
            resume_from=str(directory / str(recording.percents[place - 1])) if place else None,
        )
        try:
            train(config, StopRequest())
        except (Diverged, ArmError) as error:
            fate = f"{type(error).__name__} before {percent} %: {error}"
            break
        if percent in TEST_PERCENTS:
            _read_test_set(recording, config)
        # The next one goes on from this one's checkpoint; nobody needs its adapter.
        shutil.rmtree(directory / str(percent) / contract.ADAPTER, ignore_errors=True)
        if place:
            shutil.rmtree(directory / str(recording.percents[place - 1]) / contract.CHECKPOINTS, ignore_errors=True)
    done = {"fate": fate, "total_steps": total, "precision": recording.trainer.precision}
    for checkpoints in directory.glob(f"*/{contract.CHECKPOINTS}"):
        shutil.rmtree(checkpoints)
    (directory / "done.json").write_text(json.dumps(done))


def _read_test_set(recording: Recording, config: TrialConfig) -> None:
    from trial_trainer.dataset.store import TEST, read_index, read_split
    from trial_trainer.evaluation.with_models import ask_model

    output = open_store(config.output)
    if output.read("test.jsonl") is not None:
        return
    store, adapter = open_store(recording.dataset), f"{config.output}/{contract.ADAPTER}"
    predictions = ask_model(MODEL, recording.trainer, adapter, read_split(store, TEST), read_index(store))
    output.write("test.jsonl", "".join(contract.to_json(p) + "\n" for p in predictions).encode())


# --- Many runs --------------------------------------------------------------------------------------------------------


def record_all(recording: Recording, runs: Sequence[Run], *, minutes: float, workers: int) -> None:
    """Record what is not yet there, each worker on a core of its own, and begin none after the time is up."""
    if not Path(recording.dataset, contract.SUMMARY).exists():
        from trial_trainer.dataset.prepare import prepare

        if Path(recording.prepare.source).is_relative_to(RAW):
            write_bookings(recording)
        prepare(recording.prepare)
    known = {_key(row) for row in _read_table(recording, "arms")}
    missing = [r for r in runs if _key(vars(r)) not in known and not _done(recording, r).exists()]
    print(f"{recording.name}: {len(runs) - len(missing)} of {len(runs)} runs are recorded", flush=True)
    end = time.monotonic() + 60 * minutes
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_use_one_core, maxtasksperchild=1) as pool:
        tasks = [(recording, run, end) for run in missing]
        for line in pool.imap_unordered(_record_one, tasks, chunksize=1):
            print(line, flush=True)


def _use_one_core() -> None:
    import torch

    torch.set_num_threads(1)


def _record_one(task: tuple[Recording, Run, float]) -> str:
    recording, run, end = task
    if time.monotonic() > end:
        return f"{run.name}: not begun"
    begun = time.monotonic()
    record(recording, run)
    return f"{run.name}: {json.loads(_done(recording, run).read_text())['fate']}, {time.monotonic() - begun:.0f} s"


def _done(recording: Recording, run: Run) -> Path:
    return RAW / recording.name / run.name / "done.json"


# --- The tables -------------------------------------------------------------------------------------------------------


def collect(recording: Recording, runs: Sequence[Run]) -> None:
    """Add the runs that are done to the tables in the repository; what the tables hold already stays."""
    from trial_trainer.evaluation.measure import Prediction, is_right
    from trial_trainer.pages.answers import is_absent

    tables: dict[str, list[dict[str, Any]]] = {
        name: _read_table(recording, name) for name in ("arms", "measurements", "answers", "losses")
    }
    known = {_key(row) for row in tables["arms"]}
    for run in runs:
        if _key(vars(run)) in known or not _done(recording, run).exists():
            continue
        key = dict(zip(KEY, _key(vars(run)), strict=True))
        done = json.loads(_done(recording, run).read_text())
        tables["arms"].append(key | run.parameters | done)
        losses: list[float] = []
        for percent in recording.percents:
            output = RAW / recording.name / run.name / str(percent)
            if not (output / contract.MEASUREMENT).exists():
                break
            measured = from_json(RungMeasurement, (output / contract.MEASUREMENT).read_bytes())
            tables["measurements"].append(
                key
                | {"percent": percent, "step": measured.step, "tokens_per_second": measured.tokens_per_second}
                | {f"{phase}_seconds": seconds for phase, seconds in measured.seconds.items()}
                | {name: metric.value for name, metric in measured.metrics.items() if "/" not in name}
            )
            for split, file in (("validation", contract.PREDICTIONS), ("test", "test.jsonl")):
                if split == "test" and percent not in TEST_PERCENTS:
                    continue
                for line in (output / file).read_text().splitlines():
                    answer = from_json(Prediction, line)
                    tables["answers"].append(
                        key
                        | {
                            "percent": percent,
                            "split": split,
                            "page": answer.page,
                            "site": answer.site,
                            "attribute": answer.attribute,
                            "has_value": bool(answer.gold),
                            "is_right": is_right(answer) if answer.gold else is_absent(answer.answer),
                            "finished": answer.finished,
                            "loss": answer.loss,
                            "answer_tokens": answer.answer_tokens,
                        }
                    )
            losses = json.loads((output / contract.TRAINING_LOSSES).read_text())
        tables["losses"] += [key | {"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    TABLES.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pq.write_table(_pack(rows), _path(recording, name), compression="zstd", compression_level=19)
        print(f"{_path(recording, name).name}: {len(rows)} rows, {_path(recording, name).stat().st_size / 1e6:.2f} MB")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _pack(rows: list[dict[str, Any]]) -> pa.Table:
    """Words become dictionaries, and losses single floats: what is measured has no more digits."""
    table = pa.Table.from_pylist(rows)
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_string(field.type):
            column = column.combine_chunks().dictionary_encode()
        elif field.name == "loss":
            column = column.cast(pa.float32())
        table = table.set_column(place, field.name, column)
    return table


def _path(recording: Recording, table: str) -> Path:
    return TABLES / f"{recording.name}-{table}.parquet"


def _read_table(recording: Recording, table: str) -> list[dict[str, Any]]:
    path = _path(recording, table)
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.exists() else []
    return rows


def main() -> None:
    """Record, or collect what was recorded."""
    parser = argparse.ArgumentParser(description="Record real LoRA arms.")
    parser.add_argument("recording", choices=list(RECORDINGS))
    parser.add_argument("--runs", type=int, help="the first so many; all without it")
    parser.add_argument("--minutes", type=float, default=60, help="begin no run after so many")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--collect", action="store_true", help="only write the tables")
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default=Precision.BFLOAT16)
    given = parser.parse_args()
    recording = RECORDINGS[given.recording]()
    recording = replace(recording, trainer=replace(recording.trainer, precision=given.precision))
    runs = recording.runs[: given.runs]
    if not given.collect:
        record_all(recording, runs, minutes=given.minutes, workers=given.workers)
    collect(recording, runs)


if __name__ == "__main__":
    main()
