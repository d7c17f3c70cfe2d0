"""A trainer that keeps the trial contract and trains nothing, so that whole studies run in seconds.

    python stand_in_trainer.py [prepare|judge]

`STAND_IN` holds a JSON object that says how it behaves: `seconds` a rung takes, `ends`, an exit code by trial (or by
`prepare`), `is_deaf`, whether it ignores SIGTERM, `starts`, a file to which every start and end of a job is appended. A
trial's accuracy is a smooth function of its arm, so that a search has something to find.
"""

import json
import math
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from trial_trainer import contract
from trial_trainer.artifacts import ArtifactStore, open_object, open_store
from trial_trainer.contract import Interval, Judged, Judgement, Metric, Progress, Reading

BEHAVIOUR = json.loads(os.environ.get("STAND_IN", "{}"))
SECONDS_A_RUNG = float(BEHAVIOUR.get("seconds", 0.05))
ATTRIBUTES = ("name", "price")


def main(argv: list[str]) -> int:
    """Do what the subcommand says; return the exit code of the contract."""
    match argv:
        case ["prepare"]:
            return prepare(contract.from_json(contract.PrepareConfig, os.environ[contract.PREPARE_CONFIG]))
        case ["judge"]:
            return judge(contract.from_json(contract.JudgeConfig, os.environ[contract.JUDGE_CONFIG]))
        case ["calibrate"]:
            print("one line of talk before the figures")
            print(json.dumps({"train_seconds_per_page": 2.0, "evaluate_seconds_per_page": 0.5, "start_seconds": 10.0}))
            return 0
        case _:
            return train(contract.from_json(contract.TrialConfig, os.environ[contract.TRIAL_CONFIG]))


def prepare(config: contract.PrepareConfig) -> int:
    """Write a summary of a dataset that does not exist."""
    note("prepare", "start")
    if "prepare" in BEHAVIOUR.get("ends", {}):
        print("the source must be a directory or a file, got 'nowhere'", flush=True)
        return int(BEHAVIOUR["ends"]["prepare"])
    store = open_store(config.dataset)
    splits = {
        name: contract.SplitSummary(
            pages=pages,
            samples=pages * 4,
            sites=pages // 2,
            tokens=pages * 400,
            samples_by_attribute=dict.fromkeys(config.attributes, pages * 2),
        )
        for name, pages in (("train", 80), ("validation", 40), ("test", 140))
    }
    summary = contract.DatasetSummary(
        study=config.study,
        splits=splits,
        skipped_pages={"empty": 2},
        dropped_labels={"price": 7},
        pages_in_test_shops=5,
        warnings=("validation of brand has a standard error of 6 points",),
        fingerprint="00ff",
    )
    store.write(contract.SUMMARY, contract.to_json(summary).encode())
    note("prepare", "end")
    return 0


def train(config: contract.TrialConfig) -> int:
    """Count steps, and write a reading that depends on arm and step alone."""
    name = f"{config.trial}-r{config.rung}"
    store = open_store(config.output)
    if store.read(contract.READING) is not None:
        return 0
    stop = signal.SIG_IGN if BEHAVIOUR.get("is_deaf") else lambda *_: save_and_leave(name, store)
    signal.signal(signal.SIGTERM, stop)
    note(name, "start")
    first = latest_step(store)
    if first == 0 and config.resume_from:
        first = latest_step(open_store(config.resume_from))
        if first == 0:
            print("the checkpoint to resume from must exist", flush=True)
            return 12
    for tenth in range(10):
        step = first + (config.stop_step - first) * tenth // 10
        store.write("step", str(step).encode())
        write_progress(config, step)
        time.sleep(SECONDS_A_RUNG / 10)
        if tenth == 5:
            end_as_told(config.trial)
    checkpoint = f"{contract.CHECKPOINTS}/{config.stop_step}-{os.environ[contract.ATTEMPT]}"
    store.write(f"{checkpoint}/state", b"weights")
    store.write(contract.LATEST, json.dumps({"step": config.stop_step, "checkpoint": checkpoint}).encode())
    store.write(f"{contract.ADAPTER}/adapter_config.json", b"{}")
    accuracy = accuracy_of(config)
    reading = Reading(
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
        seconds={"load": 0.1, "train": SECONDS_A_RUNG, "evaluate": 0.1, "save": 0.0},
    )
    store.write_new(contract.READING, contract.to_json(reading).encode())
    note(name, "end")
    return 0


def accuracy_of(config: contract.TrialConfig) -> float:
    """Best at a learning rate of 1e-3, better at full length."""
    distance = abs(math.log10(float(config.arm["learning_rate"])) + 3)
    return 0.6 - 0.2 * distance + (0.1 if config.rung else 0.0)


def judge(config: contract.JudgeConfig) -> int:
    """Read a test set that does not exist."""
    note("judge", "start")
    values = {"winner": 0.52, "untrained": 0.02, "rules": BEHAVIOUR.get("rules", 0.47), "constants": 0.2}
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
    judgement = Judgement(
        study=config.study,
        winner=config.winner.trial,
        predictors={name: judged(value) for name, value in values.items()},
        gains=gains,
        seconds={"winner": 1.0},
    )
    open_store(config.output).write(contract.JUDGEMENT, contract.to_json(judgement).encode())
    note("judge", "end")
    return 0


def judged(value: float) -> Judged:
    """Return one predictor's row, the same for every attribute."""
    metric = Metric(value=value, standard_error=0.03, n=140)
    return Judged(
        hand_labelled=metric,
        all_asked=metric,
        by_attribute=dict.fromkeys(ATTRIBUTES, metric),
        invalid_output_rate=metric,
        false_value_rate=metric,
    )


def latest_step(store: ArtifactStore) -> int:
    """Return the step of the newest checkpoint under a prefix; 0 where there is none."""
    latest = store.read(contract.LATEST)
    return int(json.loads(latest)["step"]) if latest else 0


def save_and_leave(name: str, store: ArtifactStore) -> None:
    """Write a checkpoint at the step that was reached, and end as asked."""
    step = int(store.read("step") or b"0")
    store.write(contract.LATEST, json.dumps({"step": step, "checkpoint": "unused"}).encode())
    note(name, "stop")
    os._exit(143)


def write_progress(config: contract.TrialConfig, step: int) -> None:
    """Refresh what a person watches."""
    if config.progress is None:
        return
    progress = Progress(
        step=step,
        stop_step=config.stop_step,
        total_steps=config.total_steps,
        loss=1.5,
        phase="train",
        eta_seconds=float(config.stop_step - step),
        updated_at=datetime.now(UTC).isoformat(),
    )
    store, key = open_object(config.progress)
    store.write(key, contract.to_json(progress).encode())


def end_as_told(trial: str) -> None:
    """End early where the test asks for it."""
    end = BEHAVIOUR.get("ends", {}).get(trial)
    if end is not None:
        print(f"ending with {end}", flush=True)
        sys.exit(int(end))


def note(name: str, what: str) -> None:
    """Append to the list of what was started and ended; one write, so that lines never mix."""
    if "starts" in BEHAVIOUR:
        with Path(BEHAVIOUR["starts"]).open("a") as file:
            file.write(f"{name} {what} {os.environ[contract.ATTEMPT]} {time.time()}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
