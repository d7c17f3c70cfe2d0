"""The final evaluation with real models; `final` itself knows no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from trial_trainer.contract import Candidate, FinalEvaluationConfig
from trial_trainer.dataset.store import DatasetIndex, Page
from trial_trainer.evaluation.final import run_final_evaluation
from trial_trainer.evaluation.measure import Prediction
from trial_trainer.evaluation.predict import predict
from trial_trainer.model.load import choose_device, load_adapter, load_base
from trial_trainer.model.memory import must_fit


def evaluate_with_models(config: FinalEvaluationConfig) -> None:
    """Read the test set once and write the final evaluation."""

    def answer(candidate: Candidate | None, pages: Sequence[Page], index: DatasetIndex) -> list[Prediction]:
        page = max(pages, key=lambda page: len(page.questions))
        with must_fit("the base model"):
            loaded = load_base(config.base_model, config.trainer, choose_device(), page)
        if candidate is None:
            return predict(loaded, pages, index, config.base_model)
        with tempfile.TemporaryDirectory() as directory:
            return predict(load_adapter(loaded, candidate.adapter, Path(directory)), pages, index, config.base_model)

    run_final_evaluation(config, answer=answer)
