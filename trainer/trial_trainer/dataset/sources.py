"""Raw pages, texts and ready samples as records: what a source may hold, and what is wrong with it.

The only place that reads ``.html`` files, ``.jsonl``, ``.jsonl.gz`` and ``.parquet``. `prepare` calls it. Wrong records
are sentences in a list, so that somebody can mend them all at once.

Not by `trial_trainer.codec`: records are people's own and looser. An id may be a number, a label any value, a prompt
has three forms, and what is shown of a page is cut. As annotations with their own parsers this took fifty lines more.
"""

from __future__ import annotations

import gzip
import heapq
import json
import math
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any

from trial_trainer.artifacts import ArtifactError, ArtifactStore, DirectoryStore, open_object, open_store
from trial_trainer.dataset.shuffling import rank

PAGE_SUFFIXES = (".html", ".htm")
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
MOST_PROBLEMS = 20
"""Of one source; the rest is counted."""

Labels = Mapping[str, tuple[str, ...]]
"""Accepted values by attribute; an empty tuple says that the page has none."""


@dataclass(frozen=True, kw_only=True)
class RawPage:
    """One page or text as its source has it."""

    id: str
    html: bytes | str | None
    """None for a text that is of no page."""
    url: str | None
    site: str | None
    labels: Labels | None
    """By hand; None where the record says nothing of labels."""
    markup: Mapping[str, str] | None
    """What the page's own markup says, where the source tells; None means: read the page."""
    where: str = ""
    """Where its record stands in the source: "line 12", or the name of a file."""
    charset: str | None = None
    """The encoding that the page was sent with, as the server named it; for pages in bytes."""
    given_id: str | None = None
    """The id that its record gives it; None where it is called after its place."""
    text: str | None = None
    """What is read in place of the page's own text."""


@dataclass(frozen=True, kw_only=True)
class ReadySample:
    """One ready prompt and completion."""

    id: str
    messages: tuple[tuple[str, str], ...]
    """Role and content."""
    completion: str
    group: str | None
    site: str | None
    place: str = ""
    """Where it stands in its source, for sentences: "samples.jsonl line 8"."""


@dataclass
class Problems:
    """Sentences about one source, the first `MOST_PROBLEMS` in full."""

    uri: str
    sentences: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def name(self) -> str:
        """The last part of the source's URI, which every sentence begins with."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

    def add(self, sentence: str) -> None:
        """Add what follows the source's name in a sentence."""
        self.count += 1
        if self.count <= MOST_PROBLEMS:
            self.sentences.append(f"{self.name}{sentence}")

    def all(self) -> list[str]:
        """Return the sentences, with one more for those that were only counted."""
        more = self.count - len(self.sentences)
        return self.sentences + ([f"{self.name}: {more} more records are wrong"] if more > 0 else [])


def iterate_pages(
    uri: str, problems: Problems, *, max_pages: int | None, seed: int, need_labels: bool = False
) -> Iterator[RawPage]:
    """Yield the pages and texts of a source in its order, at most `max_pages` of them, drawn by the seed.

    What is wrong with the source is added to `problems`, all of it by the time the last page came. No more pages are
    held in memory than `max_pages`, and only one where it is None. With `need_labels` a record without `labels` is
    wrong.
    """
    is_empty = True
    for page in _in_draw(_iterate_all(uri, problems, max_pages, seed), max_pages, seed):
        if need_labels and page.labels is None:
            rule = "must be given where a missing label means Absent ({} says that there are none)"
            problems.add(f" {page.where}: `labels` {rule}")
            continue
        is_empty = False
        yield page
    if is_empty and not problems.count:
        problems.add(" must hold at least 1 page, got none")


def read_samples(uri: str, problems: Problems, *, max_pages: int | None, seed: int) -> list[ReadySample]:
    """Read the ready samples of a source in its order; `max_pages` limits their groups.

    What is wrong with the source is added to `problems`.
    """
    samples: list[ReadySample] = []
    if not uri.endswith(RECORD_SUFFIXES):
        problems.add(f" must end in {', '.join(RECORD_SUFFIXES)} for ready samples, got {uri!r}")
    else:
        for number, record in _iterate_records(uri, problems):
            sample = _parse_sample(record, number, problems)
            if sample is not None:
                samples.append(sample)
    if not samples and not problems.count:
        problems.add(" must hold at least 1 sample, got none")
    sites: dict[str, str | None] = {}
    for sample in samples:
        if sample.group is not None and sites.setdefault(sample.group, sample.site) != sample.site:
            both = f"{_shown(sites[sample.group])} and {_shown(sample.site)}"
            problems.add(f": the samples of a group must have one site, got {both} in group {sample.group!r}")
    groups = sorted({sample.group or sample.id for sample in samples}, key=lambda group: rank(seed, "page", group))
    kept = set(groups[:max_pages])
    return [sample for sample in samples if (sample.group or sample.id) in kept]


