"""How far labels agree, and what that leaves of validation accuracy: by hand, and against simulated labels."""

import random

import pytest

from trial_trainer.contract import CeilingBasis, LabelAgreement, LabelAudit, LabelOrigin, Metric
from trial_trainer.dataset.audit import Pair, agree, audit
from trial_trainer.intervals import estimate_share

TEACHER, AGAIN, GIVEN, MARKUP = (
    LabelOrigin.TEACHER,
    LabelOrigin.TEACHER_AGAIN,
    LabelOrigin.GIVEN,
    LabelOrigin.MARKUP,
)


def a_pair(site: int, agrees: bool, attribute: str = "price", **changes) -> Pair:
    fields = {"one": TEACHER, "other": GIVEN, "attribute": attribute, "site": f"s{site}", "agrees": agrees}
    return Pair(**(fields | {"is_kept": True} | changes))


def measured(
    pairs: list[Pair], noisy_shares: dict[str, float] | None = None, used: LabelOrigin = LabelOrigin.TEACHER
) -> LabelAudit:
    found = audit(pairs, used, noisy_shares or {})
    assert found is not None
    return found


def agreement_of(found: LabelAudit, attribute: str | None) -> Metric:
    return next(one.metric for one in found.agreements if one.attribute == attribute)


def ceiling_of(found: LabelAudit, basis: CeilingBasis, attribute: str | None = None) -> Metric:
    return next(c.metric for c in found.ceilings if (c.basis, c.attribute) == (basis, attribute))


@pytest.mark.parametrize(
    ("attribute", "one", "other", "is_same"),
    [
        pytest.param("price", ("1299",), ("1.299,00",), True, id="a price in two notations"),
        pytest.param("price", ("12.99",), ("12.90", "12.99"), True, id="one of two"),
        pytest.param("price", ("12.99",), ("12.90",), False, id="another price"),
        pytest.param("name", (), (), True, id="none and none"),
        pytest.param("name", (), ("Kettle",), False, id="none and a value"),
        pytest.param("name", ("Kettle",), (), False, id="a value and none"),
        pytest.param("currency", ("$",), ("CAD",), True, id="a sign that may mean it"),
    ],
)
def test_labels_agree_where_they_mean_the_same(attribute, one, other, is_same) -> None:
    assert agree(attribute, one, other, "Now 12,99 each, 1.299,00 in all", None) is is_same


def test_nothing_with_two_labels_is_no_audit() -> None:
    assert audit([], TEACHER, {"price": 1.0}) is None


def test_agreement_is_told_by_attribute_and_as_their_mean() -> None:
    pairs = [a_pair(site, site != 0) for site in range(10)] + [a_pair(site, site > 4, "name") for site in range(10)]
    found = measured(pairs)
    price, name, mean = (agreement_of(found, attribute) for attribute in ("price", "name", None))
    assert (price.value, price.n, price.sites) == (0.9, 10, 10)
    assert (name.value, name.n) == (0.5, 10)
    assert (mean.value, mean.n, mean.sites) == (pytest.approx(0.7), 20, 10)
    assert mean.low is not None and mean.high is not None and mean.low < 0.7 < mean.high


def test_origins_are_compared_two_by_two() -> None:
    pairs = [a_pair(0, True), a_pair(0, False, other=MARKUP), a_pair(0, True, one=MARKUP)]
    kinds = {(one.one, one.other): one.metric.value for one in measured(pairs).agreements}
    assert kinds == {(TEACHER, GIVEN): 1.0, (TEACHER, MARKUP): 0.0, (MARKUP, GIVEN): 1.0}


def test_an_interval_widens_where_a_site_is_wrong_as_a_whole() -> None:
    spread = measured([a_pair(site, page != 0) for site in range(10) for page in range(5)])
    whole = measured([a_pair(site, site > 1) for site in range(10) for _ in range(5)])
    even, uneven = (agreement_of(found, "price") for found in (spread, whole))
    assert even.value == uneven.value == pytest.approx(0.8)
    assert even.low is not None and uneven.low is not None and uneven.low < even.low - 0.1


def test_of_very_many_sites_a_thousand_are_audited() -> None:
    metric = agreement_of(measured([a_pair(site, site % 4 > 0) for site in range(3000)]), "price")
    assert (metric.n, metric.sites) == (1000, 1000)
    assert metric.low < 0.75 < metric.high


