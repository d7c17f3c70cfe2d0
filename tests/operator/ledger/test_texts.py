"""Texts are cut to what an API server's JSON has room for."""

import json

from hypothesis import given
from hypothesis import strategies as st

from study_operator.ledger.texts import cut


@given(st.text(), st.integers(3, 60))
def test_a_text_is_cut_to_the_bytes_that_an_api_server_stores(text: str, most: int) -> None:
    message = cut(text, most)
    # Go escapes what HTML would read, and the two line ends of JavaScript.
    stored = json.dumps(message, ensure_ascii=False)[1:-1]
    assert (
        len(stored.encode()) + 5 * sum(map(message.count, "<>&")) + 3 * sum(map(message.count, "\u2028\u2029")) <= most
    )
    assert cut(message, most) == message
    assert message == text.encode("utf-8", "replace").decode() or (
        message.endswith("…") and text.startswith(message[:-1])
    )


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert cut("path \udcff", 100) == "path ?"
