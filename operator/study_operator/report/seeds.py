"""Winner and baseline under each seed that they were trained with, for people and for programs.

Made from the ledger's confirmations and the final evaluation; called by `write.py`, `report.py` and `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from study_operator.ledger.ranking import find_finished_baseline
from study_operator.ledger.trial import Ledger, Measurement, Trial
from study_operator.report.numbers import describe_measurement, describe_metric
from study_operator.spec.study import Study
from trial_trainer.contract import FinalEvaluation, Metric, PredictorScores

SEEDS_TITLE = (
    "Winner and baseline under each seed, the search's own first: it chose the winner, whose first row is too good for "
    "that. Test: share of right values, 95 % interval in parentheses"
)


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One arm under one seed."""

    trial: str
    """Name of the run."""
    validation: Measurement | None
    """None where it was not trained to its end."""
    test: Metric | None
    """None before the test set was read, and of a run without a model."""


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """Winner and baseline under one seed; None: not begun."""

    seed: int
    winner: SeedRun | None
    baseline: SeedRun | None


def list_seeds(
    study: Study, ledger: Ledger, final_evaluation: FinalEvaluation | None, mean: str | None
) -> tuple[SeedRow, ...]:
    """Return a row for each seed, the search's own first; none before the first confirmation has begun.

    Args:
        study: the study.
        ledger: what is recorded of it.
        final_evaluation: what the test set says.
        mean: the mean of `PredictorScores` that it is read by; None: nothing was asked.
    """
    if not ledger.confirmations or ledger.winner is None:
        return ()
    winner, baseline = ledger.trials[ledger.winner], find_finished_baseline(study, ledger.trials)
    predictors = final_evaluation.predictors if final_evaluation is not None else {}
    confirmed = final_evaluation.confirmations if final_evaluation is not None else {}

    def describe(trial: Trial | None, scores: PredictorScores | None) -> SeedRun | None:
        if trial is None:
            return None
        test: Metric | None = getattr(scores, mean) if scores is not None and mean is not None else None
        is_known = test is not None and test.n > 0
        return SeedRun(trial=trial.name, validation=trial.measurement(study.last_rung), test=test if is_known else None)

    def find(of: int | None, seed: int) -> SeedRun | None:
        run = next((run for run in ledger.confirmations if (run.repeats, run.seed) == (of, seed)), None)
        return describe(run, confirmed.get(run.name) if run is not None else None)

    own = SeedRow(
        seed=study.seed,
        winner=describe(winner, predictors.get("winner")),
        baseline=describe(baseline, predictors.get("baseline")),
    )
    further = sorted({run.seed for run in ledger.confirmations if run.seed is not None})
    of_baseline = baseline.index if baseline is not None else None
    rows = [SeedRow(seed=seed, winner=find(winner.index, seed), baseline=find(of_baseline, seed)) for seed in further]
    return own, *rows


def list_seed_header(study: Study) -> list[str]:
    """Return the heads of the table's columns."""
    metric = study.objective.metric
    return ["seed", f"winner {metric}", f"baseline {metric}", "winner test", "baseline test", "gain, points"]


def list_seed_rows(study: Study, rows: Sequence[SeedRow]) -> Iterator[list[str]]:
    """Yield the rows of the table, as `list_seed_header` has its columns."""
    metric = study.objective.metric
    for row in rows:
        winner, baseline = (run.test if run is not None else None for run in (row.winner, row.baseline))
        yield [
            f"{row.seed}",
            describe_measurement(metric, row.winner.validation if row.winner is not None else None),
            describe_measurement(metric, row.baseline.validation if row.baseline is not None else None),
            *(describe_metric(test) if test is not None else "–" for test in (winner, baseline)),
            f"{(winner.value - baseline.value) * 100:+.1f}" if winner is not None and baseline is not None else "–",
        ]


def render_seeds(study: Study, rows: Sequence[SeedRow]) -> Table:
    """Return the table for a terminal."""
    table = Table(title=SEEDS_TITLE, title_justify="left")
    for head in list_seed_header(study):
        table.add_column(head, justify="right")
    for row in list_seed_rows(study, rows):
        table.add_row(*map(Text, row))
    return table


def render_seeds_json(rows: Sequence[SeedRow]) -> list[dict[str, Any]]:
    """Return all of it as JSON values; what is not known is null."""
    return [
        {"seed": row.seed, "winner": _render_run(row.winner), "baseline": _render_run(row.baseline)} for row in rows
    ]


def _render_run(run: SeedRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    validation, test = run.validation, run.test
    return {
        "trial": run.trial,
        "validation": validation.value if validation is not None and not validation.diverged else None,
        "diverged": validation is not None and validation.diverged,
        "test": {"value": test.value, "low": test.low, "high": test.high} if test is not None else None,
    }
