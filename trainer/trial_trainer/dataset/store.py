"""The prepared dataset on disk: pages with their questions, tokenised, in up to three splits.

`prepare` writes it, training and final evaluation read it; nobody else knows its form. Under the dataset's prefix lie

* ``train.jsonl.gz``, ``validation.jsonl.gz`` and, where there is one, ``test.jsonl.gz``: a line for each page;
* ``variants.jsonl.gz``, where the study augments its data: a line for each variant of a training page, under its id;
* ``index.json``: how the token ids were made, and the digest of each split;
* ``summary.json``: the contract's `DatasetSummary`, written last. A dataset without it is not whole.

Nothing here knows tokenizers or HTML.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trial_trainer.artifacts import ArtifactStore
from trial_trainer.contract import SUMMARY, ContractError, DatasetSummary, from_json, to_json
from trial_trainer.errors import DatasetError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
VARIANTS = "variants"
INDEX = "index.json"
FORMAT_VERSION = 1

HAND, MARKUP, TEACHER = "Hand", "Markup", "Teacher"
"""Where the label of a question comes from: a person, what the page's own markup says, or a teacher."""


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One sample: an attribute asked of a page, as a branch after the page's shared tokens."""

    attribute: str
    prompt: tuple[int, ...]
    """Token ids after the page's prefix, up to where the answer begins; never empty."""
    answer: tuple[int, ...]
    """Token ids of the answer with the end of turn. For a question whose answer cannot be derived from the page it is
    the first accepted value, good as a draft only."""
    answer_text: str
    gold: tuple[str, ...]
    """Accepted values; empty means that the page is known to have none."""
    origin: str
    """`HAND`, `MARKUP` or `TEACHER`."""
    derived: bool = True
    """Whether the answer stands in the page's text. Where not, it is scored and never trained on."""
    rule: str | None = None
    """What the rule extractor says of this page; None where it says nothing."""
    constant: str | None = None
    """The most frequent training answer of this attribute; None where training has none."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page, or any context that several samples share."""

    id: str
    site: str
    """The cluster of standard errors: the site (amazon.com and amazon.de are one), or the page itself without one."""
    url: str | None
    prefix: tuple[int, ...]
    """Token ids that all questions of the page begin with."""
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """How the token ids of a dataset were made, for whoever has to make more of them."""

    tokenizer: str
    """Digest of the tokenizer and its chat template."""
    layout: str
    """Name of the prompt layout; see `trial_trainer.dataset.prompts`."""
    system: str
    """Instruction at the start of every prompt; empty for ready samples."""
    end_of_turn: tuple[int, ...]
    """Ids that end an answer; generation stops at any of them."""
    max_length_tokens: int
    page_tokens: int
    """Budget of a page's text; zero for ready samples."""
    longest_answer_tokens: int
    """Of the accepted values of all splits, end of turn included: the highest limit of generation."""
    attributes: tuple[str, ...]
    constants: Mapping[str, str]
    """The most frequent training answer by attribute: the constant predictor."""
    digests: Mapping[str, str]
    """SHA-256 of each split's lines, uncompressed."""
    answer_tokens: Mapping[str, int] = field(default_factory=dict)
    """By attribute: how many tokens an answer may take, which is room for every accepted value of any split. Without an
    entry it is `longest_answer_tokens`."""
    text_tokens: int = 0
    """Budget of a text that is of no page; zero for ready samples."""
    format_version: int = FORMAT_VERSION

    def limit_of(self, page: Page, question: Question) -> int:
        """Return how many tokens an answer to a question may take: no more than its prompt leaves."""
        room = self.max_length_tokens - len(page.prefix) - len(question.prompt)
        return max(1, min(self.answer_tokens.get(question.attribute, self.longest_answer_tokens), room))


def write_split(store: ArtifactStore, name: str, pages: Sequence[Page]) -> str:
    """Write one split and return its digest. The same pages give the same bytes."""
    lines = "".join(_render_page(page) + "\n" for page in pages).encode()
    store.write(_key(name), gzip.compress(lines, compresslevel=5, mtime=0))
    return hashlib.sha256(lines).hexdigest()


