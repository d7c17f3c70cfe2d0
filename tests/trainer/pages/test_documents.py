"""Pages become short texts that keep their values, and a page that cannot be read is a named skip."""

import gzip
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trial_trainer.pages import documents, markup, rules
from trial_trainer.pages.documents import Document, Facts, extract, read_page
from trial_trainer.pages.html import MAX_PAGE_BYTES, Skip

REPOSITORY = Path(__file__).resolve().parents[3]
LONG_ENOUGH = "A paragraph that is long enough to be the text of a page."


def count_words(texts: list[str]) -> list[int]:
    """A tokenizer that takes every word, sign and line break for a token."""
    return [len(text.replace("\n", " \n ").split(" ")) for text in texts]


def read(body: str, *, url: str | None = None, head: str = "") -> Document:
    """Read a page that must be readable."""
    document = extract(f"<html><head>{head}</head><body>{body}<hr><p>{LONG_ENOUGH}</p></body></html>", url=url)
    assert isinstance(document, Document)
    return document


def inspect(html: bytes | str) -> Facts | Skip:
    page = read_page(html)
    return page if isinstance(page, Skip) else page.facts


def lines_of(body: str, *, url: str | None = None, head: str = "") -> list[str]:
    return [line.text for line in read(body, url=url, head=head).lines if line.text != LONG_ENOUGH]


def score_of(document: Document, text: str) -> float:
    return next(line.score for line in document.lines if line.text == text)


# Pages that cannot be read -------------------------------------------------------------------------------------------

