"""A page shared by its questions is computed as if each of them stood alone, and models that can't share are found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_models import (
    SEPARATE,
    SHARING,
    a_page,
    distance,
    groups_of,
    load_random_model,
    loss_and_gradients,
    plain_loss,
    settings,
    with_adapter,
)
from trial_trainer.attention import IMPLEMENTATION
from trial_trainer.base_model import BaseModelError
from trial_trainer.contract import BaseModel, Precision
from trial_trainer.data import build_row, separate
from trial_trainer.errors import ArmError, StudyError
from trial_trainer.model import adapter_parameters, add_adapter, load_adapter, load_base

PAGES = [a_page(1, questions=3), a_page(2, questions=1), a_page(3, questions=4, tokens=300)]
"""One of them longer than a block of the CPU's causal attention."""


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_page_gives_the_loss_and_the_gradients_of_separate_samples(name: str, tmp_path: Path) -> None:
    loaded = with_adapter(load_random_model(tmp_path, name))
    assert loaded.shares_prefix

    shared, shared_gradients = loss_and_gradients(loaded, groups_of(PAGES))
    apart, apart_gradients = loss_and_gradients(loaded, separate(groups_of(PAGES)))

    assert shared == pytest.approx(apart, rel=1e-6)
    assert distance(shared_gradients, apart_gradients) < 1e-5


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_page_gives_the_loss_and_the_gradients_of_transformers_own_attention(
    name: str, tmp_path: Path
) -> None:
    loaded = with_adapter(load_random_model(tmp_path, name))
    shared, shared_gradients = loss_and_gradients(loaded, groups_of(PAGES))

    loaded.module.zero_grad()
    loaded.module.get_base_model().set_attn_implementation("eager")
    plain = plain_loss(loaded, groups_of(PAGES))
    plain.backward()
    gradients = {name: p.grad for name, p in adapter_parameters(loaded.module).items()}

    assert shared == pytest.approx(plain.item(), rel=1e-6)
    assert distance(shared_gradients, gradients) < 1e-5


@pytest.mark.parametrize("name", SEPARATE)
def test_a_model_that_cannot_share_falls_back_and_gives_the_loss_of_separate_samples(name: str, tmp_path: Path) -> None:
    loaded = load_random_model(tmp_path, name)
    assert not loaded.shares_prefix
    loaded = with_adapter(loaded)

    found, gradients = loss_and_gradients(loaded, groups_of(PAGES))
    loaded.module.zero_grad()
    plain = plain_loss(loaded, groups_of(PAGES))
    plain.backward()

    assert found == pytest.approx(plain.item(), rel=1e-6)
    assert distance(gradients, {name: p.grad for name, p in adapter_parameters(loaded.module).items()}) < 1e-5


def test_the_check_is_made_on_one_page_and_leaves_the_attention_that_it_chose(tmp_path: Path) -> None:
    sharing = load_random_model(tmp_path / "llama", "llama")
    separating = load_random_model(tmp_path / "mistral", "mistral, sliding window")

    assert sharing.module.config._attn_implementation == IMPLEMENTATION
    assert separating.module.config._attn_implementation != IMPLEMENTATION


def test_the_check_finds_a_model_whose_branches_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(segment, device, dtype):
        rows = segment.end - segment.branches_start
        mask = torch.full((rows, segment.prefix_tokens + rows), float("-inf"), device=device, dtype=dtype)
        return mask.triu_(segment.prefix_tokens + 1)

    monkeypatch.setattr("trial_trainer.attention._branch_mask", causal)

    assert not load_random_model(tmp_path, "llama").shares_prefix


def test_the_check_passes_in_bf16_too(tmp_path: Path) -> None:
    loaded = load_random_model(tmp_path, "llama", Precision.BFLOAT16)

    assert loaded.shares_prefix
    assert loaded.dtype is torch.bfloat16


def test_one_question_does_not_see_its_neighbours(tmp_path: Path) -> None:
    loaded = load_random_model(tmp_path, "llama")
    page = a_page(5, questions=3)
    others = a_page(6, questions=3).questions
    changed = replace(page, questions=(others[0], page.questions[1], others[2]))

    def middle(of):
        row = build_row(groups_of([of]), loaded.device)
        return loaded.logits(row)[row.sample_of_label == 1]

    assert torch.allclose(middle(page), middle(changed), rtol=1e-5, atol=1e-5)


