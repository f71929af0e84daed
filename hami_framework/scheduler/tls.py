# SPDX-License-Identifier: Apache-2.0
"""TLS for kube-schedulers that ask from another machine: our certificate, and the CA that theirs must come from.

Whoever may POST /bind binds pods, so with a client CA no handshake succeeds without a certificate of it. Files are read
again when they change (a mounted Secret is replaced by a rename); files that do not fit together leave the last good
ones in force.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from hami_framework.errors import ConfigError

LOOK_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """PEM files. Without `client_ca` anybody who reaches the port may ask."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def state(self) -> tuple[object, ...]:
        """Changes whenever one of the files does. Raises OSError when one is not there."""
        stats = [path.stat() for path in (self.certificate, self.key, self.client_ca) if path is not None]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)

    def load(self) -> ssl.SSLContext:
        """A context made of the files as they are now. Raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # A session that is resumed skips the client's certificate: a client of a CA that was taken away would get in for hours.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(cafile=self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(str(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)
            raise ConfigError(f"TLS files {names}: not usable: {error}") from error
        return context


class ReloadingTls:
    """`context` is for the listening socket; new connections get what the files held last."""

    def __init__(self, files: Files) -> None:
        """Raises ConfigError when the files are not usable now."""
        self._files = files
        self._state = _state(files)
        self._current = files.load()
        self.context = files.load()
        # A live context can be given another certificate, but never lose a CA: so each handshake is handed the newest context.
        self.context.sni_callback = self._hand_over

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def look(self) -> bool:
        """Read the files again if they have changed; True when new ones are in force."""
        try:
            state = _state(self._files)
            if state == self._state:
                return False
            self._current, self._state = self._files.load(), state
        except ConfigError as error:
            _log.error("%s; the ones read before stay in force", error)
            return False
        _log.info("TLS files have changed; new connections use them")
        return True

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()


def _state(files: Files) -> tuple[object, ...]:
    try:
        return files.state()
    except OSError as error:
        raise ConfigError(f"TLS files: {error}") from error