BAD_PAGES: dict[str, tuple[bytes | str, Skip]] = {
    "no byte": (b"", Skip.EMPTY),
    "no character": ("", Skip.EMPTY),
    "white space": (b" \n\t ", Skip.EMPTY),
    "NUL bytes alone": (b"\x00" * 1000, Skip.EMPTY),
    "elements without text": ("<html><body><div></div></body></html>", Skip.EMPTY),
    "a title and no body": ("<html><head><title>Shoes</title></head></html>", Skip.EMPTY),
    "one comment": ("<!-- nothing here -->", Skip.EMPTY),
    "an unfinished tag": ("<div", Skip.EMPTY),
    "plain text": (LONG_ENOUGH, Skip.BROKEN),
    "a JSON body": ('{"error": "not found", "status": 404, "message": "no such product here"}', Skip.BROKEN),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, Skip.BINARY),
    "a JPEG": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40, Skip.BINARY),
    "a PDF": (b"%PDF-1.7\n" + b"<p>text</p>" * 100, Skip.BINARY),
    "a gzip that nobody unpacked": (gzip.compress(b"<p>text</p>" * 100), Skip.BINARY),
    "bytes without meaning": (bytes(range(256)) * 100, Skip.BINARY),
    "fifty megabytes": (b"<p>x</p>" * (MAX_PAGE_BYTES // 8), Skip.TOO_LARGE),
    "an application shell": (
        '<html><head><script src="app.js"></script></head><body><div id="root"></div></body></html>',
        Skip.JAVASCRIPT_ONLY,
    ),
    "a plea for JavaScript": (
        "<body><noscript>Please enable JavaScript to see this shop, it needs it very much.</noscript></body>",
        Skip.JAVASCRIPT_ONLY,
    ),
}


@pytest.mark.parametrize(("page", "reason"), BAD_PAGES.values(), ids=BAD_PAGES)
def test_a_page_that_cannot_be_read_is_a_named_skip(page: bytes | str, reason: Skip) -> None:
    assert extract(page, url="https://shop.example/p/1") is reason


@pytest.mark.parametrize(("page", "reason"), BAD_PAGES.values(), ids=BAD_PAGES)
def test_inspecting_a_page_that_cannot_be_read_raises_nothing(page: bytes | str, reason: Skip) -> None:
    facts = inspect(page)
    assert facts is reason or (not isinstance(facts, Skip) and facts.text == "")


ODD_PAGES: dict[str, bytes | str] = {
    "tags that never close": f"<html><body><div><p><b>{LONG_ENOUGH}<table><tr><td>",
    "tags that close nothing": f"</div></span></p>{LONG_ENOUGH}</body></body></html></html>",
    "NUL bytes between letters": f"<p>{LONG_ENOUGH}</p>".replace("a", "a\x00"),
    "lone surrogates": f"<p>{LONG_ENOUGH} \ud800 \udfff</p>",
    "bytes that are no UTF-8": b"<p>" + LONG_ENOUGH.encode() + b"\xff\xfe\xc3\x28</p>",
    "an encoding nobody knows": b'<meta charset="klingon"><p>' + LONG_ENOUGH.encode() + b"\xe9</p>",
    "an encoding that decodes no text": b'<meta charset="base64"><p>' + LONG_ENOUGH.encode() + b"\xe9</p>",
    "a hundred thousand nested elements": f"<p>{LONG_ENOUGH}</p>" + "<div>x" * 100_000,
    "a hundred thousand nested inline elements": f"<p>{LONG_ENOUGH}</p>" + "<b>x" * 100_000,
    "ten thousand nested microdata items": f"<p>{LONG_ENOUGH}</p>" + "<div itemprop=name itemscope>x" * 10_000,
    "five thousand attributes": "<p " + " ".join(f"a{i}=1" for i in range(5_000)) + f">{LONG_ENOUGH}</p>",
    "a line of a million characters": f"<p>{LONG_ENOUGH * 20_000}</p>",
    "a million digits": f"<h1>{LONG_ENOUGH}</h1><p>{'9' * 1_000_000}</p>",
    "processing instructions and doctypes": f"<?xml version='1.0'?><!DOCTYPE html><?php echo ?><p>{LONG_ENOUGH}</p>",
    "text only below the deepest level a tree may have": "<div>" * 100_000 + LONG_ENOUGH,
    "one level more than a tree may have": "<span>" * 2_047 + LONG_ENOUGH,
    "a script below the deepest level": "<div>" * 3_000 + f"<script>x</script><svg><b>y</b></svg>{LONG_ENOUGH}",
    "thousands of attributes below the deepest level": "<c:x>" * 3_000 + f"<p {'a=1 b:c=2 ' * 3_000}>{LONG_ENOUGH}",
    "ten thousand attributes": "<p " + " ".join(f"a{i}=1" for i in range(10_000)) + f">{LONG_ENOUGH}</p>",
    "a body hidden until its script runs": f'<body style="display:none"><h1>{LONG_ENOUGH}</h1></body>',
}


@pytest.mark.parametrize("page", ODD_PAGES.values(), ids=ODD_PAGES)
def test_a_page_in_disorder_is_read_all_the_same(page: bytes | str) -> None:
    document = extract(page, url=None)
    assert isinstance(document, Document)
    assert "long enough" in document.text
    assert not isinstance(inspect(page), Skip)


@pytest.mark.parametrize("tag", ["div", "span", "font", "table"])
@pytest.mark.parametrize("levels", [1_500, 3_000, 50_000])
def test_values_below_any_number_of_levels_stand_on_lines_of_their_own(levels: int, tag: str) -> None:
    deep = f"<p>Brand: Acme</p><div class=price>$19.99</div><script>var x</script><p>{LONG_ENOUGH}</p>"
    lines = lines_of(f"<h1>Blue chair</h1>{f'<{tag}>' * levels}{deep}{f'</{tag}>' * levels}<p>after</p>")
    assert lines == ["# Blue chair", "Brand: Acme", "price: $19.99", "after"]


def test_markup_below_the_deepest_level_is_read() -> None:
    script = '<script type="application/ld+json">{"@type": "Product"}</script>'
    facts = inspect("<div>" * 5_000 + f"<h1>Blue chair</h1><b itemprop=sku>A1</b>{script}{LONG_ENOUGH}")
    assert not isinstance(facts, Skip)
    assert (facts.heading, facts.nodes[0].values["sku"], facts.json_ld) == (
        "Blue chair",
        ["A1"],
        ('{"@type": "Product"}',),
    )


@pytest.mark.parametrize(
    ("printed", "seen"),
    [
        ("Wasser\xadkocher", "Wasserkocher"),
        ("Wasser&shy;kocher", "Wasserkocher"),
        ("Wasser<wbr>kocher", "Wasserkocher"),
        ("1&#8203;299&#x2060; kr", "1299 kr"),
        ("\u200eAcme\u200f \u202aX1\u202c \u2068A\u2069", "Acme X1 A"),
        ("\ufeffAcme\u200d", "Acme"),
        ("a\u200cb", "ab"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("👩\u200d🔧 tools", "👩\u200d🔧 tools"),
        ("a&#0;b &#xD800; &#1;c", "a\ufffdb \ufffd c"),
        ("&#150; &#128;9 &bogus; &nbsp;x &#;", "– €9 &bogus; x &#;"),
    ],
)
def test_lines_hold_what_a_reader_sees(printed: str, seen: str) -> None:
    assert lines_of(f"<h1>{printed}</h1>") == [f"# {seen}"]
    facts = inspect(f"<h1>{printed}</h1><i itemprop=name>{printed}</i><b>{LONG_ENOUGH}</b>")
    assert not isinstance(facts, Skip)
    assert (facts.heading, facts.nodes[0].values["name"]) == (seen, [seen])


SLOW_PAGES: dict[str, Callable[[int], str]] = {
    "digits": lambda n: f"<p>{'9' * n}</p>",
    "digits and commas": lambda n: f"<p>{'1,' * (n // 2)}</p>",
    "ratings": lambda n: f"<p>{'4.5 ' * (n // 4)}</p>",
    "links that never end": lambda n: "<link" * (n // 5),
    "attributes": lambda n: f"<p {' '.join(f'a{i}=1' for i in range(n // 8))}>x</p>",
    "lines below many inline elements": lambda n: "<b>" * 900 + "x<br>" * (n // 5),
    "blocks below many tables": lambda n: "<table><tr><td>x" * 300 + "<p>y</p>" * (n // 8),
    "levels": lambda n: "<div>x" * (n // 6),
}


@pytest.mark.parametrize("make", SLOW_PAGES.values(), ids=SLOW_PAGES)
def test_reading_a_page_takes_time_by_length_and_not_by_its_square(make: Callable[[int], str]) -> None:
    def seconds(length: int) -> float:
        page = f"<h1>{LONG_ENOUGH}</h1>{make(length)}"
        started = time.process_time()
        extract(page)
        inspect(page)
        return time.process_time() - started

    # Eight times as long is 64 times as slow where time goes by the square.
    least = min(seconds(50_000) for _ in range(3))
    assert min(seconds(400_000) for _ in range(2)) < 32 * max(least, 0.005)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("cp1252", ""),
        ("iso-8859-2", "iso-8859-2"),
        ("windows-1250", "windows-1250"),
    ],
)
def test_a_page_is_decoded_whatever_its_encoding(encoding: str, declared: str) -> None:
    meta = f'<meta charset="{declared}">' if declared else ""
    html = (
        f"<html><head>{meta}</head><body><h1>Große Schüssel für Spätzle und Klöße</h1><p>Fünf Größen</p></body></html>"
    )
    document = extract(html.encode(encoding))
    assert isinstance(document, Document)
    assert "Große Schüssel für Spätzle und Klöße" in document.text


@given(st.one_of(st.binary(max_size=400), st.text(max_size=400)))
def test_no_page_raises(page: bytes | str) -> None:
    assert isinstance(extract(page, url="https://shop.example/p"), Document | Skip)
    inspect(page)


MARKUP_PIECES = st.sampled_from(
    [
        *("<div>", "</div>", "<h1>", "</h1>", "<a>", "</a>", "<br>", "<!-- x -->", "<script>", "</script>", "<title>"),
        *("<table>", "<tr>", "<td>", "</td>", "</tr>", "</table>", "<dl>", "<dt>", "<dd>", "</dl>", "<del>", "</del>"),
        *("<sup>", "</sup>", "<nav>", "</nav>", "<body>", "</html>", "</title>", "<?x?>", "]]>", "<![CDATA["),
        *('<span class="price">', '<i itemprop="sku">', '<img alt="x" class="brand">', "<p hidden>", "&nbsp;"),
        *("&#0;", "&#xD800;", "$19.99", "€1", "Brand:", "4.5", "12", "In stock", " ", "reviews", "old", "٣"),
    ]
)


@given(st.lists(MARKUP_PIECES, max_size=60).map("".join), st.integers(0, 80), st.text(max_size=30))
def test_no_order_of_tags_raises_or_exceeds_the_budget(page: str, max_tokens: int, url: str) -> None:
    document = extract(page, url=url)
    inspect(page)
    if isinstance(document, Document):
        text = document.cut(max_tokens, count_words)
        assert not text or count_words([text])[0] <= max_tokens


def test_a_page_answers_all_questions_alike_in_any_order() -> None:
    item = '<div itemscope itemtype="https://schema.org/Product" itemid="#1"><b itemprop="name">Blue chair</b></div>'
    offer = '<div itemscope itemtype="https://schema.org/Offer"><i itemprop="price">9.99</i>'
    html = (
        f'<h1>Blue chair</h1>{item}{offer}<link itemprop="itemOffered" href="#1"></div><p>Brand</p><p>Acme</p>'
        f'<div itemscope itemid="#1"><i itemprop="sku">A1</i></div><p>{LONG_ENOUGH}</p>'
    )

    def ask(page: documents.Page, questions: Sequence[str]) -> dict[str, Any]:
        ways: dict[str, Callable[[], Any]] = {
            "lines": lambda: page.document,
            "labels": lambda: markup.labels_of(page.facts),
            "rules": lambda: rules.extract(page.facts),
        }
        return {question: ways[question]() for question in questions}

    alone = {}
    for question in ("lines", "labels", "rules"):
        page = read_page(html)
        assert not isinstance(page, Skip)
        alone |= ask(page, [question])
    assert alone["labels"]["sku"] == alone["rules"]["sku"] == "A1"
    for order in permutations(alone):
        page = read_page(html)
        assert not isinstance(page, Skip)
        assert ask(page, order) == alone
        assert ask(page, order) == alone


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        "<html><body><h1>Blue chair</h1></body></html>{}",
        "<html><head></head></html><body><h1>Blue chair</h1>{}</body>",
        "<html><body><h1>Blue chair</h1></body></HTML >\n<html><body>{}</body></html>",
    ],
    ids=["after the end", "an end too early", "two pages in one"],
)
def test_what_stands_after_the_end_of_a_page_is_read(page: str) -> None:
    facts = inspect(page.format('<script type="application/ld+json">{}</script><p>$19.99</p>'))
    assert not isinstance(facts, Skip)
    assert (facts.heading, facts.text, facts.json_ld) == ("Blue chair", "Blue chair\n$19.99", ("{}",))


def test_a_form_feed_divides_words() -> None:
    assert f"Price:\f$19.99 {LONG_ENOUGH}".replace("\f", " ") in lines_of(f"<p>Price:\f$19.99 {LONG_ENOUGH}</p>")


def test_the_heading_is_marked_and_kept_first_of_all() -> None:
    document = read("<h1>Blue chair</h1><p>It is blue.</p>")
    assert document.cut(6, count_words) == "# Blue chair"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("<table><tr><th>Brand</th><td>Acme</td></tr></table>", "Brand: Acme"),
        ("<table><tr><td>S</td><td>M</td><td>L</td></tr></table>", "S | M | L"),
        ("<dl><dt>Item no.</dt><dd>12-345</dd></dl>", "Item no.: 12-345"),
        ("<dl><dt>Marke:</dt><dd>Acme</dd></dl>", "Marke: Acme"),
        ("<div>SKU</div><div>12-345</div>", "SKU: 12-345"),
        ("<div>Anything:</div><div>goes</div>", "Anything: goes"),
        ("<p><span>1.299</span><span>,00</span> €</p>", "1.299,00 €"),
        ("<p>$12<sup>99</sup></p>", "$12.99"),
        ("<p><span>Code</span><b>A12</b> in blue</p>", "Code A12 in blue"),
        ("one<br>two", "two"),
        ('<span class="product-price">12,50</span>', "price: 12,50"),
        ('<span itemprop="brand">Acme</span>', "brand: Acme"),
        ('<span class="sku">A-77</span>', "sku: A-77"),
        ('<div class="brand-logo"><img alt="Acme"></div>', "brand: Acme"),
        ('<div class="stars" aria-label="4.5 out of 5 stars"><i></i></div>', "rating: 4.5 out of 5 stars"),
    ],
)
def test_values_stand_on_one_line_with_what_they_are(body: str, line: str) -> None:
    assert line in lines_of(f"<h1>Blue chair</h1>{body}")


