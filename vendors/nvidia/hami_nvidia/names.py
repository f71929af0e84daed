# SPDX-License-Identifier: Apache-2.0
"""The names NVIDIA's users write: HAMi's resources and annotations, and the names a GPU answers to."""

from __future__ import annotations

from hami_framework import AnnotationNames, ResourceNames

MIG_PROFILES = (
    *("1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"),  # A100 40 GB
    *("1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),  # A100 80 GB, H100
    *("1g.18gb", "1g.18gb+me", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"),  # H200
    *("1g.6gb", "1g.6gb+me", "2g.12gb", "4g.24gb"),  # A30
)
"""Profiles that have a resource name of their own. What a GPU really has is read from NVML; this is only the spelling."""

RESOURCES = ResourceNames(
    count="nvidia.com/gpu",
    memory="nvidia.com/gpumem",
    memory_percent="nvidia.com/gpumem-percentage",
    cores="nvidia.com/gpucores",
    priority="nvidia.com/priority",
    hidden_by={"NVIDIA_VISIBLE_DEVICES": "void"},
    # `+` may not stand in a resource name; NVIDIA's own device plugin writes `.me` too.
    profiles={f"nvidia.com/mig-{profile.replace('+', '.')}": profile for profile in MIG_PROFILES},
    modes={"hami-core": "share", "mig": "mig"},
    annotations=AnnotationNames(
        use_type=("nvidia.com/use-gputype",),
        nouse_type=("nvidia.com/nouse-gputype",),
        use_id=("nvidia.com/use-gpuuuid",),
        nouse_id=("nvidia.com/nouse-gpuuuid",),
        mode=("nvidia.com/vgpu-mode",),
    ),
)

_BRANDS = ("NVIDIA", "Tesla", "GeForce", "Quadro")
_FAMILIES = ("RTX", "GTX", "TITAN", "Titan")


def types(product: str) -> tuple[str, ...]:
    """Every name a GPU of this NVML product name answers to: "NVIDIA A100-SXM4-80GB" → itself, with dashes, "A100-SXM4-80GB", "A100"."""
    words = product.split()
    answers = [product, "-".join(words)]
    while len(words) > 1 and words[0] in _BRANDS:
        words = words[1:]
        answers.append(" ".join(words))
    chip = " ".join(words[:2]) if words[0] in _FAMILIES else words[0].split("-")[0]
    return tuple(dict.fromkeys([*answers, chip]))
