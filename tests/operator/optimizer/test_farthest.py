"""Which arm is farthest from all that were tried."""

from dataclasses import replace

import pytest

from builders.ledgers import a_study
from study_operator.optimizer.farthest import find_farthest, place
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
        pytest.param([{"learning_rate": 1e-2}, {"learning_rate": 1e-5}, {"learning_rate": 1e-4}], 1, id="a log scale"),
        pytest.param([{"lora_dropout": 0.2}, {"target": "attention"}], 1, id="another choice is the whole cube away"),
        pytest.param([{"lora_rank": 4}, {"lora_rank": 16}], 0, id="of equals the first"),
    ],
)
def test_the_farthest_is_the_one_whose_nearest_neighbour_is_farthest(candidates, expected) -> None:
    places = [place(STUDY.parameters, an_arm(**changes)) for changes in candidates]
    assert find_farthest(places, [place(STUDY.parameters, an_arm())]) == expected


def test_every_arm_that_was_tried_counts() -> None:
    tried = [place(STUDY.parameters, an_arm(learning_rate=rate)) for rate in (1e-5, 1e-1)]
    candidates = [place(STUDY.parameters, an_arm(learning_rate=rate)) for rate in (2e-5, 1e-3, 5e-2)]
    assert find_farthest(candidates, tried) == 1
