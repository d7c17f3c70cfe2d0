"""Which pages of the test set are shown, and in which of their lines the expected values stand."""

from dataclasses import replace

import pytest

from builders.tiny_tokenizer import ALTERNATING, ALTERNATING_WITH_SYSTEM, CHAT, EMPTY_THOUGHT, build_tokenizer
from trial_trainer.contract import ExampleKind, Examples, from_json, to_json
from trial_trainer.dataset.prompts import Prompter
from trial_trainer.dataset.store import HAND, Page, Question
from trial_trainer.evaluation.examples import MOST_CHARACTERS, MOST_LINES, choose_examples, find_lines
from trial_trainer.evaluation.measure import build_prediction

NAME = Question(attribute="name", prompt=(7,), answer=(9, 2), answer_text="Kettle", gold=("Kettle",), origin=HAND)
TEXT = "Home\nKettles\nThe kettle of 2024\nKettle"


def a_page(number: int, *questions: Question) -> Page:
    return Page(id=f"p{number}", site="shop", url=None, prefix=(1,), questions=questions or (NAME,))


def choose(pages: list[Page], right: dict[str, list[bool]], text: str = TEXT) -> Examples:
    """Return the examples where each predictor answers every question of each page rightly or wrongly."""
    predictions = {
        name: [
            build_prediction(page, question, answer=question.answer_text if is_right else "Lamp")
            for page, is_right in zip(pages, flags, strict=True)
            for question in page.questions
        ]
        for name, flags in right.items()
    }
    return choose_examples(pages, predictions, "baseline", lambda page: text)


def test_up_to_three_pages_of_each_kind_are_shown_and_all_are_counted() -> None:
    pages = [a_page(i) for i in range(40)]
    winner = [i % 4 in (0, 3) for i in range(40)]
    baseline = [i % 4 in (1, 3) for i in range(40)]
    found = choose(pages, {"winner": winner, "baseline": baseline})
    assert [page.kind for page in found.pages] == [kind for kind in ExampleKind for _ in range(3)]
    assert found.pages_by_kind == dict.fromkeys(ExampleKind, 10)
    assert found.pages_in_all == 40
    for page in found.pages:
        i = int(page.page[1:])
        assert page.questions[0].right == tuple(
            name for name, flags in (("winner", winner), ("baseline", baseline)) if flags[i]
        )
        assert page.questions[0].answers["winner"] == ("Kettle" if winner[i] else "Lamp")
    assert from_json(Examples, to_json(found)) == found


def test_which_pages_of_a_kind_are_shown_is_decided_by_their_names_alone() -> None:
    pages = [a_page(i) for i in range(20)]
    right = {"winner": [False] * 20, "baseline": [False] * 20}
    chosen = {page.page for page in choose(pages, right).pages}
    assert chosen == {page.page for page in choose(pages[::-1], right, "another text").pages}
    assert len(chosen) == 3


def test_a_page_is_shown_once_and_first_as_what_is_rarer() -> None:
    both = a_page(0, NAME, replace(NAME, attribute="brand"))
    predictions = {
        "winner": [build_prediction(both, NAME, answer="Kettle"), build_prediction(both, NAME, answer="Lamp")],
        "baseline": [build_prediction(both, NAME, answer="Lamp"), build_prediction(both, NAME, answer="Kettle")],
    }
    found = choose_examples([both], predictions, "baseline", lambda page: TEXT)
    assert [page.kind for page in found.pages] == [ExampleKind.GAINED]
    assert found.pages_by_kind[ExampleKind.LOST] == 1


def test_where_there_is_no_value_to_say_none_is_right() -> None:
    absent = replace(NAME, gold=(), answer_text="none")
    page = a_page(0, absent)
    predictions = {
        name: [build_prediction(page, absent, answer=answer, finished=finished)]
        for name, answer, finished in (("winner", "none", True), ("baseline", "Lamp", True), ("untrained", "", False))
    }
    (shown,) = choose_examples([page], predictions, "baseline", lambda page: TEXT).pages
    assert shown.questions[0].right == ("winner",)
    assert shown.questions[0].lines == ()


@pytest.mark.parametrize(
    ("question", "lines"),
    [
        pytest.param(NAME, (2, 3), id="as a word, however it is written"),
        pytest.param(replace(NAME, answer_text="2024", gold=("24", "2024")), (2,), id="what the text was found to say"),
        pytest.param(replace(NAME, derived=False, gold=("Home",)), (0,), id="what the label says"),
        pytest.param(replace(NAME, answer_text="Pan", gold=("Pan",)), (), id="nowhere"),
        pytest.param(replace(NAME, answer_text="none", gold=()), (), id="no value"),
    ],
)
def test_the_lines_that_hold_the_value_are_found(question: Question, lines: tuple[int, ...]) -> None:
    assert find_lines(question, TEXT.splitlines()) == lines


def test_a_long_page_is_cut_and_says_so() -> None:
    text = "\n".join(["x" * 1000] * 500)
    (page,) = choose([a_page(0)], {"winner": [True], "baseline": [False]}, text).pages
    assert (len(page.lines), page.lines_in_all) == (MOST_LINES, 500)
    assert {len(line) for line in page.lines} == {MOST_CHARACTERS + 1}


@pytest.mark.parametrize("chat", [CHAT, ALTERNATING, ALTERNATING_WITH_SYSTEM, EMPTY_THOUGHT, None])
@pytest.mark.parametrize("is_page", [True, False])
def test_the_text_of_a_page_is_read_back_from_its_tokens(chat: str | None, *, is_page: bool) -> None:
    prompter = Prompter(build_tokenizer(chat))
    text = "Kettle für 3,50 €\nPrice: What\nWhat is the brand"
    one, other = prompter.encode_prompts([prompter.pose(a, text, is_page=is_page) for a in ("price", "brand")])
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert prompter.read_text(one[:shared], "price") == prompter.read_text(one[:shared], "brand") == text
    assert prompter.read_text(other, "brand") == text
    assert prompter.read_text(one[3:], "price") is None
