# SPDX-License-Identifier: Apache-2.0
"""A plugin whose channel is closed under a call fails that call, as in kubelet; it must not end the task that made the call."""

from __future__ import annotations

import asyncio

import pytest

from hami_framework.sandbox.kubelet.devices import AdmissionError
from hami_framework.sandbox.kubelet.registration import _refusals


async def test_a_cancellation_that_nobody_asked_for_is_a_refusal() -> None:
    async def call_on_a_closed_channel() -> None:
        with _refusals("Allocate: "):
            raise asyncio.CancelledError  # what grpc.aio raises in the caller when its channel is closed

    with pytest.raises(AdmissionError, match="Allocate: rpc error: code = Canceled"):
        await asyncio.create_task(call_on_a_closed_channel())


async def test_a_real_cancellation_goes_through() -> None:
    async def call() -> None:
        with _refusals():
            await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
