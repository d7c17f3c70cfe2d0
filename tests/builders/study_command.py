"""`finetune-study` with the stand-in trainer, and with a designer that takes no seconds to import.

python study_command.py ARGUMENTS...
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from study_operator.__main__ import main
from study_operator.ledger.trial import Trial
from study_operator.optimizer.designer import Suggestion
from study_operator.optimizer.reading import ModelReading
from study_operator.spec.study import Arm, Categorical, LogUniform, Study

STAND_IN_TRAINER = Path(__file__).with_name("stand_in_trainer.py")


class DrawingDesigner:
    """Draws arms from the ledger's length and the seed: the same ledger gives the same arms."""

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return ``count`` arms."""
        return tuple(
            Suggestion(arm=_draw(study, random.Random(f"{study.seed}/{index}")), generation_node="Drawn")
            for index in range(len(trials), len(trials) + count)
        )

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool) -> ModelReading:
        """Know nothing."""
        measured = sum(trial.measurement(0) is not None for trial in trials)
        return ModelReading(measured=measured, through=through, tau=0.0, p=0.5)


def _draw(study: Study, generator: random.Random) -> dict[str, float | int | str]:
    arm: dict[str, float | int | str] = {}
    for parameter in study.parameters:
        match parameter.search_space:
            case Categorical(values=values):
                arm[parameter.name] = generator.choice(values)
            case LogUniform(min=low, max=high):
                arm[parameter.name] = low * (high / low) ** generator.random()
            case space:
                arm[parameter.name] = generator.uniform(space.min, space.max)
    return arm


if __name__ == "__main__":
    sys.exit(main(trainer=(sys.executable, str(STAND_IN_TRAINER)), designer=DrawingDesigner()))
