"""How fast pages are read, and how many of their values survive the cut to a token budget.

    PYTHONPATH=operator:trainer python benchmarks/documents.py --model .cache/smollm2-135m-instruct

Prints Markdown tables for the two page sets in `manifests/samples/data`. Speeds are pages a second of one core. A
value counts as visible when the answer to train on can be derived from the page's whole text, and as kept when it
still can from the cut text. The column "target" counts every label with an answer to train on in the cut text, those
that stand only in the address included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trial_trainer.pages import answers, confirm, documents, rules
from trial_trainer.pages.html import Skip

DATA = Path(__file__).resolve().parent.parent / "manifests" / "samples" / "data"
PAGE_SETS = ("wcxb-product-pages", "zyte-product-pages")
ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating")
BUDGETS_TOKENS = (200, 256, 320, 400, 512, 1024)
TARGET_BUDGET_TOKENS = 400
FIRST_KEPT = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


def main() -> None:
    """Read both page sets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/smollm2-135m-instruct", help="folder of the tokenizer")
    count_tokens = load_counter(parser.parse_args().model)

    print("| pages | n | lines | lines, labels and rules | the same, read anew for each | cut to 400 | tokens at 400 |")
    print("|---|---|---|---|---|---|---|")
    kept_by_set = {}
    for name in PAGE_SETS:
        pages = read_pages(name)
        found, extract_seconds = timed(lambda p: documents.extract(p["html"], url=p["url"]), pages)
        readable = [(p, d) for p, d in zip(pages, found, strict=True) if not isinstance(d, Skip)]
        texts, cut_seconds = timed(lambda pair: pair[1].cut(400, count_tokens), readable)
        tokens = sum(count_tokens(texts)) / len(texts)
        once, once_seconds = timed(ask, pages)
        thrice, thrice_seconds = timed(ask_anew, pages)
        assert once == thrice
        seconds = (extract_seconds, once_seconds, thrice_seconds)
        rates = " | ".join(f"{len(pages) / spent:.0f}" for spent in seconds)
        print(f"| {name} | {len(pages)} | {rates} | {len(texts) / cut_seconds:.0f} | {tokens:.0f} |")
        kept_by_set[name] = count_kept(readable, count_tokens)

    for name, kept in kept_by_set.items():
        print(f"\n{name}: labelled values, those visible in the whole page, and the share of these kept\n")
        kept_columns = "".join(f" kept at {budget} |" for budget in BUDGETS_TOKENS)
        print(f"| attribute | labelled | visible | target at {TARGET_BUDGET_TOKENS} |{kept_columns}")
        print("|---|---|---|---|" + "---|" * len(BUDGETS_TOKENS))
        total = [sum(row[i] for row in kept.values()) for i in range(FIRST_KEPT + len(BUDGETS_TOKENS))]
        for attribute, row in [*kept.items(), ("all", total)]:
            shares = "".join(f" {100 * count / max(1, row[1]):.1f} % |" for count in row[FIRST_KEPT:])
            print(f"| {attribute} | {row[0]} | {row[1]} | {row[2]} |{shares}")


def load_counter(folder: str) -> documents.CountTokens:
    """Load a tokenizer and return the function that counts the tokens of texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def read_pages(name: str) -> list[dict[str, Any]]:
    """Read one of the sample page sets."""
    with gzip.open(DATA / name / "pages.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def timed(work: Callable[[Item], Result], items: Sequence[Item]) -> tuple[list[Result], float]:
    """Do some work on each item and return the results with their processor seconds."""
    start = time.process_time()
    results = [work(item) for item in items]
    return results, time.process_time() - start


def ask(page: dict[str, Any]) -> tuple[Any, ...]:
    """Ask a page for its lines, its labels and what rules find, as `prepare` does."""
    read = documents.read_page(page["html"], url=page["url"])
    assert not isinstance(read, Skip)
    return (
        read.document,
        confirm.confirm(page["markup"], read.facts, page["url"]),
        rules.extract(read.facts, page["url"]),
    )


def ask_anew(page: dict[str, Any]) -> tuple[Any, ...]:
    """Ask a page the same three things, and parse and walk it for each."""
    return (
        documents.extract(page["html"], url=page["url"]),
        confirm.confirm(page["markup"], read_facts(page), page["url"]),
        rules.extract(read_facts(page), page["url"]),
    )


def read_facts(page: dict[str, Any]) -> documents.Facts:
    """Read what a page says of itself."""
    read = documents.read_page(page["html"])
    assert not isinstance(read, Skip)
    return read.facts


def labels_of(page: dict[str, Any], attribute: str) -> Sequence[str]:
    """The accepted values of a page's attribute: hand-made where there are any, else its markup's."""
    accepted: Sequence[str] = page["labels"].get(attribute) or []
    markup = page["markup"].get(attribute)
    return accepted or ([markup] if markup else [])


def count_kept(
    readable: Sequence[tuple[dict[str, Any], documents.Document]], count_tokens: documents.CountTokens
) -> dict[str, list[int]]:
    """Count for each attribute: labelled values, visible ones, targets in the cut, and kept ones for each budget."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (FIRST_KEPT + len(BUDGETS_TOKENS)))
    for page, document in readable:
        facts = read_facts(page)
        cuts = [document.cut(budget, count_tokens) for budget in BUDGETS_TOKENS]
        for attribute in ATTRIBUTES:
            accepted = labels_of(page, attribute)
            if not accepted:
                continue
            row = rows[attribute]
            row[0] += 1
            row[2] += is_derivable(attribute, accepted, cuts[BUDGETS_TOKENS.index(TARGET_BUDGET_TOKENS)])
            if not is_derivable(attribute, accepted, facts.text):
                continue
            row[1] += 1
            for position, text in enumerate(cuts):
                row[FIRST_KEPT + position] += is_derivable(attribute, accepted, text)
    return {attribute: rows[attribute] for attribute in ATTRIBUTES}


def is_derivable(attribute: str, accepted: Sequence[str], text: str) -> bool:
    """Say whether an answer to train on can be derived from the text for any accepted value."""
    return any(answers.target(attribute, value, text) is not None for value in accepted)


if __name__ == "__main__":
    main()
