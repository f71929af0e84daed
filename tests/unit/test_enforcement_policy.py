# SPDX-License-Identifier: Apache-2.0
"""The policy file: what goes in comes out, and every kind of damage has a sentence of its own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from hami_framework.enforcement import layout, policy
from hami_framework.enforcement.fields import offset
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import FormatError

GIB = 2**30
ONE = Policy(
    container="uid-1/main",
    devices=(
        DevicePolicy(vendor="acme", identities=(("uuid", "X-1"), ("pci", "0000:07:00.0")), memory_bytes=3 * GIB, capacity_bytes=8 * GIB, core_milli=30_000),
    ),
    generation=7,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15).filter(lambda text: len(text.encode()) < 16)
amounts = st.none() | st.integers(1, 2**63)


@st.composite
def device_policies(draw: st.DrawFn, number: int = 0) -> DevicePolicy:
    memory = draw(st.none() | st.integers(0, 2**62))
    count = draw(st.integers(1, layout.MAX_IDENTITIES))
    return DevicePolicy(
        vendor=draw(texts),
        identities=tuple((draw(texts), f"device-{number}-{place}") for place in range(count)),
        memory_bytes=memory,
        capacity_bytes=draw(st.none() | st.integers(max(1, memory or 1), 2**63)),
        virtual_bytes=draw(st.none() | st.integers(0, 2**63)),
        context_bytes=draw(amounts),
        core_milli=draw(st.none() | st.integers(1, layout.MILLI_PERCENT)),
        compute_mode=draw(st.sampled_from(["fixed", "work-conserving"])),
        weight=draw(st.integers(1, 2**32 - 1)),
        priority=draw(st.integers(0, 2**32 - 1)),
        charge_imports=draw(st.booleans()),
        burst_us=draw(st.none() | st.integers(1, 2**32 - 1)),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    devices = tuple(draw(device_policies(number)) for number in range(draw(st.integers(0, 3))))
    return Policy(container=draw(texts), devices=devices, generation=draw(st.integers(1, 2**64 - 1)), advisory=draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(policies())
def test_what_goes_in_comes_out(wanted: Policy) -> None:
    assert policy.decode(policy.encode(wanted)) == wanted


@pytest.mark.parametrize("structure", layout.SIZES, ids=lambda pair: pair[0].__name__)
def test_structures_measure_what_the_library_expects(structure: tuple[type[ctypes.LittleEndianStructure], int]) -> None:
    kind, size = structure
    assert ctypes.sizeof(kind) == size
    assert size % 8 == 0


def patched(field: str, value: int, *, sealed: bool = True) -> bytes:
    """The encoded policy with one field of its header changed, and a checksum that fits again."""
    data = bytearray(policy.encode(ONE))
    place = getattr(layout.PolicyHeader, field)
    data[place.offset : place.offset + place.size] = value.to_bytes(place.size, "little")
    return seal(data) if sealed else bytes(data)


def patched_device(field: str, value: int) -> bytes:
    data = bytearray(policy.encode(ONE))
    place = getattr(layout.PolicyDevice, field)
    start = ctypes.sizeof(layout.PolicyHeader) + place.offset
    data[start : start + place.size] = value.to_bytes(place.size, "little")
    return seal(data)


def seal(data: bytearray) -> bytes:
    place = offset(layout.PolicyHeader, "checksum")
    data[place : place + 8] = bytes(8)
    data[place : place + 8] = policy.fnv1a(data).to_bytes(8, "little")
    return bytes(data)


DAMAGE = [
    pytest.param(b"", "0 bytes are too few", id="empty"),
    pytest.param(policy.encode(ONE)[:100], "100 bytes are too few", id="half a header"),
    pytest.param(policy.encode(ONE)[:-1], "1 devices take 1160", id="cut short"),
    pytest.param(policy.encode(ONE) + b"\0", "1 devices take 1160", id="too long"),
    pytest.param(patched("magic", 1), "not a policy file", id="magic"),
    pytest.param(patched("layout_version", 2), "layout version 2", id="version"),
    pytest.param(patched("header_size", 264), "header and records of 264 and 904", id="header size"),
    pytest.param(patched("record_size", 912), "header and records of 256 and 912", id="record size"),
    pytest.param(patched("device_count", 17), "17 devices, and 16 are the most", id="too many devices"),
    pytest.param(patched("device_count", 2), "2 devices take 2064", id="fewer records than said"),
    pytest.param(patched("generation", 8, sealed=False), "checksum", id="changed by hand"),
    pytest.param(patched("generation", 0), "generation 0", id="generation"),
    pytest.param(patched("flags", 6), "unknown flags 0x6", id="policy flags"),
    pytest.param(patched("container", 0xFF), "not text", id="container is no text"),
    pytest.param(patched("container", 0), "container: ''", id="nobody's"),
    pytest.param(patched_device("flags", 8), "device 0: unknown flags 0x8", id="device flags"),
    pytest.param(patched_device("compute_mode", 9), "unknown compute mode 9", id="compute mode"),
    pytest.param(patched_device("core_milli", 100_001), "core_milli 100001", id="more than the whole"),
    pytest.param(patched_device("memory_bytes", 9 * GIB), "on a device that has 8589934592", id="limit above the device"),
    pytest.param(patched_device("vendor", 0), "vendor: ''", id="no vendor"),
    pytest.param(patched_device("identities", 0), "0 identities", id="nameless device"),
]


@pytest.mark.parametrize(("data", "words"), DAMAGE)
def test_damage_is_named(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        policy.decode(data)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1159), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(policy.encode(ONE))
    data[place] ^= change
    with pytest.raises(FormatError):
        policy.decode(bytes(data))


WRONG = [
    pytest.param({"identities": tuple(("uuid", f"X-{n}") for n in range(9))}, "9 identities", id="identities"),
    pytest.param({"identities": (("uuid", "x" * 80),)}, "1 to 79 bytes", id="long identity"),
    pytest.param({"vendor": "a" * 16}, "1 to 15 bytes", id="long vendor"),
    pytest.param({"vendor": "a\0b"}, "without NUL", id="NUL"),
    pytest.param({"memory_bytes": -1}, "memory_bytes -1", id="negative"),
    pytest.param({"weight": 0}, "weight 0", id="weight"),
    pytest.param({"memory_bytes": 9 * GIB}, "on a device that has", id="more than there is"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_does_not_fit_is_not_written(change: dict[str, object], words: str) -> None:
    wrong = structs.replace(ONE.devices[0], **change)
    with pytest.raises(FormatError, match=words):
        policy.encode(structs.replace(ONE, devices=(wrong,)))


def test_one_name_is_one_device() -> None:
    other = structs.replace(ONE.devices[0], identities=(("uuid", "x-1"),))
    with pytest.raises(FormatError, match="two devices are called uuid 'x-1'"):
        policy.encode(structs.replace(ONE, devices=(*ONE.devices, other)))


def test_a_limit_of_nothing_is_a_limit() -> None:
    none = structs.replace(ONE, devices=(structs.replace(ONE.devices[0], memory_bytes=0),))
    assert policy.decode(policy.encode(none)).devices[0].memory_bytes == 0


def test_a_policy_is_replaced_in_one_step_and_only_by_a_newer_one(tmp_path: Path) -> None:
    policy.write(tmp_path, ONE)
    before = (tmp_path / policy.FILE).stat()
    policy.write(tmp_path, structs.replace(ONE, generation=8))
    assert policy.read(tmp_path).generation == 8
    assert (tmp_path / policy.FILE).stat().st_ino != before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == [policy.FILE]
    with pytest.raises(FormatError, match=f"{policy.FILE}: generation 8 is not newer than 8"):
        policy.write(tmp_path, structs.replace(ONE, generation=8))


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        policy.write(tmp_path, ONE)
    finally:
        os.umask(before)
    assert (tmp_path / policy.FILE).stat().st_mode & 0o777 == 0o644
