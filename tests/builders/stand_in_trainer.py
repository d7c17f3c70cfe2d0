"""A trainer that keeps the trial contract and trains nothing, so that whole studies run in seconds.

    python stand_in_trainer.py [prepare|final-evaluation|ask]

`STAND_IN` holds a JSON object that says how it behaves: `seconds` a rung takes, `evaluation_seconds` the final
evaluation takes, `ends`, an exit code by trial (or by `prepare`), `is_deaf`, whether it ignores SIGTERM, `starts`, a
file to which every start and end of a job is appended, `environments`, a directory where each job leaves the
environment that it was given, `prepares`, whether the data is prepared as the trainer does it. A trial's accuracy is a
smooth function of its arm, so that a search has something to find.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from trial_trainer import contract
from trial_trainer.artifacts import ArtifactStore, open_object, open_store

# A job knows the two packages and no tools.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from testcluster import made_up_results

BEHAVIOUR = json.loads(os.environ.get("STAND_IN", "{}"))
SECONDS_A_RUNG = float(BEHAVIOUR.get("seconds", 0.05))


def main(argv: list[str]) -> int:
    """Do what the subcommand says; return the exit code of the contract."""
    match argv:
        case ["prepare"]:
            return prepare(contract.from_json(contract.PrepareConfig, os.environ[contract.PREPARE_CONFIG]))
        case ["final-evaluation"]:
            return run_final_evaluation(
                contract.from_json(contract.FinalEvaluationConfig, os.environ[contract.FINAL_EVALUATION_CONFIG])
            )
        case ["calibrate"]:
            print("one line of talk before the figures")
            print(json.dumps({"train_seconds_per_page": 2.0, "evaluate_seconds_per_page": 0.5, "start_seconds": 10.0}))
            return 0
        case ["ask", *flags]:
            for file in flags[flags.index("--") + 2 :]:
                text = Path(file).read_text()
                print(json.dumps({"file": file, "answers": {"name": text[:10]}, "is_cut": len(text) > 10}))
            return 0
        case _:
            return train(contract.from_json(contract.TrialConfig, os.environ[contract.TRIAL_CONFIG]))


def prepare(config: contract.PrepareConfig) -> int:
    """Write a summary of a dataset that does not exist."""
    note("prepare", "start")
    if BEHAVIOUR.get("prepares"):
        from trial_trainer.__main__ import main as run_trainer

        return run_trainer(["prepare"])
    if "prepare" in BEHAVIOUR.get("ends", {}):
        print("the source must be a directory or a file, got 'nowhere'", flush=True)
        return int(BEHAVIOUR["ends"]["prepare"])
    summary = made_up_results.make_summary(config)
    open_store(config.dataset).write(contract.SUMMARY, contract.to_json(summary).encode())
    note("prepare", "end")
    return 0


def train(config: contract.TrialConfig) -> int:
    """Count steps, and write a measurement that depends on arm and step alone."""
    name = f"{config.trial}-r{config.rung}"
    store = open_store(config.output)
    if made_up_results.is_ours(store.read(contract.MEASUREMENT), config.digest):
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
    accuracy = made_up_results.accuracy_of(config)
    measurement = made_up_results.make_measurement(config, accuracy, checkpoint, seconds=SECONDS_A_RUNG)
    store.write_new(contract.MEASUREMENT, contract.to_json(measurement).encode())
    note(name, "end")
    return 0


def run_final_evaluation(config: contract.FinalEvaluationConfig) -> int:
    """Read a test set that does not exist."""
    note("final-evaluation", "start")
    if config.progress is not None:
        store, key = open_object(config.progress)
        store.write(key, contract.to_json(made_up_results.make_evaluation_progress(config)).encode())
    time.sleep(float(BEHAVIOUR.get("evaluation_seconds", 0)))
    final_evaluation = made_up_results.make_final_evaluation(config, rules=BEHAVIOUR.get("rules", 0.47))
    open_store(config.output).write(contract.FINAL_EVALUATION, contract.to_json(final_evaluation).encode())
    note("final-evaluation", "end")
    return 0


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
    store, key = open_object(config.progress)
    store.write(key, contract.to_json(made_up_results.make_progress(config, step)).encode())


def end_as_told(trial: str) -> None:
    """End early where the test asks for it."""
    end = BEHAVIOUR.get("ends", {}).get(trial)
    if end is not None:
        print(f"ending with {end}", flush=True)
        sys.exit(int(end))


def note(name: str, subject: str) -> None:
    """Append to the list of what was started and ended; one write, so that lines never mix."""
    if "environments" in BEHAVIOUR and subject == "start":
        Path(BEHAVIOUR["environments"], name).write_text(json.dumps(dict(os.environ)))
    if "starts" in BEHAVIOUR:
        with Path(BEHAVIOUR["starts"]).open("a") as file:
            file.write(f"{name} {subject} {os.environ[contract.ATTEMPT]} {time.time()}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
