"""The report and the ledger's copy are written when there is news."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from builders.desk import a_desk, a_proposal, run
from builders.ledgers import (
    a_job,
    a_ledger,
    a_measurement,
    a_rung_measurement,
    a_study,
    a_trial,
    continued,
    ended,
    paused,
)
from study_operator.ledger.bucket_copy import parse_copy
from study_operator.ledger.status import parse_status
from study_operator.ledger.trial import (
    CurveEnd,
    Ledger,
    Origin,
    Trial,
    TrialState,
)
from study_operator.report.data_curve import describe_fit, list_rows, render_curve_json
from study_operator.report.write import LedgerKeeper, build_report
from study_operator.spec.study import DataCurve
from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import (
    SiteSum,
    to_json,
)

MEASUREMENT_KEY = "trials/t000/rungs/0/measurement.json"


def test_the_ledger_copy_is_written_only_after_a_new_trial_or_measurement(tmp_path: Path) -> None:
    store, keeper = DirectoryStore(str(tmp_path)), LedgerKeeper()
    desk = a_desk(a_ledger(), proposals=[a_proposal()])

    def kept() -> Sequence[Trial]:
        text = store.read("ledger.json")
        return () if text is None else parse_copy(a_study(), text, "here").ledger.trials

    # Two arms are entered.
    keeper.keep(a_study(), run(desk), store)
    assert kept() == desk.ledger.trials
    assert len(kept()) == 2
    # That they run is no news for it.
    store.delete("ledger.json")
    desk.statuses = [a_job(), a_job("s1-t001-r0")]
    keeper.keep(a_study(), run(desk), store)
    assert {t.state for t in desk.ledger.trials} == {TrialState.RUNNING}
    assert kept() == ()
    measurement = replace(a_rung_measurement(a_trial(0), 0), step=12, total_steps=60)
    desk.objects[MEASUREMENT_KEY] = to_json(measurement).encode()
    desk.statuses = [ended(0), a_job("s1-t001-r0")]
    keeper.keep(a_study(), run(desk), store)
    assert [len(t.measurements) for t in kept()] == [1, 0, 0]


def a_curve_ledger(store: DirectoryStore, *, is_compared: bool = False, **changes: Any) -> Ledger:
    """Return a ledger with a data curve of five sizes and two seeds, whose measurements are in the store.

    Where it is compared, each run has a pair without variants that saw half as many samples, so to speak.
    """
    trials = (continued(paused(0, 0.3), 0.4), continued(paused(1, 0.5), 0.6))
    runs = []
    for size in SIZES:
        for seed, times in product(range(2), (0.5, 1) if is_compared else (1,)):
            value = 0.9 - 20 / (times * size) + 0.002 * seed
            run = a_trial(len(trials) + len(runs), origin=Origin.DATA_CURVE, rung=1, train_samples=size, seed=seed)
            run = replace(run, without_variants=times < 1)
            # As they are when sites differ in how many questions they have.
            by_site = {f"s{i}": SiteSum(total=value * (i + 1), weight=i + 1) for i in range(10)}
            document = replace(a_rung_measurement(run, 1, accuracy=value), by_site={"accuracy": by_site})
            store.write(f"trials/{run.name}/rungs/1/measurement.json", to_json(document).encode())
            runs.append(replace(run, state=TrialState.COMPLETED, measurements=(a_measurement(1, value, n=55),)))
    return a_ledger(*trials, winner=1, curve=tuple(runs), **changes)


SIZES = (100, 200, 400, 800, 1600)


def test_the_curve_is_fitted_once_it_has_ended_from_what_each_site_added(tmp_path: Path) -> None:
    study = a_study(data_curve=DataCurve(sample_sizes=SIZES, seeds=2))
    store = DirectoryStore(str(tmp_path))
    ledger = a_curve_ledger(store)
    before = build_report(study, replace(parse_status(None), ledger=ledger), store).curve
    assert before is not None and before.fit is None
    assert [p.validation for p in before.points] == [pytest.approx((0.9 - 20 / n, 0.902 - 20 / n)) for n in SIZES]

    ledger = replace(ledger, curve_end=CurveEnd.ALL_RUNS_ENDED, curve_message="10 of 10")
    curve = build_report(study, replace(parse_status(None), ledger=ledger), store).curve
    assert curve is not None and curve.fit is not None
    assert [size.mean for size in curve.fit.sizes] == pytest.approx([0.901 - 20 / n for n in SIZES])
    assert all(size.low is not None for size in curve.fit.sizes)
    # Doubling gains 10 / n.
    assert curve.fit.saturation.samples == pytest.approx(1000, rel=0.1)


def test_where_augmentation_is_compared_both_curves_are_fitted_and_their_attributes_told(tmp_path: Path) -> None:
    study = a_study(data_curve=DataCurve(sample_sizes=SIZES, seeds=2, compare_augmentation=True))
    store = DirectoryStore(str(tmp_path))
    ledger = a_curve_ledger(store, is_compared=True)
    before = build_report(study, replace(parse_status(None), ledger=ledger), store).curve
    assert before is not None and before.comparison is None and before.attributes == ()
    ledger = replace(ledger, curve_end=CurveEnd.ALL_RUNS_ENDED, curve_message="20 of 20")
    curve = build_report(study, replace(parse_status(None), ledger=ledger), store).curve
    assert curve is not None and curve.comparison is not None and curve.fit is None
    assert [gain.gain for gain in curve.comparison.gains] == pytest.approx([20 / n for n in SIZES])
    assert curve.comparison.shift.ratio == pytest.approx(0.5, rel=0.1)
    mean = next(row for row in curve.attributes if row.attribute is None and row.is_augmented)
    assert [mean.mean_by_samples[n] for n in SIZES] == pytest.approx([0.901 - 20 / n for n in SIZES])


@pytest.mark.parametrize("is_augmented", [False, True])
def test_where_one_kind_of_run_alone_was_measured_its_curve_is_told_under_its_own_name(
    tmp_path: Path, *, is_augmented: bool
) -> None:
    study = a_study(data_curve=DataCurve(sample_sizes=SIZES, seeds=2, compare_augmentation=True))
    store = DirectoryStore(str(tmp_path))
    ledger = a_curve_ledger(store, is_compared=True, curve_end=CurveEnd.ALL_RUNS_ENDED, curve_message="10 of 20")
    both = build_report(study, replace(parse_status(None), ledger=ledger), store).curve
    runs = tuple(
        run
        if run.without_variants is not is_augmented
        else replace(run, state=TrialState.FAILED, measurements=(), message="killed")
        for run in ledger.curve
    )
    curve = build_report(study, replace(parse_status(None), ledger=replace(ledger, curve=runs)), store).curve
    assert both is not None and curve is not None and curve.comparison is None
    assert curve.find_fit(is_augmented) == both.find_fit(is_augmented) is not None
    assert curve.find_fit(not is_augmented) is None
    kind, other = ("With", "without") if is_augmented else ("Without", "with")
    first, second = describe_fit(study, curve)
    assert first.startswith(f"{kind} variants: accuracy saturates near ")
    assert second == f"Nothing was measured {other} variants: no gain is known."
    assert [row[4] for row in list_rows(study, curve) if row[1] == ("no" if is_augmented else "yes")] == ["–"] * 5
    assert render_curve_json(curve)["fitAugmented"] is is_augmented
    nothing = replace(ledger, curve=tuple(replace(run, measurements=()) for run in ledger.curve))
    curve = build_report(study, replace(parse_status(None), ledger=nothing), store).curve
    assert curve is not None and curve.comparison is None and curve.fit is None


def test_a_measurement_that_tells_no_sites_counts_as_one(tmp_path: Path) -> None:
    study = a_study(data_curve=DataCurve(sample_sizes=SIZES, seeds=2))
    elsewhere, empty = (DirectoryStore(str(tmp_path / name)) for name in ("elsewhere", "empty"))
    ledger = a_curve_ledger(elsewhere, curve_end=CurveEnd.ALL_RUNS_ENDED)
    curve = build_report(study, replace(parse_status(None), ledger=ledger), empty).curve
    assert curve is not None and curve.fit is not None
    assert curve.fit.sizes[0].mean == pytest.approx(0.701)
