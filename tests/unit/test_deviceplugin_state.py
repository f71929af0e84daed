# SPDX-License-Identifier: Apache-2.0
"""The state file: whole or refused, never garbage, and durable when it says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hami_framework.deviceplugin import state
from hami_framework.deviceplugin.agent import open_state
from hami_framework.deviceplugin.state import Offered, Record, State, StateFile
from hami_framework.errors import FormatError
from hami_framework.model import ContainerGrant, DeviceGrant, Grant, Owner, PodGrant, share

OWNER = Owner(kind="pod", uid="u1", namespace="ns", name="web")
DEVICE = DeviceGrant(device_id="d1", device_name="acme-d1", vendor="acme", resource="acme.com/xpu", offer=share(2**30, 30))
POD = PodGrant(owner=OWNER, node="n1", containers=(ContainerGrant(container="main", devices=(DEVICE,)),))


def record(container: str = "main", at: float = 1.0, slots: tuple[str, ...] = ("s1",), uid: str = "u1") -> Record:
    owner = Owner(kind="pod", uid=uid, namespace="ns", name="web")
    lead = Grant(owner=owner, node="n1", container=container, devices=(DEVICE,))
    return Record(owner=owner, container=container, kind="app", resource="acme.com/xpu", slots=slots, devices=(DEVICE,), leads=(lead,), at=at, boot="b")


FULL = State(records=(record(),), grants=(POD,), offered=(Offered(resource="acme.com/xpu", vendor="acme", slots=10),))


def test_the_file_keeps_everything() -> None:
    assert state.parse(state.dump(FULL)) == FULL


def test_a_file_cut_at_any_byte_is_refused() -> None:
    whole = state.dump(FULL)
    for length in range(len(whole)):
        with pytest.raises(FormatError, match="state file"):
            state.parse(whole[:length])


def test_a_file_with_any_byte_changed_is_refused() -> None:
    whole = state.dump(FULL)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        with pytest.raises(FormatError, match="state file"):
            state.parse(bytes(damaged))


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match=r"begins with 'hami-agent-state/2', expected 'hami-agent-state/1'"):
        state.parse(state.dump(FULL).replace(b"state/1", b"state/2", 1))


def test_a_missing_file_is_an_empty_state(tmp_path: Path) -> None:
    assert StateFile.load(tmp_path / "deep" / "agent.json").records == {}


async def test_what_was_durable_is_there_after_a_kill(tmp_path: Path) -> None:
    file = StateFile.load(tmp_path / "agent.json")
    file.put(record(), POD)
    await file.durable()
    file.put(record("other"))  # the kill comes before this one is written

    again = StateFile.load(tmp_path / "agent.json")

    assert list(again.records) == [("u1", "main", "acme.com/xpu")]
    assert again.grants == {"u1": POD}


async def test_a_leftover_of_an_interrupted_write_does_no_harm(tmp_path: Path) -> None:
    file = StateFile.load(tmp_path / "agent.json")
    file.put(record(), POD)
    await file.durable()
    (tmp_path / ".agent.json.new").write_bytes(b"hami-agent-state/1 abc")

    assert StateFile.load(tmp_path / "agent.json").grants == {"u1": POD}


async def test_changes_that_wait_together_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = state.write_durably

    def counted(path: Path, data: bytes) -> None:
        writes.append(len(data))
        real(path, data)

    monkeypatch.setattr(state, "write_durably", counted)
    file = StateFile.load(tmp_path / "agent.json")

    async def one(number: int) -> None:
        file.put(record(f"c{number}"))
        await file.durable()

    await asyncio.gather(*(one(number) for number in range(40)))

    assert len(StateFile.load(tmp_path / "agent.json").records) == 40
    assert len(writes) <= 3


async def test_a_cancelled_wait_does_not_lose_the_write(tmp_path: Path) -> None:
    file = StateFile.load(tmp_path / "agent.json")
    file.put(record())
    waiting = asyncio.create_task(file.durable())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await file.durable()

    assert len(StateFile.load(tmp_path / "agent.json").records) == 1


async def test_a_disk_that_refuses_is_reported_to_everybody_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    file = StateFile.load(tmp_path / "agent.json")
    monkeypatch.setattr(state, "write_durably", full)
    file.put(record())

    answers = await asyncio.gather(file.durable(), file.durable(), return_exceptions=True)

    assert [type(answer) for answer in answers] == [OSError, OSError]


def test_a_slot_belongs_to_whoever_was_prepared_last() -> None:
    file = StateFile(Path("unused"), State(records=(record("init", 1.0), record("main", 2.0))))

    holder = file.holder("s1")

    assert holder is not None
    assert holder.container == "main"
    assert file.holder("s9") is None
    assert file.occupied() == {"s1": frozenset({"d1"})}


def test_a_pods_grant_goes_with_its_last_record() -> None:
    file = StateFile(Path("unused"), State(records=(record("a"), record("b")), grants=(POD,)))
    file.remove(("u1", "a", "acme.com/xpu"))
    assert set(file.grants) == {"u1"}
    file.remove(("u1", "b", "acme.com/xpu"))
    assert file.grants == {}


def test_a_damaged_file_is_set_aside_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "agent.json"
    path.write_bytes(state.dump(FULL)[:-1])

    assert open_state(path).records == {}
    assert "its digest does not match" in caplog.text
    assert [kept.read_bytes() for kept in tmp_path.glob("agent.json.damaged-*")] == [state.dump(FULL)[:-1]]
