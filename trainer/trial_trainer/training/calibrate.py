"""How long a page takes here: a few steps and a few answered pages, timed, for the budget that is told beforehand."""

from __future__ import annotations

import time

from trial_trainer.artifacts import open_store
from trial_trainer.contract import TrialConfig
from trial_trainer.dataset.store import TRAIN, VALIDATION, read_index, read_split
from trial_trainer.evaluation.decode import answer_pages
from trial_trainer.model.load import add_adapter, choose_device, load_base
from trial_trainer.model.memory import must_fit
from trial_trainer.model.rows import MICRO_BATCH_TOKENS, build_row, micro_batches, step_groups
from trial_trainer.training.train import answer_loss

SECONDS_EACH = 8.0
"""Time that training and answering are each measured for, at least one page."""
ANSWERED_AT_ONCE = 4


def calibrate(config: TrialConfig) -> dict[str, float]:
    """Return ``train_seconds_per_page``, ``evaluate_seconds_per_page`` and ``start_seconds``.

    A page of training is a page with all its questions, forward and backward; of evaluation, all its questions
    answered by the untrained model, which decodes more than a trained one: the figure is an upper estimate.
    """
    started = time.monotonic()
    store = open_store(config.dataset)
    train_pages, validation_pages = read_split(store, TRAIN), read_split(store, VALIDATION)
    device = choose_device()
    with must_fit("the base model"):
        loaded = load_base(config.base_model, config.trainer, device, train_pages[0])
    loaded = add_adapter(loaded, config.arm, config.trainer, config.seed)
    start_seconds = time.monotonic() - started
    loaded.set_training(True)
    pages, step, began = 0.0, 0, time.monotonic()
    samples_a_page = sum(len(page.questions) for page in train_pages) / len(train_pages)
    while time.monotonic() - began < SECONDS_EACH:
        groups = step_groups(train_pages, step=step, batch_size=8, seed=config.seed)
        for batch in micro_batches(loaded.arrange(groups), MICRO_BATCH_TOKENS[device.type]):
            row = build_row(batch, device)
            answer_loss(loaded.logits(row), row).backward()  # type: ignore[no-untyped-call]
        if step == 0:
            # The first step warms up.
            began, pages = time.monotonic(), 0.0
        else:
            pages += sum(len(group.questions) for group in groups) / samples_a_page
        step += 1
    train_seconds = (time.monotonic() - began) / max(pages, 1.0)
    index = read_index(store)
    answered, began = 0, time.monotonic()
    while time.monotonic() - began < SECONDS_EACH and answered < len(validation_pages):
        chunk = validation_pages[answered : answered + ANSWERED_AT_ONCE]
        answer_pages(loaded, chunk, index)
        answered += len(chunk)
    return {
        "train_seconds_per_page": train_seconds,
        "evaluate_seconds_per_page": (time.monotonic() - began) / max(answered, 1),
        "start_seconds": start_seconds,
    }
