"""Seconds from process start to the first optimizer step, for the laptop sample's model and data, one process.

    PYTHONPATH=trainer python benchmarks/startup.py

Starts `python -m trial_trainer` with a rung of one step, after one start that warms the disk: a line of its log ends
importing and loading, the progress object of step 1 ends the first step, and then it is killed. The imports alone are
timed in a process of their own. Prints a Markdown row for each start.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _demo
from trial_trainer import contract
from trial_trainer.artifacts import open_store
from trial_trainer.contract import ContractError, Progress, TrialConfig, from_json, to_json
from trial_trainer.dataset.store import TRAIN, count_samples

GOAL_SECONDS = 15
PATIENCE_SECONDS = 300
LOADED = b"stop at 1"
"""What the trainer logs between loading and its first step."""


def main() -> None:
    """Measure some starts and print them as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3, help="measured starts, after one that warms the disk")
    arguments = parser.parse_args()
    samples = count_samples(_demo.read_demo(TRAIN))
    measure(samples)
    print(f"{os.cpu_count()} cores\n")
    print("| start | imports, s | load, s | first step, s | in all, s | goal, s |")
    print("|---|---|---|---|---|---|")
    for number in range(arguments.starts):
        imported = time_import()
        loaded, stepped = measure(samples)
        phases = (imported, loaded - imported, stepped - loaded, stepped)
        cells = " | ".join(f"{seconds:.1f}" for seconds in phases)
        print(f"| {number + 1} | {cells} | {GOAL_SECONDS} |", flush=True)


def time_import() -> float:
    """Return the seconds that the imports take in a process of their own."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import trial_trainer.training.train"], check=True)
    return time.perf_counter() - start


def measure(samples: int) -> tuple[float, float]:
    """Start one rung; return the seconds until the model is loaded and until the first step is taken."""
    with tempfile.TemporaryDirectory() as scratch:
        config = TrialConfig(
            study="benchmark",
            trial="t000",
            rung=0,
            seed=0,
            arm=_demo.ARM,
            base_model=_demo.base_model(),
            dataset=str(_demo.DATASET),
            output=f"{scratch}/output",
            total_steps=contract.count_total_steps(samples, int(_demo.ARM["batch_size"]), _demo.settings().epochs),
            stop_step=1,
            trainer=_demo.settings(),
            progress=f"{scratch}/progress.json",
        )
        log = Path(scratch, "log")
        start = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "trial_trainer"],
                env={**os.environ, contract.TRIAL_CONFIG: to_json(config)},
                stdout=file,
                stderr=file,
            )
        try:
            return watch(process, scratch, start, log)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def watch(process: subprocess.Popen[bytes], directory: str, start: float, log: Path) -> tuple[float, float]:
    """Return when the first optimizer step began and when it was over, in seconds since the start."""
    store = open_store(directory)
    loaded: float | None = None
    while process.poll() is None and time.perf_counter() - start < PATIENCE_SECONDS:
        text = store.read("progress.json")
        now = time.perf_counter() - start
        try:
            # Forced out when the last step is over.
            progress = None if text is None else from_json(Progress, text)
        except ContractError as error:
            raise SystemExit(f"the progress must keep the contract: {error}") from error
        if loaded is None and LOADED in log.read_bytes():
            loaded = now
        if loaded is not None and progress is not None and progress.step >= 1:
            return loaded, now
        time.sleep(0.02)
    raise SystemExit(f"the trainer must take a step, but it said:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
