# SPDX-License-Identifier: Apache-2.0
"""A thin client for the Kubernetes API: raw JSON over the standard library's HTTP client, kept-alive connections.

Rules: safe to call from any thread; `await client.call(client.get, …)` from asyncio. Objects are plain dicts. Reads are
repeated a few times (429, 5xx, broken connections); a write is sent exactly once, and its error says whether the
outcome is known (`errors.KubeError.outcome_unknown`).
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import urlencode, urlsplit

import msgspec

from hami_framework.errors import ConfigError
from hami_framework.kube import credentials as credentials_module
from hami_framework.kube import warnings
from hami_framework.kube.credentials import Authorization, Credentials
from hami_framework.kube.errors import TOO_MANY_REQUESTS, ApiError, KubeError, TransportError, from_answer
from hami_framework.kube.watch import LARGEST_READ, WatchStream

P = ParamSpec("P")
T = TypeVar("T")
Object = dict[str, Any]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

READ_ATTEMPTS = 4
BACKOFF_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 10.0
"""A longer Retry-After is the caller's to wait for."""

WHOLE_ANSWER_SECONDS = 60.0
"""An answer that drips in must end some time: no single receive is late, and yet the whole never comes."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds, probes (tcp(7)): a machine that vanished without a word is noticed after 30 s, as client-go's HTTP/2 pings do."""

IDLE_SECONDS = 60.0
"""The API server closes idle HTTP/1.1 connections after 3 minutes (`IdleTimeout` in apiserver's serve.go)."""

RENEW_SECONDS = 5.0
"""Credentials that are refused for good are not resolved again more often than this."""

_log = logging.getLogger(__name__)


