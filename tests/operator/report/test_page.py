"""The report as a page: whole, without the network, and with nothing in it that its texts have made."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from builders.some_studies import a_final_evaluation, a_report, a_study, a_summary, a_trial, measured
from study_operator.ledger.trial import TrialState
from study_operator.report.page import render_page
from study_operator.report.report import Report


class Page(HTMLParser):
    """Collects what a page holds, and checks that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        """With the names of their attributes."""
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_needs_nothing_from_the_network() -> None:
    text = render_page(a_report())
    tags = Page(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object"}
    assert not {name for _, names in tags for name in names} & {"src", "href", "style", "onclick", "onload"}
    assert not re.search(r"url\(|@import|https?://", text)
    assert [tag for tag, _ in tags].count("svg") == 2
    assert "The winner beats the rule extractor" in text


EVIL = "<script>alert(1)</script>\"' onload='alert(2)' <b>&lt;"


def a_report_that_holds(text: str) -> Report:
    """Return a report with one text wherever one comes from outside: manifest, cluster, trainer, dataset."""
    study = a_study()
    trials = (
        replace(measured(a_trial(0, arm={"kind": text}), 0.4), message=text),
        measured(measured(a_trial(1, arm={text: 1}), 0.5), 0.6, rung=1),
        a_trial(2, state=TrialState.FAILED, message=text),
    )
    summary = a_summary()
    return a_report(
        study=replace(study, name=text, objective=replace(study.objective, metric=text)),
        stage=text,
        trials=trials,
        message=text,
        adapter=text,
        agreement=(text,),
        final_evaluation=a_final_evaluation(),
        summary=replace(
            summary,
            splits={text: summary.splits["train"]},
            skipped_pages={text: 1},
            dropped_labels={text: 2},
            guessed_encodings={text: 3},
        ),
    )


def test_no_text_from_outside_makes_a_tag_or_an_attribute() -> None:
    evil, harmless = (Page(render_page(a_report_that_holds(text))) for text in (EVIL, "harmless"))
    assert evil.tags == harmless.tags


@pytest.mark.parametrize("place", ["a name", "an arm", "a log line", "an adapter", "a metric", "a reason"])
def test_a_text_from_outside_is_shown_as_it_is(place: str) -> None:
    marked = f"{place}: {EVIL}"
    changes = {
        "a name": {"study": replace(a_study(), name=marked)},
        "an arm": {"trials": (measured(a_trial(0, arm={"kind": marked}), 0.4),)},
        "a log line": {"trials": (a_trial(1, state=TrialState.FAILED, message=marked),)},
        "an adapter": {"adapter": marked},
        "a metric": {"study": replace(a_study(), objective=replace(a_study().objective, metric=marked))},
        "a reason": {"summary": replace(a_summary(), skipped_pages={marked: 1})},
    }
    page = Page(render_page(a_report(winner=None, **changes[place])))
    assert any(marked in text for text in page.texts)
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_page_of_a_study_that_has_just_begun_is_whole_too() -> None:
    text = render_page(
        a_report(trials=(), winner=None, adapter=None, final_evaluation=None, summary=None, agreement=())
    )
    assert "No trial is measured yet." in Page(text).texts
