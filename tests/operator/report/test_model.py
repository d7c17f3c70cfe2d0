"""What a report says and draws of the optimizer's model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from builders.report_pages import Page
from builders.some_studies import a_report, a_study, a_trial, measured
from study_operator import names
from study_operator.errors import OperatorError
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import Ledger, Outcome, SearchEnd, Trial, TrialState
from study_operator.optimizer.designer import DesignerError, ProposalPendingError
from study_operator.optimizer.reading import Importance, ModelReading, Share, Slice, SlicePoint, digest_question
from study_operator.report.losses import KeptLosses
from study_operator.report.model import describe_model, describe_slices
from study_operator.report.page import render_page
from study_operator.report.report import Report, render_json
from study_operator.report.write import write_report
from study_operator.spec.study import Arm, Study
from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import ParameterValue

ARMS = tuple({"learning_rate": rate, "batch_size": size} for rate, size in ((1e-3, 8), (1e-2, 16), (1e-4, 8)))
TRIALS = tuple(measured(a_trial(i, arm=arm), 0.4 + i / 10) for i, arm in enumerate(ARMS))


def a_share(value: float) -> Share:
    return Share(value=value, low=value - 0.05, high=value + 0.05)


def a_slice(parameter: str, *settings: ParameterValue) -> Slice:
    points = (SlicePoint(setting=setting, value=0.45, low=0.4, high=0.5) for setting in settings)
    return Slice(parameter=parameter, points=tuple(points))


READING = ModelReading(
    measured=3,
    through=ARMS[2],
    tau=0.62,
    p=0.004,
    knows=True,
    importances=(
        Importance(parameter="learning_rate", first=a_share(0.6), total=a_share(0.8)),
        Importance(parameter="batch_size", first=a_share(0.1), total=a_share(0.3)),
    ),
    slices=(a_slice("learning_rate", 1e-4, 1e-3, 1e-2), a_slice("batch_size", 8, 16)),
)
IGNORANT = ModelReading(measured=3, through=ARMS[2], tau=-0.1, p=0.7)


def a_report_with(reading: ModelReading) -> Report:
    return a_report(trials=TRIALS, winner="t002", model=reading)


def test_importance_and_slices_stand_on_the_page_and_in_its_tables() -> None:
    page = Page(render_page(a_report_with(READING)))
    values = page.charts["importance"]["data"]["values"]
    assert [(v["parameter"], v["kind"], v["value"]) for v in values[:2]] == [
        ("learning_rate", "in all", 0.8),
        ("learning_rate", "alone", 0.6),
    ]
    band, line, points = page.charts["parameter-0"]["layer"]
    assert (band["mark"]["type"], line["mark"]["type"], points["mark"]["type"]) == ("area", "line", "point")
    assert [v["setting"] for v in line["data"]["values"]] == [1e-4, 1e-3, 1e-2]
    # Between choices there is nothing.
    assert [layer["mark"]["type"] for layer in page.charts["parameter-1"]["layer"]] == ["rule", "tick", "point"]
    for text in ("80.0 % (75.0–85.0)", "40.0 % to 50.0 %", "predicted accuracy"):
        assert text in page.texts
    assert "ranks of the 3 measured trials, ranks them better than chance" in page.text
    assert "all others are those of t002 (learning_rate 0.0001, batch_size 8)" in page.text
    assert (
        json.loads(json.dumps(render_json(a_report_with(READING))))["model"]["importances"][0]["total"]["value"] == 0.8
    )


def test_where_the_model_knows_nothing_a_sentence_says_so_and_no_curve_is_drawn() -> None:
    page = Page(render_page(a_report_with(IGNORANT)))
    assert "importance" not in page.charts
    assert [layer["mark"]["type"] for layer in page.charts["parameter-0"]["layer"]] == ["point"]
    assert (
        "The optimizer's model knows nothing yet: it does not rank the 3 measured trials better than chance, each "
        "predicted from others (Kendall's τ = -0.10, one-sided p = 0.7). So neither importance nor a curve is "
        "drawn."
    ) in page.text


@pytest.mark.parametrize(
    ("reading", "sentence"),
    [
        pytest.param(replace(READING, measured=2), "ranks of the first 2 measured trials, ranks", id="older"),
        pytest.param(replace(IGNORANT, tau=None, p=None), "knows nothing: the 3 measured trials are equal", id="equal"),
        pytest.param(replace(IGNORANT, problem="Ax failed with KeyError: 1"), "cannot be read: Ax failed", id="failed"),
    ],
)
def test_the_page_says_what_the_model_rests_on(reading: ModelReading, sentence: str) -> None:
    assert sentence in describe_model(a_report_with(reading))
    assert sentence in Page(render_page(a_report_with(reading))).text


def test_a_trial_that_ended_as_one_that_cannot_run_is_none_of_the_model_s() -> None:
    trials = (*TRIALS, replace(measured(a_trial(3), 0.3), state=TrialState.ABANDONED))
    sentence = describe_model(a_report(trials=trials, winner="t002", model=READING))
    assert "of the ranks of the 3 measured trials" in sentence


def test_without_a_model_nothing_is_said_of_one() -> None:
    report = a_report(trials=TRIALS)
    assert describe_model(report) == describe_slices(report) == ""
    assert render_json(report)["model"] is None
    assert "optimizer" not in Page(render_page(report)).text


def test_what_cannot_stand_on_an_axis_is_left_out() -> None:
    slices = (a_slice("learning_rate", "<b>", -1.0, 0.0, 1e-3), a_slice("batch_size", 12, 8, 16), a_slice("other", 1))
    charts = Page(render_page(a_report_with(replace(READING, slices=slices)))).charts
    assert [v["setting"] for v in charts["parameter-0"]["layer"][0]["data"]["values"]] == [1e-3]
    assert [v["setting"] for v in charts["parameter-1"]["layer"][0]["data"]["values"]] == [8, 16]


# Where the model is read.


class Reader:
    """Answers as it is told to."""

    def __init__(self, answer: ModelReading | OperatorError) -> None:
        self.answer = answer
        self.asked: list[tuple[int, Arm, bool]] = []

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool) -> ModelReading:
        self.asked.append((len(trials), through, is_last))
        if isinstance(self.answer, OperatorError):
            raise self.answer
        return replace(self.answer, digest=self.answer.digest or digest_question(study, trials, through))


FIVE = tuple(measured(a_trial(i), 0.5 + (0.1 if i == 3 else 0.01 * i)) for i in range(5))


SEARCHED = {"search_end": SearchEnd.ALL_TRIALS_MEASURED}
ENDED = {**SEARCHED, "outcome": Outcome(failed=False, reason="Completed", message="")}


def write(store: DirectoryStore, reader: Reader, trials: Sequence[Trial], **ledger: object) -> Report | None:
    """Write a report, and return the model in its JSON."""
    study, known = a_study(), Ledger(trials=tuple(trials), **ledger)
    raw = render_status(study, known, now=a_report().written_at)
    assert parse_status(raw).ledger == known
    write_report(study, known, raw, store, reader, KeptLosses())
    text = store.read(names.REPORT)
    assert text is not None
    return json.loads(text)["model"]


def test_of_few_measurements_the_optimizer_is_not_asked(tmp_path: Path) -> None:
    reader = Reader(READING)
    assert write(DirectoryStore(str(tmp_path)), reader, FIVE[:4], **SEARCHED) is None
    diverged = [measured(a_trial(i), 0.0, diverged=True) for i in range(6)]
    assert write(DirectoryStore(str(tmp_path)), reader, diverged, **SEARCHED) is None
    assert reader.asked == []


def test_while_there_are_arms_to_propose_the_optimizer_is_not_asked(tmp_path: Path) -> None:
    reader = Reader(READING)
    assert write(DirectoryStore(str(tmp_path)), reader, FIVE) is None
    assert reader.asked == []


def test_the_slices_go_through_the_best_arm_and_then_through_the_winner(tmp_path: Path) -> None:
    store, reader = DirectoryStore(str(tmp_path)), Reader(READING)
    trials = [replace(trial, arm={**trial.arm, "batch_size": i}) for i, trial in enumerate(FIVE)]
    found = write(store, reader, trials, **SEARCHED)
    assert found is not None and found["tau"] == 0.62
    write(store, reader, trials, winner=1, **ENDED)
    assert [(arm["batch_size"], is_last) for _, arm, is_last in reader.asked] == [(3, False), (1, True)]


def test_a_model_that_is_in_the_bucket_already_is_not_read_again(tmp_path: Path) -> None:
    store, reader = DirectoryStore(str(tmp_path)), Reader(DesignerError("the worker died"))
    write(store, reader, FIVE, **SEARCHED)
    reader.answer = READING
    found = [write(store, reader, FIVE, **SEARCHED) for _ in range(2)]
    # After the one that failed it was asked once more, and no third time.
    assert len(reader.asked) == 2
    assert found[0] is not None and found[0]["problem"] == "" and found[0] == found[1]


def test_an_answer_to_an_earlier_question_is_asked_for_again(tmp_path: Path) -> None:
    store, reader = DirectoryStore(str(tmp_path)), Reader(replace(READING, digest="of an earlier ledger"))
    write(store, reader, FIVE, **SEARCHED)
    reader.answer = READING
    write(store, reader, FIVE, **ENDED)
    assert len(reader.asked) == 2


def test_a_trial_that_is_abandoned_after_its_measurement_changes_the_question(tmp_path: Path) -> None:
    store, reader = DirectoryStore(str(tmp_path)), Reader(READING)
    write(store, reader, FIVE, **SEARCHED)
    write(store, reader, [*FIVE[:4], replace(FIVE[4], state=TrialState.ABANDONED)], **ENDED)
    assert len(reader.asked) == 2


def test_a_model_that_cannot_be_read_is_no_reason_to_have_no_report(tmp_path: Path) -> None:
    found = write(DirectoryStore(str(tmp_path)), Reader(DesignerError("Ax failed with KeyError: 1")), FIVE, **SEARCHED)
    assert found is not None and found["problem"] == "Ax failed with KeyError: 1"


def test_a_model_that_says_what_is_no_number_is_no_reason_to_have_no_report(tmp_path: Path) -> None:
    found = write(DirectoryStore(str(tmp_path)), Reader(replace(READING, tau=float("nan"))), FIVE, **SEARCHED)
    assert found is not None and (found["knows"], found["slices"]) == (False, [])
    assert found["problem"] == "it says what is no number"


def test_only_the_last_report_waits_for_the_optimizer(tmp_path: Path) -> None:
    store, reader = DirectoryStore(str(tmp_path)), Reader(ProposalPendingError())
    assert write(store, reader, FIVE, **SEARCHED) is None
    store.delete(names.REPORT)
    with pytest.raises(ProposalPendingError):
        write(store, reader, FIVE, **ENDED)
    assert store.read(names.REPORT) is None
