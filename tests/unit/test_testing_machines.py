# SPDX-License-Identifier: Apache-2.0
"""Machine files: what the fake library reads, what the kernel says, and where the latter ends up."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_framework.model import read_machine_file
from hami_framework.testing.machines import read_machines
from hami_framework.testing.stage import Node

BOX = """# 1 x Acme XPU
[device 0]
pci = 0000:33:00.0

[files]
# what the kernel says
/sys/bus/pci/devices/0000:33:00.0/numa_node = 3

/proc/cmdline = root=/dev/sda
"""


@pytest.mark.parametrize(
    ("text", "files"),
    [
        pytest.param("[device 0]\nhealth = ok\n", {}, id="none"),
        pytest.param(BOX, {"/sys/bus/pci/devices/0000:33:00.0/numa_node": "3\n", "/proc/cmdline": "root=/dev/sda\n"}, id="two"),
    ],
)
def test_the_kernels_files_are_kept_from_the_fake(text: str, files: dict[str, str]) -> None:
    state, found = read_machine_file(text)
    assert found == files
    assert "[files]" not in state
    assert state.startswith(text[:20])


def test_a_folder_of_machines_becomes_nodes_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines" / "box.ini").write_text(BOX)
    (machine,) = read_machines(tmp_path, {}, "ACME_MACHINE")
    assert (machine.name, machine.description) == ("box", "1 x Acme XPU")
    node = Node(machine, tmp_path)
    assert node.host.path("/sys/bus/pci/devices/0000:33:00.0/numa_node").read_text() == "3\n"
    assert Path(node.environment["ACME_MACHINE"]).read_text() == machine.state
