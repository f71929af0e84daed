# SPDX-License-Identifier: Apache-2.0
"""Takes dead processes out of a container's books, in a helper process that has nothing to lose (`enforcement.reclaim`)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Collection, Sequence

from hami_framework.deviceplugin.drift import Key
from hami_framework.deviceplugin.errands import Errands
from hami_framework.deviceplugin.watched import Watched
from hami_framework.enforcement import container as containers
from hami_framework.enforcement import reclaim
from hami_framework.enforcement.region import ProcessUse

log = logging.getLogger(__name__)

HELPER_SECONDS = 2.0
MUTEX_SECONDS = 1.0
PAUSE_SECONDS = 10.0
HELPERS = 2
"""Helper processes at once: they are short, and there are nodes with hundreds of containers."""


class Reclaimer:
    """One helper per container at a time; a container that prevents it is left alone for a while."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._helpers = asyncio.Semaphore(HELPERS)
        self._under_way: set[Key] = set()
        self._again: dict[Key, float] = {}

    def forget_all_but(self, keys: Collection[Key]) -> None:
        """These containers are still there."""
        self._again = {key: at for key, at in self._again.items() if key in keys}

    def take_out(self, watched: Watched, dead: Sequence[ProcessUse]) -> None:
        """Send a helper, unless one is there or it is not the time."""
        if dead and watched.key not in self._under_way and self._again.get(watched.key, 0.0) <= time.monotonic():
            self._under_way.add(watched.key)
            self._errands.send(self._reclaim(watched, [f"{process.slot}:{process.state}" for process in dead]))

    async def _reclaim(self, watched: Watched, pairs: Sequence[str]) -> None:
        try:
            problem = await self._help(watched, pairs)
        finally:
            self._under_way.discard(watched.key)
        self._again.pop(watched.key, None)
        if problem is not None:
            self._again[watched.key] = time.monotonic() + PAUSE_SECONDS
            log.warning("%s: the dead are not taken out: %s; again in %.0f s", watched.name, problem, PAUSE_SECONDS)

    async def _help(self, watched: Watched, pairs: Sequence[str]) -> str | None:
        """Run the helper; what went wrong, or None."""
        path = containers.state_path(watched.directory)
        command = (sys.executable, "-I", "-S", reclaim.__file__, str(MUTEX_SECONDS), *pairs)
        async with self._helpers:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                return str(error)
            try:
                helper = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=descriptor,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={},
                )
            finally:
                os.close(descriptor)
            try:
                async with asyncio.timeout(HELPER_SECONDS + MUTEX_SECONDS):
                    output, problem = await helper.communicate()
            except TimeoutError:
                output, problem = b"", b"it did not end in time"
            finally:
                if helper.returncode is None:
                    helper.kill()
                    await helper.communicate()
        if helper.returncode != 0:
            return problem.decode(errors="replace").strip()[-400:] or f"the helper ended with status {helper.returncode}"
        log.info("%s: %s dead processes taken out of its books", watched.name, output.decode().strip())
        return None
