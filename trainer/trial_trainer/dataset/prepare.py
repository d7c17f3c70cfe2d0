"""Raw pages, texts or ready samples to one validated, split and tokenised dataset.

    python -m trial_trainer prepare prepare.json
    PREPARE_CONFIG="$(cat prepare.json)" python -m trial_trainer prepare    # as a Job does it

The run, top to bottom: check the settings, load the tokenizer, read the sources, label and cut each page, draw the
splits, let a teacher label where the study has one, refuse what cannot train, tokenise, write. Whatever is wrong with
the data shows here, before a GPU is touched, and all of it at once: `PrepareError` holds every sentence, and `__main__`
turns it into exit code 12.

Silence is not absence: markup without a price does not mean that the page has none, so nothing is asked there. What
it means that given labels leave an attribute out is said by the study.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from trial_trainer.artifacts import open_store
from trial_trainer.base_model import digest_tokenizer, load_config, load_tokenizer, longest_sample, say_too_long
from trial_trainer.contract import (
    LEAST_SITES,
    LEDGER,
    SUMMARY,
    TEACHER_API_KEY,
    DatasetSummary,
    LabelOrigin,
    LabelSource,
    MissingLabel,
    OutOfTokens,
    PrepareConfig,
    SplitBy,
    SplitSummary,
    TeacherSettings,
    TeacherSummary,
    earlier_key,
)
from trial_trainer.dataset.audit import Pair, agree, audit
from trial_trainer.dataset.augment import Augmenter
from trial_trainer.dataset.prompts import SYSTEM, Encoded, Message, Prompter
from trial_trainer.dataset.shuffling import rank
from trial_trainer.dataset.sources import Problems, RawPage, ReadySample, iterate_pages, read_samples
from trial_trainer.dataset.splits import (
    DISAGREEMENT,
    LEAST_VALIDATION_VALUES,
    MOST_STANDARD_ERROR_POINTS,
    Candidate,
    address_of,
    clustered_error_points,
    digest_text,
    draw,
    has_host,
    host_of,
    join_groups,
    separable_points,
    site_of,
)
from trial_trainer.dataset.store import (
    HAND,
    MARKUP,
    SPLITS,
    TEACHER,
    TEST,
    TRAIN,
    VALIDATION,
    VARIANTS,
    DatasetIndex,
    Page,
    Question,
    count_samples,
    write_index,
    write_split,
    write_summary,
)
from trial_trainer.dataset.teacher import Fate, Labelled, Teacher, read_key
from trial_trainer.errors import BaseModelError, PrepareError, PromptError
from trial_trainer.pages import answers, documents, plain_text, rules
from trial_trainer.pages.confirm import confirm, contradicts
from trial_trainer.pages.currencies import country_of, is_left_open, meaning_of
from trial_trainer.pages.html import Skip, read_text

ANSWER_TOKENS = 48
"""Room for an answer that a page's text leaves in `max_length_tokens`. Fixed, so that the cut knows no label."""
LEAST_ANSWER_TOKENS = 32
"""Every attribute's answers may take as many, however short its values: another notation may be longer."""
LEAST_PAGE_TOKENS = 32
"""A budget of page text below this is refused: hardly a value would survive."""
COMPLETION = "completion"
"""The attribute of ready samples."""
MOST_REFUSED = 100
"""Samples without a prompt after which no more are looked for."""
BATCH_SAMPLES = 512
"""Samples tokenised at once."""
MOST_LEDGER_BYTES = 4 * 1024 * 1024
"""Of an earlier study; the largest has a quarter of it."""

MOST_NAMED = 5
"""Pages named in a sentence about many."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of a page, before it is tokenised."""

    attribute: str
    messages: tuple[Message, ...]
    gold: tuple[str, ...]
    origin: str
    answer: str | None
    """What to train on; None where no accepted value can be derived from the text."""
    rule: str | None
    key: bytes
    """Digest of what must not stand in two splits: what the model sees of the page, or the prompt."""
    place: str
    """Where it stands in its source, for sentences."""
    weak: str | None = None
    """For a name of which no hand-made form can be derived: the markup's shorter form. Never used in the test set."""
    is_pending: bool = False
    """Whether a teacher has still to label it; then there are no messages and no accepted values yet."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was read of one page or text."""

    page: RawPage
    text: str
    """What the model sees of it."""
    own: Mapping[str, str]
    """What its markup says, where labels are the markup's."""
    markup: Mapping[str, str]
    """The same, whosever the labels are."""
    site: str
    """What errors are clustered by."""
    rules: Mapping[str, str]
    """What the rule extractor says."""
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One page, before it is tokenised."""

    id: str
    shop: str | None
    """None where neither an address nor a site is known, nor a group of ready samples."""
    url: str | None
    asked: tuple[Asked, ...]
    whole: bytes | None = None
    """Digest of a page's text before the cut."""
    given_id: str | None = None
    """The id that its record gives it, for pages."""
    read: Read | None = None
    """What a teacher labels it by; None where there is none."""
    text: str = ""
    """What the model sees of a page."""
    is_page: bool = True
    """Whether it was asked about as a page; a text that is of none is asked about in other words."""


