"""A headless Chromium for tests that click: the one that is here, or that `make browser` brought."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import browser as browsers

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of a worker; where there is none they are skipped."""
    program = browsers.find()
    if program is None:
        pytest.skip("the report's page is looked at with a browser, and there is none here: `make browser`")
    with sync_playwright() as playwright:
        # As root, and in containers, Chromium has no sandbox; it opens nothing but our pages.
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def contexts(chromium: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes contexts (windows with their own settings), closed at the end."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        made.append(chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        return made[-1]

    yield make
    for context in made:
        context.close()


@pytest.fixture
def open_page(contexts: Callable[..., BrowserContext], tmp_path: Path) -> Iterator[Open]:
    """Opens a page as a file and waits for its charts.

    At the end nothing may have been asked of a network, and nothing said on the console.
    """
    asked: list[str] = []
    complaints: list[str] = []
    file = tmp_path / "index.html"

    def open_(text: str, **options: Any) -> Page:
        file.write_text(text)
        page = contexts(**options).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    yield open_
    assert {*asked} == {file.as_uri()}
    assert complaints == []
