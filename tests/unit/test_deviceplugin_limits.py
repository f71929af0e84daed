# SPDX-License-Identifier: Apache-2.0
"""What a container is told of its limits: a file of its own, and the same file when they change, since its mount follows no rename."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_framework.deviceplugin import limits
from hami_framework.errors import FormatError
from hami_framework.model import GIB, SOFT, ContainerGrant, DeviceGrant, Enforcement, Owner, PodGrant, share


def granted(memory: int, revision: int) -> tuple[PodGrant, ContainerGrant]:
    device = DeviceGrant(device_id="x0", device_name="acme-x0", vendor="acme", resource="acme.com/xpu", offer=share(memory, 10))
    container = ContainerGrant(container="main", devices=(device,))
    return PodGrant(owner=Owner(kind="pod", uid="u1"), node="n1", containers=(container,), revision=revision), container


@pytest.mark.parametrize("memory", [1, GIB, 2**50])
def test_a_change_is_said_in_the_same_file_whatever_its_length(tmp_path: Path, memory: int) -> None:
    limits.write(tmp_path, *granted(10 * GIB, 1), {"acme": Enforcement(isolation=SOFT, mechanism="its library")})
    path = tmp_path / limits.FILE
    before = path.stat()
    limits.change(tmp_path, *granted(memory, 2))
    told = limits.read(path)
    assert (told.revision, told.devices[0].limit.memory_bytes) == (2, memory)
    assert [held.mechanism for held in told.enforcement] == ["its library"]
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_size >= before.st_size
    limits.change(tmp_path, *granted(3, 3))
    assert limits.read(path).revision == 3


def test_a_file_that_is_damaged_or_gone_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        limits.change(tmp_path, *granted(1, 2))
    (tmp_path / limits.FILE).write_text("{")
    with pytest.raises(FormatError, match=limits.FILE):
        limits.change(tmp_path, *granted(1, 2))
