# SPDX-License-Identifier: Apache-2.0
"""The HTTP rim: routes, decoding, timing. No decision is taken here."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hami_framework.model import encode
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.service import Extender
from hami_framework.scheduler.wire import BindingArgs, BindingResult, ExtenderArgs, PreemptionArgs

Args = TypeVar("Args")
JSON = "application/json"


class Verb:
    """One POST of kube-scheduler's: decode, time, answer. A body that is not what the verb takes is 400 and says why."""

    def __init__(self, name: str, args: type[Args], answer: Callable[[Args], Awaitable[Any]], metrics: Metrics) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(args)
        self._answer: Callable[[Any], Awaitable[Any]] = answer
        self._name = name
        self._seconds = metrics.seconds.labels(name)
        self._failures = metrics.failures.labels(name)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        began = time.perf_counter()
        try:
            answer = msgspec.json.encode(await self._answer(self._decoder.decode(body)))
        except msgspec.MsgspecError as error:
            self._failures.inc()
            return Response(f"/{self._name}: the body is not what kube-scheduler sends here: {error}\n", 400)
        except Exception:
            self._failures.inc()
            raise
        finally:
            self._seconds.observe(time.perf_counter() - began)
        return Response(answer, media_type=JSON)


def make_app(extender: Extender, metrics: Metrics, promises: Callable[[], object], before_metrics: Callable[[], None]) -> Starlette:
    """The application. `promises` gives what /state shows; `before_metrics` brings gauges up to date."""

    async def filter_(args: ExtenderArgs) -> object:
        return extender.filter(args)

    async def prioritize(args: ExtenderArgs) -> object:
        return extender.prioritize(args)

    async def preempt(args: PreemptionArgs) -> object:
        return extender.preempt(args)

    async def bind(args: BindingArgs) -> object:
        return BindingResult(error=await extender.bind(args))

    async def healthz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain") if extender.ready else Response("pods, nodes and inventories are not read completely yet\n", 503)

    async def metrics_(_: Request) -> Response:
        before_metrics()
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def explain(request: Request) -> Response:
        namespace, name = request.query_params.get("namespace", "default"), request.query_params.get("name", "")
        answer = extender.explain(namespace, name)
        if answer is None:
            return Response(msgspec.json.encode({"error": f"kube-scheduler has not asked about pod {namespace}/{name} (or long ago)"}), 404, media_type=JSON)
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def state(_: Request) -> Response:
        return Response(encode(promises()), media_type=JSON)

    def post(name: str, args: type[Any], answer: Callable[[Any], Awaitable[object]]) -> Route:
        verb = Verb(name, args, answer, metrics)

        async def endpoint(request: Request) -> Response:
            return await verb(request)

        return Route(f"/{name}", endpoint, methods=["POST"])

    return Starlette(
        routes=[
            post("filter", ExtenderArgs, filter_),
            post("prioritize", ExtenderArgs, prioritize),
            post("preempt", PreemptionArgs, preempt),
            post("bind", BindingArgs, bind),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics_),
            Route("/explain", explain),
            Route("/state", state),
        ]
    )
