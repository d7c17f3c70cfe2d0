"""How much each input of a function matters: Sobol's indices (2001), by the estimators of Jansen (1999).

Of a random function, such as draws of a Gaussian process, each draw has its own indices, and what they have in common
is what is known of them (Marrel et al. 2009, "Calculations of Sobol indices for the Gaussian process metamodel").

* *First*: the share of the variance that would be gone if this input alone were known.
* *Total*: the share that would be left if all the others were known.

Saltelli et al. (2010), "Variance based sensitivity analysis of model output", table 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def design(first: Array, second: Array) -> Array:
    """Return the points at which a function must be known.

    Args:
        first: points, drawn independently over the space of the inputs: (points, inputs).
        second: as many others.

    Returns:
        Both, and for each input the first ones with that input of the second ones.
    """
    import numpy as np

    mixed = [first.copy() for _ in range(first.shape[1])]
    for i, points in enumerate(mixed):
        points[:, i] = second[:, i]
    return np.concatenate([first, second, *mixed])


def find_indices(values: Array, inputs: int) -> tuple[Array, Array]:
    """Return the first and the total index of each input, for each function.

    Args:
        values: of each function at the points of a design: (functions, points).
        inputs: how many there are.

    Returns:
        Two arrays (functions, inputs), of shares between 0 and 1.
    """
    import numpy as np

    parts = values.reshape(values.shape[0], inputs + 2, -1)
    a, b, mixed = parts[:, 0], parts[:, 1], parts[:, 2:]
    variance = np.concatenate([a, b], axis=1).var(axis=1)
    # A function that is constant has no variance to share.
    variance = np.where(variance > 0, variance, np.inf)[:, None]
    rest = ((b[:, None] - mixed) ** 2).mean(axis=2) / 2
    total = ((a[:, None] - mixed) ** 2).mean(axis=2) / 2
    finite = np.isfinite(variance)
    first = np.where(finite, 1 - rest / np.where(finite, variance, 1.0), 0.0)
    return np.clip(first, 0.0, 1.0), np.clip(total / variance, 0.0, 1.0)
