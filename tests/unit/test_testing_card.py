# SPDX-License-Identifier: Apache-2.0
"""The card that all fakes of a machine share, through its own header: who is charged, who is refused, who is swept."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hami_framework.errors import ConfigError
from hami_framework.testing.card import Card
from hami_framework.testing.fakes import HEADER_DIRECTORY

MIB = 1 << 20
PROGRAM = """
#include "hami_card_time.h"
/* take MIB | give MIB | run MS PERMILLE | die, in turn; prints each answer */
int main(int count, char **words)
{
    if (card_load("HAMI_MACHINE") != 0) return 3;
    for (int i = 1; i < count; i++) {
        struct card_kernel kernel;
        if (strcmp(words[i], "take") == 0) printf("%d ", card_take(0, (uint64_t)atoi(words[++i]) << 20, CARD_LINEAR));
        else if (strcmp(words[i], "give") == 0) card_give(0, (uint64_t)atoi(words[++i]) << 20, CARD_LINEAR);
        else if (strcmp(words[i], "die") == 0) raise(SIGKILL);
        else { card_run(0, 0, (uint64_t)atoi(words[i + 1]) * 1000000, (uint32_t)atoi(words[i + 2]), &kernel); card_wait(kernel.finish); i += 2; }
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    (folder / "card.c").write_text(PROGRAM)
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, f"-I{HEADER_DIRECTORY}", str(folder / "card.c"), "-o", str(folder / "card")], check=True)
    return folder / "card"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.ini"
    path.write_text("[device 0]\nmemory_mib = 100\nmemory_reserved_mib = 10\n")
    return path


def play(program: Path, machine: Path, *words: str, container: str = "uid/main") -> str:
    environment = {**os.environ, "HAMI_MACHINE": str(machine), "HAMI_GRANT": container}
    return subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


@pytest.mark.parametrize(
    ("words", "answers", "high_water"),
    [
        pytest.param("take 60 take 31 take 30", "0 1 0", 90, id="full"),
        pytest.param("take 60 give 60 take 80", "0 0", 80, id="given-back"),
        pytest.param("take 10 give 50 take 90", "0 0", 90, id="no-more-than-it-held"),
    ],
)
def test_a_device_gives_what_it_has(program: Path, machine: Path, words: str, answers: str, high_water: int) -> None:
    assert play(program, machine, *words.split()) == answers
    device = Card(machine).devices[0]
    assert (device.capacity, device.used, device.containers["uid/main"].high_water) == (90 * MIB, 0, high_water * MIB)


def test_the_killed_hold_nothing(program: Path, machine: Path) -> None:
    play(program, machine, "take", "80", "die", container="uid/killed")
    assert play(program, machine, "take", "90", container="uid/next") == "0"
    assert Card(machine).report().swept == 2


@pytest.mark.parametrize(("line", "answer"), [("health = lost", "2"), ("fail_next_alloc = 1", "1"), ("oom_after_bytes = 1024", "1")])
def test_the_machine_file_makes_a_device_fail(program: Path, machine: Path, line: str, answer: str) -> None:
    machine.write_text(machine.read_text() + line + "\n")
    assert play(program, machine, "take", "1") == answer


def test_kernels_are_counted_for_their_container(program: Path, machine: Path) -> None:
    play(program, machine, "run", "20", "1000", "run", "10", "500")
    device = Card(machine).devices[0]
    assert (device.busy_ns, device.containers["uid/main"].busy_ns, device.kernels) == (30_000_000, 25_000_000, 2)


def test_no_card_is_said_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="first uses a fake library"):
        Card(tmp_path / "nowhere.ini").report()
