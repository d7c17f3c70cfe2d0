"""The report as a page: whole, without the network, and with nothing in it that its texts have made."""

import base64
import gzip
import hashlib
import random
import re
from dataclasses import replace
from importlib import resources

import pytest

import report_scripts
from builders.report_pages import EVIL, Page, a_report_that_holds
from builders.some_studies import a_final_evaluation, a_report, a_study, a_summary, a_trial, measured, some_examples
from study_operator.ledger.trial import Trial, TrialState
from study_operator.optimizer.reading import Importance, ModelReading, Share, Slice, SlicePoint
from study_operator.report.charts import MOST_ARMS, MOST_LINES, LossCurve
from study_operator.report.page import render_page
from study_operator.spec import limits
from study_operator.spec.parse import PARAMETERS
from study_operator.spec.study import Categorical, Parameter, RankBy, Uniform

MOST_BYTES = 3_000_000


def test_the_page_is_whole_and_needs_nothing_from_the_network() -> None:
    text = render_page(a_report())
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "form", "base"}
    assert not {name for _, names in page.tags for name in names} & {"src", "style", "onclick", "onload"}
    assert not re.search(r"url\(|@import|https?://", "".join(text for text in page.hidden_texts if len(text) < 50_000))
    assert len(text.encode()) < MOST_BYTES
    assert "The winner beats the rule extractor" in page.text


def test_the_pages_policy_names_what_may_run_and_refuses_all_else() -> None:
    page = Page(render_page(a_report()))
    (policy,) = (meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy")
    rules = {name: values for name, *values in (rule.split() for rule in (policy or "").split(";"))}
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in page.hidden_texts
    }
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == ["'none'"]
    assert {value for values in rules.values() for value in values} < hashes
    assert (len(rules["script-src"]), len(rules["style-src"])) == (2, 1)


def test_the_licences_of_what_is_inlined_stand_beside_it() -> None:
    (library,) = (text for text in Page(render_page(a_report())).hidden_texts if "vegaEmbed=" in text)
    for name in ("vega", "vega-lite", "vega-embed", "d3-scale", "topojson-client", "fast-json-patch"):
        assert re.search(rf"^(.*, )?{name}(, .*)?$", library.partition("*/")[0], re.MULTILINE)
    assert "University of Washington Interactive Data Lab" in library.partition("*/")[0]


@pytest.mark.slow
def test_what_draws_the_charts_is_what_the_pinned_release_of_vl_convert_makes() -> None:
    packed = resources.files("study_operator.report").joinpath("vega.js.gz").read_bytes()
    assert gzip.decompress(packed).decode() == report_scripts.bundle()


def test_no_text_from_outside_makes_a_tag_or_an_attribute() -> None:
    evil, harmless = (
        Page(render_page(a_report_that_holds(text), examples=some_examples(text))) for text in (EVIL, "harmless")
    )
    assert evil.tags == harmless.tags
    assert "<" not in evil.chart_data


def test_a_text_from_outside_stands_in_a_chart_as_it_is() -> None:
    charts = Page(render_page(a_report_that_holds(EVIL))).charts
    assert {value["arm"] for value in charts["arms"]["data"]["values"]} == {f"kind {EVIL}", f"{EVIL} 1"}
    assert EVIL in {value["row"] for value in charts["attributes"]["data"]["values"]}


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


def test_a_page_of_a_study_that_has_just_begun_is_whole_too() -> None:
    text = render_page(
        a_report(trials=(), winner=None, adapter=None, final_evaluation=None, summary=None, agreement=())
    )
    page = Page(text)
    assert "No trial is measured yet." in page.texts
    assert "agreement" not in page.charts


