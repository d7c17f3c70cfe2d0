"""Many credentials at one endpoint: one client, and each store's requests are signed with its own."""

from __future__ import annotations

import http.server
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trial_trainer import artifacts
from trial_trainer.artifacts import ArtifactStore, S3Access, open_store

TENANTS = 300


class Server:
    """Takes and gives everything, and notes who signed a request for which key."""

    def __init__(self) -> None:
        self.signed: list[tuple[str, str]] = []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
                stand_in.signed.append((found[1] if found else "", self.path.partition("?")[0].split("/")[2]))
                self.send_response(200)
                body = b"" if self.command == "PUT" else b"{}"
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", '"x"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_PUT = do_HEAD = do_GET  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def store_of(self, tenant: str) -> ArtifactStore:
        access = S3Access(
            is_from_environment=False,
            endpoint=self.endpoint,
            addressing_style="path",
            access_key_id=tenant,
            secret_access_key=f"secret of {tenant}",
        )
        return open_store(f"s3://bucket/{tenant}", access.impatient())


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.slow
def test_hundreds_of_credentials_share_a_client_and_none_signs_for_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    make = artifacts._make_client

    def count(access: S3Access) -> object:
        nonlocal made
        made += 1
        return make(access)

    monkeypatch.setattr(artifacts, "_make_client", count)
    tenants = [f"tenant-{number}" for number in range(TENANTS)]

    def use(tenant: str) -> None:
        store = server.store_of(tenant)
        store.write("a", b"{}")
        assert store.read("a") == b"{}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [*tenants, *tenants]))
    assert made == 1
    assert Counter(server.signed) == Counter({(tenant, tenant): 4 for tenant in tenants})


def test_files_of_a_shared_client_are_signed_too(server: Server, tmp_path: Path) -> None:
    store = server.store_of("one")
    (tmp_path / "up").write_bytes(b"{}")
    store.upload("a", tmp_path / "up")
    assert store.download("a", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == b"{}"
    assert set(server.signed) == {("one", "one")}


def test_another_endpoint_or_certificate_is_another_client(server: Server) -> None:
    def client_of(**changes: str) -> object:
        access = S3Access(is_from_environment=False, access_key_id="a", secret_access_key="b", **changes)
        return artifacts._find_client(access)._client

    here = client_of(endpoint=server.endpoint)
    assert client_of(endpoint=server.endpoint) is here
    assert client_of(endpoint="http://127.0.0.1:1") is not here
    assert client_of(endpoint=server.endpoint, region="eu-north-1") is not here
