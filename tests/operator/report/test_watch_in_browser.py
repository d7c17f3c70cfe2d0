"""What `finetune-study watch` shows in a browser, through news and through a restart of the command."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import BrowserContext, expect

from study_operator.laptop.watch import Board, serve

PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.slow


class Pages:
    """A source whose page is what it was made with, or what a test shows on its board."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.board: Board | None = None

    def follow(self, board: Board, is_over: threading.Event) -> None:
        self.board = board
        self.show(self.text)
        is_over.wait()

    def show(self, text: str) -> None:
        assert self.board is not None
        self.board.show(f"<!doctype html><title>page</title><p id=text>{text}</p>".encode())


@contextmanager
def serving(source: Pages, port: int) -> Iterator[int]:
    """Serve a source in a thread, as the command does, and give its port."""
    is_over, is_served, sentences = threading.Event(), threading.Event(), list[str]()

    def say(sentence: str) -> None:
        sentences.append(sentence)
        is_served.set()

    thread = threading.Thread(target=serve, args=(source, port, say, is_over))
    thread.start()
    try:
        assert is_served.wait(PATIENCE_SECONDS)
        found = re.search(r":(\d+)/", sentences[0])
        assert found is not None
        yield int(found[1])
    finally:
        is_over.set()
        thread.join(PATIENCE_SECONDS)


def test_the_page_shows_its_news_and_after_a_restart_what_the_other_command_shows(
    contexts: Callable[..., BrowserContext],
) -> None:
    page = contexts().new_page()
    text, news = page.frame_locator("#report").locator("#text"), page.locator("#news")
    one = Pages("one <study>", "first")
    with serving(one, 0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        expect(text).to_have_text("first")
        expect(news).to_have_text("one <study>: up to date")
        one.show("second")
        expect(text).to_have_text("second")
        expect(news).to_contain_text("last news at")
    expect(news).to_contain_text("the command has ended")
    expect(text).to_have_text("second")
    # As many pieces of news as before, of another study.
    with serving(Pages("other", "third"), port):
        expect(text).to_have_text("third", timeout=1000 * PATIENCE_SECONDS)
        expect(news).to_have_text("other: up to date")
