"""`finetune-study watch`: the report's page on loopback, which shows itself again whenever there is news.

A study that runs on this machine is read from its directory, whose changes the kernel tells; one on a cluster from its
bucket, where the operator keeps the page: a bucket tells nothing, so it is asked every few seconds whether the page is
still the same. The browser is told of news by server-sent events.

Only this machine is served, and only under its own names: a page of somebody else's that has its name resolve to
127.0.0.1 is refused by the Host header. The report stands in a frame of its own with the policy that it carries.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Protocol

from study_operator import names
from study_operator.laptop import session
from study_operator.laptop.file_news import follow_directory
from study_operator.laptop.session import ACCESS, Opened, UsageError
from study_operator.report.losses import KeptLosses
from study_operator.report.page import name_by_hash
from study_operator.report.write import render_whole_page
from study_operator.spec.study import Study
from trial_trainer.artifacts import ArtifactError, DirectoryStore, S3Store, open_store

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
PORT = 8137
POLL_SECONDS = 5.0
"""Between two questions to a bucket whether its page is still the same."""
LEAST_SECONDS = 2.0
"""Between two pages of a local study, whose status may change many times a second."""
SLOWEST_LOOK_SECONDS = 30.0
"""A local study is looked at so often at least: a directory on a network's disk tells nobody."""
HEARTBEAT_SECONDS = 15.0
"""Between two signs of life to a browser that has no news."""
MOST_BYTES = 32 * 1024 * 1024
"""Of a page in a bucket: ten times what the operator writes at most."""


class Board:
    """The page as it is now, and who waits for the next one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._page: bytes | None = None
        self._trouble = ""
        self._number = 0
        self._is_closed = False

    def show(self, page: bytes) -> None:
        """Take a page; one that is the same is no news, but for the end of a trouble."""
        with self._changed:
            if page != self._page or self._trouble:
                self._page, self._trouble = page, ""
                self._tell()

    def say_trouble(self, sentence: str) -> None:
        """Take a sentence on why there is no newer page; what stands stays."""
        with self._changed:
            if sentence != self._trouble:
                self._trouble = sentence
                self._tell()

    def close(self) -> None:
        """Send everybody home."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def read(self) -> bytes | None:
        """Return the page; None before the first."""
        with self._changed:
            return self._page

    def wait(self, seen: int, seconds: float) -> tuple[int, str] | None:
        """Return the number of the newest news and the trouble, once it is another than was seen; None at the end.

        Where the time is over first, what was seen is returned once more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._number != seen, seconds)
            return None if self._is_closed else (self._number, self._trouble)

    def _tell(self) -> None:
        self._number += 1
        self._changed.notify_all()


class Source(Protocol):
    """Where pages come from."""

    @property
    def name(self) -> str:
        """What is followed, for people."""
        ...

    def follow(self, board: Board, is_over: threading.Event) -> None:
        """Show each new page until it is over."""
        ...


class LocalSource:
    """A study that was run on this machine: its page is made anew with each change of its status."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._losses = KeptLosses()
        self.name = str(opened.workspace.directory)

    def follow(self, board: Board, is_over: threading.Event) -> None:
        with follow_directory(self._opened.workspace.directory) as news:
            status, last = self._opened.workspace.status.path, None
            while not is_over.is_set():
                try:
                    # A study that has just been accepted has no status yet, and a page of its own.
                    state = status.read_bytes() if status.exists() else b""
                    if state != last:
                        board.show(self._render())
                        last = state
                        is_over.wait(LEAST_SECONDS)
                except (UsageError, ArtifactError, OSError) as error:
                    # Shown again once it can be, also where nothing else has changed.
                    last = None
                    board.say_trouble(str(error))
                news.wait(SLOWEST_LOOK_SECONDS)

    def _render(self) -> bytes:
        seen = session.look(self._opened)
        return render_whole_page(seen.report, seen.artifacts, self._losses).encode()


class BucketSource:
    """A study of a cluster, or of anywhere: the page that the operator keeps under its prefix."""

    def __init__(self, store: DirectoryStore | S3Store, poll_seconds: float = POLL_SECONDS) -> None:
        self._store = store
        self._poll_seconds = poll_seconds
        self.name = store.uri

    def follow(self, board: Board, is_over: threading.Event) -> None:
        tag: str | None = None
        while not is_over.is_set():
            try:
                version = self._store.read_news(names.REPORT_PAGE, tag, MOST_BYTES)
                if version is not None:
                    tag = version.tag
                    board.show(version.data)
                elif tag is not None:
                    board.say_trouble("")
            except ArtifactError as error:
                board.say_trouble(str(error))
            is_over.wait(self._poll_seconds)


def find_source(opened: Opened) -> Source:
    """Return where the page of a manifest's study comes from: this machine, or else the bucket that it names.

    Raises:
        UsageError: where it was run nowhere that can be seen from here.
    """
    if opened.is_begun:
        # Once here, so that what is wrong is said on the command line.
        session.look(opened)
        return LocalSource(opened)
    if not session.may_be_for_pods(opened.study):
        where = opened.workspace.directory / "study.json"
        raise UsageError(f"the study {opened.study.name} must have been run here: there is no {where}")
    session.set_storage_environment(opened.study)
    with session.sentences():
        return BucketSource(open_store(_find_prefix(opened.study), ACCESS))


