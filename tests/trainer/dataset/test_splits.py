"""Splits are by site, drawn by the seed alone, and large enough in every attribute where that is possible."""

import math
import random
import socket
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trial_trainer.contract import Split
from trial_trainer.dataset.splits import (
    DISAGREEMENT,
    LEAST_VALIDATION_VALUES,
    Candidate,
    address_of,
    clustered_error_points,
    digest_text,
    draw,
    join_groups,
    rank,
    separable_points,
    site_of,
)
from trial_trainer.dataset.store import TEST, TRAIN, VALIDATION


@pytest.mark.parametrize(
    ("given_name", "shop"),
    [
        ("amazon.com", "amazon"),
        ("https://www.amazon.co.uk/dp/B07?x=1#y", "amazon"),
        ("http://smile.AMAZON.de:8080/", "amazon"),
        ("www.johnlewis.com.", "johnlewis"),
        ("shop.example.com.au", "example"),
        ("https://пример.рф/a", "пример"),
        ("localhost", "localhost"),
        ("http://192.168.1.2:8000/a", "192.168.1.2"),
        ("http://[::1]/a", "::1"),
        ("https://[broken", "https://[broken"),
        ("co.uk", "co.uk"),
        ("http://wiki.shop.internal/a", "shop"),
        ("Acme Shop", "acme shop"),
        ("//cdn.ikea.com/x", "ikea"),
        ("https://münchen-shop.de/k1", "münchen-shop"),
        ("https://xn--mnchen-shop-thb.de/k2", "münchen-shop"),
        ("https://MÜNCHEN-SHOP.de/k3", "münchen-shop"),
        ("https://mu\u0308nchen-shop.de/k4", "münchen-shop"),
        ("https://straße.de/", "straße"),
        ("https://xn--strae-oqa.de/", "straße"),
        ("https://пример.рф", "пример"),
        ("https://xn--e1afmkfd.xn--p1ai/", "пример"),
        ("https://www.shop。example。com/", "example"),
        ("https://xn--broken-.com/", "xn--broken-"),
        ("https://user:secret@www.Ikea.com.:8443/x", "ikea"),
        ("ikea.com/go?to=https://amazon.com/", "ikea"),
        ("HTTPS://WWW.IKEA.COM", "ikea"),
        ("https://a.myshopify.com/products/1", "a.myshopify"),
        ("https://www.a.myshopify.com/products/1", "a.myshopify"),
        ("b.myshopify.com", "b.myshopify"),
        ("https://shop.blogspot.com/", "shop.blogspot"),
        ("https://myshopify.com/", "myshopify"),
        ("https://amazon.myshopify.com/", "amazon.myshopify"),
        ("https://acme.github.io/shop", "acme.github"),
    ],
)
def test_a_site_is_the_registrable_name_without_its_suffix(given_name, shop) -> None:
    assert site_of(given_name) == shop


@pytest.mark.parametrize(
    "spelling",
    [
        "https://shop.example/a/b?x=1&y=2",
        "http://www.shop.example:80/a/b/?y=2&x=1#top",
        "HTTPS://user@SHOP.example.:443/a/b?x=1&utm_source=mail&y=2&gclid=7",
        "shop.example/a/%62?x=1&y=2&fbclid=9&msclkid=3",
    ],
)
def test_one_address_in_many_spellings_is_one(spelling) -> None:
    assert address_of(spelling) == "shop.example/a/b?x=1&y=2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://shop.example/a", "https://shop.example/b"),
        ("https://shop.example/a?id=1", "https://shop.example/a?id=2"),
        ("https://shop.example/a", "https://shop.example/A"),
        ("https://shop.example/a", "https://de.shop.example/a"),
        ("http://localhost:8001/a", "http://localhost:8002/a"),
    ],
)
def test_other_addresses_are_told_apart(one, other) -> None:
    assert address_of(one) != address_of(other)