# Drawing --------------------------------------------------------------------------------------------------------------


def _in_draw(pages: Iterator[RawPage], limit: int | None, seed: int) -> Iterator[RawPage]:
    """Keep the pages that rank first, in the source's order, without ever holding more than `limit` of them."""
    if limit is None:
        yield from pages
        return
    held: list[tuple[int, int, RawPage]] = []
    for position, page in enumerate(pages):
        # A heap whose head is the page that goes next: the one of the highest rank.
        entry = (-int.from_bytes(rank(seed, "page", page.id)), position, page)
        if len(held) < limit:
            heapq.heappush(held, entry)
        else:
            heapq.heappushpop(held, entry)
    yield from (page for _, _, page in sorted(held, key=lambda entry: entry[1]))


# Pages ----------------------------------------------------------------------------------------------------------------


def _iterate_all(uri: str, problems: Problems, limit: int | None, seed: int) -> Iterator[RawPage]:
    if uri.endswith(RECORD_SUFFIXES):
        for number, record in _iterate_records(uri, problems):
            page = _parse_page(record, number, problems)
            if page is not None:
                yield page
    else:
        yield from _iterate_files(uri, problems, limit, seed)


def _iterate_files(uri: str, problems: Problems, limit: int | None, seed: int) -> Iterator[RawPage]:
    """Read a prefix of HTML files. A file may have its record without `html` beside it: page.html, page.json."""
    try:
        store = open_store(uri)
        keys = list(store.list())
    except ArtifactError as error:
        problems.add(f" cannot be read: {error}")
        return
    pages = [key for key in keys if key.lower().endswith(PAGE_SUFFIXES)]
    if (unreadable := next(filter(_HALVES.search, keys), None)) is not None:
        problems.add(f" must hold files whose names are UTF-8, got {unreadable!r}")
        return
    if not pages:
        wanted = ", ".join(PAGE_SUFFIXES)
        if isinstance(store, DirectoryStore) and not store.root.is_dir():
            problems.add(f" must be a directory, a prefix or a {', '.join(RECORD_SUFFIXES)} file, got {uri!r}")
        else:
            problems.add(f" must hold {wanted} files, got {len(keys)} other files")
    # Only the drawn files are fetched.
    drawn = sorted(sorted(pages, key=lambda key: rank(seed, "page", key))[:limit])
    beside = set(keys)
    for key in drawn:
        html = store.read(key)
        if html is None:
            continue
        sidecar = key.rpartition(".")[0] + ".json"
        record = _read_sidecar(store, sidecar, problems) if sidecar in beside else {}
        if record is not None:
            page = _parse_page({**record, "html": html}, sidecar, problems, name=key)
            if page is not None:
                yield page


def _read_sidecar(store: ArtifactStore, key: str, problems: Problems) -> dict[str, Any] | None:
    try:
        record = json.loads(store.read(key) or b"")
    except (ValueError, RecursionError) as error:
        problems.add(f" {key}: must be JSON: {error}")
        return None
    if not isinstance(record, dict):
        problems.add(f" {key}: must be an object, got {_shown(record)}")
        return None
    return record


_LINK_OR_META = re.compile(r"<!--.*?(?:-->|\Z)|<(?:link|meta)\b(?P<attributes>[^<>]*)", re.IGNORECASE | re.DOTALL)
_CANONICAL = re.compile(r"\brel\s*=\s*[\"']?canonical\b", re.IGNORECASE)
_OG_URL = re.compile(r"\bproperty\s*=\s*[\"']?og:url\b", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:href|content)\s*=\s*[\"']?\s*(https?://[^\s\"'>]+)", re.IGNORECASE)


def find_canonical_url(html: bytes | str) -> str | None:
    """Return the address that a page gives for itself in its head, or None."""
    head = html[:200_000]
    text = head if isinstance(head, str) else head.decode("utf-8", "replace")
    tags = [tag["attributes"] for tag in _LINK_OR_META.finditer(text) if tag["attributes"]]
    for kind in (_CANONICAL, _OG_URL):
        for attributes in tags:
            if kind.search(attributes) and (address := _ADDRESS.search(attributes)) is not None:
                return unescape(address[1])
    return None


