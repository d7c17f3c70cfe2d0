"""The dataset on disk: what is written is read, and what is not whole is refused by name."""

import gzip
from dataclasses import replace

import pytest

from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import DatasetSummary, SplitSummary
from trial_trainer.dataset.store import (
    HAND,
    INDEX,
    DatasetIndex,
    Page,
    Question,
    count_samples,
    read_index,
    read_split,
    read_summary,
    write_index,
    write_split,
    write_summary,
)
from trial_trainer.errors import DatasetError


def a_page(number: int = 0, **changes) -> Page:
    question = Question(
        attribute="name",
        prompt=(7, 8),
        answer=(9, 2),
        answer_text="Kettle\u2028in two lines",
        gold=("Kettle", "kettle"),
        origin=HAND,
        rule="Pot",
        constant="InStock",
    )
    absent = replace(question, attribute="sku", gold=(), answer_text="none", derived=False, rule=None)
    page = Page(id=f"p{number}", site="shop", url=None, prefix=(1, 2, 3), questions=(question, absent))
    return replace(page, **changes)


def a_summary() -> DatasetSummary:
    split = SplitSummary(pages=1, samples=2, sites=1, tokens=9, samples_by_attribute={"name": 1, "sku": 1})
    return DatasetSummary(
        study="s",
        splits={"train": split},
        skipped_pages={"Empty": 1},
        dropped_labels={},
        pages_of_test_sites=0,
        warnings=("few values",),
        fingerprint="f",
    )


def write_dataset(store, pages, *, name="train", with_summary=True) -> None:
    digest = write_split(store, name, pages)
    index = DatasetIndex(
        tokenizer="t",
        layout="TwoTurns",
        system="s",
        end_of_turn=(2,),
        max_length_tokens=64,
        page_tokens=32,
        longest_answer_tokens=2,
        attributes=("name", "sku"),
        constants={"name": "Kettle"},
        digests={name: digest},
    )
    write_index(store, index)
    if with_summary:
        write_summary(store, a_summary())


@pytest.fixture
def store(tmp_path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "dataset"))


def test_what_is_written_is_read(store) -> None:
    pages = (a_page(0), a_page(1, url="https://é.example/ü", site="é"))
    write_dataset(store, pages)
    assert read_split(store, "train") == pages
    assert read_summary(store) == a_summary()
    assert read_index(store).constants == {"name": "Kettle"}
    assert count_samples(pages) == 4


def test_the_same_pages_give_the_same_bytes(store, tmp_path) -> None:
    other = DirectoryStore(str(tmp_path / "other"))
    assert write_split(store, "train", [a_page()]) == write_split(other, "train", [a_page()])
    assert store.read("train.jsonl.gz") == other.read("train.jsonl.gz")


def test_another_answer_gives_another_digest(store) -> None:
    page = a_page()
    changed = replace(page, questions=(replace(page.questions[0], answer=(9, 9, 2)), page.questions[1]))
    assert write_split(store, "train", [page]) != write_split(store, "train", [changed])


def test_an_empty_split_is_read_as_no_page(store) -> None:
    write_dataset(store, ())
    assert read_split(store, "train") == ()


def test_a_dataset_without_its_summary_is_not_whole(store) -> None:
    write_dataset(store, [a_page()], with_summary=False)
    with pytest.raises(DatasetError) as caught:
        read_split(store, "train")
    assert str(caught.value) == f"the dataset {store.uri} is not whole: summary.json is missing"


def _cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _change_a_page(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b"Pot", b"Pan"))


@pytest.mark.parametrize(
    ("key", "damage", "sentence"),
    [
        pytest.param("train.jsonl.gz", None, "is not whole: train.jsonl.gz is missing", id="no split"),
        pytest.param(
            "train.jsonl.gz",
            _cut_in_half,
            "is truncated or corrupt: Compressed file ended before the end-of-stream marker was reached",
            id="half a split",
        ),
        pytest.param("train.jsonl.gz", lambda _: b"x", "is truncated or corrupt: Not a gzipped file (b'x')", id="text"),
        pytest.param(
            "train.jsonl.gz",
            lambda data: data[:12] + b"\xff" * 8 + data[20:],
            "is truncated or corrupt: Error -3",
            id="flipped bits",
        ),
        pytest.param("train.jsonl.gz", _change_a_page, "does not match its digest in index.json", id="another page"),
        pytest.param(INDEX, None, "is not whole: index.json is missing", id="no index"),
        pytest.param(INDEX, _cut_in_half, "cannot be read: DatasetIndex must be JSON", id="half an index"),
        pytest.param(
            INDEX,
            lambda data: data.replace(b'"format_version": 1', b'"format_version": 9'),
            "must have format 1, got 9: prepare it again",
            id="another format",
        ),
        pytest.param(
            INDEX,
            lambda data: data.replace(b'"page_tokens": 32', b'"page_tokens": "many"'),
            "cannot be read: DatasetIndex.page_tokens must be a whole number, got 'many'",
            id="a wrong number",
        ),
    ],
)
def test_a_damaged_dataset_is_refused_by_name(store, key, damage, sentence) -> None:
    write_dataset(store, [a_page(number) for number in range(20)])
    if damage is None:
        store.delete(key)
    else:
        store.write(key, damage(store.read(key)))
    with pytest.raises(DatasetError) as caught:
        read_split(store, "train")
    assert sentence in str(caught.value)
    assert store.uri in str(caught.value)


def test_a_line_that_is_no_page_is_named(store) -> None:
    write_dataset(store, [a_page(0)])
    index = read_index(store)
    lines = gzip.decompress(store.read("train.jsonl.gz")) + b'{"id": "p1"}\n'
    store.write("train.jsonl.gz", gzip.compress(lines))
    import hashlib

    write_index(store, replace(index, digests={"train": hashlib.sha256(lines).hexdigest()}))
    with pytest.raises(DatasetError, match=r"train\.jsonl\.gz of .*, line 2, is not a page: Page\.site must be given"):
        read_split(store, "train")


def test_a_split_that_was_not_asked_for_is_named(store) -> None:
    write_dataset(store, [a_page()])
    with pytest.raises(DatasetError) as caught:
        read_split(store, "test")
    assert str(caught.value) == f"the dataset {store.uri} has no split 'test', only train"


@pytest.mark.parametrize(
    ("limits", "max_length_tokens", "limit"),
    [
        pytest.param({}, 64, 7, id="of all attributes"),
        pytest.param({"name": 40}, 64, 40, id="of its own attribute"),
        pytest.param({"sku": 40}, 64, 7, id="not of another attribute"),
        pytest.param({"name": 40}, 20, 15, id="what its prompt leaves"),
    ],
)
def test_an_answer_may_take_as_many_tokens_as_the_limit(store, limits, max_length_tokens, limit) -> None:
    write_dataset(store, [a_page()])
    index = replace(
        read_index(store), answer_tokens=limits, longest_answer_tokens=7, max_length_tokens=max_length_tokens
    )
    page = a_page()
    assert index.limit_of(page, page.questions[0]) == limit
