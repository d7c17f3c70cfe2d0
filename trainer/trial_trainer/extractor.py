"""Asks an adapter that a study trained, as it was asked when it was measured.

    from trial_trainer.extractor import Extractor

    extractor = Extractor.load("runs/default/laptop-79426bce/trials/t001/rungs/1/adapter")
    print(extractor.ask(html=page, url="https://shop.example/kettle"))      # {'name': 'Kettle', 'price': '19.90'}

The page is cut, the prompt is built and the answer is decoded by the code that prepared the study's data and evaluated
its winner, so that token ids are those of training and answers those of the final evaluation: greedy, whatever the base
model's own settings of generation say of sampling. On the command line:

    python -m trial_trainer ask ADAPTER [--attribute NAME] FILE...          # one line of JSON a file; `-` is stdin
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trial_trainer.artifacts import open_store
from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import BaseModel, Precision, TrainerSettings
from trial_trainer.dataset.prepare import count_shared_tokens
from trial_trainer.dataset.prompts import Prompter
from trial_trainer.dataset.sources import find_canonical_url
from trial_trainer.dataset.store import DatasetIndex, Page, Question, read_index
from trial_trainer.errors import StudyError
from trial_trainer.evaluation.decode import answer_pages
from trial_trainer.model.load import LoadedModel, choose_device, load_adapter, load_base
from trial_trainer.pages import answers, documents, plain_text
from trial_trainer.pages.html import Skip

CONFIG = "adapter_config.json"
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<[a-zA-Z!?]")
"""How a page begins. "<3" begins a message."""
_UP_TO_THE_STUDY = 5
"""``<study>/trials/t003/rungs/1/adapter``."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One page or one text to ask about."""

    html: str | bytes | None = None
    text: str | None = None
    """Of no page; or, beside ``html``, what is read of that page."""
    url: str | None = None
    """The page's address, which tells its country apart."""


class Answers(dict[str, str | None]):
    """The value of each asked attribute; None where the answer is that there is none."""

    def __init__(self, values: Mapping[str, str | None], *, is_cut: bool) -> None:
        super().__init__(values)
        self.is_cut = is_cut
        """Whether the page or text is longer than the study reads them, so that a part of it was not asked about."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the model sees of a record."""

    text: str
    is_of_page: bool
    is_cut: bool


