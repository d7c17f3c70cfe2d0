"""The LoRA layers that compute themselves, against PEFT's own; and dropout masks that can be drawn again."""

import copy

import peft.tuners.lora as peft_lora
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trial_trainer.model.fast_lora import DropoutMasks, use_fast_lora

CPU = torch.device("cpu")


class Net(nn.Module):
    """Two linear layers with something between them, and one layer that is not linear."""

    def __init__(self, bias):
        super().__init__()
        self.words = nn.Embedding(11, 24)
        self.first = nn.Linear(24, 32, bias=bias)
        self.second = nn.Linear(32, 16, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapters(bias=True, rs_lora=False, dropout=0.0, dtype=torch.float32, targets=("first", "second"), **options):
    """Return the same adapted net twice: PEFT's own, and ours with its masks."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=12, lora_dropout=dropout, target_modules=list(targets), use_rslora=rs_lora, **options
    )
    plain = get_peft_model(Net(bias).to(dtype), config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    fast, masks = copy.deepcopy(plain), DropoutMasks(CPU)
    use_fast_lora(fast, masks, lambda: fast(torch.zeros(1, 24, dtype=dtype)))
    return plain, fast, masks


def run(model, x):
    """Return the output, the gradient of the input and those of the adapter."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.float().square().sum().backward()
    return output, x.grad, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def far(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("rs_lora", [False, True], ids=["alpha over rank", "alpha over the root of rank"])
@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24)], ids=["rows", "batches"])
def test_output_and_gradients_are_those_of_peft(bias, rs_lora, shape):
    plain, fast, _ = adapters(bias, rs_lora)
    x = torch.randn(shape)

    output, x_gradient, gradients = run(fast, x)

    expected, expected_x_gradient, expected_gradients = run(plain, x)
    assert far(output, expected) < 1e-6
    assert far(x_gradient, expected_x_gradient) < 1e-6
    assert gradients.keys() == expected_gradients.keys()
    assert all(far(gradients[name], expected_gradients[name]) < 1e-6 for name in gradients)


def test_with_dropout_output_and_gradients_are_those_of_the_same_masks_written_out():
    _, fast, masks = adapters(dropout=0.3)
    fast.train()
    x = torch.randn(6, 24)
    masks.seed(5)
    output, x_gradient, gradients = run(fast, x)

    masks.seed(5)
    written = x.clone().requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in fast.named_parameters() if p.requires_grad}

    def layer(name, at):
        base = getattr(fast.base_model.model, name).base_layer
        a, b = (weights[f"base_model.model.{name}.lora_{letter}.default.weight"] for letter in "AB")
        return base(at) + 3 * (at * masks.draw(at, 0.3)) @ a.t() @ b.t()

    expected = layer("second", torch.tanh(layer("first", written)))
    expected.square().sum().backward()

    assert far(output, expected) < 1e-6
    assert far(x_gradient, written.grad) < 1e-6
    assert all(far(gradients[name], weights[name].grad) < 1e-5 for name in gradients)


def test_bf16_is_close_to_peft_and_gradients_come_back_in_fp32():
    plain, fast, _ = adapters(dtype=torch.bfloat16)
    x = torch.randn(9, 24).bfloat16()

    output, _, gradients = run(fast, x)

    expected, _, expected_gradients = run(plain, x)
    assert output.dtype is torch.bfloat16
    assert far(output.float(), expected.float()) < 0.02
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert all(far(gradients[name], expected_gradients[name].float()) < 0.03 for name in gradients)


def test_a_disabled_adapter_is_the_base_layer():
    plain, fast, _ = adapters()
    x = torch.randn(3, 24)

    with fast.disable_adapter(), plain.disable_adapter():
        assert torch.equal(fast(x), plain(x))
    assert not torch.equal(fast(x), plain.base_model.model.second.base_layer(torch.randn(3, 32)))


def test_layers_of_other_kinds_keep_their_own_forward():
    _, fast, masks = adapters(targets=("words", "first"))

    assert use_fast_lora(fast, masks, lambda: None) == 1
    assert type(fast.base_model.model.words) is peft_lora.Embedding
    assert "forward" not in vars(fast.base_model.model.words)


def test_weight_decomposed_layers_keep_their_own_forward():
    _, fast, masks = adapters(use_dora=True)

    assert use_fast_lora(fast, masks, lambda: None) == 0


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_drop_the_asked_share_and_keep_the_mean(probability, dtype):
    masks = DropoutMasks(CPU)
    masks.seed(3)
    count = 200_000

    mask = masks.draw(torch.empty(count, dtype=dtype), probability)

    dropped = (mask == 0).float().mean().item()
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(dropped - probability) < 5 * deviation + 1 / 65536
    assert mask.dtype is dtype
    assert mask[mask != 0].unique().item() == pytest.approx(1 / (1 - probability), rel=0.005)


def test_masks_of_neighbouring_values_are_independent():
    masks = DropoutMasks(CPU)
    masks.seed(3)
    mask = (masks.draw(torch.empty(400_000), 0.5) != 0).double() - 0.5

    correlations = [4 * (mask[:-lag] * mask[lag:]).mean().item() for lag in range(1, 9)]

    assert max(map(abs, correlations)) < 5 / 400_000**0.5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1023])
def test_a_mask_has_the_shape_that_was_asked(count):
    masks = DropoutMasks(CPU)
    masks.seed(0)

    assert masks.draw(torch.empty(1, count, 3), 0.2).shape == (1, count, 3)


