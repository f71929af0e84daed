# SPDX-License-Identifier: Apache-2.0
"""The machines this package can play: one readable file each, behind a fake NVML with the true ABI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hami_framework import Machine

_FAKES = Path(__file__).parent / "fakes"
_LIBRARY = str(_FAKES / "nvml.c")


def machines() -> Iterator[Machine]:
    """One machine for each file in `fakes/machines`; the file's first line, a comment, describes it."""
    for file in sorted((_FAKES / "machines").glob("*.ini")):
        state = file.read_text()
        yield Machine(
            name=file.stem,
            description=state.splitlines()[0].lstrip("# "),
            state=state,
            sources=(_LIBRARY,),
            libraries={"libnvidia-ml.so.1": _LIBRARY},
            environment={"LD_LIBRARY_PATH": "{libdir}", "HAMI_FAKE_NVIDIA": "{state}"},
        )
