# SPDX-License-Identifier: Apache-2.0
"""The names Hygon's users write. HAMi renamed DCU to HCU in September 2026; both spellings mean the same here."""

from __future__ import annotations

from hami_framework import AnnotationNames, ResourceNames

RESOURCES = ResourceNames(
    count="hygon.com/dcunum",
    memory="hygon.com/dcumem",
    cores="hygon.com/dcucores",
    aliases={"hygon.com/hcunum": "hygon.com/dcunum", "hygon.com/hcumem": "hygon.com/dcumem", "hygon.com/hcucores": "hygon.com/dcucores"},
    annotations=AnnotationNames(
        use_type=("hygon.com/use-dcutype", "hygon.com/use-hcutype", "hygon.com/use-gputype"),
        nouse_type=("hygon.com/nouse-dcutype", "hygon.com/nouse-hcutype", "hygon.com/nouse-gputype"),
        use_id=("hygon.com/use-gpuuuid", "hygon.com/use-dcuuuid", "hygon.com/use-hcuuuid"),
        nouse_id=("hygon.com/nouse-gpuuuid", "hygon.com/nouse-dcuuuid", "hygon.com/nouse-hcuuuid"),
    ),
)

MODELS = {
    0x54B7: ("Z100", 60),
    0x55B7: ("Z100L", 60),
    0x61B7: ("K500SM", 0),
    0x62B7: ("K100", 120),
    0x6210: ("K100_AI", 120),
    0x6211: ("K100_LC_E_AI", 128),
    0x6212: ("K100_AI", 120),
    0x6213: ("K100_AI", 120),
    0x62C7: ("K100_LC", 0),
}
"""PCI device id → model and compute units (0: not published), as HAMi's DCU plugin knows them. The library's own count comes first."""


def types(model: str) -> tuple[str, ...]:
    """Every name a card of this model answers to: HAMi writes `DCU-K100_AI`."""
    return (model, f"DCU-{model}", f"HCU-{model}", "DCU", "HCU")