def prepare(config: PrepareConfig, *, wait: Callable[[float], None] = time.sleep) -> DatasetSummary:
    """Write the dataset and return what it holds.

    Args:
        config: what to make, of what.
        wait: waits for seconds, where a teacher asks for it.

    Raises:
        PrepareError: with everything that is wrong with the settings, the model's tokenizer or the data.
        TeacherError: where the teacher cannot be asked as the study says.
        TeacherUnavailableError: where it does not answer. What it has answered is kept.
        ArtifactError: where the dataset cannot be written.
    """
    # What can be known without reading a page.
    problems = _check_config(config)
    earlier = _read_earlier(config, problems)
    prompter, digest = _load_prompter(config, problems)
    if problems or prompter is None:
        raise PrepareError(problems)
    problems += _check_positions(config)
    page_tokens = _budget(
        config, [prompter.ask("", answers.question(a)) for a in config.attributes], prompter, problems
    )
    asked = [prompter.ask_text("", answers.question_of_text(a)) for a in config.attributes]
    text_tokens = _budget(config, asked, prompter, problems)
    if problems:
        raise PrepareError(problems)

    # Sources to drafts: labelled, cut, not yet tokenised.
    reader = _Reader(config=config, prompter=prompter, page_tokens=page_tokens, text_tokens=text_tokens)
    drafts = reader.read(config.source)
    test_drafts = reader.read(config.test_source) if config.test_source is not None else []
    if reader.problems:
        raise PrepareError(reader.problems)

    # Drafts to splits: nothing of the test source, no text twice.
    drafts, pages_of_test_sites = _without_test_sites(drafts, test_drafts, config.split.by)
    drafts, repeats_of_test = _without_repeats(config, drafts, test_drafts)
    groups, drafts, copies = _group(config, drafts)
    by_split = _divide(config, groups, drafts, test_drafts)

    # What can be asked, and whether enough of it is left to train and to measure.
    problems = _check_splits(config, by_split, len(set(groups)))
    if problems:
        raise PrepareError(problems)
    taught: TeacherSummary | None = None
    if config.teacher is not None:
        by_split, taught = _let_teacher_label(config, config.teacher, reader, by_split, wait)
        problems = _check_taught(config.teacher, taught) or _check_splits(config, by_split, len(set(groups)))
        if problems:
            raise PrepareError(problems)
    conflicting_labels, conflicts = _find_conflicts(config, by_split)
    dropped = reader.dropped
    by_split, silent = _keep_questions(by_split, dropped)
    problems = _check_values(config, by_split)
    if problems:
        raise PrepareError(problems)

    # Splits to token ids.
    constants = _constants(by_split[TRAIN])
    tokenizer = _Tokenizer(prompter, config.max_length_tokens, constants)
    pages = {name: tokenizer.encode(by_split[name], is_trained=name == TRAIN) for name in by_split}
    if tokenizer.refused:
        raise PrepareError(_say_refusals(config, tokenizer.refused))
    dropped.update(tokenizer.too_long)
    problems = _check_lengths(config, pages)
    if problems:
        raise PrepareError(problems)
    variants = _encode_variants(config, by_split[TRAIN], pages[TRAIN], prompter, tokenizer)

    # Write the splits and how their token ids were made; until the summary is back the dataset is not whole.
    store = open_store(config.dataset)
    store.delete(SUMMARY)
    digests = {name: write_split(store, name, pages[name]) for name in pages}
    for index, ledger in earlier.items():
        store.write(earlier_key(index), ledger)
    if config.augment is not None:
        digests[VARIANTS] = write_split(store, VARIANTS, variants)
    answer_tokens = _answer_tokens(pages, prompter)
    write_index(
        store,
        DatasetIndex(
            tokenizer=digest,
            layout=prompter.layout,
            system=SYSTEM if config.attributes else "",
            end_of_turn=prompter.stops,
            max_length_tokens=config.max_length_tokens,
            page_tokens=page_tokens,
            text_tokens=text_tokens,
            longest_answer_tokens=max(answer_tokens.values(), default=LEAST_ANSWER_TOKENS),
            attributes=config.attributes or (COMPLETION,),
            constants=constants,
            digests=digests,
            answer_tokens=answer_tokens,
        ),
    )

    # Say what was left out and what cannot be measured well, and write the summary last.
    warnings = [
        *filter(None, [prompter.warning]),
        *_warn_of_teacher(taught, pages),
        *_warn_of_absence(config, by_split[TRAIN]),
        *_warn_of_labels(reader.unusable, reader.left_open),
        *_warn_of_cuts(reader.cut),
        *_warn_of_markup(reader.compared, reader.contradicted),
        *_warn_of_errors(pages),
        *_warn_of_copies(config, by_split, copies, reader.copies),
        *conflicts,
        *_warn_of_silence(silent, tokenizer.too_long),
        *_warn_of_changes(tokenizer.changed),
        *_warn_of_variants(config, pages[TRAIN], variants),
    ]
    summary = DatasetSummary(
        study=config.study,
        splits={name: _summarise(pages[name]) for name in pages},
        skipped_pages=dict(sorted(reader.skipped.items())),
        dropped_labels=dict(sorted(dropped.items())),
        unusable_labels={attribute: len(found) for attribute, found in sorted(reader.unusable.items())},
        ambiguous_currencies=len(reader.left_open),
        guessed_encodings=dict(sorted(reader.guessed.items())),
        repeats_of_test=repeats_of_test,
        conflicting_labels=conflicting_labels,
        pages_of_test_sites=pages_of_test_sites,
        teacher=taught,
        audit=audit(reader.pairs, LabelOrigin(config.labels_from), _noisy_shares(pages[VALIDATION])),
        variants=len(variants),
        records=_count_records(config, by_split),
        warnings=tuple(warnings),
        fingerprint=_fingerprint(digest, digests),
        digest=config.digest,
    )
    write_summary(store, summary)
    return summary


# Settings -------------------------------------------------------------------------------------------------------------


def _check_config(config: PrepareConfig) -> list[str]:
    split = config.split
    problems = []
    for name, percent in (("validation", split.validation_percent), ("test", split.test_percent)):
        least = 1 if name == "validation" else 0
        if not least <= percent <= 90:
            problems.append(f"split.{name}_percent must be from {least} to 90, got {percent}")
    if split.validation_percent + split.test_percent > 90:
        total = split.validation_percent + split.test_percent
        problems.append(f"split.validation_percent and split.test_percent must leave 10 for training, got {total}")
    if config.test_source is not None and split.test_percent > 0:
        problems.append(f"split.test_percent must be 0 where test_source is given, got {split.test_percent}")
    if config.missing_labels is MissingLabel.ABSENT and config.labels_from is LabelSource.MARKUP:
        problems.append(f"missing_labels must be Unknown where labels_from is {config.labels_from}, got Absent")
    is_taught = config.labels_from is LabelSource.TEACHER
    if is_taught != (config.teacher is not None):
        rule = "must be given" if is_taught else "must not be given"
        problems.append(f"teacher {rule} where labels_from is {config.labels_from}")
    if is_taught and not config.attributes:
        problems.append("attributes must hold at least 1 where labels_from is Teacher, got none")
    if config.augment is not None and not config.attributes:
        problems.append("augment must be left out unless attributes are asked")
    if config.max_pages is not None and config.max_pages < 1:
        problems.append(f"max_pages must be at least 1, got {config.max_pages}")
    for index, attribute in enumerate(config.attributes):
        if not attribute.strip():
            problems.append(f"attributes[{index}] must be a name, got {attribute!r}")
        elif attribute in config.attributes[:index]:
            problems.append(f"attributes[{index}] must be named once, got {attribute!r} again")
    return problems


def _read_earlier(config: PrepareConfig, problems: list[str]) -> dict[int, bytes]:
    """Read the ledgers of earlier studies, by their numbers. What is in them the operator knows."""
    found = {}
    for index, uri in enumerate(config.earlier):
        if uri is None:
            continue
        ledger = open_store(uri).read(LEDGER, MOST_LEDGER_BYTES)
        if ledger is None:
            problems.append(f"warmStartFrom[{index}].uri must be a study's prefix, in which {LEDGER} lies, got {uri!r}")
        else:
            found[index] = ledger
    return found


def _load_prompter(config: PrepareConfig, problems: list[str]) -> tuple[Prompter | None, str]:
    try:
        tokenizer = load_tokenizer(config.base_model)
        return Prompter(tokenizer), digest_tokenizer(tokenizer)
    except BaseModelError as error:
        problems.append(str(error))
    except PromptError as error:
        problems.append(f"base_model.uri {config.base_model.uri!r}: {error}")
    return None, ""


def _check_positions(config: PrepareConfig) -> list[str]:
    try:
        limit = longest_sample(load_config(config.base_model))
    except BaseModelError as error:
        return [str(error)]
    if limit is None or config.max_length_tokens <= limit:
        return []
    return [say_too_long(config.base_model, config.max_length_tokens, limit)]


def _budget(config: PrepareConfig, asked: Sequence[list[Message]], prompter: Prompter, problems: list[str]) -> int:
    """Return how many tokens of a page or text leave room for the longest question and an answer.

    Args:
        config: its limit of a sample.
        asked: each question of an empty page or text.
        prompter: counts tokens.
        problems: where it is said if there are too few.
    """
    if not asked:
        return 0
    overhead = max(len(ids) for ids in prompter.encode_prompts(asked))
    budget = config.max_length_tokens - overhead - ANSWER_TOKENS
    if budget < LEAST_PAGE_TOKENS and not problems:
        least = overhead + ANSWER_TOKENS + LEAST_PAGE_TOKENS
        problems.append(
            f"max_length_tokens must be at least {least} for these questions and this tokenizer, "
            f"got {config.max_length_tokens}"
        )
    return budget


# Sources to drafts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Label:
    """What is known of one attribute of one page."""

    attribute: str
    values: tuple[str, ...]
    """Accepted values; none means absent."""
    origin: str


class _Text(NamedTuple):
    """What is read of a page or text."""

    cut: str
    whole: str
    facts: documents.Facts


