# SPDX-License-Identifier: Apache-2.0
"""What a vendor's `hami_machines` needs: machines read from a folder of text files.

Needs no pytest, so that a package may import it at run time. One file is one machine: its first line, a comment,
describes it; a last section `[files]` says what the kernel would (`model.read_machine_file`); the rest is for the fake
library, which reads it as `hami_fake.h` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hami_framework.model import Machine, read_machine_file


def read_machines(folder: Path, libraries: Mapping[str, str], variable: str, drivers: Mapping[str, str] | None = None) -> Iterator[Machine]:
    """One machine for each file in `folder/machines`.

    `libraries`: file name of a fake library (`libacme.so.1`) → its C source in `folder`. `variable`: the environment
    variable that names the machine file to the fake. `drivers`: as `Machine.drivers`.
    """
    sources = {library: str(folder / source) for library, source in libraries.items()}
    for file in sorted((folder / "machines").glob("*.ini")):
        state, files = read_machine_file(file.read_text())
        yield Machine(
            name=file.stem,
            description=state.splitlines()[0].lstrip("# "),
            state=state,
            sources=tuple(sources.values()),
            libraries=sources,
            drivers=dict(drivers or {}),
            environment={"LD_LIBRARY_PATH": "{libdir}", variable: "{state}"},
            files=files,
        )
