"""Which page belongs to which split: drawn by site and seed, so that no site is trained on and tested on.

Pure functions of ids, hosts and counts; `prepare` calls them. A draw depends on the seed and the groups' names only,
never on the order in which pages came.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import idna
import tldextract

from trial_trainer.contract import Split
from trial_trainer.dataset.shuffling import rank
from trial_trainer.dataset.store import TEST, TRAIN, VALIDATION

LEAST_VALIDATION_VALUES = 8
"""Fewer values of an attribute than this tell nothing about it."""
MOST_STANDARD_ERROR_POINTS = 3.0
"""Above this, in percentage points, a difference between arms is mostly chance."""
DISAGREEMENT = 0.25
"""Share of the values that only one of two good arms gets right: 23 to 28 % of those of the best three of the first
recorded arms at 20 % of their length, 24 % of the best two at its end (`benchmarks/data/lora-arms`)."""
NINE_IN_TEN = 1.2816
"""The normal distribution's quantile."""
MOST_JOINED_PERCENT = 20
"""Of all texts, in groups that are joined for the equal texts they hold."""
MOST_DRAWS = 2000
"""Draws among which the one is taken whose splits resemble the whole most, attribute by attribute."""
DRAWN_GROUPS = 200_000
"""Groups drawn in all, which limits the draws of large sources: their shares come out even by themselves."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A page that waits for its split."""

    id: str
    group: str
    """What must not be in two splits: the site, or the page itself."""
    attributes: tuple[str, ...]
    """Attributes that the page would have a validation value of."""


def host_of(url_or_host: str) -> str:
    """Return the host without ``www``, in lower case and the letters of its language; empty where there is none."""
    try:
        host = _split(url_or_host).hostname
    except ValueError:
        return ""
    return _in_letters((host or "").rstrip(".")).removeprefix("www.")


def address_of(url: str) -> str:
    """Return what tells a page's address from others, however it is spelled.

    Scheme, ``www``, default port, user, fragment, tracking, the order of the query and a closing slash tell nothing.
    """
    host = host_of(url)
    if not host:
        return url.strip()
    parts = _split(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    query = sorted(pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _TRACKING.match(pair[0]))
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    return where + unquote(parts.path).rstrip("/") + ("?" + urlencode(query) if query else "")


def has_host(url_or_site: str) -> bool:
    """Say whether a text names a host: ``seller:12``, ``Books / used`` and ``/kettle`` do not."""
    host = host_of(url_or_site)
    is_said = _SCHEME.match(url_or_site.strip()) is not None or host == url_or_site.strip().casefold()
    return bool(host) and not re.search(r"\s", host) and (is_said or "." in host or ":" in host)


@lru_cache(maxsize=65536)
def site_of(url_or_site: str) -> str:
    """Return the registrable name without its public suffix: amazon.com and amazon.co.uk are both ``amazon``.

    On a platform that hosts many sites (the list's private part) the site is what it registered there:
    ``a.myshopify.com`` is ``a.myshopify``. A last label that is no public suffix counts as one (the list's prevailing
    rule ``*``), so ``shop.internal`` is ``shop``. A host of one label, an address and words that are no host stand for
    themselves.
    """
    host = host_of(url_or_site)
    if not has_host(url_or_site):
        return url_or_site.strip().casefold()
    if re.fullmatch(r"[\d.]+|[0-9a-f:]*:[0-9a-f:.]*", host):
        return host
    hosted = _suffixes()(host, include_psl_private_domains=True)
    found = _suffixes()(host)
    if hosted.is_private and hosted.domain:
        return f"{hosted.domain}.{hosted.suffix}".removesuffix(f".{found.suffix}")
    if found.domain and found.suffix:
        return found.domain
    labels = host.split(".")
    return labels[-2] if len(labels) > 1 and not found.suffix else host


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|//", re.IGNORECASE)
_TRACKING = re.compile(r"(?:utm_|[a-z]{0,3}clid$|msclkid$|srsltid$|mc_[ce]id$|_ga$|igshid$)", re.IGNORECASE)


def _split(url_or_host: str) -> SplitResult:
    text = url_or_host.strip()
    return urlsplit(text if _SCHEME.match(text) else f"//{text}")


def _in_letters(host: str) -> str:
    """Return a host as people write it: browsers send ``xn--mnchen-3ya.de`` for ``münchen.de``."""
    try:
        labels = idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")
        return ".".join(idna.decode(label) if label.startswith("xn--") else label for label in labels)
    except idna.IDNAError:
        return host


@lru_cache(maxsize=1)
def _suffixes() -> tldextract.TLDExtract:
    """The public suffix list as tldextract ships it: nothing is fetched, nothing is cached on disk."""
    return tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), fallback_to_snapshot=True)


