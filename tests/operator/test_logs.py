"""What reaches the log: one line a record, of bounded length, whatever tenants write."""

import io
import logging

from study_operator.logs import MESSAGE_CHARACTERS, OneLineFormatter


def logged(message: str, *, error: BaseException | None = None) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter())
    trace = (type(error), error, None) if error is not None else None
    handler.handle(logging.LogRecord("test", logging.ERROR, __file__, 1, "study %s", (message,), trace))
    return stream.getvalue().splitlines()


def test_a_line_break_in_a_name_forges_no_line() -> None:
    (line,) = logged("a\n2026-01-01 00:00:00,000 INFO operator elected\r\x1b[31m\u2028\u202e")
    assert line.endswith(r"study a\n2026-01-01 00:00:00,000 INFO operator elected\r\x1b[31m\u2028\u202e")


def test_letters_of_any_language_stay_as_they_are() -> None:
    (line,) = logged("größer 価格 …")
    assert line.endswith("study größer 価格 …")


def test_five_megabytes_are_cut() -> None:
    (line,) = logged("x" * 5_000_000)
    assert MESSAGE_CHARACTERS < len(line) < MESSAGE_CHARACTERS + 200
    assert line.endswith(f"({5_000_000 + len('study ') - MESSAGE_CHARACTERS} more characters)")


def test_no_line_of_a_trace_begins_like_a_record() -> None:
    first, *trace = logged("a", error=ValueError("b\n2026-01-01 INFO forged"))
    assert first.endswith("study a")
    assert trace and all(line.startswith("    ") for line in trace)
