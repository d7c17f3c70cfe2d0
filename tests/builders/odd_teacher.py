"""A small OpenAI-compatible server on loopback that knows the right answers and is faulty in named ways."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

KEY = "sk-teacher-0123456789-abcdefgh"

Values = Mapping[str, str | None]


class Fault(StrEnum):
    """One way in which a request ends otherwise than with the right values."""

    RATE_LIMIT = "answers 429 with Retry-After: 0"
    RATE_LIMIT_FOR_AN_HOUR = "answers 429 with Retry-After: 3600"
    NO_QUOTA = "answers 429, for there is no quota"
    OVERLOADED = "answers 503"
    CRASH = "answers 500 with a page for people"
    SLOW = "answers after a second"
    CUT = "closes the connection in the middle of the answer"
    CLOSED = "closes the connection before it answers"
    PROSE = "answers with a sentence in place of JSON"
    FENCED = "answers with JSON in a fence, between sentences"
    WITHOUT_PRICE = "answers with an object that lacks an attribute"
    LIST = "answers with a list as value"
    ENDLESS = "answers until the limit of tokens"
    REFUSAL = "answers with a refusal"
    FILTER = "answers with nothing, for a filter cut it off"
    FILTERED_PROMPT = "answers 400, for a filter stopped the prompt"
    UNKNOWN_FORMAT = "answers 400, for it knows no response_format"
    NO_COMPLETION = "answers 200 with another document"
    HTML = "answers 200 with a page for people"
    UNAUTHORIZED = "answers 401 and repeats the key"
    MISSING = "answers 404, for there is no such model"
    OTHER = "answers with values that stand nowhere"
    NULLS = "answers with null for every attribute"


class OddTeacher(http.server.ThreadingHTTPServer):
    """Answers requests by a function of their prompt; faults of a prompt come first, one a request."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str], Values]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """By a word of the prompt."""
        self.always: Fault | None = None
        """What ends every request."""
        self.rejects_formats = False
        self.without_usage = False
        self.seconds = 0.0
        """Each answer takes."""
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.busy = Counter[str]()
        self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> OddTeacher:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def fail(self, *faults: Fault, of: Sequence[str]) -> None:
        """Let the next requests about some words end so."""
        for word in of:
            self.faults[word] += faults

    def next_fault(self, prompt: str) -> Fault | None:
        with self.lock:
            word = next((word for word, faults in self.faults.items() if faults and _names(prompt, word)), None)
            return self.faults[word].pop(0) if word is not None else self.always

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests want."""


def _names(prompt: str, word: str) -> bool:
    return re.search(rf"{re.escape(word)}\b", prompt) is not None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddTeacher

    def do_POST(self) -> None:
        teacher = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with teacher.lock:
            teacher.requests.append(request)
            teacher.authorizations.append(self.headers["Authorization"])
            teacher.busy["now"] += 1
            teacher.most_busy = max(teacher.most_busy, teacher.busy["now"])
        try:
            self._answer(request)
        finally:
            with teacher.lock:
                teacher.busy["now"] -= 1

    def _answer(self, request: dict[str, Any]) -> None:
        teacher = self.server
        prompt = request["messages"][0]["content"]
        time.sleep(teacher.seconds)
        values = teacher.answer(prompt)
        fault = teacher.next_fault(prompt)
        if teacher.rejects_formats and "response_format" in request:
            fault = Fault.UNKNOWN_FORMAT
        match fault:
            case Fault.RATE_LIMIT:
                self._send(429, _error("slow down", "rate_limit_exceeded"), {"Retry-After": "0"})
            case Fault.RATE_LIMIT_FOR_AN_HOUR:
                self._send(429, _error("slow down", "rate_limit_exceeded"), {"Retry-After": "3600"})
            case Fault.NO_QUOTA:
                self._send(429, _error("you exceeded your current quota", "insufficient_quota"))
            case Fault.OVERLOADED:
                self._send(503, _error("overloaded", "overloaded"))
            case Fault.CRASH:
                self._send(500, b"<html>Internal Server Error</html>", kind="text/html")
            case Fault.SLOW:
                time.sleep(1.0)
                self._complete(json.dumps(values))
            case Fault.CUT:
                body = _completion(json.dumps(values), request)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:20])
                self.close_connection = True
            case Fault.CLOSED:
                self.close_connection = True
            case Fault.PROSE:
                self._complete("The product is a kettle, and it costs what it says.")
            case Fault.FENCED:
                self._complete(f"Here {{it}} is:\n```json\n{json.dumps(values)}\n```\nAnything else?")
            case Fault.WITHOUT_PRICE:
                self._complete(json.dumps({name: value for name, value in values.items() if name != "price"}))
            case Fault.LIST:
                self._complete(json.dumps({name: [value] for name, value in values.items()}))
            case Fault.ENDLESS:
                self._complete(json.dumps(values)[:10], finish_reason="length")
            case Fault.REFUSAL:
                self._complete(None, refusal="I can't help with that.")
            case Fault.FILTER:
                self._complete("", finish_reason="content_filter")
            case Fault.FILTERED_PROMPT:
                self._send(400, _error("the prompt was filtered", "content_filter"))
            case Fault.UNKNOWN_FORMAT:
                self._send(400, _error("response_format is not supported", None))
            case Fault.NO_COMPLETION:
                self._send(200, b'{"status": "ok"}')
            case Fault.HTML:
                self._send(200, b"<html>Welcome</html>", kind="text/html")
            case Fault.UNAUTHORIZED:
                self._send(401, _error(f"bad key in {self.headers['Authorization']}", "invalid_api_key"))
            case Fault.MISSING:
                self._send(404, _error(f"the model {request['model']} does not exist", "model_not_found"))
            case Fault.OTHER:
                self._complete(json.dumps({name: f"nowhere {name}" for name in values}))
            case Fault.NULLS:
                self._complete(json.dumps(dict.fromkeys(values)))
            case None:
                self._complete(json.dumps(values))

    def _complete(self, content: str | None, *, finish_reason: str = "stop", refusal: str | None = None) -> None:
        request = self.server.requests[-1]
        body = _completion(content, request, finish_reason, refusal, has_usage=not self.server.without_usage)
        self._send(200, body)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


PROMPT_TOKENS, ANSWER_TOKENS = 200, 20
"""What the server counts of each request."""


def _completion(
    content: str | None,
    request: Mapping[str, Any],
    finish_reason: str = "stop",
    refusal: str | None = None,
    *,
    has_usage: bool = True,
) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": ANSWER_TOKENS,
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
    }
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        **({"usage": usage} if has_usage else {}),
    }
    return json.dumps(completion).encode()


def _error(message: str, code: str | None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()
