"""Which of some arms lies farthest from all that were tried: the search goes there when it stagnates.

Greedy farthest points, as in Gonzalez (1985), "Clustering to minimize the maximum intercluster distance", section 3.
Knows no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from study_operator.spec.study import Arm, Categorical, LogUniform, Parameter, Uniform
from trial_trainer.contract import ParameterValue

Place = tuple[tuple[bool, float], ...]
"""Of an arm, for each parameter that has more than one value: whether its values have an order, and where it lies."""


def place(parameters: Sequence[Parameter], arm: Arm) -> Place:
    """Return where an arm lies in the unit cube; values without an order have their number in the list."""
    return tuple(_place_value(parameter, arm[parameter.name]) for parameter in parameters if not is_fixed(parameter))


def find_farthest(candidates: Sequence[Place], tried: Sequence[Place]) -> int:
    """Return the position of the candidate whose nearest tried arm is the farthest; of equals the first."""
    return max(
        range(len(candidates)),
        key=lambda i: (min((_squared_distance(candidates[i], other) for other in tried), default=0.0), -i),
    )


def is_fixed(parameter: Parameter) -> bool:
    """Say whether a parameter has one value only."""
    space = parameter.search_space
    return len(set(space.values)) == 1 if isinstance(space, Categorical) else space.min == space.max


def _place_value(parameter: Parameter, value: ParameterValue) -> tuple[bool, float]:
    match parameter.search_space:
        case Categorical(values=values, ordered=ordered):
            position = values.index(value)
            return ordered, position / (len(values) - 1) if ordered else float(position)
        case LogUniform(min=low, max=high):
            return True, math.log(float(value) / low) / math.log(high / low)
        case Uniform(min=low, max=high):
            return True, (float(value) - low) / (high - low)


def _squared_distance(one: Place, other: Place) -> float:
    return sum((a - b) ** 2 if ordered else float(a != b) for (ordered, a), (_, b) in zip(one, other, strict=True))
