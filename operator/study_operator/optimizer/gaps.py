"""Which of some arms fills the gaps between those that were tried best: the search goes there when it stagnates.

One greedy step of k-means over the space, whose centres are arms: principal points, as in Flury (1990), "Principal
points". The farthest arm (Gonzalez 1985) would lie in a corner or at an edge, near which there is little of the space.
Knows no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from study_operator.spec.study import Arm, Categorical, LogUniform, Parameter, Uniform
from trial_trainer.contract import ParameterValue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Place = tuple[tuple[bool, float], ...]
"""Of an arm, for each parameter that has more than one value: whether its values have an order, and where it lies."""


def place(parameters: Sequence[Parameter], arm: Arm) -> Place:
    """Return where an arm lies in the unit cube; values without an order have their number in the list."""
    return tuple(_place_value(parameter, arm[parameter.name]) for parameter in parameters if not is_fixed(parameter))


def find_value(parameter: Parameter, share: float) -> ParameterValue:
    """Return a parameter's value at a share of its range, or of its choices."""
    match parameter.search_space:
        case Categorical(values=values):
            return values[min(int(share * len(values)), len(values) - 1)]
        case LogUniform(min=lower, max=upper):
            return min(max(lower * math.exp(share * math.log(upper / lower)), lower), upper)
        case Uniform(min=lower, max=upper):
            return lower + (upper - lower) * share
        case _ as unknown:
            assert_never(unknown)


def find_gap(candidates: Sequence[Place], tried: Sequence[Place]) -> int:
    """Return the position of the candidate that fills the gaps best; of equals the first.

    With it among the tried arms, the candidates, which stand for the space, are nearest to an arm: the mean of their
    squared distances from the nearest one is least.
    """
    import numpy as np

    nearest = _find_squared_distances(tried, candidates).min(axis=0, initial=np.inf)
    left = np.minimum(_find_squared_distances(candidates, candidates), nearest).sum(axis=1)
    return int(left.argmin())


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


def _find_squared_distances(some: Sequence[Place], others: Sequence[Place]) -> NDArray[np.float64]:
    """Return the squared distance of each arm from each of the others; another choice is the whole cube away."""
    import numpy as np

    distances = np.zeros((len(some), len(others)))
    for one, other in zip(zip(*some, strict=True), zip(*others, strict=True), strict=False):
        a, b = (np.array([value for _, value in column]) for column in (one, other))
        is_ordered = one[0][0]
        distances += (a[:, None] - b) ** 2 if is_ordered else a[:, None] != b
    return distances
