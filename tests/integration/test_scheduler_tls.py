# SPDX-License-Identifier: Apache-2.0
"""TLS of the extender: who gets in, which versions, and files that are replaced while it serves."""

from __future__ import annotations

import asyncio
import http.client
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from hami_framework.errors import ConfigError
from hami_framework.scheduler.tls import Files, ReloadingTls

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Place:
    """A directory as a mounted Secret is: files are replaced, not rewritten."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = Files(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")

    def put(self, name: str, data: bytes) -> None:
        fresh = self.directory / "fresh"
        fresh.write_bytes(data)
        os.replace(fresh, self.directory / name)

    def serve(self, server: trustme.CA, clients: trustme.CA) -> None:
        leaf = server.issue_cert("extender")
        self.put("tls.crt", leaf.cert_chain_pems[0].bytes())
        self.put("tls.key", leaf.private_key_pem.bytes())
        self.put("ca.crt", clients.cert_pem.bytes())


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def place(tmp_path: Path, authority: trustme.CA) -> Place:
    it = Place(tmp_path)
    it.serve(authority, authority)
    return it


@pytest.fixture
async def served(place: Place) -> AsyncIterator[tuple[ReloadingTls, int]]:
    tls = ReloadingTls(place.files)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that was shown the door
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield tls, server.sockets[0].getsockname()[1]


async def ask(port: int, trusted: trustme.CA, client: trustme.CA | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
    """The status. Raises OSError (SSLError is one) or http.client's errors for one that is not let in."""

    def send() -> int:
        context = ssl.create_default_context()
        trusted.configure_trust(context)
        context.minimum_version = ssl.TLSVersion.TLSv1_2 if newest >= ssl.TLSVersion.TLSv1_2 else ssl.TLSVersion.TLSv1_1
        context.maximum_version = newest
        if client is not None:
            client.issue_cert("kube-scheduler").configure_cert(context)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        context.check_hostname = False
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        finally:
            connection.close()

    return await asyncio.to_thread(send)


NOT_LET_IN = (OSError, http.client.HTTPException)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_with_our_certificate_is_let_in(served: tuple[ReloadingTls, int], authority: trustme.CA, newest: ssl.TLSVersion) -> None:
    assert await ask(served[1], authority, authority, newest) == 200


async def test_a_client_without_a_certificate_is_not(served: tuple[ReloadingTls, int], authority: trustme.CA) -> None:
    with pytest.raises(NOT_LET_IN):
        await ask(served[1], authority, None)


async def test_a_client_of_another_ca_is_not(served: tuple[ReloadingTls, int], authority: trustme.CA) -> None:
    with pytest.raises(NOT_LET_IN):
        await ask(served[1], authority, trustme.CA())


def test_nothing_older_than_tls_1_2(place: Place) -> None:
    assert ReloadingTls(place.files).context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert place.files.load().minimum_version == ssl.TLSVersion.TLSv1_2


async def test_new_files_are_used_and_the_old_ca_lets_nobody_in_any_more(served: tuple[ReloadingTls, int], place: Place, authority: trustme.CA) -> None:
    tls, port = served
    later = trustme.CA()
    place.serve(later, later)
    assert tls.look()
    assert not tls.look(), "once is enough"
    assert await ask(port, later, later) == 200
    with pytest.raises(NOT_LET_IN):
        await ask(port, later, authority)
    with pytest.raises(NOT_LET_IN):
        await ask(port, authority, later)


async def test_files_that_do_not_fit_together_leave_the_old_ones_in_force(served: tuple[ReloadingTls, int], place: Place, authority: trustme.CA) -> None:
    tls, port = served
    place.put("tls.key", trustme.CA().issue_cert("other").private_key_pem.bytes())
    assert not tls.look()
    assert await ask(port, authority, authority) == 200


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key", "ca.crt"])
def test_it_does_not_start_with_files_that_are_of_no_use(place: Place, broken: str) -> None:
    place.put(broken, b"nothing\n")
    with pytest.raises(ConfigError, match=broken):
        ReloadingTls(place.files)
    (place.directory / broken).unlink()
    with pytest.raises(ConfigError, match=broken):
        ReloadingTls(place.files)
