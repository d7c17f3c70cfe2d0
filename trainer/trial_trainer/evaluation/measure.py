"""How good answers are: rates, means, their standard errors, and the paired difference of two predictors.

Pure functions of answers as text, called by trials on the validation set and by the final evaluation on the test set.
Nothing here knows models, tokens or files.

A question is *right* when its finished answer means one of the accepted values (`answers.is_correct`). Accuracy asks
only questions that have a value; what is said where there is none is the false value rate. Pages of one site look
alike, so every standard error and interval is clustered by site (`intervals`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trial_trainer import intervals
from trial_trainer.contract import Interval, Metric, SeedInterval, SiteSum
from trial_trainer.dataset.store import HAND, Page, Question
from trial_trainer.pages import answers

ACCURACY = "accuracy"
FALSE_VALUE_RATE = "false_value_rate"
INVALID_OUTPUT_RATE = "invalid_output_rate"
CUT_ANSWER_RATE = "cut_answer_rate"
GIBBERISH_RATE = "gibberish_rate"
VALIDATION_LOSS = "validation_loss"

WORST_LOSS = 1e4
"""Nats per token. Stands for a loss that is not finite, and bounds the others, so that a mean of losses is a number."""

NOTHING_ASKED = Metric(value=0.0, standard_error=None, n=0, sites=0)
"""A mean of no questions. Its value means nothing."""

Mean = Literal["hand_labelled", "all_asked"]
"""The two means over attributes that the test set is read by."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one predictor answered to one question."""

    page: str
    site: str
    attribute: str
    answer: str
    """As text, without the end of turn; empty where the predictor said nothing."""
    finished: bool
    """Whether the answer ended by itself, within the limit of tokens."""
    gold: tuple[str, ...]
    """Accepted values; empty means that the page is known to have none."""
    origin: str
    """Where the label comes from: `dataset.HAND` or `dataset.MARKUP`."""
    loss: float | None
    """Mean cross-entropy of the gold answer's tokens, nats; None where it was not read or can't be derived."""
    answer_tokens: int
    """Tokens that ``loss`` is a mean of."""


def build_prediction(
    page: Page,
    question: Question,
    *,
    answer: str,
    finished: bool = True,
    loss: float | None = None,
    answer_tokens: int = 0,
) -> Prediction:
    """Put an answer beside the question that it was given to."""
    return Prediction(
        page=page.id,
        site=page.site,
        attribute=question.attribute,
        answer=answer,
        finished=finished,
        gold=question.gold,
        origin=question.origin,
        loss=loss,
        answer_tokens=answer_tokens,
    )


def measure(predictions: Sequence[Prediction], *, has_unlearnt: bool = False) -> dict[str, Metric]:
    """Measure everything that a measurement holds.

    Args:
        predictions: a model's answers.
        has_unlearnt: whether training has left its loss above the untrained model's.

    Returns:
        ``accuracy``, ``false_value_rate``, ``invalid_output_rate``, ``gibberish_rate``, ``cut_answer_rate``,
        ``accuracy/<attribute>`` for each asked attribute, and ``validation_loss`` where any loss was read. What nothing
        was asked for is 0 with ``n`` 0.
    """
    metrics = {
        ACCURACY: all_asked(predictions),
        FALSE_VALUE_RATE: false_value_rate(predictions),
        INVALID_OUTPUT_RATE: invalid_output_rate(predictions),
        GIBBERISH_RATE: gibberish_rate(predictions, has_unlearnt=has_unlearnt),
        CUT_ANSWER_RATE: cut_answer_rate(predictions),
    }
    if any(p.loss is not None for p in predictions):
        metrics[VALIDATION_LOSS] = validation_loss(predictions)
    return metrics | {f"{ACCURACY}/{name}": metric for name, metric in accuracy_by_attribute(predictions).items()}


def all_asked(predictions: Sequence[Prediction]) -> Metric:
    """Mean over the attributes of the share of their values that were answered right."""
    return _measure_share(_tabulate(_with_value(predictions), is_right))


def hand_labelled(predictions: Sequence[Prediction]) -> Metric:
    """The same mean over those questions alone whose label a person made."""
    return all_asked([p for p in predictions if p.origin == HAND])


