"""What a report says of failing trials."""

import json
from dataclasses import replace

import pytest

from builders.report_pages import Page
from builders.some_studies import a_report
from study_operator.ledger.failures import Cell, Failures, Mark, Region
from study_operator.report.failures import list_map_header, list_map_rows
from study_operator.report.page import render_page
from study_operator.report.report import lines_of, render_json


def a_cell(rate: float, alpha: float, trials: int = 2, rank: float = 16) -> Cell:
    return Cell(
        rank=rank,
        learning_rate=rate,
        alpha=alpha,
        probability=0.72,
        low=0.4,
        high=0.92,
        trials=trials,
        failed=trials // 2,
    )


FAILURES = Failures(
    trials=24,
    diverged=("t003",),
    gibberish=("t007", "t009"),
    is_rank_stabilised=False,
    region=Region(threshold=2.3e-3, above=10, failed_above=9, below=14, failed_below=1, p=0.003),
    ranks=(16,),
    cells=(a_cell(1e-4, 16), a_cell(1e-4, 64), a_cell(1e-3, 16), a_cell(1e-3, 64, trials=0)),
    marks=(
        Mark(trial="t003", rank=16, map_rank=16, learning_rate=9e-4, alpha=64, has_failed=True),
        Mark(trial="t001", rank=12, map_rank=16, learning_rate=1e-4, alpha=16, has_failed=False),
    ),
    avoided=None,
)


def test_the_map_has_the_highest_learning_rate_on_top_and_says_where_nothing_was_tried() -> None:
    assert list_map_header(FAILURES) == ["rank", "learning rate", "alpha 16", "alpha 64"]
    assert list(list_map_rows(FAILURES)) == [
        ["16", "0.001", "72% (40% to 92%), 1 of 2", "72% (40% to 92%), none tried"],
        ["16", "0.0001", "72% (40% to 92%), 1 of 2", "72% (40% to 92%), 1 of 2"],
    ]


def test_every_form_of_the_report_tells_failures() -> None:
    report = a_report(failures=FAILURES)
    sentence = (
        "Above learning rate × alpha / rank = 0.0023, 9 of 10 trials failed, below it 1 of 14 (p = 0.003, corrected "
        "for the threshold's choice)."
    )
    assert sentence in lines_of(report)
    page = render_page(report)
    assert "Where trials fail" in page and "72% (40% to 92%), none tried" in page
    assert "Where trials fail" not in render_page(a_report())
    found = json.loads(json.dumps(render_json(report), allow_nan=False))["failures"]
    assert (found["diverged"], found["gibberish"]) == (["t003"], ["t007", "t009"])
    assert found["region"]["failed_above"] == 9 and found["map"][0]["probability"] == 0.72
    assert sentence in found["sentences"]


def test_a_page_of_a_study_without_a_map_is_drawn_without_one() -> None:
    few = replace(FAILURES, region=None, ranks=(), cells=(), marks=())
    page = render_page(a_report(failures=few))
    assert "Probability of a failure by" not in page
    assert "failures" not in Page(page).charts


def test_the_map_is_drawn_with_the_trials_on_it() -> None:
    chart = Page(render_page(a_report(failures=FAILURES))).charts["failures"]
    # Of one rank there is nothing to choose.
    assert [param["name"] for param in chart["params"]] == ["rank", "picked"] and "bind" not in chart["params"][0]
    places, _, trials = (layer["data"]["values"] for layer in chart["layer"])
    # Half way to the neighbour on a logarithmic scale, and as far on the other side.
    edge = (1e-4 * 1e-3) ** 0.5
    assert [(cell["bottom"], cell["top"]) for cell in places[::2]] == [
        (pytest.approx(1e-8 / edge), edge),
        (edge, pytest.approx(1e-6 / edge)),
    ]
    assert [(cell["low"], cell["high"]) for cell in places[:2]] == [(8, 32), (32, 128)]
    assert [(mark["trial"], mark["kind"], mark["rank"]) for mark in trials] == [
        ("t003", "failed", 16),
        ("t001", "did not fail", 16),
    ]


def test_a_control_chooses_the_rank_whose_map_is_drawn() -> None:
    cells = tuple(a_cell(1e-3, 16, rank=rank) for rank in (4, 8, 64))
    chart = Page(render_page(a_report(failures=replace(FAILURES, ranks=(4, 8, 64), cells=cells)))).charts["failures"]
    rank = chart["params"][0]
    assert (rank["value"], rank["bind"]["options"]) == (8, [4, 8, 64])
