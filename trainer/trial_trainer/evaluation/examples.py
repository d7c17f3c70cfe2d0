"""A few pages of the test set as people read them: the text, and beside each expected value what was answered.

Called by the final evaluation with the answers that it has; chosen and written down here, so that whoever shows them
needs neither tokenizer nor rules. Nothing here knows models. The pages are examples and no estimate of anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from trial_trainer.contract import ExampleKind, ExamplePage, ExampleQuestion, Examples
from trial_trainer.dataset.store import Page, Question
from trial_trainer.evaluation.measure import Prediction, is_answered_right

PAGES_OF_A_KIND: Final = 3
MOST_LINES = 200
"""Of one page's text; what follows is left out."""
MOST_CHARACTERS = 300
"""Of one line, one answer, one value."""
MOST_MARKED = 8
"""Lines in which a value stands: a currency's sign may stand in all of them."""
MOST_QUESTIONS = 40

ReadText = Callable[[Page], str | None]
"""Return the text of a page as its questions show it; None where that cannot be told."""


def choose_examples(
    pages: Sequence[Page], predictions: Mapping[str, Sequence[Prediction]], reference: str, read_text: ReadText
) -> Examples:
    """Choose up to three pages of each kind, in an order that the pages' names alone decide.

    Args:
        pages: of the test set, in its order.
        predictions: by predictor, the answers to all questions in that order; ``winner`` is one of them.
        reference: the predictor that kinds compare the winner with.
        read_text: see `ReadText`.
    """
    right = {name: [is_answered_right(p) for p in given] for name, given in predictions.items()}
    first_by_page, asked = [], 0
    for page in pages:
        first_by_page.append(asked)
        asked += len(page.questions)

    # Each page is of every kind that one of its questions makes it; the rarest news is shown first.
    kinds_by_page: list[set[ExampleKind]] = []
    for page, first in zip(pages, first_by_page, strict=True):
        pairs = [(right["winner"][i], right[reference][i]) for i in range(first, first + len(page.questions))]
        kinds_by_page.append({_name_kind(*pair) for pair in pairs})
    order = sorted(range(len(pages)), key=lambda i: hashlib.sha256(pages[i].id.encode()).digest())
    chosen: dict[int, ExampleKind] = {}
    for kind in ExampleKind:
        of_kind = [i for i in order if kind in kinds_by_page[i] and i not in chosen]
        chosen |= dict.fromkeys(of_kind[:PAGES_OF_A_KIND], kind)

    return Examples(
        reference=reference,
        pages=tuple(
            _build_page(pages[i], kind, _list_questions(pages[i], first_by_page[i], predictions, right), read_text)
            for i, kind in chosen.items()
        ),
        pages_by_kind={kind: sum(kind in kinds for kinds in kinds_by_page) for kind in ExampleKind},
        pages_in_all=len(pages),
    )


def _name_kind(is_winner_right: bool, is_reference_right: bool) -> ExampleKind:
    if is_winner_right:
        return ExampleKind.BOTH_RIGHT if is_reference_right else ExampleKind.GAINED
    return ExampleKind.LOST if is_reference_right else ExampleKind.BOTH_WRONG


def _list_questions(
    page: Page, first: int, predictions: Mapping[str, Sequence[Prediction]], right: Mapping[str, Sequence[bool]]
) -> list[tuple[Question, ExampleQuestion]]:
    """Return the page's questions, each with its answers and no line yet."""
    return [
        (
            question,
            ExampleQuestion(
                attribute=question.attribute,
                gold=tuple(map(_cut, question.gold[:3])),
                answers={name: _cut(given[i].answer) for name, given in predictions.items()},
                right=tuple(name for name in predictions if right[name][i]),
                lines=(),
            ),
        )
        for i, question in enumerate(page.questions[:MOST_QUESTIONS], first)
    ]


def _build_page(
    page: Page, kind: ExampleKind, asked: Sequence[tuple[Question, ExampleQuestion]], read_text: ReadText
) -> ExamplePage:
    text = read_text(page)
    lines = [] if text is None else text.splitlines()
    shown = tuple(map(_cut, lines[:MOST_LINES]))
    return ExamplePage(
        page=page.id,
        site=page.site,
        kind=kind,
        lines=shown,
        lines_in_all=len(lines),
        questions=tuple(
            ExampleQuestion(**{**vars(example), "lines": find_lines(question, shown)}) for question, example in asked
        ),
    )


def find_lines(question: Question, lines: Sequence[str]) -> tuple[int, ...]:
    """Return the first lines in which the expected value stands, by its words; none where it is nowhere as it is."""
    # As it was derived from the text, or as the label says it.
    values = [question.answer_text, *question.gold] if question.gold and question.derived else question.gold
    for value in values:
        if not value.strip():
            continue
        pattern = re.compile(rf"(?<!\w){re.escape(value.strip())}(?!\w)", re.IGNORECASE)
        if found := [i for i, line in enumerate(lines) if pattern.search(line)]:
            return tuple(found[:MOST_MARKED])
    return ()


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
