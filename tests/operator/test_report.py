"""What is said of a study: the sentence that matters first, figures with what they mean, pages without the network."""

import io
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from some_studies import a_judgement, a_report, a_study, a_trial, measured
from study_operator.progress import Snapshot, duration, lines_of_progress, render_live
from study_operator.report import (
    describe_value,
    headline,
    lines_of,
    loading_lines,
    print_report,
    ranked,
    render_json,
)
from study_operator.report_page import render_page
from study_operator.study import Storage
from study_operator.trial import TrialState
from trial_trainer.contract import BaseModel, Precision, Progress


def drawn(renderable: object) -> str:
    """Return what a wide terminal without colours would show."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_a_winner_that_does_not_beat_the_rules_is_said_first():
    report = a_report(judgement=a_judgement(winner=0.44, rules=0.47))

    assert lines_of(report)[0] == (
        "THE WINNER DOES NOT BEAT THE RULE EXTRACTOR on the test pages: 44.0 % against 47.0 %, "
        "-3.0 points (95 % interval -7.0 to +1.0, n = 500, 60 shops)."
    )


def test_a_gain_whose_interval_holds_zero_is_no_win():
    assert headline(a_report(judgement=a_judgement(winner=0.50, rules=0.47))).startswith("THE WINNER DOES NOT BEAT")
    assert headline(a_report(judgement=a_judgement(winner=0.52, rules=0.47))).startswith("The winner beats")


def test_the_end_says_validation_test_gain_agreement_and_time():
    lines = lines_of(a_report())

    assert lines[1] == "Winner: t002, learning_rate 0.001, lora_rank 16, batch_size 8."
    assert lines[2] == (
        "Validation accuracy: 55.0 % ± 2.0 (n = 160, step 120 of 120), "
        "against 48.0 % ± 2.0 of the baseline: +7.0 points."
    )
    assert "Test, mean of the hand-labelled attributes: 52.0 % ± 3.0 (n = 140)." in lines
    assert (
        "Gain over the baseline: +4.0 points (95 % interval +0.0 to +8.0, n = 500, 60 shops); one training seed."
        in lines
    )
    assert "Early and final readings agree on 2 of 3 pairs." in lines
    assert (
        "Accelerator time: 30.0 minutes spent, 15.0 minutes saved against running every measured trial "
        "to its full length." in lines
    )


def test_a_baseline_that_wins_is_not_compared_with_itself():
    assert "the winner is the baseline itself" in lines_of(a_report(winner="t000"))[2]


def test_before_the_judgement_it_says_how_far_the_study_is():
    report = a_report(judgement=None, winner=None, adapter=None, stage="Exploring", message="waiting for t003")

    assert headline(report) == "laptop: Exploring, 3 of 8 trials measured. waiting for t003"


def test_the_lines_that_load_the_adapter_are_python():
    report = a_report()
    study = replace(report.study, base_model=BaseModel(uri="hf://owner/model", revision="abc"))

    compile(loading_lines(report), "loading", "exec")
    assert 'PeftModel.from_pretrained(model, "/runs/t002/adapter")' in loading_lines(report)
    assert 'AutoTokenizer.from_pretrained("owner/model", revision="abc")' in loading_lines(replace(report, study=study))


@pytest.mark.parametrize(
    ("base_model", "precision", "expected"),
    [
        pytest.param(
            BaseModel(uri="hf://owner/model"), Precision.BFLOAT16, '"owner/model", dtype="bfloat16"', id="the hub"
        ),
        pytest.param(
            BaseModel(uri="hf://owner/model/", revision="v1"),
            Precision.FLOAT32,
            '"owner/model", revision="v1", dtype="float32"',
            id="a revision of the hub, in fp32",
        ),
        pytest.param(
            BaseModel(uri="/models/a b"), Precision.FLOAT32, '"/models/a b", dtype="float32"', id="a path with a blank"
        ),
        pytest.param(
            BaseModel(uri="file:///models/small", revision="v1"),
            Precision.BFLOAT16,
            '"/models/small", dtype="bfloat16"',
            id="a file URI, whose revision means nothing",
        ),
        pytest.param(
            BaseModel(uri="s3://models/small"), Precision.BFLOAT16, '"base-model", dtype="bfloat16"', id="a bucket"
        ),
        pytest.param(
            BaseModel(uri='/models/"quoted"\\\n😀'),
            Precision.BFLOAT16,
            '"/models/\\"quoted\\"\\\\\\n😀", dtype="bfloat16"',
            id="letters that mean something in Python",
        ),
    ],
)
def test_the_loading_lines_name_the_base_model_and_the_precision_that_was_trained(base_model, precision, expected):
    study = a_report().study
    study = replace(study, base_model=base_model, trainer=replace(study.trainer, precision=precision))
    lines = loading_lines(a_report(study=study))

    compile(lines, "loading", "exec")
    assert f"model = AutoModelForCausalLM.from_pretrained({expected})" in lines
    without_type = expected.rpartition(", dtype=")[0]
    assert f"tokenizer = AutoTokenizer.from_pretrained({without_type})" in lines


def test_what_lies_in_buckets_is_fetched_first_from_the_studys_endpoint():
    study = a_report().study
    study = replace(
        study,
        base_model=BaseModel(uri="s3://models/it's small"),
        storage=Storage(uri="s3://runs", endpoint="https://s3.example:9000"),
    )
    lines = loading_lines(a_report(study=study, adapter="s3://runs/x;y/adapter"))

    commands = [line.removeprefix("# First: ") for line in lines.splitlines() if line.startswith("# First: ")]
    before = ["aws", "s3", "cp", "--recursive", "--endpoint-url", "https://s3.example:9000"]
    assert [shlex.split(command) for command in commands] == [
        [*before, "s3://models/it's small", "base-model"],
        [*before, "s3://runs/x;y/adapter", "adapter"],
    ]
    assert 'PeftModel.from_pretrained(model, "adapter")' in lines


def test_a_line_break_in_a_uri_does_not_end_its_comment():
    study = replace(a_report().study, base_model=BaseModel(uri="s3://models/a\nimport os"))
    lines = loading_lines(a_report(study=study)).splitlines()

    assert [line for line in lines if "import os" in line] == [lines[0]]
    assert lines[0].startswith("# First: ")


def test_trials_are_ranked_by_the_direction_and_unmeasured_ones_stand_last():
    report = a_report()
    minimized = replace(report.study, objective=replace(report.study.objective, direction="Minimize"))

    assert [trial.name for trial in ranked(report.study, report.trials)] == ["t002", "t000", "t001", "t003"]
    assert [trial.name for trial in ranked(minimized, report.trials)] == ["t001", "t000", "t002", "t003"]


@pytest.mark.parametrize(
    ("metric", "value", "error", "text"),
    [
        pytest.param("accuracy", 0.4321, 0.021, "43.2 % ± 2.1", id="a share"),
        pytest.param("accuracy/price", 0.5, None, "50.0 %", id="a share without an error"),
        pytest.param("false_value_rate", 0.05, 0.01, "5.0 % ± 1.0", id="a rate"),
        pytest.param("validation_loss", 1.23456, 0.0321, "1.235 ± 0.032", id="a loss, in nats"),
    ],
)
def test_values_are_said_in_their_own_unit(metric, value, error, text):
    assert describe_value(metric, value, error) == text


def test_the_report_as_json_is_valid_and_whole():
    values = json.loads(json.dumps(render_json(a_report()), allow_nan=False))

    assert values["winner"] == "t002"
    assert [trial["name"] for trial in values["trials"]] == ["t000", "t001", "t002", "t003"]
    assert values["judgement"]["gains"]["hand_labelled/winner-rules"]["low"] == pytest.approx(0.01)
    assert values["acceleratorHours"] == {"spent": 0.5, "saved": 0.25}


def test_the_tables_show_every_trial_predictor_and_attribute():
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_report(console, a_report())
    text = console.file.getvalue()

    for word in (
        "t000",
        "t003",
        "out of memory at batch 16",
        "rule extractor",
        "constants",
        "untrained model",
        "price",
    ):
        assert word in text


class _Page(HTMLParser):
    """Collects what a page would fetch or run, and checks that its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "iframe"} or any(name in {"src", "href"} for name, _ in attributes):
            self.fetched.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_the_network():
    text = render_page(a_report())
    page = _Page()
    page.feed(text)

    assert page.fetched == [] and page.open == []
    assert not re.search(r"url\(|@import|https?://", text)
    assert text.count("<svg") == 2
    assert "The winner beats the rule extractor" in text


