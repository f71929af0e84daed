# SPDX-License-Identifier: Apache-2.0
"""The names Ascend's users write: one family of HAMi's resources per chip, and the names a chip answers to.

Families and spellings are those of HAMi's device-configmap.yaml and examples. A type name is matched exactly: a 910B4-1
(64 GB) is another chip than a 910B4 (32 GB).
"""

from __future__ import annotations

from hami_framework import AnnotationNames, ResourceNames

FAMILIES = ("910A", "910B2", "910B3", "910B4-1", "910B4", "310P")
"""Chips that have a family of their own, `huawei.com/Ascend<chip>`. Any other is had through the neutral names."""

MODES = {"hami-core": "share", "vnpu": "vnpu"}
"""Values of `huawei.com/vnpu-mode`. HAMi knows the first only, and makes vNPUs without it; so do we."""

HIDDEN = {"ASCEND_VISIBLE_DEVICES": "void"}
"""What has the Ascend container runtime give no chip (its guide: "void" or empty)."""


def _annotations(family: str) -> AnnotationNames:
    return AnnotationNames(
        use_id=(f"hami.io/use-{family}-uuid",),
        nouse_id=(f"hami.io/no-use-{family}-uuid",),
        mode=("huawei.com/vnpu-mode",),
    )


def _family(chip: str) -> ResourceNames:
    count = f"huawei.com/Ascend{chip}"
    return ResourceNames(
        count=count,
        memory=f"{count}-memory",
        cores=f"{count}-core",
        types=(f"Ascend{chip}",),
        modes=MODES,
        annotations=_annotations(f"Ascend{chip}"),
        hidden_by=HIDDEN,
    )


def _family_910c() -> ResourceNames:
    """HAMi calls it `Ascend910` in its configuration and `Ascend910C` in its example. Whole dies come as a module of two."""
    names = {f"huawei.com/Ascend910C{suffix}": f"huawei.com/Ascend910{suffix}" for suffix in ("", "-memory", "-core")}
    return ResourceNames(
        count="huawei.com/Ascend910",
        memory="huawei.com/Ascend910-memory",
        cores="huawei.com/Ascend910-core",
        aliases=names,
        types=("Ascend910C",),
        minimum_count=2,
        modes=MODES,
        annotations=_annotations("Ascend910"),
        hidden_by=HIDDEN,
    )


RESOURCES = (*(_family(chip) for chip in FAMILIES), _family_910c())


def model(chip_name: str) -> str:
    """The chip behind a DCMI chip name, as the families call it: "910ProB" → "910A", "910_9391" and "Ascend910" → "910C"."""
    plain = chip_name.strip().removeprefix("Ascend")
    if plain == "910" or plain.startswith(("910_93", "910C")):
        return "910C"
    if plain in ("910ProA", "910ProB", "910PremiumA"):
        return "910A"
    return plain


def types(chip_name: str) -> tuple[str, ...]:
    """Every name a chip of this DCMI name answers to, with and without "Ascend"."""
    plain = chip_name.strip().removeprefix("Ascend")
    family = ("310P",) if plain.startswith("310P") else ()
    return tuple(dict.fromkeys(f"{prefix}{name}" for name in (model(chip_name), plain, *family) for prefix in ("", "Ascend")))