def open_prefix(uri: str) -> BucketSource:
    """Return the source of a study's prefix, or of a report in it, such as the status of a study names.

    Raises:
        UsageError: where no study lies there, or the bucket cannot be read.
    """
    prefix = re.sub(r"/report(/(report\.json|index\.html))?/?$", "", uri).rstrip("/")
    with session.sentences():
        store = open_store(prefix, ACCESS)
        if store.read(names.REPORT_PAGE, MOST_BYTES) is None and store.read(names.LEDGER) is None:
            raise UsageError(
                f"{prefix} must be a study's prefix: it has neither {names.REPORT_PAGE} nor {names.LEDGER}"
            )
    return BucketSource(store)


def _find_prefix(study: Study) -> str:
    """Return the prefix of the one study of that name in the bucket."""
    storage = open_store(study.storage.uri, ACCESS)
    head = re.escape(f"{study.namespace}/{study.name}-")
    documents = re.compile(rf"({head}[0-9a-f]{{1,8}})/({re.escape(names.LEDGER)}|{re.escape(names.REPORT_PAGE)})")
    keys = storage.list(f"{study.namespace}/{study.name}-")
    found = sorted({match[1] for key in keys if (match := documents.fullmatch(key)) is not None})
    where = f"{storage.uri.rstrip('/')}/"
    if not found:
        raise UsageError(f"the study {study.name} must have been run here or from {where}: nothing of it lies there")
    if len(found) > 1:
        several = ", ".join(f"{where}{key}" for key in found)
        raise UsageError(f"several studies have had the name {study.name}: give one of {several}")
    return f"{where}{found[0]}"


# --- Serve ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Shell:
    """The page around the report: it says how fresh it is, and loads it again."""

    text: bytes
    policy: str


def serve(source: Source, port: int, say: Callable[[str], None], is_over: threading.Event | None = None) -> None:
    """Serve a source's page on loopback until somebody interrupts.

    Args:
        source: of the pages.
        port: of 127.0.0.1; 0 takes a free one.
        say: is told the address.
        is_over: ends it, too.

    Raises:
        UsageError: where the port is taken.
    """
    board, over = Board(), is_over or threading.Event()
    try:
        server = _Server((ADDRESS, port), _Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
        raise UsageError(f"port {port} of {ADDRESS} {why}: give another one with --port, or 0 for a free one") from None
    server.board, server.shell = board, _build_shell(source.name)
    following = threading.Thread(target=source.follow, args=(board, over), name="follow", daemon=True)
    serving = threading.Thread(target=server.serve_forever, name="serve", daemon=True)
    following.start()
    serving.start()
    say(f"{source.name} at http://{ADDRESS}:{server.server_port}/ until Ctrl-C")
    try:
        over.wait()
    finally:
        over.set()
        board.close()
        server.shutdown()
        server.server_close()


def _build_shell(name: str) -> _Shell:
    text = resources.files("study_operator.laptop").joinpath("watch.html").read_text(encoding="utf-8")
    parts = {tag: text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0] for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {name_by_hash(parts['script'])}; style-src {name_by_hash(parts['style'])}; "
        "connect-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return _Shell(text=text.replace("{{ name }}", escape(name)).encode(), policy=policy)


WAITING = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>no report yet</title>
<p>No report is written yet. This page shows it as soon as there is one.</p></html>"""

FRAME_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""Beside the page's own, for a page that somebody else put into the bucket: it reaches nothing either."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    board: Board
    shell: _Shell


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self._own_names():
            self._answer(403, b"this server answers to its own name on this machine alone", kind="text/plain")
            return
        match self.path:
            case "/":
                self._answer(200, self.server.shell.text, policy=self.server.shell.policy)
            case "/page":
                self._answer(200, self.server.board.read() or WAITING, policy=FRAME_POLICY)
            case "/news":
                self._send_news()
            case _:
                self._answer(404, b"there is nothing here but /", kind="text/plain")

    def _own_names(self) -> set[str]:
        return {f"{host}:{self.server.server_port}" for host in (ADDRESS, "localhost")}

    def _answer(self, status: int, body: bytes, *, kind: str = "text/html", policy: str = "default-src 'none'") -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        is_same = status == 200 and self.headers.get("If-None-Match") == tag
        self.send_response(304 if is_same else status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(0 if is_same else len(body)))
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if not is_same:
            self.wfile.write(body)

    def _send_news(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for event in _list_events(self.server.board):
                self.wfile.write(event)
                self.wfile.flush()
        except OSError:
            # The browser has gone.
            return

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        log.debug(format, *arguments)


def _list_events(board: Board) -> Iterator[bytes]:
    """Yield the present, then each piece of news, and a comment where there is none for a while."""
    seen = -1
    while (news := board.wait(seen, HEARTBEAT_SECONDS)) is not None:
        number, trouble = news
        if number == seen:
            yield b": still here\n\n"
            continue
        seen = number
        if trouble:
            yield f"event: trouble\ndata: {' '.join(trouble.split())}\n\n".encode()
        else:
            yield f"event: page\ndata: {number}\n\n".encode()
