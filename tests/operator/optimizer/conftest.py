"""Ax takes eight seconds to import, and none of its tests is quick: a run without slow tests does not read them."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests of Ax out of a run without slow ones; pytest decides about all others."""
    return True if collection_path.name == "test_ax.py" and config.option.markexpr == "not slow" else None
