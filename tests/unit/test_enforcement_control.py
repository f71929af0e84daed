# SPDX-License-Identifier: Apache-2.0
"""The agent's word: written in place, read through another mapping, and sleepers wake when it matters."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_framework.enforcement import control, layout
from hami_framework.enforcement.control import Control, following
from hami_framework.enforcement.fields import offset
from hami_framework.errors import FormatError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / control.FILE
    Control.create(place, 5).close()
    return place


def seen(path: Path) -> layout.ControlFile:
    return layout.ControlFile.from_buffer_copy(path.read_bytes())


def test_what_is_said_stands_in_the_file_at_once(path: Path) -> None:
    with Control.open(path) as said:
        said.set_effective(3, 45_000)
        said.set_gain(3, 1.5)
        said.heartbeat(77)
        words = seen(path)
        assert (words.devices[3].effective_milli, words.devices[3].gain, words.heartbeat_ns) == (45_000, 98_304, 77)
        assert (said.effective(3), said.gain(3), said.effective(0), said.gain(0)) == (45_000, 1.5, None, 1.0)
        said.set_effective(3, None)
        assert seen(path).devices[3].effective_milli == 0


def test_a_suspension_changes_the_generation_once(path: Path) -> None:
    with Control.open(path) as said:
        said.suspend()
        said.suspend()
        assert (said.suspended, said.generation, seen(path).flags) == (True, 6, layout.ControlFlag.SUSPENDED)
        said.resume()
        said.resume()
        assert (said.suspended, said.generation, seen(path).flags) == (False, 7, 0)


def test_a_beginning_container_is_not_told_what_the_last_one_was(path: Path) -> None:
    with Control.open(path) as said:
        said.suspend()
        said.set_effective(0, 10)
        said.set_gain(0, 2.0)
        said.forget()
        assert (said.suspended, said.effective(0), said.gain(0)) == (False, None, 1.0)


@pytest.mark.parametrize("gain", [0.49, 2.01, float("nan")])
def test_a_gain_stays_within_its_bounds(path: Path, gain: float) -> None:
    with Control.open(path) as said, pytest.raises(ValueError, match="a gain of"):
        said.set_gain(0, gain)


@pytest.mark.parametrize("milli", [0, 100_001])
def test_a_share_is_a_share(path: Path, milli: int) -> None:
    with Control.open(path) as said, pytest.raises(ValueError, match="effective share"):
        said.set_effective(0, milli)


DAMAGE = {"cut short": lambda data: data[:-1], "too long": lambda data: data + b"\0", "magic": lambda data: b"x" + data[1:], "empty": lambda data: b""}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_of_another_kind_is_not_opened(path: Path, damage: object) -> None:
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FormatError, match="not a control file of this version"):
        Control.open(path)


def test_a_closed_control_says_so(path: Path) -> None:
    said = Control.open(path)
    said.close()
    said.close()
    with pytest.raises(ValueError, match="is closed"):
        said.heartbeat()


def sleep_on(word: int, value: int) -> None:
    """FUTEX_WAIT on the generation, as the library does through a mapping of its own."""
    number = {"x86_64": 202, "aarch64": 98}[platform.machine()]
    deadline = (ctypes.c_int64 * 2)(20, 0)
    ctypes.CDLL(None).syscall(number, ctypes.c_void_p(word), 0, value, deadline, None, 0)


@pytest.mark.parametrize("change", [Control.suspend, lambda said: said.set_generation(9)], ids=["suspension", "policy"])
def test_sleepers_wake(path: Path, change: object) -> None:
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, control.SIZE) as other, Control.open(path) as said:
        word = ctypes.c_uint32.from_buffer(other, offset(layout.ControlFile, "generation"))
        sleeper = threading.Thread(target=sleep_on, args=(ctypes.addressof(word), 5))
        began = time.monotonic()
        sleeper.start()
        time.sleep(0.1)
        change(said)  # type: ignore[operator]
        sleeper.join(15)
        assert not sleeper.is_alive()
        assert time.monotonic() - began < 15
        del word
    os.close(descriptor)


@given(st.integers(1, 2**40), st.integers(0, 2**20))
def test_the_next_generation_is_after_both(generation: int, suspensions: int) -> None:
    word = (generation + suspensions) & 0xFFFFFFFF
    after = following(generation, word)
    assert after > generation
    assert after & 0xFFFFFFFF == (word + 1) & 0xFFFFFFFF
