"""A text that is of no page, such as a message or a transcript: its lines, its beginning, its facts.

Data preparation calls this for records that bring their text themselves. Nothing is scored or left out: what does not
fit is cut off at the end.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from trial_trainer.pages.documents import CountTokens, Facts
from trial_trainer.pages.html import Skip

_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb]")
"""Controls and byte order marks; white space stays."""
_WORD_END = re.compile(r"(?<=\S)(?=\s|\Z)")
_MOST_CHARACTERS_A_TOKEN = 10
"""No text averages more, whatever its language."""


def read_plain_text(text: str) -> str | Skip:
    """Return what of a text can be seen, without white space at the ends of its lines, or say that it is empty."""
    lines = (line.rstrip() for line in _UNSEEN.sub("", text).splitlines())
    return "\n".join(lines).strip() or Skip.EMPTY


def cut_text(text: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """Return a text, or as many of its first words as a budget holds; empty where it does not hold one.

    Args:
        text: what `read_plain_text` returned.
        max_tokens: most tokens of the result as `count_tokens` counts them.
        count_tokens: counts the tokens of each of several texts.
    """

    def count(end: int) -> int:
        return count_tokens([text[:end]])[0]

    if len(text) <= _MOST_CHARACTERS_A_TOKEN * max_tokens and count(len(text)) <= max_tokens:
        return text
    ends = [found.start() for found in _WORD_END.finditer(text, 0, _MOST_CHARACTERS_A_TOKEN * max_tokens)]
    fitting = bisect_right(ends, max_tokens, key=count)
    return text[: ends[fitting - 1]] if fitting else ""


def facts_of(text: str) -> Facts:
    """Return what a text says of itself as a page would: it has no title and no markup."""
    return Facts(title="", heading="", text=text, canonical="", nodes=(), json_ld=(), properties=())
