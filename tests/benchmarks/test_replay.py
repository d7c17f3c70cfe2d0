"""The replay of recorded arms: which arm stands for which, what a search costs on the clock, and what it is worth."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from search.clock import Finished, Order, Span, Trace, replay
from search.product import ChoosingDesigner, RandomDesigner, RememberingDesigner, a_study, run_study
from search.recorded import RecordedArms, Run, read_deberta, read_lora, read_taskset
from search.rivals import RUNGS, Bohb, FullLength, PromotingAsha, StoppingAsha
from search.scores import (
    Cell,
    average,
    cell_of,
    compare,
    distance,
    read_cells,
    target_of,
    time_to,
    write_cell,
)
from study_operator.spec.metrics import Direction
from study_operator.spec.study import EarlyEvaluation, LogUniform, Objective, Parameter, Promotion, TypicalArm, Uniform

REPOSITORY = Path(__file__).resolve().parents[2]
SHARES = np.array([0.04, 0.12, 0.2, 0.34, 0.5, 1.0])


def a_run(rate: float, dropout: float = 0.05, *, length: float = 1.0, diverged_at: float | None = None) -> Run:
    """Return a run that ends at its rate, and is at a share of it on the way."""
    shares = SHARES if diverged_at is None else SHARES[diverged_at > SHARES]
    return Run(
        arm={"learning_rate": rate, "lora_dropout": dropout},
        shares=shares,
        values=rate * (0.5 + 0.5 * shares),
        evaluated=math.nan if diverged_at else rate - 0.01,
        length=length,
        diverged_at=diverged_at,
    )


def a_table(runs: list[Run]) -> RecordedArms:
    return RecordedArms(
        name="made",
        kind="made",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        parameters=(
            Parameter(name="learning_rate", search_space=LogUniform(min=0.001, max=1)),
            Parameter(name="lora_dropout", search_space=Uniform(min=0, max=0.1)),
        ),
        runs=tuple(runs),
    )


@pytest.fixture
def table() -> RecordedArms:
    """Forty arms that differ in what decides, and in what does not."""
    chance = np.random.default_rng(0)
    rates = np.exp(chance.uniform(math.log(0.001), 0, 40))
    return a_table([a_run(float(rate), float(chance.uniform(0, 0.1))) for rate in rates])


def most_at_once(trace: Trace) -> int:
    """Return how many slots were busy together; the clock rounds to microseconds."""
    times = [span.start + 1e-5 for span in trace.spans]
    return max(sum(span.start < time < span.end for span in trace.spans) for time in times)


# --- Recorded arms -------------------------------------------------------------------------------------------------


def test_an_arm_of_the_table_stands_for_itself_and_what_does_not_matter_does_not_count(table: RecordedArms) -> None:
    assert [table.nearest(run.arm) for run in table.runs] == list(range(len(table.runs)))
    other = replace(table.runs[7], arm={**table.runs[7].arm, "lora_dropout": 0.0})
    assert table.nearest(other.arm) == 7
    error, correlation = table.neighbour_error()
    assert error < 0.2
    assert correlation > 0.9


def test_where_arms_are_few_each_is_given_once_before_any_is_given_again(table: RecordedArms) -> None:
    few = replace(table, runs=table.runs[:3], gives_each_once=True)
    arm, rows = few.runs[1].arm, list[int]()
    while len(rows) < 6:
        rows.append(few.nearest(arm, rows))
    assert (rows[0], sorted(rows[:3]), rows[3:]) == (1, [0, 1, 2], rows[:3])

    alone = replace(table, gives_each_once=True)
    searches = [PromotingAsha(alone, 0), StoppingAsha(alone, 0), Bohb(alone, 0)]
    traces = [replay(alone, search, slots=4, budget=6.0) for search in searches]
    study = a_study(alone, seed=3, slots=2, num_trials=30, promotion=Promotion(num_promoted=2))
    chooser = ChoosingDesigner(table=alone, designer=RandomDesigner())
    traces.append(run_study(alone, study, RememberingDesigner(chooser)))
    traces.append(replay(alone, FullLength(alone, study, chooser), slots=2, budget=math.inf))
    for trace in traces:
        first = trace.rows[: len(alone.runs)]
        assert len(set(first)) == len(first) >= 20


def test_what_is_told_belongs_to_the_arm_that_was_measured(table: RecordedArms) -> None:
    study = a_study(table, seed=3, slots=2, num_trials=4)
    alone = replace(table, gives_each_once=True)
    ((one, other), (proposed, _)) = (
        ChoosingDesigner(table=of, designer=RandomDesigner()).suggest(study, (), 2) for of in (alone, table)
    )
    assert {id(run.arm) for run in table.runs} >= {id(one.arm), id(other.arm)}
    assert one.arm == table.runs[table.nearest(proposed.arm)].arm != other.arm
    assert proposed == RandomDesigner().suggest(study, (), 1)[0]


def test_an_arm_that_was_not_drawn_stands_for_itself_alone(table: RecordedArms) -> None:
    typical = a_run(0.999)
    having = replace(table, runs=(*table.runs, typical), others=1)
    assert having.nearest(typical.arm) == len(table.runs)
    near = {**typical.arm, "learning_rate": 0.998}
    assert having.nearest(near) == table.nearest(near)
    assert [run.arm for run in having.drawn] == [run.arm for run in table.runs]
    # What is said of the table stays: only that it is better than all that were drawn.
    assert (having.best, having.mean_length) == (table.best, table.mean_length)
    assert (target_of(having, 0.05), having.neighbour_error()) == (target_of(table, 0.05), table.neighbour_error())
    assert having.distance(len(table.runs)) < 0


@pytest.mark.parametrize(("num_trials", "count"), [(8, 2), (12, 3), (24, 3)])
def test_a_study_tries_as_many_typical_arms_as_one_that_does_not_say_how_many(
    table: RecordedArms, num_trials: int, count: int
) -> None:
    typical = tuple(TypicalArm(arm=run.arm, source="made") for run in table.runs[:4])
    having = replace(table, typical_arms=typical)
    study = a_study(having, seed=0, slots=2, num_trials=num_trials, tries_typical_arms=True)
    assert study.typical_arms == typical[:count]
    assert a_study(having, seed=0, slots=2, num_trials=num_trials).typical_arms == ()


def test_the_first_measurement_at_or_after_a_share_counts() -> None:
    run = a_run(0.8)
    assert run.measure(0.05) == (0.12, pytest.approx(0.8 * 0.56))
    assert run.measure(0.2) == (0.2, pytest.approx(0.8 * 0.6))
    assert run.measure(0.2004)[0] == 0.2
    assert run.measure(0.21)[0] == 0.34


def test_a_run_that_diverged_measures_nothing_from_there_on() -> None:
    run = a_run(0.8, diverged_at=0.2)
    assert run.measure(0.12)[0] == 0.12
    assert run.measure(0.2) is None


def test_the_distance_is_from_the_arm_that_validation_chooses() -> None:
    lucky = replace(a_run(0.5), evaluated=0.9)
    table = a_table([a_run(0.8), lucky, a_run(0.3), a_run(0.9, diverged_at=0.5)])
    assert table.best == 0
    assert [round(table.distance(row), 6) for row in range(3)] == [0, -0.11, 0.5]
    assert math.isnan(table.distance(3))
    assert target_of(table, 0.5) == 0
    assert target_of(table, 0.75) == pytest.approx(0.5)


def test_the_recorded_arms_of_the_repository_are_what_their_pages_say() -> None:
    deberta = read_deberta()
    assert len(deberta.runs) == 1024
    assert all(run.shares[-1] == 1 for run in deberta.runs)
    name = "imdb_patch32_IRNN64_relu_last_bs128"
    path = REPOSITORY / "benchmarks/data/taskset-imdb-arms" / f"{name}.jsonl.gz"
    tasks = read_taskset(name, path)
    with gzip.open(path, "rt") as lines:
        first = json.loads(next(lines))
    assert len(tasks.runs) == 1000
    assert tasks.runs[0].values[-1] == first["valid"][-1]
    assert tasks.runs[0].evaluated == first["test"][-1]
    diverged = [run for run in tasks.runs if run.diverged_at is not None]
    assert 150 < len(diverged) < 350
    assert all(np.isfinite(run.values).all() and math.isnan(run.evaluated) for run in diverged)


def test_lora_arms_are_read_from_the_tables_that_were_recorded(tmp_path: Path) -> None:
    arms, measured, answers = [], [], []
    fates = {0: "trained", 1: "Diverged before 100 %: the loss exploded"}
    for arm, seed in ((0, 0), (0, 1), (1, 0)):
        key = {"arm": arm, "seed": seed, "train_samples": None}
        parameters = {"learning_rate": 1e-3, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "warmup_percent": 5}
        arms.append(key | parameters | {"batch_size": 4 * (arm + 1), "total_steps": 50, "fate": fates[arm]})
        for percent in (20, 100)[: 2 - arm]:
            seconds = {"train_seconds": 0.8 * percent, "load_seconds": 2.0, "evaluate_seconds": 3.0}
            metrics = {"accuracy": percent / 200 + seed, "validation_loss": 0.5}
            measured.append(key | {"percent": percent} | metrics | seconds)
            for split, right in (("validation", 1), ("test", 3)):
                asked = key | {"percent": percent, "split": split}
                for attribute, rights in (("date", right), ("time", 0)):
                    given = asked | {"attribute": attribute, "has_value": True}
                    answers += [given | {"is_right": i < rights} for i in range(4)]
                # What is said where there is no value is no part of accuracy.
                answers.append(asked | {"attribute": "date", "has_value": False, "is_right": True})
    for name, rows in {"arms": arms, "measurements": measured, "answers": answers}.items():
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"bookings-{name}.parquet")
    table = read_lora("bookings", tmp_path)
    trained, diverged = table.runs
    assert trained.values.tolist() == [0.1, 0.5]
    # The mean of two attributes; a job's five seconds beside 96 of training.
    assert (trained.evaluated, trained.length, trained.fixed) == (0.375, 1, pytest.approx(5 / 96))
    assert (diverged.shares.tolist(), diverged.diverged_at, diverged.length) == ([0.2], 1.0, 1)
    assert (trained.find_loss(0.15), diverged.find_loss(0.5)) == (0.5, None)
    assert [table.nearest(run.arm) for run in table.runs] == [0, 1]

    # Those that are tried first, on the same data.
    (first, *_) = table.typical_arms
    for name, rows in {"arms": arms, "measurements": measured, "answers": answers}.items():
        typical = [row | dict(first.arm) if name == "arms" else row for row in rows if row["arm"] == 0]
        pyarrow.parquet.write_table(pa.Table.from_pylist(typical), tmp_path / f"bookings-typical-{name}.parquet")
    having = read_lora("bookings", tmp_path)
    assert (len(having.drawn), having.nearest(first.arm), having.runs[2].evaluated) == (2, 2, 0.375)


def test_each_job_costs_its_start_and_its_evaluation(table: RecordedArms) -> None:
    slow = replace(table, runs=tuple(replace(run, fixed=0.1) for run in table.runs))
    study = a_study(slow, seed=3, slots=2, num_trials=10, promotion=Promotion(num_promoted=2))
    trace = run_study(slow, study, RandomDesigner())
    assert trace.spent(trace.wall) == pytest.approx(10 * 0.3 + 2 * 0.9)
    full = replay(slow, FullLength(slow, study, RandomDesigner()), slots=2, budget=math.inf)
    assert full.spent(full.wall) == pytest.approx(10 * 1.1)


# --- The operator's own studies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "percent"), [(1, 20), (3, 20), (3, 50)])
def test_a_study_costs_its_early_measurements_and_what_the_promoted_have_left(
    table: RecordedArms, slots: int, percent: int
) -> None:
    study = a_study(
        table,
        seed=3,
        slots=slots,
        num_trials=10,
        promotion=Promotion(num_promoted=2),
        early_evaluation=EarlyEvaluation(rungs=(percent,)),
    )
    trace = run_study(table, study, RandomDesigner())
    share = percent / 100
    assert trace.spent(trace.wall) == pytest.approx(10 * share + 2 * (1 - share))
    assert trace.wall == pytest.approx(math.ceil(10 / slots) * share + math.ceil(2 / slots) * (1 - share))
    assert most_at_once(trace) == slots
    best = sorted((table.runs[row].values[-1] for row in trace.rows), reverse=True)[:2]
    assert sorted((found.merit for found in trace.finished), reverse=True) == best


def test_a_study_of_two_early_rungs_pays_for_each_part_once(table: RecordedArms) -> None:
    study = a_study(
        table,
        seed=3,
        slots=3,
        num_trials=10,
        promotion=Promotion(num_promoted=2, promoted_percents=(40,)),
        early_evaluation=EarlyEvaluation(rungs=(4, 20)),
    )
    trace = run_study(table, study, RandomDesigner())
    assert trace.spent(trace.wall) == pytest.approx(10 * 0.04 + 4 * 0.16 + 2 * 0.8)
    assert len(trace.finished) == 2


def test_a_diverged_arm_costs_what_it_ran_and_is_not_promoted() -> None:
    table = a_table([a_run(0.03, diverged_at=0.12), a_run(0.5), a_run(0.002)])
    study = a_study(table, seed=0, slots=2, num_trials=12, promotion=Promotion(num_promoted=1))
    trace = run_study(table, study, RandomDesigner())
    assert trace.rows.count(0) > 0
    assert [found.row for found in trace.finished] == [1]
    assert trace.spent(trace.wall) == pytest.approx(0.12 * trace.rows.count(0) + 0.2 * (12 - trace.rows.count(0)) + 0.8)


def test_studies_that_differ_in_what_they_promote_ask_a_designer_once(table: RecordedArms) -> None:
    asked = []

    class Counting(RandomDesigner):
        def suggest(self, study, trials, count):
            asked.append(len(trials))
            return super().suggest(study, trials, count)

    designer = RememberingDesigner(Counting())
    study = a_study(table, seed=1, slots=2, num_trials=8, promotion=Promotion(num_promoted=1))
    first = run_study(table, study, designer)
    count = len(asked)
    second = run_study(table, replace(study, promotion=Promotion(num_promoted=3, num_audited=1)), designer)
    assert len(asked) == count
    assert second.rows == first.rows
    assert len(second.finished) == 4


# --- Rivals ----------------------------------------------------------------------------------------------------------


def test_full_length_runs_every_arm_to_its_end_and_diverged_ones_to_where_they_did(table: RecordedArms) -> None:
    study = a_study(table, seed=3, slots=4, num_trials=10)
    trace = replay(table, FullLength(table, study, RandomDesigner()), slots=4, budget=math.inf)
    assert trace.spent(trace.wall) == pytest.approx(10)
    assert trace.wall == pytest.approx(3)
    assert len(trace.finished) == 10
    # The same arms as a study with that seed.
    assert trace.rows == run_study(table, study, RandomDesigner()).rows


def test_promoting_asha_takes_the_best_third_of_each_rung(table: RecordedArms) -> None:
    search = PromotingAsha(table, seed=0)
    merits = {}
    for _ in range(3):
        order = search.next()
        assert order.share == RUNGS[0]
        merits[order.index] = table.runs[order.row].values[0]
        search.take(order, merits[order.index])
    promoted = search.next()
    assert promoted.share == RUNGS[1]
    assert promoted.index == max(merits, key=lambda index: merits[index])
    assert search.next().index == 3


def test_stopping_asha_lets_an_arm_go_on_while_it_is_in_the_best_third(table: RecordedArms) -> None:
    search = StoppingAsha(table, seed=0)
    orders = [search.next() for _ in range(4)]
    search.take(orders[0], 0.5)
    assert search.next() == replace(orders[0], share=RUNGS[1])
    search.take(orders[1], 0.4)
    search.take(orders[2], 0.6)
    search.take(orders[3], None)
    assert search.next() == replace(orders[2], share=RUNGS[1])
    assert search.next().index == 4


def test_bohb_runs_the_brackets_of_hyperband_and_promotes_when_a_rung_is_full(table: RecordedArms) -> None:
    search = Bohb(table, seed=0)
    orders = [search.next() for _ in range(27 + 9)]
    assert [order.share for order in orders] == [RUNGS[0]] * 27 + [RUNGS[1]] * 9
    for order in orders[:26]:
        search.take(order, 0.01 * order.index)
    assert search.next().share == RUNGS[2]
    search.take(orders[26], None)
    promoted = [search.next() for _ in range(9)]
    assert [(order.index, order.share) for order in promoted] == [(25 - i, RUNGS[1]) for i in range(9)]


def test_bohb_draws_arms_where_the_good_ones_are(table: RecordedArms) -> None:
    search = Bohb(table, seed=0)
    late = []
    for _ in range(300):
        order = search.next()
        rate = table.runs[order.row].arm["learning_rate"]
        late.append(rate)
        search.take(order, rate)
    assert np.mean(np.log(late[-100:])) > np.mean(np.log([run.arm["learning_rate"] for run in table.runs])) + 1


@pytest.mark.parametrize("rival", [Bohb, PromotingAsha, StoppingAsha])
def test_successive_halving_ends_with_its_budget_and_spends_most_on_the_better_arms(table: RecordedArms, rival) -> None:
    trace = replay(table, rival(table, 0), slots=4, budget=12)
    assert 12 <= trace.spent(trace.wall) < 12 + 4
    assert most_at_once(trace) == 4
    assert len(trace.rows) > 24
    found = [table.runs[f.row].values[-1] for f in trace.finished]
    assert np.mean(found) > np.mean([table.runs[row].values[-1] for row in trace.rows])
    assert replay(table, rival(table, 0), slots=4, budget=12) == trace


def test_a_share_that_no_measurement_reaches_is_a_fault_of_the_table() -> None:
    table = a_table([replace(a_run(0.5), shares=SHARES[:-1], values=SHARES[:-1])])

    class Once:
        def next(self) -> Order:
            return Order(index=0, row=0, share=1.0)

        def take(self, order: Order, value: float | None) -> None:
            raise AssertionError

    with pytest.raises(ValueError, match="nothing is measured from 100% of its length on"):
        replay(table, Once(), slots=1, budget=1)


# --- Scores ----------------------------------------------------------------------------------------------------------


def a_cell(spent: float, *incumbents: tuple[float, float, float], seed: int = 0, table: str = "made") -> Cell:
    return Cell(
        table=table, kind="made", method="m", slots=4, seed=seed, arms=1, spent=spent, wall=1.0, incumbents=incumbents
    )


def test_what_was_spent_in_vain_counts_too() -> None:
    cells = [
        a_cell(10, (2, 1, 0.3), (6, 2, 0.1), seed=0),
        a_cell(8, (4, 1, 0.3), seed=1),
        a_cell(9, (3, 1, 0.05), seed=2),
    ]
    assert average(cells, time_to({"made": 0.1})) == pytest.approx((6 + 8 + 3) / 2)
    assert average(cells, time_to({"made": 0.01})) == math.inf
    ratio = compare(cells, [a_cell(20, (17, 1, 0.0))], time_to({"made": 0.1}), np.divide)
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low < 0.5 < ratio.high


def test_each_table_counts_the_same_whatever_the_number_of_its_seeds() -> None:
    cells = [a_cell(1, (1, 1, 0.2), seed=i) for i in range(8)] + [a_cell(1, (1, 1, 0.6), table="other")]
    assert average(cells, distance) == pytest.approx(0.4)


def test_a_trace_knows_what_was_spent_when_each_best_arm_was_found(table: RecordedArms) -> None:
    trace = Trace(
        slots=2,
        spans=[Span(start=0, end=2), Span(start=0, end=3), Span(start=2, end=4)],
        finished=[
            Finished(at=2, row=0, merit=0.5),
            Finished(at=3, row=1, merit=0.4),
            Finished(at=4, row=2, merit=0.6),
        ],
        rows=[0, 1, 2],
    )
    cell = cell_of(table, "m", 0, trace)
    assert [spent for spent, _, _ in cell.incumbents] == [4, 7]
    assert (cell.spent, cell.wall) == (7, 4)
    assert cell.distance == table.distance(2)


def test_pairs_of_seeds_leave_out_what_both_have_in_common() -> None:
    noise = np.random.default_rng(0).normal(size=20)
    ours = [a_cell(1, (1, 1, float(x)), seed=i) for i, x in enumerate(noise)]
    theirs = [a_cell(1, (1, 1, float(x) + 1), seed=i) for i, x in enumerate(noise)]
    paired = compare(ours, theirs, distance, np.subtract)
    assert (paired.low, paired.high) == (pytest.approx(-1), pytest.approx(-1))
    apart = compare(ours, [replace(cell, seed=cell.seed + 100) for cell in theirs], distance, np.subtract)
    assert apart.low < -1.2
    assert apart.high > -0.8


def test_cells_are_read_back_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "cells.jsonl"
    cell = a_cell(3, (1, 1, 0.5))
    assert read_cells(path) == []
    write_cell(path, cell)
    write_cell(path, replace(cell, seed=1))
    path.write_text(path.read_text()[:-20])
    assert read_cells(path) == [cell]
