"""The loss of a step is the same however its pages are grouped, accumulated or dealt to ranks."""

import itertools
from pathlib import Path

import pytest
import torch

from tiny_models import a_page, distance, groups_of, load_random_model, loss_and_gradients, settings, with_adapter
from trial_trainer import train as train_module
from trial_trainer.checkpoint import Identity
from trial_trainer.contract import BaseModel, TrialConfig
from trial_trainer.data import build_row, separate, share_among_ranks, step_groups
from trial_trainer.errors import ArmError, Diverged
from trial_trainer.model import adapter_parameters
from trial_trainer.train import _mask_seed, _Run, answer_loss, is_out_of_memory

PAGES = [a_page(number, questions=1 + number % 5) for number in range(8)]
BATCH = 13


@pytest.fixture
def loaded(tmp_path: Path):
    return with_adapter(load_random_model(tmp_path, "llama"))


@pytest.fixture
def step():
    return step_groups(PAGES, step=0, batch_size=BATCH, seed=0)


def test_it_is_the_sum_over_samples_of_the_mean_over_their_tokens(loaded):
    row = build_row(groups_of(PAGES), loaded.device)
    logits = torch.randn(len(row.labels), 259)

    losses = -torch.log_softmax(logits, dim=-1)[torch.arange(len(row.labels)), row.labels]
    expected = sum(losses[row.sample_of_label == sample].mean() for sample in range(row.samples))

    assert answer_loss(logits, row).item() == pytest.approx(expected.item(), rel=1e-6)


def test_it_is_computed_in_fp32_from_logits_of_any_type():
    row = build_row(groups_of(PAGES[:2]), torch.device("cpu"))
    logits = torch.randn(len(row.labels), 259).bfloat16()

    assert answer_loss(logits, row).dtype is torch.float32
    assert answer_loss(logits, row).item() == answer_loss(logits.float(), row).item()


@pytest.mark.parametrize("row_tokens", [1, 60, 150, 400, 10**6])
def test_rows_of_any_length_give_the_same_loss_and_gradients(loaded, step, row_tokens):
    expected, expected_gradients = loss_and_gradients(loaded, step)

    found, gradients = loss_and_gradients(loaded, step, row_tokens)

    assert found == pytest.approx(expected, rel=1e-5)
    assert distance(gradients, expected_gradients) < 1e-5


def test_groups_in_any_order_and_samples_apart_give_the_same_loss_and_gradients(loaded, step):
    expected, expected_gradients = loss_and_gradients(loaded, step)

    for arranged in (step[::-1], separate(step), separate(step)[::-1], step[3:] + separate(step[:3])):
        found, gradients = loss_and_gradients(loaded, arranged, 200)
        assert found == pytest.approx(expected, rel=1e-5)
        assert distance(gradients, expected_gradients) < 1e-5


@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_the_shares_of_ranks_add_up_to_the_same_loss_and_gradients(loaded, step, ranks):
    expected, expected_gradients = loss_and_gradients(loaded, step)

    total, summed = 0.0, {name: torch.zeros_like(p) for name, p in expected_gradients.items()}
    for share in share_among_ranks(step, ranks):
        if share:
            found, gradients = loss_and_gradients(loaded, share, 200)
            total += found
            summed = {name: summed[name] + gradients[name] for name in summed}

    assert total == pytest.approx(expected, rel=1e-5)
    assert distance(summed, expected_gradients) < 1e-5


# --- The step itself ---------------------------------------------------------------------------------------------


class OneRank:
    """As much of an accelerator as one process needs."""

    num_processes = 1
    process_index = 0
    is_main_process = True


def a_run(loaded, *, learning_rate=1e-3):
    arm = {"learning_rate": learning_rate, "batch_size": BATCH}
    parameters = adapter_parameters(loaded.module)
    config = TrialConfig(
        study="s",
        trial="t001",
        rung=0,
        seed=0,
        arm=arm,
        base_model=BaseModel(uri="nowhere"),
        dataset="nowhere",
        output="nowhere",
        total_steps=20,
        stop_step=4,
        trainer=settings(),
    )
    return _Run(
        config=config,
        store=None,
        accelerator=OneRank(),
        loaded=loaded,
        parameters=parameters,
        optimizer=torch.optim.AdamW(list(parameters.values()), lr=0.0, weight_decay=0.0),
        pages=tuple(PAGES),
        identity=Identity(seed=0, arm=arm, total_steps=20, dataset="", ranks=1),
        attempt="a",
        batch_size=BATCH,
        peak_learning_rate=learning_rate,
        warmup_percent=10.0,
    )


