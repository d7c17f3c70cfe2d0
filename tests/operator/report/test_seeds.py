"""Winner and baseline under each seed: what was measured of which run, and what is not known yet."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from builders.report_pages import Page
from builders.some_studies import a_final_evaluation, a_report, a_study, a_trial, measured
from study_operator.ledger.trial import Ledger, Origin, Trial
from study_operator.report.page import render_page
from study_operator.report.report import HAND_LABELLED, render_json, render_summary
from study_operator.report.seeds import list_seed_rows, list_seeds

STUDY = a_study()


def full(index: int, early: float, final: float | None, **changes: object) -> Trial:
    trial = replace(measured(a_trial(index), early), **changes)
    return trial if final is None else measured(trial, final, rung=1)


TRIALS = (full(0, 0.40, 0.48, origin=Origin.BASELINE), full(1, 0.44, 0.55))
FURTHER = (
    full(2, 0.42, 0.51, repeats=1, seed=STUDY.seed + 1),
    full(3, 0.39, 0.47, repeats=0, seed=STUDY.seed + 1),
    full(4, 0.41, None, repeats=1, seed=STUDY.seed + 2),
)
LEDGER = Ledger(trials=TRIALS, winner=1, confirmations=FURTHER)
EVALUATION = replace(
    a_final_evaluation(),
    confirmations={
        "t002": a_final_evaluation(winner=0.50).predictors["winner"],
        "t003": a_final_evaluation().predictors["baseline"],
    },
)


@pytest.mark.parametrize(
    "changes", [{"confirmations": ()}, {"winner": None}], ids=["no further seed has begun", "nothing has won"]
)
def test_there_is_no_table_before_there_is_anything_to_compare(changes: dict[str, object]) -> None:
    assert list_seeds(STUDY, replace(LEDGER, **changes), EVALUATION, HAND_LABELLED) == ()


def test_each_seed_has_a_row_and_the_search_s_own_is_first() -> None:
    rows = list(list_seed_rows(STUDY, list_seeds(STUDY, LEDGER, EVALUATION, HAND_LABELLED)))
    assert [row[:3] for row in rows] == [
        ["0", "55.0 % ± 2.0", "48.0 % ± 2.0"],
        ["1", "51.0 % ± 2.0", "47.0 % ± 2.0"],
        ["2", "–", "–"],
    ]
    assert [[cell.partition(" (")[0] for cell in row[3:]] for row in rows] == [
        ["52.0 %", "48.0 %", "+4.0"],
        ["50.0 %", "48.0 %", "+2.0"],
        ["–", "–", "–"],
    ]


def test_before_the_test_set_is_read_validation_stands_alone() -> None:
    rows = list(list_seed_rows(STUDY, list_seeds(STUDY, LEDGER, None, None)))
    assert rows[1] == ["1", "51.0 % ± 2.0", "47.0 % ± 2.0", "–", "–", "–"]


def test_the_table_stands_on_the_page_on_a_terminal_and_in_json() -> None:
    report = a_report(seeds=list_seeds(STUDY, LEDGER, EVALUATION, HAND_LABELLED))
    page = Page(render_page(report))
    assert "Further seeds" in page.texts and "+2.0" in page.texts
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(render_summary(report))
    assert "50.0 %" in console.file.getvalue()
    second = render_json(report)["seeds"][1]
    assert (second["seed"], second["winner"]["trial"], second["baseline"]["validation"]) == (1, "t002", 0.47)
    assert render_json(report)["seeds"][2]["baseline"] is None
    assert "Further seeds" not in Page(render_page(a_report())).texts