def _parse_page(
    record: dict[str, Any], number: int | str, problems: Problems, name: str | None = None
) -> RawPage | None:
    before = problems.count
    where = f" line {number}" if isinstance(number, int) else f" {number}"
    html = record.get("html")
    if isinstance(html, str):
        html = _HALVES.sub("\N{REPLACEMENT CHARACTER}", html)
    texts = {
        name: _text(record, name, where, problems) for name in ("id", "url", "site", "text", "charset", "content_type")
    }
    if html is None and record.get("text") is None:
        problems.add(
            f"{where}: `prompt` is for ready samples, which need an empty list of attributes"
            if "prompt" in record
            else f"{where}: `html` or `text` must be given, got {_shown(sorted(record))}"
        )
    elif not isinstance(html, str | bytes | None):
        problems.add(f"{where}: `html` must be a string, got {_shown(html)}")
    labels = _parse_labels(record.get("labels"), where, problems)
    markup = _parse_markup(record.get("markup"), where, problems)
    if problems.count > before:
        return None
    return RawPage(
        id=texts["id"] or name or str(number),
        where=where.strip(),
        html=html,
        text=texts["text"],
        url=texts["url"] or (find_canonical_url(html) if html is not None else None),
        site=texts["site"],
        labels=labels,
        markup=markup,
        charset=texts["charset"] or texts["content_type"],
        given_id=texts["id"],
    )


def _text(record: dict[str, Any], name: str, where: str, problems: Problems) -> str | None:
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and name in ("id", "group"):
        return str(value)
    if value is not None and not _is_text(value):
        problems.add(f"{where}: `{name}` must be a string that is not empty{_of(value)}")
        return None
    return value


def _parse_labels(raw: Any, where: str, problems: Problems) -> dict[str, tuple[str, ...]] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        problems.add(f"{where}: `labels` must be an object, got {_shown(raw)}")
        return {}
    labels: dict[str, tuple[str, ...]] = {}
    for attribute, value in raw.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, list) and not value:
            problems.add(f"{where}: `labels.{attribute}` must be null where the page has none, got []")
        elif not all(_is_value(item) for item in values):
            problems.add(
                f"{where}: `labels.{attribute}` must be a value that is not empty, a list of them, or null, "
                f"got {_shown(value)}"
            )
        else:
            labels[attribute] = tuple(dict.fromkeys(str(item).strip() for item in values))
    return labels


def _parse_markup(raw: Any, where: str, problems: Problems) -> dict[str, str] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        problems.add(f"{where}: `markup` must be an object, got {_shown(raw)}")
        return None
    markup: dict[str, str] = {}
    for attribute, value in raw.items():
        if value is None or value == "":
            continue
        if _is_value(value):
            markup[attribute] = str(value).strip()
        else:
            problems.add(f"{where}: `markup.{attribute}` must be a value, got {_shown(value)}")
    return markup


def _is_value(value: Any) -> bool:
    return _is_text(value) or (
        isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    )


# Ready samples --------------------------------------------------------------------------------------------------------

_ROLES = ("system", "user", "assistant")


def _parse_sample(record: dict[str, Any], number: int, problems: Problems) -> ReadySample | None:
    before = problems.count
    where = f" line {number}"
    document = next((name for name in ("html", "text") if name in record), None)
    if document is not None and "prompt" not in record and "messages" not in record:
        kind = "pages" if document == "html" else "texts"
        problems.add(
            f"{where}: `{document}` is for {kind}, which need a list of attributes; a ready sample has `prompt`"
        )
        return None
    asked, prompt, completion = _divide(record, where, problems)
    if problems.count > before:
        return None
    messages = _parse_messages(prompt, asked, where, problems)
    if not _is_text(completion):
        problems.add(f"{where}: `completion` must be a string that is not empty{_of(completion)}")
    texts = {name: _text(record, name, where, problems) for name in ("id", "group", "site")}
    if problems.count > before or not isinstance(completion, str):
        return None
    return ReadySample(
        id=texts["id"] or str(number),
        messages=messages,
        completion=completion,
        group=texts["group"],
        site=texts["site"],
        place=f"{problems.name}{where}",
    )