def test_each_chart_says_the_same_without_a_picture() -> None:
    losses = (LossCurve(trial="t002", points=((1, 2.5), (120, 0.25))),)
    page = Page(render_page(a_report(), losses))
    assert {*page.charts} == {"arms", "losses", "validation", "agreement", "attributes", "usage"}
    names = {name for tag, names in page.tags if tag == "div" for name in names}
    assert {"role", "aria-label", "data-chart"} <= names
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(page.charts)
    # Each value of the picture in words: an arm's, a loss, a gain, a share of right values, hours.
    for text in ("44.0 % ± 2.0", "55.0 % ± 2.0", "2.5", "0.25", "52.0 % (46.1–57.9)", "45.0 minutes"):
        assert text in page.texts


def test_the_loss_of_a_trial_is_drawn_by_the_share_of_its_full_length() -> None:
    losses = (LossCurve(trial="t001", points=((12, 2.0), (24, 1.0))), LossCurve(trial="t009", points=((1, 1.0),)))
    values = Page(render_page(a_report(), losses)).charts["losses"]["data"]["values"]
    assert [(value["trial"], value["share"], value["loss"]) for value in values] == [
        ("t001", 0.1, 2.0),
        ("t001", 0.2, 1.0),
    ]


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        pytest.param((12, 24), "each point the mean of the steps since the one before.", id="thinned"),
        pytest.param((1, 2), "step by step.", id="every step"),
    ],
)
def test_the_chart_of_losses_says_what_a_point_is(steps: tuple[int, int], sentence: str) -> None:
    losses = (LossCurve(trial="t001", points=((steps[0], 2.0), (steps[1], 1.0))),)
    assert f"by the share of the full length, {sentence}" in " ".join(Page(render_page(a_report(), losses)).texts)


def test_the_first_measurements_are_drawn_by_each_parameter_that_took_two_values() -> None:
    rates = ((0, 0.001, 8), (1, 0.01, 8), (2, 0.0001, 4))
    trials = tuple(
        measured(a_trial(i, arm={"learning_rate": rate, "batch_size": 8, "rank": 2}), 0.4) for i, rate, _ in rates
    )
    charts = Page(render_page(a_report(trials=trials, winner=None))).charts
    assert [name for name in charts if name.startswith("parameter")] == ["parameter-0"]
    x = charts["parameter-0"]["encoding"]["x"]
    assert (x["title"], x["scale"]["type"]) == ("learning_rate", "log")
    assert [value["setting"] for value in charts["parameter-0"]["data"]["values"]] == [0.001, 0.01, 0.0001]

    trials = tuple(measured(a_trial(i, arm={"learning_rate": 0.1, "batch_size": size}), 0.4) for i, _, size in rates)
    x = Page(render_page(a_report(trials=trials, winner=None))).charts["parameter-1"]["encoding"]["x"]
    # 8 and 16 are the choices; the baseline's 4 stands in its place among them.
    assert x["sort"] == [4, 8, 16]


def test_of_many_arms_the_best_are_drawn_and_all_are_listed() -> None:
    trials = tuple(measured(a_trial(i), i / 1000) for i in range(MOST_ARMS + 40))
    page = Page(render_page(a_report(trials=trials, winner=None)))
    drawn = [value["trial"] for value in page.charts["arms"]["data"]["values"]]
    assert drawn == [f"t{MOST_ARMS + 39 - i:03d}" for i in range(MOST_ARMS)]
    assert {f"t{i:03d}" for i in range(MOST_ARMS + 40)} <= {text.strip() for text in page.texts}
    assert f"The first {MOST_ARMS} of {MOST_ARMS + 40} measured arms are drawn." in page.text


