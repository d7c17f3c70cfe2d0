"""Arms that are known to be good for LoRA, as the search space allows them."""

from collections.abc import Sequence

import pytest

from builders.some_manifests import a_manifest
from study_operator.spec.constraints import parse_linear_constraint
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Arm, Categorical, LinearConstraint, LogUniform, Parameter, Uniform
from study_operator.spec.typical_arms import find_billions, find_learning_rate, find_typical_arms

RATE = Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-2))
RANK = Parameter(name="lora_rank", search_space=Categorical(values=(8, 16, 32), ordered=True))
DROPOUT = Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2))
LLAMA = "hf://meta-llama/Meta-Llama-3-8B-Instruct"


def arms(
    *parameters: Parameter,
    model: str = LLAMA,
    constraints: Sequence[LinearConstraint] = (),
    given: Sequence[Arm] = (),
) -> list[Arm]:
    return [typical.arm for typical in find_typical_arms(parameters, constraints, model, given)]


def test_published_settings_and_the_centre_take_the_nearest_values_of_the_search_space() -> None:
    assert arms(RATE, RANK, DROPOUT) == [
        {"learning_rate": 2.7e-4, "lora_rank": 16, "lora_dropout": 0.0},
        {"learning_rate": 3.16e-4, "lora_rank": 16, "lora_dropout": 0.1},
        {"learning_rate": 2e-4, "lora_rank": 32, "lora_dropout": 0.1},
        {"learning_rate": 2e-4, "lora_rank": 8, "lora_dropout": 0.1},
    ]
    narrow = Parameter(name="learning_rate", search_space=LogUniform(min=1e-3, max=2e-3))
    assert {arm["learning_rate"] for arm in arms(narrow)} == {1e-3, 1.41e-3}


def test_the_first_has_a_small_batch_for_those_who_have_few_samples() -> None:
    assert [arm["batch_size"] for arm in arms(batches(2, 4, 8, 16, 32))] == [4, 8, 16]
    assert [arm["batch_size"] for arm in arms(batches(8, 16, 32))] == [8, 16]


def batches(*sizes: int) -> Parameter:
    return Parameter(name="batch_size", search_space=Categorical(values=sizes, ordered=True))


def test_each_has_its_source() -> None:
    sources = [typical.source for typical in find_typical_arms([RATE, RANK], (), LLAMA, ())]
    assert [source.partition(" ")[0] for source in sources] == ["Schulman", "the", "Dettmers", "Hu"]


def test_no_arm_is_tried_twice() -> None:
    assert arms(RATE, given=[{"learning_rate": 2.7e-4}]) == [{"learning_rate": 3.16e-4}, {"learning_rate": 2e-4}]


def test_an_arm_that_breaks_a_constraint_is_left_out() -> None:
    constraint = parse_linear_constraint("lora_dropout <= 0.05")
    assert constraint is not None
    assert {arm["lora_dropout"] for arm in arms(RATE, DROPOUT, constraints=[constraint])} == {0.0}


def test_of_parameters_of_ones_own_nothing_is_known() -> None:
    assert arms(RATE, Parameter(name="temperature", search_space=Uniform(min=0, max=1))) == []


def test_alpha_is_that_of_the_setting_however_it_is_searched() -> None:
    alpha = Parameter(name="lora_alpha", search_space=Categorical(values=(8, 16, 32, 64), ordered=True))
    ratio = Parameter(name="lora_alpha_over_rank", search_space=Categorical(values=(0.25, 1, 2, 4, 8), ordered=True))
    assert [arm["lora_alpha"] for arm in arms(alpha)] == [32, 16]
    assert [arm["lora_alpha_over_rank"] for arm in arms(ratio)] == [2, 0.25, 8]


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        pytest.param("hf://HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, id="millions"),
        pytest.param("../../.cache/smollm2-135m-instruct", 0.135, id="a path"),
        pytest.param(LLAMA, 8.0, id="billions"),
        pytest.param("hf://Qwen/Qwen2.5-1.5B", 1.5, id="a fraction, behind a version"),
        pytest.param("s3://models/our-model", None, id="no size"),
        pytest.param("hf://mistralai/Mixtral-8x7B", None, id="several experts"),
    ],
)
def test_a_model_s_name_tells_its_size(model: str, billions: float | None) -> None:
    assert find_billions(model) == billions


def test_the_learning_rate_falls_with_the_size_of_a_model_and_less_so_for_qwen() -> None:
    assert find_learning_rate(None, is_qwen=False) == 5e-4
    sizes = (0.135, 1, 8, 70)
    llama, qwen = ([find_learning_rate(size, is_qwen=is_qwen) for size in sizes] for is_qwen in (False, True))
    assert llama == sorted(llama, reverse=True) and qwen == sorted(qwen, reverse=True)
    assert llama[0] / llama[-1] > 3 > qwen[0] / qwen[-1]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        pytest.param({"spec.numTrials": 24}, 3, id="by default three"),
        pytest.param({"spec.numTrials": 8}, 2, id="but no more than a quarter"),
        pytest.param({"spec.numTrials": 24, "spec.typicalArms": 4}, 4, id="as many as are asked for"),
        pytest.param({"spec.numTrials": 24, "spec.typicalArms": 0}, 0, id="none"),
        pytest.param({"spec.numTrials": 4, "spec.promotion": None, "spec.typicalArms": 4}, 3, id="as many as fit in"),
    ],
)
def test_a_study_tries_a_few_of_them(changes: dict[str, object], count: int) -> None:
    assert len(parse_study(a_manifest(changes)).typical_arms) == count
