# SPDX-License-Identifier: Apache-2.0
"""One open watch: a stream of JSON lines, read in batches, that can be broken off from another thread."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import Literal

import msgspec

from hami_framework.kube.errors import TransportError

LARGEST_READ = 1 << 20


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch; the object stays undecoded until it is known to be new."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


_decoder = msgspec.json.Decoder(WatchEvent)


class WatchStream:
    """Read with `batch()` from one thread; `close()` from any thread ends a blocked read at once."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, what: str) -> None:
        self._connection = connection
        self._response = response
        self._what = what
        self._rest = b""
        self._reading = threading.Lock()
        # Taken now: http.client forgets the socket of an answer that ends with the connection.
        self._socket: socket.socket | None = connection.sock or getattr(getattr(response.fp, "raw", None), "_sock", None)

    def batch(self) -> list[WatchEvent] | None:
        """All events that have arrived (at least one; blocks for it); None when the server ended the watch in good order.

        Raises TransportError on silence beyond the read deadline, on a broken connection and on a damaged line.
        """
        while True:
            try:
                with self._reading:
                    data = self._response.read1(LARGEST_READ)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise TransportError(f"{self._what}: {type(error).__name__}: {error}", sent=True) from error
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            events = [self._decoded(line) for line in lines if line]
            if events:
                return events

    def close(self) -> None:
        """End the watch; harmless when it has ended. A read in another thread returns at once, and only then is anything taken apart."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the other side may have closed it already
                # The plain socket's own: SSLSocket.shutdown pulls the TLS object away from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        with self._reading:
            self._connection.close()

    def _decoded(self, line: bytes) -> WatchEvent:
        try:
            return _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise TransportError(f"{self._what}: a line that is no watch event: {error}", sent=True) from error
