# SPDX-License-Identifier: Apache-2.0
"""`hami run`, `ps` and `limit` as a person uses them: real processes, a one-file vendor, a real (empty) preloaded library."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hami_framework.deviceplugin import state as agent_state
from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.local import ledger
from hami_framework.model import GIB, MIB, ContainerGrant, DeviceGrant, Owner, PodGrant, share

pytestmark = pytest.mark.timeout(90)

Json = dict[str, Any]
HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
ROOT = os.geteuid() == 0
AS_USER = ["unshare", "-U", "--map-user", "1000", "--map-group", "1000"]
"""Unprivileged, yet able to read this checkout."""

VENDOR = """
from pathlib import Path
from hami_framework import Capacity, ContainerEdits, Device, DeviceClass, Enforcement, Interceptor, Isolation, Mode, ResourceNames, hookimpl, share, whole
HAMI_SPEC_VERSION = "1"
FOLDER = Path(__file__).parent
SHARE = Isolation(memory="soft", compute="soft")

@hookimpl
def hami_resources():
    return ResourceNames(count="bench.example/card", memory="bench.example/memory", cores="bench.example/cores")

@hookimpl
def hami_discover(host):
    modes = (Mode(name="whole", isolation=SHARE), Mode(name="share", isolation=SHARE))
    kind = DeviceClass(model="Bench 1", capacity=Capacity(memory_bytes=8 << 30), modes=modes)
    return [Device(id=f"BENCH-{number}", index=number, device_class=kind, pci_address=f"0000:0{number}:00.0") for number in range(2)]

@hookimpl
def hami_partition(device_class, request):
    if request.whole:
        return [whole(device_class.capacity.memory_bytes)]
    return [share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent)]

@hookimpl
def hami_allocate(grant, devices):
    return ContainerEdits(env={"BENCH_VISIBLE": ",".join(device.id for device in devices)})

@hookimpl
def hami_enforce(grant, devices):
    if (FOLDER / "nothing-holds").exists():
        return Enforcement(mechanism="good will")
    names = tuple((device.id, (("uuid", device.id.lower()), ("pci", device.pci_address))) for device in devices)
    return Enforcement(isolation=SHARE, mechanism="libbench.so", interceptor=Interceptor(library=str(FOLDER / "libbench.so"), identities=names))

@hookimpl
def hami_release(grant, devices):
    (FOLDER / "released").open("a").write(grant.owner.uid + "\\n")
"""


class Box:
    """A machine with a one-file vendor and a state directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.plugin = folder / "hami_bench.py"
        self.plugin.write_text(VENDOR)
        self.environment = {**os.environ, "HAMI_STATE_DIR": str(self.state), "XDG_STATE_HOME": str(folder / "home"), "COLUMNS": "200"}

    def command(self, *words: str, before: tuple[str, ...] = ()) -> list[str]:
        return [*before, *HAMI, words[0], *(["--plugin", str(self.plugin)] if words[0] == "run" else []), *words[1:]]

    def hami(self, *words: str, status: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words, before=before), env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def run(self, *words: str, device: str = "bench", **options: Any) -> subprocess.CompletedProcess[str]:
        return self.hami("run", "--device", device, *words, **options)

    def start(self, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command("run", *words, before=before), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ps(self) -> list[Json]:
        found: list[Json] = json.loads(self.hami("ps", "--state-dir", str(self.state), "-o", "json").stdout)
        return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-library")
    (folder / "bench.c").write_text("int hami_bench_is_here;\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(folder / "libbench.so"), str(folder / "bench.c")], check=True)
    return folder / "libbench.so"


@pytest.fixture
def box(library: Path) -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="hl-", dir="/tmp"))
    shutil.copy(library, folder)
    yield Box(folder)
    shutil.rmtree(folder)


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found


LOOK = (
    "import os, sys\n"
    "from pathlib import Path\n"
    "print('preloaded', any('libbench.so' in line for line in open('/proc/self/maps')))\n"
    "print('grant', os.environ['HAMI_GRANT'].startswith('local-'), os.environ['BENCH_VISIBLE'])\n"
    "place = Path(os.environ.get('HAMI_DEVELOPMENT_POLICY', '/run/hami'))\n"
    "print(place == Path('/run/hami'), sorted(each.name for each in (place / 'policy').iterdir()), (place / 'state/state.bin').stat().st_size > 100000)\n"
    "try: (place / 'policy' / 'policy.bin').open('r+b'); print('writable')\n"
    "except OSError as error: print(error.strerror)\n"
    "print(os.getcwd())\n"
    "sys.exit(9)\n"
)


@pytest.mark.skipif(not ROOT, reason="only root may mount")
def test_as_root_the_program_sees_a_policy_it_cannot_write_and_everything_is_released(box: Box) -> None:
    done = box.run("--memory", "1GiB", "--cores", "30", "--", sys.executable, "-c", LOOK, status=9)
    assert done.stdout.splitlines() == [
        "preloaded True",
        "grant True BENCH-0",
        "True ['control.bin', 'policy.bin'] True",
        "Read-only file system",
        os.getcwd(),
    ]
    assert done.stderr == ""
    assert ledger.read(box.state) == ()
    assert sorted(path.name for path in (box.state / "local").iterdir()) == [".lock", ".sweeping"]
    assert (box.folder / "released").read_text().count("local-") == 1
    assert not Path("/run/hami").exists()


