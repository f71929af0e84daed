# SPDX-License-Identifier: Apache-2.0
"""From admission to the end: starts and their retries, restarts of containers, kubelet and machine, deletion."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


async def fail(ids: tuple[str, ...]) -> None:
    raise RuntimeError("the grant is not there yet")


async def test_cdi_edits_win_over_the_pods_env_which_wins_over_allocates(lab: Any) -> None:
    plugin = await lab.plugin("a")
    spec = {
        "containers": [
            {
                "name": "main",
                "resources": {"limits": {"example.com/slot": "1"}},
                "env": [
                    {"name": "FROM", "value": "pod"},
                    {"name": "ONLY_ALLOCATE", "value": "pod"},
                    {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                    {"name": "BOTH", "value": "$(FROM)-$$(UID)-$(NOPE)"},
                ],
            }
        ]
    }
    uid = lab.pod("p", {}, spec=spec)
    await lab.phase(uid, "Running")
    env = lab.view(uid, "main")["env"]
    assert env == {"FROM": "cdi", "ONLY_ALLOCATE": "pod", "UID": uid, "BOTH": "pod-$(UID)-$(NOPE)", "SLOT_a": "1"}
    assert plugin.count("PreStartContainer") == 1


async def test_a_failing_prestart_is_retried_with_backoff_and_without_a_new_allocate(lab: Any) -> None:
    plugin = await lab.plugin("a")
    plugin.on_pre_start = fail
    uid = lab.pod("p", {"main": 1})
    message = await lab.waiting(uid, "CreateContainerConfigError")
    assert "PreStartContainer rpc failed" in message
    await lab.until(lambda: plugin.count("PreStartContainer") >= 2)
    assert (await lab.phase(uid, "Pending"))["phase"] == "Pending"
    plugin.on_pre_start = plugin.write_specs
    status = await lab.phase(uid, "Running")
    assert plugin.count("Allocate") == 1
    assert status["containerStatuses"][0]["restartCount"] == 0


async def test_a_hanging_prestart_ends_at_the_deadline_and_holds_nobody_up(lab: Any) -> None:
    await lab.kubelet.kill()
    lab.boot(prestart_deadline_s=0.2)
    await lab.kubelet.start()
    plugin = await lab.plugin("a", "b")
    cancelled = asyncio.Event()

    async def hang(ids: tuple[str, ...]) -> None:
        if plugin.count("PreStartContainer") > 1:
            await plugin.write_specs(ids)
            return
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    plugin.on_pre_start = hang
    slow = lab.pod("slow", {"main": 1})
    await lab.until(lambda: plugin.count("PreStartContainer") == 1)
    await lab.phase(lab.pod("quick", {"main": 1}), "Running")
    await lab.phase(slow, "Running")
    assert cancelled.is_set()


async def test_a_missing_cdi_name_is_a_create_error_and_is_retried(lab: Any) -> None:
    plugin = await lab.plugin("a")

    async def write_nothing(ids: tuple[str, ...]) -> None:
        return None

    plugin.on_pre_start = write_nothing
    uid = lab.pod("p", {"main": 1})
    assert "unresolvable CDI devices example.com/slot=a" in await lab.waiting(uid, "CreateContainerError")
    plugin.on_pre_start = plugin.write_specs
    await lab.phase(uid, "Running")


async def test_init_containers_run_one_after_another_before_sidecars_and_apps(lab: Any) -> None:
    plugin = await lab.plugin(*"abcdef")
    uid = lab.pod("p", {"app": 1}, init={"one": 1, "two": 1}, sidecars={"side": 1})
    await lab.phase(uid, "Running")
    order = [item["container"] for item in lab.kubelet.containers()]
    assert order == ["one", "two", "side", "app"]
    assert {item["container"]: item["state"] for item in lab.kubelet.containers()} == {"one": "exited", "two": "exited", "side": "running", "app": "running"}
    assert plugin.count("PreStartContainer") == 4


async def test_the_end_of_an_init_container_is_visible_while_the_next_one_is_in_prestart(lab: Any) -> None:
    """A token that both share can only be told apart by container status (design.md §7)."""
    plugin = await lab.plugin(*"abc")
    seen: list[dict[str, str]] = []

    def states(uid: str) -> dict[str, str]:
        status = lab.status(uid)
        return {entry["name"]: next(iter(entry["state"])) for key in ("initContainerStatuses", "containerStatuses") for entry in status.get(key, [])}

    async def look(ids: tuple[str, ...]) -> None:
        await asyncio.sleep(0.03)
        seen.append(states(uid))
        await plugin.write_specs(ids)

    plugin.on_pre_start = look
    uid = lab.pod("p", {"app": 1}, init={"one": 1}, sidecars={"side": 1})
    await lab.phase(uid, "Running")
    assert seen == [
        {"one": "waiting", "side": "waiting", "app": "waiting"},
        {"one": "terminated", "side": "waiting", "app": "waiting"},
        {"one": "terminated", "side": "running", "app": "waiting"},
    ]


async def test_a_pod_with_run_seconds_succeeds_and_its_sidecar_stops(lab: Any) -> None:
    await lab.plugin(*"ab")
    uid = lab.pod("p", {"app": 1}, sidecars={"side": 1}, annotations={"sandbox.hami.io/run-seconds": "0.05"})
    status = await lab.phase(uid, "Succeeded")
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert {item["state"] for item in lab.kubelet.containers()} == {"exited"}


async def test_deletion_stops_the_containers_and_removes_the_object(lab: Any) -> None:
    await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    lab.delete(uid)
    await lab.until(lambda: uid not in lab.api.pods)
    await lab.until(lambda: lab.kubelet.containers() == [])


async def test_a_deletion_waits_for_the_prestart_in_progress(lab: Any) -> None:
    plugin = await lab.plugin("a")
    release = asyncio.Event()

    async def slow(ids: tuple[str, ...]) -> None:
        await release.wait()
        await plugin.write_specs(ids)

    plugin.on_pre_start = slow
    uid = lab.pod("p", {"main": 1})
    await lab.until(lambda: plugin.count("PreStartContainer") == 1)
    lab.delete(uid)
    await asyncio.sleep(0.05)
    assert uid in lab.api.pods
    release.set()
    await lab.until(lambda: uid not in lab.api.pods)


async def test_a_pod_that_waits_can_be_deleted_during_its_backoff(lab: Any) -> None:
    plugin = await lab.plugin("a")
    plugin.on_pre_start = fail
    uid = lab.pod("p", {"main": 1})
    await lab.waiting(uid, "CreateContainerConfigError")
    lab.delete(uid)
    await lab.until(lambda: uid not in lab.api.pods)


@pytest.mark.parametrize(("policy", "phase"), [("Always", "Running"), ("OnFailure", "Running"), ("Never", "Failed")])
async def test_a_container_that_dies_is_prestarted_again_unless_the_policy_is_never(lab: Any, policy: str, phase: str) -> None:
    plugin = await lab.plugin("a")
    uid = lab.pod("p", {"main": 1}, spec={"restartPolicy": policy})
    await lab.phase(uid, "Running")
    lab.kubelet.restart_container(uid, "main")
    if phase == "Running":
        await lab.until(lambda: plugin.count("PreStartContainer") == 2)
        await lab.until(lambda: lab.status(uid)["containerStatuses"][0]["restartCount"] == 1)
    await lab.phase(uid, phase)
    assert plugin.count("Allocate") == 1


async def test_a_container_that_dies_without_the_plugin_waits_for_it(lab: Any) -> None:
    plugin = await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    await plugin.down()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 0})
    assert lab.view(uid, "main")["state"] == "running"
    lab.kubelet.restart_container(uid, "main")
    assert "endpoint example.com/slot has been stopped" in await lab.waiting(uid, "CreateContainerConfigError")
    await plugin.up()
    await lab.until(lambda: lab.view(uid, "main")["state"] == "running")


async def test_kubelet_restart_leaves_running_pods_alone(lab: Any) -> None:
    plugin = await lab.plugin("a", "b")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    before, record, calls = lab.view(uid, "main"), lab.checkpoint(), list(plugin.calls)
    await lab.kubelet.restart()
    await plugin.down()
    await plugin.up()
    await lab.phase(lab.pod("later", {"main": 1}), "Running")
    assert lab.view(uid, "main") == before
    assert lab.checkpoint().items() >= record.items()
    assert plugin.calls[: len(calls)] == calls
    assert plugin.count("Allocate") == 2
    assert lab.status(uid)["phase"] == "Running"


async def test_prestart_is_skipped_after_a_kubelet_restart_until_the_plugin_registers(lab: Any) -> None:
    """The trap: the container finds whatever CDI spec lies there, or none."""
    plugin = await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    await lab.kubelet.restart()
    await lab.until(lambda: lab.kubelet._process._workers.get(uid) is not None)
    plugin.write_spec("a", {"env": ["STALE=1"]})
    lab.kubelet.restart_container(uid, "main")
    await lab.until(lambda: lab.view(uid, "main")["attempt"] == 1)
    assert plugin.count("PreStartContainer") == 1
    assert lab.view(uid, "main")["env"]["STALE"] == "1"


async def test_a_pod_that_did_not_run_yet_fails_when_kubelet_restarts_without_the_plugin(lab: Any) -> None:
    plugin = await lab.plugin("a")
    plugin.on_pre_start = fail
    uid = lab.pod("p", {"main": 1})
    await lab.waiting(uid, "CreateContainerConfigError")
    await lab.kubelet.restart()
    assert "no healthy devices present" in (await lab.phase(uid, "Failed"))["message"]


async def test_a_finished_init_container_fails_its_pod_when_kubelet_restarts_without_the_plugin(lab: Any) -> None:
    """kubernetes/kubernetes issue 138446: only containers that *run* are let through."""
    await lab.plugin("a")
    uid = lab.pod("p", {"main": 1}, init={"one": 1})
    await lab.phase(uid, "Running")
    await lab.kubelet.restart()
    assert "no healthy devices present" in (await lab.phase(uid, "Failed"))["message"]


async def test_reboot_with_the_plugin_in_time_means_prestart_only(lab: Any) -> None:
    plugin = await lab.plugin("a", "b")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    record = lab.checkpoint()
    await plugin.down()
    await lab.kubelet.kill()
    lab.boot(admission_delay_s=0.3)
    lab.paths.wipe_cdi()
    await lab.kubelet.start()
    await plugin.up()
    await lab.until(lambda: plugin.count("PreStartContainer") == 2)
    await lab.until(lambda: lab.kubelet.containers() != [])
    assert plugin.count("Allocate") == 1
    assert lab.checkpoint() == record
    assert lab.view(uid, "main")["env"]["FROM"] == "cdi"


async def test_reboot_without_the_plugin_fails_the_pods_for_good(lab: Any) -> None:
    plugin = await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    await lab.kubelet.reboot()
    assert not list(lab.paths.cdi_dirs[-1].iterdir())
    status = await lab.phase(uid, "Failed")
    assert (status["reason"], "no healthy devices present" in status["message"]) == ("UnexpectedAdmissionError", True)
    await plugin.down()
    await plugin.up()
    await lab.until(lambda: lab.kubelet.registered() == {"example.com/slot": 1})
    assert lab.status(uid)["phase"] == "Failed"


async def test_device_health_shows_in_the_container_status_when_asked_for(lab: Any) -> None:
    await lab.kubelet.kill()
    lab.boot(allocated_resources_status=True)
    await lab.kubelet.start()
    plugin = await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")

    def reported(health: str) -> bool:
        [entry] = lab.status(uid)["containerStatuses"]
        return bool(entry["allocatedResourcesStatus"] == [{"name": "example.com/slot", "resources": [{"resourceID": "a", "health": health}]}])

    await lab.until(lambda: reported("Healthy"))
    await plugin.set_health(a=False)
    await lab.until(lambda: reported("Unhealthy"))


async def test_an_annotation_or_env_that_cannot_be_used_is_said_not_guessed(lab: Any) -> None:
    uid = lab.pod("p", {"main": 0}, annotations={"sandbox.hami.io/run-seconds": "soon"})
    assert "a number of seconds is needed" in await lab.waiting(uid, "CreateContainerConfigError")
    secret = {"name": "main", "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
    assert "does not simulate" in await lab.waiting(lab.pod("q", {}, spec={"containers": [secret]}), "CreateContainerConfigError")


async def test_every_start_can_be_watched(lab: Any) -> None:
    starts: list[dict[str, Any]] = []
    lab.kubelet.on_container_start = starts.append
    await lab.plugin("a")
    uid = lab.pod("p", {"main": 1})
    await lab.phase(uid, "Running")
    lab.kubelet.restart_container(uid, "main")
    await lab.until(lambda: len(starts) == 2)
    assert [(start["podUID"], start["attempt"], start["slots"]) for start in starts] == [(uid, 0, ["a"]), (uid, 1, ["a"])]
    assert [method for method, _, _ in lab.kubelet.calls] == ["GetPreferredAllocation", "Allocate", "PreStartContainer", "PreStartContainer"]
