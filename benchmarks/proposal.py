"""How long a proposal takes with a ledger of 25, 100 and 300 measured trials: one thread, rebuild included.

    PYTHONPATH=operator:trainer python benchmarks/proposal.py
    PYTHONPATH=operator:trainer python benchmarks/proposal.py --profile 300

Prints a Markdown table: seconds for one arm, the median of the repetitions and the slowest of them, each on a ledger of
its own seed. Importing Ax is measured apart. The search space is the design's: a log-uniform learning rate, three
ordered categoricals, a uniform dropout.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import math
import os
import pstats
import random
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from study_operator.ledger.trial import Measurement, Origin, Trial, TrialState
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Arm,
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
from trial_trainer.contract import BaseModel, LabelSource, Split, TrainerSettings

if TYPE_CHECKING:
    from study_operator.optimizer.designer import Designer

PLAIN = Study(
    name="proposal",
    namespace="benchmarks",
    uid="0",
    objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
    parameters=(
        Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-3)),
        Parameter(name="lora_rank", search_space=Categorical(values=(4, 8, 16, 32, 64), ordered=True)),
        Parameter(name="lora_alpha", search_space=Categorical(values=(8, 16, 32, 64, 128), ordered=True)),
        Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2)),
        Parameter(name="batch_size", search_space=Categorical(values=(8, 16, 32), ordered=True)),
    ),
    baseline=None,
    num_trials=500,
    parallel_trials=4,
    max_failed_trials=5,
    promotion=Promotion(num_promoted=5),
    data=Data(source="pages", attributes=("name",), labels_from=LabelSource.MARKUP, split=Split()),
    base_model=BaseModel(uri="model"),
    trainer=TrainerSettings(epochs=1, max_length_tokens=512),
    storage=Storage(uri="runs"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of study, and what its first arms come to."""

    name: str
    study: Study
    abandoned: int = 0


CASES = (
    Case(name="plain", study=PLAIN),
    Case(name="5 abandoned", study=PLAIN, abandoned=5),
    Case(
        name="outcome constraint, 5 abandoned",
        study=replace(
            PLAIN, outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2),)
        ),
        abandoned=5,
    ),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, nargs="+", default=[25, 100, 300], help="measured trials in the ledger")
    options.add_argument("--repetitions", type=int, default=5, help="ledgers of each size")
    options.add_argument("--profile", type=int, metavar="TRIALS", help="print where the time of one proposal goes")
    arguments = options.parse_args()

    started = time.perf_counter()
    # Before numpy and torch are imported.
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    from study_operator.optimizer.ax import AxDesigner

    import_seconds = time.perf_counter() - started
    designer = AxDesigner()
    # What is loaded or compiled once in a process belongs to its start.
    propose_seconds(designer, PLAIN, a_ledger(CASES[0], 8, seed=0))

    if arguments.profile:
        trials = a_ledger(CASES[0], arguments.profile, seed=0)
        profile = cProfile.Profile()
        profile.runcall(designer.suggest, PLAIN, trials, 1)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
        return

    print(f"import: {import_seconds:.1f} s\n")
    print("| study | measured trials | seconds (median) | slowest |\n|---|---:|---:|---:|")
    for case in CASES:
        for count in arguments.trials:
            # Of ledgers that the model ranks no better than chance nothing is chosen: that is quicker.
            timed = (propose_seconds(designer, case.study, a_ledger(case, count, seed)) for seed in itertools.count())
            seconds = list(itertools.islice((s for s in timed if s is not None), arguments.repetitions))
            print(f"| {case.name} | {count} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)


def propose_seconds(designer: Designer, study: Study, trials: list[Trial]) -> float | None:
    """Return how long a proposal takes; None where the model was not asked for it."""
    started = time.perf_counter()
    (suggestion,) = designer.suggest(study, trials, 1)
    seconds = time.perf_counter() - started
    return seconds if suggestion.generation_node == "MBM" else None


def a_ledger(case: Case, measured: int, seed: int) -> list[Trial]:
    """Return so many measured trials at random points of a smooth surface with noise, and the abandoned ones."""
    dice = random.Random(seed)
    trials = []
    for index in range(measured + case.abandoned):
        arm = a_random_arm(dice)
        rate = math.log10(float(arm["learning_rate"])) + 3.8
        rank = math.log2(float(arm["lora_rank"])) - 4
        value = 0.8 - 0.08 * rate**2 - 0.01 * rank**2 - 0.5 * float(arm["lora_dropout"]) + dice.gauss(0, 0.02)
        trial = Trial(index=index, arm=arm, origin=Origin.SUGGESTED, state=TrialState.ABANDONED, total_steps=100)
        if index >= case.abandoned:
            measurement = Measurement(
                rung=0,
                step=20,
                value=value,
                standard_error=0.02,
                metrics={"accuracy": value, "invalid_output_rate": min(max(dice.gauss(0.15, 0.1), 0.0), 1.0)},
                checkpoint="checkpoint",
            )
            trial = replace(trial, state=TrialState.PAUSED, measurements=(measurement,))
        trials.append(trial)
    return trials


def a_random_arm(dice: random.Random) -> Arm:
    return {
        "learning_rate": 10 ** dice.uniform(-5, -3),
        "lora_rank": dice.choice((4, 8, 16, 32, 64)),
        "lora_alpha": dice.choice((8, 16, 32, 64, 128)),
        "lora_dropout": dice.uniform(0.0, 0.2),
        "batch_size": dice.choice((8, 16, 32)),
    }


if __name__ == "__main__":
    main()
