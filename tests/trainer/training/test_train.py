"""The loss of a step is the same however its pages are grouped, accumulated or dealt to ranks."""

import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builders.tiny_models import (
    ARM,
    a_page,
    distance,
    groups_of,
    load_random_model,
    loss_and_gradients,
    settings,
    with_adapter,
)
from trial_trainer.contract import BaseModel, TrialConfig
from trial_trainer.errors import ArmError, Diverged, StudyError
from trial_trainer.model.load import LoadedModel, adapter_parameters, add_adapter
from trial_trainer.model.memory import is_out_of_memory
from trial_trainer.model.rows import build_row, draw_groups, separate, share_among_ranks, step_groups
from trial_trainer.training import train as train_module
from trial_trainer.training.checkpoint import Identity, UntrainedLoss
from trial_trainer.training.train import UNTRAINED_SAMPLES, _Run, answer_loss, exploded_loss, has_unlearnt

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


def a_run(loaded, *, learning_rate=1e-3, row_tokens=1536, pages=PAGES, batch_size=BATCH):
    arm = {"learning_rate": learning_rate, "batch_size": batch_size}
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
        pages=tuple(pages),
        identity=Identity(seed=0, arm=arm, total_steps=20, dataset="", ranks=1),
        attempt="a",
        batch_size=batch_size,
        peak_learning_rate=learning_rate,
        warmup_percent=10.0,
        row_tokens=row_tokens,
        untrained=UntrainedLoss(mean=6.0, deviation=1.0),
    )


@pytest.mark.parametrize("row_tokens", [1, 120, 10**6])
def test_steps_have_the_same_losses_however_they_are_accumulated(tmp_path, row_tokens):
    reference = a_run(with_adapter(load_random_model(tmp_path / "reference", "llama")))
    for _ in range(4):
        reference.train_step()

    run = a_run(with_adapter(load_random_model(tmp_path / "accumulated", "llama")), row_tokens=row_tokens)
    for _ in range(4):
        run.train_step()

    assert run.losses == pytest.approx(reference.losses, rel=1e-5)
    assert run.samples_seen == 4 * BATCH


def test_the_loss_of_a_step_is_the_mean_over_its_samples(loaded, step):
    summed, _ = loss_and_gradients(loaded, step)
    run = a_run(loaded)
    loaded.module.zero_grad()

    run.train_step()

    assert run.losses == pytest.approx([summed / BATCH], rel=1e-5)


def test_training_lowers_the_loss_and_moves_no_base_weight(tmp_path):
    loaded = with_adapter(load_random_model(tmp_path, "llama"))
    base = {name: p.clone() for name, p in loaded.module.named_parameters() if not p.requires_grad}
    run = a_run(loaded, learning_rate=3e-2)

    for _ in range(8):
        run.train_step()

    assert run.losses[-1] < 0.9 * run.losses[0]
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
        return run.losses[-1]

    assert second_loss(evaluate=True) == second_loss(evaluate=False)


# --- Faults --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_divergence_that_names_the_step(loaded):
    with torch.no_grad():
        next(iter(adapter_parameters(loaded.module).values())).fill_(float("nan"))

    with pytest.raises(Diverged, match="the loss of step 1 is nan"):
        a_run(loaded).train_step()


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([2.0] + [6.4] * 9, False),
        ([2.0] * 3 + [6.5] * 10, True),
        ([6.5] * 10, True),
        ([0.1] * 2 + [5.5] * 20, False),
        ([2.0] + [100.0] * 3, False),
        ([2.0] * 20 + [43.0], True),
        ([2.0] * 20 + [41.0], False),
    ],
    ids=[
        "a mean that still holds an early step",
        "ten steps over three times the untrained loss",
        "from the first step on",
        "a first step with an easy batch",
        "fewer than ten steps",
        "one step far out",
        "one step not far enough",
    ],
)
def test_exploding_is_a_mean_of_ten_steps_far_over_the_untrained_loss(loaded, losses, diverges):
    run = a_run(loaded)
    run.untrained = UntrainedLoss(mean=2.0, deviation=1.0)

    def feed():
        for loss in losses:
            run._refuse_divergence(loss)

    if diverges:
        with pytest.raises(Diverged, match=r"over 6\.000; untrained it was 2\.000"):
            feed()
    else:
        feed()


@pytest.mark.parametrize(
    ("mean", "deviation", "batch_size", "expected"),
    [(4.0, 4.0, 8, 12.0), (4.0, 4.0, 1, 4 + 40 / 10**0.5), (0.2, 0.1, 8, 3.2)],
    ids=["three times", "ten standard errors, where a step is one sample", "three nats, where hardly any are lost"],
)
def test_the_limit_is_the_highest_of_three(mean, deviation, batch_size, expected):
    assert exploded_loss(UntrainedLoss(mean=mean, deviation=deviation), batch_size) == pytest.approx(expected)