@pytest.mark.parametrize("row_tokens", [1, 120, 10**6])
def test_steps_have_the_same_losses_however_they_are_accumulated(tmp_path, row_tokens, monkeypatch):
    reference = a_run(with_adapter(load_random_model(tmp_path / "reference", "llama")))
    for _ in range(4):
        reference.train_step()

    monkeypatch.setitem(train_module.MICRO_BATCH_TOKENS, "cpu", row_tokens)
    run = a_run(with_adapter(load_random_model(tmp_path / "accumulated", "llama")))
    for _ in range(4):
        run.train_step()

    assert run.recent_losses == pytest.approx(reference.recent_losses, rel=1e-5)
    assert run.samples_seen == 4 * BATCH


def test_the_loss_of_a_step_is_the_mean_over_its_samples(loaded, step):
    summed, _ = loss_and_gradients(loaded, step)
    run = a_run(loaded)
    loaded.module.zero_grad()

    run.train_step()

    assert run.first_loss == pytest.approx(summed / BATCH, rel=1e-5)


def test_training_lowers_the_loss_and_moves_no_base_weight(tmp_path):
    loaded = with_adapter(load_random_model(tmp_path, "llama"))
    base = {name: p.clone() for name, p in loaded.module.named_parameters() if not p.requires_grad}
    run = a_run(loaded, learning_rate=3e-2)

    for _ in range(8):
        run.train_step()

    assert run.recent_losses[-1] < 0.9 * run.first_loss
    assert all(torch.equal(p, base[name]) for name, p in loaded.module.named_parameters() if name in base)


def test_a_step_uses_the_same_dropout_masks_whatever_was_evaluated_before_it(tmp_path):
    def second_loss(evaluate):
        run = a_run(with_adapter(load_random_model(tmp_path / str(evaluate), "llama"), lora_dropout=0.3))
        run.train_step()
        if evaluate:
            run.loaded.module.eval()
            with torch.no_grad():
                run.loaded.logits(build_row(groups_of(PAGES), run.loaded.device))
            torch.rand(5)
        run.train_step()
        return run.recent_losses[-1]

    assert second_loss(evaluate=True) == second_loss(evaluate=False)


def test_masks_are_seeded_apart_for_every_seed_step_micro_step_and_rank():
    seeds = {_mask_seed(*where) for where in itertools.product(range(4), range(9), range(5), range(3))}

    assert len(seeds) == 4 * 9 * 5 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- Faults --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_divergence_that_names_the_step(loaded):
    with torch.no_grad():
        next(iter(adapter_parameters(loaded.module).values())).fill_(float("nan"))

    with pytest.raises(Diverged, match="the loss of step 1 is nan"):
        a_run(loaded).train_step()


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([1.0] + [3.2] * 9, False),
        ([1.0] + [3.2] * 10, True),
        ([1.0] + [100.0] * 3, False),
        ([2.0] * 30, False),
        ([1.0] * 20 + [31.1], True),
        ([1.0] * 20 + [30.9], True),
        ([1.0] * 20 + [20.9], False),
    ],
    ids=[
        "the first step is still in the window",
        "ten steps over three times the first",
        "fewer than ten steps",
        "level",
        "one step far out",
        "one step just far enough",
        "one step not far enough",
    ],
)
def test_exploding_is_a_mean_of_ten_steps_over_three_times_the_first(loaded, losses, diverges):
    run = a_run(loaded)

    def feed():
        for loss in losses:
            run._refuse_divergence(loss)

    if diverges:
        with pytest.raises(Diverged, match="over 3 times the first step's"):
            feed()
    else:
        feed()


def test_running_out_of_memory_is_the_arms_fault(loaded, monkeypatch):
    def allocate(row):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(type(loaded), "logits", lambda self, row: allocate(row))

    with pytest.raises(ArmError, match="batch_size 13 with this adapter does not fit"):
        a_run(loaded).train_step()


def test_other_errors_are_not_taken_for_memory(loaded, monkeypatch):
    def fail(self, row):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(loaded), "logits", fail)

    with pytest.raises(RuntimeError, match="mat1"):
        a_run(loaded).train_step()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("expected scalar type Float but found BFloat16"), False),
        (ValueError("memory"), False),
    ],
    ids=["python", "cuda", "cpu", "c++", "cublas", "a type", "a word"],
)
def test_memory_errors_are_known_by_their_words(error, expected):
    assert is_out_of_memory(error) is expected
