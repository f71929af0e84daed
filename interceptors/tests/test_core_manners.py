# SPDX-License-Identifier: Apache-2.0
"""Manners of a guest in somebody else's process, and the same processes under the sanitizers."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, SOURCES, Container, player
from hami_interceptor import build, compilers, native

FORBIDDEN = {
    "exit", "_exit", "_Exit", "quick_exit", "abort", "raise", "__assert_fail", "signal", "sigaction", "atexit", "__cxa_atexit", "on_exit",
    "pthread_create", "pthread_mutex_clocklock", "gettid", "memfd_create", "perror", "printf", "fprintf", "fputs", "puts", "malloc", "free", "calloc",
    "realloc",
}  # fmt: skip


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


def _objects(folder: Path) -> list[Path]:
    objects = []
    for source in SOURCES:
        objects.append(folder / f"{source.stem}.o")
        compilers.choose().run([*build.FLAGS, *build.variant_flags("release"), f"-I{native.core()}", "-c", str(source), "-o", str(objects[-1])], source.name)
    return objects


def test_nothing_that_ends_or_changes_the_host_process_is_called(tmp_path: Path) -> None:
    listed = subprocess.run(["nm", "-u", *map(str, _objects(tmp_path))], capture_output=True, text=True, check=True).stdout
    assert {name for name in re.findall(r"U (\w+)", listed) if name in FORBIDDEN} == set()


def test_nothing_is_done_before_the_first_call(tmp_path: Path) -> None:
    listed = subprocess.run(["readelf", "-SW", *map(str, _objects(tmp_path))], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\.(?:init_array|fini_array|ctors|dtors)\b", listed) == []


def test_no_file_is_long() -> None:
    assert {path.name: lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400} == {}


@pytest.mark.parametrize("stream", ["closed", "a pipe nobody reads", "a full pipe"])
def test_a_broken_stderr_harms_nobody(container: Container, stream: str) -> None:
    container.policy_path.unlink()
    reader, writer = os.pipe()
    if stream == "a full pipe":
        os.set_blocking(writer, False)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    if stream == "a pipe nobody reads":
        os.close(reader)
    command = ["sh", "-c", 'exec "$0" 2>&-', str(container.program)] if stream == "closed" else [str(container.program)]
    env = {**os.environ, "HAMI_DEVELOPMENT_POLICY": str(container.folder)}
    done = subprocess.run(command, input="reserve 0 1\nreserve 0 1\n", stdout=subprocess.PIPE, stderr=writer, text=True, env=env, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "2 0 0\n2 0 0\n")


def test_a_pair_is_cheap(container: Container, built: Path) -> None:
    """The aim is 60 ns; the assertion only catches a system call, or a scan, in the normal path."""
    one = container.play(player(built, variant="release"))
    assert float(one.ask("bench 200000")) < 1000


def test_the_normal_path_makes_no_system_call(container: Container, built: Path) -> None:
    """After the first call the process gives up every system call but read and write (strict seccomp) and works on."""
    assert container.play(player(built, variant="release")).ask("sealed 1000") == "no system call"


@pytest.mark.parametrize("variant", ["asan+ubsan", "tsan"])
def test_under_a_sanitizer(container: Container, built: Path, variant: str) -> None:
    program = player(built, variant=f"{variant}+testing")
    players = [container.play(program) for _ in range(3)]
    for one in players:
        one.tell("race 4 1000 0 4000")
    for generation in range(2, 12):
        container.change(generation, *container.devices)
    for one in players:
        one.answer()
    assert container.used() == 0
    one, two, three = players
    assert one.verdict("reserve 0 4000") == OK
    assert one.verdict("virtual 1 10") == OK
    assert one.numbers("settle 0 9000") == (OK, 9000)
    assert two.verdict("rest 0 1 500") == OK
    assert int(two.ask("start fork")) > 0
    assert two.ask("child reserve 0 400").split()[0] == str(OK)
    two.ask("end")
    three.ask("note handle")
    three.ask("measure 0 5")
    container.change(12, *container.devices)
    one.kill()
    assert three.verdict(f"reserve 0 {LIMIT - 500}") == OK
    assert three.verdict("reserve 0 1") == OVER_LIMIT
    container.assert_books()
    for process in (two, three):
        assert re.search(r"Sanitizer|runtime error", process.stderr()) is None, process.said


@pytest.mark.skipif(not compilers.portable_is_here(), reason="the portable compiler is not installed")
@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu"])
def test_the_portable_compiler_takes_it(tmp_path: Path, target: str) -> None:
    """Linked whole and against glibc 2.17, where anything newer would be missing."""
    output = tmp_path / "core.so"
    flags = [flag for flag in build.FLAGS if not flag.startswith("-fvisibility")]
    link = ["-shared", "-Wl,--no-undefined", "-lpthread"]
    compilers.choose(compilers.PORTABLE, target).run([*flags, "-O2", f"-I{native.core()}", *map(str, SOURCES), *link, "-o", str(output)], "core")
    names = subprocess.run(["nm", "-D", str(output)], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"@GLIBC_([0-9.]+)", names)}
    assert "hami_reserve" in names
    assert versions
    assert max(versions) <= (2, 17)
