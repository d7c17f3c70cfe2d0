"""Training losses from the bucket: those of the best trials, thinned, and none where a document is none."""

import json
from pathlib import Path

import pytest

from builders.some_studies import a_study, a_trial, measured
from study_operator.report.losses import MOST_POINTS, KeptLosses, read_losses, thin
from trial_trainer.artifacts import DirectoryStore


def test_the_losses_of_each_measured_trial_are_those_of_its_last_rung(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    trials = (measured(measured(a_trial(0), 0.4), 0.5, rung=1), measured(a_trial(1), 0.6), a_trial(2))
    store.write("trials/t000/rungs/0/training-losses.json", json.dumps([3.0, 2.0]).encode())
    store.write("trials/t000/rungs/1/training-losses.json", json.dumps([3.0, 2.0, 1.0]).encode())
    store.write("trials/t001/rungs/0/training-losses.json", json.dumps([2.5, 1]).encode())
    store.write("trials/t002/rungs/0/training-losses.json", json.dumps([9.0]).encode())
    found = read_losses(a_study(), trials, store, KeptLosses())
    assert [(curve.trial, tuple(curve.points)) for curve in found] == [
        ("t000", ((1, 3.0), (2, 2.0), (3, 1.0))),
        ("t001", ((1, 2.5), (2, 1.0))),
    ]


class CountingStore(DirectoryStore):
    """Remembers what was read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.reads: list[str] = []

    def read(self, key: str, max_bytes: int | None = None) -> bytes | None:
        self.reads.append(key)
        return super().read(key, max_bytes)


def test_what_was_read_once_is_not_read_again_until_the_trial_is_measured_further(tmp_path: Path) -> None:
    store, kept = CountingStore(str(tmp_path)), KeptLosses()
    first = "trials/t000/rungs/0/training-losses.json"
    store.write(first, json.dumps([3.0, 2.0]).encode())
    # Of the second one nothing was written, and nothing will be.
    trials = (measured(a_trial(0), 0.4), measured(a_trial(1), 0.3))
    found = [read_losses(a_study(), trials, store, kept) for _ in range(3)]
    assert store.reads == [first, "trials/t001/rungs/0/training-losses.json"]
    assert found[0] == found[1] == found[2] and found[0][0].points == ((1, 3.0), (2, 2.0))

    store.reads.clear()
    store.write("trials/t000/rungs/1/training-losses.json", json.dumps([3.0, 2.0, 1.0]).encode())
    (curve,) = read_losses(a_study(), (measured(trials[0], 0.5, rung=1), trials[1]), store, kept)
    assert store.reads == ["trials/t000/rungs/1/training-losses.json"]
    assert curve.points[-1] == (3, 1.0)


def test_another_checkpoint_and_another_study_are_read_and_no_more_is_kept_than_is_allowed() -> None:
    kept = KeptLosses(most=2)
    kept.keep("/runs/a/t000", "24-a", ((1, 3.0),))
    assert kept.find("/runs/a/t000", "24-b") is kept.find("/runs/b/t000", "24-a") is None
    kept.keep("/runs/a/t001", "24-a", ())
    assert kept.find("/runs/a/t000", "24-a") == ((1, 3.0),)
    # What was not asked for longest goes first.
    kept.keep("/runs/a/t002", "24-a", ())
    assert kept.find("/runs/a/t001", "24-a") is None and kept.find("/runs/a/t000", "24-a") is not None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[1.0, ", id="half a document"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"losses": [1.0]}', id="another document"),
        pytest.param(b"[1.0, NaN]", id="a loss that is no number"),
        pytest.param(b'[1.0, "<b>"]', id="a loss that is a text"),
        pytest.param(b"[1.0, true]", id="a loss that is a truth"),
        pytest.param(b"[" * 100_000, id="nested too deeply"),
        pytest.param(b"[" + b"1.0, " * 1_000_000 + b"1.0]", id="too large"),
    ],
)
def test_what_is_no_list_of_numbers_is_passed_over(tmp_path: Path, text: bytes) -> None:
    store = DirectoryStore(str(tmp_path))
    store.write("trials/t000/rungs/0/training-losses.json", text)
    assert read_losses(a_study(), (measured(a_trial(0), 0.4),), store, KeptLosses()) == ()


def test_a_long_curve_is_thinned_to_means_and_a_short_one_is_not() -> None:
    assert thin([4.0, 2.0], 100) == ((1, 4.0), (2, 2.0))
    points = thin([float(i) for i in range(1000)], 5000)
    # A fifth of the full length has a fifth of the points.
    assert len(points) == MOST_POINTS // 5
    assert points[0] == (42, 20.5)
    assert points[-1][0] == 1000
