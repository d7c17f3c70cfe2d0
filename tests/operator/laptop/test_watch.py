"""`finetune-study watch`: pages from a directory and from a bucket, their news, and who is refused."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders.some_manifests import a_manifest
from study_operator.__main__ import UNUSABLE, main
from study_operator.laptop import watch
from study_operator.laptop.file_news import FileNews, follow_directory
from study_operator.laptop.session import UsageError
from study_operator.laptop.watch import (
    ADDRESS,
    Board,
    BucketSource,
    LocalSource,
    open_prefix,
    serve,
)
from trial_trainer.artifacts import ArtifactError, DirectoryStore

PATIENCE_SECONDS = 60.0
"""How long a test that hangs takes to fail."""


class Served:
    """A source that is served until the end of the test."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.is_over = threading.Event()
        self.addresses: list[str] = []
        self.is_told = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self, source) -> None:
        def say(sentence: str) -> None:
            self.addresses.append(sentence)
            self.is_told.set()

        self.thread = threading.Thread(target=serve, args=(source, 0, say, self.is_over))
        self.thread.start()
        assert self.is_told.wait(PATIENCE_SECONDS)

    @property
    def port(self) -> int:
        return int(self.addresses[0].partition(f"{ADDRESS}:")[2].partition("/")[0])

    def ask(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.is_over.set()
    assert found.thread is not None
    found.thread.join(PATIENCE_SECONDS)
    assert not found.thread.is_alive()


def read_event(answer: http.client.HTTPResponse) -> tuple[str, str]:
    """Return the next event's name and data."""
    lines = []
    while (line := answer.readline().decode().rstrip("\n")) or not lines:
        if line and not line.startswith(":"):
            lines.append(line)
    fields = dict(line.split(": ", 1) for line in lines)
    return fields["event"], fields["data"]


def test_a_page_is_served_and_each_new_one_is_told(served: Served, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    served.start(BucketSource(store, poll_seconds=0.02))
    events = served.ask("/news")
    assert read_event(events) == ("page", "0")
    assert b"No report is written yet" in served.ask("/page").read()
    for number in (1, 2):
        store.write("report/index.html", f"<p>page {number}".encode())
        assert read_event(events) == ("page", f"{number}")
        assert served.ask("/page").read() == f"<p>page {number}".encode()
    shell = served.ask("/")
    assert b'<iframe id="report"' in shell.read()
    assert "connect-src 'self'" in shell.headers["Content-Security-Policy"]
    assert served.ask("/etc/passwd").status == 404


def test_a_page_that_was_seen_is_not_sent_again(served: Served, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    store.write("report/index.html", b"<p>page")
    served.start(BucketSource(store))
    assert read_event(served.ask("/news"))[0] == "page"
    first = served.ask("/page")
    first.read()
    again = served.ask("/page", **{"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.read()) == (304, b"")


@pytest.mark.parametrize("host", ["shop.example", "shop.example:80", "127.0.0.1", "[::1]:80", ""])
def test_only_this_machines_own_names_are_answered(served: Served, tmp_path: Path, host: str) -> None:
    served.start(BucketSource(DirectoryStore(str(tmp_path))))
    for path in ("/", "/page", "/news"):
        assert served.ask(path, Host=host).status == 403
    assert served.ask("/", Host=f"localhost:{served.port}").status == 200


def test_nothing_but_loopback_is_listened_on(served: Served, tmp_path: Path) -> None:
    served.start(BucketSource(DirectoryStore(str(tmp_path))))
    listening = "0A"
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    places = {fields[1].rpartition(":") for fields in lines if fields[3] == listening}
    # As the kernel writes 127.0.0.1.
    assert {host for host, _, port in places if int(port, 16) == served.port} == {"0100007F"}


class FailingStore(DirectoryStore):
    """A directory that cannot be read while something is wrong."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        object.__setattr__(self, "troubles", [])

    def read_news(self, key, seen, most_bytes=None):
        if self.troubles:
            raise ArtifactError(self.troubles[0])
        return super().read_news(key, seen, most_bytes)


def test_a_bucket_that_goes_away_is_said_and_the_last_page_stays(served: Served, tmp_path: Path) -> None:
    store = FailingStore(str(tmp_path))
    store.write("report/index.html", b"<p>page")
    served.start(BucketSource(store, poll_seconds=0.02))
    events = served.ask("/news")
    while read_event(events) != ("page", "1"):
        pass
    store.troubles.append("s3://shop cannot be used:\nAccessDenied")
    assert read_event(events) == ("trouble", "s3://shop cannot be used: AccessDenied")
    assert served.ask("/page").read() == b"<p>page"
    store.troubles.clear()
    assert read_event(events)[0] == "page"


def test_a_trouble_with_a_study_on_this_machine_is_over_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    status, away = tmp_path / "status.json", tmp_path / "away.json"
    status.write_text("{}")

    class Source(LocalSource):
        def _render(self) -> bytes:
            if not status.exists():
                raise UsageError("the study must have been run")
            return b"<p>page"

    workspace = SimpleNamespace(directory=tmp_path, status=SimpleNamespace(path=status))
    board, is_over = Board(), threading.Event()
    following = threading.Thread(target=Source(SimpleNamespace(workspace=workspace)).follow, args=(board, is_over))
    following.start()
    try:
        assert board.wait(0, PATIENCE_SECONDS) == (1, "")
        status.rename(away)
        away.with_name("news").touch()
        assert board.wait(1, PATIENCE_SECONDS) == (2, "the study must have been run")
        away.rename(status)
        assert board.wait(2, 5.0) == (3, "")
    finally:
        is_over.set()
        (tmp_path / "end").touch()
        following.join(PATIENCE_SECONDS)


def test_a_port_that_is_taken_is_named_with_the_flag_that_gives_another(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^port {port} of 127\.0\.0\.1 is in use: give another one with --port"):
            serve(BucketSource(DirectoryStore(str(tmp_path))), port, lambda sentence: None)


@pytest.mark.parametrize("rest", ["", "/", "/report", "/report/report.json", "/report/index.html"])
def test_a_study_in_a_bucket_is_found_by_its_prefix_or_its_report(tmp_path: Path, rest: str) -> None:
    DirectoryStore(str(tmp_path)).write("report/index.html", b"<p>page")
    assert open_prefix(f"file://{tmp_path}{rest}").name == str(tmp_path)


def test_where_no_study_lies_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", f"file://{tmp_path}/nothing"]) == UNUSABLE
    assert "must be a study's prefix: it has neither report/index.html nor ledger.json" in capsys.readouterr().err
    assert main(["watch", "ftp://shop/study"]) == UNUSABLE
    assert "must start with s3:// or file:///" in capsys.readouterr().err


def test_a_study_that_was_never_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = a_manifest()
    manifest["spec"]["storage"] = {"uri": str(tmp_path / "runs")}
    (tmp_path / "study.yaml").write_text(json.dumps(manifest))
    assert main(["watch", str(tmp_path / "study.yaml")]) == UNUSABLE
    assert "must have been run here: there is no" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "http", "8 0"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["watch", "study.yaml", f"--port={port}"])
    assert f"must be a number from 0 to 65535, got '{port}'" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["a file that is written", "a file that takes another's name"])
def test_the_kernel_tells_of_a_change(tmp_path: Path, change: str) -> None:
    changes: dict[str, Callable[[], object]] = {
        "a file that is written": lambda: (tmp_path / "status.json").write_text("{}"),
        "a file that takes another's name": lambda: (tmp_path / ".new").replace(tmp_path / "status.json"),
    }
    (tmp_path / ".new").touch()
    with follow_directory(tmp_path) as news:
        assert news.is_told
        waiting = threading.Thread(target=news.wait, args=(10 * PATIENCE_SECONDS,))
        waiting.start()
        changes[change]()
        waiting.join(PATIENCE_SECONDS)
        assert not waiting.is_alive()


def test_where_the_kernel_tells_nothing_the_wait_is_short() -> None:
    waiting = threading.Thread(target=FileNews(None).wait, args=(10 * PATIENCE_SECONDS,))
    waiting.start()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