def write_index(store: ArtifactStore, index: DatasetIndex) -> None:
    """Write how the token ids were made."""
    store.write(INDEX, to_json(index).encode())


def write_summary(store: ArtifactStore, summary: DatasetSummary) -> None:
    """Write the summary, which makes the dataset whole."""
    store.write(SUMMARY, to_json(summary).encode())


def read_summary(store: ArtifactStore) -> DatasetSummary:
    """Read the summary.

    Raises:
        DatasetError: where there is none, or it cannot be read.
    """
    return _read_document(store, SUMMARY, DatasetSummary)


def read_index(store: ArtifactStore) -> DatasetIndex:
    """Read how the token ids were made.

    Raises:
        DatasetError: where the dataset is not whole, or made by another version.
    """
    if store.read(SUMMARY) is None:
        raise DatasetError(f"the dataset {store.uri} is not whole: {SUMMARY} is missing")
    index = _read_document(store, INDEX, DatasetIndex)
    if index.format_version != FORMAT_VERSION:
        raise DatasetError(
            f"the dataset {store.uri} must have format {FORMAT_VERSION}, got {index.format_version}: prepare it again"
        )
    return index


def confirm_fingerprint(store: ArtifactStore, fingerprint: str, field: str) -> str:
    """Return a dataset's fingerprint.

    Args:
        store: the dataset.
        fingerprint: what it must be; empty: any will do.
        field: what names the dataset, for the sentence.

    Raises:
        DatasetError: where it is another, or the dataset is not whole.
    """
    found = read_summary(store).fingerprint
    if fingerprint not in ("", found):
        raise DatasetError(
            f"{field} must be the dataset with the fingerprint {fingerprint!r}, got {found!r} at {store.uri}"
        )
    return found


def read_split(store: ArtifactStore, name: str) -> tuple[Page, ...]:
    """Read one split whole.

    Raises:
        DatasetError: where the dataset is not whole, has no such split, or does not match its digest.
    """
    index = read_index(store)
    if name not in index.digests:
        raise DatasetError(f"the dataset {store.uri} has no split {name!r}, only {', '.join(sorted(index.digests))}")
    lines = _decompress(store, name)
    if hashlib.sha256(lines).hexdigest() != index.digests[name]:
        raise DatasetError(f"{_key(name)} of the dataset {store.uri} does not match its digest in {INDEX}")
    return tuple(_parse_pages(lines, f"{_key(name)} of the dataset {store.uri}"))


def read_variants(store: ArtifactStore) -> dict[str, tuple[Page, ...]]:
    """Read the variants of training pages, by the page's id; none where the study does not augment its data.

    Raises:
        DatasetError: where the dataset is not whole, or does not match its digest.
    """
    if VARIANTS not in read_index(store).digests:
        return {}
    found: dict[str, list[Page]] = {}
    for page in read_split(store, VARIANTS):
        found.setdefault(page.id, []).append(page)
    return {name: tuple(pages) for name, pages in found.items()}


def count_samples(pages: Sequence[Page]) -> int:
    """Return how many samples the pages hold: one a question."""
    return sum(len(page.questions) for page in pages)


def _key(name: str) -> str:
    return f"{name}.jsonl.gz"


def _decompress(store: ArtifactStore, name: str) -> bytes:
    data = store.read(_key(name))
    if data is None:
        raise DatasetError(f"the dataset {store.uri} is not whole: {_key(name)} is missing")
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DatasetError(f"{_key(name)} of the dataset {store.uri} is truncated or corrupt: {error}") from error


def _read_document(store: ArtifactStore, key: str, cls: type[T]) -> T:
    data = store.read(key)
    if data is None:
        raise DatasetError(f"the dataset {store.uri} is not whole: {key} is missing")
    try:
        return from_json(cls, data)
    except ContractError as error:
        raise DatasetError(f"{key} of the dataset {store.uri} cannot be read: {error}") from error


def _render_page(page: Page) -> str:
    return json.dumps(dataclasses.asdict(page), ensure_ascii=False, separators=(",", ":"))


def _parse_pages(lines: bytes, where: str) -> Iterator[Page]:
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            yield from_json(Page, line)
        except ContractError as error:
            raise DatasetError(f"{where}, line {number}, is not a page: {error}") from error
