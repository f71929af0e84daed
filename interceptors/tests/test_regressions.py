# SPDX-License-Identifier: Apache-2.0
"""Bugs that others' users reported against interceptors, by name: each is shown not to be here, or it is said what it would take.

Numbers are issues of Project-HAMi: `#` of HAMi, `core#` of HAMi-core, `PR` a change there. Below each stands a test, in this file or
in another one (checked below), or `GPU:` and why only a real one can show it.

Hangs

- a lock whose owner died is waited for, for ever (core#86, core#8):
  test_core_crash.py::test_death_at
- workers that a master forked wait for one lock (#588, #55):
  test_588_forked_workers_outlive_the_death_of_one
- the second lookup of a name answers nothing (#2903):
  test_cuda_resolve.py::test_2903_repeated_rtld_next_lookup
- a lookup goes round in itself (#1834):
  test_resolve.py::test_an_allocator_that_asks_for_the_next_malloc_does_not_come_round
- every version of every name is asked for (#1834, core#52):
  test_cuda_resolve.py::test_every_hooked_name_resolves_to_our_hook_at_every_version_and_flag
- a program of a newer runtime hangs at its first call (#1834, core#52):
  GPU: the runtime works on a genuine driver only (docs/decisions/0008)
- calls by ctypes are slow while nothing is limited (#2641):
  test_2641_without_a_share_nothing_waits

Crashes

- a device number that is none (#1764):
  test_1764_memory_of_a_device_that_is_not_the_current_one
- no context, so no current device (core#187, PR core#172):
  test_cuda_contexts.py::test_a_thread_without_a_context_gets_the_drivers_own_errors
- memory of a device other than the current one (core#169, #1764):
  test_1764_memory_of_a_device_that_is_not_the_current_one
- several processes, several devices (core#276, #1219, #1055):
  test_1218_two_programs_that_each_see_one_device
- a pointer for an answer that is not there (core#333):
  test_cuda_absurd.py::test_no_hook_ends_the_program
- only one figure of two is asked for (core#234, core#333):
  test_333_one_figure_of_two
- a private function of the C library is gone (core#174):
  test_resolve.py::test_both_versions_of_dlsym_are_ours
- crashes of which we know no cause (#1461, #1438, core#61, PR core#192, Olares#2687):
  GPU: what we have of them names a program or a card, not a call

Accounting

- a free that is counted twice: 17 TB in use (#1181):
  test_1181_freeing_what_is_not_ours_changes_nothing
- the second process sees all of the slice as free (core#191):
  test_cuda_memory.py::test_a_neighbour_process_sees_what_the_first_holds_and_shares_its_limit
- what a pool had once stays charged (core#306, core#310, core#257):
  test_cuda_memory.py::test_306_what_a_pool_keeps_idle_is_charged_until_it_is_needed
- a way to get memory that nobody counts (PR core#217, #1196):
  test_cuda_rows.py::test_a_hook_does_its_work
- a slot that was taken from its living owner (PR core#242):
  test_core_process.py::test_a_slot_that_is_taken_by_mistake_is_counted_again
- a child of a bare clone gives back its parent's (core#292):
  test_core_process.py::test_a_child_is_a_process_of_its_own
- devices that are hidden or in another order (core#225, core#305, core#104):
  test_cuda_memory.py::test_reordered_and_hidden_devices_keep_their_own_limits
- two programs that each see another device as its first (#1218):
  test_1218_two_programs_that_each_see_one_device
- the container is told less than the device gave (#952, #446, #409):
  test_952_what_the_container_is_told_is_what_the_device_gave
- free memory that is not the limit less what is used (core#181):
  test_952_what_the_container_is_told_is_what_the_device_gave
- corrections of which we know no case (PR core#118, PR core#81):
  GPU: compare with their programs; the books against the device: test_races.py, test_cuda_faults.py
- memory that libraries take for themselves (#636):
  GPU: cuDNN and its like need a genuine driver; what they call is counted (test_cuda_rows.py)

Shares of the device's time

- a share is passed, by twice and more (core#76, core#37, #332, #424, #786, #737):
  test_compute.py::test_the_share_holds_to_half_a_percent
- it rises and falls about its share (core#147):
  test_compute.py::test_a_function_whose_cost_wavers_by_a_fifth_is_held_as_well_as_its_samples_can_tell
- a large card is barely held, since the step grows with its processors (core#274, core#314, PR core#286, PR core#317):
  test_compute.py::test_the_share_holds_to_half_a_percent
- only the first device is held (core#104):
  test_104_the_second_device_is_held_too
- graphs, and newer ways to launch, are not held (#1445, PR core#143):
  test_cuda_launch.py::test_a_launch_is_held_to_the_share
- 10 against 90 gives 1 to 7 (#2863):
  test_2863_ten_against_ninety
- a thread that does the limiting was never started (core#236, core#196):
  test_compute.py::test_two_processes_share_one_word_and_a_forked_waiter_is_woken_by_the_agent
- the driver reports no utilisation (core#54):
  test_104_the_second_device_is_held_too

New driver versions

- a name that the interceptor does not know (core#233, PR core#178, PR core#320, core#57, core#71, core#48):
  test_cuda_spec.py::test_every_exported_name_of_every_version_is_classified

Cost

- a launch or an allocation costs too much (PR core#166):
  GPU: of a training; per call: benchmarks/interceptor
- many processes start at once (PR core#159, #1662, core#252, core#259):
  test_core_process.py::test_a_thousand_processes
- a system call for each dead slot on the way (PR core#253):
  test_core_manners.py::test_the_normal_path_makes_no_system_call
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cuda_rig import CONTEXT, FAKE_INCLUDES, LIMIT, MIB, UUIDS, Container, record

HERE = Path(__file__)
PROGRAM = HERE.parent / "cuda" / "regression_program.py"
KERNEL_NS = 5_000_000

Make = Callable[..., Container]


def rows() -> list[tuple[str, str]]:
    """(numbers, shown by) of each row of the list above."""
    return re.findall(r"^- .* \(([^()]*)\):\n  (.*)$", __doc__ or "", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("numbers", "shown"), rows(), ids=[numbers.replace(" ", "") for numbers, _ in rows()])
def test_every_reported_bug_has_its_test_or_its_reason(numbers: str, shown: str) -> None:
    if shown.startswith("GPU: "):
        assert len(shown) > 20, "say why"
        return
    file, _, name = shown.rpartition("::")
    assert name in names_in(HERE.with_name(file) if file else HERE)


def test_the_list_is_read() -> None:
    assert len(rows()) == (__doc__ or "").count("\n- ") > 30


@pytest.fixture
def make(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Make:
    preload, libraries = interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES)]

    def build(*records: Any, **more: Any) -> Container:
        return Container(tmp_path / "container", preload, libraries, records or (record(0), record(1)), program=PROGRAM, **more)

    return build


def first_line(process: Any) -> dict[str, Any]:
    return dict(json.loads(process.stdout.readline()))


def test_588_forked_workers_outlive_the_death_of_one(make: Make) -> None:
    container = make(record(0, memory_bytes=8 * (CONTEXT + 8 * MIB)))
    assert sorted(container.run("workers", 6)["statuses"]) == [0] * 5 + [9]
    assert container.high_water() <= 8 * (CONTEXT + 8 * MIB)


def test_2641_without_a_share_nothing_waits(make: Make) -> None:
    """As quick as the kernels are: nothing is slept between them. The machine may be slow; a share of the device would be slower."""
    container = make()
    container.run("kernels", 0, 20, HAMI_FAKE_KERNEL_NS=str(KERNEL_NS))
    assert container.state().devices[0].waited_ns == 0


def test_1764_memory_of_a_device_that_is_not_the_current_one(make: Make) -> None:
    container = make()
    with container.running("other_device") as process:
        said = first_line(process)
        assert said["codes"][:2] == [0, 0]
        assert said["codes"][2] != 0, "a device that is none"
        assert said["first"] == [LIMIT - CONTEXT, LIMIT], "nothing is charged to the current device"
        assert container.state().devices[1].used_bytes == 128 * MIB


def test_1218_two_programs_that_each_see_one_device(make: Make) -> None:
    container = make()
    with ExitStack() as stack:
        for uuid in UUIDS[:2]:
            for _ in range(2):
                first_line(stack.enter_context(container.running("held", 0, CUDA_VISIBLE_DEVICES=uuid)))
        assert [container.state().devices[number].used_bytes for number in (0, 1)] == [2 * (CONTEXT + 128 * MIB)] * 2
        assert [container.high_water(number) for number in (0, 1)] == [2 * (CONTEXT + 128 * MIB)] * 2


def test_333_one_figure_of_two(make: Make) -> None:
    said = make().run("one_figure")
    assert said["codes"] == [0, 0]
    assert said["info"] == [LIMIT - CONTEXT, LIMIT]


def test_1181_freeing_what_is_not_ours_changes_nothing(make: Make) -> None:
    said = make().run("shutdown")
    assert said["end"] == said["start"] == [LIMIT - CONTEXT, LIMIT]


def test_952_what_the_container_is_told_is_what_the_device_gave(make: Make) -> None:
    container = make()
    with container.running("mixture") as process:
        free, total = first_line(process)["info"]
        given = container.card.devices[0].containers["uid/main"].used
        assert total == LIMIT
        assert 0 <= (total - free) - given <= 4 * MIB, "an array with smaller levels is charged by a bound"


def test_104_the_second_device_is_held_too(make: Make) -> None:
    """There is no management library here at all that could tell a utilisation."""
    container = make(record(0), record(1, core_milli=30_000))
    assert container.run("kernels", 1, 60, HAMI_FAKE_KERNEL_NS=str(KERNEL_NS))["seconds"] > 0.6
    assert container.state().devices[1].waited_ns > 0


def test_2863_ten_against_ninety(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> None:
    """Two containers on one card, each with the same work: the one of ninety is done about nine times as soon."""
    preload, libraries = interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES)]
    containers = {
        milli: Container(tmp_path / str(milli), preload, libraries, (record(0, core_milli=milli, burst_us=5_000),), devices=1, program=PROGRAM)
        for milli in (10_000, 90_000)
    }
    card = {"HAMI_FAKE_NVIDIA": str(containers[10_000].machine), "HAMI_FAKE_KERNEL_NS": str(KERNEL_NS)}
    with ExitStack() as stack:
        running = {milli: stack.enter_context(container.running("kernels", 0, 40, HAMI_GRANT=str(milli), **card)) for milli, container in containers.items()}
        seconds = {milli: first_line(process)["seconds"] for milli, process in running.items()}
    assert seconds[10_000] > 5 * seconds[90_000]
