# SPDX-License-Identifier: Apache-2.0
"""The contract every vendor's package keeps, as a test suite to inherit.

    from hami_framework.testing.contract import VendorContract

    class TestContract(VendorContract):
        vendor = "acme"

The tests run the package the way the node agent does: in a worker process, against the fake library of each machine
that its `hami_machines` names. Override `machines` (or the fixture `worker_environment`) to test against real hardware.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from hami_framework.model import Device, DeviceClass, DeviceGrant, DeviceRequest, Grant, Offer, Owner, Rejection, ResourceNames
from hami_framework.plugins import LoadedVendor, find_sources, load
from hami_framework.testing.stage import Node
from hami_framework.worker import WorkerPool

T = TypeVar("T")


class VendorContract:
    """Inherit, set `vendor`, and every promise of the hook specification that can be checked from outside is checked."""

    vendor: ClassVar[str]
    """The name the package registers under."""
    plugin_file: ClassVar[Path | None] = None
    """For a plugin that is a single file instead of an installed package."""
    requests: ClassVar[tuple[DeviceRequest, ...]] = (
        DeviceRequest(),
        DeviceRequest(memory_bytes=1 << 30),
        DeviceRequest(memory_bytes=3000 << 20, core_percent=30),
        DeviceRequest(core_percent=50),
        DeviceRequest(count=2),
    )
    """What is asked of `hami_partition`."""

    @pytest.fixture(scope="class")
    @classmethod
    def plugin(cls) -> LoadedVendor:
        """The package, found and checked as the core does it."""
        files = [cls.plugin_file] if cls.plugin_file else []
        sources, problems = find_sources([] if files else [cls.vendor], files)
        assert not problems, [problem.what for problem in problems]
        return load(sources[0])

    @pytest.fixture(scope="class")
    @classmethod
    def nodes(cls, plugin: LoadedVendor) -> Iterator[dict[str, Node]]:
        """One made-up node for each machine the package can play."""
        machines = tuple(plugin.call("hami_machines") or ())
        directory = Path(tempfile.mkdtemp(dir="/tmp"))
        nodes = {}
        for number, machine in enumerate(machines):
            (directory / str(number)).mkdir()
            nodes[machine.name] = Node(machine, directory / str(number))
        yield nodes
        shutil.rmtree(directory)

    @classmethod
    def on(cls, node: Node, what: Callable[[WorkerPool], Coroutine[Any, Any, T]]) -> T:
        """Run `what` with the package in its worker process on this node."""

        async def run() -> T:
            files = [cls.plugin_file] if cls.plugin_file else []
            pool = WorkerPool(node.directory / "w", node.host, {cls.vendor: node.environment}, allow=[] if files else [cls.vendor], plugin_files=files)
            await pool.start(wait_seconds=15)
            try:
                assert pool.vendors[cls.vendor].state == "ready", pool.vendors[cls.vendor].reason
                return await what(pool)
            finally:
                await pool.stop()

        return asyncio.run(run())

    @pytest.fixture(scope="class")
    @classmethod
    def inventories(cls, nodes: dict[str, Node]) -> dict[str, tuple[Device, ...]]:
        """What is discovered on each machine."""

        async def devices(pool: WorkerPool) -> tuple[Device, ...]:
            return pool.devices(cls.vendor)

        return {name: cls.on(node, devices) for name, node in nodes.items()}

    def classes(self, inventories: dict[str, tuple[Device, ...]]) -> list[DeviceClass]:
        """Every class of device found on any machine."""
        return list({device.device_class: None for devices in inventories.values() for device in devices})

    def test_it_declares_resource_names_or_none(self, plugin: LoadedVendor) -> None:
        for family in plugin.resources:
            assert isinstance(family, ResourceNames)
            for name in (*family.slot_resources, *family.aliases):
                domain, _, rest = name.partition("/")
                assert "." in domain, f"{name}: an extended resource is named domain/name"
                assert 0 < len(rest) <= 63, f"{name}: an extended resource is named domain/name"

    def test_it_can_play_a_machine(self, nodes: dict[str, Node]) -> None:
        assert nodes or self.plugin_file, "implement hami_machines, so that the sandbox and this contract can try the package"

    def test_discovery_gives_stable_unique_ids(self, inventories: dict[str, tuple[Device, ...]], nodes: dict[str, Node]) -> None:
        for name, devices in inventories.items():
            assert devices, f"machine {name} has no devices"
            assert len({device.id for device in devices}) == len(devices)
            assert len({device.name for device in devices}) == len(devices)
            again = self.on(nodes[name], lambda pool: _devices(pool, self.vendor))
            assert [device.id for device in again] == [device.id for device in devices]

    def test_capacity_is_a_real_amount(self, inventories: dict[str, tuple[Device, ...]]) -> None:
        for device_class in self.classes(inventories):
            assert device_class.capacity.memory_bytes >= 1 << 30, "memory_bytes is in bytes"
            assert device_class.capacity.shares >= 1
            assert device_class.modes, "a device can be used in some way"

    def test_links_name_devices_of_the_node(self, inventories: dict[str, tuple[Device, ...]]) -> None:
        for devices in inventories.values():
            ids = {device.id for device in devices}
            for device in devices:
                assert {link.peer for link in device.links} <= ids - {device.id}

    def test_offers_are_pure_and_never_exceed_the_device(self, plugin: LoadedVendor, inventories: dict[str, tuple[Device, ...]]) -> None:
        for device_class in self.classes(inventories):
            for request in self.requests:
                resolved = request.resolved(device_class)
                answer = tuple(plugin.call("hami_partition", device_class=device_class, request=resolved) or ())
                assert answer == tuple(plugin.call("hami_partition", device_class=device_class, request=resolved) or ()), "hami_partition is pure"
                for offer in answer:
                    if isinstance(offer, Offer):
                        self.check_offer(device_class, resolved, offer)

    def check_offer(self, device_class: DeviceClass, request: DeviceRequest, offer: Offer) -> None:
        """One offer against the device's class and what was asked."""
        capacity = device_class.capacity
        assert device_class.mode(offer.mode), f"offers mode {offer.mode!r} which its device class does not have"
        assert 0 < offer.cost.memory_bytes <= capacity.memory_bytes
        assert 0 <= offer.cost.core_percent <= capacity.core_percent
        assert offer.cost.units <= capacity.units
        totals = {counter.name: counter.amount for counter in capacity.counters}
        for counter in offer.cost.counters:
            assert counter.amount <= totals.get(counter.name, 0)
        if offer.cost.interval:
            assert all(0 <= start <= capacity.line - offer.cost.interval.size for start in offer.cost.interval.starts)
        if request.memory_bytes is not None:
            assert offer.cost.memory_bytes >= request.memory_bytes, "an offer gives at least what was asked"
        if request.whole:
            assert offer.exclusive, "no amount at all asks for whole devices, exclusively"

    def test_more_memory_than_the_device_has_is_not_offered(self, plugin: LoadedVendor, inventories: dict[str, tuple[Device, ...]]) -> None:
        for device_class in self.classes(inventories):
            request = DeviceRequest(memory_bytes=device_class.capacity.memory_bytes + (1 << 30))
            answer = tuple(plugin.call("hami_partition", device_class=device_class, request=request) or ())
            assert all(isinstance(item, Rejection) for item in answer)

    def test_allocate_enforce_release_are_idempotent(self, plugin: LoadedVendor, nodes: dict[str, Node], inventories: dict[str, tuple[Device, ...]]) -> None:
        for name, node in nodes.items():
            grants = self.grants(plugin, node, inventories[name])
            assert grants, f"nothing at all is offered on {name}"

            async def twice(pool: WorkerPool, grants: list[Grant] = grants) -> None:
                for grant in grants:
                    Path(grant.directory).mkdir(parents=True, exist_ok=True)
                    assert await pool.allocate(self.vendor, grant) == await pool.allocate(self.vendor, grant)
                    assert await pool.enforce(self.vendor, grant) == await pool.enforce(self.vendor, grant)
                    (await pool.allocate(self.vendor, grant)).merged((await pool.enforce(self.vendor, grant)).edits)
                    await pool.release(self.vendor, grant)
                    await pool.release(self.vendor, grant)

            self.on(node, twice)

    def grants(self, plugin: LoadedVendor, node: Node, devices: tuple[Device, ...]) -> list[Grant]:
        """A grant on the first device for each request that is offered something."""
        device = devices[0]
        grants = []
        for number, request in enumerate(self.requests):
            offers = [
                o
                for o in plugin.call("hami_partition", device_class=device.device_class, request=request.resolved(device.device_class)) or ()
                if isinstance(o, Offer)
            ]
            if offers and request.count == 1:
                held = DeviceGrant(device_id=device.id, device_name=device.name, vendor=self.vendor, resource="test", offer=offers[0], **_place(offers[0]))
                owner = Owner(kind="pod", uid=f"uid-{number}", namespace="default", name=f"pod-{number}")
                directory = str(node.directory / "grants" / str(number))
                grants.append(Grant(owner=owner, node=node.host.node, container="main", devices=(held,), directory=directory))
        return grants


async def _devices(pool: WorkerPool, vendor: str) -> tuple[Device, ...]:
    return pool.devices(vendor)


def _place(offer: Offer) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if offer.cost.interval:
        place["start"] = offer.cost.interval.starts[0]
    if offer.cost.units:
        place["units"] = hex((1 << offer.cost.units) - 1)
    return place