def test_a_bare_number_beside_the_word_reviews_is_a_rating() -> None:
    assert "rating: 4.9" in lines_of("<h1>Chair</h1><h2>Customer Reviews</h2><div>4.9</div><div>358 ratings</div>")


def test_a_struck_price_is_called_old_when_another_stands_by_it() -> None:
    prices = '<div class="price"><del>$20.00</del> <ins>$15.00</ins></div>'
    lines = lines_of(f"<h1>Chair</h1>{prices}")
    assert "old price: $20.00" in lines
    assert "price: $15.00" in lines


def test_a_price_that_stands_alone_is_not_called_old_whatever_its_class() -> None:
    assert "price: $20.00" in lines_of('<h1>Chair</h1><div class="price list-price">$20.00</div>')


def test_scripts_styles_and_hidden_elements_say_nothing() -> None:
    body = (
        "<script>var a</script><style>.a{}</style><p hidden>h</p><p style='display: none'>n</p><template>t</template>"
    )
    assert lines_of(f"<h1>Chair</h1>{body}") == ["# Chair"]


def test_what_stands_in_menus_and_footers_counts_less_than_in_the_page() -> None:
    document = read("<h1>Chair</h1><div>Oak wood</div><footer>Our sites</footer><div class='related-items'>Table</div>")
    assert score_of(document, "Oak wood") > 2 * score_of(document, "Our sites")
    assert score_of(document, "Oak wood") > 2 * score_of(document, "Table")


