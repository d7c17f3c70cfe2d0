"""Variants of a training page or text: the same questions, asked of a text that says it otherwise.

Called by `prepare` for the training split alone. A variant is made by edits that a study names: lines without an answer
are dropped, and neighbours change places; values are replaced by those of other pages, everywhere in the text at once,
and prices and dates are written in another way. The answers follow. An edit after which an answer no longer stands in
the text is undone, so that a variant asks whatever its page asks.

Pure functions of text: nothing here knows tokens or files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from trial_trainer.contract import Edit
from trial_trainer.pages import answers

DROPPED_SHARE, SWAPPED_SHARE = 0.15, 0.15
"""Of the lines without an answer that may go, and of neighbours that may change places."""
REPLACED_SHARE = 0.5
"""Of the values that may be replaced, and of those that may be written in another way."""
NOT_REPLACED = frozenset({"currency", "availability", "rating"})
"""Attributes whose value is said by more than its words: a sign, a button, stars."""

Values = Mapping[str, str]
"""The answer by attribute; without an entry the page is known to have none."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a variant says."""

    text: str
    values: Values


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """Makes variants with the edits of one study."""

    edits: Sequence[Edit]
    seed: int
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By attribute: the values that training pages have, to replace others with."""

    def vary(self, page: str, text: str, values: Values, copy: int) -> Variant:
        """Return a variant of a page's text, always the same for the same seed, page and number.

        Args:
            page: the page's id.
            text: what the model sees of it.
            values: the answers that are trained on; each stands in the text.
            copy: number of the variant.
        """
        chance = random.Random(f"augment/{self.seed}/{page}/{copy}")
        variant = Variant(text=text, values=dict(values))
        for edit in self.edits:
            changed = _EDITS[edit](variant, self.others, chance)
            if all(
                _stands(value, changed.text) or not _stands(values[name], text)
                for name, value in changed.values.items()
            ):
                variant = changed
        return variant


def _drop_lines(variant: Variant, _: Mapping[str, Sequence[str]], chance: random.Random) -> Variant:
    lines = variant.text.split("\n")
    # The first line is the page's address, or what was asked for.
    kept = [
        line
        for place, line in enumerate(lines)
        if place == 0 or _bears(line, variant.values) or chance.random() >= DROPPED_SHARE
    ]
    return Variant(text="\n".join(kept), values=variant.values)


def _swap_lines(variant: Variant, _: Mapping[str, Sequence[str]], chance: random.Random) -> Variant:
    lines = variant.text.split("\n")
    place = 1
    while place + 1 < len(lines):
        if chance.random() < SWAPPED_SHARE:
            lines[place], lines[place + 1] = lines[place + 1], lines[place]
            place += 1
        place += 1
    return Variant(text="\n".join(lines), values=variant.values)


def _replace_values(variant: Variant, others: Mapping[str, Sequence[str]], chance: random.Random) -> Variant:
    for name in sorted(variant.values):
        old = variant.values[name]
        choices = [value for value in others.get(name, ()) if value != old]
        if name in NOT_REPLACED or not choices or not _stands(old, variant.text) or chance.random() >= REPLACED_SHARE:
            continue
        variant = _replace(variant, old, chance.choice(choices))
    return variant


def _reformat_values(variant: Variant, _: Mapping[str, Sequence[str]], chance: random.Random) -> Variant:
    for name in sorted(variant.values):
        old = variant.values[name]
        written = [form for form in _write_otherwise(name, old) if form != old]
        if not written or not _stands(old, variant.text) or chance.random() >= REPLACED_SHARE:
            continue
        variant = _replace(variant, old, chance.choice(written))
    return variant


_EDITS: Mapping[Edit, Callable[[Variant, Mapping[str, Sequence[str]], random.Random], Variant]] = {
    Edit.DROP_LINES: _drop_lines,
    Edit.SWAP_LINES: _swap_lines,
    Edit.REPLACE_VALUES: _replace_values,
    Edit.REFORMAT_VALUES: _reformat_values,
}


# Values in a text -----------------------------------------------------------------------------------------------------


def _stands(value: str, text: str) -> bool:
    return _whole(value).search(text) is not None


def _bears(line: str, values: Values) -> bool:
    return any(_stands(value, line) for value in values.values())


def _replace(variant: Variant, old: str, new: str) -> Variant:
    """Write a value otherwise wherever it stands, and in whatever answer it is a part of."""
    whole = _whole(old)
    return Variant(
        text=whole.sub(lambda _: new, variant.text),
        values={name: whole.sub(lambda _: new, value) for name, value in variant.values.items()},
    )


def _whole(value: str) -> re.Pattern[str]:
    """Match a value, in any case, that is no part of a longer word or number."""
    return re.compile(rf"(?<![^\W_])(?<!\d[.,]){re.escape(value)}(?![^\W_])(?![.,]\d)", re.IGNORECASE)


# Other ways to write a value ------------------------------------------------------------------------------------------

_DAYS = ("%A, %B %d, %Y", "%a, %b %d, %Y", "%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%d %b %Y", "%Y-%m-%d")
_DAYS_OF_SOME_YEAR = ("%B %d", "%b %d", "%d %B", "%d %b")
_ORDINAL = re.compile(r"(?<=\d)(st|nd|rd|th)\b", re.IGNORECASE)
_PRICE = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d\d)?|\d+(?:\.\d\d)?")


def _write_otherwise(attribute: str, value: str) -> list[str]:
    if attribute == "date":
        return _write_date(value)
    if attribute == "price" and _PRICE.fullmatch(value):
        return [form for form in _write_price(value) if answers.is_correct(attribute, form, (value,))]
    return []


def _write_date(value: str) -> list[str]:
    plain = _ORDINAL.sub("", value)
    # A leap year stands for the year that is not said.
    for formats, year in ((_DAYS, ""), (_DAYS_OF_SOME_YEAR, " 2000")):
        for known in formats:
            try:
                day = datetime.strptime(plain + year, known + (" %Y" if year else ""))  # noqa: DTZ007 (a day, no moment)
            except ValueError:
                continue
            return [day.strftime(form) for form in formats]
    return []


def _write_price(value: str) -> list[str]:
    number = float(value.replace(",", ""))
    forms = [f"{number:,.2f}", f"{number:.2f}"]
    return forms if number % 1 else [*forms, f"{number:,.0f}", f"{number:.0f}"]
