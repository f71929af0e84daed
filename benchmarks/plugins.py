# SPDX-License-Identifier: Apache-2.0
"""What a hook call costs: cached, put to a plugin in this process under its budget, and put to a worker process.

python -m benchmarks.plugins [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from hami_framework.model import Capacity, DeviceClass, DeviceGrant, DeviceRequest, Grant, Host, Owner, share
from hami_framework.plugins import load_registry
from hami_framework.worker import WorkerPool

PLUGIN = Path(__file__).parents[1] / "tests" / "data" / "plugins" / "good.py"
ROUNDS = 2000


def microseconds(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median time of one call."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def in_process() -> dict[str, float]:
    """`hami_partition` as the extender asks it."""
    registry = load_registry(allow=(), plugin_files=[PLUGIN])
    device_class = DeviceClass(model="Acme XPU", vendor="good", capacity=Capacity(memory_bytes=16 << 30))
    sizes = iter(range(1, ROUNDS + 1))
    direct = registry.vendors["good"]
    request = DeviceRequest(memory_bytes=1 << 30)
    return {
        "partition_plain_call_us": microseconds(lambda: direct.call("hami_partition", device_class=device_class, request=request)),
        "partition_first_time_us": microseconds(lambda: registry.partition(device_class, DeviceRequest(memory_bytes=next(sizes) << 20))),
        "partition_cached_us": microseconds(lambda: registry.partition(device_class, request)),
    }


async def in_a_worker(directory: Path) -> dict[str, float]:
    """`hami_allocate` as the agent asks it, and how long a vendor takes to come up."""
    pool = WorkerPool(directory, Host(node="bench"), allow=(), plugin_files=[PLUGIN])
    begun = time.perf_counter()
    await pool.start(wait_seconds=10)
    start_seconds = time.perf_counter() - begun
    held = DeviceGrant(device_id="acme-0", device_name="acme-0", vendor="good", resource="acme.com/xpu", offer=share(1 << 30))
    grant = Grant(owner=Owner(kind="pod", uid="u"), node="bench", container="main", devices=(held,))
    try:
        allocate = await awaited_microseconds(lambda: pool.allocate("good", grant))
    finally:
        await pool.stop()
    return {"worker_start_to_devices_ms": start_seconds * 1e3, "allocate_in_worker_us": allocate}


async def awaited_microseconds(action: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Median time of one awaited call."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        figures = in_process() | asyncio.run(in_a_worker(directory))
    finally:
        shutil.rmtree(directory)
    if as_json:
        print(json.dumps({name: round(figure, 2) for name, figure in figures.items()}))
        return
    for name, figure in figures.items():
        print(f"{name:30} {figure:10.1f}")


if __name__ == "__main__":
    main()