def test_what_comes_from_outside_is_escaped_in_the_page():
    evil = "<script>alert(1)</script>"
    trials = (a_trial(1, state=TrialState.FAILED, message=evil, arm={"kind": evil}),)

    text = render_page(
        a_report(trials=trials, message=evil, adapter=evil, agreement=(evil,), winner=None, judgement=None)
    )

    assert "<script" not in text


def test_a_page_of_a_study_that_has_just_begun_is_whole_too():
    text = render_page(a_report(trials=(), winner=None, adapter=None, judgement=None, summary=None, agreement=()))
    page = _Page()
    page.feed(text)

    assert page.open == []
    assert "No trial is measured yet." in text


def test_the_live_table_shows_what_runs_with_its_loss_and_when_it_ends():
    progress = Progress(
        step=30, stop_step=120, total_steps=120, loss=1.2345, phase="train", eta_seconds=125.0, updated_at="x"
    )
    trials = (measured(a_trial(0), 0.4), a_trial(1, state=TrialState.RUNNING))
    snapshot = Snapshot(
        study=a_study(), trials=trials, progress={"t001": progress}, stage="Exploring", note="", elapsed_seconds=61
    )
    text = drawn(render_live(snapshot))

    assert "laptop: Exploring, 1 of 8 trials measured, 1 min 01 s" in text
    assert re.search(r"t001.*Running: train.*30/120.*1\.234.*2 min 05 s", text)
    assert re.search(r"t000.*24/120.*40\.0 % ± 2\.0", text)


def test_without_a_terminal_a_line_says_how_far_a_trial_is():
    progress = Progress(
        step=30, stop_step=120, total_steps=120, loss=1.2345, phase="train", eta_seconds=125.0, updated_at="x"
    )
    snapshot = Snapshot(
        study=a_study(),
        trials=(a_trial(0), a_trial(1, state=TrialState.RUNNING)),
        progress={"t001": progress},
        stage="Exploring",
        note="",
        elapsed_seconds=1.0,
    )

    assert lines_of_progress(snapshot) == ["t001 train: step 30 of 120, loss 1.234, 2 min 05 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text
