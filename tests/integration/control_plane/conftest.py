# SPDX-License-Identifier: Apache-2.0
"""A small strict API server for these tests: lists, watches and bindings over real HTTP, with faults to order.

It is not the sandbox's API server on purpose: what the tests hold the product against must not come from the same hands.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Credentials

Object = dict[str, Any]


class Refused(Exception):
    """An answer with a Status object."""

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.headers = code, reason, message, headers or {}

    @property
    def status(self) -> Object:
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "reason": self.reason, "message": self.message}


class FakeApi:
    """The store, the history that watches read, and the faults that tests order."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        self.compacted = 0
        self.collections: dict[str, dict[str, Object]] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        self.faults: list[tuple[str, str, str]] = []
        self.watch_sockets: set[socket.socket] = set()
        self.frozen = False
        self.gone_as_event = False
        self.bookmark_seconds = 0.2
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        server.fake = self  # type: ignore[attr-defined]
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    # -- what tests do ------------------------------------------------------------------------------------------

    def put(self, collection: str, obj: Object) -> Object:
        """Create or replace an object as if someone else had."""
        with self.changed:
            meta = obj.setdefault("metadata", {})
            old = self.collections.setdefault(collection, {}).get(_key(obj))
            meta.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
            return self._store(collection, "MODIFIED" if old else "ADDED", obj)

    def remove(self, collection: str, key: str) -> None:
        with self.changed:
            self._store(collection, "DELETED", self.collections[collection].pop(key))

    def order_fault(self, method: str, path_pattern: str, fault: str) -> None:
        """The next matching request meets `fault`: `STATUS`, `STATUS:RETRY_AFTER`, or `before|after` + `-reset|-hang|-500`."""
        self.faults.append((method, path_pattern, fault))

    def drop_watches(self) -> None:
        with self.changed:
            for sock in self.watch_sockets:
                with contextlib.suppress(OSError):  # the client may have gone first
                    sock.shutdown(socket.SHUT_RDWR)

    def compact(self) -> None:
        """Forget the history: a watch that resumes from before now gets 410."""
        with self.changed:
            self.compacted = self.version
            self.history.clear()

    def count(self, method: str, path_pattern: str) -> int:
        return sum(1 for seen_method, path in self.requests if seen_method == method and re.search(path_pattern, path))

    # -- what requests do ---------------------------------------------------------------------------------------

    def _store(self, collection: str, kind: str, obj: Object) -> Object:
        self.version += 1
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(self.version)
        if kind != "DELETED":
            self.collections[collection][_key(obj)] = obj
        self.history.append((self.version, collection, kind, obj))
        self.changed.notify_all()
        return obj

    def bind(self, key: str, binding: Object) -> Object:
        """The rules of BindingREST.setPodNodeAndMetadata: UID precondition, one node for ever, annotations merged."""
        with self.changed:
            pod = self.collections.get("pods", {}).get(key)
            if pod is None:
                raise Refused(404, "NotFound", f'pods "{key}" not found')
            wanted = binding["metadata"].get("uid")
            if wanted and wanted != pod["metadata"]["uid"]:
                raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {pod['metadata']['uid']}")
            if pod["spec"].get("nodeName"):
                raise Refused(409, "Conflict", f"pod {key} is already assigned to node {pod['spec']['nodeName']!r}")
            pod = copy.deepcopy(pod)
            pod["spec"]["nodeName"] = binding["target"]["name"]
            pod["metadata"].setdefault("annotations", {}).update(binding["metadata"].get("annotations", {}))
            self._store("pods", "MODIFIED", pod)
            return {"kind": "Status", "status": "Success"}

    def take_fault(self, method: str, path: str) -> str | None:
        with self.changed:
            for number, (wanted, pattern, fault) in enumerate(self.faults):
                if wanted == method and re.search(pattern, path):
                    del self.faults[number]
                    return fault
        return None

    def close(self) -> None:
        self.frozen = False
        self.drop_watches()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def _key(obj: Object) -> str:
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else meta["name"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def fake(self) -> FakeApi:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET  # noqa: N815 — http.server's names

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.fake.requests.append((self.command, self.path))
        self.fake.tokens.append(self.headers.get("Authorization"))
        fault = self.fake.take_fault(self.command, self.path) or ""
        when, _, what = fault.partition("-")
        try:
            if fault and not what:
                code, _, retry_after = fault.partition(":")
                raise Refused(int(code), "Ordered", "as ordered", {"Retry-After": retry_after} if retry_after else {})
            if when == "before":
                self._misbehave(what)
                return
            answer = self._serve(url.path, query, body)
            if when == "after":
                self._misbehave(what)
                return
            if answer is not None:
                self._send(200, answer)
        except Refused as refusal:
            self._send(refusal.code, refusal.status, refusal.headers)

    def _misbehave(self, what: str) -> None:
        if what == "500":
            self._send(500, Refused(500, "InternalError", "etcdserver: request timed out").status)
            return
        if what == "hang":
            time.sleep(1.5)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, path: str, query: dict[str, str], body: Object) -> Object | None:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = None
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        collection, *rest = parts
        if not rest:
            if self.command == "POST":
                body["metadata"].setdefault("namespace", namespace)
                body["metadata"].setdefault("name", str(uuid.uuid4()))
                return self.fake.put(collection, body)
            return self._watch(collection, query) if query.get("watch") else self._list(collection, query)
        key = f"{namespace}/{rest[0]}" if namespace else rest[0]
        if rest[1:] == ["binding"]:
            return self.fake.bind(key, body)
        with self.fake.changed:
            obj = self.fake.collections.get(collection, {}).get(key)
            if obj is None:
                raise Refused(404, "NotFound", f'{collection} "{key}" not found')
            if self.command == "DELETE":
                wanted = (body or {}).get("preconditions", {}).get("uid")
                if wanted and wanted != obj["metadata"]["uid"]:
                    raise Refused(409, "Conflict", "Precondition failed")
                self.fake.remove(collection, key)
            elif self.command == "PATCH":
                obj = self.fake.put(collection, _merged(copy.deepcopy(obj), body))
            return obj

    def _list(self, collection: str, query: dict[str, str]) -> Object:
        with self.fake.changed:
            start, _, version = query.get("continue", f"0@{self.fake.version}").partition("@")
            if int(version) < self.fake.compacted:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
            items = [item for _, item in sorted(self.fake.collections.get(collection, {}).items()) if _selected(item, query)]
            end = int(start) + int(query.get("limit", "1000000"))
            meta = {"resourceVersion": version, **({"continue": f"{end}@{version}"} if end < len(items) else {})}
            return {"kind": "List", "metadata": meta, "items": items[int(start) : end]}

    def _watch(self, collection: str, query: dict[str, str]) -> None:
        fake, version = self.fake, int(query["resourceVersion"])
        gone = version < fake.compacted
        if gone and not fake.gone_as_event:
            raise Refused(410, "Expired", f"too old resource version: {version} ({fake.compacted})")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if gone:
            self._line("ERROR", Refused(410, "Expired", "too old resource version").status)
            self._chunk(b"")
            return
        with fake.changed:
            fake.watch_sockets.add(self.connection)
        try:
            self._follow(collection, query, version)
        finally:
            self.close_connection = True
            with fake.changed:
                fake.watch_sockets.discard(self.connection)

    def _follow(self, collection: str, query: dict[str, str], version: int) -> None:
        fake = self.fake
        while True:
            with fake.changed:
                fake.changed.wait_for(lambda since=version: fake.version > since and not fake.frozen, fake.bookmark_seconds)
                if fake.frozen:
                    news, bookmark = [], False
                else:
                    news = [(kind, obj) for at, where, kind, obj in fake.history if at > version and where == collection and _selected(obj, query)]
                    bookmark, version = not news, fake.version
            for kind, obj in news:
                self._line(kind, obj)
            if bookmark:
                self._line("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

    def _line(self, kind: str, obj: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, code: int, answer: Object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _merged(obj: Object, patch: Object) -> Object:
    for key, value in patch.items():
        if value is None:
            obj.pop(key, None)
        else:
            obj[key] = _merged(obj.get(key) or {}, value) if isinstance(value, dict) else value
    return obj


def _selected(obj: Object, query: dict[str, str]) -> bool:
    field, _, wanted = query.get("fieldSelector", "").partition("=")
    if not field:
        return True
    value: Any = obj
    for step in field.split("."):
        value = value.get(step, {})
    return bool(value == wanted)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    yield fake
    fake.close()


@pytest.fixture
def client(api: FakeApi) -> Iterator[KubeClient]:
    client = KubeClient(Credentials(server=api.url), timeout_seconds=1.0)
    yield client
    client.close()
