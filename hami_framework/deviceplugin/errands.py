# SPDX-License-Identifier: Apache-2.0
"""What may take long (a helper process, the API server) and must not keep the loop that wants it waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Errands:
    """Tasks on their own, until `close`. One that fails is logged."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()

    def send(self, errand: Coroutine[Any, Any, None]) -> None:
        """Begin it."""
        task = asyncio.create_task(errand)
        self._under_way.add(task)
        task.add_done_callback(self._returned)

    async def settle(self, seconds: float) -> None:
        """Wait for all of them, at most so long."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)

    async def close(self) -> None:
        """End what is still under way."""
        errands = tuple(self._under_way)
        for errand in errands:
            errand.cancel()
        await asyncio.gather(*errands, return_exceptions=True)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an errand failed", exc_info=error)
