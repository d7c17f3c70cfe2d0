"""Pages of the test set for people: the text beside what was expected and answered.

Made of the `Examples` that the final evaluation wrote; called by ``page.py``. All of it is what pages and models say:
the template escapes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import escape

from study_operator.report.numbers import shorten
from study_operator.report.report import PREDICTOR_NAMES, PREDICTORS
from trial_trainer.contract import ExampleKind, ExamplePage, ExampleQuestion, Examples

MOST_PAGES = 12
MOST_BYTES = 350_000
"""Of the pages' texts together as they stand in HTML, where a quote takes five."""


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """One predictor's answer to one question."""

    text: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class ShownQuestion:
    """One question of a page."""

    attribute: str
    expected: str
    line: int | None
    """The first line in which the expected value stands."""
    answers: Sequence[ShownAnswer]
    """As the header names the predictors."""


@dataclass(frozen=True, kw_only=True)
class ShownLine:
    """One line of a page's text."""

    text: str
    evidence_of: str
    """The attributes whose expected value stands in it; empty of most lines."""


@dataclass(frozen=True, kw_only=True)
class ShownPage:
    """One page."""

    title: str
    reason: str
    """Why it is shown."""
    lines: Sequence[ShownLine]
    rest: str
    """What is left out of its text, or why there is none."""
    questions: Sequence[ShownQuestion]


@dataclass(frozen=True, kw_only=True)
class ShownExamples:
    """All pages, and by which rule they were chosen."""

    rule: str
    header: Sequence[str]
    """The predictors, as people call them."""
    pages: Sequence[ShownPage]


def show_examples(examples: Examples) -> ShownExamples | None:
    """Return what the page shows of the examples; None where there are none."""
    if not examples.pages:
        return None
    # Of a trainer of somebody else's, what is not of our predictors is left out.
    names = [name for name in PREDICTORS if any(name in q.answers for page in examples.pages for q in page.questions)]
    return ShownExamples(
        rule=_describe_rule(examples),
        header=[PREDICTOR_NAMES[name] for name in names],
        pages=[_show_page(page, names, examples.reference) for page in _cut(examples.pages[:MOST_PAGES])],
    )


def _cut(pages: Sequence[ExamplePage]) -> Iterator[ExamplePage]:
    """Yield the pages with as many of their first lines as there is room for."""
    for page in pages:
        sizes = itertools.accumulate(len(escape(line).encode()) for line in page.lines)
        lines = page.lines[: sum(size <= MOST_BYTES // len(pages) for size in sizes)]
        questions = [replace(q, lines=tuple(i for i in q.lines if i < len(lines))) for q in page.questions]
        yield replace(page, lines=lines, questions=tuple(questions))


def _describe_rule(examples: Examples) -> str:
    reference = PREDICTOR_NAMES.get(examples.reference, examples.reference)
    counts = ", ".join(
        f"{examples.pages_by_kind.get(kind, 0)} {_describe_kind(kind, reference)}" for kind in ExampleKind
    )
    return (
        f"{len(examples.pages)} of {examples.pages_in_all} pages of the test set: up to three of each of four kinds, "
        f"in an order that the pages' names alone decide. Of all pages, by at least one question: {counts}. They are "
        "examples: how often each happens is in the table of the test set."
    )


def _describe_kind(kind: ExampleKind, reference: str) -> str:
    match kind:
        case ExampleKind.GAINED:
            return f"where the winner is right and the {reference} is not"
        case ExampleKind.LOST:
            return f"where the {reference} is right and the winner is not"
        case ExampleKind.BOTH_WRONG:
            return "where both are wrong"
        case ExampleKind.BOTH_RIGHT:
            return "where both are right"


def _show_page(page: ExamplePage, names: Sequence[str], reference: str) -> ShownPage:
    attributes_by_line: dict[int, list[str]] = {}
    for question in page.questions:
        for line in question.lines:
            attributes_by_line.setdefault(line, []).append(question.attribute)
    left_out = page.lines_in_all - len(page.lines)
    reason = _describe_kind(page.kind, PREDICTOR_NAMES.get(reference, reference))
    return ShownPage(
        title=page.page if page.page == page.site else f"{page.page} ({page.site})",
        reason=f"a page {reason}",
        lines=[
            ShownLine(text=text, evidence_of=", ".join(attributes_by_line.get(i, ())))
            for i, text in enumerate(page.lines)
        ],
        rest="its text is not known" if not page.lines else f"{left_out} more lines" if left_out > 0 else "",
        questions=[_show_question(question, names) for question in page.questions],
    )


def _show_question(question: ExampleQuestion, names: Sequence[str]) -> ShownQuestion:
    return ShownQuestion(
        attribute=question.attribute,
        expected=shorten(" or ".join(question.gold)) or "none",
        line=min(question.lines, default=None),
        answers=[
            ShownAnswer(text=shorten(question.answers.get(name, "")) or "(nothing)", is_right=name in question.right)
            for name in names
        ],
    )
