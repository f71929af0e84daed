# SPDX-License-Identifier: Apache-2.0
"""One container's directory: who may reach what, two vendors in one, and indices that never move."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from hami_framework.enforcement import container, region
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import FormatError
from hami_framework.model import ContainerEdits

GIB = 2**30


def device(name: str, vendor: str = "acme", memory: int = GIB) -> DevicePolicy:
    return DevicePolicy(vendor=vendor, identities=(("uuid", name),), memory_bytes=memory)


def policy(*devices: DevicePolicy) -> Policy:
    return Policy(container="u/main", devices=devices)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "enforcement"


def mounts(edits: ContainerEdits) -> dict[str, tuple[str, bool]]:
    return {mount.container_path: (mount.host_path, mount.read_only) for mount in edits.mounts}


def test_what_the_container_sees(directory: Path) -> None:
    edits = container.prepare(directory, policy(device("X")), ["/opt/acme/libacme.so"])
    assert mounts(edits) == {
        "/run/hami/policy": (str(directory / "policy"), True),
        "/run/hami/state": (str(directory / "state"), False),
        "/run/hami/lib/libacme.so": ("/opt/acme/libacme.so", True),
        "/etc/ld.so.preload": (str(directory / "ld.so.preload"), True),
    }
    assert edits.env == {}
    assert (directory / "ld.so.preload").read_text() == "/run/hami/lib/libacme.so\n"


def test_where_the_list_file_is_not_safe_the_environment_says_it(directory: Path) -> None:
    edits = container.prepare(directory, policy(device("X")), ["/opt/a.so", "/opt/b.so"], preload="env")
    assert edits.env == {"LD_PRELOAD": "/run/hami/lib/a.so:/run/hami/lib/b.so"}
    assert "/etc/ld.so.preload" not in mounts(edits)


def test_only_the_books_are_open_to_all_and_nobody_gets_near_them_on_the_host(directory: Path) -> None:
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    modes = {str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert modes == {
        "policy": 0o755,
        "policy/policy.bin": 0o644,
        "policy/control.bin": 0o644,
        "state": 0o755,
        "state/state.bin": 0o666,
        "ld.so.preload": 0o644,
    }


def test_a_second_vendor_completes_what_is_there(directory: Path) -> None:
    container.prepare(directory, policy(device("X"), device("Y")), ["/opt/a.so"])
    container.prepare(directory, policy(device("Z", "zeta")), ["/opt/z.so"])
    found = container.policy_of(directory)
    assert [(one.vendor, one.identities[0][1]) for one in found.devices] == [("acme", "X"), ("acme", "Y"), ("zeta", "Z")]
    assert (directory / "ld.so.preload").read_text().split() == ["/run/hami/lib/a.so", "/run/hami/lib/z.so"]


def test_a_restart_brings_a_newer_generation_fresh_books_and_no_suspension(directory: Path) -> None:
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    inode = container.state_path(directory).stat().st_ino
    with container.control_of(directory) as control:
        control.suspend()
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    with container.control_of(directory) as control:
        assert not control.suspended
        assert control.generation == container.policy_of(directory).generation == 3
    assert container.state_path(directory).stat().st_ino != inode


def test_a_running_container_is_changed_in_place(directory: Path) -> None:
    container.prepare(directory, policy(device("X"), device("Y")), ["/opt/a.so"])
    inode = container.state_path(directory).stat().st_ino
    with container.control_of(directory) as control:
        control.suspend()
    written = container.update(directory, policy(device("Y", memory=GIB // 2)))
    assert [one.memory_bytes for one in written.devices] == [GIB, GIB // 2]
    assert container.policy_of(directory) == written
    with container.control_of(directory) as control:
        assert control.suspended, "a change of limits does not end a suspension"
        assert control.generation == written.generation == 3
    assert container.state_path(directory).stat().st_ino == inode


def test_a_damaged_policy_is_written_anew(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    (directory / "policy" / "policy.bin").write_bytes(b"rubbish")
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    assert "7 bytes are too few" in caplog.text
    assert container.policy_of(directory).devices == (device("X"),)


def test_a_damaged_state_file_is_gone_with_the_next_start(directory: Path) -> None:
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    container.state_path(directory).write_bytes(b"rubbish")
    container.prepare(directory, policy(device("X")), ["/opt/a.so"])
    assert region.Region(container.state_path(directory)).usage(1).processes == ()


def test_what_was_never_prepared_is_not_updated(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        container.update(directory, policy(device("X")))


def test_a_policy_that_cannot_be_is_refused(directory: Path) -> None:
    with pytest.raises(FormatError, match="0 identities"):
        container.prepare(directory, policy(structs.replace(device("X"), identities=())), ["/opt/a.so"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ABCDEF"), min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_a_device_keeps_its_index_for_ever(tmp_path_factory: pytest.TempPathFactory, steps: list[list[str]]) -> None:
    directory = tmp_path_factory.mktemp("c") / "enforcement"
    places: dict[str, int] = {}
    for step in steps:
        container.prepare(directory, policy(*(device(name) for name in step)), ["/opt/a.so"])
        now = {one.identities[0][1]: place for place, one in enumerate(container.policy_of(directory).devices)}
        assert places.items() <= now.items()
        places = now
