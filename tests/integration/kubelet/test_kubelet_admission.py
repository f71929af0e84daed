# SPDX-License-Identifier: Apache-2.0
"""Device allocation at admission: order, reuse, preference, recording, failure."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from hami_framework.kubelet_api import podresources_v1_pb2 as resources_api
from hami_framework.sandbox.kubelet import checkpoint


async def test_one_allocate_for_each_container_init_containers_first(lab: Any) -> None:
    plugin = await lab.plugin(*"abcdef")
    uid = lab.pod("p", {"x": 2, "y": 1}, sidecars={"s": 1})
    await lab.phase(uid, "Running")
    allocated = [len(ids) for method, ids in plugin.calls if method == "Allocate"]
    assert allocated == [1, 2, 1]
    assert len({device for ids in lab.checkpoint().values() for device in ids}) == 4


async def test_the_record_is_in_the_checkpoint_before_the_first_prestart_and_not_before_allocate_was_answered(lab: Any) -> None:
    plugin = await lab.plugin(*"abc")
    seen: dict[str, Any] = {}

    async def on_allocate(ids: tuple[str, ...]) -> None:
        seen["allocate"] = lab.checkpoint()
        seen["listed"] = (await lab.list_resources())[0].pod_resources

    async def on_pre_start(ids: tuple[str, ...]) -> None:
        seen["prestart"] = lab.checkpoint()
        await plugin.write_specs(ids)

    plugin.on_allocate, plugin.on_pre_start = on_allocate, on_pre_start
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    assert seen["allocate"] == {}
    assert [(pod.name, [len(item.devices) for item in pod.containers]) for pod in seen["listed"]] == [("p", [0])]
    assert list(seen["prestart"]) == [(uid, "main")]


async def test_the_checkpoint_has_kubelets_shape(lab: Any) -> None:
    await lab.plugin("a", numa=1)
    await lab.plugin("b", resource="example.com/other", socket="other.sock")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    content = lab.paths.checkpoint.read_bytes()
    saved = checkpoint.decode(content)
    assert saved.records[0].devices == {1: ("a",)}
    assert saved.records[0].response
    assert saved.registered == {"example.com/slot": ("a",), "example.com/other": ("b",)}
    assert content.startswith(b'{"Data":{"PodDeviceEntries":[{"PodUID":"')


async def test_an_init_container_and_a_sidecar_share_the_token_the_app_gets_another(lab: Any) -> None:
    """What the real 1.36.3 did with init1, sidecar, app1, app2 of one slot each."""
    plugin = await lab.plugin(*"abcdef")
    uid = lab.pod("p", {"app1": 1, "app2": 1}, init={"init1": 1}, sidecars={"side": 1})
    await lab.phase(uid, "Running")
    ids = {name: found for (_, name), found in lab.checkpoint().items()}
    assert ids["init1"] == ids["side"]
    assert len({*ids["side"], *ids["app1"], *ids["app2"]}) == 3
    assert plugin.count("Allocate") == 4
    assert plugin.count("GetPreferredAllocation") == 3


async def test_reuse_takes_finished_init_devices_without_asking_and_asks_for_the_rest_only(lab: Any) -> None:
    plugin = await lab.plugin(*"abcdef")
    asked: list[Any] = []

    def preferred(request: Any) -> list[str]:
        asked.append(request)
        return ["f"]

    plugin.preferred = preferred
    uid = lab.pod("p", {"main": 3}, init={"one": 2})
    await lab.phase(uid, "Running")
    ids = {name: set(found) for (_, name), found in lab.checkpoint().items()}
    assert ids["one"] <= ids["main"]
    assert len(ids["main"]) == 3
    assert set(asked[-1].must_include_deviceIDs) == ids["one"]
    assert asked[-1].allocation_size == 3


async def test_the_preference_is_intersected_and_filled_up(lab: Any) -> None:
    plugin = await lab.plugin(*"abcd")
    plugin.preferred = lambda request: ["d", "no-such-device"]
    uid = lab.pod("p", {"main": 2})
    await lab.phase(uid, "Running")
    [ids] = lab.checkpoint().values()
    assert "d" in ids
    assert set(ids) < set("abcd")


@pytest.mark.parametrize("method", ["preferred", "on_allocate"])
async def test_an_error_of_the_plugin_at_admission_is_the_end_of_the_pod(lab: Any, method: str) -> None:
    plugin = await lab.plugin("a")

    async def fail(ids: tuple[str, ...]) -> None:
        raise RuntimeError("no luck")

    setattr(plugin, method, fail if method == "on_allocate" else lambda request: 1 / 0)
    uid = lab.pod("p", {"main": 1})
    status = await lab.phase(uid, "Failed")
    assert status["reason"] == "UnexpectedAdmissionError"
    assert "which is unexpected" in status["message"]
    await lab.until(lambda: [event[:2] for event in lab.api.events] == [("p", "UnexpectedAdmissionError")])
    plugin.on_allocate, plugin.preferred = plugin._nothing, lambda request: []
    await lab.phase(lab.pod("next", {"main": 1}), "Running")


async def test_more_than_there_is_fails_the_pod_and_ids_are_freed_only_at_the_next_admission(lab: Any) -> None:
    await lab.plugin("a", "b")
    first = lab.pod("first", {"main": 2})
    await lab.phase(first, "Running")
    assert "Requested: 1, Available: 0" in (await lab.phase(lab.pod("second", {"main": 1}), "Failed"))["message"]
    lab.delete(first)
    await lab.until(lambda: first not in lab.api.pods)
    assert (first, "main") in lab.checkpoint()
    third = lab.pod("third", {"main": 1})
    await lab.phase(third, "Running")
    assert list(lab.checkpoint()) == [(third, "main")]


async def test_a_resource_nobody_registered_is_silently_ignored(lab: Any) -> None:
    """kubelet drops unknown extended resources: the container runs without the device."""
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    assert lab.view(uid, "main")["slots"] == []


async def test_two_resources_of_one_container_get_one_allocate_each(lab: Any) -> None:
    first = await lab.plugin("a")
    second = await lab.plugin("b", resource="example.com/other", socket="other.sock")
    uid = lab.pod("p", {}, spec={"containers": [{"name": "main", "resources": {"limits": {"example.com/slot": "1", "example.com/other": 1, "cpu": "500m"}}}]})
    await lab.phase(uid, "Running")
    assert (first.count("Allocate"), second.count("Allocate")) == (1, 1)
    assert lab.view(uid, "main")["slots"] == ["a", "b"]


async def test_pod_resources_lists_one_entry_for_each_id_and_hides_init_containers(lab: Any) -> None:
    await lab.plugin(*"abcdef")
    uid = lab.pod("p", {"main": 2}, init={"one": 1}, sidecars={"side": 1})
    await lab.phase(uid, "Running")
    [answer] = await lab.list_resources()
    [pod] = answer.pod_resources
    assert [item.name for item in pod.containers] == ["side", "main"]
    assert [[list(entry.device_ids) for entry in item.devices] for item in pod.containers] == [
        [[device] for device in lab.checkpoint()[uid, "side"]],
        [[device] for device in lab.checkpoint()[uid, "main"]],
    ]
    got = await lab.resources_stub("Get", resources_api.GetPodResourcesRequest(pod_name="p", pod_namespace="default"))
    assert got.pod_resources == pod
    allocatable = await lab.resources_stub("GetAllocatableResources", resources_api.AllocatableResourcesRequest())
    assert sorted(entry.device_ids[0] for entry in allocatable.devices) == list("abcdef")


async def test_pod_resources_is_rate_limited(lab: Any) -> None:
    answers = await lab.list_resources(calls=40)
    rejected = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert 20 <= len(rejected) <= 30
    assert all(error.code().name == "RESOURCE_EXHAUSTED" for error in rejected)
    await asyncio.sleep(0.11)
    assert not isinstance((await lab.list_resources())[0], BaseException)


async def test_admission_is_serial_and_starts_are_concurrent(lab: Any) -> None:
    plugin = await lab.plugin(*(f"s{number}" for number in range(40)))
    admitting, most = 0, 0
    release = asyncio.Event()

    async def on_allocate(ids: tuple[str, ...]) -> None:
        nonlocal admitting, most
        admitting += 1
        most = max(most, admitting)
        await asyncio.sleep(0)
        admitting -= 1

    async def on_pre_start(ids: tuple[str, ...]) -> None:
        await release.wait()
        await plugin.write_specs(ids)

    plugin.on_allocate, plugin.on_pre_start = on_allocate, on_pre_start
    uids = [lab.pod(f"p{number}", {"main": 1}) for number in range(40)]
    await lab.until(lambda: plugin.count("PreStartContainer") == 40)
    release.set()
    for uid in uids:
        await lab.phase(uid, "Running")
    assert most == 1
    for uid in uids:
        view = lab.view(uid, "main")
        assert [f"SLOT_{device}" for device in view["slots"]] == [key for key in view["env"] if key.startswith("SLOT_")]
