# SPDX-License-Identifier: Apache-2.0
"""Registration as kubelet 1.36 has it: what it checks, whose answer it uses, and what the end of a stream does."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as api


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "v1alpha"}, "not supported by kubelet"),
        ({"resource": "slot"}, "is invalid"),
        ({"resource": "kubernetes.io/slot"}, "is invalid"),
        ({"resource": "example.com/" + "x" * 64}, "is invalid"),
        ({"endpoint": "nobody.sock"}, "failed to dial"),
    ],
    ids=["version", "no-domain", "kubernetes.io", "name-too-long", "nobody-serves"],
)
async def test_a_wrong_registration_is_refused(lab: Any, change: dict[str, str], words: str) -> None:
    await lab.kubelet.kill()
    lab.boot(dial_timeout_s=0.2)
    await lab.kubelet.start()
    plugin = await lab.plugin("a")
    with pytest.raises(grpc.aio.AioRpcError, match=words):
        await plugin.register(**change)


async def test_the_plugins_own_options_count_not_those_in_the_request(lab: Any) -> None:
    plugin = await lab.plugin("a")
    plugin.options = api.DevicePluginOptions(pre_start_required=False)
    plugin.write_spec("a", {"env": ["X=1"]})
    await plugin.register(claimed=api.DevicePluginOptions(pre_start_required=True))
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    assert plugin.count("PreStartContainer") == 0


async def test_health_reaches_node_status(lab: Any) -> None:
    plugin = await lab.plugin("a", "b", "c")
    await lab.until(lambda: lab.api.node.get("status", {}).get("allocatable", {}).get("example.com/slot") == "3")
    await plugin.set_health(b=False)
    await lab.until(lambda: lab.api.node["status"]["allocatable"]["example.com/slot"] == "2")
    assert lab.api.node["status"]["capacity"]["example.com/slot"] == "3"


async def test_end_of_stream_makes_all_devices_unhealthy_but_keeps_the_capacity(lab: Any) -> None:
    plugin = await lab.plugin("a", "b")
    await plugin.down()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 0})
    await lab.until(lambda: lab.api.node["status"]["allocatable"]["example.com/slot"] == "0")
    assert lab.api.node["status"]["capacity"]["example.com/slot"] == "2"


async def test_the_resource_goes_after_the_grace_period(lab: Any) -> None:
    await lab.kubelet.kill()
    lab.boot(endpoint_stop_grace_s=0.0)
    await lab.kubelet.start()
    plugin = await lab.plugin("a")
    await lab.until(lambda: lab.api.node.get("status", {}).get("capacity", {}).get("example.com/slot") == "1")
    await plugin.down()
    await lab.until(lambda: lab.api.node["status"]["capacity"].get("example.com/slot", "absent") is None)
    assert lab.kubelet.registered() == {}


async def test_the_last_registration_wins(lab: Any) -> None:
    first = await lab.plugin("a", "b")
    second = await lab.plugin("c", socket="second.sock")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    assert (first.count("Allocate"), second.count("Allocate")) == (0, 1)


async def test_1_36_disconnects_the_new_instance_when_the_old_one_ends(lab: Any) -> None:
    first = await lab.plugin("a")
    second = await lab.plugin("b", "c", socket="second.sock")
    await first.down()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 0})
    assert second.streams == 1
    await second.register()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 2})
    assert second.streams == 2


async def test_a_message_over_4_mib_ends_the_stream(lab: Any) -> None:
    plugin = await lab.plugin("a")
    await plugin.set_health(**{f"{'x' * 58}{number:05}": True for number in range(65_000)})
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 0})


async def test_a_killed_kubelet_leaves_a_socket_nobody_listens_on(lab: Any) -> None:
    plugin = await lab.plugin("a")
    await lab.kubelet.kill()
    assert lab.paths.kubelet_socket.is_socket()
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await plugin.register()
    await plugin.down()
    await lab.kubelet.start()
    await plugin.up()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 1})


async def test_sockets_are_wiped_at_start_and_files_are_not(lab: Any) -> None:
    plugin = await lab.plugin("a")
    (lab.paths.plugin_dir / "state.json").write_text("{}")
    await lab.kubelet.restart()
    assert not (lab.paths.plugin_dir / plugin.socket).exists()
    assert sorted(entry.name for entry in lab.paths.plugin_dir.iterdir()) == ["kubelet.sock", "kubelet_internal_checkpoint", "state.json"]
    assert lab.kubelet.registered() == {"example.com/slot": 0}
