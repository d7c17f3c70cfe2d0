"""Labels from a language model behind an OpenAI-compatible endpoint: asked once, validated always, kept for good.

`prepare` calls it with texts and gets values or the reason why there are none. The one place that imports `openai`, and
only where there is a teacher. An answer lies in the bucket under a digest of all that it was asked with (endpoint,
model, prompt with the page, settings of the answer), so an attempt that is killed, and a study that asks the same, pay
for nothing twice. What is not an answer (a time-out, a cut connection, a status) is not kept.

The key comes from the environment and goes into one header. It is taken out of every text that comes from the server,
which may repeat it in an error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from trial_trainer.artifacts import open_store
from trial_trainer.codec import Count
from trial_trainer.contract import (
    TEACHER_API_KEY,
    AnswerFormat,
    ContractError,
    TeacherSettings,
    from_json,
    to_json,
)
from trial_trainer.errors import TeacherError, TeacherUnavailableError, TrainerError
from trial_trainer.pages import answers

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

ATTEMPTS = 6
"""Of one request, where the server fails or asks to wait."""
FIRST_WAIT_SECONDS = 1.0
"""Doubled with each further attempt where the server does not say how long."""
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more patience than this is asked no more."""
MOST_IN_A_ROW = 10
"""Pages in a row without an answer after which the teacher is taken to be away."""
MOST_UNANSWERED_SHARE = 0.1
"""Of the pages that were asked. With more of them the dataset would be made by the server's mood: there is none."""
READERS = 16
"""Kept answers read, or written, at once."""
MOST_OBJECTS = 100
"""Places of an answer at which an object is looked for: a model may write braces without end."""
REPORTED_EVERY = 100
"""Answers after which a line of the log says how far it is."""

INSTRUCTION = (
    "Read the text and give the value of each attribute. Copy a value exactly as it stands in the text. Give null where"
    " the text does not state it. Answer with one JSON object and nothing else."
)


class Fate(StrEnum):
    """What became of a page that was to be labelled."""

    LABELLED = "Labelled"
    MALFORMED = "Malformed"
    """The answer holds no JSON object with a text, a number or null for every attribute."""
    REFUSED = "Refused"
    """The model, or a filter before or behind it, declined."""
    CUT_OFF = "CutOff"
    """The answer reached its limit of tokens."""
    REJECTED = "Rejected"
    """The server takes no such request: status 400, 413 or 422."""
    RATE_LIMITED = "RateLimited"
    SERVER_ERROR = "ServerError"
    """Status 5xx or 409, or an answer that is no chat completion."""
    TIMED_OUT = "TimedOut"
    DISCONNECTED = "Disconnected"
    """No connection, or one that was cut."""
    OUT_OF_TOKENS = "OutOfTokens"
    """Not asked: the limit of tokens was reached before."""


UNANSWERED = (Fate.REJECTED, Fate.RATE_LIMITED, Fate.SERVER_ERROR, Fate.TIMED_OUT, Fate.DISCONNECTED)


class Labelled(NamedTuple):
    """What the teacher says of one text."""

    fate: Fate
    values: Mapping[str, str | None]
    """By attribute, None where the text does not state it; empty unless the fate is `LABELLED`."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One answer as it is kept."""

    content: str
    finish_reason: str
    is_refusal: bool
    prompt_tokens: Count
    answer_tokens: Count

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """One request."""

    prompt: str
    digest: str

    @property
    def key(self) -> str:
        """Where its answer is kept."""
        return f"{self.digest[:2]}/{self.digest}.json"


