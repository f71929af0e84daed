# SPDX-License-Identifier: Apache-2.0
"""What a vendor's `hami_machines` needs: machines read from a folder of text files.

Needs no pytest, so that a package may import it at run time. One file is one machine: its first line, a comment,
describes it; a last section `[files]` says what the kernel would, one file a line (`/sys/…/numa_node = 3`); the rest is
for the fake library, which reads it as `hami_fake.h` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hami_framework.model import Machine

FILES = "\n[files]\n"


def read_machines(folder: Path, libraries: Mapping[str, str], variable: str) -> Iterator[Machine]:
    """One machine for each file in `folder/machines`.

    `libraries`: file name of a fake library (`libacme.so.1`) → its C source in `folder`. `variable`: the environment
    variable that names the machine file to the fake.
    """
    sources = {library: str(folder / source) for library, source in libraries.items()}
    for file in sorted((folder / "machines").glob("*.ini")):
        state, _, kernel = file.read_text().partition(FILES)
        yield Machine(
            name=file.stem,
            description=state.splitlines()[0].lstrip("# "),
            state=state,
            sources=tuple(sources.values()),
            libraries=sources,
            environment={"LD_LIBRARY_PATH": "{libdir}", variable: "{state}"},
            files=dict(_file(line) for line in kernel.splitlines() if line.strip() and not line.startswith("#")),
        )


def _file(line: str) -> tuple[str, str]:
    path, _, contents = line.partition("=")
    return path.strip(), contents.strip() + "\n"