def test_the_suffix_list_is_neither_fetched_nor_cached(monkeypatch, tmp_path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TLDEXTRACT_CACHE", str(tmp_path / "cache"))
    site_of.cache_clear()
    assert site_of("never.seen.before.co.jp") == "before"
    assert not (tmp_path / "cache").exists()


def some_candidates(sites: int, pages_a_site: int = 3, attributes: tuple[str, ...] = ("name",)) -> list[Candidate]:
    return [
        Candidate(id=f"{site}-{page}", group=f"shop{site}", attributes=attributes)
        for site in range(sites)
        for page in range(pages_a_site)
    ]


def test_the_draw_does_not_depend_on_the_order_of_pages() -> None:
    candidates = some_candidates(30)
    shuffled = random.Random(1).sample(candidates, len(candidates))
    assert draw(candidates, Split(), seed=3) == draw(shuffled, Split(), seed=3)


def test_another_seed_draws_other_sites() -> None:
    candidates = some_candidates(30)
    assert draw(candidates, Split(), seed=1) != draw(candidates, Split(), seed=2)


@pytest.mark.slow
@given(
    sites=st.integers(1, 40),
    validation=st.integers(1, 60),
    test=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_every_site_is_in_one_split_and_each_split_has_its_share(sites, validation, test, seed) -> None:
    drawn = draw(some_candidates(sites), Split(validation_percent=validation, test_percent=test), seed)
    counts = Counter(drawn.values())
    assert set(drawn) == {f"shop{site}" for site in range(sites)}
    assert abs(counts[VALIDATION] - sites * validation / 100) <= 1
    assert abs(counts[TEST] - sites * test / 100) <= 1
    assert test > 0 or counts[TEST] == 0


@pytest.mark.slow
def test_a_rare_attribute_gets_enough_validation_values_with_any_seed() -> None:
    # 18 sites in a hundred have a rating: a plain draw of 20 sites has 8 of them once in a hundred times.
    candidates = some_candidates(82, pages_a_site=1) + [
        Candidate(id=f"rated{site}", group=f"shop{site}", attributes=("name", "rating")) for site in range(18)
    ]
    for seed in range(10):
        drawn = draw(candidates, Split(validation_percent=35, test_percent=0), seed)
        ratings = Counter(drawn[c.group] for c in candidates if "rating" in c.attributes)
        assert ratings[VALIDATION] >= LEAST_VALIDATION_VALUES
        assert ratings[TRAIN] > 0


def test_of_enough_draws_the_one_with_the_fairest_shares_is_taken() -> None:
    # One shop has as many pages as all others: a draw that puts it into validation would leave half for training.
    candidates = some_candidates(40, pages_a_site=1) + [
        Candidate(id=f"big-{page}", group="big", attributes=("name",)) for page in range(40)
    ]
    for seed in range(10):
        assert draw(candidates, Split(validation_percent=20, test_percent=0), seed)["big"] == TRAIN


def test_no_page_gives_no_group() -> None:
    assert draw([], Split(), seed=0) == {}


def test_ranks_of_names_do_not_run_into_each_other() -> None:
    assert rank(1, "ab", "c") != rank(1, "a", "bc")


def test_the_error_of_independent_values_is_binomial() -> None:
    assert clustered_error_points([1] * 100) == pytest.approx(5.0)


def test_the_error_of_one_site_is_that_of_one_value() -> None:
    assert clustered_error_points([70]) == pytest.approx(50.0)


def test_the_error_of_no_value_is_infinite() -> None:
    assert clustered_error_points([]) == math.inf


def test_of_two_arms_so_far_apart_the_better_one_is_chosen_nine_times_in_ten() -> None:
    n, chance = 2000, np.random.default_rng(0)
    gap = separable_points([1] * n) / 100
    # Of each value: only the better one right, only the other one, or both alike.
    shares = [(DISAGREEMENT + gap) / 2, (DISAGREEMENT - gap) / 2, 1 - DISAGREEMENT]
    better, other, _ = chance.multinomial(n, shares, size=20_000).T
    assert np.mean(better > other) + np.mean(better == other) / 2 == pytest.approx(0.9, abs=0.01)


def some_groups(**texts: str) -> dict[str, Counter[bytes]]:
    """Groups by name with the texts that they hold, a letter each."""
    return {name: Counter(letter.encode() for letter in letters) for name, letters in texts.items()}


def test_groups_with_equal_texts_are_joined_under_the_first_name() -> None:
    joined = join_groups(some_groups(d="w", c="x", b="xy", a="y", **{f"z{n}": chr(200 + n) for n in range(40)}))
    assert {name: joined.group_by_name[name] for name in "abcd"} == {"a": "a", "b": "a", "c": "a", "d": "d"}
    assert not joined.home_by_text


def test_copies_of_one_text_are_one_group_however_many() -> None:
    joined = join_groups(some_groups(a="x", b="x", c="x", d="y"))
    assert set(joined.group_by_name.values()) == {"a", "d"}


def test_a_text_that_would_join_too_much_stays_with_the_first() -> None:
    joined = join_groups(some_groups(a="wx", b="xy", c="xz", d="v"))
    assert set(joined.group_by_name.values()) == set("abcd")
    assert joined.home_by_text == {b"x": "a"}


def test_groups_are_joined_alike_in_any_order() -> None:
    groups = some_groups(d="w", c="x", b="xy", a="y", **{f"z{n}": chr(200 + n) for n in range(40)})
    assert join_groups(groups) == join_groups(dict(reversed(groups.items())))


def test_texts_are_equal_whatever_their_white_space() -> None:
    assert digest_text("x  y") == digest_text("x\ny ") != digest_text("xy")