def _divide(record: dict[str, Any], where: str, problems: Problems) -> tuple[str, Any, Any]:
    """Bring the forms of a sample to one.

    Returns:
        The name of the field that the prompt stands in, the prompt, and the text of the answer.
    """
    if "prompt" in record or "completion" in record:
        match record.get("completion"):
            case [{"role": "assistant", "content": content}]:
                return "prompt", record.get("prompt"), content
        return "prompt", record.get("prompt"), record.get("completion")
    if "messages" not in record:
        problems.add(
            f"{where}: a ready sample must have `prompt` and `completion`, or `messages`, got {_shown(sorted(record))}"
        )
        return "", None, None
    match record["messages"]:
        case [_, *_, {"role": "assistant", "content": content}] as messages:
            return "messages", messages[:-1], content
    problems.add(
        f"{where}: `messages` must be a list of at least 2 messages, the last of which is the assistant's, "
        f"got {_shown(record['messages'])}"
    )
    return "", None, None


def _parse_messages(raw: Any, name: str, where: str, problems: Problems) -> tuple[tuple[str, str], ...]:
    if isinstance(raw, str) and _is_text(raw):
        return (("user", raw),)
    if not isinstance(raw, list) or not raw:
        problems.add(f"{where}: `prompt` must be a string that is not empty or a list of messages{_of(raw)}")
        return ()
    messages: list[tuple[str, str]] = []
    for index, message in enumerate(raw):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES:
            problems.add(f"{where}: `{name}[{index}].role` must be one of {', '.join(_ROLES)}, got {_shown(role)}")
        elif not isinstance(content, str) or _HALVES.search(content):
            problems.add(f"{where}: `{name}[{index}].content` must be a string{_of(content)}")
        else:
            messages.append((role, content))
    if messages and len(messages) == len(raw) and messages[-1][0] == "assistant":
        rest = "which is what `completion` is for" if name == "prompt" else "two of which would follow each other"
        problems.add(f"{where}: `prompt` must not end with an assistant message, {rest}")
    return tuple(messages)


# Records --------------------------------------------------------------------------------------------------------------


def _iterate_records(uri: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a file with their numbers, from 1."""
    try:
        store, key = open_object(uri.removeprefix("file://"))
        with tempfile.TemporaryDirectory() as scratch:
            path = _local_file(store, key, Path(scratch))
            if path is None:
                problems.add(f" must exist, got {uri!r}")
            elif key.endswith(".parquet"):
                yield from _iterate_parquet(path, problems)
            else:
                yield from _iterate_lines(path, problems)
    except (ArtifactError, PermissionError) as error:
        problems.add(f" cannot be read: {error}")


def _local_file(store: ArtifactStore, key: str, scratch: Path) -> Path | None:
    if isinstance(store, DirectoryStore):
        path = store.root / key
        return path if path.is_file() else None
    copy = scratch / key
    return copy if store.download(key, copy) else None


def _iterate_lines(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                record = _parse_line(line, number, problems) if line.strip() else None
                if record is not None:
                    yield number, record
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problems.add(f" must be a whole gzip file: {error}")


def _parse_line(line: bytes, number: int, problems: Problems) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(f" line {number}: must be UTF-8: {error}")
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.add(f" line {number}: must be JSON: {error}")
        return None
    if not isinstance(record, dict):
        problems.add(f" line {number}: must be an object, got {_shown(record)}")
        return None
    return record


def _iterate_parquet(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    # Loaded when asked for: half a second that most sources need not pay.
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        kinds = {column.name: column.type for column in file.schema_arrow}
        number = 0
        for batch in file.iter_batches(batch_size=64):
            for record in batch.to_pylist():
                number += 1
                yield number, {name: _plain(value, kinds[name]) for name, value in record.items()}
    except (pyarrow.ArrowException, OSError) as error:
        problems.add(f" must be a Parquet file: {error}")


def _plain(value: Any, kind: Any) -> Any:
    """Give a Parquet value the form that JSON has.

    Every row of a struct has every field, so a null there is silence; a map can tell the two apart, like JSON.
    """
    import pyarrow

    if value is None:
        return None
    if pyarrow.types.is_map(kind):
        return dict(value)
    if pyarrow.types.is_struct(kind):
        return {name: item for name, item in value.items() if item is not None}
    return value


_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can write alone and nobody can read."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _HALVES.search(value)


def _of(value: Any) -> str:
    """Say what stands where a text must stand."""
    if isinstance(value, str) and (half := _HALVES.search(value)):
        return f" and of whole characters, got half of one, \\u{ord(half[0]):x}, at character {half.start() + 1}"
    return f", got {_shown(value)}"


def _shown(value: Any) -> str:
    """Show a wrong value, shortened: a page may be megabytes."""
    text = json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
