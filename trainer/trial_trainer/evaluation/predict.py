"""A model's answers as text, ready to be measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import BaseModel
from trial_trainer.dataset.store import DatasetIndex, Page
from trial_trainer.evaluation.decode import answer_pages
from trial_trainer.evaluation.measure import Prediction, build_prediction
from trial_trainer.model.load import LoadedModel


def predict(
    loaded: LoadedModel,
    pages: Sequence[Page],
    index: DatasetIndex,
    base_model: BaseModel,
    tell: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Answer every question of every page, in dataset order; tell now and then how many are answered."""
    tokenizer = _tokenizer(base_model)
    predictions = []
    for answered in answer_pages(loaded, pages, index, tell):
        page = pages[answered.page]
        predictions.append(
            build_prediction(
                page,
                page.questions[answered.question],
                answer=tokenizer.decode(answered.tokens, skip_special_tokens=True).strip(),
                finished=answered.finished,
                loss=answered.loss,
                answer_tokens=answered.answer_tokens,
            )
        )
    return predictions


@functools.lru_cache(maxsize=1)
def _tokenizer(base_model: BaseModel) -> Any:
    return load_tokenizer(base_model)
