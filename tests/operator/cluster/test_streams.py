"""TLS connections of an event loop: many of them must take little memory, and lose nothing."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Any, cast

import pytest

from study_operator.cluster.streams import TLS_BUFFER_BYTES, use_small_buffers
from testcluster.kube import Authority


def test_a_small_buffer_is_what_a_connection_has_and_reads_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSLProtocol, "max_size", SSLProtocol.max_size)
    use_small_buffers()
    for name, content in zip(("crt", "key"), Authority.load(tmp_path).issue("server", ()), strict=True):
        (tmp_path / name).write_bytes(content)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    theirs = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    body = bytes(range(256)) * 8192

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(body)
        await writer.drain()
        writer.close()

    async def read() -> tuple[bytes, int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=theirs)
            found = await reader.read(-1)
            return found, len(cast(Any, writer.transport)._ssl_protocol._ssl_buffer)

    assert asyncio.run(read()) == (body, TLS_BUFFER_BYTES)
