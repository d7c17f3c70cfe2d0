"""Texts for people, cut to what the status of the largest study has room for."""

from __future__ import annotations

import functools
from typing import Annotated

from trial_trainer.codec import Written

TRIAL_MESSAGE_BYTES = 180
"""As JSON, like the others here. There are up to 500 trials, and the whole object stays below a mebibyte."""

MESSAGE_BYTES = 2_000
"""Of what is told of the whole study."""

WORD_LENGTH = 64
"""Of a reason, which is one CamelCase word."""


def cut(text: str, most_bytes: int) -> str:
    """Return a text that takes at most so many bytes in an API server's JSON; one that was cut ends in an ellipsis."""
    # What no UTF-8 can hold (half a surrogate pair) would be refused.
    text = text.encode("utf-8", "replace").decode()
    if len(text) * 6 <= most_bytes or sum(map(_stored_bytes, text)) <= most_bytes:
        return text
    room = most_bytes - len("…".encode())
    for end, character in enumerate(text):
        room -= _stored_bytes(character)
        if room < 0:
            return f"{text[:end]}…"
    return text


def _stored_bytes(character: str) -> int:
    """Return the bytes of a character as Go's encoder writes it into JSON, which escapes for HTML too."""
    if character in '"\\\n\r\t\b\f':
        return 2
    return 6 if character < " " or character in "<>&\u2028\u2029" else len(character.encode())


@functools.lru_cache(maxsize=1000)
def cut_word(reason: str) -> str:
    """Return a reason as conditions take it, whatever the environment's own word was."""
    return "".join(c for c in reason if c.isascii() and c.isalnum()).lstrip("0123456789")[:WORD_LENGTH] or "Unknown"


def written_up_to(most_bytes: int) -> Written:
    """Return how a text is written that is cut."""
    return Written(lambda text: cut(text, most_bytes))


Word = Annotated[str, Written(cut_word)]
Message = Annotated[str, written_up_to(MESSAGE_BYTES)]
