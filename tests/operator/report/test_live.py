"""What a person sees while a study runs."""

import io
import re

import pytest
from rich.console import Console

from builders.some_studies import a_study, a_trial, measured
from study_operator.ledger.trial import TrialState
from study_operator.report.live import Snapshot, duration, lines_of_progress, render_live
from trial_trainer.contract import Progress


def drawn(renderable: object) -> str:
    """Return what a wide terminal without colours would show."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


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


def test_a_study_that_is_only_looked_at_has_no_time_that_it_ran():
    snapshot = Snapshot(study=a_study(), trials=(), progress={}, stage="Exploring", note="", elapsed_seconds=None)

    assert drawn(render_live(snapshot)).strip() == "laptop: Exploring, 0 of 8 trials measured"


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
    ("phase", "eta_seconds", "line"),
    [
        ("winner", 68.0, "final evaluation: winner 120 of 400 questions, 1 min 08 s left"),
        ("untrained", None, "final evaluation: untrained model 120 of 400 questions"),
        ("t012", None, "final evaluation: t012 120 of 400 questions"),
    ],
)
def test_the_final_evaluation_says_which_model_is_asked_and_how_far_it_is(phase, eta_seconds, line):
    progress = Progress(
        step=120, stop_step=400, total_steps=1200, loss=None, phase=phase, eta_seconds=eta_seconds, updated_at="x"
    )
    snapshot = Snapshot(
        study=a_study(),
        trials=(a_trial(0),),
        progress={},
        final_evaluation=progress,
        stage="Evaluating",
        note="",
        elapsed_seconds=1.0,
    )

    assert lines_of_progress(snapshot) == [line]
    assert f"{line}\n" in "".join(text.rstrip() + "\n" for text in drawn(render_live(snapshot)).splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text
