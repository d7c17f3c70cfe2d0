"""Which arm fills the gaps between those that were tried."""

from dataclasses import replace

import pytest

from builders.ledgers import a_study
from study_operator.optimizer.gaps import find_gap, place
from study_operator.spec.study import Categorical, LogUniform, Parameter, Uniform

STUDY = replace(
    a_study(),
    parameters=(
        Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-1)),
        Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2)),
        Parameter(name="lora_rank", search_space=Categorical(values=(4, 8, 16), ordered=True)),
        Parameter(name="target", search_space=Categorical(values=("all", "attention"))),
        Parameter(name="batch_size", search_space=Categorical(values=(16,))),
    ),
)


def an_arm(**changes):
    return {"learning_rate": 1e-3, "lora_dropout": 0.1, "lora_rank": 8, "target": "all", "batch_size": 16, **changes}


def test_an_arm_lies_in_the_unit_cube_on_the_scale_of_each_parameter() -> None:
    assert place(STUDY.parameters, an_arm()) == ((True, pytest.approx(0.5)), (True, 0.5), (True, 0.5), (False, 0.0))
    # A whole number may be told as a fractional one.
    assert place(STUDY.parameters, an_arm(lora_rank=16.0, target="attention"))[2:] == ((True, 1.0), (False, 1.0))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param([{"lora_rank": 4}, {"lora_rank": 16}], 0, id="of equals the first"),
        pytest.param([{"lora_dropout": 0.2}, {"target": "attention"}], 1, id="another choice is the whole cube away"),
        pytest.param([{"learning_rate": rate} for rate in (1e-3, 1e-1, 3e-2, 1e-2)], 2, id="a log scale"),
    ],
)
def test_the_gap_is_filled_by_the_one_that_leaves_the_others_nearest(candidates, expected) -> None:
    places = [place(STUDY.parameters, an_arm(**changes)) for changes in candidates]
    assert find_gap(places, [place(STUDY.parameters, an_arm())]) == expected


def test_every_arm_that_was_tried_counts() -> None:
    tried = [place(STUDY.parameters, an_arm(learning_rate=rate)) for rate in (1e-5, 1e-1)]
    candidates = [place(STUDY.parameters, an_arm(learning_rate=rate)) for rate in (2e-5, 1e-3, 5e-2)]
    assert find_gap(candidates, tried) == 1


def test_a_gap_lies_within_the_space_and_not_in_its_corners() -> None:
    tried = [place(STUDY.parameters, an_arm(learning_rate=1e-5, lora_dropout=0.0))]
    grid = [(rate, dropout) for rate in (1e-4, 1e-3, 1e-2, 1e-1) for dropout in (0.05, 0.1, 0.15, 0.2)]
    places = [place(STUDY.parameters, an_arm(learning_rate=rate, lora_dropout=dropout)) for rate, dropout in grid]
    # The farthest is the last one.
    assert grid[find_gap(places, tried)] == (1e-2, 0.15)


def test_the_first_arm_of_all_lies_in_the_middle() -> None:
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert find_gap([place(STUDY.parameters, an_arm(learning_rate=rate)) for rate in rates], []) == 2