def test_a_container_named_like_a_menu_counts_in_full_when_it_holds_the_heading() -> None:
    inside = read("<div class='search-page'><h1>Chair</h1><div>Oak wood</div></div>")
    outside = read("<div class='product'><h1>Chair</h1><div>Oak wood</div></div>")
    assert score_of(inside, "Oak wood") == score_of(outside, "Oak wood")


def test_the_first_price_after_the_heading_leads_the_later_ones() -> None:
    document = read("<h1>Chair</h1><p>$10</p>" + "".join(f"<p>${n}.99</p>" for n in range(20, 40)))
    assert score_of(document, "$10") == max(line.score for line in document.lines if "$" in line.text)


def test_a_line_said_twice_is_kept_once() -> None:
    assert lines_of("<h1>Chair</h1><p>Oak</p><p>Oak</p><p>OAK</p>").count("Oak") == 1


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("https://www.shop.example/p/12345", "shop.example/p/12345"),
        ("https://shop.example/p?sku=A-1234&utm_campaign=spring2024&page=1", "shop.example/p?sku=A-1234"),
        ("https://shop.example/a/b/c/d/e", "shop.example/c/d/e"),
        ("https://shop.example/a-slug-of-very-many-words-that-repeat-the-name-98765", "shop.example/…t-the-name-98765"),
        ("https://shop.example/caf%C3%A9", "shop.example/café"),
    ],
)
def test_the_address_comes_first_and_short(url: str, line: str) -> None:
    assert lines_of("<h1>Chair</h1>", url=url)[0] == line