def test_without_root_the_limit_is_advisory_and_it_says_so_once(box: Box) -> None:
    before = tuple(AS_USER) if ROOT else ()
    done = box.run("--memory", "1GiB", "--", sys.executable, "-c", LOOK, status=9, before=before)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["preloaded True", "grant True BENCH-0", "False ['control.bin', 'policy.bin'] True"]
    assert done.stderr.splitlines() == ["hami: without root the limit is advisory: it holds as long as the program does not work around it"]
    assert ledger.read(box.state) == ()


def test_runs_share_one_ledger_and_the_room_is_counted(box: Box) -> None:
    first = box.start("--memory", "5GiB", "--device", "bench:0", "--", "sleep", "60")
    second = box.start("--memory", "3GiB", "--device", "bench:0", "--", "sleep", "60")
    try:
        until(lambda: len([one for one in ledger.read(box.state) if one.program_pid]) == 2, "both noted")
        rows = {row["memory_limit_bytes"]: row for row in box.ps()}
        assert sorted(rows) == [3 * GIB, 5 * GIB]
        assert rows[5 * GIB]["memory_used_bytes"] == 0
        assert "not enough memory is free" in box.run("--memory", "1MiB", "--", "true", device="bench:0", status=1).stderr
        assert "BENCH-1" in box.run("--memory", "1GiB", "--dry-run", "--", "true").stdout
        assert len(ledger.read(box.state)) == 2
        sleeper = rows[3 * GIB]
        assert "not enough memory is free" in box.hami("limit", sleeper["id"], "--memory", "4GiB", status=1).stderr
        assert "not running" not in box.hami("limit", str(sleeper["pid"]), "--memory", "1GiB", "--cores", "40").stdout
        policy = container.policy_of(Path(ledger.folder(box.state) / f"{sleeper['id']}.d"))
        assert (policy.devices[0].memory_bytes, policy.devices[0].core_milli, policy.generation) == (GIB, 40000, 2)
        box.run("--memory", "2GiB", "--", "true", device="bench:0")
    finally:
        for process in (first, second):
            process.terminate()
            process.communicate(timeout=20)
    assert (first.returncode, second.returncode) == (143, 143)
    assert box.ps() == []


def test_a_killed_run_takes_its_program_along_and_is_swept_away(box: Box) -> None:
    process = box.start("--memory", "8GiB", "--device", "bench:0", "--", "sleep", "60")
    record = until(lambda: next((one for one in ledger.read(box.state) if one.program_pid), None), "noted")
    os.kill(record.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    until(lambda: ledger.start_ticks(record.program_pid) is None, "the program's end")
    assert ledger.live(ledger.read(box.state)) == ()
    assert box.ps() == []
    box.run("--memory", "8GiB", "--", "true", device="bench:0")
    assert ledger.read(box.state) == ()
    assert record.id in (box.folder / "released").read_text()


def test_signals_reach_the_program_and_its_status_comes_back(box: Box) -> None:
    process = box.start("--device", "bench", "--", "sh", "-c", "trap 'exit 42' USR1; echo up; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 42
    assert box.run("--", "sh", "-c", "kill -9 $$", status=137).returncode == 137


def pod_grant(node: str = "elsewhere") -> PodGrant:
    held = DeviceGrant(device_id="BENCH-0", device_name="bench-0", vendor="bench", resource="bench.example/card", offer=share(7 * GIB, 50))
    owner = Owner(kind="pod", uid="0000-1", namespace="ns", name="pod")
    return PodGrant(owner=owner, node=node, containers=(ContainerGrant(container="c", devices=(held,)),))


def test_what_pods_hold_here_is_counted_and_a_damaged_record_stops_everything(box: Box) -> None:
    box.state.mkdir()
    (box.state / "agent.json").write_bytes(agent_state.dump(agent_state.State(grants=(pod_grant(),))))
    assert "not enough memory is free" in box.run("--memory", "2GiB", "--", "true", device="bench:0", status=1).stderr
    box.run("--memory", "2GiB", "--", "true", device="bench:1")
    (box.state / "agent.json").write_bytes(b"something else")
    assert "what pods hold is not known" in box.run("--memory", "2GiB", "--", "true", status=1).stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        pytest.param(["--device", "bench", "--memory", "9GiB", "--", "true"], 1, "ask for less memory per device", id="more than a device has"),
        pytest.param(
            ["--device", "bench", "--memory", "1GiB", "--count", "3", "--", "true"], 1, "no node has that many devices", id="more devices than there are"
        ),
        pytest.param(["--memory", "1GiB", "--device", "bench:7", "--", "true"], 1, "has no device 'bench:7'; it has bench:0", id="unknown device"),
        pytest.param(["--memory", "lots", "--", "true"], 2, "write a number and a unit", id="amount"),
        pytest.param(["--memory", "4", "--", "true"], 2, "did you forget the unit", id="unit"),
        pytest.param(["--cores", "101", "--", "true"], 2, "101 is not in the range", id="percent"),
        pytest.param(["--cores", "0", "--", "true"], 2, "0 is not in the range", id="no percent"),
        pytest.param(["--memory", "1GiB"], 2, "say what to run, after --", id="no program"),
        pytest.param(["--memory", "1GiB", "--", ""], 2, "say what to run, after --", id="program without a name"),
        pytest.param(["--memory", "--", "true"], 2, "Invalid value for '--memory': '--' is not an amount", id="no amount"),
        pytest.param(["--device", "bench:0", "--device", "bench:0", "--", "true"], 1, "device BENCH-0 is named twice", id="twice"),
        pytest.param(["--device", "bench:0", "--state-dir", "/proc/no", "--", "true"], 1, "cannot be written: /proc/no", id="state directory"),
        pytest.param(["--device", "bench:0", "--", "/no/such/program"], 127, "cannot run '/no/such/program': there is no such program", id="program"),
        pytest.param(["--device", "bench:0", "--", "no-such-program"], 127, "is it spelt rightly, and on the PATH?", id="program on the path"),
        pytest.param(["--device", "bench:0", "--", "/etc/passwd"], 126, "chmod +x, or name its interpreter", id="not executable"),
        pytest.param(["--device", "bench:0", "--", "/etc"], 126, "it is a directory", id="a directory"),
        pytest.param(["--machine", "dgx-a100", "--", "true"], 1, "can play a machine 'dgx-a100'", id="machine"),
    ],
)
def test_bad_input_is_answered_in_words_and_nothing_is_left(box: Box, words: list[str], status: int, said: str) -> None:
    assert said in box.hami("run", *words, status=status).stderr
    assert ledger.read(box.state) == ()


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        pytest.param("nonsense", "neither a program for this machine nor a script with a #! line", id="neither program nor script"),
        pytest.param("#!/no/such/interpreter\n", "the interpreter that its first line names", id="interpreter"),
    ],
)
def test_a_file_that_is_no_program_is_told_from_one_that_is_not_there(box: Box, contents: str, said: str) -> None:
    (box.folder / "program").write_text(contents)
    (box.folder / "program").chmod(0o755)
    assert said in box.run("--", str(box.folder / "program"), status=126).stderr
    assert ledger.read(box.state) == ()


