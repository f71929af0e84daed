# SPDX-License-Identifier: Apache-2.0
"""The names Cambricon's users write: HAMi's resources and annotations, and the names a card answers to."""

from __future__ import annotations

import re

from hami_framework import MIB, AnnotationNames, ResourceNames

MEMORY_UNIT_BYTES = 256 * MIB
"""What one `vmemory` is, and the grain of an sMLU instance (HAMi expects `--min-dsmlu-unit=256`)."""

_ANNOTATIONS = AnnotationNames(
    use_type=("cambricon.com/use-mlutype",),
    nouse_type=("cambricon.com/nouse-mlutype",),
    use_id=("cambricon.com/use-gpuuuid",),
    nouse_id=("cambricon.com/nouse-gpuuuid",),
)

RESOURCES = (
    ResourceNames(
        count="cambricon.com/vmlu",
        memory="cambricon.com/mlu.smlu.vmemory",
        memory_unit_bytes=MEMORY_UNIT_BYTES,
        cores="cambricon.com/mlu.smlu.vcore",
        aliases={
            "cambricon.com/mlu": "cambricon.com/vmlu",
            "cambricon.com/mlu370": "cambricon.com/vmlu",
            "cambricon.com/mlu370.smlu.vmemory": "cambricon.com/mlu.smlu.vmemory",
            "cambricon.com/mlu370.smlu.vcore": "cambricon.com/mlu.smlu.vcore",
        },
        annotations=_ANNOTATIONS,
    ),
    # HAMi's older names, still in its examples; their memory counts MiB, so they are no aliases of the ones above.
    ResourceNames(count="cambricon.com/mlunum", memory="cambricon.com/mlumem", annotations=_ANNOTATIONS),
)


def types(product: str) -> tuple[str, ...]:
    """Every name a card of this product answers to: "MLU370-X8" → itself, "MLU370", "370", and "MLU" as HAMi registers all."""
    family = product.split("-")[0]
    return tuple(dict.fromkeys((product, family, re.sub(r"\D", "", family), "MLU")))