def draw(candidates: Sequence[Candidate], split: Split, seed: int) -> dict[str, str]:
    """Divide the candidates' groups among the splits.

    Of up to `MOST_DRAWS` draws by the seed the one is taken in which every attribute has enough validation values and
    whose shares of each attribute's values are closest to the shares asked for (least squares). Nothing but counts is
    looked at, so this chooses no model.

    Returns:
        The split's name by group.
    """
    groups = sorted({candidate.group for candidate in candidates})
    values_by_group: dict[str, Counter[str]] = defaultdict(Counter)
    for candidate in candidates:
        values_by_group[candidate.group].update(candidate.attributes)
    sizes = _sizes(len(groups), split)
    attempts = max(1, min(MOST_DRAWS, DRAWN_GROUPS // max(1, len(groups))))
    draws = (_draw_once(groups, sizes, seed, attempt) for attempt in range(attempts))
    return min(draws, key=lambda drawn: _unlikeness(drawn, values_by_group, split))


def _sizes(groups: int, split: Split) -> tuple[int, int]:
    """Return how many groups are for validation and for test: rounded half up, at least one where asked for."""
    asked = [split.validation_percent, split.test_percent]
    validation, test = (max(math.floor(groups * percent / 100 + 0.5), percent > 0) for percent in asked)
    validation = min(validation, groups)
    return validation, min(test, groups - validation)


def _draw_once(groups: Sequence[str], sizes: tuple[int, int], seed: int, attempt: int) -> dict[str, str]:
    validation, test = sizes
    shuffled = sorted(groups, key=lambda group: rank(seed, "split", str(attempt), group))
    names = [VALIDATION] * validation + [TEST] * test + [TRAIN] * (len(groups) - validation - test)
    return dict(zip(shuffled, names, strict=True))


def _unlikeness(
    drawn: Mapping[str, str], values_by_group: Mapping[str, Counter[str]], split: Split
) -> tuple[int, float]:
    """Say how far a draw is from what was asked: missing values first, then the squared errors of its shares."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, values in values_by_group.items():
        for attribute, count in values.items():
            counts[attribute][drawn[group]] += count
    missing = sum(
        max(0, LEAST_VALIDATION_VALUES - by_split[VALIDATION]) + (by_split[TRAIN] == 0) for by_split in counts.values()
    )
    asked = ((VALIDATION, split.validation_percent), (TEST, split.test_percent))
    squares = sum(
        (by_split[name] / by_split.total() - percent / 100) ** 2
        for by_split in counts.values()
        for name, percent in asked
    )
    return missing, squares


def clustered_error_points(sizes: Iterable[int]) -> float:
    """Return the largest standard error of a share, in percentage points, clustered by site.

    It is the binomial error at one half with the effective sample size n² / Σ nᵢ² of clusters of nᵢ values, which
    assumes full correlation within a cluster: an upper limit (Kish, Survey Sampling, 1965, section 5.4, at rho = 1).
    """
    counts = list(sizes)
    n = sum(counts)
    return 100 * math.sqrt(0.25 * sum(count * count for count in counts)) / n if n else math.inf


def separable_points(sizes: Iterable[int]) -> float:
    """Return how many percentage points apart two good arms must be for the better one to be chosen 9 times in 10.

    They answer the same questions: the variance of their paired difference is the share of values that only one of them
    gets right, over the effective sample size, clustered as in `clustered_error_points`.
    """
    return NINE_IN_TEN * 2 * math.sqrt(DISAGREEMENT) * clustered_error_points(sizes)


def digest_text(text: str) -> bytes:
    """Return what equal texts have in common, whatever their white space."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Groups with their equal texts brought together."""

    group_by_name: Mapping[str, str]
    """For each group the one that it is part of now: the first name of those joined."""
    home_by_text: Mapping[bytes, str]
    """Texts that would have joined too much: the group that keeps each; its copies elsewhere must go."""


def join_groups(
    texts_by_group: Mapping[str, Counter[bytes]], names_by_group: Mapping[str, Iterable[str]] | None = None
) -> Joined:
    """Join groups that hold equal texts or pages of one name, such as an address, so that none is in two splits.

    Copies of one text always make one group. Groups with other texts too (sites) are joined while they hold at most
    `MOST_JOINED_PERCENT` of all; a text that more of them show, such as a notice, stays with the first, and a name
    that more of them give, such as the address of a home page, is nobody's own.
    """
    root_by_name = {name: name for name in texts_by_group}
    size = {name: texts.total() for name, texts in texts_by_group.items()}
    only_text: dict[str, bytes | None] = {
        name: next(iter(texts)) if len(texts) == 1 else None for name, texts in texts_by_group.items()
    }
    names_by_text: dict[bytes, list[str]] = defaultdict(list)
    for name in sorted(texts_by_group):
        for text in texts_by_group[name]:
            names_by_text[text].append(name)

    def root_of(name: str) -> str:
        while root_by_name[name] != name:
            root_by_name[name] = name = root_by_name[root_by_name[name]]
        return name

    most = sum(size.values()) * MOST_JOINED_PERCENT // 100
    groups_by_key: dict[str, list[str]] = defaultdict(list)
    for name, keys in sorted((names_by_group or {}).items()):
        for key in keys:
            groups_by_key[key].append(name)
    for _, groups in sorted(groups_by_key.items()):
        roots = sorted({root_of(name) for name in groups})
        total = sum(size[root] for root in roots)
        if len(roots) == 1 or total > most:
            continue
        are_copies = only_text[roots[0]] is not None and len({only_text[root] for root in roots}) == 1
        for root in roots[1:]:
            root_by_name[root] = roots[0]
        size[roots[0]] = total
        only_text[roots[0]] = only_text[roots[0]] if are_copies else None
    crowded: dict[bytes, str] = {}
    for text, names in sorted(names_by_text.items()):
        roots = sorted({root_of(name) for name in names})
        total = sum(size[root] for root in roots)
        are_copies = all(only_text[root] == text for root in roots)
        if len(roots) > 1 and total > most and not are_copies:
            crowded[text] = names[0]
            continue
        for root in roots[1:]:
            root_by_name[root] = roots[0]
        size[roots[0]] = total
        only_text[roots[0]] = text if are_copies else None
    return Joined(
        group_by_name={name: root_of(name) for name in texts_by_group},
        home_by_text={text: root_of(name) for text, name in crowded.items()},
    )