def accuracy_by_attribute(predictions: Sequence[Prediction]) -> dict[str, Metric]:
    """Share of right answers for each asked attribute, in the order in which they were first asked."""
    return {
        attribute: all_asked([p for p in predictions if p.attribute == attribute])
        for attribute in dict.fromkeys(p.attribute for p in predictions)
    }


def false_value_rate(predictions: Sequence[Prediction]) -> Metric:
    """Share of the questions without a value that were answered with one."""
    return _measure_share(_tabulate([p for p in predictions if not p.gold], _states_value, by_attribute=False))


def invalid_output_rate(predictions: Sequence[Prediction], *, may_be_silent: bool = False) -> Metric:
    """Share of answers that did not end, or can't be read as a value of their attribute nor as "none".

    Args:
        predictions: of one predictor.
        may_be_silent: whether an empty answer is valid. A model has a word for "none", so that its silence is an
            invalid output; a rule that finds nothing has no other way to say so.
    """

    def is_invalid(p: Prediction) -> bool:
        return _is_invalid(p, may_be_silent=may_be_silent)

    return _measure_share(_tabulate(predictions, is_invalid, by_attribute=False))


def gibberish_rate(predictions: Sequence[Prediction], *, has_unlearnt: bool) -> Metric:
    """Share of wrong answers that say nothing, or little else than one thing again and again.

    Args:
        predictions: a model's answers.
        has_unlearnt: whether training has left its loss above the untrained model's. Every invalid answer counts then.
            Of any other model it may only show that nothing is learnt yet: half of an untrained model's are invalid.
    """

    def is_gibberish(p: Prediction) -> bool:
        is_senseless = _says_nothing(p) or _repeats_itself(p.answer) or (has_unlearnt and _is_invalid(p))
        return is_senseless and not is_right(p)

    return _measure_share(_tabulate(predictions, is_gibberish, by_attribute=False))


def cut_answer_rate(predictions: Sequence[Prediction]) -> Metric:
    """Share of answers that were cut off at the limit of tokens. They can't be right."""
    return _measure_share(_tabulate(predictions, lambda p: not p.finished, by_attribute=False))


def validation_loss(predictions: Sequence[Prediction]) -> Metric:
    """Mean over the answers of their mean loss in nats per token: each answer weighs the same, as in training."""
    table = _tabulate([p for p in predictions if p.loss is not None], _bounded_loss, by_attribute=False)
    return _build_metric(table, intervals.estimate_mean) if table.sites else NOTHING_ASKED


def sum_by_site(predictions: Sequence[Prediction]) -> dict[str, dict[str, SiteSum]]:
    """Return what each site adds to accuracy and loss: ``metric`` to ``site`` to its weighted sum and weight.

    A question weighs so much that the weighted mean over all is the metric: in accuracy each attribute weighs the same.
    """
    tables = {ACCURACY: _tabulate(_with_value(predictions), is_right)}
    if any(p.loss is not None for p in predictions):
        tables[VALIDATION_LOSS] = _tabulate(
            [p for p in predictions if p.loss is not None], _bounded_loss, by_attribute=False
        )
    return {metric: _sum_by_site(table) for metric, table in tables.items() if table.sites}


MOST_SITES = 100
"""So many sums tell an interval as well as any, and a measurement stays small."""


def _sum_by_site(table: _Table) -> dict[str, SiteSum]:
    asked = table.count.sum(axis=0)
    weights = asked.sum() / len(asked) / asked
    sums: dict[str, SiteSum] = {}
    for i, site in enumerate(table.names):
        name = site if table.sites <= MOST_SITES else f"group {zlib.crc32(site.encode()) % MOST_SITES}"
        before = sums.get(name, SiteSum(total=0.0, weight=0.0))
        sums[name] = SiteSum(
            total=before.total + float(table.total[i] @ weights), weight=before.weight + float(table.count[i] @ weights)
        )
    return sums


