"""Which percent of the full length is enough to rank trials by, for people and for programs.

Made from `ledger.early_percents`; called by `report.py` and `page.py`. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from study_operator.ledger.agreement import (
    LEAST_CONCORDANCE,
    RELIABLE_CONFIDENCE,
    Agreement,
    Bounds,
    Regret,
    TopKept,
    describe_lack,
)
from study_operator.ledger.early_percents import EarlyPercents, describe_enough
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study

EARLY_TITLE = (
    "Early against final measurements by percent of the full length, with 90 % intervals; audited trials weigh for "
    "those that were not drawn. Training: what this study costs with its only early rung there, in full runs"
)
NOT_ESTIMABLE = "not estimable"


def list_early_header() -> list[str]:
    """Return the heads of the table's columns."""
    return [
        "measured at",
        "trials",
        "pairs ordered alike",
        "Kendall",
        "Spearman",
        "top k kept",
        "regret",
        "training, full runs",
        "reliable",
    ]


def list_early_rows(study: Study, early: EarlyPercents) -> Iterator[list[str]]:
    """Yield the rows of the table, as `list_early_header` has its columns."""
    for one in early.percents:
        found = one.agreement
        yield [
            f"{found.percent} %" + (" (rung)" if one.is_rung else ""),
            f"{found.full_length}",
            _describe_share(found),
            _describe_rank_correlation(found.kendall, found.kendall_90),
            _describe_rank_correlation(found.spearman, found.spearman_90),
            _describe_kept(found.top_kept),
            _describe_regret(study.objective.metric, found.regret),
            f"{one.full_runs:.1f} of {early.trials}",
            {True: "yes", False: "no", None: "not known"}[found.is_reliable],
        ]


def _describe_share(found: Agreement) -> str:
    if found.concordance is None:
        return f"{NOT_ESTIMABLE}, {describe_lack(found)}"
    low, high = found.concordance_90
    return f"{found.concordance:.0%} ({low:.0%} to {high:.0%})"


def _describe_rank_correlation(value: float | None, interval: Bounds) -> str:
    return NOT_ESTIMABLE if value is None else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _describe_kept(kept: TopKept | None) -> str:
    if kept is None:
        return NOT_ESTIMABLE
    return f"{kept.low} of {kept.k}" if kept.low == kept.high else f"{kept.low} to {kept.high} of {kept.k}"


def _describe_regret(metric: str, regret: Regret | None) -> str:
    if regret is None:
        return NOT_ESTIMABLE
    value = f"{regret.value * 100:.1f} points" if is_share(metric) else f"{regret.value:.3g}"
    return value if regret.is_exact else f"at least {value}"


def render_early_percents(study: Study, early: EarlyPercents) -> Table:
    """Return the table for a terminal."""
    table = Table(title=EARLY_TITLE, title_justify="left")
    for head in list_early_header():
        table.add_column(head, justify="right")
    for row in list_early_rows(study, early):
        table.add_row(*map(Text, row))
    return table


def render_early_json(early: EarlyPercents) -> dict[str, Any]:
    """Return all of it as JSON values; what is not estimable is null."""
    return {
        "confidence": RELIABLE_CONFIDENCE,
        "leastConcordance": LEAST_CONCORDANCE,
        "enough": early.enough,
        "sentence": describe_enough(early),
        "percents": [
            {
                "percent": one.agreement.percent,
                "isRung": one.is_rung,
                "trials": one.agreement.full_length,
                "concordance": _as_json(one.agreement.concordance, one.agreement.concordance_90),
                "kendall": _as_json(one.agreement.kendall, one.agreement.kendall_90),
                "spearman": _as_json(one.agreement.spearman, one.agreement.spearman_90),
                "topKept": asdict(kept) if (kept := one.agreement.top_kept) is not None else None,
                "regret": {"value": regret.value, "isExact": regret.is_exact}
                if (regret := one.agreement.regret) is not None
                else None,
                "fullRuns": one.full_runs,
                "isReliable": one.agreement.is_reliable,
            }
            for one in early.percents
        ],
    }


def _as_json(value: float | None, interval: Bounds) -> dict[str, float] | None:
    return None if value is None else {"value": value, "low": interval[0], "high": interval[1]}