def test_fewer_than_five_sites_give_no_interval() -> None:
    metric = agreement_of(measured([a_pair(site, True) for site in range(4)]), "price")
    assert (metric.value, metric.low, metric.high, metric.standard_error) == (1.0, None, None, None)


def test_the_ceiling_counts_only_labels_that_nobody_gave() -> None:
    pairs = [a_pair(site, site >= 2) for site in range(10)]
    basis = CeilingBasis.GIVEN_LABELS
    assert ceiling_of(measured(pairs, {"price": 1.0}), basis).value == pytest.approx(0.8)
    assert ceiling_of(measured(pairs, {"price": 0.5}), basis).value == pytest.approx(0.9)
    assert measured(pairs, {"price": 0.0}).ceilings == ()
    assert measured(pairs, {}).ceilings == ()


def test_the_ceiling_is_that_of_the_labels_that_are_used() -> None:
    pairs = [a_pair(site, site >= 2) for site in range(10)] + [a_pair(site, False, one=MARKUP) for site in range(10)]
    for used, value in ((TEACHER, 0.8), (MARKUP, 0.0)):
        found = measured(pairs, {"price": 1.0}, used)
        assert ceiling_of(found, CeilingBasis.GIVEN_LABELS).value == pytest.approx(value)
    assert measured(pairs, {"price": 1.0}, GIVEN).ceilings == ()


def test_the_ceiling_does_not_count_labels_that_are_dropped_anyway() -> None:
    pairs = [a_pair(site, True) for site in range(8)] + [a_pair(site, False, is_kept=False) for site in range(8)]
    found = measured(pairs, {"price": 1.0})
    assert agreement_of(found, "price").value == 0.5
    assert ceiling_of(found, CeilingBasis.GIVEN_LABELS).value == 1.0


def test_the_ceiling_is_the_mean_of_the_attributes_that_it_is_known_of() -> None:
    pairs = [a_pair(site, site >= 2) for site in range(10)] + [a_pair(site, True, "name") for site in range(10)]
    found = measured(pairs, {"price": 1.0, "name": 1.0, "brand": 1.0})
    assert ceiling_of(found, CeilingBasis.GIVEN_LABELS).value == pytest.approx(0.9)
    assert [c.attribute for c in found.ceilings] == [None, "name", "price"]


@pytest.mark.parametrize("chance", [0.55, 0.7, 0.9, 0.99])
def test_no_model_agrees_with_labels_more_often_than_the_second_pass_allows(chance) -> None:
    """A teacher that says the usual value by chance, and one of two others else: the best model says the usual one."""
    generator = random.Random(7)

    def draw() -> str:
        return "usual" if generator.random() < chance else generator.choice(["one", "other"])

    pairs, right = [], []
    for site in range(1000):
        label, again = draw(), draw()
        right.append(float(label == "usual"))
        pairs.append(a_pair(site, label == again, other=AGAIN))
    bound = ceiling_of(measured(pairs, {"price": 1.0}), CeilingBasis.SELF_CONSISTENCY)
    best = sum(right) / len(right)
    assert best <= bound.high
    # And it tells something: with these odds no more than a few points above what is reached.
    assert bound.value - best < 0.08


def test_a_measured_ceiling_is_what_a_true_model_gets() -> None:
    """Labels that are wrong now and then, most of them from the teacher: a model that knows the truth is measured."""
    generator = random.Random(3)
    pairs = [a_pair(site, generator.random() < 0.85) for site in range(900)]
    noisy = [generator.random() < 0.6 for _ in range(5000)]
    measurements = [float(not is_noisy or generator.random() < 0.85) for is_noisy in noisy]
    share = sum(noisy) / len(noisy)
    ceiling = ceiling_of(measured(pairs, {"price": share}), CeilingBasis.GIVEN_LABELS)
    assert ceiling.low <= sum(measurements) / len(measurements) <= ceiling.high
    assert ceiling.high - ceiling.low < 0.07


def test_intervals_are_those_of_every_other_share() -> None:
    pairs = [a_pair(site, site % 3 > 0) for site in range(20) for _ in range(site % 4 + 1)]
    import numpy as np

    count = np.array([[site % 4 + 1.0] for site in range(20)])
    total = count * np.array([[float(site % 3 > 0)] for site in range(20)])
    expected = estimate_share(total, count)
    found = measured(pairs).agreements
    assert found[0] == LabelAgreement(one=TEACHER, other=GIVEN, attribute=None, metric=found[0].metric)
    assert (found[0].metric.low, found[0].metric.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