def test_masks_are_drawn_again_from_their_seed_whatever_else_drew_numbers():
    masks, like = DropoutMasks(CPU), torch.empty(500)
    masks.seed(8)
    first = [masks.draw(like, 0.3) for _ in range(3)]

    torch.manual_seed(0)
    torch.rand(10)
    masks.seed(8)
    torch.rand(10)
    again = [masks.draw(like, 0.3) for _ in range(3)]
    masks.seed(9)

    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(masks.draw(like, 0.3), first[0])


def test_evaluating_drops_nothing_and_shifts_no_mask():
    _, fast, masks = adapters(dropout=0.4)
    x = torch.randn(5, 24)
    fast.train()
    masks.seed(2)
    first, second = fast(x), fast(x)

    masks.seed(2)
    again = fast(x)
    fast.eval()
    evaluated, evaluated_again = fast(x), fast(x)
    fast.train()
    after = fast(x)

    assert torch.equal(again, first)
    assert torch.equal(after, second)
    assert torch.equal(evaluated, evaluated_again)
    assert not torch.equal(evaluated, first)


class Heads(nn.Module):
    """Three layers that read one tensor, and one that reads what they make of it."""

    def __init__(self, bias):
        super().__init__()
        self.query = nn.Linear(24, 32, bias=bias)
        self.key = nn.Linear(24, 16, bias=bias)
        self.value = nn.Linear(24, 16, bias=bias)
        self.out = nn.Linear(32, 24, bias=bias)

    def forward(self, x):
        x = torch.tanh(x)
        return self.out(torch.cat([self.key(x) * self.value(x), self.query(x)[..., :16]], dim=-1))


def heads(bias=False, dropout=0.0, ranks=None):
    """Return PEFT's own net and ours, whose first three layers are one product."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=dropout,
        target_modules=["query", "key", "value", "out"],
        rank_pattern=ranks or {},
    )
    plain = get_peft_model(Heads(bias), config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    fast, masks = copy.deepcopy(plain), DropoutMasks(CPU)
    use_fast_lora(fast, masks, lambda: fast(torch.zeros(2, 24)))
    return plain, fast, masks


def stacked(model):
    """Return the names of layers by the storage of their base weights."""
    storages = {}
    for name in ("query", "key", "value", "out"):
        weight = getattr(model.base_model.model, name).base_layer.weight
        storages.setdefault(weight.untyped_storage().data_ptr(), []).append(name)
    return sorted(sorted(names) for names in storages.values())


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24)], ids=["rows", "batches"])
def test_layers_that_read_the_same_tensor_are_one_product_and_the_result_is_that_of_peft(bias, shape):
    plain, fast, _ = heads(bias)
    assert stacked(fast) == [["key", "query", "value"], ["out"]]
    x = torch.randn(shape)

    output, x_gradient, gradients = run(fast, x)

    expected, expected_x_gradient, expected_gradients = run(plain, x)
    assert far(output, expected) < 1e-6
    assert far(x_gradient, expected_x_gradient) < 1e-6
    assert gradients.keys() == expected_gradients.keys()
    assert all(far(gradients[name], expected_gradients[name]) < 1e-6 for name in gradients)


def test_layers_of_different_ranks_are_not_stacked():
    plain, fast, _ = heads(ranks={"key": 8})

    assert stacked(fast) == [["key"], ["out"], ["query", "value"]]
    assert far(fast(torch.ones(3, 24)), plain(torch.ones(3, 24))) < 1e-6


def test_layers_that_read_the_same_tensor_share_its_mask():
    _, fast, masks = heads(dropout=0.5)
    fast.train()
    x = torch.randn(6, 24)
    masks.seed(5)
    net = fast.base_model.model

    found = [getattr(net, name)(x) for name in ("query", "key", "value")]

    masks.seed(5)
    mask = masks.draw(x, 0.5)
    for name, output in zip(("query", "key", "value"), found, strict=True):
        layer = getattr(net, name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert far(output, layer.base_layer(x) + 3 * (x * mask) @ a.t() @ b.t()) < 1e-6


def test_stacked_layers_are_computed_again_for_each_pass():
    _, fast, _ = heads()
    x = torch.randn(3, 24)
    before = fast(x)
    with torch.no_grad():
        fast.base_model.model.key.lora_B["default"].weight.mul_(2)

    after = fast(x)

    assert not torch.equal(after, before)
    assert torch.equal(fast(x), after)


def test_weights_that_an_optimizer_or_a_load_changed_are_used_at_once():
    plain, fast, _ = heads()
    x = torch.randn(3, 24)
    started = {name: value.clone() for name, value in fast.state_dict().items()}
    outputs = []
    for model in (plain, fast):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
            model(x).square().sum().backward()
            optimizer.step()
        outputs.append(model(x))
    assert far(outputs[1], outputs[0]) < 1e-4

    fast.load_state_dict(started)
    fresh, _, _ = heads()
    assert far(fast(x), fresh(x)) < 1e-6


def test_the_state_of_a_stacked_model_is_that_of_peft():
    plain, fast, _ = heads(bias=True)

    assert all(torch.equal(value, fast.state_dict()[name]) for name, value in plain.state_dict().items())
    fast.load_state_dict(plain.state_dict())
    assert far(fast(torch.ones(2, 24)), plain(torch.ones(2, 24))) < 1e-6
