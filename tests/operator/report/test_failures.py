"""What a report says of failing trials."""

import json
from dataclasses import replace

from builders.some_studies import a_report
from study_operator.ledger.failures import Cell, Failures, Region
from study_operator.report.failures import list_map_header, list_map_rows
from study_operator.report.page import render_page
from study_operator.report.report import lines_of, render_json


def a_cell(rate: float, alpha: float, trials: int = 2) -> Cell:
    return Cell(
        learning_rate=rate, alpha=alpha, probability=0.72, low=0.4, high=0.92, trials=trials, failed=trials // 2
    )


FAILURES = Failures(
    trials=24,
    diverged=("t003",),
    gibberish=("t007", "t009"),
    is_rank_stabilised=False,
    region=Region(threshold=2.3e-3, above=10, failed_above=9, below=14, failed_below=1, p=0.003),
    rank=16,
    cells=(a_cell(1e-4, 16), a_cell(1e-4, 64), a_cell(1e-3, 16), a_cell(1e-3, 64, trials=0)),
    avoided=None,
)


def test_the_map_has_the_highest_learning_rate_on_top_and_says_where_nothing_was_tried() -> None:
    assert list_map_header(FAILURES) == ["learning rate", "alpha 16", "alpha 64"]
    assert list(list_map_rows(FAILURES)) == [
        ["0.001", "72% (40% to 92%), 1 of 2", "72% (40% to 92%), none tried"],
        ["0.0001", "72% (40% to 92%), 1 of 2", "72% (40% to 92%), 1 of 2"],
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
    few = replace(FAILURES, region=None, rank=None, cells=())
    page = render_page(a_report(failures=few))
    assert "Probability of a failure by learning rate" not in page
