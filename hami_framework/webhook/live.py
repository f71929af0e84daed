# SPDX-License-Identifier: Apache-2.0
"""The certificate that the server shows, exchanged while it serves, and where it comes from."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from hami_framework.certificates.making import facts
from hami_framework.certificates.secrets import held_in
from hami_framework.errors import FormatError, HamiError, Unavailable
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import KubeError
from hami_framework.webhook.metrics import Metrics

LOOK_SECONDS = 10.0
"""How often the source is read once there is a certificate; until then every `FIRST_LOOK_SECONDS`."""
FIRST_LOOK_SECONDS = 0.5

Texts = tuple[str, str]
"""Certificate (with the chain above it) and private key, PEM."""

_log = logging.getLogger(__name__)


class LiveCertificate:
    """A TLS context whose certificate may be exchanged. Connections that are open keep the one they began with."""

    def __init__(self, metrics: Metrics) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._metrics = metrics
        self._loaded: Texts | None = None
        self._not_after = 0.0

    @property
    def usable(self) -> bool:
        """True while there is a certificate that has not run out."""
        return time.time() < self._not_after

    def use(self, texts: Texts) -> bool:
        """Show this one from now on; True when it is another than before. Raises FormatError when it is none: then the former one stays."""
        if texts == self._loaded:
            return False
        not_after = facts(texts[0]).not_after
        # Tried on a context of its own first: a chain that loads and a key that does not would leave the live one without either.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
            _load(context, texts)
        self._loaded, self._not_after = texts, not_after
        self._metrics.expiry.set(not_after)
        return True

    async def follow(self, read: Callable[[], Awaitable[Texts]], where: str, look_seconds: float = LOOK_SECONDS) -> None:
        """Read the source again and again, for ever. What cannot be read is logged once for each problem; the former certificate stays."""
        problem = ""
        while True:
            try:
                if self.use(await read()):
                    _log.info("certificate taken from %s; it runs out at %s", where, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._not_after)))
                problem = ""
            except HamiError as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.warning("no certificate from %s: %s%s", where, error, "; the former one stays in use" if self._loaded else "")
            await asyncio.sleep(look_seconds if self._loaded else min(FIRST_LOOK_SECONDS, look_seconds))


def from_files(certificate: Path, key: Path) -> Callable[[], Awaitable[Texts]]:
    """Files that others exchange (cert-manager, an operator). Raises Unavailable while one is not there."""

    async def read() -> Texts:
        try:
            return certificate.read_text(), key.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"{error}; mount the Secret with the certificate there") from error

    return read


def from_secret(client: KubeClient, namespace: str, name: str) -> Callable[[], Awaitable[Texts]]:
    """The Secret that the leader among us fills. Raises Unavailable while it is empty or the API server does not answer."""
    place = path("secrets", namespace=namespace, name=name)

    async def read() -> Texts:
        try:
            held = held_in(await client.call(client.get, place))
        except KubeError as error:
            raise Unavailable(str(error)) from error
        if held is None:
            raise Unavailable("it is empty; the leading replica fills it")
        return held.pair.certificate_pem, held.pair.private_key_pem

    return read


def _load(context: ssl.SSLContext, texts: Texts) -> None:
    """OpenSSL's chain loader takes file names only; a file in memory leaves no key on any disk."""
    descriptor = os.memfd_create("certificate")
    try:
        with os.fdopen(os.dup(descriptor), "w") as file:
            file.write("\n".join(texts))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, OSError) as error:
        raise FormatError(f"certificate and key cannot be used together: {error}") from error
    finally:
        os.close(descriptor)
