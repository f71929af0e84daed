# SPDX-License-Identifier: Apache-2.0
"""The API server over real HTTP: what a client, kubectl included, finds at an address.

`ApiServer` listens on 127.0.0.1 (port 0: any free one) inside the caller's event loop. The rules live in `operations`,
the objects in `storage`; here is only HTTP. Other rooms hang their own paths in through `ApiServer.extra`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hami_framework.errors import ConfigError
from hami_framework.sandbox import discovery, status
from hami_framework.sandbox.admission import Webhook
from hami_framework.sandbox.faults import Faults
from hami_framework.sandbox.operations import Operations
from hami_framework.sandbox.resources import CUSTOM_RESOURCE_DEFINITIONS, PODS
from hami_framework.sandbox.routes import Address, parse
from hami_framework.sandbox.selectors import select
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import Store, encode
from hami_framework.sandbox.watch import WatchCut, Watches, WatchRequest

Json = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
LONGEST_BODY = 3 * 1024 * 1024
"""Bytes; the real server's limit for a request (`MaxRequestBodyBytes`)."""


IDLE_SECONDS = 180
"""How long an idle connection stays open, as the real API server's (`IdleTimeout` of 3 minutes); clients rely on it when they reuse one."""


class ApiServer:
    """A Kubernetes API subset. `webhook`: the mutating admission step at pod creation. `definitions`: custom resources served from the start."""

    def __init__(
        self, *, port: int = 0, host: str = "127.0.0.1", webhook: Webhook | None = None, definitions: tuple[Mapping[str, Any], ...] = (), history: int = 20_000
    ) -> None:
        self.operations = Operations(Store(history), webhook=webhook)
        self.store = self.operations.store
        self.watches = Watches(self.store)
        self.faults = Faults()
        self.extra: dict[str, Handler] = {}
        """Path → handler of requests that are not Kubernetes' (`/sandbox/…`); the longest matching prefix counts."""
        self.ready: Callable[[], list[str]] = list
        """What `/readyz` still waits for, in words; nothing means ready."""
        self._host, self._port = host, port
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        for definition in definitions:
            self.operations.create(CUSTOM_RESOURCE_DEFINITIONS, "", dict(definition))

    # -- life

    async def start(self) -> None:
        """Listen; returns when requests are answered. Raises `ConfigError` when the port is taken."""
        logging.getLogger("uvicorn.error").addFilter(_QUIET)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio sets this only on sockets that name their protocol; without it an answer of two packets takes 40 ms (delayed ACK).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"the API server cannot listen on {self._host}:{self._port}: {error.strerror}; choose another port, or 0 for any free one"
            ) from error
        self._port = listener.getsockname()[1]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=METHODS)])
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=IDLE_SECONDS,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]), name="sandbox api server")
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError(f"the API server could not start on {self._host}:{self._port}")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """End all watches, finish open requests, close."""
        self.watches.stop()
        if self._server and self._serving:
            self._server.should_exit = True
            await self._serving
            self._server = self._serving = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    # -- faults for tests

    def drop_watches(self) -> None:
        """Break off every open watch in the middle of its stream."""
        self.watches.drop()

    def expire_history(self) -> None:
        """Forget all changes up to now: watches that are behind, and watches from any older version, get 410."""
        self.store.forget_history()

    # -- requests

    async def _answer(self, request: Request) -> Response:
        try:
            lost = await self.faults.before(f"{request.method} {request.url.path}")
            response = await self._route(request)
            if lost is not None:
                raise lost
        except ApiRefusal as refusal:
            return _json(refusal.status(), refusal.code)
        return response

    async def _route(self, request: Request) -> Response:
        path = request.url.path
        prefix = max((each for each in self.extra if path == each or path.startswith(each + "/")), key=len, default=None)
        if prefix is not None:
            return await self.extra[prefix](request)
        document = self._document(path)
        if document is not None:
            return document
        address = parse(path, self.operations.kinds)
        if address is None:
            raise ApiRefusal(404, "the server could not find the requested resource")
        if request.query_params.get("dryRun"):
            raise ApiRefusal(400, "dryRun is not simulated by the sandbox")
        if address.subresource in ("binding", "eviction") or (address.kind.plural, address.subresource) == ("bindings", ""):
            return await self._pod_action(request, address)
        if address.subresource and not (address.subresource == "status" and address.kind.has_status):
            raise ApiRefusal(404, f"{address.kind.plural}/{address.subresource} is not simulated by the sandbox")
        return await (self._single if address.name else self._collection)(request, address)

    def _document(self, path: str) -> Response | None:
        """Discovery, version and health."""
        kinds, parts = self.operations.kinds, [part for part in path.split("/") if part]
        match parts:
            case ["version"]:
                return _json(discovery.version())
            case ["healthz" | "livez"]:
                return PlainTextResponse("ok")
            case ["readyz"]:
                waiting = self.ready()
                return PlainTextResponse("\n".join(waiting) or "ok", 503 if waiting else 200)
            case ["api"]:
                return _json(discovery.core_versions())
            case ["apis"]:
                return _json(discovery.groups(kinds))
            case ["apis", group]:
                document = discovery.group(kinds, group)
            case ["api", version]:
                document = discovery.resources(kinds, "", version)
            case ["apis", group, version]:
                document = discovery.resources(kinds, group, version)
            case _:
                return None
        return _json(document) if document else None

    async def _collection(self, request: Request, address: Address) -> Response:
        query, kind = request.query_params, address.kind
        test = select(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        if request.method == "POST":
            created, warnings = self.operations.create(kind, address.namespace or "", await _body(request))
            return _json(created, 201, warnings)
        if request.method == "DELETE":
            options = await _body(request, optional=True)
            return _json(_list(kind, self.operations.delete_all(kind, address.namespace, test, options), self.store.version))
        if request.method not in ("GET", "HEAD"):
            raise ApiRefusal(405, "the server does not allow this method on the requested resource")
        if query.get("watch") in ("1", "true"):
            return await self._watch(request, WatchRequest(kind=kind, namespace=address.namespace, test=test, **_watch_options(query)))
        if query.get("resourceVersionMatch") == "Exact" and query.get("resourceVersion") != str(self.store.version):
            raise status.expired(int(query.get("resourceVersion", "0")), self.store.version)
        return _json(_list(kind, self.store.list(kind, address.namespace, test), self.store.version))

    async def _single(self, request: Request, address: Address) -> Response:
        kind, namespace, name, query = address.kind, address.namespace or "", address.name, request.query_params
        if request.method in ("GET", "HEAD"):
            if query.get("watch") in ("1", "true"):
                test = select(kind, "", f"metadata.name={name}")
                return await self._watch(request, WatchRequest(kind=kind, namespace=address.namespace, test=test, **_watch_options(query)))
            return _json(self.store.get(kind, namespace, name))
        if request.method == "PUT":
            return _json(self.operations.update(kind, namespace, name, await _body(request), address.subresource))
        if request.method == "PATCH":
            content_type = request.headers.get("content-type", "").partition(";")[0].strip()
            patched, warnings = self.operations.patch(kind, namespace, name, content_type, await _body(request), address.subresource)
            return _json(patched, 200, warnings)
        if request.method == "DELETE":
            options = await _body(request, optional=True)
            if "gracePeriodSeconds" in query:
                options.setdefault("gracePeriodSeconds", int(query["gracePeriodSeconds"]))
            removed = self.operations.delete(kind, namespace, name, options)
            details = {"name": name, "kind": kind.plural, "uid": removed["metadata"]["uid"]}
            return _json(removed if kind is PODS or "deletionTimestamp" in removed["metadata"] else status.success(details=details))
        raise ApiRefusal(405, "the server does not allow this method on the requested resource")

    async def _pod_action(self, request: Request, address: Address) -> Response:
        """`pods/NAME/binding` and `pods/NAME/eviction`."""
        if address.kind is not PODS or request.method != "POST":
            raise ApiRefusal(405, "the server does not allow this method on the requested resource")
        body = await _body(request)
        act = self.operations.bind if address.subresource == "binding" else self.operations.evict
        act(address.namespace or "", address.name, body)
        return _json(status.success(201), 201)

    async def _watch(self, request: Request, wanted: WatchRequest) -> Response:
        events = self.watches.stream(wanted)
        first = await anext(events)
        return StreamingResponse(_joined(first, events), media_type="application/json")


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream with its first part already taken: what is refused at once is refused as HTTP."""
    yield first
    async for chunk in rest:
        yield chunk


class _NotACut(logging.Filter):
    """Keeps the traces of watches that were broken off on purpose out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.exc_info is None or not isinstance(record.exc_info[1], WatchCut)


_QUIET = _NotACut()


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's loop: signals are the owner's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _watch_options(query: Mapping[str, str]) -> Any:
    version = query.get("resourceVersion", "")
    if version and not version.isdigit():
        raise ApiRefusal(400, f'Invalid value: "{version}": resourceVersion must be a number')
    return {
        "version": int(version) if version else None,
        "bookmarks": query.get("allowWatchBookmarks") in ("1", "true"),
        "initial_events": query.get("sendInitialEvents") in ("1", "true"),
        "timeout_s": float(query["timeoutSeconds"]) if "timeoutSeconds" in query else None,
    }


def _list(kind: Any, items: list[Json], version: int) -> Json:
    """The list object; items of built-in kinds do not repeat their kind, as on the real server."""
    if not kind.custom:
        items = [{key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in items]
    return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(version)}, "items": items}


async def _body(request: Request, *, optional: bool = False) -> Any:
    raw = await request.body()
    if not raw:
        if optional:
            return {}
        raise ApiRefusal(400, "the request has no body")
    if len(raw) > LONGEST_BODY:
        raise ApiRefusal(413, f"Request entity too large: limit is {LONGEST_BODY}", reason="RequestEntityTooLarge")
    content_type = request.headers.get("content-type", "application/json")
    if "protobuf" in content_type:
        raise ApiRefusal(415, "the body of the request was in protobuf - the sandbox takes application/json and application/yaml")
    try:
        return yaml.safe_load(raw) if "yaml" in content_type else msgspec.json.decode(raw)
    except (yaml.YAMLError, msgspec.DecodeError) as error:
        raise ApiRefusal(400, f"the body cannot be read: {error}") from error


def _json(body: object, code: int = HTTPStatus.OK, warnings: list[str] | None = None) -> Response:
    response = Response(encode(body), code, media_type="application/json")
    for warning in warnings or ():
        plain = warning.replace("\\", "\\\\").replace('"', '\\"').encode("ascii", "replace").decode()
        response.headers.append("warning", f'299 - "{plain}"')
    return response


__all__ = ["ApiServer", "WatchCut"]
