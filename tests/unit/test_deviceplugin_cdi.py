# SPDX-License-Identifier: Apache-2.0
"""CDI files against the specification (cncf-tags/container-device-interface SPEC.md 1.1.0)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hami_framework.deviceplugin import cdi
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.model import ContainerEdits, DeviceNode, Hook, Mount

EVERYTHING = ContainerEdits(
    env={"B": "2", "A": "1"},
    mounts=(Mount(host_path="/h", container_path="/c"), Mount(host_path="/w", container_path="/w", read_only=False)),
    device_nodes=(DeviceNode(path="/dev/x0"), DeviceNode(path="/dev/x", host_path="/dev/x7", permissions="r")),
    hooks=(Hook(name="createContainer", path="/bin/h", args=("h", "-x")),),
    additional_gids=(44,),
)


def test_every_kind_of_edit_is_written_as_the_specification_says() -> None:
    assert cdi.render("gpu-1", EVERYTHING) == {
        "cdiVersion": "0.7.0",
        "kind": "hami.io/slot",
        "devices": [
            {
                "name": "gpu-1",
                "containerEdits": {
                    "env": ["A=1", "B=2"],
                    "deviceNodes": [{"path": "/dev/x0", "permissions": "rw"}, {"path": "/dev/x", "hostPath": "/dev/x7", "permissions": "r"}],
                    "mounts": [
                        {"hostPath": "/h", "containerPath": "/c", "options": ["rbind", "ro", "nosuid", "nodev"]},
                        {"hostPath": "/w", "containerPath": "/w", "options": ["rbind", "rw", "nosuid", "nodev"]},
                    ],
                    "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h", "-x"]}],
                    "additionalGids": [44],
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("slot", "edits", "version"),
    [
        pytest.param("gpu-1", ContainerEdits(env={"A": "1"}, device_nodes=(DeviceNode(path="/dev/x"),)), "0.3.0", id="plain"),
        pytest.param("4d-1", ContainerEdits(env={"A": "1"}), "0.5.0", id="a name that begins with a digit"),
        pytest.param("gpu-1", ContainerEdits(device_nodes=(DeviceNode(path="/dev/x", host_path="/dev/y"),)), "0.5.0", id="hostPath of a device node"),
        pytest.param("gpu-1", ContainerEdits(additional_gids=(1,)), "0.7.0", id="additional groups"),
    ],
)
def test_the_lowest_sufficient_version_is_declared(slot: str, edits: ContainerEdits, version: str) -> None:
    assert cdi.render(slot, edits)["cdiVersion"] == version


def load(directory: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in directory.iterdir()}


def test_several_slots_carry_the_edits_once(tmp_path: Path) -> None:
    CdiDirectory(tmp_path / "run" / "cdi").write(["gpu-2", "gpu-10"], ContainerEdits(env={"A": "1"}))

    files = load(tmp_path / "run" / "cdi")

    assert set(files) == {"hami.io-slot_gpu-2.json", "hami.io-slot_gpu-10.json"}
    envs = {name: one["devices"][0]["containerEdits"]["env"] for name, one in files.items()}
    assert envs["hami.io-slot_gpu-10.json"] == ["A=1", "HAMI_SLOT_GPU_10=held"], "the lexically first"
    assert envs["hami.io-slot_gpu-2.json"] == ["HAMI_SLOT_GPU_2=held"]


def test_no_edits_still_make_a_valid_device(tmp_path: Path) -> None:
    CdiDirectory(tmp_path).write(["gpu-1"], ContainerEdits())

    assert load(tmp_path)["hami.io-slot_gpu-1.json"]["devices"][0]["containerEdits"] == {"env": ["HAMI_SLOT_GPU_1=held"]}


def test_files_are_readable_for_the_runtime_and_leave_nothing_else(tmp_path: Path) -> None:
    directory = CdiDirectory(tmp_path)
    directory.write(["gpu-1"], EVERYTHING)

    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("hami.io-slot_gpu-1.json", 0o644)]
    assert directory.slots() == {"gpu-1"}

    directory.delete("gpu-1")
    directory.delete("gpu-1")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "other.com-gpu.json").write_text("{}")

    assert CdiDirectory(tmp_path).slots() == frozenset()
    assert CdiDirectory(tmp_path / "missing").slots() == frozenset()