class Extractor:
    """A base model with an adapter, ready to be asked. Made by `load`; to be used by one thread at a time."""

    def __init__(self, loaded: LoadedModel, tokenizer: Any, index: DatasetIndex) -> None:
        self._loaded = loaded
        self._tokenizer = tokenizer
        self._prompter = Prompter(tokenizer)
        self._index = index

    @classmethod
    def load(
        cls,
        adapter: str,
        *,
        dataset: str | None = None,
        base_model: BaseModel | None = None,
        precision: Precision = Precision.BFLOAT16,
    ) -> Extractor:
        """Load an adapter onto its base model.

        Args:
            adapter: path or ``s3://`` URI of the adapter's folder.
            dataset: of the study's prepared dataset, whose index says how pages are cut; without it the one that lies
                in the study's own folder, five above.
            base_model: where the base model is; without it what the adapter's configuration names.
            precision: that of training.

        Raises:
            StudyError: where the adapter, the dataset or the base model is not there, or they do not fit together.
        """
        adapter = adapter.rstrip("/")
        index = read_index(open_store(dataset or _find_dataset(adapter)))
        if not index.attributes:
            raise StudyError(f"the dataset of {adapter} must ask attributes, and holds ready samples")
        base_model = base_model or _find_base_model(adapter)
        tokenizer = load_tokenizer(base_model)
        settings = TrainerSettings(epochs=1, max_length_tokens=index.max_length_tokens, precision=precision)
        prompter = Prompter(tokenizer)
        probes = [prompter.ask("A page.", question) for question in ("One question?", "Another one?")]
        probe = _build_page([("", prompt) for prompt in prompter.encode_prompts(probes)], prompter.end_of_turn)
        loaded = load_base(base_model, settings, choose_device(), probe)
        with tempfile.TemporaryDirectory() as directory:
            return cls(load_adapter(loaded, adapter, Path(directory)), tokenizer, index)

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the adapter was trained to answer."""
        return self._index.attributes

    def ask(
        self,
        *,
        html: str | bytes | None = None,
        text: str | None = None,
        url: str | None = None,
        attributes: Sequence[str] | None = None,
    ) -> Answers:
        """Return the value of each attribute, None where the answer is that there is none, and `Answers.is_cut`.

        Args:
            html: a page; or
            text: a text that is of no page; or both, where the study's records had both.
            url: the page's address; without it the one that the page gives for itself.
            attributes: some of `attributes`; all of them where it is not given.

        Raises:
            ValueError: where the page cannot be read, or an attribute is not one of `attributes`.
        """
        return self.ask_all([Record(html=html, text=text, url=url)], attributes=attributes)[0]

    def ask_all(self, records: Iterable[Record], *, attributes: Sequence[str] | None = None) -> list[Answers]:
        """Return `ask`'s answers for each of many records, which are computed together."""
        asked = self.attributes if attributes is None else tuple(attributes)
        unknown = sorted(set(asked) - set(self.attributes))
        if unknown or not asked:
            raise ValueError(f"attributes must be some of {', '.join(self.attributes)}, got {', '.join(unknown)!r}")
        seen = [self._read(record) for record in records]
        pages = [
            _build_page(
                [(attribute, self._build_prompt(one, attribute)) for attribute in asked], self._prompter.end_of_turn
            )
            for one in seen
        ]
        found = [Answers(dict.fromkeys(asked), is_cut=one.is_cut) for one in seen]
        for answered in answer_pages(self._loaded, pages, self._index):
            answer = self._tokenizer.decode(answered.tokens, skip_special_tokens=True).strip()
            if answer and not answers.is_absent(answer):
                found[answered.page][asked[answered.question]] = answer
        return found

    def build_prompt(self, record: Record, attribute: str) -> tuple[int, ...]:
        """Return the token ids of one question, which are those that training and evaluation used.

        Raises:
            ValueError: where the page or text cannot be read.
        """
        return self._build_prompt(self._read(record), attribute)

    def _read(self, record: Record) -> _Seen:
        if record.html is None and record.text is None:
            raise ValueError("a record must have html or text")
        if record.text is not None:
            return self._read_text(record.text, is_of_page=record.html is not None)
        return self._read_page(record.html or "", record.url)

    def _read_page(self, html: str | bytes, url: str | None) -> _Seen:
        # The address is the first line of a page, and tells its country apart.
        document = documents.extract(html, url=url or find_canonical_url(html))
        if isinstance(document, Skip):
            raise ValueError(f"the page cannot be read: {document}")  # noqa: TRY004 (the page's fault, not its type's)
        lines = tuple(replace(line, text=self._prompter.clean(line.text)) for line in document.lines)
        whole = replace(document, lines=lines)
        text = whole.cut(self._index.page_tokens, self._prompter.count_tokens)
        return _Seen(text=text, is_of_page=True, is_cut=text != whole.text)

    def _read_text(self, given: str, *, is_of_page: bool) -> _Seen:
        seen = plain_text.read_plain_text(given)
        if isinstance(seen, Skip):
            raise ValueError(f"the text cannot be read: {seen}")  # noqa: TRY004 (the text's fault, not its type's)
        budget = self._index.page_tokens if is_of_page else self._index.text_tokens
        if budget == 0:
            raise StudyError("the dataset must say how texts are cut, and was prepared before it did: prepare it again")
        whole = self._prompter.clean(seen)
        text = plain_text.cut_text(whole, budget, self._prompter.count_tokens)
        return _Seen(text=text, is_of_page=is_of_page, is_cut=text != whole)

    def _build_prompt(self, seen: _Seen, attribute: str) -> tuple[int, ...]:
        return self._prompter.encode_prompts([self._prompter.pose(attribute, seen.text, is_page=seen.is_of_page)])[0]


