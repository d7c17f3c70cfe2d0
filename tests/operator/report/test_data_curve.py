"""The data curve in tables, on the page and for programs."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from builders.ledgers import a_measurement, a_study, a_trial
from builders.some_studies import a_final_evaluation, a_report, a_row
from study_operator.ledger.data_curve import SizeRun, fit_data_curve
from study_operator.ledger.trial import Origin, Trial, TrialState
from study_operator.report.data_curve import CurveReport, describe_fit, list_points, list_rows
from study_operator.report.page import render_page
from study_operator.report.report import render_json, render_summary
from study_operator.spec.metrics import Direction


def a_run(index: int, samples: int, value: float | None, *, diverged: bool = False) -> Trial:
    run = a_trial(index, origin=Origin.DATA_CURVE, rung=1, train_samples=samples, seed=index)
    if value is None:
        return replace(run, state=TrialState.FAILED, message="the environment ended 4 attempts")
    measurement = a_measurement(1, value, diverged=diverged)
    return replace(run, state=TrialState.COMPLETED, measurements=(measurement,))


RUNS = (
    a_run(4, 200, 0.5),
    a_run(5, 200, 0.6),
    a_run(6, 400, 0.8),
    a_run(7, 400, 0.0, diverged=True),
    a_run(8, 800, None),
)
TEST = {name: a_row(value).all_asked for name, value in (("t004", 0.4), ("t005", 0.5), ("t006", 0.7))}
CURVE = CurveReport(
    of="t002", points=list_points(a_study(), RUNS, TEST), message="3 of 5 runs of the data curve were measured"
)


def test_each_size_has_mean_range_n_and_what_it_lacks() -> None:
    assert list(list_rows(a_study(), CURVE)) == [
        ["200", "2", "55.0 %", "–", "50.0 % to 60.0 %", "100", "45.0 %", "40.0 % to 50.0 %", "140", ""],
        ["400", "1", "80.0 %", "–", "–", "100", "70.0 %", "–", "140", "1 diverged"],
        ["800", "0", "–", "–", "–", "–", "–", "–", "–", "1 not measured"],
    ]


def test_every_form_of_the_report_tells_the_curve_and_whose_it_is() -> None:
    report = a_report(curve=CURVE)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_summary(report))
    title = "Data curve: accuracy by training samples, with the arm of t002"
    assert title in captured.get()
    assert "Data curve: 3 of 5 runs of the data curve were measured." in captured.get()
    page = render_page(report)
    assert title in page and "50.0 % to 60.0 %" in page
    rendered = json.loads(json.dumps(render_json(report), allow_nan=False))["dataCurve"]
    assert rendered["trial"] == "t002"
    assert rendered["points"][0] == {
        "samples": 200,
        "validation": {"mean": 0.55, "values": [0.5, 0.6], "n": 100},
        "test": {"mean": 0.45, "values": [0.4, 0.5], "n": 140},
        "diverged": 0,
        "lacking": 0,
    }


def fitted(values: dict[int, float], least_gain: float = 0.01) -> CurveReport:
    """Return a curve of two seeds for each size, which differ by half a point."""
    runs, sized = [], []
    for size, value in values.items():
        for seed, noise in enumerate((-0.0025, 0.0025)):
            runs.append(a_run(len(runs), size, value + noise))
            sites = {f"s{i}": (10 * (value + noise), 10.0) for i in range(20)}
            sized.append(SizeRun(samples=size, seed=seed, sites=sites))
    fit = fit_data_curve(sized, direction=Direction.MAXIMIZE, is_share=True, least_gain=least_gain)
    return CurveReport(of="t002", points=list_points(a_study(), runs, {}), message="all", fit=fit)


SIZES = (100, 200, 400, 800, 1600, 3200)


@pytest.mark.parametrize(
    ("curve", "sentence"),
    [
        pytest.param(
            fitted({n: 0.9 - 20 / n for n in SIZES}),
            "accuracy saturates near 977 training samples (90 % interval 885 to 1,144): beyond, doubling the data "
            "gains less than 1 point.",
            id="half of what is missing to 90 % goes with each doubling",
        ),
        pytest.param(
            fitted({n: 0.2 + 0.1 * i for i, n in enumerate(SIZES)}),
            "accuracy is not saturated: at 3,200 training samples doubling the data still gains 1 point or more.",
            id="ten points with each doubling",
        ),
        pytest.param(
            fitted(dict(zip(SIZES, (0.5, 0.6, 0.7, 0.75, 0.7, 0.5), strict=True))),
            "accuracy turns down: 3200 samples are worse than 800, and no curve is fitted.",
            id="worse at the largest size",
        ),
        pytest.param(
            fitted({100: 0.5, 200: 0.6}),
            "Where accuracy saturates is not identifiable from these sizes: a curve needs at least 5 sizes, got 2.",
            id="two sizes",
        ),
    ],
)
def test_the_curve_says_where_it_saturates_or_that_nobody_can_tell(curve: CurveReport, sentence: str) -> None:
    (found,) = describe_fit(a_study(), curve)
    assert found.startswith(sentence)
    assert f"Data curve: {found}" in render_page(a_report(curve=curve)).replace("&#39;", "'")
    rendered = json.loads(json.dumps(render_json(a_report(curve=curve)), allow_nan=False))["dataCurve"]["fit"]
    assert rendered["saturation"]["shape"] == curve.fit.saturation.shape


def test_the_page_draws_each_run_the_means_and_the_fit_where_there_is_one() -> None:
    def draw(curve: CurveReport) -> str:
        return render_page(a_report(curve=curve, trials=())).partition("<h2>Data curve</h2>")[2]

    page = draw(fitted({n: 0.9 - 20 / n for n in SIZES}))
    assert page.count('<circle class="early"') == 2 * len(SIZES)
    assert page.count('<circle class="full"') == len(SIZES)
    assert page.count("<path") == 1
    assert "<path" not in draw(fitted({100: 0.5, 200: 0.6}))
    assert "<svg" not in draw(fitted({100: 0.5}))


def test_each_mean_stands_beside_its_interval() -> None:
    curve = fitted({n: 0.9 - 20 / n for n in SIZES})
    row = next(list_rows(a_study(), curve))
    assert row[2] == "70.0 %"
    low, high = (float(end.removesuffix(" %")) for end in row[3].split(" to "))
    assert 69 < low < 70 < high < 71


def test_a_study_without_a_curve_says_nothing_of_one() -> None:
    report = a_report()
    assert render_json(report)["dataCurve"] is None
    assert "Data curve" not in render_page(report)


def test_scores_of_runs_on_the_test_set_stand_in_the_final_evaluation() -> None:
    report = a_report(final_evaluation=replace(a_final_evaluation(), curve={"t004": a_row(0.4)}))
    assert render_json(report)["finalEvaluation"]["curve"]["t004"]["all_asked"]["value"] == 0.4
