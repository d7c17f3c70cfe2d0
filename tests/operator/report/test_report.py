"""What is said of a study: the sentence that matters first, and figures with what they mean."""

import io
import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from markupsafe import escape
from rich.console import Console

from builders.ledgers import of_three_rungs
from builders.report_pages import Page
from builders.some_studies import a_final_evaluation, a_report, a_row, a_study, a_summary, a_trial, measured
from study_operator.ledger.gain import Gain, GainSource
from study_operator.ledger.trial import Continuation, Trial, TrialState
from study_operator.report.numbers import describe_metric
from study_operator.report.page import render_page
from study_operator.report.report import (
    PREDICTORS,
    asking_lines,
    describe_cells,
    describe_value,
    final_evaluation_rows,
    headline,
    lines_of,
    loading_lines,
    print_report,
    ranked,
    render_json,
    render_trials,
)
from study_operator.spec.metrics import Direction
from study_operator.spec.study import EarlyEvaluation, Objective, OutcomeConstraint, Promotion, RankBy, Storage
from trial_trainer.contract import BaseModel, FinalEvaluation, Interval, Metric, Precision, PredictorScores


def drawn(renderable: object) -> str:
    """Return what a wide terminal without colours would show."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_a_winner_that_does_not_beat_the_rules_is_said_first():
    report = a_report(final_evaluation=a_final_evaluation(winner=0.44, rules=0.47))

    assert lines_of(report)[0] == (
        "THE WINNER DOES NOT BEAT THE RULE EXTRACTOR on the test set: 44.0 % against 47.0 % "
        "(mean of the hand-labelled attributes), -3.0 points (95 % interval -7.0 to +1.0, n = 500, 60 sites, one seed)."
    )


def test_a_gain_whose_interval_holds_zero_is_no_win():
    assert headline(a_report(final_evaluation=a_final_evaluation(winner=0.50, rules=0.47))).startswith(
        "THE WINNER DOES NOT BEAT"
    )
    assert headline(a_report(final_evaluation=a_final_evaluation(winner=0.52, rules=0.47))).startswith(
        "The winner beats"
    )


# Which mean, against what -----------------------------------------------------------------------------------------

NOTHING = Metric(value=0.0, standard_error=None, n=0)


def without_hand_labels(final_evaluation: FinalEvaluation) -> FinalEvaluation:
    """Return the final evaluation of a test set that only markup labels; means of nothing as they are written."""
    gains = {name.replace("hand_labelled", "all_asked"): gain for name, gain in final_evaluation.gains.items()}
    gains["hand_labelled/winner-rule_based"] = Interval(difference=0.0, low=-1.0, high=1.0, n=0, sites=0)
    predictors = {name: replace(scores, hand_labelled=NOTHING) for name, scores in final_evaluation.predictors.items()}
    return replace(final_evaluation, predictors=predictors, gains=gains)


def only(final_evaluation: FinalEvaluation, *names: str) -> FinalEvaluation:
    return replace(final_evaluation, predictors={name: final_evaluation.predictors[name] for name in names})


MARKUP_ONLY = without_hand_labels(a_final_evaluation(winner=0.946, rules=0.546))
"""A winner that learnt the markup nearly by heart."""


@pytest.mark.parametrize(
    ("final_evaluation", "message"),
    [
        pytest.param(
            MARKUP_ONLY,
            "The winner beats the constants (better than the untrained model) on the test set: 94.6 % against 20.0 % "
            "(mean of all asked attributes), +74.6 points (95 % interval +70.6 to +78.6, n = 500, 60 sites, one seed). "
            "The rule extractor reads the same markup as the labels, so it is no independent baseline here.",
            id="labels of markup alone",
        ),
        pytest.param(
            only(MARKUP_ONLY, "winner", "rule_based", "untrained"),
            "The winner beats the untrained model on the test set: 94.6 % against 2.0 % "
            "(mean of all asked attributes), +92.6 points (95 % interval +88.6 to +96.6, n = 500, 60 sites, one seed). "
            "The rule extractor reads the same markup as the labels, so it is no independent baseline here.",
            id="labels of markup and no constants",
        ),
        pytest.param(
            only(MARKUP_ONLY, "winner", "rule_based", "baseline"),
            "The winner beats the baseline on the test set: 94.6 % against 48.0 % "
            "(mean of all asked attributes), +46.6 points (95 % interval +42.6 to +50.6, n = 500, 60 sites, one seed). "
            "The rule extractor reads the same markup as the labels, so it is no independent baseline here.",
            id="labels of markup and a baseline arm alone",
        ),
        pytest.param(
            only(a_final_evaluation(winner=0.19), "winner", "baseline", "untrained", "constant"),
            "THE WINNER DOES NOT BEAT THE CONSTANTS (BETTER THAN THE UNTRAINED MODEL) on the test set: 19.0 % "
            "against 20.0 % (mean of the hand-labelled attributes), "
            "-1.0 points (95 % interval -5.0 to +3.0, n = 500, 60 sites, one seed).",
            id="ready samples, where the most frequent answer is as good",
        ),
        pytest.param(
            a_final_evaluation(winner=0.15, rules=0.0),
            "THE WINNER DOES NOT BEAT THE CONSTANTS (BETTER THAN THE RULE EXTRACTOR AND THE UNTRAINED MODEL) on the "
            "test set: 15.0 % against 20.0 % (mean of the hand-labelled attributes), "
            "-5.0 points (95 % interval -9.0 to -1.0, n = 500, 60 sites, one seed).",
            id="pages on which the rules find nothing",
        ),
        pytest.param(
            replace(
                MARKUP_ONLY,
                predictors=MARKUP_ONLY.predictors | {"constant": MARKUP_ONLY.predictors["untrained"]},
            ),
            "The winner beats the untrained model on the test set: 94.6 % against 2.0 % "
            "(mean of all asked attributes), +92.6 points (95 % interval +88.6 to +96.6, n = 500, 60 sites, one seed). "
            "The rule extractor reads the same markup as the labels, so it is no independent baseline here.",
            id="constants as good as the untrained model",
        ),
        pytest.param(
            only(MARKUP_ONLY, "winner", "rule_based"),
            "laptop: t002 is the winner; no question of the test set was answered by an independent baseline too.",
            id="labels of markup and rules alone",
        ),
        pytest.param(
            replace(
                a_final_evaluation(),
                predictors=dict.fromkeys(PREDICTORS, replace(a_row(0.5), hand_labelled=NOTHING, all_asked=NOTHING)),
            ),
            "laptop: t002 is the winner; no question of the test set has a value.",
            id="no question has a value",
        ),
        pytest.param(
            replace(a_final_evaluation(), gains={}),
            "Whether the winner beats the rule extractor on the test set is not known: 52.0 % against 47.0 % "
            "(mean of the hand-labelled attributes).",
            id="nobody compared them",
        ),
        pytest.param(
            replace(
                a_final_evaluation(),
                gains={"hand_labelled/winner-rule_based": Interval(difference=0.05, low=None, high=None, n=9, sites=3)},
            ),
            "Whether the winner beats the rule extractor on the test set is not known: 52.0 % against 47.0 % "
            "(mean of the hand-labelled attributes), +5.0 points (n = 9, one seed; no interval: 3 sites are too few, 5 "
            "are needed).",
            id="too few sites",
        ),
    ],
)
def test_the_headline_reads_a_mean_that_exists_against_an_independent_baseline(final_evaluation, message) -> None:
    assert headline(a_report(final_evaluation=final_evaluation)) == message


def test_every_form_of_the_report_reads_the_same_mean() -> None:
    report = a_report(final_evaluation=MARKUP_ONLY)
    values = json.loads(json.dumps(render_json(report), allow_nan=False))

    assert values["comparison"] == {"mean": "all_asked", "baseline": "constant", "isBetter": True}
    assert values["headline"] == lines_of(report)[0]
    assert str(escape(values["headline"])) in render_page(report)
    test = "94.6 % (95 % interval 88.7 to 100.0, n = 140, 60 sites); no label of the test set was made by a person."
    gain = "+40.0 points (95 % interval +36.0 to +44.0, n = 500, 60 sites, one seed); no independent baseline."
    for line in (f"Test, mean of all asked attributes: {test}", f"Gain over the rule extractor: {gain}"):
        assert line in lines_of(report) and str(escape(line)) in render_page(report)


def test_markup_in_the_other_mean_is_said_beside_hand_labels() -> None:
    more = {
        name: replace(j, all_asked=replace(j.all_asked, n=200)) for name, j in a_final_evaluation().predictors.items()
    }
    message = (
        "In the mean of all asked attributes, 60 of 200 labels are the pages' own markup, "
        "which the rule extractor reads too."
    )
    assert message in lines_of(a_report(final_evaluation=replace(a_final_evaluation(), predictors=more)))
    assert message not in lines_of(a_report())


def test_a_mean_of_nothing_is_never_a_number() -> None:
    """Everywhere where the accuracies of the fixture are, replaced by means of no question."""
    empty = PredictorScores(
        hand_labelled=NOTHING,
        all_asked=replace(a_row(0.5).all_asked),
        by_attribute={"name": a_row(0.5).all_asked, "rating": NOTHING},
        invalid_output_rate=NOTHING,
        false_value_rate=NOTHING,
    )
    final_evaluation = replace(MARKUP_ONLY, predictors=dict.fromkeys(PREDICTORS, empty))
    nothing_read = replace(measured(a_trial(0), 0.0).measurements[0], n=0)
    report = a_report(
        final_evaluation=final_evaluation, trials=(replace(a_trial(0), measurements=(nothing_read,)),), winner=None
    )
    console = Console(file=io.StringIO(), width=250, color_system=None)
    print_report(console, report)
    values = render_json(report)

    for text in (console.file.getvalue(), Page(render_page(report)).text):
        assert not re.search(r"(?<![0-9.])0\.0 %|nan|n = 0\b", text)
        assert "rating" not in text and "hand-labelled" not in text
    winner = values["finalEvaluation"]["predictors"]["winner"]
    assert winner["hand_labelled"] is winner["false_value_rate"] is winner["by_attribute"]["rating"] is None
    assert winner["all_asked"]["value"] == 0.5
    assert all(gain["n"] for gain in values["finalEvaluation"]["gains"].values())
    assert values["trials"][0]["measurements"][0]["value"] is None


# What ± means ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "cell"),
    [
        pytest.param(Metric(value=0.5, standard_error=0.05, n=9, sites=9, low=0.25, high=0.75), "50.0 % (25.0–75.0)"),
        pytest.param(Metric(value=0.0, standard_error=None, n=9, sites=9, low=0.0, high=0.3), "0.0 % (0.0–30.0)"),
        pytest.param(Metric(value=0.5, standard_error=None, n=9, sites=3), "50.0 %", id="too few sites"),
        pytest.param(Metric(value=0.5, standard_error=0.05, n=9), "50.0 % ± 5.0", id="of an earlier version"),
        pytest.param(Metric(value=0.0, standard_error=0.0, n=9), "0.0 %", id="of an earlier version, all alike"),
        pytest.param(NOTHING, "–", id="of nothing"),
    ],
)
def test_a_cell_shows_an_interval_and_no_certainty(metric, cell) -> None:
    assert describe_metric(metric) == cell


def test_what_the_figures_mean_stands_above_them() -> None:
    few = Metric(value=0.5, standard_error=None, n=9, sites=3)
    final_evaluation = a_final_evaluation()
    with_few = {
        name: replace(scores, by_attribute={"price": few}) for name, scores in final_evaluation.predictors.items()
    }
    words = (
        "share of right values, and of errors where lower is better; 95 % interval in parentheses, clustered by site"
    )
    assert describe_cells(final_evaluation) == words
    assert describe_cells(replace(final_evaluation, predictors=with_few)) == (
        f"{words}; no interval where 3 sites are too few, 5 are needed"
    )
    earlier = {name: replace(j, **dict.fromkeys(FIELDS, EARLIER)) for name, j in with_few.items()}
    assert describe_cells(replace(final_evaluation, predictors=earlier)) == (
        "share of right values, and of errors where lower is better; ± one standard error, clustered by site; "
        "no interval where 3 sites are too few, 5 are needed"
    )


def test_a_row_of_the_test_set_that_is_better_when_it_is_lower_says_so() -> None:
    scores = a_final_evaluation().predictors["winner"]
    whole = replace(scores, false_value_rate=EARLIER, cut_answer_rate=EARLIER)
    labels = [label for label, _ in final_evaluation_rows(replace(a_final_evaluation(), predictors={"winner": whole}))]
    assert [label for label in labels if label.endswith(" (lower is better)")] == labels[-3:]
    assert labels[-3:] == [
        "a value where there is none (lower is better)",
        "invalid output (lower is better)",
        "answers cut at the limit (lower is better)",
    ]


FIELDS = ("hand_labelled", "all_asked", "invalid_output_rate", "false_value_rate")
EARLIER = Metric(value=0.5, standard_error=0.03, n=140)


def test_the_errors_of_trials_say_what_they_are_or_why_there_are_none() -> None:
    report = a_report()
    summary = a_summary()
    validation = replace(summary.splits["validation"], sites=4)
    few = replace(report, summary=replace(summary, splits=summary.splits | {"validation": validation}))

    assert "trials (± one standard error, clustered by site)" in drawn(render_trials(report))
    assert "trials (no standard errors: 4 sites are too few, 5 are needed)" in drawn(render_trials(few))
    assert "bars: no standard errors: 4 sites are too few, 5 are needed" in render_page(few)


def test_a_gain_without_standard_errors_is_said_to_be_too_good() -> None:
    report = a_report()
    trials = [
        replace(t, measurements=tuple(replace(m, standard_error=None) for m in t.measurements)) for t in report.trials
    ]
    assert lines_of(replace(report, trials=trials))[2].endswith(
        "of the baseline: +7.0 points as measured, the best of 2 arms, which is too good by chance; without standard "
        "errors nobody knows by how much; one seed."
    )


def test_one_arm_beside_the_baseline_is_the_best_of_nothing() -> None:
    report = a_report()
    alone = replace(report, trials=[t for t in report.trials if t.name in ("t000", "t002")])
    unknown = [
        replace(t, measurements=tuple(replace(m, standard_error=None) for m in t.measurements)) for t in alone.trials
    ]
    assert "+7.0 points as measured; corrected for being the better of two" in lines_of(alone)[2]
    assert lines_of(replace(alone, trials=unknown))[2].endswith(
        "+7.0 points as measured; no standard errors; one seed."
    )


@pytest.mark.parametrize("direction", Direction)
def test_of_a_trial_that_diverged_no_value_is_shown_and_it_stands_below_the_others(direction: Direction) -> None:
    study = replace(a_study(), objective=Objective(metric="validation_loss", direction=direction))
    trials = (measured(a_trial(0), 2.5, diverged=True), measured(a_trial(1), 2.5), measured(a_trial(2), 1.5))
    assert [t.name for t in ranked(study, trials)][-1] == "t000"
    report = a_report(study=study, trials=trials, winner=None, final_evaluation=None)
    (row,) = (line for line in drawn(render_trials(report)).splitlines() if "t000" in line)
    assert "diverged" in row
    assert "2.5" not in row
    drawn_trials = [value["trial"] for value in Page(render_page(report)).charts["arms"]["data"]["values"]]
    assert drawn_trials == (["t001", "t002"] if direction is Direction.MAXIMIZE else ["t002", "t001"])


def test_what_no_trainer_tells_is_not_said_to_be_nothing() -> None:
    lines = lines_of(a_report(saved_hours=None))
    assert (
        "Accelerator time: 30.0 minutes spent, what was saved against running every measured trial to its full length "
        "is not known: the trainer tells no seconds of training." in lines
    )


def test_two_rungs_that_cost_more_than_they_spared_are_said_to() -> None:
    lines = lines_of(a_report(saved_hours=-0.1))
    assert (
        "Accelerator time: 30.0 minutes spent, 6.0 minutes more than running every measured trial to its full length."
        in lines
    )


def test_programs_read_the_gain_with_its_interval_and_what_it_is_of() -> None:
    assert render_json(a_report())["gain"] is None
    gain = Gain(
        trial="t002",
        estimate=0.01,
        low=-0.02,
        high=0.09,
        source=GainSource.VALIDATION,
        best_of=24,
        uncorrected=0.07,
    )
    assert render_json(a_report(gain=gain))["gain"] == {
        "trial": "t002",
        "estimate": 0.01,
        "low": -0.02,
        "high": 0.09,
        "on": "Validation",
        "bestOf": 24,
        "uncorrected": 0.07,
        "seeds": 1,
    }


def test_the_end_says_validation_test_gain_agreement_and_time():
    lines = lines_of(a_report())

    assert lines[1] == "Winner: t002, learning_rate 0.001, lora_rank 16, batch_size 8."
    assert lines[2] == (
        "Validation accuracy: 55.0 % ± 2.0 (n = 160, step 120 of 120), "
        "against 48.0 % ± 2.0 of the baseline: +7.0 points as measured, the best of 2 arms; corrected for that choice "
        "+6.5 points (95 % interval +0.7 to +12.5, one seed)."
    )
    assert (
        "Test, mean of the hand-labelled attributes: 52.0 % (95 % interval 46.1 to 57.9, n = 140, 60 sites)." in lines
    )
    assert "Gain over the baseline: +4.0 points (95 % interval +0.0 to +8.0, n = 500, 60 sites, one seed)." in lines
    assert "Early and final measurements agree on 2 of 3 pairs." in lines
    assert (
        "Accelerator time: 30.0 minutes spent, 15.0 minutes saved against running every measured trial "
        "to its full length." in lines
    )


@pytest.mark.parametrize(
    ("stopped_at", "loss", "why"),
    [
        pytest.param(0.0, 1.5, "the elder", id="equal"),
        pytest.param(0.0, 1.6, "the lower validation loss", id="the loss decided"),
        pytest.param(0.0, 1.50004, "the lower validation loss", id="the loss decided by little"),
        pytest.param(0.0, 1.4, "the elder", id="an earlier version decided"),
        pytest.param(-0.1, 1.5, None, id="worse"),
    ],
)
def test_a_promotion_that_a_tie_decided_is_called_so(stopped_at: float, loss: float, why: str | None) -> None:
    promoted = replace(measured(measured(a_trial(1), 0.0), 0.4, rung=1), rung=1)
    stopped = replace(measured(a_trial(2), stopped_at), state=TrialState.STOPPED)
    (first,) = stopped.measurements
    stopped = replace(stopped, measurements=(replace(first, metrics={"validation_loss": loss}),))
    lines = lines_of(a_report(trials=(promoted, stopped), winner="t001"))
    losses = f" (in nats per token: t001 1.5, t002 {loss})" if loss > 1.5 else ""
    says = f"Promotion: on rung 0 t001 measured the same as t002, which stopped: among equals {why} goes on{losses}."
    assert [line for line in lines if line.startswith("Promotion")] == ([says] if why else [])


def test_where_ties_went_by_the_loss_and_by_age_both_are_told() -> None:
    def tied(index: int, loss: float, **changes: Any) -> Trial:
        trial = measured(a_trial(index), 0.5)
        (first,) = trial.measurements
        return replace(trial, measurements=(replace(first, metrics={"validation_loss": loss}),), **changes)

    promoted = [measured(tied(i, loss, rung=1), 0.6, rung=1) for i, loss in ((1, 2.0), (2, 1.0))]
    lines = lines_of(a_report(trials=(*promoted, tied(3, 2.0, state=TrialState.STOPPED)), winner="t001"))
    (line,) = (line for line in lines if line.startswith("Promotion"))
    assert line.startswith("Promotion: on rung 0 t001, t002 measured the same as t003")
    assert line.endswith(
        "among equals the lower validation loss or else the elder goes on (in nats per token: t001 2, t002 1, t003 2)."
    )


@pytest.mark.parametrize(("stratum", "is_told"), [(0, False), (1, True)])
def test_a_tie_is_told_of_one_that_was_audited_on_a_later_rung(stratum: int, is_told: bool) -> None:
    study = of_three_rungs(a_report().study)
    drawn = measured(measured(a_trial(1), 0.5), 0.5, rung=1)
    drawn = replace(drawn, rung=2, continuation=Continuation.AUDITED, inclusion_probability=0.5, audited_at=stratum)
    stopped = replace(measured(a_trial(2), 0.5), state=TrialState.STOPPED)
    lines = lines_of(a_report(study=study, trials=(drawn, stopped), winner="t001"))
    assert any(line.startswith("Promotion: on rung 0 t001") for line in lines) is is_told


@pytest.mark.parametrize(
    ("exploring", "sentences"),
    [(0, []), (1, ["Search: 1 of 5 arms was spread out"]), (3, ["Search: 3 of 5 arms were spread out"])],
)
def test_arms_that_the_model_knew_nothing_of_are_counted(exploring: int, sentences: list[str]) -> None:
    trials = [a_trial(i, generation_node="Explore_Sobol" if 5 - i <= exploring else "Sobol") for i in range(5)]
    lines = lines_of(replace(a_report(), trials=trials))
    why = " because the optimizer's model did not rank the measured arms better than chance."
    assert [line for line in lines if line.startswith("Search:")] == [sentence + why for sentence in sentences]


def test_a_baseline_that_wins_is_not_compared_with_itself():
    assert "the winner is the baseline itself" in lines_of(a_report(winner="t000"))[2]


def test_before_the_final_evaluation_it_says_how_far_the_study_is():
    report = a_report(final_evaluation=None, winner=None, adapter=None, stage="Exploring", message="waiting for t003")

    assert headline(report) == "laptop: Exploring, 3 of 8 trials measured. waiting for t003"


def test_the_lines_that_load_the_adapter_are_python():
    report = a_report()
    study = replace(report.study, base_model=BaseModel(uri="hf://owner/model", revision="abc"))

    compile(loading_lines(report), "loading", "exec")
    assert 'PeftModel.from_pretrained(model, "/runs/t002/adapter")' in loading_lines(report)
    assert 'AutoTokenizer.from_pretrained("owner/model", revision="abc")' in loading_lines(replace(report, study=study))


@pytest.mark.parametrize(
    ("records", "asked"),
    [
        pytest.param({"Page": 260}, ["html"], id="pages"),
        pytest.param({"Text": 260}, ["text"], id="texts"),
        pytest.param({"Page": 1, "Text": 259}, ["html", "text"], id="both"),
        pytest.param({}, ["html", "text"], id="a trainer that does not tell"),
    ],
)
def test_the_asking_lines_ask_about_what_the_study_was_of(records, asked):
    lines = asking_lines(a_report(summary=replace(a_summary(), records=records)))
    compile(lines, "asking", "exec")
    assert re.findall(r"ask\((\w+)=", lines) == asked
    assert asking_lines(a_report(summary=None)).count("extractor.ask(") == 2


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


def test_a_trial_that_breaks_a_constraint_stands_below_those_on_its_rung_that_keep_it() -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.05)
    study = replace(a_study(), outcome_constraints=(constraint,))
    trials = [measured(a_trial(i), value) for i, value in ((1, 0.9), (2, 0.4), (3, 0.5))]
    rates = [replace(t.measurements[0], metrics={"invalid_output_rate": 0.5 * (t.index == 1)}) for t in trials]
    trials = [replace(t, measurements=(m,)) for t, m in zip(trials, rates, strict=True)]
    assert [trial.name for trial in ranked(study, trials)] == ["t003", "t002", "t001"]


def test_trials_are_ranked_by_the_direction_and_unmeasured_ones_stand_last():
    report = a_report()
    minimized = replace(report.study, objective=replace(report.study.objective, direction="Minimize"))

    assert [trial.name for trial in ranked(report.study, report.trials)] == ["t002", "t000", "t001", "t003"]
    assert [trial.name for trial in ranked(minimized, report.trials)] == ["t000", "t002", "t001", "t003"]


def test_the_winner_stands_on_top_and_one_that_diverged_late_below_all_that_did_not():
    paused, second, winner = (measured(a_trial(i), early) for i, early in enumerate((0.9, 0.8, 0.7)))
    broken = measured(measured(a_trial(3), 0.95), 0.0, rung=1, diverged=True)
    trials = [paused, measured(second, 0.81, rung=1), measured(winner, 0.85, rung=1), broken]

    assert [trial.name for trial in ranked(a_study(), trials)] == ["t002", "t001", "t000", "t003"]


@pytest.mark.parametrize(
    ("metric", "value", "error", "text"),
    [
        pytest.param("accuracy", 0.4321, 0.021, "43.2 % ± 2.1", id="a share"),
        pytest.param("accuracy/price", 0.5, None, "50.0 %", id="a share without an error"),
        pytest.param("false_value_rate", 0.05, 0.01, "5.0 % ± 1.0", id="a rate"),
        pytest.param("accuracy", 1.0, None, "100.0 %", id="a share whose error is not known"),
        pytest.param("accuracy", 1.0, 0.0, "100.0 %", id="an error of nought, which is none"),
        pytest.param("accuracy", 0.9, 0.0001, "90.0 % ± less than 0.1", id="an error that rounds to nought"),
        pytest.param("validation_loss", 1.2, 0.0, "1.2", id="a loss without an error"),
        pytest.param("validation_loss", 1.23456, 0.0321, "1.235 ± 0.032", id="a loss, in nats"),
    ],
)
def test_values_are_said_in_their_own_unit(metric, value, error, text):
    assert describe_value(metric, value, error) == text


def test_the_report_as_json_is_valid_and_whole():
    values = json.loads(json.dumps(render_json(a_report()), allow_nan=False))

    assert values["winner"] == "t002"
    assert [trial["name"] for trial in values["trials"]] == ["t000", "t001", "t002", "t003"]
    assert values["finalEvaluation"]["gains"]["hand_labelled/winner-rule_based"]["low"] == pytest.approx(0.01)
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
        "constant",
        "untrained model",
        "price",
    ):
        assert word in text


def test_each_early_rung_has_its_column_and_only_who_goes_on_is_said_to():
    study = replace(
        a_study(),
        early_evaluation=EarlyEvaluation(rungs=(5, 20)),
        promotion=Promotion(num_promoted=1, promoted_percents=(50,)),
    )
    half_way = replace(measured(measured(a_trial(1), 0.21), 0.31, rung=1), state=TrialState.STOPPED, rung=1)
    full = measured(measured(measured(a_trial(0), 0.40), 0.48, rung=1), 0.55, rung=2)
    report = a_report(study=study, trials=(full, half_way), winner="t000")
    head, *rows = [line for line in drawn(render_trials(report)).splitlines() if "┃" in line or "│" in line]
    assert [name in head for name in ("accuracy at 5 %", "accuracy at 20 %", "accuracy full length")] == [True] * 3
    assert "55.0 %" in rows[0] and "Promoted" in rows[0]
    assert "31.0 %" in rows[1] and "Promoted" not in rows[1]
    page = render_page(report)
    assert "accuracy at 5 %" in page and "55.0 %" in page


@pytest.mark.parametrize("rank_by", [RankBy.VALIDATION_LOSS, RankBy.OBJECTIVE_AND_LOSS])
def test_what_ranks_on_an_early_rung_stands_beside_the_objective(rank_by):
    study = replace(a_study(), promotion=Promotion(num_promoted=2, rank_by=rank_by))
    report = a_report(study=study)
    text = drawn(render_trials(report))
    for shown in ("accuracy early", "validation_loss early", "accuracy full length", "1.5"):
        assert shown in text
    assert "validation_loss full length" not in text
    assert "validation_loss early" in render_page(report)
    assert "validation_loss" not in drawn(render_trials(a_report()))
