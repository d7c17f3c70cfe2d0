"""The report's page in a headless Chromium: sorted, filtered, darkened and printed by clicking."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from builders.report_pages import a_report_that_holds
from builders.some_studies import a_report, a_trial, measured, some_examples
from study_operator.ledger.failures import Cell, Failures, Mark
from study_operator.ledger.trial import TrialState
from study_operator.optimizer.reading import Importance, ModelReading, Share, Slice, SlicePoint
from study_operator.report.charts import LossCurve
from study_operator.report.page import render_page

pytestmark = pytest.mark.slow

RATES = (0.001, 0.01, 0.0001, 0.002, 0.02)
TRIALS = (
    measured(measured(a_trial(0, arm={"learning_rate": RATES[0], "rank": 8}), 0.40), 0.48, rung=1),
    measured(a_trial(1, arm={"learning_rate": RATES[1], "rank": 16}), 0.05),
    measured(measured(a_trial(2, arm={"learning_rate": RATES[2], "rank": 32}), 0.44), 0.55, rung=1),
    a_trial(3, arm={"learning_rate": RATES[3], "rank": 128}, state=TrialState.ABANDONED, message="out of memory"),
    measured(a_trial(4, arm={"learning_rate": RATES[4], "rank": 64}), 0.10),
)
LOSSES = tuple(LossCurve(trial=f"t{i:03d}", points=((1, 3.0), (12, 1.5 + i), (24, 0.5 + i))) for i in (0, 1, 2, 4))
PAGE = render_page(a_report(trials=TRIALS), LOSSES)
RANKED = ["t002", "t000", "t004", "t001", "t003"]


def trials(page: Page) -> list[str]:
    """Return the trials of the leaderboard that are shown, from top to bottom."""
    rows = page.locator("#leaderboard tbody tr:visible")
    return [name or "" for name in rows.evaluate_all("rows => rows.map(row => row.dataset.trial)")]


def head(page: Page, name: str):
    """Return one head of the leaderboard's columns."""
    return page.locator("#leaderboard thead th").filter(has=page.get_by_role("button", name=name, exact=True))


def test_every_chart_is_drawn(open_page) -> None:
    page = open_page(PAGE)
    charts = page.locator(".chart")
    assert charts.count() == 7
    for chart in charts.all():
        assert chart.locator("svg .mark-symbol path, svg .mark-line path, svg .mark-rect path").count() > 0
        assert chart.bounding_box()["height"] > 60
    expect(page.get_by_text("All values stand in tables.")).to_be_hidden()
    assert page.locator("[data-chart=arms] svg text").filter(has_text=re.compile("^t00[0124]$")).count() == 4


def test_a_click_on_a_head_sorts_up_then_down_then_as_it_was(open_page) -> None:
    page = open_page(PAGE)
    assert trials(page) == RANKED
    column = head(page, "learning_rate")
    for direction, order in (
        # Numbers by size, not by letters: 0.0001, 0.001, 0.002, 0.01, 0.02.
        ("ascending", ["t002", "t000", "t003", "t001", "t004"]),
        ("descending", ["t004", "t001", "t003", "t000", "t002"]),
        ("none", RANKED),
    ):
        column.get_by_role("button").click()
        assert trials(page) == order
        expect(column).to_have_attribute("aria-sort", direction)


def test_what_was_not_measured_stands_last_in_either_direction(open_page) -> None:
    page = open_page(PAGE)
    button = head(page, "accuracy full length").get_by_role("button")
    button.click()
    assert trials(page)[:2] == ["t000", "t002"]
    button.click()
    assert trials(page)[:2] == ["t002", "t000"]


