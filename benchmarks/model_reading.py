"""How often what a report says of the optimizer's model is right: whether it knows anything, what matters, the band.

    PYTHONPATH=operator:trainer python benchmarks/model_reading.py [--studies 8]

Studies of arms anywhere in the space, on a smooth surface of learning rate, rank and dropout that is read with noise,
or on noise alone. A fit takes about a second, and what a model says takes nine of them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence

from study_operator.ledger.trial import Measurement, Origin, Trial, TrialState
from study_operator.optimizer.ax import AxDesigner
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Arm,
    Categorical,
    Data,
    LogUniform,
    Objective,
    Parameter,
    Promotion,
    Storage,
    Study,
    Uniform,
)
from trial_trainer.contract import BaseModel, LabelSource, Split, TrainerSettings

RANKS = (4, 8, 16, 32, 64)
STUDY = Study(
    name="study",
    namespace="default",
    uid="0",
    objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
    parameters=(
        Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-2)),
        Parameter(name="lora_rank", search_space=Categorical(values=RANKS, ordered=True)),
        Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2)),
    ),
    baseline=None,
    num_trials=100,
    parallel_trials=4,
    max_failed_trials=5,
    promotion=Promotion(num_promoted=2),
    data=Data(source="pages", attributes=("name",), labels_from=LabelSource.MARKUP, split=Split()),
    base_model=BaseModel(uri="model"),
    trainer=TrainerSettings(epochs=1, max_length_tokens=512),
    storage=Storage(uri="runs"),
)


def draw_arm(chance: random.Random) -> Arm:
    """Draw an arm, evenly over the space."""
    rate = math.exp(chance.uniform(math.log(1e-5), math.log(1e-2)))
    return {"learning_rate": rate, "lora_rank": chance.choice(RANKS), "lora_dropout": chance.uniform(0.0, 0.2)}


def find_accuracy(arm: Arm) -> float:
    """Return the truth: a top at a learning rate of 1e-3 and rank 16, the less dropout, the better."""
    rate, rank = math.log10(float(arm["learning_rate"])) + 3, math.log2(float(arm["lora_rank"])) - 4
    return 0.8 - 0.1 * rate**2 - 0.01 * rank**2 - float(arm["lora_dropout"])


def measure(index: int, arm: Arm, value: float) -> Trial:
    """Return a trial that was measured on the first rung."""
    measurement = Measurement(rung=0, step=20, value=value, standard_error=0.02, metrics={}, checkpoint=f"t{index:03d}")
    return Trial(
        index=index,
        arm=arm,
        origin=Origin.SUGGESTED,
        state=TrialState.PAUSED,
        total_steps=100,
        measurements=(measurement,),
    )


def run(trials: int, noise: float, studies: int, *, has_signal: bool) -> Sequence[str]:
    """Return a row: how many studies know anything, have the learning rate first, and hold the truth in the band."""
    knows = first = held = places = 0
    for seed in range(studies):
        chance = random.Random(f"{trials}/{noise}/{seed}")
        arms = [draw_arm(chance) for _ in range(trials)]
        values = [
            find_accuracy(arm) + chance.gauss(0, noise) if has_signal else chance.gauss(0.5, noise) for arm in arms
        ]
        through = arms[max(range(trials), key=values.__getitem__)]
        ledger = [measure(i, arm, value) for i, (arm, value) in enumerate(zip(arms, values, strict=True))]
        reading = AxDesigner().read_model(STUDY, ledger, through)
        knows += reading.knows
        if not reading.knows or not has_signal:
            continue
        first += reading.importances[0].parameter == "learning_rate"
        for found in reading.slices:
            for point in found.points:
                # Of what lies beyond all measurements no more is claimed than that.
                truth = find_accuracy({**through, found.parameter: point.setting})
                held += point.low <= min(max(truth, min(values)), max(values)) <= point.high
                places += 1
    kind = f"surface, noise {noise:g}" if has_signal else "noise alone"
    shares = [f"{first} of {knows}", f"{held / places:.0%}"] if places else ["", ""]
    return [kind, f"{trials}", f"{knows} of {studies}", *shares]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=8)
    studies = parser.parse_args().studies
    print("| measured | trials | knows anything | learning rate first | band holds the truth |")
    print("|---|---|---|---|---|")
    for trials, noise, has_signal in ((24, 0.03, True), (12, 0.03, True), (24, 0.1, False)):
        print(f"| {' | '.join(run(trials, noise, studies, has_signal=has_signal))} |", flush=True)


if __name__ == "__main__":
    main()
