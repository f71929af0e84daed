# SPDX-License-Identifier: Apache-2.0
"""The same faults as `e2e/tests/test_api_faults.py`, in front of the sandbox's API server: quick, and on every machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from e2e.faults.stand import Stand, standing
from hami_framework.codec import inventories
from hami_framework.kube.credentials import Credentials
from hami_framework.sandbox.apiserver import ApiServer

BINDING = r"^POST /api/v1/namespaces/default/pods/[^/]+/binding"


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    api = ApiServer(definitions=(inventories.CRD,))
    await api.start()
    async with standing(Credentials(server=api.url), tmp_path, nodes=1, devices=2) as made:
        yield made
    await api.stop()


@pytest.mark.parametrize("kind", ["swallow", "twice", "cut"])
async def test_a_binding_of_unknown_outcome_is_never_granted_twice(stand: Stand, kind: str) -> None:
    fault = stand.proxy.orders.add(BINDING, kind, times=4)  # type: ignore[arg-type]
    pods = await stand.pods(10)
    for _ in range(3):
        await stand.place(pods, 20)
    found = await stand.verdict()
    assert (found.wrong, found.bound, fault.hits) == ([], 8, 4)


async def test_the_api_server_goes_and_comes_back(stand: Stand) -> None:
    pods = await stand.pods(10)
    placing = asyncio.create_task(stand.place(pods, 30))
    await asyncio.sleep(0.05)
    await stand.proxy.go_down()
    await asyncio.sleep(1.0)
    await stand.proxy.come_up()
    await placing
    await stand.place(pods, 20)
    found = await stand.verdict()
    assert (found.wrong, found.bound) == ([], 8)