def test_the_leaderboard_is_sorted_from_the_keyboard(open_page) -> None:
    page = open_page(PAGE)
    head(page, "accuracy early").get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert trials(page) == ["t001", "t004", "t000", "t002", "t003"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    # Two heads further to the right.
    page.keyboard.press("Space")
    expect(head(page, "learning_rate")).to_have_attribute("aria-sort", "ascending")
    expect(head(page, "accuracy early")).to_have_attribute("aria-sort", "none")


def test_the_leaderboard_is_filtered_by_text_and_by_state(open_page) -> None:
    page = open_page(PAGE)
    expect(page.locator("#count")).to_have_text("5 of 5 trials")
    page.get_by_label("Filter").fill("memory")
    assert trials(page) == ["t003"]
    expect(page.locator("#count")).to_have_text("1 of 5 trials")
    page.get_by_label("Filter").fill("")
    page.get_by_label("State").select_option("Completed")
    assert trials(page) == ["t002", "t000"]
    page.get_by_label("Filter").fill("baseline")
    assert trials(page) == ["t000"]
    page.get_by_label("Filter").fill("no such thing")
    assert trials(page) == []


def test_a_trial_that_is_picked_stands_out_in_the_charts(open_page) -> None:
    page = open_page(PAGE)
    lines = page.locator("[data-chart=losses] svg .mark-line path")
    before = lines.evaluate_all("all => all.map(path => path.getAttribute('opacity'))")
    assert len({*before}) == 1
    button = page.get_by_role("button", name="t004", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("tr.picked")).to_have_attribute("data-trial", "t004")
    expect(page.locator("[data-chart=losses] svg .mark-line path[opacity='0.12']")).to_have_count(3)
    button.click()
    expect(page.locator("[data-chart=losses] svg .mark-line path[opacity='0.12']")).to_have_count(0)


def test_a_click_on_an_attribute_shows_the_line_in_which_its_value_stands(open_page) -> None:
    page = open_page(
        render_page(a_report(trials=TRIALS), LOSSES, some_examples()), viewport={"width": 1200, "height": 300}
    )
    line = page.locator("mark")
    expect(line).not_to_be_in_viewport()
    page.locator("#pages").get_by_role("link", name="price").click()
    expect(line).to_be_in_viewport()
    right = page.locator("#pages td.right").first
    expect(right).to_contain_text("✓ 3,50 €")
    expect(right.get_by_label("right:")).to_be_visible()


COLOURS = """() => [
    getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.querySelector('[data-chart=arms] svg .mark-symbol path')).fill,
]"""


def test_the_page_is_dark_where_the_browser_is_and_by_clicking(open_page) -> None:
    page = open_page(PAGE)
    light = page.evaluate(COLOURS)
    assert light[0] == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(COLOURS)
    assert dark[0] != light[0] and dark[1] != light[1]
    button = page.locator("#theme")
    for name, colours in (("light", light), ("dark", dark), ("auto", dark)):
        button.click()
        expect(button).to_have_text(f"colours: {name}")
        assert page.evaluate(COLOURS) == colours


def test_print_is_light_and_without_what_only_a_screen_needs(open_page) -> None:
    page = open_page(PAGE, color_scheme="dark")
    for chosen in ("auto", "light", "dark"):
        expect(page.locator("#theme")).to_have_text(f"colours: {chosen}")
        page.emulate_media(media="print")
        assert page.evaluate(COLOURS)[0] == "rgb(255, 255, 255)"
        page.emulate_media(media="screen")
        page.locator("#theme").click()
    page.emulate_media(media="print")
    expect(page.locator(".bar")).to_be_hidden()
    # A paper's width, of which a long message takes no more than there is.
    page.set_viewport_size({"width": 760, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 760
    expect(page.locator("#tools")).to_be_hidden()
    expect(page.locator("[data-chart=arms] svg")).to_be_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def a_map(rank: float) -> list[Cell]:
    """Return the four places of one rank's map; the higher the rank, the less probable a failure."""
    return [
        Cell(rank=rank, learning_rate=r, alpha=a, probability=4 / rank, low=0.1, high=0.9, trials=1, failed=0)
        for r in (1e-4, 1e-2)
        for a in (16, 64)
    ]


FAILURES = Failures(
    trials=5,
    diverged=("t004",),
    gibberish=(),
    is_rank_stabilised=False,
    ranks=(8, 16, 64),
    cells=(*a_map(8), *a_map(16), *a_map(64)),
    marks=(
        Mark(trial="t000", rank=8, map_rank=8, learning_rate=1e-3, alpha=32, has_failed=False),
        Mark(trial="t001", rank=16, map_rank=16, learning_rate=1e-2, alpha=32, has_failed=False),
        Mark(trial="t004", rank=64, map_rank=64, learning_rate=1e-2, alpha=64, has_failed=True),
        Mark(trial="t002", rank=48, map_rank=64, learning_rate=1e-4, alpha=16, has_failed=False),
    ),
)


def test_the_map_of_failures_is_that_of_the_rank_that_is_chosen(open_page) -> None:
    page = open_page(render_page(a_report(trials=TRIALS, failures=FAILURES)))
    chart = page.locator("[data-chart=failures]")
    expect(chart.locator("svg .mark-rect path")).to_have_count(4)
    expect(chart.locator("svg .mark-text text").filter(has_text="25%")).to_have_count(4)
    expect(chart.locator("svg .role-mark.mark-symbol path")).to_have_count(1)
    chart.get_by_label("64").check()
    expect(chart.locator("svg .mark-text text").filter(has_text="6%")).to_have_count(4)
    expect(chart.locator("svg .role-mark.mark-symbol path")).to_have_count(2)
    table = page.locator("#failures table")
    expect(table).to_be_hidden()
    page.locator("#failures summary").click()
    expect(table.locator("tr")).to_have_count(7)


SHARE = Share(value=0.7, low=0.6, high=0.8)
MODEL = ModelReading(
    measured=4,
    through={"learning_rate": 0.0001, "rank": 32},
    tau=0.6,
    p=0.01,
    knows=True,
    importances=(Importance(parameter="learning_rate", first=SHARE, total=SHARE),),
    slices=(
        Slice(
            parameter="learning_rate",
            points=tuple(SlicePoint(setting=s, value=0.3, low=0.2, high=0.4) for s in (1e-4, 1e-3, 1e-2)),
        ),
    ),
)


def test_a_slice_of_the_model_is_drawn_behind_the_measurements(open_page) -> None:
    page = open_page(render_page(a_report(trials=TRIALS, model=MODEL)))
    expect(page.locator("[data-chart=importance] svg .role-mark.mark-symbol path")).to_have_count(2)
    chart = page.locator("[data-chart=parameter-0]")
    for mark, count in (("area", 1), ("line", 1), ("symbol", 4)):
        expect(chart.locator(f"svg .role-mark.mark-{mark} path")).to_have_count(count)
    # Behind them: whoever rests on a measurement reads of it.
    chart.locator("svg .role-mark.mark-symbol path").first.hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("t000")
    figure = page.locator("figure").filter(has=chart)
    figure.locator("summary").click()
    expect(figure.get_by_text("20.0 % to 40.0 %")).to_have_count(3)


def test_on_a_phone_nothing_is_wider_than_its_screen(open_page) -> None:
    text = render_page(a_report(trials=TRIALS, failures=FAILURES, model=MODEL), LOSSES)
    page = open_page(text, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("[data-chart=arms] svg").bounding_box()["width"] <= 390
    # What is wider is moved in its own place.
    page.locator("#tools").scroll_into_view_if_needed()
    page.get_by_label("State").select_option("Completed")
    assert trials(page) == ["t002", "t000"]


def test_without_scripts_every_value_can_be_read(open_page) -> None:
    page = open_page(PAGE, java_script_enabled=False)
    expect(page.locator("#tools")).to_be_hidden()
    expect(page.locator("#leaderboard")).to_contain_text("out of memory")
    expect(page.get_by_text("All values stand in tables.")).to_be_visible()
    page.locator("summary").first.click()
    expect(page.locator("details table").first).to_be_visible()


ATTACKS = (
    "</script><script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 1'>",
    "\"><svg onload='window.attacked = 1'>",
    "<!--<script>",
    "javascript:window.attacked=1//${window.attacked=1}{{window.attacked=1}}",
    "'];window.attacked=1;['",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_no_text_from_outside_runs(open_page, text: str) -> None:
    page = open_page(render_page(a_report_that_holds(text), LOSSES, some_examples(text)))
    expect(page.locator("mark")).to_have_text(f"only 3.50{text}")
    # All that a person can do: pick, sort, filter, rest on a mark.
    page.get_by_role("button", name="t000", exact=True).click()
    for button in page.locator("#leaderboard thead button").all():
        button.click()
    page.get_by_label("Filter").fill(text)
    page.get_by_label("Filter").fill("")
    page.locator("[data-chart=arms] svg .mark-symbol path").first.hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text(text)
    assert page.evaluate("window.attacked") is None
    assert page.locator("img, main script, svg svg").count() == 0


def test_the_policy_refuses_a_script_and_a_request_that_got_in_all_the_same(chromium: Browser, tmp_path) -> None:
    file = tmp_path / "index.html"
    file.write_text(PAGE)
    page = chromium.new_page()
    try:
        page.goto(file.as_uri())
        page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.attacked = 1";
            document.body.append(script);
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.attacked = 1");
            image.src = "data:,";
            document.body.append(image);
        }""")
        refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => '', error => error.message)")
        assert refused == "Failed to fetch"
        assert page.evaluate("window.attacked") is None
        policies = page.evaluate("""() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            fetch("http://127.0.0.1:9/").catch(() => {});
        })""")
        assert policies == "connect-src"
    finally:
        page.close()


def test_a_study_that_has_just_begun_has_a_page_without_a_complaint(open_page) -> None:
    page = open_page(render_page(a_report(trials=(), winner=None, adapter=None, final_evaluation=None, summary=None)))
    expect(page.locator("main")).to_contain_text("No trial is measured yet.")
    expect(page.locator("#tools")).to_be_hidden()
