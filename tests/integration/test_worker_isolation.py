# SPDX-License-Identifier: Apache-2.0
"""A vendor cannot take its neighbours down: every way of misbehaving is named, quarantined, harmless to others, and forgiven."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hami_framework.errors import PluginError
from hami_framework.model import DeviceGrant, Grant, Host, Owner, share
from hami_framework.worker import WorkerPool, process, vendor

PLUGIN = Path(__file__).parents[1] / "data" / "plugins" / "good.py"


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Unix socket paths must stay below 108 bytes, which pytest's own temporary directories do not promise."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def pool(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerPool]:
    """Two vendors from one file, `acme` under test and its neighbour `bravo`, with budgets a test can wait for."""
    monkeypatch.setitem(process.BUDGET_SECONDS, "hami_health", 0.5)  # type: ignore[index]  # a dict behind its Mapping type
    monkeypatch.setitem(process.BUDGET_SECONDS, "hami_allocate", 0.5)  # type: ignore[index]
    monkeypatch.setattr(vendor, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr(vendor, "DISCOVERY_SECONDS", 0.3)
    monkeypatch.setattr(vendor, "FIRST_PAUSE_SECONDS", 0.2)
    for name in ("acme", "bravo"):
        (short_directory / f"{name}.py").write_text(PLUGIN.read_text().replace('NAME = "acme"', f'NAME = "{name}"'))
        (short_directory / name).mkdir()
    pool = WorkerPool(
        short_directory / "w",
        Host(node="n1"),
        environments={name: {"ACME_STATE": str(short_directory / name)} for name in ("acme", "bravo")},
        allow=(),
        plugin_files=[short_directory / "acme.py", short_directory / "bravo.py"],
    )
    yield pool
    await pool.stop()


def grant(device: str, uid: str = "u1") -> Grant:
    offer = share(1 << 30)
    return Grant(
        owner=Owner(kind="pod", uid=uid),
        node="n1",
        container="main",
        devices=(DeviceGrant(device_id=device, device_name=device, vendor="acme", resource="acme.com/xpu", offer=offer),),
    )


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until the condition holds; fails the test when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def test_devices_are_owned_and_named_by_the_core(pool: WorkerPool) -> None:
    await pool.start(wait_seconds=10)
    assert [(device.vendor, device.name) for device in pool.devices("bravo")] == [("bravo", "bravo-bravo-0"), ("bravo", "bravo-bravo-1")]
    assert pool.vendors["acme"].resources[0].count == "acme.com/xpu"
    edits = await pool.allocate("acme", grant("acme-1"))
    assert edits.env == {"ACME_VISIBLE": "acme-1"}
    assert (await pool.enforce("acme", grant("acme-1"))).isolation.memory == "soft"


@pytest.mark.parametrize(
    ("point", "behaviour", "reason"),
    [
        pytest.param("discover", "raise", "RuntimeError: the library said no", id="discover raises"),
        pytest.param("discover", "exit", "the worker died (exit status 7)", id="library calls exit"),
        pytest.param("discover", "segfault", "the worker died (signal 11)", id="library segfaults"),
        pytest.param("discover", "wrong", "answered nonsense", id="wrong type"),
        pytest.param("health", "hang", "overran its budget", id="health hangs"),
    ],
)
async def test_a_misbehaving_vendor_is_quarantined_alone_and_forgiven(pool: WorkerPool, short_directory: Path, point: str, behaviour: str, reason: str) -> None:
    await pool.start(wait_seconds=10)
    (short_directory / "acme" / point).write_text(behaviour)
    await until(lambda: pool.vendors["acme"].state == "quarantined")
    assert reason in pool.vendors["acme"].reason
    assert all(not device.health.ok and reason in device.health.reason for device in pool.devices("acme"))
    assert pool.vendors["bravo"].state == "ready"
    assert all(device.health.ok for device in pool.devices("bravo"))

    (short_directory / "acme" / point).unlink()
    await until(lambda: pool.vendors["acme"].state == "ready")
    assert all(device.health.ok for device in pool.devices("acme"))


async def test_a_vendor_that_hangs_at_start_does_not_delay_the_others(pool: WorkerPool, short_directory: Path) -> None:
    (short_directory / "acme" / "discover").write_text("hang")
    begun = time.monotonic()
    await pool.start()
    await until(lambda: pool.vendors["bravo"].state == "ready")
    assert time.monotonic() - begun < process.BUDGET_SECONDS["hami_discover"] / 2
    assert pool.vendors["acme"].state == "starting"


async def test_a_hang_in_allocate_fails_that_call_and_the_vendor_comes_back(pool: WorkerPool, short_directory: Path) -> None:
    await pool.start(wait_seconds=10)
    (short_directory / "acme" / "allocate").write_text("hang")
    with pytest.raises(PluginError, match="vendor 'acme', hook hami_allocate: overran its budget"):
        await pool.allocate("acme", grant("acme-0"))
    (short_directory / "acme" / "allocate").unlink()
    await until(lambda: pool.vendors["acme"].state == "ready")
    assert (await pool.allocate("acme", grant("acme-0"))).env


async def test_one_pod_that_cannot_be_served_does_not_cost_the_others_their_devices(pool: WorkerPool, short_directory: Path) -> None:
    await pool.start(wait_seconds=10)
    (short_directory / "acme" / "allocate").write_text("raise")
    for _ in range(5):
        with pytest.raises(PluginError, match="the library said no"):
            await pool.allocate("acme", grant("acme-0", uid="always the same pod"))
    assert pool.vendors["acme"].state == "ready"
    for uid in ("second", "third"):
        with pytest.raises(PluginError):
            await pool.allocate("acme", grant("acme-0", uid=uid))
    assert pool.vendors["acme"].state == "quarantined"


async def test_health_reaches_the_devices_and_recovers(pool: WorkerPool, short_directory: Path) -> None:
    await pool.start(wait_seconds=10)
    (short_directory / "acme" / "health").write_text("lost")
    await until(lambda: not pool.devices("acme")[0].health.ok, seconds=2)
    assert pool.devices("acme")[0].health.reason == "fell off the bus"
    assert pool.devices("acme")[1].health.ok
    (short_directory / "acme" / "health").unlink()
    await until(lambda: pool.devices("acme")[0].health.ok, seconds=2)


async def test_release_reaches_the_owner_and_can_be_asked_again(pool: WorkerPool, short_directory: Path) -> None:
    """`hami_release` of the vendor runs in its worker, with the grant and the devices that are still there."""
    await pool.start(wait_seconds=10)
    held = msgspec.structs.replace(grant("acme-1"), directory=str(short_directory))
    (short_directory / "acme" / "release").write_text("raise")
    with pytest.raises(PluginError, match="hook hami_release: RuntimeError"):
        await pool.release("acme", held)
    (short_directory / "acme" / "release").unlink()
    await pool.release("acme", held)
    assert (short_directory / "released").read_text() == "acme-1"


async def test_usage_is_read_on_demand(pool: WorkerPool) -> None:
    """`hami_usage` answers a reading per device, and may be a generator like every gathered answer."""
    await pool.start(wait_seconds=10)
    assert [(reading.device_id, reading.memory_used_bytes) for reading in await pool.usage("acme")] == [("acme-0", 1 << 20), ("acme-1", 1 << 20)]


def test_a_worker_gives_its_privileges_up_for_good() -> None:
    """In a child of our own: as root it becomes nobody and cannot come back; as anybody else it stays who it is and becomes nobody else."""
    program = """
import os
from hami_framework.worker.main import drop_privileges
own = os.geteuid()
wanted = 65534 if own == 0 else own
drop_privileges(wanted)
assert os.getresuid() == (wanted,) * 3, os.getresuid()
assert own != 0 or (os.getresgid() == (wanted,) * 3 and os.getgroups() == []), os.getgroups()
try:
    drop_privileges(wanted + 1)
except PermissionError:
    print("for good")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "for good\n"


async def test_a_worker_runs_as_the_user_it_was_given(short_directory: Path) -> None:
    (short_directory / "acme.py").write_text(PLUGIN.read_text())
    pool = WorkerPool(short_directory / "w", Host(node="n1"), allow=(), plugin_files=[short_directory / "acme.py"], users={"acme": os.geteuid()})
    await pool.start(wait_seconds=10)
    assert pool.vendors["acme"].state == "ready", pool.vendors["acme"].reason
    await pool.stop()


async def test_workers_are_killed_with_the_pool(pool: WorkerPool) -> None:
    await pool.start(wait_seconds=10)
    pids = [worker._process.pid for worker in pool._workers.values() if worker._process]
    await pool.stop()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