def _build_page(asked: Sequence[tuple[str, tuple[int, ...]]], end_of_turn: int) -> Page:
    """Put the questions of a page behind the tokens that they share. Their drafts are empty answers."""
    shared = count_shared_tokens([prompt for _, prompt in asked])
    questions = tuple(
        Question(attribute=attribute, prompt=prompt[shared:], answer=(end_of_turn,), answer_text="", gold=(), origin="")
        for attribute, prompt in asked
    )
    return Page(id="", site="", url=None, prefix=asked[0][1][:shared], questions=questions)


def _find_dataset(adapter: str) -> str:
    parts = adapter.split("/")
    if len(parts) <= _UP_TO_THE_STUDY or parts[-5] != "trials" or parts[-3] != "rungs":
        raise StudyError(
            f"the dataset must be given for an adapter that does not lie in a study's folder, got {adapter}"
        )
    return "/".join([*parts[:-_UP_TO_THE_STUDY], "dataset"])


def _find_base_model(adapter: str) -> BaseModel:
    data = open_store(adapter).read(CONFIG)
    if data is None:
        raise StudyError(f"the adapter {adapter} must hold {CONFIG}")
    try:
        config: Any = json.loads(data)
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StudyError(f"{adapter}/{CONFIG} must name its base model, got {data[:100]!r}") from error
    if "://" in name or Path(name).is_dir():
        return BaseModel(uri=name)
    return BaseModel(uri=f"hf://{name}", revision=revision)


def main(arguments: Sequence[str]) -> None:
    """Ask about files, and print one line of JSON for each.

    Raises:
        StudyError: where something cannot be loaded or read.
    """
    parser = argparse.ArgumentParser(prog="python -m trial_trainer ask", description="Ask an adapter about files.")
    parser.add_argument("adapter", help="path or s3:// URI of the adapter's folder")
    parser.add_argument("files", nargs="+", help="pages (.html, .htm) or texts; - is a page or text on stdin")
    parser.add_argument("--attribute", action="append", help="one of the study's attributes; all without it")
    parser.add_argument("--url", help="address of the page, where there is one file")
    parser.add_argument("--dataset", help="URI of the study's prepared dataset")
    parser.add_argument("--base-model", help="URI of the base model")
    parser.add_argument("--revision", help="of the base model")
    parser.add_argument("--precision", choices=list(Precision), default=Precision.BFLOAT16)
    given = parser.parse_args(list(arguments))
    records = [_read_record(name, given.url) for name in given.files]
    extractor = Extractor.load(
        given.adapter,
        dataset=given.dataset,
        base_model=BaseModel(uri=given.base_model, revision=given.revision) if given.base_model else None,
        precision=Precision(given.precision),
    )
    try:
        found = extractor.ask_all(records, attributes=given.attribute)
    except ValueError as error:
        raise StudyError(f"{', '.join(given.files)}: {error}") from error
    for name, values in zip(given.files, found, strict=True):
        # In ASCII: what a model answers, and what a file is called, may hold any character.
        print(json.dumps({"file": name, "answers": values, "is_cut": values.is_cut}), flush=True)


def _read_record(name: str, url: str | None) -> Record:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise StudyError(f"the file must be one that can be read, got {name}: {error.strerror}") from error
    is_page = bool(_MARKUP.match(data)) if name == "-" else Path(name).suffix.lower() in (".html", ".htm", ".xhtml")
    if is_page:
        return Record(html=data, url=url)
    try:
        return Record(text=data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise StudyError(f"a text must be UTF-8, got {name}: {error.reason} at byte {error.start}") from error
