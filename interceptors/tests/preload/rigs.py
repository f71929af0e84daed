# SPDX-License-Identifier: Apache-2.0
"""The three front ends that are alike, each before its fake driver, with one device of a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preloaded import FAKES, LIMIT, Rig

from hami_framework.enforcement.policy import DevicePolicy

Libraries = Callable[..., Path]

UUID = "20220119-0000-0000-0000-000000000001"


@dataclass(frozen=True, kw_only=True)
class Front:
    api: str
    vendor: str
    machine: tuple[str, str]
    identity: tuple[str, str]

    def rig(self, place: Path, interceptor: Libraries, fake_driver: Libraries, variant: str = "release", fake: str = "release") -> Rig:
        return Rig(
            place=place,
            program=f"{self.api}_program.py",
            library=interceptor(self.api, variant=variant),
            driver=fake_driver(self.api, include=[FAKES], variant=fake),
            machine=self.machine,
            device=DevicePolicy(vendor=self.vendor, identities=(self.identity,), memory_bytes=LIMIT),
        )


HIP = Front(
    api="hip",
    vendor="hygon",
    machine=("HAMI_FAKE_HYGON", "[machine]\n[device 0]\npci = 0000:07:00.0\nmemory_mib = 4096\n"),
    identity=("pci", "0000:07:00.0"),
)
ASCEND = Front(api="ascend", vendor="ascend", machine=("HAMI_FAKE_ASCEND", "[machine]\n[device 0]\nphy = 5\nmemory_mib = 4096\n"), identity=("physical", "5"))
CNDRV = Front(
    api="cndrv",
    vendor="cambricon",
    machine=("HAMI_FAKE_CAMBRICON", f"[machine]\n[device 0]\nuuid = {UUID}\npci = 0000:0a:00.0\nmemory_mib = 4096\n"),
    identity=("uuid", f"MLU-{UUID}"),
)