class _Reader:
    """Reads sources into drafts and counts what it leaves out."""

    def __init__(self, *, config: PrepareConfig, prompter: Prompter, page_tokens: int, text_tokens: int) -> None:
        self._config = config
        self._prompter = prompter
        self._page_tokens = page_tokens
        self._text_tokens = text_tokens
        self.problems: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.guessed: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.contradicted: Counter[str] = Counter()
        """By attribute: values of markup beside a hand-made label, and those that it contradicts."""
        self.unusable: dict[str, list[str]] = defaultdict(list)
        """By attribute: labels that no answer could be right by, and where they stand."""
        self.copies: list[str] = []
        """Where pages stand that an earlier record of their id says already."""
        self.left_open: list[str] = []
        """Currency labels of which the page prints a sign that may mean others, and where they stand."""
        self.cut: list[str] = []
        """Where texts stand whose end was cut off."""
        self.pairs: list[Pair] = []
        """Labels of two origins, where both label an attribute of a page."""

    def read(self, uri: str) -> list[Draft]:
        problems = Problems(uri=uri)
        limit, seed = self._config.max_pages, self._config.seed
        if not self._config.attributes:
            drafts = self._draft_samples(read_samples(uri, problems, max_pages=limit, seed=seed))
        else:
            is_silence_absence = self._config.missing_labels is MissingLabel.ABSENT
            need_labels = is_silence_absence and self._config.labels_from is LabelSource.GIVEN
            pages = iterate_pages(uri, problems, max_pages=limit, seed=seed, need_labels=need_labels)
            drafts = self._draft_pages(pages, problems)
        self.problems += problems.all()
        return drafts

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._prompter.count_tokens(texts)

    def _draft_pages(self, pages: Iterable[RawPage], problems: Problems) -> list[Draft]:
        before = self.skipped.copy()
        drafts = self._without_copies([draft for page in pages if (draft := self._draft(page)) is not None])
        left_out = self.skipped - before
        if left_out and not drafts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
            problems.add(f" must hold at least 1 page with text and labels, got {reasons}")
        unknown = [repr(draft.id) for draft in drafts if draft.shop is None]
        if unknown and self._config.split.by is SplitBy.SITE:
            problems.add(
                f": split.by Site needs `url` or `site` of every page, and {len(unknown)} have neither "
                f"({_listed(unknown)}); give one of them, or set split.by to Page"
            )
        return drafts

    def _without_copies(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Keep one of each page that stands twice: equal in the id that its records give it, in text and labels."""
        first: dict[object, str] = {}
        kept: list[Draft] = []
        for draft in drafts:
            asked = tuple((one.attribute, one.gold, one.origin) for one in draft.asked)
            place = draft.asked[0].place
            if (
                draft.given_id is None
                or first.setdefault((draft.given_id, draft.url, draft.whole, asked), place) == place
            ):
                kept.append(draft)
            else:
                self.copies.append(place)
        return kept

    def _draft(self, page: RawPage) -> Draft | None:
        read = self._read_text(page, page.text) if page.text is not None else self._read_page(page, page.html or "")
        if isinstance(read, Skip):
            self.skipped[str(read)] += 1
            return None
        text, whole, facts = read
        known = page.site or (page.url if page.url and has_host(page.url) else None)
        shop = site_of(known) if known else None
        markup = self._read_markup(page, facts)
        own = markup if self._config.labels_from is LabelSource.MARKUP else {}
        self._compare(page, own, whole)
        seen = Read(
            page=page,
            text=text,
            own=own,
            markup=markup,
            site=shop or page.id,
            rules=rules.extract(facts, page.url),
            key=digest_text(_without_address(text, page.url)),
        )
        self._audit_markup(seen)
        asked = [self._ask(seen, label) for label in self._labels(page, own)]
        is_taught = self._config.labels_from is LabelSource.TEACHER
        if is_taught:
            labelled = {one.attribute for one in asked}
            asked += [_pending(seen, attribute) for attribute in self._config.attributes if attribute not in labelled]
        if not asked:
            self.skipped["NoLabels"] += 1
            return None
        return Draft(
            id=page.id,
            shop=shop,
            url=page.url,
            asked=tuple(asked),
            whole=digest_text(_without_address(whole, page.url)),
            given_id=page.given_id,
            # The page itself is read, and may be large.
            read=replace(seen, page=replace(page, html=page.html and "")) if is_taught else None,
            text=text,
            is_page=page.html is not None,
        )

    def label(self, draft: Draft, taught: Labelled) -> Draft:
        """Ask of a draft what a teacher has labelled, beside what people have."""
        read = draft.read
        if read is None:
            return draft
        by_attribute = {one.attribute: one for one in draft.asked if not one.is_pending}
        is_silence_absence = self._config.missing_labels is MissingLabel.ABSENT
        for attribute, value in taught.values.items():
            if attribute in by_attribute:
                continue
            values = self._usable(read.page, attribute, (value,)) if value is not None else ()
            if values or (value is None and is_silence_absence):
                by_attribute[attribute] = self._ask(read, _Label(attribute=attribute, values=values, origin=TEACHER))
        if not by_attribute:
            self.skipped["NoLabels"] += 1
        return replace(draft, asked=tuple(by_attribute[a] for a in self._config.attributes if a in by_attribute))

    def _read_page(self, page: RawPage, html: bytes | str) -> _Text | Skip:
        read = self._parse_page(page, html)
        if isinstance(read, Skip):
            return read
        document = read.document
        if isinstance(document, Skip):
            return document
        clean = replace(
            document,
            lines=tuple(replace(line, text=self._prompter.clean(line.text)) for line in document.lines),
        )
        return _Text(clean.cut(self._page_tokens, self._prompter.count_tokens), clean.text, read.facts)

    def _parse_page(self, page: RawPage, html: bytes | str) -> documents.Page | Skip:
        if isinstance(html, bytes):
            decoded = read_text(html, page.charset)
            if isinstance(decoded, Skip):
                return decoded
            if decoded.is_guessed:
                self.guessed[decoded.encoding] += 1
            html = decoded.text
        return documents.read_page(html, url=page.url)

    def _read_text(self, page: RawPage, given: str) -> _Text | Skip:
        """Read a text that its record brings. Where it is of a page, markup and rules still read the page."""
        seen = plain_text.read_plain_text(given)
        if isinstance(seen, Skip):
            return seen
        whole = self._prompter.clean(seen)
        facts, budget = plain_text.facts_of(whole), self._text_tokens
        if page.html is not None:
            read = self._parse_page(page, page.html)
            if isinstance(read, Skip):
                return read
            facts, budget = read.facts, self._page_tokens
        text = plain_text.cut_text(whole, budget, self._prompter.count_tokens)
        if text != whole:
            self.cut.append(_place(page))
        return _Text(text, whole, facts)

    def _read_markup(self, page: RawPage, facts: documents.Facts) -> Mapping[str, str]:
        """Return what the page's markup says: as its source tells it, completed and confirmed by the page itself.

        Where labels are given, it is only read beside them.
        """
        is_needed = self._config.labels_from is not LabelSource.GIVEN or page.labels
        if not is_needed or (page.html is None and page.markup is None):
            return {}
        return confirm(page.markup or {}, facts, page.url)

    def _compare(self, page: RawPage, own: Mapping[str, str], text: str) -> None:
        """Count where markup and a person label the same attribute, and where they contradict each other."""
        country = country_of(page.url or page.site)
        for attribute in self._config.attributes:
            accepted = (page.labels or {}).get(attribute)
            if accepted and attribute in own:
                self.compared[attribute] += 1
                self.contradicted[attribute] += contradicts(attribute, own[attribute], accepted, text, country)

    def _audit_markup(self, read: Read) -> None:
        """Compare markup with what people have labelled."""
        for attribute, value in read.markup.items():
            given = (read.page.labels or {}).get(attribute)
            if given and attribute in self._config.attributes:
                self._compare_labels(read, LabelOrigin.MARKUP, LabelOrigin.GIVEN, attribute, (value,), given)

    def audit_teacher(self, draft: Draft, taught: Labelled) -> None:
        """Compare a teacher's labels with markup and with what people have labelled."""
        read = draft.read
        if read is None:
            return
        for attribute, value in taught.values.items():
            one = self._as_label(value)
            given = (read.page.labels or {}).get(attribute)
            if one is not None and given is not None:
                self._compare_labels(read, LabelOrigin.TEACHER, LabelOrigin.GIVEN, attribute, one, given)
            if one is not None and attribute in read.markup:
                markup = (read.markup[attribute],)
                self._compare_labels(read, LabelOrigin.TEACHER, LabelOrigin.MARKUP, attribute, one, markup)

    def audit_again(self, draft: Draft, first: Labelled, second: Labelled) -> None:
        """Compare a teacher's labels with those of its second pass: a value against none is a contradiction."""
        read = draft.read
        if read is None or second.fate is not Fate.LABELLED:
            return
        for attribute, value in first.values.items():
            again = second.values[attribute]
            if value is not None or again is not None or self._config.missing_labels is MissingLabel.ABSENT:
                one, other = (() if answer is None else (answer,) for answer in (value, again))
                kinds = (LabelOrigin.TEACHER, LabelOrigin.TEACHER_AGAIN)
                is_label = self._as_label(value) is not None
                self._compare_labels(read, *kinds, attribute, one, other, is_label=is_label)

    def _as_label(self, value: str | None) -> tuple[str, ...] | None:
        """Return what a teacher's value is as a label; None where it says nothing."""
        if value is None:
            return () if self._config.missing_labels is MissingLabel.ABSENT else None
        return (value,)

    def _compare_labels(
        self,
        read: Read,
        one_is: LabelOrigin,
        other_is: LabelOrigin,
        attribute: str,
        one: tuple[str, ...],
        other: tuple[str, ...],
        *,
        is_label: bool = True,
    ) -> None:
        page, text = read.page, read.text
        country = country_of(page.url or page.site)
        usable = tuple(value for value in one if _is_usable(attribute, value))
        is_kept = is_label and bool(usable or not one) and _derive(attribute, usable, text, country) is not None
        self.pairs.append(
            Pair(
                one=one_is,
                other=other_is,
                attribute=attribute,
                site=read.site,
                agrees=agree(attribute, one, other, text, country),
                is_kept=is_kept,
            )
        )

    def _labels(self, page: RawPage, own: Mapping[str, str]) -> list[_Label]:
        """Return the labels of the attributes that are asked and labelled at all."""
        found: list[_Label] = []
        is_given = self._config.labels_from is not LabelSource.MARKUP
        is_silence_absence = self._config.missing_labels is MissingLabel.ABSENT
        missing = () if is_silence_absence and self._config.labels_from is LabelSource.GIVEN else None
        for attribute in self._config.attributes:
            hand = (page.labels or {}).get(attribute, missing)
            if hand is not None and not hand and is_given:
                found.append(_Label(attribute=attribute, values=(), origin=HAND))
            elif hand:
                values = self._usable(page, attribute, hand)
                found += [_Label(attribute=attribute, values=values, origin=HAND)] if values else []
            elif hand is None and attribute in own:
                values = self._usable(page, attribute, (own[attribute],))
                found += [_Label(attribute=attribute, values=values, origin=MARKUP)] if values else []
        return found

    def _usable(self, page: RawPage, attribute: str, values: Sequence[str]) -> tuple[str, ...]:
        """Keep the values that an answer can be right by: each is evaluated against itself."""
        usable = []
        for value in map(self._prompter.clean, values):
            if _is_usable(attribute, value):
                usable.append(value)
            else:
                self.unusable[attribute].append(f"{value!r} ({_place(page)})")
        return tuple(usable)

    def _ask(self, read: Read, label: _Label) -> Asked:
        page, text = read.page, read.text
        country = country_of(page.url or page.site)
        answer = _derive(label.attribute, label.values, text, country)
        weak = None
        if answer is None and label.attribute == "name":
            weak = _derive_part(label, read.own.get("name", ""), text)
        if answer is None and label.attribute == "currency":
            codes = {meaning_of(value, country) for value in label.values} - {None}
            if any(code is not None and is_left_open(code, text, country) for code in codes):
                self.left_open.append(f"{label.values[0]!r} ({_place(page)})")
        return Asked(
            attribute=label.attribute,
            messages=tuple(self._prompter.pose(label.attribute, text, is_page=page.html is not None)),
            gold=answers.spell_out(label.attribute, label.values, answer, text, country),
            origin=label.origin,
            answer=answer,
            rule=read.rules.get(label.attribute),
            key=read.key,
            place=_place(page),
            weak=weak,
        )

    def _draft_samples(self, samples: Sequence[ReadySample]) -> list[Draft]:
        """Make one draft of each group of samples; a sample without a group is one by itself."""
        clean = self._prompter.clean
        by_group: dict[str, list[ReadySample]] = defaultdict(list)
        for sample in samples:
            by_group[f"group {sample.group}" if sample.group else sample.id].append(sample)
        drafts = []
        for group, members in by_group.items():
            asked = tuple(
                Asked(
                    attribute=COMPLETION,
                    messages=tuple({"role": role, "content": clean(content)} for role, content in member.messages),
                    gold=(clean(member.completion),),
                    origin=HAND,
                    answer=clean(member.completion),
                    rule=None,
                    key=digest_text("\n".join(clean(content) for _, content in member.messages)),
                    place=member.place,
                )
                for member in members
            )
            site = members[0].site
            # A number of a line names nothing: the test source has one of the same number.
            own = group if members[0].group else None
            drafts.append(Draft(id=group, shop=site_of(site) if site else own, url=None, asked=asked))
        return drafts


def _is_usable(attribute: str, value: str) -> bool:
    """Say whether an answer can be right by a value: it is evaluated against itself."""
    return answers.is_correct(attribute, value, [value]) and not answers.is_absent(value)


def _pending(read: Read, attribute: str) -> Asked:
    """Ask what a teacher has still to label."""
    return Asked(
        attribute=attribute,
        messages=(),
        gold=(),
        origin=TEACHER,
        answer=None,
        rule=None,
        key=read.key,
        place=_place(read.page),
        is_pending=True,
    )


def _place(page: RawPage) -> str:
    return f"{page.where}, {page.id!r}" if page.where else repr(page.id)


def _derive(attribute: str, gold: tuple[str, ...], text: str, country: str | None) -> str | None:
    """Return the answer to train on: the first accepted value that the text bears out, or the word for absence."""
    if not gold:
        return answers.ABSENT
    return next(
        (found for value in gold if (found := answers.target(attribute, value, text, country)) is not None), None
    )


def _derive_part(label: _Label, name: str, text: str) -> str | None:
    """Return the markup's form of a name, if it is a part of a hand-made one ("Terraria" of "Terraria on Steam").

    Where markup says something else than a person, the person is right and nothing is trained on.
    """
    if not name or not any(name.casefold() in value.casefold() for value in label.values):
        return None
    return answers.target(label.attribute, name, text)


def _without_address(text: str, url: str | None) -> str:
    """Return a page's text without the line that its address makes, by which equal pages would differ."""
    host = host_of(url) if url else ""
    first, _, rest = text.partition("\n")
    return rest if host and first.casefold().startswith(host) else text


# Splits ---------------------------------------------------------------------------------------------------------------


def _without_test_sites(drafts: list[Draft], test_drafts: Sequence[Draft], by: SplitBy) -> tuple[list[Draft], int]:
    """Drop the pages whose shop is in the test source."""
    if by is not SplitBy.SITE:
        return drafts, 0
    sites = {draft.shop for draft in test_drafts} - {None}
    kept = [draft for draft in drafts if draft.shop not in sites]
    return kept, len(drafts) - len(kept)


def _without_repeats(
    config: PrepareConfig, drafts: Sequence[Draft], test_drafts: Sequence[Draft]
) -> tuple[list[Draft], int]:
    """Drop what stands in the test source too, and return how many pages or samples that are.

    Equal in text; where pages are split by page, also in the id that their records give them or in address.
    """
    keys = {asked.key for draft in test_drafts for asked in draft.asked}
    wholes = {draft.whole for draft in test_drafts} - {None}
    names: set[str] = set()
    if config.attributes and config.split.by is SplitBy.PAGE:
        names = {name for draft in test_drafts for name in _names_of(draft)}
    kept: list[Draft] = []
    count = 0
    for draft in drafts:
        rest = tuple(asked for asked in draft.asked if asked.key not in keys)
        if draft.whole in wholes or not names.isdisjoint(_names_of(draft)):
            rest = ()
        if rest:
            kept.append(replace(draft, asked=rest))
        if len(rest) < len(draft.asked):
            count += 1 if config.attributes else len(draft.asked) - len(rest)
    return kept, count


def _names_of(draft: Draft) -> list[str]:
    """Return what a page is known by, whatever its text."""
    by_id = [f"id {draft.given_id}"] if draft.given_id is not None else []
    return [*by_id, f"address {address_of(draft.url)}"] if draft.url is not None else by_id


def _group(config: PrepareConfig, drafts: Sequence[Draft]) -> tuple[list[str], list[Draft], int]:
    """Say which group each draft belongs to, equal texts in one group.

    Returns:
        The group of each draft, the drafts, and how many copies were left out of other groups than their text's own.
    """
    by_site = config.split.by is SplitBy.SITE
    own = [(draft.shop or draft.id) if by_site else draft.id for draft in drafts]
    texts_by_group: dict[str, Counter[bytes]] = defaultdict(Counter)
    for name, draft in zip(own, drafts, strict=True):
        texts_by_group[name].update({asked.key for asked in draft.asked})
    # A page that was fetched twice is one page, even where its text has changed; one that is cut at another place, too.
    names_by_group: dict[str, set[str]] = defaultdict(set)
    for name, draft in zip(own, drafts, strict=True):
        if draft.whole is not None:
            names_by_group[name].add(f"text {draft.whole.hex()}")
        if draft.url is not None and not by_site:
            names_by_group[name].add(f"address {address_of(draft.url)}")
    joined = join_groups(texts_by_group, names_by_group)
    groups: list[str] = []
    kept: list[Draft] = []
    count = 0
    for name, draft in zip(own, drafts, strict=True):
        group = joined.group_by_name[name]
        asked = tuple(one for one in draft.asked if joined.home_by_text.get(one.key, group) == group)
        if asked:
            groups.append(group)
            kept.append(replace(draft, asked=asked))
        # All questions of a page have its one text.
        count += (not asked) if config.attributes else len(draft.asked) - len(asked)
    return groups, kept, count


def _find_conflicts(config: PrepareConfig, by_split: Mapping[str, Sequence[Draft]]) -> tuple[int, list[str]]:
    """Find the questions that are asked in equal words and have different answers."""
    places: dict[tuple[str, bytes], dict[frozenset[str], str]] = defaultdict(dict)
    for drafts in by_split.values():
        for draft in drafts:
            for asked in draft.asked:
                values = frozenset(" ".join(value.split()) for value in asked.gold)
                places[asked.attribute, asked.key].setdefault(values, asked.place)
    pairs = []
    for (attribute, _), found in places.items():
        one, first = next(iter(found.items()))
        others = ((other, second) for other, second in found.items() if not _agree(attribute, one, other))
        if (pair := next(others, None)) is not None:
            pairs.append(f"{_shown(one)} in {first} and {_shown(pair[0])} in {pair[1]}")
    if not pairs:
        return 0, []
    many = len(pairs) > 1
    if config.attributes:
        subject = "questions about equal texts have labels" if many else "question about equal texts has labels"
    else:
        subject = (
            "prompts stand in several samples with completions" if many else "prompt stands in samples with completions"
        )
    return len(pairs), [f"{len(pairs)} {subject} that contradict each other: {_listed(pairs, '; ')}"]


def _agree(attribute: str, one: frozenset[str], other: frozenset[str]) -> bool:
    """Say whether an answer can be right by both of two labels; a completion is right as it is written alone."""
    if one == other:
        return True
    return attribute != COMPLETION and any(not contradicts(attribute, value, sorted(other), "", None) for value in one)


def _shown(values: frozenset[str]) -> str:
    text = " or ".join(sorted(values)) or answers.ABSENT
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _divide(
    config: PrepareConfig, groups: Sequence[str], drafts: Sequence[Draft], test_drafts: list[Draft]
) -> dict[str, list[Draft]]:
    candidates = [
        Candidate(
            id=draft.id,
            group=group,
            # What a teacher will label nobody knows yet, so that its answers decide no split.
            attributes=tuple(asked.attribute for asked in draft.asked if asked.is_pending or _is_scored(asked)),
        )
        for group, draft in zip(groups, drafts, strict=True)
    ]
    drawn = draw(candidates, config.split, config.seed)
    by_split: dict[str, list[Draft]] = {TRAIN: [], VALIDATION: []}
    if config.test_source is not None or config.split.test_percent > 0:
        by_split[TEST] = list(test_drafts)
    for draft, candidate in zip(drafts, candidates, strict=True):
        by_split[drawn[candidate.group]].append(draft)
    return by_split


# A teacher's labels ---------------------------------------------------------------------------------------------------


def _let_teacher_label(
    config: PrepareConfig,
    settings: TeacherSettings,
    reader: _Reader,
    by_split: Mapping[str, Sequence[Draft]],
    wait: Callable[[float], None],
) -> tuple[dict[str, list[Draft]], TeacherSummary]:
    """Let the teacher label the pages of training and validation, and those of the test set that nobody has labelled.

    They are asked in the order of their ranks by the seed: where tokens run out, what is labelled is a random sample.
    """
    teacher = Teacher(
        settings,
        config.attributes,
        key=read_key(os.environ.get(TEACHER_API_KEY, "")),
        count_tokens=reader.count_tokens,
        wait=wait,
    )
    drafts = [d for name, drafts in by_split.items() for d in drafts if name != TEST or not _has_given(config, d)]
    drafts.sort(key=lambda draft: rank(config.seed, "teacher", draft.id))
    try:
        labels = teacher.label([draft.read.text for draft in drafts if draft.read is not None])
        # A second pass over some of what is labelled, which the audit compares with the first.
        answered = [pair for pair in zip(drafts, labels, strict=True) if pair[1].fate is Fate.LABELLED]
        answered.sort(key=lambda pair: rank(config.seed, "again", pair[0].id))
        repeated = answered[: settings.self_consistency_samples]
        again = teacher.label([draft.read.text for draft, _ in repeated if draft.read is not None], round_number=2)
    finally:
        teacher.close()
    taught = {id(draft): found for draft, found in zip(drafts, labels, strict=True)}
    for draft, found in zip(drafts, labels, strict=True):
        reader.audit_teacher(draft, found)
    for (draft, first), second in zip(repeated, again, strict=True):
        reader.audit_again(draft, first, second)
    nothing = Labelled(Fate.LABELLED, {})
    labelled = {
        name: [done for draft in drafts if (done := reader.label(draft, taught.get(id(draft), nothing))).asked]
        for name, drafts in by_split.items()
    }
    return labelled, TeacherSummary(
        endpoint=settings.endpoint,
        model=settings.model,
        pages=dict(sorted(Counter(str(found.fate) for found in labels).items())),
        retries=dict(sorted(teacher.retries.items())),
        pages_again=dict(sorted(Counter(str(found.fate) for found in again).items())),
        kept_answers=teacher.kept,
        prompt_tokens=teacher.prompt_tokens,
        answer_tokens=teacher.answer_tokens,
        new_tokens=teacher.new_tokens,
    )


def _has_given(config: PrepareConfig, draft: Draft) -> bool:
    """Say whether a person has labelled any of the asked attributes of a page, if only wrongly."""
    labels = draft.read.page.labels if draft.read is not None else None
    return any(attribute in (labels or {}) for attribute in config.attributes)


def _check_taught(settings: TeacherSettings, taught: TeacherSummary) -> list[str]:
    fates = ", ".join(f"{fate} {count}" for fate, count in taught.pages.items())
    if taught.pages.get(Fate.OUT_OF_TOKENS, 0) and settings.when_tokens_run_out is OutOfTokens.REFUSE:
        spent = taught.prompt_tokens + taught.answer_tokens
        rule = f"must be more than {settings.max_tokens:,} to label every page"
        rest = "a study with a higher limit asks only for what is missing"
        return [f"teacher.max_tokens {rule}: {fates}, with {spent:,} tokens; {rest}"]
    if taught.pages and not taught.pages.get(Fate.LABELLED, 0):
        return [f"the teacher {taught.model!r} must label at least 1 page, but labelled none: {fates}"]
    return []


def _is_scored(asked: Asked) -> bool:
    """Say whether a validation question counts: markup is noisy, so its value must stand in the text."""
    return asked.origin == HAND or asked.answer is not None


def _keep_questions(
    by_split: Mapping[str, list[Draft]], dropped: Counter[str]
) -> tuple[dict[str, list[Draft]], Counter[str]]:
    """Leave out the questions that cannot be trained on or scored, and the pages that then ask nothing.

    Returns:
        The splits, and the number of pages left without a question, by split.
    """
    kept: dict[str, list[Draft]] = {}
    silent: Counter[str] = Counter()
    for name, drafts in by_split.items():
        kept[name] = []
        for draft in drafts:
            settled = [asked if name == TEST else _settle(asked) for asked in draft.asked]
            asked = tuple(asked for asked in settled if _is_kept(name, asked))
            dropped.update(asked.attribute for asked in settled if not _is_kept(name, asked))
            if asked:
                kept[name].append(replace(draft, asked=asked))
            else:
                silent[name] += 1
    return kept, silent


def _settle(asked: Asked) -> Asked:
    """Let the markup's form of a name answer, beside the hand-made one that the page does not print."""
    if asked.weak is None:
        return asked
    return replace(asked, answer=asked.weak, gold=(*asked.gold, asked.weak), weak=None)


def _is_kept(split: str, asked: Asked) -> bool:
    if split == TRAIN:
        return asked.answer is not None
    return split == TEST or _is_scored(asked)


def _check_splits(config: PrepareConfig, by_split: Mapping[str, list[Draft]], groups: int) -> list[str]:
    thing = "page" if config.attributes else "sample"
    drafts = (
        len(by_split[TRAIN])
        + len(by_split[VALIDATION])
        + (len(by_split.get(TEST, ())) if config.test_source is None else 0)
    )
    why = ""
    if groups == 1 and drafts > 1:
        shared = (
            "site, group or prompt"
            if not config.attributes
            else ("site or text" if config.split.by is SplitBy.SITE else "address or text")
        )
        why = f": the source's {drafts} {thing}s have one {shared} and stay together"
    elif config.test_source is not None:
        why = " after what is in the test set was dropped"
    return [
        f"the {name} split must hold at least 1 {thing}, got none{why if name != TEST or groups == 1 else ''}"
        for name, pages in by_split.items()
        if not pages
    ]


def _check_values(config: PrepareConfig, by_split: Mapping[str, list[Draft]]) -> list[str]:
    """Name every attribute that has too few values to be learnt or measured."""
    problems = []
    asked = config.attributes or (COMPLETION,)
    for name, least in ((TRAIN, 1), (VALIDATION, LEAST_VALIDATION_VALUES)):
        counts = Counter(question.attribute for draft in by_split[name] for question in draft.asked)
        few = [f"{counts[attribute]} of {attribute!r}" for attribute in asked if counts[attribute] < least]
        if few:
            values = "value" if least == 1 else "values"
            problems.append(
                f"the {name} split must hold at least {least} {values} of each asked attribute, got {', '.join(few)}"
            )
    return problems


# Token ids ------------------------------------------------------------------------------------------------------------


def _constants(train: Sequence[Draft]) -> dict[str, str]:
    """Return the most frequent training answer by attribute."""
    return rules.most_common_answers(
        (asked.attribute, asked.answer)
        for draft in train
        for asked in draft.asked
        if asked.answer is not None and asked.gold
    )


class _Tokenizer:
    """Turns drafts into pages, and counts the samples that are too long."""

    def __init__(self, prompter: Prompter, max_length_tokens: int, constants: Mapping[str, str]) -> None:
        self._prompter = prompter
        self._max_length_tokens = max_length_tokens
        self._constants = constants
        self.too_long: Counter[str] = Counter()
        self.refused: list[tuple[str, str]] = []
        """Where a sample stands that cannot be made a prompt, and why."""
        self.changed: list[str] = []
        """Where completions stand that their template does not render as they are."""

    def like_this(self) -> _Tokenizer:
        """Return another one, which has counted nothing yet."""
        return _Tokenizer(self._prompter, self._max_length_tokens, self._constants)

    def encode(self, drafts: Sequence[Draft], *, is_trained: bool) -> list[Page]:
        pairs = [(draft, asked) for draft in drafts for asked in draft.asked]
        encoded: list[Encoded] = []
        for start in range(0, len(pairs), BATCH_SAMPLES):
            encoded += self._encode([asked for _, asked in pairs[start : start + BATCH_SAMPLES]])
            if len(self.refused) >= MOST_REFUSED:
                break
        if self.refused:
            return []
        rows = iter(encoded)
        pages: list[Page] = []
        for draft in drafts:
            fitted = [self._fit(asked, next(rows), is_trained) for asked in draft.asked]
            pages += self._build(draft, [pair for pair in fitted if pair is not None])
        return pages

    def _encode(self, batch: Sequence[Asked]) -> list[Encoded]:
        try:
            encoded = self._prompter.encode([list(asked.messages) for asked in batch], [_draft_of(a) for a in batch])
        except PromptError as error:
            if len(batch) == 1 and len(self.refused) < MOST_REFUSED:
                self.refused.append((batch[0].place, str(error)))
            if len(batch) == 1 or len(self.refused) >= MOST_REFUSED:
                return []
            # One by one, to find out which.
            return [sample for asked in batch for sample in self._encode([asked])]
        for asked, sample in zip(batch, encoded, strict=True):
            if asked.attribute == COMPLETION and self._prompter.read_answer(sample) != _draft_of(asked):
                self.changed.append(asked.place)
        return encoded

    def _fit(self, asked: Asked, sample: Encoded, is_trained: bool) -> tuple[Asked, Encoded] | None:
        """Keep a sample within the limit: its answer is shortened where it is only a draft, else it is left out."""
        room = self._max_length_tokens - len(sample.prompt)
        if len(sample.answer) <= room:
            return asked, sample
        if not is_trained and asked.attribute != COMPLETION and room >= 2:
            shortened = (*sample.answer[: room - 1], sample.answer[-1])
            return replace(asked, answer=None), replace(sample, answer=shortened)
        self.too_long[asked.attribute] += 1
        return None

    def _build(self, draft: Draft, fitted: Sequence[tuple[Asked, Encoded]]) -> list[Page]:
        """Make the page of a draft, or, where its samples begin with different tokens, a page of each."""
        if not fitted:
            return []
        shared = count_shared_tokens([sample.prompt for _, sample in fitted])
        if shared == 0 and len(fitted) > 1:
            return [page for pair in fitted for page in self._build(draft, [pair])]
        return [
            Page(
                id=draft.id,
                site=draft.shop or draft.id,
                url=draft.url,
                prefix=fitted[0][1].prompt[:shared],
                questions=tuple(self._question(asked, sample, shared) for asked, sample in fitted),
            )
        ]

    def _question(self, asked: Asked, sample: Encoded, shared: int) -> Question:
        return Question(
            attribute=asked.attribute,
            prompt=sample.prompt[shared:],
            answer=sample.answer,
            answer_text=_draft_of(asked),
            gold=asked.gold,
            origin=asked.origin,
            derived=asked.answer is not None,
            rule=asked.rule,
            constant=self._constants.get(asked.attribute),
        )


# Variants of training pages -------------------------------------------------------------------------------------------


def _encode_variants(
    config: PrepareConfig, drafts: Sequence[Draft], pages: Sequence[Page], prompter: Prompter, tokenizer: _Tokenizer
) -> list[Page]:
    """Return the variants of training pages that ask whatever their page asks."""
    if config.augment is None:
        return []
    augmenter = Augmenter(edits=config.augment.edits, seed=config.seed, others=_collect_values(drafts))
    varied = [
        variant
        for draft in drafts
        for copy in range(config.augment.copies)
        if (variant := _vary(augmenter, prompter, draft, copy)) is not None
    ]
    encoded = tokenizer.like_this().encode(varied, is_trained=True)
    # A page whose samples share no tokens stands there once for each of them, and has no variants.
    times = Counter(page.id for page in pages)
    asked = {page.id: [question.attribute for question in page.questions] for page in pages if times[page.id] == 1}
    return [page for page in encoded if [question.attribute for question in page.questions] == asked.get(page.id)]


def _vary(augmenter: Augmenter, prompter: Prompter, draft: Draft, copy: int) -> Draft | None:
    """Return a variant of a page; None where it would be the page itself, or an answer no longer follows from it."""
    variant = augmenter.vary(draft.id, draft.text, _values_of(draft), copy)
    country = country_of(draft.url)
    if variant.text == draft.text or any(
        answers.target(name, value, variant.text, country) is None for name, value in variant.values.items()
    ):
        return None

    def tell(asked: Asked) -> Asked:
        messages = tuple(prompter.pose(asked.attribute, variant.text, is_page=draft.is_page))
        return replace(asked, messages=messages, answer=variant.values.get(asked.attribute, asked.answer))

    return replace(draft, text=variant.text, asked=tuple(tell(asked) for asked in draft.asked))


def _collect_values(drafts: Sequence[Draft]) -> dict[str, list[str]]:
    """Collect the values that may stand for others: those that say nothing of a second attribute in their own page."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for draft in drafts:
        values = _values_of(draft)
        for name, value in values.items():
            others = [other.casefold() for attribute, other in values.items() if attribute != name]
            if all(other not in value.casefold() and value.casefold() not in other for other in others):
                found[name][value] = None
    return {name: list(values) for name, values in found.items()}


def _values_of(draft: Draft) -> dict[str, str]:
    """Return the answers of a training page by attribute, without those that say that there is none."""
    return {asked.attribute: asked.answer for asked in draft.asked if asked.answer is not None and asked.gold}


def _draft_of(asked: Asked) -> str:
    return asked.answer if asked.answer is not None else asked.gold[0]


def count_shared_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return the length of the longest common beginning that leaves every prompt at least one token of its own.

    Prompts are compared as they were tokenised, whole: sharing what is equal can change no id.
    """
    first, last = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    for position in range(min(limit, len(first), len(last))):
        if first[position] != last[position]:
            return position
    return max(limit, 0)


def _check_lengths(config: PrepareConfig, pages: Mapping[str, list[Page]]) -> list[str]:
    problems = []
    for name in (TRAIN, VALIDATION):
        if not pages[name]:
            limit = config.max_length_tokens
            problems.append(f"the {name} split must hold at least 1 sample of at most {limit} tokens, got none")
    return problems


def _say_refusals(config: PrepareConfig, refused: Sequence[tuple[str, str]]) -> list[str]:
    """Name the samples that cannot be made prompts, those of one reason together."""
    by_rule: dict[str, tuple[str, list[str]]] = {}
    for place, reason in refused:
        by_rule.setdefault(reason.partition(", but")[0], (reason, []))[1].append(place)
    return [
        f"base_model.uri {config.base_model.uri!r}: {reason}: {_listed(list(dict.fromkeys(places)))}"
        for reason, places in by_rule.values()
    ]


# What is said of it ---------------------------------------------------------------------------------------------------


def _answer_tokens(pages: Mapping[str, list[Page]], prompter: Prompter) -> dict[str, int]:
    """Return the limit of an attribute's answers: room for every accepted value, the test set's among them.

    Of the test labels it tells one number, the length of the longest, to every arm alike.
    """
    values: dict[str, set[str]] = defaultdict(set)
    limits: Counter[str] = Counter()
    for page in (page for found in pages.values() for page in found):
        for question in page.questions:
            values[question.attribute].update(question.gold)
            limits[question.attribute] = max(limits[question.attribute], len(question.answer), LEAST_ANSWER_TOKENS)
    for attribute, texts in values.items():
        # One token more ends the turn, and one may come of standing in a conversation.
        longest = max(prompter.count_tokens(sorted(texts)), default=0) + 2
        limits[attribute] = max(limits[attribute], longest)
    return dict(sorted(limits.items()))


def _count_records(config: PrepareConfig, by_split: Mapping[str, Sequence[Draft]]) -> dict[str, int]:
    if not config.attributes:
        return {}
    return dict(Counter("Page" if draft.is_page else "Text" for drafts in by_split.values() for draft in drafts))


def _summarise(pages: Sequence[Page]) -> SplitSummary:
    by_attribute = Counter(question.attribute for page in pages for question in page.questions)
    tokens = sum(
        len(page.prefix) + sum(len(question.prompt) + len(question.answer) for question in page.questions)
        for page in pages
    )
    return SplitSummary(
        pages=len(pages),
        samples=count_samples(pages),
        sites=len({page.site for page in pages}),
        tokens=tokens,
        samples_by_attribute=dict(sorted(by_attribute.items())),
    )


def _noisy_shares(validation: Sequence[Page]) -> dict[str, float]:
    """Return by attribute which share of its validation labels no person gave."""
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    for page in validation:
        for question in page.questions:
            counts[question.attribute][question.origin != HAND] += 1
    return {attribute: found[True] / found.total() for attribute, found in counts.items()}


def _warn_of_teacher(taught: TeacherSummary | None, pages: Mapping[str, Sequence[Page]]) -> list[str]:
    """Say what the teacher left unlabelled, and what a test set of its labels measures."""
    if taught is None:
        return []
    warnings = []
    total = sum(taught.pages.values())
    if lost := {fate: count for fate, count in taught.pages.items() if fate != Fate.LABELLED}:
        counts = ", ".join(f"{fate} {count}" for fate, count in lost.items())
        warnings.append(f"the teacher {taught.model!r} left {sum(lost.values())} of {total} pages unlabelled: {counts}")
    origins = Counter(question.origin for page in pages.get(TEST, ()) for question in page.questions)
    if origins[TEACHER]:
        warnings.append(
            f"{origins[TEACHER]} of {origins.total()} labels of the test split are the teacher's, because their pages "
            "have no given labels: by them the final evaluation measures agreement with the teacher"
        )
    return warnings


def _warn_of_markup(compared: Mapping[str, int], contradicted: Mapping[str, int]) -> list[str]:
    """Say how often markup is wrong, as far as people have labelled the same values."""
    if not any(contradicted.values()):
        return []
    counts = ", ".join(f"{attribute} {contradicted[attribute]} of {n}" for attribute, n in sorted(compared.items()))
    wrong, n = sum(contradicted.values()), sum(compared.values())
    return [f"labels from markup contradict the hand-made label of their page in {wrong} of {n} values: {counts}"]


def _warn_of_errors(pages: Mapping[str, Sequence[Page]]) -> list[str]:
    """Say which attributes cannot be measured to within a few points, how far off they are, and what that tells apart.

    Accuracy is a share of the values that are there: a question whose answer is "none" is no value.
    """
    warnings = []
    for name in (VALIDATION, TEST):
        clusters: dict[str, Counter[str]] = defaultdict(Counter)
        for page in pages.get(name, ()):
            for question in page.questions:
                if question.gold:
                    clusters[""][page.site] += 1
                    clusters[question.attribute][page.site] += 1
        few = [
            f"{attribute or 'all'} ({sites.total()} values of {len(sites)} sites)"
            for attribute, sites in sorted(clusters.items())
            if len(sites) < LEAST_SITES
        ]
        if few:
            warnings.append(
                f"too few sites in the {name} split for standard errors and intervals, {LEAST_SITES} are needed: "
                + ", ".join(few)
            )
        wide = [
            f"{attribute or 'all'} {points:.1f} ({sites.total()} values of {len(sites)} sites)"
            for attribute, sites in sorted(clusters.items())
            if len(sites) >= LEAST_SITES
            and (points := clustered_error_points(sites.values())) > MOST_STANDARD_ERROR_POINTS
        ]
        if wide:
            warnings.append(
                f"standard errors of the {name} split may exceed {MOST_STANDARD_ERROR_POINTS:g} points: "
                + ", ".join(wide)
            )
        if name == VALIDATION and len(clusters[""]) >= LEAST_SITES:
            warnings += _warn_of_ranking(clusters[""])
    return warnings


def _warn_of_ranking(sites: Counter[str]) -> list[str]:
    """Say how far apart two good trials must be for the validation split to tell them, and how many values would do."""
    points = separable_points(sites.values())
    if points <= MOST_STANDARD_ERROR_POINTS:
        return []
    needed = math.ceil(sites.total() * (points / MOST_STANDARD_ERROR_POINTS) ** 2)
    # Two trials are never farther apart than they disagree.
    is_tellable = points < 100 * DISAGREEMENT
    apart = f"where they are {points:.1f} points apart" if is_tellable else "with more values than these"
    return [
        (
            f"the {sites.total()} values of the validation split may choose the better of two good trials "
            f"9 times in 10 only {apart}; for {MOST_STANDARD_ERROR_POINTS:g} points it may take {needed:,} such values"
        )
    ]


def _warn_of_absence(config: PrepareConfig, train: Sequence[Draft]) -> list[str]:
    """Name attributes that no training page has: their name may be misspelled, and all that is learnt is "none"."""
    found = {asked.attribute for draft in train for asked in draft.asked if asked.gold}
    never = [repr(attribute) for attribute in config.attributes if attribute not in found]
    if not never:
        return []
    return [f'no training page or text has a value of {", ".join(never)}: all that is learnt of it is to answer "none"']


def _warn_of_labels(unusable: Mapping[str, Sequence[str]], left_open: Sequence[str]) -> list[str]:
    warnings = [
        f"{len(found)} {'label' if len(found) == 1 else 'labels'} of {attribute!r} can't be read as its value and "
        f"{'is' if len(found) == 1 else 'are'} left out: {_listed(found)}"
        for attribute, found in sorted(unusable.items())
    ]
    if left_open:
        warnings.append(
            f"{len(left_open)} currency {'label is' if len(left_open) == 1 else 'labels are'} not trained on, because "
            "the page prints a sign that may mean several currencies and its address names no country that settles it: "
            + _listed(left_open)
        )
    return warnings


def _warn_of_cuts(cut: Sequence[str]) -> list[str]:
    return (
        [f"the end of {len(cut)} texts does not fit max_length_tokens and was cut off: {_listed(cut)}"] if cut else []
    )


def _warn_of_copies(
    config: PrepareConfig, by_split: Mapping[str, Sequence[Draft]], copies: int, same: Sequence[str]
) -> list[str]:
    """Say what repeats itself: of pages the text, of ready samples the prompt."""
    warnings = []
    if same:
        warnings.append(
            f"{_count(len(same), 'page')} left out, because an earlier record has the same id, text and labels: "
            + _listed(same)
        )
    thing, text = ("page", "text") if config.attributes else ("sample", "prompt")
    for name, drafts in by_split.items():
        keys = [
            key
            for draft in drafts
            for key in ({asked.key for asked in draft.asked} if config.attributes else [a.key for a in draft.asked])
        ]
        if repeats := len(keys) - len(set(keys)):
            repeat = f"{thing} of the {name} split repeats" if repeats == 1 else f"{thing}s of the {name} split repeat"
            warnings.append(f"{repeats} {repeat} the {text} of another")
    if copies:
        others = "sites" if config.attributes else "groups"
        warnings.append(f"{_count(copies, thing)} left out, because too many other {others} have the same {text}")
    return warnings


def _count(number: int, thing: str) -> str:
    return f"1 {thing} was" if number == 1 else f"{number} {thing}s were"


def _warn_of_changes(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    return [f"the chat template changes {len(changed)} completions, by white space at their ends: {_listed(changed)}"]


def _warn_of_silence(silent: Mapping[str, int], too_long: Mapping[str, int]) -> list[str]:
    warnings = [
        f"{count} pages of the {name} split ask nothing: none of their labels stands in the cut text"
        for name, count in sorted(silent.items())
    ]
    if too_long:
        counts = ", ".join(f"{count} of {attribute!r}" for attribute, count in sorted(too_long.items()))
        warnings.append(f"samples longer than max_length_tokens were left out: {counts}")
    return warnings


def _warn_of_variants(config: PrepareConfig, pages: Sequence[Page], variants: Sequence[Page]) -> list[str]:
    """Say how many variants there are where most pages have none: then augmentation is hardly any."""
    if config.augment is None:
        return []
    varied = len({page.id for page in variants})
    if 2 * varied >= len(pages):
        return []
    edits = ", ".join(config.augment.edits)
    return [f"{varied} of {len(pages)} training pages have variants: the edits ({edits}) change nothing of the others"]


def _fingerprint(tokenizer: str, digests: Mapping[str, str]) -> str:
    parts = [tokenizer, *(f"{name} {digests[name]}" for name in (*SPLITS, VARIANTS) if name in digests)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = len(items) - MOST_NAMED
    return separator.join(items[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