@pytest.mark.parametrize("url", ["http://[", "::::", "", "\x00", "http://a\ud800b/"])
def test_an_address_that_is_none_does_no_harm(url: str) -> None:
    assert "# Chair" in lines_of("<h1>Chair</h1>", url=url)


def test_the_title_does_not_repeat_the_heading() -> None:
    assert lines_of("<h1>Blue chair</h1>", head="<title>Blue chair | Acme Shop</title>") == [
        "Acme Shop",
        "# Blue chair",
    ]


def test_without_a_heading_the_line_that_begins_the_title_is_the_heading() -> None:
    lines = lines_of("<div>Menu</div><div>Blue chair</div>", head="<title>Blue chair - Shop</title>")
    assert "# Blue chair" in lines


def test_a_cut_keeps_the_order_of_the_page() -> None:
    document = read("<p>Sale</p><h1>Chair</h1><p>Oak wood</p><p>$10</p><p>SKU: 77</p>")
    kept = document.cut(12, count_words).split("\n")
    assert kept == [line.text for line in document.lines if line.text in kept]
    assert {"# Chair", "$10", "SKU: 77"} <= set(kept)


def test_a_larger_budget_never_loses_the_best_lines() -> None:
    document = read("<h1>Chair</h1>" + "".join(f"<p>Line number {n} of the page</p>" for n in range(200)))
    assert all("# Chair" in document.cut(budget, count_words) for budget in range(4, 200, 7))


def test_a_cut_of_no_tokens_is_empty() -> None:
    assert read("<h1>Chair</h1>").cut(0, count_words) == ""


def test_the_same_page_gives_the_same_text() -> None:
    page = read_pages("wcxb-product-pages")[3]
    texts = {extract(page["html"], url=page["url"]).cut(200, count_words) for _ in range(3)}  # type: ignore[union-attr]
    assert len(texts) == 1


# Real pages ----------------------------------------------------------------------------------------------------------


def read_pages(name: str) -> list[dict[str, Any]]:
    path = REPOSITORY / "manifests" / "samples" / "data" / name / "pages.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("documents_benchmark", REPOSITORY / "benchmarks" / "documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_like_a_tokenizer(texts: list[str]) -> list[int]:
    """Count three characters a token, one for each that is not plain: no tokenizer of the demo counts more."""
    return [1 + sum(3 if character > "\x7f" else 1 for character in text) // 3 for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wcxb-product-pages", "zyte-product-pages"])
def test_nine_of_ten_visible_values_survive_the_cut_to_512_tokens(name: str) -> None:
    benchmark = load_benchmark()
    pages = read_pages(name)[::2]
    readable = [(p, d) for p in pages if isinstance(d := extract(p["html"], url=p["url"]), Document)]
    assert len(readable) >= len(pages) - 1
    kept = benchmark.count_kept(readable, count_like_a_tokenizer)
    column = benchmark.FIRST_KEPT + benchmark.BUDGETS_TOKENS.index(512)
    visible = sum(row[1] for row in kept.values())
    assert visible > 100
    assert sum(row[column] for row in kept.values()) >= 0.9 * visible
