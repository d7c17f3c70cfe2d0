"""The data curve in tables, on the page and for programs."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from builders.ledgers import a_measurement, a_rung_measurement, a_study, a_trial
from builders.report_pages import Page
from builders.some_studies import a_final_evaluation, a_report, a_row
from study_operator.ledger.curve_comparison import compare_data_curves
from study_operator.ledger.data_curve import SizeRun, fit_data_curve
from study_operator.ledger.trial import Origin, Trial, TrialState
from study_operator.report.data_curve import (
    CurveReport,
    describe_fit,
    list_attributes,
    list_attributes_header,
    list_attributes_rows,
    list_header,
    list_points,
    list_rows,
)
from study_operator.report.page import render_page
from study_operator.report.report import lines_of, render_json, render_summary
from study_operator.spec.metrics import Direction
from study_operator.spec.study import DataCurve, Study
from trial_trainer.contract import Augmentation, Edit, Metric

A_METRIC = Metric(value=0.5, standard_error=None, n=20)


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
        "augmented": None,
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
    def count(curve: CurveReport) -> Counter[str]:
        charts = Page(render_page(a_report(curve=curve, trials=()))).charts
        return Counter(value["mark"] for value in charts["data-curve"]["data"]["values"])

    assert count(fitted({n: 0.9 - 20 / n for n in SIZES})) == {"run": 2 * len(SIZES), "mean": len(SIZES), "fit": 41}
    assert count(fitted({100: 0.5, 200: 0.6})) == {"run": 4, "mean": 2}
    assert "data-curve" not in Page(render_page(a_report(curve=fitted({100: 0.5}), trials=()))).charts


PLAIN = {n: 0.9 - 20 / n for n in SIZES}
AUGMENTED = {n: 0.9 - 20 / (2 * n) for n in SIZES}


def compared(plain: dict[int, float], augmented: dict[int, float]) -> tuple[Study, CurveReport]:
    """Return a study of two seeds for each size, each run without variants and with them, and its curves."""
    data = replace(a_study().data, augment=Augmentation(copies=2, edits=(Edit.DROP_LINES,)))
    curve = DataCurve(sample_sizes=tuple(plain), seeds=2, compare_augmentation=True)
    study = a_study(data_curve=curve, data=replace(data, attributes=("name", "price")))
    runs, results, sized = [], {}, ([], [])
    for size in sorted({*plain, *augmented}):
        for seed, noise in enumerate((-0.0025, 0.0025)):
            for is_augmented, values in enumerate((plain, augmented)):
                if size not in values:
                    continue
                value = values[size] + noise * (1 + is_augmented)
                run = replace(a_run(len(runs), size, value), without_variants=not is_augmented)
                metrics = {"accuracy": value, "accuracy/name": value + 0.01, "accuracy/price": value - 0.01}
                asked = {name: replace(A_METRIC, value=share, n=20) for name, share in metrics.items()}
                results[run.name] = replace(a_rung_measurement(run, 1), metrics=asked)
                sites = {f"s{i}": (10 * value, 10.0) for i in range(20)}
                sized[is_augmented].append(SizeRun(samples=size, seed=seed, sites=sites))
                runs.append(run)
    how = {"direction": Direction.MAXIMIZE, "is_share": True, "least_gain": 0.01}
    return study, CurveReport(
        of="t002",
        points=list_points(study, runs, {}),
        message="all",
        comparison=compare_data_curves(*sized, **how),
        attributes=list_attributes(study, runs, results),
    )


def test_where_augmentation_is_compared_each_size_has_two_rows_and_its_gain() -> None:
    study, curve = compared(PLAIN, AUGMENTED)
    header, (plain, augmented, *others) = list_header(curve), list_rows(study, curve)
    assert (header[1], header[5]) == ("augmented", "gain by augmentation (90 % interval)")
    assert (plain[:4], plain[5]) == (["100", "no", "2", "70.0 %"], "")
    assert augmented[:4] == ["100", "yes", "2", "80.0 %"]
    assert re.fullmatch(r"\+10\.0 points \(\+9\.[5-9] to \+10\.[0-5]\)", augmented[5])
    assert len(others) == 2 * len(SIZES) - 2
    assert {len(row) for row in list_rows(study, curve)} == {len(header)}


def test_both_curves_and_the_shift_are_told_in_sentences() -> None:
    study, curve = compared(PLAIN, AUGMENTED)
    plain, augmented, worth, shift = describe_fit(study, curve)
    assert re.fullmatch(
        r"Variants stand for 2 times the data \(90 % interval 1\.[789]\d? to 2\.[12]\d?\): without them the same "
        r"takes so many times the samples\.",
        worth,
    )
    assert plain.startswith("Without variants: accuracy saturates near 977 training samples (90 % interval ")
    assert augmented.startswith("With variants: accuracy saturates near 502 training samples (90 % interval ")
    assert re.fullmatch(
        r"Augmentation saturates at 0\.51 times the data \(90 % interval 0\.4\d? to 0\.[67]\d?\)\.", shift
    )
    report = a_report(curve=curve, study=study)
    assert f"Data curve: {shift}" in lines_of(report)
    rendered = json.loads(json.dumps(render_json(report), allow_nan=False))["dataCurve"]
    assert rendered["fit"] is None
    assert rendered["comparison"]["shift"]["ratio"] == pytest.approx(0.5, rel=0.1)
    assert rendered["comparison"]["gains"][0]["gain"] == pytest.approx(0.1)
    assert rendered["comparison"]["worth"]["times"] == pytest.approx(2)
    assert rendered["comparison"]["augmented"]["saturation"]["shape"] == "Saturates"
    assert [point["augmented"] for point in rendered["points"]] == [False, True] * len(SIZES)


def test_a_shift_that_these_sizes_do_not_tell_is_said_to_be_unknown_and_why() -> None:
    study, curve = compared({n: 0.2 + 0.1 * i for i, n in enumerate(SIZES)}, AUGMENTED)
    plain, _, _, shift = describe_fit(study, curve)
    assert plain.startswith("Without variants: accuracy is not saturated: at 3,200 training samples")
    assert shift == (
        "How augmentation moves the saturation point is not identifiable from these sizes: without variants the curve "
        "is not seen to saturate."
    )


def test_of_too_few_sizes_nothing_is_said_to_stand_for_data() -> None:
    study, curve = compared({100: 0.5, 200: 0.6}, {100: 0.55, 200: 0.7})
    _, _, worth, _ = describe_fit(study, curve)
    assert worth == (
        "What variants stand for in data is not identifiable from these sizes: without variants no curve is fitted."
    )


def test_values_of_pages_beyond_a_part_are_named_as_what_they_are() -> None:
    study, curve = compared(PLAIN, AUGMENTED)
    varied = replace(study, data=replace(study.data, augment=Augmentation(copies=2)))
    *_, last = describe_fit(varied, curve)
    assert last.startswith("ReplaceValues takes values from the whole training split")


def test_two_curves_are_told_apart_without_colour() -> None:
    study, curve = compared(PLAIN, AUGMENTED)
    page = Page(render_page(a_report(curve=curve, study=study, trials=())))
    chart = page.charts["data-curve"]
    fit, run, mean = (layer["encoding"] for layer in chart["layer"])
    assert fit["strokeDash"]["scale"] == {
        "domain": ["without variants", "with variants"],
        "range": [[1, 0], [7, 5]],
    }
    for points in (run, mean):
        assert points["shape"]["scale"]["range"] == ["circle", "square"]
    counts = Counter((value["mark"], value["kind"]) for value in chart["data"]["values"])
    assert counts == {
        (mark, kind): count
        for kind in ("without variants", "with variants")
        for mark, count in (("run", 2 * len(SIZES)), ("mean", len(SIZES)), ("fit", 41))
    }
    assert "squares and dashed: with variants" in page.text


def test_a_size_of_which_one_kind_was_run_has_one_row_and_no_gain() -> None:
    study, curve = compared(PLAIN, {n: value for n, value in AUGMENTED.items() if n < 3200})
    *_, last = list_rows(study, curve)
    assert (last[:2], last[5]) == (["3200", "no"], "")
    assert "data-curve" in Page(render_page(a_report(curve=curve, study=study))).charts


def test_a_gain_of_fewer_pairs_than_there_are_seeds_says_so() -> None:
    study, curve = compared(PLAIN, AUGMENTED)
    assert "pair" not in "".join(row[5] for row in list_rows(study, curve))
    one, two, *others = curve.comparison.gains
    gains = (replace(one, pairs=1), replace(two, pairs=2), *others)
    curve = replace(curve, comparison=replace(curve.comparison, gains=gains))
    _, first, _, second, *_ = (row[5] for row in list_rows(study, curve))
    assert first.endswith("), 1 pair")
    assert second.endswith(")")


def test_accuracy_by_attribute_stands_in_a_table_of_its_own() -> None:
    study, curve = compared({100: 0.5, 200: 0.6}, {100: 0.55, 200: 0.7})
    assert list_attributes_header(curve) == ["attribute", "augmented", "100", "200", "n"]
    assert list(list_attributes_rows(curve)) == [
        ["mean of all asked", "no", "50.0 %", "60.0 %", "20"],
        ["mean of all asked", "yes", "55.0 %", "70.0 %", "20"],
        ["name", "no", "51.0 %", "61.0 %", "20"],
        ["name", "yes", "56.0 %", "71.0 %", "20"],
        ["price", "no", "49.0 %", "59.0 %", "20"],
        ["price", "yes", "54.0 %", "69.0 %", "20"],
    ]
    report = a_report(curve=curve, study=study)
    title = "Data curve: accuracy on validation by attribute, mean over seeds"
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_summary(report))
    assert title in " ".join(captured.get().split())
    page = render_page(report)
    assert title in page and "71.0 %" in page
    first, *_ = json.loads(json.dumps(render_json(report)))["dataCurve"]["attributes"]
    assert (first["attribute"], first["augmented"], first["n"]) == (None, False, 20)
    assert first["points"] == [
        {"samples": 100, "mean": pytest.approx(0.5)},
        {"samples": 200, "mean": pytest.approx(0.6)},
    ]


def test_an_attribute_that_no_page_has_is_left_out_and_a_size_that_was_not_measured_has_a_dash() -> None:
    study = a_study(data=replace(a_study().data, attributes=("name", "price")))
    runs = [a_run(4, 200, 0.5), a_run(5, 400, None)]
    metrics = {
        name: replace(A_METRIC, value=0.5, n=n)
        for name, n in (("accuracy", 8), ("accuracy/name", 8), ("accuracy/price", 0))
    }
    results = {"t004": replace(a_rung_measurement(runs[0], 1), metrics=metrics)}
    curve = CurveReport(
        of="t002", points=list_points(study, runs, {}), message="", attributes=list_attributes(study, runs, results)
    )
    assert list(list_attributes_rows(curve)) == [
        ["mean of all asked", "50.0 %", "–", "8"],
        ["name", "50.0 %", "–", "8"],
    ]


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
