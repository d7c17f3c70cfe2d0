"""Questions put to real models, and the final evaluation with them; `final` itself knows no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import BaseModel, Candidate, FinalEvaluationConfig, TrainerSettings
from trial_trainer.dataset.prompts import Prompter
from trial_trainer.dataset.store import DatasetIndex, Page
from trial_trainer.evaluation.final import run_final_evaluation
from trial_trainer.evaluation.measure import Prediction
from trial_trainer.evaluation.predict import predict
from trial_trainer.model.load import choose_device, load_adapter, load_base
from trial_trainer.model.memory import must_fit


def evaluate_with_models(config: FinalEvaluationConfig) -> None:
    """Read the test set once and write the final evaluation."""

    def answer(
        candidate: Candidate | None, pages: Sequence[Page], index: DatasetIndex, tell: Callable[[int], None]
    ) -> list[Prediction]:
        adapter = None if candidate is None else candidate.adapter
        return ask_model(config.base_model, config.trainer, adapter, pages, index, tell)

    prompter = Prompter(load_tokenizer(config.base_model))

    def read_text(page: Page) -> str | None:
        return prompter.read_text(page.prefix, page.questions[0].attribute)

    run_final_evaluation(config, answer=answer, read_text=read_text)


def ask_model(
    base_model: BaseModel,
    settings: TrainerSettings,
    adapter: str | None,
    pages: Sequence[Page],
    index: DatasetIndex,
    tell: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Load a model, with the adapter at a URI or untrained, and answer every question of the pages."""
    page = max(pages, key=lambda page: len(page.questions))
    with must_fit("the base model"):
        loaded = load_base(base_model, settings, choose_device(), page)
    if adapter is None:
        return predict(loaded, pages, index, base_model, tell)
    with tempfile.TemporaryDirectory() as directory:
        return predict(load_adapter(loaded, adapter, Path(directory)), pages, index, base_model, tell)