class Teacher:
    """Asks one teacher about texts, and counts what comes of it."""

    def __init__(
        self,
        settings: TeacherSettings,
        attributes: Sequence[str],
        *,
        key: str | None,
        count_tokens: Callable[[list[str]], list[int]],
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a teacher; nothing is asked yet.

        Args:
            settings: who is asked, and how.
            attributes: what is asked of each text.
            key: what the server knows us by; None where it wants none.
            count_tokens: estimates the tokens of prompts, and of answers whose server tells none.
            wait: waits for seconds.
            clock: seconds.
        """
        self._settings = settings
        self._attributes = tuple(attributes)
        self._key = key
        self._count_tokens = count_tokens
        self._wait = wait
        self._clock = clock
        self._store = open_store(settings.kept_answers)
        self._client = _connect(settings, key)
        self._lock = threading.Condition()
        self._found: dict[str, _Answer] = {}
        """Answers by the digest of their request."""
        self._not_before = 0.0
        """On the clock: a server that is asked too often says when to come again, and all requests keep to it."""
        self._spent = 0
        """Tokens of answers, and of requests that may have been billed without one."""
        self._reserved = 0
        """Tokens that the requests under way may need."""
        self._in_a_row: list[Fate] = []
        self._last_words = ""
        """What the server said of the last request that failed."""
        self._end: TrainerError | None = None
        """Why no more is asked."""
        self.retries: Counter[str] = Counter()
        self.kept = 0
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.new_tokens = 0

    def label(self, texts: Sequence[str], round_number: int = 1) -> list[Labelled]:
        """Return what the teacher says of each text; texts that are equal are asked once.

        Args:
            texts: as the trained model will see them, in the order in which they are asked while tokens last.
            round_number: another one asks again what is kept of this one.

        Raises:
            TeacherError: where the server takes no request of this kind.
            TeacherUnavailableError: where too many pages are left without an answer. What was answered is kept.
        """
        sheets = [self._write(text, round_number) for text in texts]
        by_digest = {sheet.digest: sheet for sheet in sheets}
        with ThreadPoolExecutor(READERS, "kept") as pool:
            for sheet, answer in zip(by_digest.values(), pool.map(self._read, by_digest.values()), strict=True):
                if answer is not None:
                    self._count(sheet, answer)
                    self._spent += answer.tokens
                    self.kept += 1
        missing = [sheet for sheet in by_digest.values() if sheet.digest not in self._found]
        # In one go and one thread: tokenizers are not made for many.
        counts = self._count_tokens([sheet.prompt for sheet in missing])
        estimates = [count + self._settings.max_answer_tokens for count in counts]
        log.info(
            "teacher %s at %s: %s texts to label, %s of them answered before",
            *(self._settings.model, self._settings.endpoint, len(by_digest), len(by_digest) - len(missing)),
        )
        fates: dict[str, Fate] = {}
        pool = ThreadPoolExecutor(self._settings.parallel_requests, "teacher")
        try:
            ends = pool.map(self._ask, missing, estimates)
            for number, (sheet, fate) in enumerate(zip(missing, ends, strict=True), start=1):
                if fate is not None:
                    fates[sheet.digest] = fate
                if number % REPORTED_EVERY == 0:
                    log.info("teacher %s: %s of %s texts asked", self._settings.model, number, len(missing))
        finally:
            pool.shutdown(cancel_futures=True)
        if self._end is not None:
            raise self._end
        self._check_unanswered(Counter(fate for fate in fates.values() if fate in UNANSWERED), len(by_digest))
        return [
            read_answer(self._found[sheet.digest], self._attributes)
            if sheet.digest in self._found
            else Labelled(fates[sheet.digest], {})
            for sheet in sheets
        ]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # Requests

    def _write(self, text: str, round_number: int) -> _Sheet:
        """Make the request of a text. Whatever could change its answer is in its digest."""
        settings = self._settings
        prompt = write_prompt(text, self._attributes, settings.instructions)
        asked = {
            "endpoint": settings.endpoint.rstrip("/"),
            "model": settings.model,
            "prompt": prompt,
            "format": _format_of(settings.answer_format, self._attributes),
            "temperature": settings.temperature,
            "max_answer_tokens": settings.max_answer_tokens,
            "round": round_number,
        }
        return _Sheet(prompt=prompt, digest=hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest())

    def _read(self, sheet: _Sheet) -> _Answer | None:
        """Return the answer that is kept of a request. What cannot be read is asked anew."""
        data = self._store.read(sheet.key)
        if data is None:
            return None
        try:
            return from_json(_Answer, data)
        except ContractError:
            log.warning("the kept answer %s cannot be read, and is asked for again", sheet.key)
            return None

    def _ask(self, sheet: _Sheet, estimate: int) -> Fate | None:
        """Ask until there is an answer, or say why there is none.

        Args:
            sheet: the request.
            estimate: the most tokens that it may take.
        """
        fate = Fate.OUT_OF_TOKENS
        for attempt in range(ATTEMPTS):
            if not self._start(estimate):
                return fate
            answer = self._request_within(sheet, estimate)
            if isinstance(answer, _Answer):
                with self._lock:
                    self.new_tokens += answer.tokens
                    self._in_a_row.clear()
                    self._count(sheet, answer)
                self._store.write(sheet.key, to_json(answer).encode())
                return None
            fate = answer.fate
            if self._is_last(answer, attempt):
                break
        if fate in UNANSWERED:
            self._note_unanswered(fate)
        return fate

    def _request_within(self, sheet: _Sheet, estimate: int) -> _Answer | _FailedRequestError:
        """Send one request for which tokens are reserved, and settle what it has cost."""
        cost = estimate
        try:
            answer = self._request(sheet)
            cost = answer.tokens
        except _FailedRequestError as failure:
            # What ended on the way may have been answered, and billed.
            cost = estimate if failure.fate in (Fate.TIMED_OUT, Fate.DISCONNECTED) else 0
            return failure
        finally:
            self._settle(estimate, cost)
        return answer

    def _start(self, estimate: int) -> bool:
        """Reserve tokens for a request and wait for its turn; False where none is to be made.

        Whether it fits is decided when it is known what the requests under way have cost: the same pages are left
        over whatever the order in which answers come, and in a later attempt.
        """
        limit = self._settings.max_tokens
        with self._lock:
            while limit is not None and self._spent + estimate <= limit < self._spent + self._reserved + estimate:
                self._lock.wait()
            if self._end is not None or (limit is not None and self._spent + estimate > limit):
                return False
            self._reserved += estimate
            seconds = self._not_before - self._clock()
        if seconds > 0:
            self._wait(seconds)
        return True

    def _settle(self, estimate: int, tokens: int) -> None:
        """Replace what was reserved for a request by what it has cost."""
        with self._lock:
            self._reserved -= estimate
            self._spent += tokens
            self._lock.notify_all()

    def _is_last(self, failure: _FailedRequestError, attempt: int) -> bool:
        """Say whether a request is given up; else wait until it may be sent again."""
        with self._lock:
            self._last_words = failure.message
            self._end = self._end or failure.end
        seconds = failure.retry_after if failure.retry_after is not None else FIRST_WAIT_SECONDS * 2**attempt
        is_final = failure.end is not None or failure.fate in (Fate.REJECTED, Fate.REFUSED)
        if is_final or attempt == ATTEMPTS - 1 or seconds > LONGEST_WAIT_SECONDS:
            return True
        with self._lock:
            self.retries[failure.fate] += 1
            if failure.retry_after is not None:
                self._not_before = max(self._not_before, self._clock() + seconds)
        self._wait(seconds)
        return False

    def _note_unanswered(self, fate: Fate) -> None:
        """Stop asking a teacher that has left one page after the other without an answer."""
        with self._lock:
            self._in_a_row.append(fate)
            if len(self._in_a_row) < MOST_IN_A_ROW or self._end is not None:
                return
            fates = Counter(self._in_a_row)
            if set(fates) == {Fate.REJECTED}:
                rule = "`answerFormat` Text is for servers that know no schemas"
                self._end = TeacherError(f"{self._name} takes no request: {self._last_words}; {rule}")
            else:
                self._end = TeacherUnavailableError(self._say_away(fates, f"the last {len(self._in_a_row)} pages"))

    def _check_unanswered(self, fates: Counter[Fate], asked: int) -> None:
        if fates.total() <= asked * MOST_UNANSWERED_SHARE:
            return
        if set(fates) == {Fate.REJECTED}:
            raise TeacherError(f"{self._name} takes {fates.total()} of {asked} requests not: {self._last_words}")
        raise TeacherUnavailableError(self._say_away(fates, f"{fates.total()} of {asked} pages"))

    @property
    def _name(self) -> str:
        return f"the teacher {self._settings.model!r} at {self._settings.endpoint}"

    def _say_away(self, fates: Counter[Fate], pages: str) -> str:
        counts = ", ".join(f"{fate} {count}" for fate, count in sorted(fates.items()))
        return (
            f"{self._name} must answer, but gave no answer for {pages} ({counts}; {self._last_words}); "
            f"{len(self._found)} answers are kept and not asked for again"
        )

    def _count(self, sheet: _Sheet, answer: _Answer) -> None:
        self._found[sheet.digest] = answer
        self.prompt_tokens += answer.prompt_tokens
        self.answer_tokens += answer.answer_tokens

    def _request(self, sheet: _Sheet) -> _Answer:
        """Send one request and read its answer.

        Raises:
            _FailedRequestError: where there is no answer.
        """
        import openai

        settings = self._settings
        try:
            completion = self._client.chat.completions.create(
                model=settings.model,
                messages=[{"role": "user", "content": sheet.prompt}],
                max_completion_tokens=settings.max_answer_tokens,
                temperature=openai.omit if settings.temperature is None else settings.temperature,
                response_format=_format_of(settings.answer_format, self._attributes) or openai.omit,
                # Without a key no header says anything of one.
                extra_headers=None if self._key else {"Authorization": openai.Omit()},
            )
        except openai.APITimeoutError as error:
            seconds = settings.timeout_seconds
            raise _FailedRequestError(Fate.TIMED_OUT, f"no byte came for {seconds} seconds") from error
        except openai.APIStatusError as error:
            raise self._read_status(error) from error
        except openai.APIConnectionError as error:
            raise _FailedRequestError(Fate.DISCONNECTED, self._clean(str(error.__cause__ or error))) from error
        except (openai.OpenAIError, ValueError) as error:
            raise _FailedRequestError(Fate.SERVER_ERROR, self._clean(f"no chat completion: {error}")) from error
        try:
            choice = completion.choices[0]
            message = choice.message
            content, refusal, finish_reason = message.content, message.refusal, choice.finish_reason
        except (AttributeError, LookupError, TypeError) as error:
            shown = self._clean(str(completion))
            raise _FailedRequestError(Fate.SERVER_ERROR, f"no chat completion: {shown}") from error
        text = self._clean(str(content or refusal or ""), most=None)
        usage = completion.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (None, None)
        with self._lock:
            prompt_tokens, answer_tokens = (
                count if isinstance(count, int) and count >= 0 else self._count_tokens([counted])[0]
                for count, counted in zip(counts, (sheet.prompt, text), strict=True)
            )
        return _Answer(
            content=text,
            finish_reason=str(finish_reason),
            is_refusal=bool(refusal) or finish_reason == "content_filter",
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
        )

    def _read_status(self, error: openai.APIStatusError) -> _FailedRequestError:
        """Say what a status means: whose fault it is, and whether the same request may be sent again."""
        status, words = error.status_code, self._clean(f"status {error.status_code}, {error.message}")
        retry_after = read_retry_after(error.response.headers.get("retry-after"), datetime.now(UTC))
        match status:
            case 401 | 403:
                given = "no key is given" if self._key is None else "the key is refused"
                end: TrainerError = TeacherUnavailableError(f"{self._name} must take our key, but {given}: {words}")
                return _FailedRequestError(Fate.REJECTED, words, end=end)
            case 404 | 405:
                rule = "must be the base URL of an OpenAI-compatible API that has the model"
                end = TeacherError(f"`endpoint` of {self._name} {rule}, but it answers {words}")
                return _FailedRequestError(Fate.REJECTED, words, end=end)
            case 429 if error.code == "insufficient_quota":
                end = TeacherUnavailableError(f"{self._name} must have quota left for our key: {words}")
                return _FailedRequestError(Fate.RATE_LIMITED, words, end=end)
            case 429:
                return _FailedRequestError(Fate.RATE_LIMITED, words, retry_after=retry_after)
            case 408:
                return _FailedRequestError(Fate.TIMED_OUT, words, retry_after=retry_after)
            case 400 if error.code == "content_filter":
                return _FailedRequestError(Fate.REFUSED, words)
            case 409:
                return _FailedRequestError(Fate.SERVER_ERROR, words, retry_after=retry_after)
            case _ if status >= 500:
                return _FailedRequestError(Fate.SERVER_ERROR, words, retry_after=retry_after)
            case _:
                return _FailedRequestError(Fate.REJECTED, words)

    def _clean(self, text: str, most: int | None = 300) -> str:
        """Take the key out of what the server said, however it is quoted; errors are shortened to one line."""
        for form in (self._key, repr(self._key)[1:-1], json.dumps(self._key)[1:-1]) if self._key else ():
            text = text.replace(form, "…")
        if most is None:
            return text
        line = " ".join(text.split())
        return line if len(line) <= most else f"{line[: most - 1]}…"


class _FailedRequestError(Exception):
    """A request without an answer."""

    def __init__(
        self, fate: Fate, message: str, *, retry_after: float | None = None, end: TrainerError | None = None
    ) -> None:
        super().__init__(message)
        self.fate = fate
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to be left alone; None where it does not say."""
        self.end = end
        """Why no request can succeed."""


def read_key(given: str) -> str | None:
    """Return a key without the blanks and the end of line that files and shells leave around it; None without one.

    Raises:
        TeacherUnavailableError: it cannot stand in a header. The sentence does not show it.
    """
    key = given.strip()
    if not all("!" <= character <= "~" for character in key):
        raise TeacherUnavailableError(f"{TEACHER_API_KEY} must be one line of printable ASCII without blanks")
    return key or None


def _connect(settings: TeacherSettings, key: str | None) -> openai.OpenAI:
    import openai

    # Every retry is ours, so that it is counted and its tokens are.
    return openai.OpenAI(
        api_key=key or "none", base_url=settings.endpoint, timeout=settings.timeout_seconds, max_retries=0
    )


def read_retry_after(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a server asks to wait, told as seconds or as a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d*)?", header.strip()):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now.timestamp())


# What is asked and what is answered ----------------------------------------------------------------------------------


def write_prompt(text: str, attributes: Sequence[str], instructions: str) -> str:
    """Return the one message of a request: not every chat template takes a system turn."""
    meanings = answers.QUESTION_BY_ATTRIBUTE
    known = "\n".join(f"{name}: {meanings[name]}" for name in attributes if name in meanings)
    form = ", ".join(f"{json.dumps(name)}: text or null" for name in attributes)
    parts = [INSTRUCTION, known, instructions, f"The object has this form: {{{form}}}", f"Text:\n{text}"]
    return "\n\n".join(part for part in parts if part)


def _format_of(answer_format: AnswerFormat, attributes: Sequence[str]) -> Any:
    """Return the ``response_format`` of a request; None where none is sent."""
    match answer_format:
        case AnswerFormat.JSON_SCHEMA:
            value = {"type": ["string", "null"]}
            schema = {
                "type": "object",
                "properties": dict.fromkeys(attributes, value),
                "required": list(attributes),
                "additionalProperties": False,
            }
            return {"type": "json_schema", "json_schema": {"name": "values", "strict": True, "schema": schema}}
        case AnswerFormat.JSON_OBJECT:
            return {"type": "json_object"}
        case AnswerFormat.TEXT:
            return None


def read_answer(answer: _Answer, attributes: Sequence[str]) -> Labelled:
    """Validate an answer, whatever its server promised."""
    if answer.is_refusal:
        return Labelled(Fate.REFUSED, {})
    values = read_values(answer.content, attributes)
    if values is not None:
        return Labelled(Fate.LABELLED, values)
    return Labelled(Fate.CUT_OFF if answer.finish_reason == "length" else Fate.MALFORMED, {})


def read_values(content: str, attributes: Sequence[str]) -> dict[str, str | None] | None:
    """Return the values of the first JSON object in a text that has a text, a number or null for every attribute.

    Words around it, and a fence, are what models write where nothing enforces a form. None where there is none.
    """
    # Numbers as they are written: 12.50 is no 12.5 in a text.
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    for start in itertools.islice((place.start() for place in re.finditer("{", content)), MOST_OBJECTS):
        try:
            found = decoder.raw_decode(content, start)[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and all(isinstance(found.get(name, ...), str | None) for name in attributes):
            return {attribute: _read_value(found[attribute]) for attribute in attributes}
    return None


def _read_value(value: str | None) -> str | None:
    """Return a value; models that follow no schema also write "none", "null" and "" for null."""
    text = (value or "").strip()
    return None if not text or answers.is_absent(text) or text.casefold() == "null" else text