def test_a_page_does_not_see_the_page_before_it(tmp_path: Path) -> None:
    loaded = load_random_model(tmp_path, "llama")
    page = a_page(5, questions=2)
    alone = loaded.logits(build_row(groups_of([page]), loaded.device))

    behind = loaded.logits(build_row(groups_of([a_page(6, questions=3), page]), loaded.device))

    assert torch.allclose(behind[-len(alone) :], alone, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_depends_on_the_seed_alone_and_changes_no_answer(tmp_path: Path) -> None:
    row = build_row(groups_of(PAGES), torch.device("cpu"))
    base = load_random_model(tmp_path / "base", "llama")
    before = base.logits(row)

    def weights(seed):
        torch.rand(13)  # what was drawn before must not matter
        loaded = add_adapter(load_random_model(tmp_path / "again", "llama"), {"lora_rank": 4}, settings(), seed)
        assert torch.allclose(loaded.logits(row), before, rtol=1e-5, atol=1e-5)
        return adapter_parameters(loaded.module)

    first, same, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_only_the_adapter_is_trained_and_it_is_kept_in_fp32(tmp_path: Path) -> None:
    loaded = add_adapter(load_random_model(tmp_path, "llama", Precision.BFLOAT16), {}, settings(), 0)

    parameters = adapter_parameters(loaded.module)

    assert parameters
    assert all("lora_" in name for name in parameters)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert list(parameters) == sorted(parameters)


def test_alpha_may_be_given_over_the_rank(tmp_path: Path) -> None:
    loaded = add_adapter(
        load_random_model(tmp_path, "llama"), {"lora_rank": 8, "lora_alpha_over_rank": 2.0}, settings(), 0
    )

    config = loaded.module.peft_config["default"]
    assert (config.r, config.lora_alpha) == (8, 16.0)


def test_target_modules_that_do_not_exist_are_the_arms_fault(tmp_path: Path) -> None:
    with pytest.raises(ArmError, match="no_such_layer"):
        add_adapter(load_random_model(tmp_path, "llama"), {}, settings(target_modules=("no_such_layer",)), 0)


@pytest.mark.parametrize("names", ["all-linear", ("q_proj", "v_proj")])
def test_an_adapter_larger_than_memory_is_refused_before_it_is_made(
    names: str | tuple[str, ...], tmp_path: Path
) -> None:
    loaded = load_random_model(tmp_path, "llama")

    with pytest.raises(ArmError, match=r"lora_rank 100000000000 makes an adapter that takes [\d,.]+ GiB of memory"):
        add_adapter(loaded, {"lora_rank": 10**11}, settings(target_modules=names), 0)

    assert not hasattr(loaded.module, "peft_config")


def test_a_saved_adapter_gives_the_logits_it_was_saved_with(tmp_path: Path) -> None:
    row = build_row(groups_of(PAGES), torch.device("cpu"))
    loaded = with_adapter(load_random_model(tmp_path / "model", "llama"))
    loaded.module.eval()
    expected = loaded.logits(row)
    loaded.module.save_pretrained(tmp_path / "adapter")
    (tmp_path / "here").mkdir()

    again = load_adapter(load_random_model(tmp_path / "model", "llama"), str(tmp_path / "adapter"), tmp_path / "here")

    assert torch.allclose(again.logits(row), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_is_not_whole_is_refused_by_name(missing: str, tmp_path: Path) -> None:
    loaded = with_adapter(load_random_model(tmp_path / "model", "llama"))
    loaded.module.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / missing).unlink()
    (tmp_path / "here").mkdir()

    with pytest.raises(StudyError, match=missing):
        load_adapter(loaded, str(tmp_path / "adapter"), tmp_path / "here")


def test_a_directory_without_weights_is_no_base_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(BaseModel(uri=str(tmp_path)), settings(), torch.device("cpu"), PAGES[0])