def paired_gain(a: Sequence[Prediction], b: Sequence[Prediction], *, measure: Mean) -> Interval | None:
    """Estimate how much better ``a`` does than ``b`` on the same questions; None where none has a value.

    The interval speaks of other sites, not of other training seeds.

    Raises:
        ValueError: where the two were not asked the same questions.
    """
    gained, lost = _tabulate_changes(a, b, measure)
    if not gained.sites:
        return None
    gain = intervals.estimate_gain(gained.total, lost.total, gained.count)
    n = int(gained.count.sum())
    return Interval(difference=gain.value, low=gain.low, high=gain.high, n=n, sites=gained.sites)


def paired_loss_change(a: Sequence[Prediction], b: Sequence[Prediction]) -> Interval | None:
    """Estimate how much higher the loss of ``a`` is than that of ``b`` on the same questions, in nats per token.

    None where no question has both losses.

    Raises:
        ValueError: where the two were not asked the same questions.
    """
    pairs = [(one, other) for one, other in _pair(a, b) if one.loss is not None and other.loss is not None]
    if not pairs:
        return None
    changes = {id(one): _bounded_loss(one) - _bounded_loss(other) for one, other in pairs}
    table = _tabulate([one for one, _ in pairs], lambda p: changes[id(p)], by_attribute=False)
    change = intervals.estimate_change(table.total, table.count)
    return Interval(difference=change.value, low=change.low, high=change.high, n=len(pairs), sites=table.sites)


def paired_gain_over_seeds(
    pairs: Mapping[str, tuple[Sequence[Prediction], Sequence[Prediction]]], *, measure: Mean
) -> SeedInterval | None:
    """Estimate how much better the first of each pair does than the second, as the mean over training seeds.

    Args:
        pairs: what both arms answered to the same questions, by seed.
        measure: which questions count.

    Returns:
        The gain with an interval that speaks of other sites and other seeds; None where no question has a value, or
        there is no pair.

    Raises:
        ValueError: where any two were not asked the same questions.
    """
    tables = {seed: _tabulate_changes(a, b, measure) for seed, (a, b) in pairs.items()}
    first = next((gained for gained, _ in tables.values()), None)
    if first is None or not first.sites:
        return None
    if any(gained.names != first.names or (gained.count != first.count).any() for gained, _ in tables.values()):
        raise ValueError("under every seed the same questions must be answered in the same order")
    gained, lost = (np.stack([table.total for table in side]) for side in zip(*tables.values(), strict=True))
    gain = intervals.estimate_gain_over_seeds(gained, lost, first.count)
    by_seed = {
        seed: intervals.estimate_mean(won.total - gone.total, won.count).value for seed, (won, gone) in tables.items()
    }
    n = int(first.count.sum())
    return SeedInterval(difference=gain.value, low=gain.low, high=gain.high, n=n, sites=first.sites, by_seed=by_seed)


def _tabulate_changes(a: Sequence[Prediction], b: Sequence[Prediction], measure: Mean) -> tuple[_Table, _Table]:
    """Return the questions that ``a`` alone answers right, and those that ``b`` alone does."""
    pairs = [(one, other) for one, other in _pair(a, b) if one.gold and (measure == "all_asked" or one.origin == HAND)]
    rightness = {id(one): (is_right(one), is_right(other)) for one, other in pairs}
    asked = [one for one, _ in pairs]
    gained = _tabulate(asked, lambda p: float(rightness[id(p)] == (True, False)))
    lost = _tabulate(asked, lambda p: float(rightness[id(p)] == (False, True)))
    return gained, lost


# What one answer counts as --------------------------------------------------------------------------------------------


