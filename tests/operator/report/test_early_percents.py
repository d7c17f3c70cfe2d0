"""What a report says of early percents: figures with intervals, or that they are not estimable."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from builders.ledgers import a_ledger, a_rung_measurement, a_study, continued, paused, stopped
from builders.some_studies import a_report
from study_operator.ledger.status import parse_status
from study_operator.ledger.trial import Continuation, CurveEnd, Ledger
from study_operator.report.early_percents import list_early_header, list_early_rows
from study_operator.report.page import render_page
from study_operator.report.report import lines_of, render_json, render_summary
from study_operator.report.write import build_report
from study_operator.spec.study import DataCurve, EarlyEvaluation, Promotion, RankBy, Study
from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import to_json

STUDY = a_study(
    promotion=Promotion(num_promoted=2, num_audited=3),
    early_evaluation=EarlyEvaluation(rungs=(20,), extra_percents=(10, 50)),
)
TRIALS = [
    continued(paused(0, 0.30), 0.40, Continuation.BASELINE),
    continued(paused(1, 0.50), 0.60),
    continued(paused(2, 0.45), 0.50),
    continued(paused(3, 0.35), 0.3, Continuation.AUDITED, 0.5),
    continued(paused(4, 0.40), 0.45, Continuation.AUDITED, 0.5),
    continued(paused(5, 0.05), 0.7, Continuation.AUDITED, 0.5),
    *(stopped(i, 0.1) for i in (6, 7, 8)),
]


def a_studied_ledger(tmp_path: Path, **changes: object) -> tuple[Ledger, DirectoryStore]:
    """Return a ledger with a winner, whose measurements on the way lie in the store: at 50 % as at the end."""
    store = DirectoryStore(str(tmp_path))
    for trial in TRIALS[:6]:
        final = trial.measurements[-1].value
        for step, rung, value in ((10, 0, 1 - final), (50, 1, final)):
            written = replace(a_rung_measurement(trial, rung, accuracy=value, validation_loss=1.0), step=step)
            store.write(f"trials/{trial.name}/rungs/{rung}/measurements/{step}.json", to_json(written).encode())
    return a_ledger(*TRIALS, winner=1, **changes), store


def early_of(study: Study, ledger: Ledger, store: DirectoryStore):
    return build_report(study, replace(parse_status(None), ledger=ledger), store).early


def test_measurements_on_the_way_are_read_from_the_bucket_once_there_is_a_winner(tmp_path: Path) -> None:
    ledger, store = a_studied_ledger(tmp_path)
    assert early_of(STUDY, replace(ledger, winner=None), store) is None
    early = early_of(STUDY, ledger, store)
    assert early is not None
    assert [one.agreement.percent for one in early.percents] == [10, 20, 50]
    assert [one.agreement.concordance for one in early.percents][::2] == [0.0, 1.0]


def test_with_a_data_curve_they_are_read_once_it_has_ended(tmp_path: Path) -> None:
    ledger, store = a_studied_ledger(tmp_path)
    study = replace(STUDY, data_curve=DataCurve(sample_sizes=(100,)))
    assert early_of(study, ledger, store) is None
    assert early_of(study, replace(ledger, curve_end=CurveEnd.ALL_RUNS_ENDED), store) is not None


def test_a_measurement_without_what_trials_are_ranked_by_counts_as_none(tmp_path: Path) -> None:
    ledger, store = a_studied_ledger(tmp_path)
    study = replace(STUDY, promotion=replace(STUDY.promotion, rank_by=RankBy.VALIDATION_LOSS))
    key = "trials/t001/rungs/0/measurements/10.json"
    lacking = replace(a_rung_measurement(TRIALS[1], 0, accuracy=0.4), step=10)
    store.write(key, to_json(lacking).encode())
    by_loss, by_objective = early_of(study, ledger, store), early_of(STUDY, ledger, store)
    assert by_loss is not None and by_objective is not None
    assert (by_loss.percents[0].agreement.full_length, by_objective.percents[0].agreement.full_length) == (5, 6)


def test_the_table_has_every_percent_with_its_figures_or_says_that_there_are_none(tmp_path: Path) -> None:
    early = early_of(STUDY, *a_studied_ledger(tmp_path))
    assert early is not None
    rows = [dict(zip(list_early_header(), row, strict=True)) for row in list_early_rows(STUDY, early)]
    assert rows[1] == {
        "measured at": "20 % (rung)",
        "trials": "6",
        # Of certain ones 3 of 3; of certain and audited ones 5 of 9, which weigh 2; of audited ones 1 of 3, 5 each.
        "pairs ordered alike": "50% (10% to 90%)",
        "Kendall": "0.00 (-0.80 to 0.80)",
        "Spearman": "-0.13 (-0.98 to 0.98)",
        "top k kept": "0 to 1 of 2",
        "regret": "at least 10.0 points",
        "training, full runs": "6.6 of 9",
        "reliable": "not known",
    }
    # Who would have been promoted at 10 % is not known of those that were stopped.
    assert (rows[0]["top k kept"], rows[0]["regret"]) == ("not estimable", "not estimable")


def test_every_form_of_the_report_tells_early_percents(tmp_path: Path) -> None:
    early = early_of(STUDY, *a_studied_ledger(tmp_path))
    report = a_report(early=early)
    sentence = "10 % is too early: measurements at 10 % order 0% of the pairs of trials as those at full length do"
    assert any(line.startswith(sentence) for line in lines_of(report))
    console = Console(file=io.StringIO(), width=250, color_system=None)
    console.print(render_summary(report))
    page = render_page(report)
    for text in (console.file.getvalue(), page):
        assert "20 % (rung)" in text and "at least 10.0 points" in text
    found = json.loads(json.dumps(render_json(report), allow_nan=False))["earlyPercents"]
    assert (found["confidence"], found["leastConcordance"], found["enough"]) == (0.9, 0.7, None)
    assert found["percents"][1]["regret"] == {"value": pytest.approx(0.1), "isExact": False}
    assert found["percents"][0]["topKept"] is None
    assert render_json(a_report())["earlyPercents"] is None
