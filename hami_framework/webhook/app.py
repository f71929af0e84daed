# SPDX-License-Identifier: Apache-2.0
"""The HTTP rim: routes, size, decoding, timing. What is answered is decided in `codec.mutation` and `webhook.quotas`."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hami_framework.codec.mutation import review, wanted
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import FormatError
from hami_framework.model import PodRequest
from hami_framework.webhook.metrics import Metrics
from hami_framework.webhook.rules import Reading

LARGEST_BODY = 4 << 20
"""Bytes. The API server takes objects of at most 3 MiB (`MaxRequestBodyBytes`), and a review of a creation holds one of them."""
JSON = "application/json"

Look = Callable[[str, PodRequest], Awaitable[tuple[tuple[str, ...], tuple[str, ...]]]]
"""Namespace and request → objections and notes."""

_log = logging.getLogger(__name__)


class TooLarge(Exception):
    """The body is longer than any review."""


def make_app(reading: Reading, look: Look, ready: Callable[[], str], metrics: Metrics, *, mutate: bool = True) -> Starlette:
    """The application. `ready` says what is missing, "" when nothing is; `mutate=False` leaves /mutate out (the plain port)."""

    async def mutate_(request: Request) -> Response:
        began = time.perf_counter()
        try:
            answer = await _answer(await _body(request), reading, look)
        except TooLarge:
            metrics.reviews.labels("malformed").inc()
            return _said(f"the body is longer than {LARGEST_BODY} bytes; no AdmissionReview of a pod is", 413)
        except (FormatError, msgspec.MsgspecError) as error:
            metrics.reviews.labels("malformed").inc()
            return _said(f"this is not what the API server sends here: {error}", 400)
        except ClientDisconnect:
            metrics.reviews.labels("malformed").inc()
            return _said("the body ended early", 400)
        except Exception:
            metrics.reviews.labels("failed").inc()
            _log.exception("a review could not be answered; the API server goes by the configuration's failurePolicy")
            return _said("an error of the webhook's own; its log says more", 500)
        finally:
            metrics.seconds.observe(time.perf_counter() - began)
        response = answer["response"]
        metrics.reviews.labels("denied" if not response["allowed"] else "patched" if "patch" in response else "untouched").inc()
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def healthz(_: Request) -> Response:
        return _said("ok", 200)

    async def readyz(_: Request) -> Response:
        missing = ready()
        return _said(missing or "ok", 503 if missing else 200)

    async def metrics_(_: Request) -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics_)]
    return Starlette(routes=[*routes, Route("/mutate", mutate_, methods=["POST"])] if mutate else routes)


async def _answer(body: bytes, reading: Reading, look: Look) -> dict[str, Any]:
    document = msgspec.json.decode(body)
    if not isinstance(document, dict):
        raise FormatError(f"a JSON object is needed, not {type(document).__name__}")
    catalog: ResourceCatalog = reading.catalog
    asking = wanted(document, catalog, policies=reading.policies)
    objections, notes = ((), ()) if asking is None or asking[1].empty else await look(*asking)
    return review(document, catalog, policies=reading.policies, rules=reading.rules, objections=objections, notes=notes)


async def _body(request: Request) -> bytes:
    """The whole body, given up as soon as it is too long: nobody fills our memory."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > LARGEST_BODY:
        raise TooLarge
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


def _said(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, media_type="text/plain")