def _with_value(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [p for p in predictions if p.gold]


def is_right(p: Prediction) -> bool:
    """Say whether an answer ended by itself and means one of the accepted values."""
    # What was cut off at the limit is not known, so it can't be right.
    return p.finished and answers.is_correct(p.attribute, p.answer, p.gold)


def is_answered_right(p: Prediction) -> bool:
    """Say the same of any question: where there is no value, an answer that ended and states none is right."""
    return is_right(p) if p.gold else p.finished and not _states_value(p)


def _is_invalid(p: Prediction, *, may_be_silent: bool = False) -> bool:
    if not p.finished:
        return True
    if not p.answer.strip():
        return not may_be_silent
    # A free-form answer may be right without a letter in it: "+".
    return not (answers.is_valid(p.attribute, p.answer) or answers.is_absent(p.answer) or is_right(p))


_REPETITION = re.compile(r"(.{1,30}?)\1{3,}", re.DOTALL)
_REPETITION_CHARACTERS = 400


def _says_nothing(p: Prediction) -> bool:
    """Say whether an answer without letter or digit is none: a currency may be valid without, and a label an emoji."""
    has_words = (any(character.isalnum() for character in text) for text in (p.answer, *p.gold))
    return _is_invalid(p) and not next(has_words) and all(has_words)


def _repeats_itself(answer: str) -> bool:
    """Say whether half of an answer's beginning is one thing four times or more in a row."""
    start = answer.strip()[:_REPETITION_CHARACTERS]
    longest = max((len(found.group()) for found in _REPETITION.finditer(start)), default=0)
    return len(start) >= 8 and 2 * longest >= len(start)


def _states_value(p: Prediction) -> bool:
    return bool(p.answer.strip()) and not answers.is_absent(p.answer)


def _bounded_loss(p: Prediction) -> float:
    if p.loss is None or not math.isfinite(p.loss):
        return WORST_LOSS
    return min(p.loss, WORST_LOSS)


# Estimates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Sums of a quantity and numbers of questions, (site, attribute). No site and no attribute is without questions."""

    total: Array
    count: Array
    names: tuple[str, ...]
    """Of the sites."""

    @property
    def sites(self) -> int:
        return len(self.count)


def _tabulate(
    predictions: Sequence[Prediction], quantity: Callable[[Prediction], float], *, by_attribute: bool = True
) -> _Table:
    row = {site: i for i, site in enumerate(dict.fromkeys(p.site for p in predictions))}
    column = {name: i for i, name in enumerate(dict.fromkeys(p.attribute for p in predictions))} if by_attribute else {}
    shape = (len(row), len(column) if by_attribute else 1)
    total, count = np.zeros(shape), np.zeros(shape)
    for p in predictions:
        cell = row[p.site], column.get(p.attribute, 0)
        total[cell] += quantity(p)
        count[cell] += 1
    return _Table(total=total, count=count, names=tuple(row))


def _measure_share(table: _Table) -> Metric:
    return _build_metric(table, intervals.estimate_share) if table.sites else NOTHING_ASKED


def _build_metric(table: _Table, estimate: Callable[[Array, Array], intervals.Estimate]) -> Metric:
    estimated = estimate(table.total, table.count)
    return Metric(
        value=estimated.value,
        standard_error=estimated.standard_error,
        n=int(table.count.sum()),
        sites=table.sites,
        low=estimated.low,
        high=estimated.high,
    )


# Pairs ----------------------------------------------------------------------------------------------------------------

_Key = tuple[str, str, int]


def _pair(a: Sequence[Prediction], b: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    first, second = _by_question(a), _by_question(b)
    unmatched = [key for key in first if key not in second] + [key for key in second if key not in first]
    if unmatched:
        page, attribute, _ = unmatched[0]
        raise ValueError(
            f"both predictors must answer the same questions; {len(unmatched)} have one answer only, "
            f"first {attribute!r} of page {page!r}"
        )
    for key, one in first.items():
        other = second[key]
        if (one.gold, one.site, one.origin) != (other.gold, other.site, other.origin):
            raise ValueError(
                f"both predictors must be evaluated by the same labels; {one.attribute!r} of page {one.page!r} has "
                f"gold {one.gold!r} ({one.origin}, {one.site}) and {other.gold!r} ({other.origin}, {other.site})"
            )
    return [(one, second[key]) for key, one in first.items()]


def _by_question(predictions: Sequence[Prediction]) -> dict[_Key, Prediction]:
    """Key predictions by page and attribute; samples of one context that share an attribute by their order, too."""
    seen: Counter[tuple[str, str]] = Counter()
    keyed: dict[_Key, Prediction] = {}
    for p in predictions:
        keyed[p.page, p.attribute, seen[p.page, p.attribute]] = p
        seen[p.page, p.attribute] += 1
    return keyed
