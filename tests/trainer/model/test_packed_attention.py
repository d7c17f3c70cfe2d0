"""Attention over a row of pages, against one dense product under a mask that is written down token by token."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from trial_trainer.errors import UnsupportedAttentionError
from trial_trainer.model.packed_attention import (
    ROWS_PER_BLOCK,
    PackedAttention,
    Segment,
    _attend,
    _stand_in_for_mask,
    attending,
    causal_mask,
    checking_masks,
    masked_attention,
    repeat_heads,
)

CPU = torch.device("cpu")


def lay_out(sizes):
    """Return segments behind each other, from (prefix, branches) pairs."""
    segments, start = [], 0
    for prefix, branches in sizes:
        segments.append(Segment(start=start, prefix_tokens=prefix, branch_tokens=tuple(branches)))
        start = segments[-1].end
    return segments


def may_see(segments):
    """Return the (tokens, tokens) table of who sees whom, from its definition."""
    home = []
    for page, segment in enumerate(segments):
        home += [(page, None)] * segment.prefix_tokens
        home += [(page, branch) for branch, tokens in enumerate(segment.branch_tokens) for _ in range(tokens)]
    return torch.tensor(
        [
            [key <= query and home[key][0] == page and home[key][1] in {None, branch} for key in range(len(home))]
            for query, (page, branch) in enumerate(home)
        ]
    )


def states(tokens, heads=4, key_heads=2, size=8):
    torch.manual_seed(tokens)
    query = torch.randn(1, heads, tokens, size, requires_grad=True)
    key, value = (torch.randn(1, key_heads, tokens, size, requires_grad=True) for _ in range(2))
    return query, key, value


def dense(query, key, value, segments, scaling):
    heads = query.shape[1]
    return F.scaled_dot_product_attention(
        query, repeat_heads(key, heads), repeat_heads(value, heads), attn_mask=may_see(segments), scale=scaling
    )


pages = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 5), max_size=4))


@given(sizes=st.lists(pages, min_size=1, max_size=4), heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]))
def test_every_token_sees_its_page_and_its_own_branch_up_to_itself_and_nothing_else(sizes, heads):
    segments = lay_out(sizes)
    query, key, value = states(segments[-1].end, *heads)

    found = PackedAttention(segments, device=CPU, dtype=torch.float32).attend(0, query, key, value, 0.3)

    assert torch.allclose(found, dense(query, key, value, segments, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", [1, ROWS_PER_BLOCK - 1, ROWS_PER_BLOCK, ROWS_PER_BLOCK + 1, 2 * ROWS_PER_BLOCK + 7])
def test_a_page_at_the_edges_of_a_block_is_computed_whole_with_its_gradients(prefix):
    segments = lay_out([(3, [2]), (prefix, [4, 1, 3]), (5, [])])
    query, key, value = states(segments[-1].end)
    weights = torch.randn(1, 4, segments[-1].end, 8)

    found = PackedAttention(segments, device=CPU, dtype=torch.float32).attend(0, query, key, value, 0.35)
    gradients = torch.autograd.grad((found * weights).sum(), (query, key, value))

    expected = dense(query, key, value, segments, 0.35)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-5)


def test_values_may_be_wider_than_keys():
    query, key, _ = states(6)
    value = torch.randn(1, 2, 6, 12)
    segments = lay_out([(4, [1, 1])])

    found = PackedAttention(segments, device=CPU, dtype=torch.float32).attend(0, query, key, value, 1.0)

    assert torch.allclose(found, dense(query, key, value, segments, 1.0), rtol=1e-5, atol=1e-6)


def test_plain_products_equal_the_fused_kernel_for_batches():
    query, key, value = torch.randn(3, 4, 2, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    mask = causal_mask(2, 5, CPU, torch.float32)

    found = masked_attention(query, key, value, mask, 0.2)

    fused = F.scaled_dot_product_attention(
        query, repeat_heads(key, 4), repeat_heads(value, 4), attn_mask=mask, scale=0.2
    )
    assert torch.allclose(found, fused, rtol=1e-5, atol=1e-6)


def test_the_causal_mask_is_that_of_the_last_rows():
    visible = causal_mask(2, 4, CPU, torch.float32) == 0

    assert visible.tolist() == [[True, True, True, False], [True, True, True, True]]


class Recording:
    """Answers with the query and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def attend(self, layer, query, key, value, scaling):
        self.asked.append((layer, scaling))
        return query


class Layer(torch.nn.Module):
    layer_idx = 3


def test_a_forward_pass_outside_attending_is_refused():
    with pytest.raises(UnsupportedAttentionError, match="outside"):
        _attend(Layer(), *states(4), None)


def test_the_innermost_attention_is_used_and_the_outer_one_comes_back():
    outer, inner = Recording(), Recording()
    with attending(outer):
        with attending(inner), pytest.raises(UnsupportedAttentionError):
            _attend(Layer(), *states(4), None, softcap=1.0)
        with attending(inner):
            _attend(Layer(), *states(4), None)
        _attend(Layer(), *states(4), None, scaling=2.0)

    assert inner.asked == [(3, 8**-0.5)]
    assert outer.asked == [(3, 2.0)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(4)}, "position_bias"),
        ({"dropout": 0.1}, "dropout"),
    ],
    ids=["capped scores", "sinks", "a bias", "attention dropout"],
)
def test_what_is_not_computed_is_refused_by_name(options, named):
    with attending(Recording()), pytest.raises(UnsupportedAttentionError, match=named):
        _attend(Layer(), *states(4), None, **options)


def test_a_mask_that_a_model_made_itself_is_refused():
    with attending(Recording()), pytest.raises(UnsupportedAttentionError, match="mask"):
        _attend(Layer(), *states(4), torch.zeros(1, 1, 4, 4))


def test_a_window_is_refused_where_a_sample_is_longer():
    with attending(Recording()), checking_masks(128):
        _attend(Layer(), *states(4), None, sliding_window=128)
    with attending(Recording()), checking_masks(129), pytest.raises(UnsupportedAttentionError, match="sliding_window"):
        _attend(Layer(), *states(4), None, sliding_window=128)


@pytest.mark.parametrize(
    ("mask", "is_refused"),
    [
        (causal_mask_function, False),
        (sliding_window_causal_mask_function(100), False),
        (sliding_window_causal_mask_function(99), True),
        (chunked_causal_mask_function(64, torch.zeros(1, dtype=torch.long)), True),
        (chunked_causal_mask_function(128, torch.zeros(1, dtype=torch.long)), False),
        (bidirectional_mask_function, True),
    ],
    ids=["causal", "a window as long", "a shorter window", "shorter chunks", "chunks as long", "looking ahead"],
)
def test_a_mask_is_refused_that_is_not_causal_for_samples_of_100_tokens(mask, is_refused):
    options = {"q_length": 4, "kv_length": 4, "mask_function": mask}
    with checking_masks(100):
        assert (_stand_in_for_mask(**options) is not None) == is_refused
    assert _stand_in_for_mask(**options) is None


def test_attention_that_looks_ahead_is_refused():
    layer = Layer()
    layer.is_causal = False

    with attending(Recording()), pytest.raises(UnsupportedAttentionError):
        _attend(layer, *states(4), None)
