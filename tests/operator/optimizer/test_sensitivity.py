"""Sobol indices of functions of which they are known."""

import numpy as np
import pytest
from scipy.stats import qmc

from study_operator.optimizer.sensitivity import design, find_indices


def indices_of(function, inputs: int, points: int = 1024):
    """Return the first and total indices of functions of independent inputs, even between 0 and 1."""
    drawn = qmc.Sobol(2 * inputs, seed=0).random(points)
    return find_indices(function(design(drawn[:, :inputs], drawn[:, inputs:])), inputs)


def test_the_indices_of_ishigamis_function_are_those_of_the_textbook() -> None:
    # Saltelli et al. 2008, "Global Sensitivity Analysis: The Primer", with a = 7 and b = 0.1.
    def ishigami(points):
        x, y, z = (2 * np.pi * points - np.pi).T
        return (np.sin(x) + 7 * np.sin(y) ** 2 + 0.1 * z**4 * np.sin(x))[None]

    first, total = indices_of(ishigami, 3)
    assert first[0] == pytest.approx([0.314, 0.442, 0.0], abs=0.02)
    assert total[0] == pytest.approx([0.558, 0.442, 0.244], abs=0.02)


def test_each_function_has_indices_of_its_own_and_a_constant_one_has_none() -> None:
    first, total = indices_of(lambda points: np.stack([points[:, 0], points[:, 1], 0 * points[:, 0] + 3]), 2)
    assert first == pytest.approx(np.array([[1, 0], [0, 1], [0, 0]]), abs=1e-2)
    assert total == pytest.approx(np.array([[1, 0], [0, 1], [0, 0]]), abs=1e-2)
