# SPDX-License-Identifier: Apache-2.0
"""The HTTP rim: routes, decoding, timing. No decision is taken here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hami_framework.model import encode
from hami_framework.scheduler.http import JSON, Reply
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.service import Extender
from hami_framework.scheduler.wire import BindingArgs, BindingResult, ExtenderArgs, PreemptionArgs

Args = TypeVar("Args")


class Endpoint:
    """One POST of kube-scheduler's: decode, time, answer. A body that is not what the verb takes is 400 and says why."""

    def __init__(self, name: str, args: type[Args], answer: Callable[[Args], Any], metrics: Metrics) -> None:
        """`answer` returns what is to be sent, or a coroutine of it."""
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(args)
        self._answer: Callable[[Any], Any] = answer
        self._name = name
        self._seconds = metrics.seconds.labels(name)
        self._failures = metrics.failures.labels(name)

    def __call__(self, body: bytes) -> Reply | Awaitable[Reply]:
        began = time.perf_counter()
        try:
            answer = self._answer(self._decoder.decode(body))
            if asyncio.iscoroutine(answer):
                return self._later(answer, began)
            reply = Reply(msgspec.json.encode(answer))
        except msgspec.MsgspecError as error:
            self._failures.inc()
            reply = Reply(f"/{self._name}: the body is not what kube-scheduler sends here: {error}\n".encode(), 400, "text/plain")
        except Exception:
            self._failures.inc()
            raise
        self._seconds.observe(time.perf_counter() - began)
        return reply

    async def _later(self, coming: Awaitable[object], began: float) -> Reply:
        try:
            return Reply(msgspec.json.encode(await coming))
        except Exception:
            self._failures.inc()
            raise
        finally:
            self._seconds.observe(time.perf_counter() - began)

    async def over_asgi(self, request: Request) -> Response:
        """The same for a connection that uvicorn looks after."""
        reply = self(await request.body())
        if not isinstance(reply, Reply):
            reply = await reply
        return Response(reply.body, reply.status, media_type=reply.media_type)


def make_verbs(extender: Extender, metrics: Metrics) -> dict[str, Endpoint]:
    """Name → what answers it."""

    async def bind(args: BindingArgs) -> object:
        return BindingResult(error=await extender.bind(args))

    return {
        "filter": Endpoint("filter", ExtenderArgs, extender.filter, metrics),
        "prioritize": Endpoint("prioritize", ExtenderArgs, extender.prioritize, metrics),
        "preempt": Endpoint("preempt", PreemptionArgs, extender.preempt, metrics),
        "bind": Endpoint("bind", BindingArgs, bind, metrics),
    }


def make_app(
    verbs: Mapping[str, Endpoint], extender: Extender, metrics: Metrics, promises: Callable[[], object], before_metrics: Callable[[], None]
) -> Starlette:
    """The application. `promises` gives what /state shows; `before_metrics` brings gauges up to date."""

    async def explain(request: Request) -> Response:
        namespace, name = request.query_params.get("namespace", "default"), request.query_params.get("name", "")
        answer = extender.explain(namespace, name)
        if answer is None:
            return Response(msgspec.json.encode({"error": f"kube-scheduler has not asked about pod {namespace}/{name} (or long ago)"}), 404, media_type=JSON)
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def state(_: Request) -> Response:
        return Response(encode(promises()), media_type=JSON)

    return Starlette(
        routes=[
            *(Route(f"/{name}", verb.over_asgi, methods=["POST"]) for name, verb in verbs.items()),
            *_health(extender, metrics, before_metrics),
            Route("/explain", explain),
            Route("/state", state),
        ]
    )


def make_health_app(extender: Extender, metrics: Metrics, before_metrics: Callable[[], None]) -> Starlette:
    """Probes and metrics alone, for a port that asks for no certificate."""
    return Starlette(routes=_health(extender, metrics, before_metrics))


def _health(extender: Extender, metrics: Metrics, before_metrics: Callable[[], None]) -> list[Route]:
    async def healthz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain") if extender.ready or extender.answers_when_asked else Response(f"{extender.why_not}\n", 503)

    async def metrics_(_: Request) -> Response:
        before_metrics()
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def warmz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain") if extender.warm else Response("pods, nodes and inventories are not read completely yet\n", 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/warmz", warmz), Route("/metrics", metrics_)]
