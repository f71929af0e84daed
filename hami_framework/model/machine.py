# SPDX-License-Identifier: Apache-2.0
"""What a vendor package brings to the sandbox: a machine it can play, behind the true ABI of its library."""

from __future__ import annotations

import msgspec

from hami_framework.model.base import Value

_FILES = "\n[files]\n"


def read_machine_file(text: str) -> tuple[str, dict[str, str]]:
    """`Machine.state` and `Machine.files` of one text.

    Its last section may be `[files]`: one file a line, `<path> = <contents>` (a newline ends them, as in `/sys`), lines that
    begin with `#` aside. All before it is for the fake library.
    """
    state, _, kernel = text.partition(_FILES)
    pairs = (line.partition("=") for line in kernel.splitlines() if line.strip() and not line.startswith("#"))
    return state, {path.strip(): contents.strip() + "\n" for path, _, contents in pairs}


class Machine(Value, frozen=True, kw_only=True):
    """A machine that the vendor's fake library can play, e.g. `dgx-a100-40g`.

    The sandbox writes `state` to a file of its own per node, builds `sources` into `library` (once, cached by
    content), and starts the vendor's worker with `environment`; `{state}` and `{libdir}` in its values are replaced.
    The state file is a plain text file of `key = value` lines in sections (`[device 0]`); the fake reads it again when it
    changes, so writing to it *is* the command that makes a device fail, return or grow busy.
    """

    name: str
    description: str
    state: str
    """Contents of the machine file."""
    sources: tuple[str, ...] = ()
    """Absolute paths of the C files of the fake libraries, shipped with the vendor package."""
    libraries: dict[str, str] = msgspec.field(default_factory=dict)
    """File name to build (and SONAME, e.g. `libnvidia-ml.so.1`) → the source it is built from."""
    drivers: dict[str, str] = msgspec.field(default_factory=dict)
    """File name of a fake *driver* library (`libcuda.so.1`) → the driver API it plays (`cuda`), as the interceptor SDK calls it."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """What the vendor's worker needs in its environment to find the fake and its state."""
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """Path below the node's root → contents: what the kernel would say of these devices, e.g. `/sys/bus/pci/devices/<address>/numa_node`."""
