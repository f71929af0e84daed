# SPDX-License-Identifier: Apache-2.0
"""The host's side against the true core of the library: both read and write the same three files."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hami_framework.enforcement import container as containers
from hami_framework.enforcement import control
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import Region

CORE = Path(__file__).parents[2] / "interceptors" / "core"
GIB = 2**30

PROGRAM = """
/* A container's process: holds 4096 bytes of device 0, and answers each line with the limit, what is used, and whether launches must ask. */
#include <stdio.h>
#include "hami_core.h"
const struct hami_library *const hami_libraries[] = {NULL};
int main(void) {
    struct hami_hold hold;
    int device = hami_device_find("uuid", "x-0");
    printf("%d %d\\n", device, hami_reserve(device, 4096, &hold));
    fflush(stdout);
    for (char line[64]; fgets(line, sizeof line, stdin) != NULL; fflush(stdout)) {
        struct hami_memory_view view = hami_memory_view(device);
        printf("%llu %llu %d\\n", (unsigned long long)view.total, (unsigned long long)view.used, hami_compute_limited());
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and the directory that stands for /run/hami in it."""
    place = tmp_path_factory.mktemp("core")
    (place / "main.c").write_text(PROGRAM)
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", f'-DHAMI_DIRECTORY="{place}/run"', f"-I{CORE}", "-o", str(place / "program")]
    subprocess.run([*command, *map(str, sorted(CORE.glob("*.c"))), str(place / "main.c"), "-lpthread", "-ldl"], check=True)
    return place / "program", place / "run"


class Process:
    """One process of the container."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.began = self._line()

    def ask(self) -> tuple[int, int, bool]:
        """Limit, used, and whether a launch must ask."""
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        total, used, limited = self._line().split()
        return int(total), int(used), limited == "1"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


def policy(memory: int, milli: int | None = None) -> Policy:
    return Policy(container="u/main", devices=(DevicePolicy(vendor="acme", identities=(("uuid", "X-0"),), memory_bytes=memory, core_milli=milli),))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the library is made for x86-64 and aarch64")
def test_both_sides_agree(built: tuple[Path, Path], processes: list[Process]) -> None:
    program, directory = built
    containers.prepare(directory, policy(GIB), ["/opt/libacme.so"])
    books = Region(containers.state_path(directory))
    processes += [Process(program), Process(program)]
    first, second = processes
    assert [process.began for process in processes] == ["0 0", "0 0"]

    usage = books.usage(1)
    assert usage.devices[0].used_bytes == 8192
    assert {(one.pid, one.alive, one.devices[0].held_bytes) for one in usage.processes} == {(one.process.pid, True, 4096) for one in processes}
    assert books.check(policy(GIB)) == ()
    assert first.ask() == (GIB, 8192, False)

    containers.update(directory, policy(2 * GIB))
    assert first.ask() == (2 * GIB, 8192, False), "a changed limit is seen at once"

    second.kill()
    assert books.reclaim_dead() == 1
    assert first.ask() == (2 * GIB, 4096, False)
    assert books.check(policy(GIB)) == ()

    with containers.control_of(directory) as said:
        said.suspend()
        assert first.ask()[2], "a suspended container's launches must ask"
        said.resume()
        assert not first.ask()[2]

    first.kill()
    assert books.reclaim_dead() == 1
    assert books.usage(1).devices[0].used_bytes == 0


def test_a_policy_that_was_damaged_refuses_everything(built: tuple[Path, Path], processes: list[Process]) -> None:
    program, directory = built
    containers.prepare(directory, policy(GIB), ["/opt/libacme.so"])
    path = directory / "policy" / "policy.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    processes.append(Process(program))
    assert processes[0].began == "-1 2", "no device, and HAMI_REFUSED"
    assert (directory / "policy" / control.FILE).exists()