def test_the_page_of_the_largest_study_keeps_its_size() -> None:
    """Whatever it is told, quotes and tags included, which take four to six times their room in HTML."""
    chance, names = random.Random(0), sorted(PARAMETERS)
    study = replace(
        a_study(),
        parameters=tuple(Parameter(name=name, search_space=Uniform(min=0, max=1)) for name in names),
        promotion=replace(a_study().promotion, rank_by=RankBy.OBJECTIVE_AND_LOSS),
    )

    def measure(index: int) -> Trial:
        trial = a_trial(index, arm={name: chance.random() for name in names})
        return replace(measured(measured(trial, chance.random()), chance.random(), rung=1), message='"' * 180)

    trials = tuple(measure(i) for i in range(limits.MAX_TRIALS))
    share = Share(value=0.3, low=0.1, high=0.5)
    points = tuple(SlicePoint(setting=i / 20, value=0.4, low=0.3, high=0.5) for i in range(21))
    model = ModelReading(
        measured=len(trials),
        through=trials[0].arm,
        tau=0.5,
        p=0.01,
        knows=True,
        importances=tuple(Importance(parameter=name, first=share, total=share) for name in names),
        slices=tuple(Slice(parameter=name, points=points) for name in names),
    )
    scores = {
        name: replace(of, by_attribute={f"{i:02d}" + '"' * 38: of.all_asked for i in range(limits.ATTRIBUTES_LENGTH)})
        for name, of in a_final_evaluation().predictors.items()
    }
    losses = [
        LossCurve(trial=trial.name, points=tuple((i, 9 * chance.random()) for i in range(120)))
        for trial in trials[:MOST_LINES]
    ]
    (page, *_) = some_examples().pages
    examples = replace(some_examples(), pages=(replace(page, lines=("<" * 300,) * 200, lines_in_all=200),) * 12)
    text = render_page(
        a_report(
            study=study, trials=trials, model=model, final_evaluation=replace(a_final_evaluation(), predictors=scores)
        ),
        losses,
        examples,
    )
    assert len(text.encode()) < MOST_BYTES
    charts = Page(text).charts
    assert len(charts["agreement"]["data"]["values"]) == limits.MAX_TRIALS
    assert "more lines" in text


def test_a_loss_of_a_trial_that_was_not_measured_soundly_is_drawn_as_others_are() -> None:
    trials = (measured(a_trial(1), 0.4), measured(a_trial(2), 0.0, diverged=True))
    losses = [LossCurve(trial=trial.name, points=((1, 2.0), (2, 1.0))) for trial in trials]
    page = Page(render_page(a_report(trials=trials, winner=None), losses))
    assert {value["role"] for value in page.charts["losses"]["data"]["values"]} == {"other trials"}
    assert page.trials["t002"]["first"] is None


def test_choices_stand_on_their_axis_as_the_manifest_has_them() -> None:
    choices = (0.0012345678, 1 / 3)
    study = replace(
        a_study(), parameters=(Parameter(name="learning_rate", search_space=Categorical(values=choices, ordered=True)),)
    )
    trials = tuple(measured(a_trial(i, arm={"learning_rate": choice}), 0.4) for i, choice in enumerate(choices))
    charts = Page(render_page(a_report(study=study, trials=trials, winner=None))).charts
    assert charts["parameter-0"]["encoding"]["x"]["sort"] == [*choices]
    assert [value["setting"] for value in charts["parameter-0"]["data"]["values"]] == [*choices]


def test_answers_stand_beside_the_expected_value_and_the_line_that_holds_it_is_marked() -> None:
    text = render_page(a_report(), examples=some_examples())
    assert '<mark>only 3.50</mark> <span class="evidence">price</span>' in text
    assert text.count("<mark>") == 1
    assert '<a href="#page-1-2">price</a>' in text and '<li id="page-1-2"><mark>' in text
    page = Page(text)
    shown = [line.strip() for line in page.texts if line.strip()]
    first = shown.index("price", shown.index("constants", shown.index("expected")))
    assert shown[first : first + 10] == ["price", "3.50", "✓", "3,50 €", "✗", "35", "✗", "(nothing)", "✗", "none"]
    assert "2 more lines" in shown and "its text is not known" in shown
    assert "p1 (shop1.example): a page where the winner is right and the baseline is not" in shown
    assert (
        "2 of 140 pages of the test set: up to three of each of four kinds, in an order that the pages' names alone "
        "decide. Of all pages, by at least one question: 4 where the winner is right and the baseline is not, 1 where "
        "the baseline is right and the winner is not, 2 where both are wrong, 130 where both are right."
    ) in page.text
    assert "Pages" not in Page(render_page(a_report())).texts