def test_without_a_library_nothing_runs_unless_it_is_meant(box: Box) -> None:
    (box.folder / "libbench.so").unlink()
    assert "interceptor library of vendor bench is not there" in box.run("--memory", "1GiB", "--", "true", status=1).stderr
    (box.folder / "nothing-holds").touch()
    assert "nothing would hold the limit" in box.run("--memory", "1GiB", "--", "true", status=1).stderr
    assert "advisory" in box.run("--memory", "1GiB", "--unheld", "--", "true").stderr
    assert ledger.read(box.state) == ()


def test_a_pods_container_can_have_anything_up_to_what_it_was_granted(box: Box) -> None:
    box.state.mkdir()
    (box.state / "agent.json").write_bytes(agent_state.dump(agent_state.State(grants=(pod_grant(),))))
    directory = box.state / "containers" / "0000-1_c" / "enforcement"
    device = DevicePolicy(vendor="bench", identities=(("uuid", "bench-0"),), memory_bytes=7 * GIB, core_milli=50000)
    container.prepare(directory, Policy(container="0000-1/c", devices=(device,)), [box.folder / "libbench.so"])
    (row,) = box.ps()
    assert (row["name"], row["device"], row["memory"], row["cores"]) == ("ns/pod/c", "bench-0", "0 MiB / 7168 MiB", "50 %")
    assert "was granted 7168 MiB, and 7680 MiB is more" in box.hami("limit", "ns/pod/c", "--memory", "7.5GiB", status=1).stderr
    assert "was granted 50 % of compute, and 60 % is more" in box.hami("limit", "ns/pod/c", "--cores", "60", status=1).stderr
    assert "6144 MiB, 20 %" in box.hami("limit", "ns/pod", "--memory", "6GiB", "--cores", "20").stdout
    assert container.policy_of(directory).devices[0].memory_bytes == 6144 * MIB
    assert "6656 MiB, 20 %" in box.hami("limit", "ns/pod", "--memory", "6.5GiB").stdout
    (box.state / "agent.json").unlink()
    assert "do not say what 0000-1/c was granted" in box.hami("limit", "0000-1", "--memory", "1GiB", status=1).stderr
    assert "nobody" not in box.hami("limit", "nothing", "--memory", "6GiB", status=1).stderr


def test_ps_watches_until_it_is_told_to_end(box: Box) -> None:
    process = subprocess.Popen(
        [*HAMI, "ps", "--watch", "--interval", "0.1", "--state-dir", str(box.state)],
        env=box.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who started us in the background has it ignored
    )
    assert process.stderr is not None
    assert [process.stderr.readline() for _ in range(2)] == ["nobody holds anything\n"] * 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
