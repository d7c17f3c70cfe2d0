"""A page shared by its questions is computed as if each of them stood alone, and models that can't share are found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.model_families import FAMILIES, Family
from builders.model_families import save_random_model as save_family
from builders.tiny_models import (
    CPU,
    SEPARATE,
    SHARING,
    VOCABULARY,
    a_page,
    distance,
    groups_of,
    load_random_model,
    loss_and_gradients,
    plain_loss,
    settings,
    with_adapter,
)
from trial_trainer.contract import BaseModel, Precision
from trial_trainer.errors import ArmError, BaseModelError, StudyError
from trial_trainer.model.load import adapter_parameters, add_adapter, load_adapter, load_base
from trial_trainer.model.packed_attention import IMPLEMENTATION
from trial_trainer.model.rows import build_row, separate

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

    monkeypatch.setattr("trial_trainer.model.packed_attention._branch_mask", causal)

    assert not load_random_model(tmp_path, "llama").shares_prefix


def test_the_check_passes_in_bf16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trial_trainer.model.load.cpu_multiplies_bfloat16", lambda: True)

    loaded = load_random_model(tmp_path, "llama", Precision.BFLOAT16)

    assert loaded.shares_prefix
    assert loaded.dtype is torch.bfloat16


def test_a_cpu_without_bf16_computes_in_fp32_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trial_trainer.model.load.cpu_multiplies_bfloat16", lambda: False)

    loaded = load_random_model(tmp_path, "llama", Precision.BFLOAT16)

    assert loaded.shares_prefix
    assert loaded.dtype is torch.float32
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in loaded.module.parameters())


def a_family(directory: Path, kind: str, **config: object) -> BaseModel:
    """Write a random model of a kind that `model_families` or this test describes."""
    if kind in FAMILIES:
        return BaseModel(uri=str(save_family(directory, FAMILIES[kind])))
    return BaseModel(uri=str(save_family(directory, Family(kind=kind, config=config))))


@pytest.mark.parametrize("precision", Precision)
def test_a_model_in_which_tokens_see_later_ones_is_refused(precision: Precision, tmp_path: Path) -> None:
    bert = a_family(
        tmp_path / "bert", "bert", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )

    with pytest.raises(BaseModelError, match=r"must name a causal language model, .* a token sees later ones"):
        load_base(bert, settings(precision=precision), CPU, PAGES[0])


@pytest.mark.parametrize("kind", ["Qwen 3 Next", "Granite 4 hybrid", "LFM 2", "Mamba 2", "Llama 4, text"])
def test_the_check_finds_what_leaks_between_questions_in_bf16_too(kind: str, tmp_path: Path) -> None:
    base_model = a_family(tmp_path / "model", kind)

    assert not load_base(base_model, settings(precision=Precision.BFLOAT16), CPU, PAGES[0]).shares_prefix


@pytest.mark.parametrize("kind", ["GPT-2", "OPT", "Llama"])
def test_a_model_shorter_than_the_samples_is_refused(kind: str, tmp_path: Path) -> None:
    base_model = a_family(tmp_path / "model", kind)

    with pytest.raises(BaseModelError, match=r"max_length_tokens must be at most 512, the positions of .*, got 513"):
        load_base(base_model, settings(max_length_tokens=513), CPU, PAGES[0])


def test_a_model_that_fails_on_its_longest_sample_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trial_trainer.model.load.longest_sample", lambda config: None)
    base_model = a_family(tmp_path / "model", "GPT-2")

    with pytest.raises(BaseModelError, match=r"samples of up to 600 tokens, and generate; it fails: IndexError: ."):
        load_base(base_model, settings(max_length_tokens=600), CPU, PAGES[0])


def test_a_model_that_fails_when_it_generates_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: object, **__: object) -> None:
        raise NotImplementedError("no cache for this kernel")

    monkeypatch.setattr("transformers.BloomForCausalLM.generate", generate)
    base_model = a_family(tmp_path / "model", "BLOOM")

    with pytest.raises(BaseModelError, match=r"and generate; it fails: NotImplementedError: no cache"):
        load_base(base_model, settings(), CPU, PAGES[0])


@pytest.mark.parametrize("kind", ["GPT-2", "OPT"])
def test_a_models_own_dropout_is_off_while_its_adapter_is_trained_and_that_is_told(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "trial_trainer"):
        loaded = load_base(a_family(tmp_path / "model", kind), settings(), CPU, PAGES[0])
    assert "the model's own dropout is switched off, lora_dropout is the arm's: " in caplog.text
    loaded = with_adapter(loaded)

    loss, gradients = loss_and_gradients(loaded, groups_of(PAGES))
    again, same = loss_and_gradients(loaded, groups_of(PAGES))

    assert again == loss
    assert all(torch.equal(same[name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
def test_the_dropout_of_an_adapter_is_drawn_again_from_the_same_seed(kind: str, tmp_path: Path) -> None:
    loaded = with_adapter(load_base(a_family(tmp_path / "model", kind), settings(), CPU, PAGES[0]), lora_dropout=0.5)
    row = build_row(groups_of(PAGES), CPU, "a step")

    loaded.set_training(True)
    first = loaded.logits(row)
    torch.rand(13)  # what else is drawn must not matter
    again = loaded.logits(row)
    other = loaded.logits(build_row(groups_of(PAGES), CPU, "another"))
    loaded.set_training(False)

    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(loaded.logits(row), loaded.logits(row))
    assert not torch.allclose(loaded.logits(row), first, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("Gemma 3, text and images", "vision_tower"),
        ("Gemma 3, text and images", "multi_modal_projector"),
        ("Mamba 2", "out_proj"),
        ("Llama 4, text", "router"),
        ("Mixtral", "experts"),
    ],
)
def test_an_adapter_has_no_layers_that_no_text_goes_through_or_that_peft_cannot_train(
    kind: str, without: str, tmp_path: Path
) -> None:
    loaded = load_base(a_family(tmp_path / "model", kind), settings(), CPU, PAGES[0])
    assert any(without in name for name, _ in loaded.module.named_parameters())

    adapted = add_adapter(loaded, {"lora_rank": 2, "lora_dropout": 0.1}, settings(), 0)

    names = adapter_parameters(adapted.module)
    assert names
    assert not any(without in name for name in names)


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
