"""How far labels agree: people, markup and a teacher on the same pages, and a teacher with itself.

`prepare` collects pairs of labels as it reads and labels; this turns them into shares with intervals clustered by site,
and into the ceiling that wrong labels put on validation accuracy.

The ceiling, for a model that always gives the true value: where a share ``w`` of an attribute's validation labels is
not given by people, and such labels agree with given ones in a share ``a`` of the pairs, its accuracy is measured at
about ``1 - w (1 - a)``. This takes given labels for true, and the audited pages for pages like the others.

A second pass alone bounds what any model can reach. Let a teacher's two answers to a question be independent draws from
one distribution over values. They agree with probability Σ p², and the best guess is right with probability max p, and
(max p)² ≤ Σ p²: so no model agrees with the labels more often than √(Σ p²). The mean over questions keeps the bound,
because the root is concave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trial_trainer import intervals
from trial_trainer.contract import CeilingBasis, LabelAgreement, LabelAudit, LabelCeiling, LabelOrigin, Metric
from trial_trainer.dataset.shuffling import rank
from trial_trainer.pages.confirm import contradicts

MOST_SITES = 1000
"""Audited of each kind of pair, drawn by their names: more tell hardly more, and intervals take the cube of them."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two labels of one attribute of one page."""

    one: LabelOrigin
    other: LabelOrigin
    attribute: str
    site: str
    agrees: bool
    is_kept: bool
    """Whether the first would be a label of the dataset: a value of its attribute that the text bears out."""


def agree(attribute: str, one: Sequence[str], other: Sequence[str], text: str, country: str | None) -> bool:
    """Say whether two labels mean the same; a label without values says that there is none.

    Args:
        attribute: what they are labels of.
        one: a label's accepted values.
        other: another's.
        text: of the page.
        country: of its site.
    """
    if not one or not other:
        return not one and not other
    return any(not contradicts(attribute, value, other, text, country) for value in one)


def audit(pairs: Sequence[Pair], used: LabelOrigin, noisy_shares: Mapping[str, float]) -> LabelAudit | None:
    """Measure the pairs; None where there are none.

    Args:
        pairs: in any order.
        used: whose labels the dataset has where people gave none.
        noisy_shares: by attribute, the share of its validation labels that are those.
    """
    if not pairs:
        return None
    kinds = sorted({(pair.one, pair.other) for pair in pairs})
    drawn = {kind: _draw([pair for pair in pairs if (pair.one, pair.other) == kind]) for kind in kinds}
    return LabelAudit(
        agreements=tuple(
            LabelAgreement(one=one, other=other, attribute=attribute, metric=_measure(chosen))
            for (one, other), found in drawn.items()
            for attribute, chosen in _by_attribute(found)
        ),
        ceilings=tuple(
            _ceilings([pair for (one, _), found in drawn.items() if one is used for pair in found], noisy_shares)
        ),
    )


def _draw(pairs: Sequence[Pair]) -> list[Pair]:
    """Keep the pairs of at most `MOST_SITES` sites."""
    sites = sorted({pair.site for pair in pairs}, key=lambda site: rank(0, "audit", site))
    kept = frozenset(sites[:MOST_SITES])
    return [pair for pair in pairs if pair.site in kept]


def _by_attribute(pairs: Sequence[Pair]) -> Iterator[tuple[str | None, Sequence[Pair]]]:
    """Yield all pairs under None, and those of each attribute under its name."""
    if pairs:
        yield None, pairs
    for name in sorted({pair.attribute for pair in pairs}):
        yield name, [pair for pair in pairs if pair.attribute == name]


def _ceilings(pairs: Sequence[Pair], noisy_shares: Mapping[str, float]) -> Iterator[LabelCeiling]:
    """Yield what validation can be measured at, for the attributes of which no person gave some labels.

    Args:
        pairs: of labels as the dataset has them and others.
        noisy_shares: by attribute, the share of its validation labels that no person gave.
    """
    by_basis = {
        CeilingBasis.GIVEN_LABELS: [pair for pair in pairs if pair.other is LabelOrigin.GIVEN],
        CeilingBasis.SELF_CONSISTENCY: [pair for pair in pairs if pair.other is LabelOrigin.TEACHER_AGAIN],
    }
    for basis, found in by_basis.items():
        kept = [pair for pair in found if pair.is_kept and noisy_shares.get(pair.attribute)]
        for attribute, chosen in _by_attribute(kept):
            metric = _measure(chosen, noisy_shares)
            if basis is CeilingBasis.SELF_CONSISTENCY:
                metric = _root(metric)
            yield LabelCeiling(basis=basis, attribute=attribute, metric=metric)


def _measure(pairs: Sequence[Pair], noisy_shares: Mapping[str, float] | None = None) -> Metric:
    """Return the mean over attributes of how often pairs agree; a disagreement counts as much as its noisy share."""
    row = {site: i for i, site in enumerate(dict.fromkeys(pair.site for pair in pairs))}
    column = {name: i for i, name in enumerate(dict.fromkeys(pair.attribute for pair in pairs))}
    total, count = np.zeros((len(row), len(column))), np.zeros((len(row), len(column)))
    for pair in pairs:
        cell = row[pair.site], column[pair.attribute]
        weight = 1.0 if noisy_shares is None else noisy_shares[pair.attribute]
        total[cell] += 1.0 if pair.agrees else 1.0 - weight
        count[cell] += 1
    estimated = intervals.estimate_share(total, count)
    return Metric(
        value=estimated.value,
        standard_error=estimated.standard_error,
        n=len(pairs),
        sites=len(row),
        low=estimated.low,
        high=estimated.high,
    )


def _root(metric: Metric) -> Metric:
    """Return the square root of a share, with its interval; its standard error by the delta method."""
    value = math.sqrt(metric.value)
    error = metric.standard_error
    return replace(
        metric,
        value=value,
        standard_error=error / (2 * value) if error is not None and value > 0 else None,
        low=None if metric.low is None else math.sqrt(metric.low),
        high=None if metric.high is None else math.sqrt(metric.high),
    )