def path(plural: str, *, group: str = "", version: str = "v1", namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
    """The URL path of a collection or object, e.g. `/api/v1/namespaces/default/pods/web-0/binding`."""
    parts = ["/apis", group, version] if group else ["/api", version]
    parts += ["namespaces", namespace, plural] if namespace else [plural]
    parts += [part for part in (name, subresource) if part]
    return "/".join(parts)


class KubeClient:
    """One API server, one identity, a pool of connections."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        timeout_seconds: float = 10.0,
        threads: int = 16,
        user_agent: str = "hami-framework",
        read_attempts: int = READ_ATTEMPTS,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        """`timeout_seconds` bounds each connect, send and receive; `threads` bounds how many `call`s run at once.

        `on_warning` is told what the API server wants a person to read beside its answers.
        """
        self.timeout_seconds = timeout_seconds
        self.dated: tuple[str, float] | None = None
        """The `Date` header of the last answer, and our own clock (`time.time()`) when it came."""
        self._read_attempts = read_attempts
        self._on_warning = on_warning
        self._user_agent = user_agent
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._pool_size = threads
        self._renewed_at = float("-inf")
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="kube")
        self._use(credentials)

    # -- verbs --------------------------------------------------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """One object (or whatever JSON lies at the path). Raises ApiError, TransportError."""
        return _parsed(self.request("GET", path, query))

    def list(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """A whole collection as one List object, fetched in pages of 500."""
        query = {"limit": "500", **(query or {})}
        whole = page = self.get(path, query)
        whole["items"] = whole.get("items") or []
        while following := page.get("metadata", {}).get("continue"):
            page = self.get(path, {**query, "continue": following})
            whole["items"] += page.get("items") or []
        whole.get("metadata", {}).pop("continue", None)
        return whole

    def create(self, path: str, body: Object, query: Mapping[str, str] | None = None, *, before_sending: Callable[[], None] | None = None) -> Object:
        """POST to a collection or a subresource. `before_sending` is called once connected; if it raises, nothing is sent."""
        return _parsed(self.request("POST", path, query, body, before_sending=before_sending))

    def replace(self, path: str, body: Object) -> Object:
        """PUT a whole object; with `metadata.resourceVersion` it is refused (409) when somebody else wrote in between."""
        return _parsed(self.request("PUT", path, None, body))

    def patch(self, path: str, body: object, content_type: str = MERGE_PATCH, query: Mapping[str, str] | None = None) -> Object:
        """PATCH with a merge patch (default) or a JSON patch."""
        return _parsed(self.request("PATCH", path, query, body, content_type))

    def delete(self, path: str, *, uid: str | None = None, grace_seconds: int | None = None) -> Object:
        """DELETE; with `uid` only that incarnation of the name (409 otherwise)."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return _parsed(self.request("DELETE", path, None, options))

    def watch(self, path: str, query: Mapping[str, str], read_deadline_seconds: float) -> WatchStream:
        """Open a watch on a connection of its own; silence longer than the deadline raises TransportError from the stream."""
        connection = self._connect(self.timeout_seconds)
        url = self._url(path, {**query, "watch": "1"})
        try:
            # Connecting has the short deadline: an API server that comes back is not to be missed for the length of a watch's silence.
            connection.connect()
            connection.sock.settimeout(read_deadline_seconds)
            connection.request("GET", url, headers=self._headers())
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response, response.read())
        except BaseException as error:
            connection.close()
            raise _transport_error(error, "GET", url, self.credentials.server, sent=True) from error
        return WatchStream(connection, response, what=f"watch {url}")

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        *,
        accept: str = JSON,
        before_sending: Callable[[], None] | None = None,
    ) -> bytes:
        """Any request; the answer's body. Reads are repeated up to 4 times, waiting as the server says or with jittered backoff."""
        url = self._url(path, query)
        payload = None if body is None else msgspec.json.encode(body)
        attempts = self._read_attempts if method in ("GET", "HEAD") else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._once(method, url, payload, content_type, accept, before_sending)
            except KubeError as error:
                wait = _wait_before_retry(error, attempt)
                if attempt == attempts or wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    # -- asyncio ------------------------------------------------------------------------------------------------

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking verb in this client's own threads: `await client.call(client.get, path)`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Close idle connections and take no more calls; requests in flight end by themselves, and their connections with them."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._pool_size = 0
        self._drop_idle()

    # -- inside -------------------------------------------------------------------------------------------------

    def _use(self, credentials: Credentials) -> None:
        server = urlsplit(credentials.server)
        if server.scheme not in ("http", "https") or not server.hostname:
            raise ConfigError(f"API server {credentials.server!r}: an http:// or https:// address is needed")
        try:
            context = credentials.ssl_context() if server.scheme == "https" else None
        except ssl.SSLError as error:
            raise ConfigError(f"API server {credentials.server}: its CA or our client certificate is not usable PEM: {error}") from error
        self.credentials, self._server, self._ssl = credentials, server, context
        self._authorization = Authorization(credentials)

    def _url(self, path: str, query: Mapping[str, str] | None) -> str:
        url = self._server.path.rstrip("/") + path
        return f"{url}?{urlencode(query)}" if query else url

    def _headers(self, content_type: str | None = None, accept: str = JSON) -> dict[str, str]:
        headers = {"Accept": accept, "User-Agent": self._user_agent}
        if content_type:
            headers["Content-Type"] = content_type
        if authorization := self._authorization.header():
            headers["Authorization"] = authorization
        return headers

    def _once(self, method: str, url: str, payload: bytes | None, content_type: str, accept: str, before_sending: Callable[[], None] | None = None) -> bytes:
        connection = self._take()
        reused = connected = connection.sock is not None
        try:
            if not connected:
                connection.connect()
            connected = True
            headers = self._headers(content_type if payload is not None else None, accept)
            if before_sending is not None:
                before_sending()
            connection.request(method, url, payload, headers)
            response = connection.getresponse()
            body = _whole(response)
        except BaseException as error:
            _abort(connection)
            if reused:
                self._drop_idle()  # the others went the same way, and each would cost a timeout of its own
            raise _transport_error(error, method, url, self.credentials.server, sent=connected) from error
        self._put_back(connection, response)
        if date := response.getheader("Date"):
            self.dated = (date, time.time())
        if self._on_warning is not None:
            for text in warnings.texts(response.headers.get_all("Warning") or ()):
                self._on_warning(text)
        if response.status >= 300:
            raise self._refusal(response, body)
        return body

    def _refusal(self, response: http.client.HTTPResponse, body: bytes) -> ApiError:
        if response.status == 401:
            self._renew()
        return from_answer(response.status, response.reason, body, response.getheader("Retry-After"))

    def _renew(self) -> None:
        """A token has run out: read its file, or resolve the kubeconfig, again. The caller's next try uses the new one."""
        with self._lock:
            if time.monotonic() - self._renewed_at < RENEW_SECONDS:
                return
            self._renewed_at = time.monotonic()
            stale = self.credentials
        if stale.kubeconfig is None:
            self._authorization = Authorization(stale)
            return
        try:
            fresh = credentials_module.load(stale.kubeconfig, stale.context)
        except ConfigError as error:
            _log.warning("the API server no longer accepts our credentials, and resolving them again failed: %s", error)
            return
        if fresh != stale:
            self._drop_idle()
            self._use(fresh)

    def _connect(self, timeout_seconds: float) -> http.client.HTTPConnection:
        host = cast(str, self._server.hostname)
        connection: http.client.HTTPConnection
        if self._ssl is None:
            connection = _Connection(host, self._server.port, timeout=timeout_seconds)
        else:
            connection = _TlsConnection(host, self._server.port, timeout_seconds, self._ssl, self.credentials.tls_server_name or host)
        return connection

    def _take(self) -> http.client.HTTPConnection:
        """A connection that is still open as far as one can know without writing, else a new one."""
        while True:
            with self._lock:
                if not self._idle:
                    break
                since, connection = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()
        return self._connect(self.timeout_seconds)

    def _put_back(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        with self._lock:
            if not response.will_close and len(self._idle) < self._pool_size:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """Plain HTTP that notices when the other machine is gone."""

    def connect(self) -> None:
        self.sock = _reached(self.host, self.port, self.timeout)


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS whose certificate is checked against `server_name`, which a kubeconfig may set apart from the address."""

    def __init__(self, host: str, port: int | None, timeout_seconds: float, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(host, port, timeout=timeout_seconds, context=context)
        self._tls, self._server_name = context, server_name

    def connect(self) -> None:
        self.sock = _reached(self.host, self.port, self.timeout)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=_ascii(self._server_name))


def _reached(host: str, port: int, timeout_seconds: float | None) -> socket.socket:
    """A connection to there."""
    sock = socket.create_connection((cast(str, _ascii(host)), port), timeout_seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)
    return sock


def _ascii(name: str) -> str | bytes:
    """The name in bytes, where it can be: of text the standard library first loads its tables for names in other scripts, 0.4 MB of a node agent's memory."""
    return name.encode("ascii") if name.isascii() else name


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask whether the other side is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _whole(response: http.client.HTTPResponse) -> bytes:
    """The body, within `WHOLE_ANSWER_SECONDS`. Raises TimeoutError, and what `http.client` raises for a body cut short."""
    began, parts, missing = time.monotonic(), [], response.length
    with response:  # read1() leaves an answer of known length open, and then the connection could not be used again
        while data := response.read1(LARGEST_READ):
            parts.append(data)
            if missing is not None:
                missing -= len(data)
            if time.monotonic() - began > WHOLE_ANSWER_SECONDS:
                raise TimeoutError(f"the answer was not complete after {WHOLE_ANSWER_SECONDS:.0f} s")
    if missing:  # unlike read(), read1() takes an early end for the end
        raise http.client.IncompleteRead(b"".join(parts), missing)
    return b"".join(parts)


def _readable(sock: socket.socket) -> bool:
    """An idle connection that has something to read has been closed by the other side (or speaks out of turn)."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _abort(connection: http.client.HTTPConnection) -> None:
    """Close so that bytes still in our kernel are thrown away: a write that we gave up must not arrive minutes later."""
    if connection.sock is not None and connection.sock.fileno() >= 0:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _parsed(body: bytes) -> Object:
    try:
        return cast(Object, msgspec.json.decode(body))
    except msgspec.DecodeError as error:
        raise TransportError(f"the API server answered 2xx with something that is not JSON: {error}", sent=True) from error


def _transport_error(error: BaseException, method: str, url: str, server: str, *, sent: bool) -> BaseException:
    """Network trouble as a TransportError; anything else (our own errors, KeyboardInterrupt) unchanged."""
    if isinstance(error, OSError | http.client.HTTPException):
        return TransportError(f"{method} {server}{url}: {type(error).__name__}: {error}", sent=sent)
    return error


def _wait_before_retry(error: KubeError, attempt: int) -> float | None:
    """Seconds until the next attempt of a read; None when trying again is of no use."""
    if isinstance(error, ApiError) and error.status not in (401, TOO_MANY_REQUESTS, 500, 502, 503, 504):
        return None
    wait = error.retry_after_seconds
    if wait is None:
        wait = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0)
    return wait if wait <= LONGEST_WAIT_SECONDS else None
