# SPDX-License-Identifier: Apache-2.0
"""Every way to run something on the device is held to the container's share of its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import FAKE_INCLUDES, Container, record

WAYS = {
    "cuLaunchKernel": "",
    "cuLaunchKernel_ptsz": "",
    "cuLaunchKernelEx": "core#143: only cuLaunchKernel was limited",
    "cuLaunchCooperativeKernel": "",
    "cuLaunchGridAsync": "",
    "cuGraphLaunch": "#1445: graphs were not limited",
}
KERNEL_NS = 5_000_000
COUNT = 60


@pytest.mark.parametrize("way", WAYS)
def test_a_launch_is_held_to_the_share(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path], way: str) -> None:
    """300 ms of kernels at 30 % take a second, less what may run ahead; native time would be 0.3 s."""
    libraries = [fake_driver("cuda", FAKE_INCLUDES)]
    container = Container(tmp_path / "container", interceptor("cuda", "nvml", variant="release"), libraries, (record(0, core_milli=30_000),), devices=1)
    said = container.run("launch", way, COUNT, HAMI_FAKE_KERNEL_NS=str(KERNEL_NS))
    assert said["seconds"] > 0.6, WAYS[way]
    assert container.card.devices[0].kernels == COUNT


def test_timing_does_not_disturb_a_capture(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> None:
    """What is captured is not timed, and what runs beside it is timed by a thread that may ask."""
    container = Container(
        tmp_path / "container", interceptor("cuda", "nvml", variant="release"), [fake_driver("cuda", FAKE_INCLUDES)], (record(0, core_milli=90_000),), devices=1
    )
    said = container.run("beside_capture", 40, HAMI_FAKE_KERNEL_NS="100000")
    assert (said["code"], said["nodes"]) == (0, 40)
