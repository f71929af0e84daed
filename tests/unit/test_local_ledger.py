# SPDX-License-Identifier: Apache-2.0
"""The host's ledger: who counts, who does not, and what is left for others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hami_framework.deviceplugin import state as agent_state
from hami_framework.errors import FormatError
from hami_framework.local import ledger
from hami_framework.model import GIB, ContainerGrant, DeviceGrant, Offer, Owner, PodGrant, share


def grant(uid: str, device: str, offer: Offer, node: str = "box") -> PodGrant:
    held = DeviceGrant(device_id=device, device_name=device.lower(), vendor="bench", resource="bench.example/card", offer=offer)
    return PodGrant(owner=Owner(kind="local", uid=uid), node=node, containers=(ContainerGrant(container="main", devices=(held,)),))


def record(uid: str = "local-1", *, pid: int | None = None, ticks: int | None = None, boot: str | None = None) -> ledger.LocalGrant:
    own = ledger.start_ticks(os.getpid())
    assert own is not None
    return ledger.LocalGrant(
        grant=grant(uid, "A", share(3 * GIB, 30)),
        pid=pid or os.getpid(),
        start_ticks=own if ticks is None else ticks,
        boot=ledger.boot_id() if boot is None else boot,
        at=1.0,
        command=("x",),
        level="soft",
        directory="/nowhere",
    )


def test_what_is_written_is_read_and_counts_while_its_process_lives(tmp_path: Path) -> None:
    with ledger.locked(tmp_path):
        ledger.write(tmp_path, record())
    assert ledger.read(tmp_path) == (record(),)
    assert [one.node for one in ledger.live_grants(tmp_path, "node-7")] == ["node-7"]
    ledger.remove(tmp_path, record())
    ledger.remove(tmp_path, record())
    assert ledger.read(tmp_path) == ()


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param({"pid": 2**22 + 7}, id="no such process"),
        pytest.param({"ticks": 1}, id="the number belongs to another process now"),
        pytest.param({"boot": "another"}, id="the machine was started again"),
    ],
)
def test_a_record_whose_process_is_gone_holds_nothing(tmp_path: Path, gone: dict[str, object]) -> None:
    with ledger.locked(tmp_path):
        ledger.write(tmp_path, record(**gone))  # type: ignore[arg-type]
    assert ledger.live_grants(tmp_path) == ()


def test_a_damaged_record_is_told_of_and_the_others_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ledger.locked(tmp_path):
        ledger.write(tmp_path, record())
    (ledger.folder(tmp_path) / "local-0.json").write_text("{")
    assert len(ledger.live_grants(tmp_path)) == 1
    assert "local-0.json is not counted" in caplog.text


def test_nobody_else_chooses_while_the_lock_is_held(tmp_path: Path) -> None:
    with ledger.locked(tmp_path):
        child = os.fork()
        if child == 0:
            import fcntl

            descriptor = os.open(ledger.folder(tmp_path) / ".lock", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_the_agents_file_is_read_as_the_agent_writes_it(tmp_path: Path) -> None:
    assert ledger.agent_grants(tmp_path) == ()
    held = grant("pod-1", "A", share(GIB))
    (tmp_path / ledger.AGENT_STATE).write_bytes(agent_state.dump(agent_state.State(grants=(held,))))
    assert ledger.agent_grants(tmp_path) == (held,)
    assert agent_state.FORMAT == ledger.AGENT_FORMAT
    (tmp_path / ledger.AGENT_STATE).write_bytes(agent_state.dump(agent_state.State(grants=(held,))).replace(b"pod-1", b"pod-2"))
    with pytest.raises(FormatError, match=r"agent\.json.*damaged"):
        ledger.agent_grants(tmp_path)
