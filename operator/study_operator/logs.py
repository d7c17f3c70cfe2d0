"""One line a record: what tenants write into names, messages and answers can neither forge a line nor flood the log."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
MESSAGE_CHARACTERS = 4000
TRACE_LINES = 60


class OneLineFormatter(logging.Formatter):
    """Escapes control characters and cuts what is too long; no line of a trace begins like a record."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name for it
        """Return the record's own line."""
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802  # the base class's name for it
        """Return the trace of an error."""
        lines = [escape(line) for line in super().formatException(ei).split("\n")]  # type: ignore[arg-type]
        if len(lines) > TRACE_LINES:
            lines[TRACE_LINES // 2 : -TRACE_LINES // 2] = [f"… {len(lines) - TRACE_LINES} lines …"]
        return "\n".join(f"    {line}" for line in lines)


def escape(text: str) -> str:
    """Return a text on one line, of bounded length."""
    more = len(text) - MESSAGE_CHARACTERS
    if more > 0:
        text = f"{text[:MESSAGE_CHARACTERS]}… ({more} more characters)"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def log_to_stderr() -> None:
    """Log so from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