REAL_LOSSES = (
    *(0.4, 0.8, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.2, 2.3, 2.6, 3.0, 3.3),
    *(3.5, 3.8, 4.0, 4.2, 4.7, 5.0, 6.6, 8.5, 11.1, 11.5, 12.2, 12.9, 14.2),
)
"""Of single samples: what an untrained model of 135 million parameters loses on pages of sites, in nats per token."""


@pytest.mark.parametrize("batch_size", [1, 4, 8, 16, 32])
def test_a_model_that_learns_nothing_never_gets_there(batch_size):
    draw = random.Random(batch_size)
    by_the_first_batch = 0
    for _ in range(200):
        fixed = draw.choices(REAL_LOSSES, k=UNTRAINED_SAMPLES)
        untrained = UntrainedLoss(mean=statistics.fmean(fixed), deviation=statistics.pstdev(fixed))
        steps = [statistics.fmean(draw.choices(REAL_LOSSES, k=batch_size)) for _ in range(600 // batch_size)]
        means = [statistics.fmean(steps[i : i + 10]) for i in range(len(steps) - 9)]
        assert max(means) < exploded_loss(untrained, batch_size)
        by_the_first_batch += max(means) > 3 * steps[0]
    # A limit from the first batch is one by luck.
    assert (by_the_first_batch > 40) is (batch_size == 1)


@pytest.mark.parametrize("is_alike", [True, False], ids=["pages of one loss", "questions that differ"])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 16, 32])
def test_only_a_model_that_got_worse_has_unlearnt(batch_size, is_alike):
    draw, questions = random.Random(batch_size), 4

    def draw_losses(samples):
        if not is_alike:
            return draw.choices(REAL_LOSSES, k=samples)
        return [loss for loss in draw.choices(REAL_LOSSES, k=-(-samples // questions)) for _ in range(questions)][
            :samples
        ]

    by_chance = 0
    for _ in range(1000):
        fixed = draw_losses(UNTRAINED_SAMPLES)
        untrained = UntrainedLoss(mean=statistics.fmean(fixed), deviation=statistics.pstdev(fixed))
        found = draw_losses(10 * batch_size)
        steps = [statistics.fmean(found[i::10]) for i in range(10)]
        how = {"batch_size": batch_size, "questions_per_page": float(questions)}
        by_chance += has_unlearnt(steps, untrained, **how)
        assert has_unlearnt([3 * untrained.mean + 3 * untrained.deviation] * 10, untrained, **how)
    assert by_chance <= 15
    assert not has_unlearnt([], untrained, **how)


def test_the_untrained_loss_is_that_of_the_model_without_an_adapter_on_samples_that_the_seed_draws(
    tmp_path, monkeypatch
):
    loaded = load_random_model(tmp_path, "llama")
    groups = draw_groups(PAGES, samples=9, seed=0)
    rows = [build_row([one], loaded.device) for one in separate(groups)]
    losses = [float(answer_loss(loaded.logits(row), row)) for row in rows]
    expected = torch.tensor(losses, dtype=torch.float64)

    # A dropout that would show, were it in use.
    monkeypatch.setattr(train_module, "UNTRAINED_SAMPLES", 9)
    run = a_run(add_adapter(loaded, ARM | {"lora_dropout": 0.9}, settings(), 0))

    assert len(losses) >= 9
    assert run.measure_untrained().mean == pytest.approx(float(expected.mean()), rel=1e-5)
    assert run.measure_untrained().deviation == pytest.approx(float(expected.std(correction=0)), rel=1e-4)
    assert draw_groups(PAGES, samples=9, seed=1) != groups


def test_a_model_whose_untrained_loss_is_no_number_is_the_studys_fault(loaded):
    with torch.no_grad():
        next(iter(adapter_parameters(loaded.module).values())).fill_(float("nan"))

    with pytest.raises(StudyError, match="the untrained model's loss must be finite, got nan"):
        a_run(loaded).measure_untrained()


# --- Memory --------------------------------------------------------------------------------------------------------


FAILURES = {
    "an accelerator's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "a processor's": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
}


def with_room_for(monkeypatch, tokens, error=FAILURES["a processor's"], seen=None, is_concerned=lambda loaded: True):
    """Let every row of more tokens fail, half of them after the forward pass."""
    logits = LoadedModel.logits

    def limited(self, row):
        if seen is not None:
            seen.append(row.tokens)
        if row.tokens > tokens and is_concerned(self):
            if row.tokens % 2:
                raise error
            found = logits(self, row)
            found.register_hook(lambda gradient: (_ for _ in ()).throw(error))
            return found
        return logits(self, row)

    monkeypatch.setattr(LoadedModel, "logits", limited)


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("room", [80, 120, 200])
def test_rows_that_do_not_fit_are_halved_and_change_neither_loss_nor_gradient(tmp_path, monkeypatch, error, room):
    runs = [
        a_run(with_adapter(load_random_model(tmp_path / name, "llama"), lora_dropout=0.3)) for name in ("all", "half")
    ]
    expected, found = runs
    for _ in range(3):
        expected.train_step()
    seen = []
    with_room_for(monkeypatch, room, error, seen)
    for _ in range(3):
        found.train_step()

    assert max(seen) > room
    assert found.row_tokens <= room < expected.row_tokens
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.tokens_trained >= expected.tokens_trained
    for name, parameter in found.parameters.items():
        assert torch.allclose(parameter, expected.parameters[name], atol=1e-5), name


WITH_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from test_train import a_run, load_random_model, with_adapter, a_page

pages = [a_page(number, questions=4, tokens=400) for number in range(12)]
loaded = with_adapter(load_random_model(Path(sys.argv[1]), "llama"), lora_dropout=0.1)
run = a_run(loaded, row_tokens=10**6, pages=pages, batch_size=48)
if sys.argv[2] == "little":
    status = Path("/proc/self/status").read_text().split()
    limit = int(status[status.index("VmSize:") + 1]) * 1024 + 10 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run.train_step()
run.train_step()
print(run.row_tokens, *run.losses)
"""


@pytest.mark.slow
def test_a_process_that_really_lacks_memory_trains_on_with_shorter_rows_to_the_same_losses(tmp_path):
    def train(room):
        command = [sys.executable, "-c", WITH_LITTLE_ROOM, str(tmp_path / room), room]
        paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
        ended = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        row_tokens, *losses = map(float, ended.stdout.split())
        return row_tokens, losses

    _, expected = train("all")
    row_tokens, losses = train("little")

    assert row_tokens < 12 * 400
    assert losses == pytest.approx(expected, rel=1e-5)


def test_rows_that_were_halved_stay_so_and_it_is_said_once_for_each(loaded, monkeypatch, caplog):
    seen = []
    with_room_for(monkeypatch, 120, seen=seen)
    run = a_run(loaded)
    for _ in range(4):
        run.train_step()
    message = len(caplog.messages)
    assert 1 <= message == sum(tokens > 120 for tokens in seen) <= 4

    seen.clear()
    run.step = 0
    for _ in range(4):
        run.train_step()

    assert max(seen) <= 120
    assert len(caplog.messages) == message
    assert "does not fit into memory; from now on rows have" in caplog.messages[0]


@pytest.mark.slow
def test_a_sample_that_does_not_fit_with_the_smallest_adapter_is_the_studys_fault(loaded, monkeypatch):
    with_room_for(monkeypatch, 10)

    with pytest.raises(StudyError, match="one sample of up to 512 tokens does not fit into memory, even with an ad"):
        a_run(loaded).train_step()


@pytest.mark.slow
def test_a_sample_that_does_not_fit_with_this_adapter_is_the_arms_fault(tmp_path, monkeypatch):
    loaded = with_adapter(load_random_model(tmp_path, "llama"), lora_rank=8, lora_dropout=0.3)
    with_room_for(monkeypatch, 10, is_concerned=lambda loaded: loaded.module.peft_config["default"].r > 1)

    with pytest.raises(ArmError, match="does not fit into memory with this adapter; with one of rank 1 it does"):
        a_run(loaded).train_step()


@pytest.mark.parametrize("name", ["llama", "mistral, sliding window"])
@pytest.mark.parametrize("row_tokens", [1, 60, 150, 400])
def test_dropout_masks_do_not_depend_on_rows(tmp_path, name, row_tokens):
    def two_losses(row_tokens, where):
        loaded = with_adapter(load_random_model(tmp_path / where, name), lora_dropout=0.4)
        run = a_run(loaded, row_tokens=row_tokens)
        run.train_step()
        run.train_step()
        return run.losses

    whole = two_losses(10**6, "whole")

    assert two_losses(row_tokens, "cut") == pytest.approx(whole, rel=1e-5)


def test_masks_differ_by_seed_step_page_question_and_place():
    pages = [a_page(1, questions=2), a_page(2, questions=1)]
    row = build_row(groups_of(pages), torch.device("cpu"), "0/5")
    others = [build_row(groups_of(pages), torch.device("cpu"), seed) for seed in ("0/6", "1/5")]

    keys = torch.cat([row.mask_keys, *(other.mask_keys for other in others)])

    assert len(row.mask_keys) == row.tokens
    assert len(keys.unique()) == len(keys) == 3 * row.tokens


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
