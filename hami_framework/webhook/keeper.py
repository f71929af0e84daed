# SPDX-License-Identifier: Apache-2.0
"""Carries out what `certificates.plan` decides: reads Secrets and the webhook's configuration, and makes one write at a time.

Only the leading replica keeps. Every write names the version it is based on, so that a former leader who wakes up late
gets a conflict and reads again; that is also why the authorities are read last (see `certificates.plan`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from hami_framework.certificates.making import Wanted
from hami_framework.certificates.plan import Lives, Publish, Step, StoreAuthorities, StoreCertificate, World, next_step
from hami_framework.certificates.secrets import authorities_of, held_in, with_authorities, with_certificate
from hami_framework.errors import FormatError, Unavailable
from hami_framework.kube.client import JSON_PATCH, KubeClient, Object, path
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.webhook.live import LOOK_SECONDS
from hami_framework.webhook.metrics import Metrics

RETRY_SECONDS = (0.5, 30.0)
MOST_STEPS = 50
"""Writes in one go; a dozen make a whole installation. More means that somebody undoes what we do."""

ADMISSION = "admissionregistration.k8s.io"

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Leader(Protocol):
    """The part of `kube.lease.Election` that is needed here."""

    @property
    def leading(self) -> bool: ...

    async def wait_until(self, leading: bool) -> None: ...


class Keeper:
    """`run` keeps the certificates while this replica leads. `now` gives seconds since the epoch."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        authorities_secret: str,
        configuration: str,
        wanted: Sequence[Wanted],
        metrics: Metrics,
        lives: Lives = Lives(),  # noqa: B008 — frozen
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._namespace = client, namespace
        self._authorities_secret, self._configuration = authorities_secret, configuration
        self._wanted, self._lives, self._metrics, self._now = tuple(wanted), lives, metrics, now
        self._said: dict[str, str] = {}

    async def run(self, leader: Leader, look_seconds: float = LOOK_SECONDS) -> None:
        """For ever: wait to lead, then keep."""
        pause = RETRY_SECONDS[0]
        while True:
            await leader.wait_until(True)
            try:
                await self.settle(leader)
            except (KubeError, Unavailable) as error:
                _log.warning("certificates: %s; again in %.1f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(RETRY_SECONDS[1], 2 * pause)
                continue
            pause = RETRY_SECONDS[0]
            await asyncio.sleep(look_seconds)

    async def settle(self, leader: Leader) -> int:
        """Step by step until nothing is left to do, or we no longer lead; how many steps it took. Raises KubeError, Unavailable."""
        for steps in range(MOST_STEPS):
            if not leader.leading:
                return steps
            world, write = await self._read()
            step = next_step(world, self._wanted, self._now(), self._lives)
            if step is None:
                return steps
            await self._take(step, write)
        raise Unavailable(f"{MOST_STEPS} writes and no end: does somebody else write {self._authorities_secret} or {self._configuration}?")

    async def _take(self, step: Step, write: Callable[[Step], Awaitable[None]]) -> None:
        kind, what = _named(step)
        try:
            await write(step)
        except ApiError as error:
            self._metrics.steps.labels(kind, "refused").inc()
            if error.conflict or error.status == 422:  # somebody else wrote: look again
                _log.info("certificates: %s was changed by somebody else meanwhile", what)
                return
            raise
        except KubeError:
            self._metrics.steps.labels(kind, "unknown").inc()
            raise
        self._metrics.steps.labels(kind, "done").inc()
        _log.info("certificates: wrote %s: %s", what, step.why)

    async def _read(self) -> tuple[World, Callable[[Step], Awaitable[None]]]:
        """What there is, and how to write on top of exactly that."""
        configuration = await self._get(path("mutatingwebhookconfigurations", group=ADMISSION, name=self._configuration))
        secrets = {each.name: await self._secret(each.name) for each in self._wanted}
        authorities_secret = await self._secret(self._authorities_secret)
        world = World(
            bundle_pem=None if configuration is None else _bundle(configuration),
            held={name: self._readable(name, held_in, secret) for name, secret in secrets.items()},
            authorities=self._readable(self._authorities_secret, authorities_of, authorities_secret),
        )

        async def write(step: Step) -> None:
            match step:
                case StoreAuthorities():
                    await self._replace(with_authorities(authorities_secret, step.authorities))
                case StoreCertificate():
                    await self._replace(with_certificate(secrets[step.name], step.held))
                case Publish():
                    assert configuration is not None
                    place = path("mutatingwebhookconfigurations", group=ADMISSION, name=self._configuration)
                    await self._client.call(self._client.patch, place, _bundle_patch(configuration, step.bundle_pem), JSON_PATCH)

        return world, write

    def _readable(self, name: str, read: Callable[[Object], T], secret: Object) -> T | None:
        """What cannot be read is made anew; said once, because a person may want to know who damaged it."""
        try:
            return read(secret)
        except FormatError as error:
            if self._said.get(name) != str(error):
                self._said[name] = str(error)
                _log.error("certificates: %s; it is made anew", error)
            return None

    async def _get(self, place: str) -> Object | None:
        try:
            return await self._client.call(self._client.get, place)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def _secret(self, name: str) -> Object:
        found = await self._get(path("secrets", namespace=self._namespace, name=name))
        if found is None:
            raise Unavailable(
                f"Secret {self._namespace}/{name} does not exist; the chart makes it (empty): install it again, or create an empty Secret of that name"
            )
        return found

    async def _replace(self, secret: Object) -> None:
        place = path("secrets", namespace=self._namespace, name=secret["metadata"]["name"])
        await self._client.call(self._client.replace, place, secret)


def _bundle(configuration: Object) -> str:
    """What all its webhooks believe; "" when they differ, or it cannot be read."""
    bundles = {(webhook.get("clientConfig") or {}).get("caBundle") or "" for webhook in configuration.get("webhooks") or ()}
    try:
        return base64.b64decode(bundles.pop()).decode() if len(bundles) == 1 else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _bundle_patch(configuration: Object, bundle_pem: str) -> list[Object]:
    """`caBundle` of each webhook and nothing else, on top of the version that was read."""
    text = base64.b64encode(bundle_pem.encode()).decode()
    version = {"op": "test", "path": "/metadata/resourceVersion", "value": configuration["metadata"]["resourceVersion"]}
    webhooks = range(len(configuration.get("webhooks") or ()))
    return [version, *({"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": text} for number in webhooks)]


def _named(step: Step) -> tuple[str, str]:
    match step:
        case StoreAuthorities():
            return "authorities", "the authorities"
        case StoreCertificate():
            return "certificate", f"certificate {step.name}"
        case Publish():
            return "publish", "the webhook's caBundle"
