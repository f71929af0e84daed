# SPDX-License-Identifier: Apache-2.0
"""`hami doctor`, `hami interceptor coverage`, and amounts of memory as people write them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from hami_framework.cli.local import parse_memory
from hami_framework.local import doctor
from hami_framework.plugins import Source

HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
CONFIG = "etc/nvidia-container-runtime/config.toml"
KEY = "accept-nvidia-visible-devices-envvar-when-unprivileged"
SDK = Path(__file__).parents[2] / "interceptors" / "gen"


def hami(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HAMI, *words], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("config", "state", "said"),
    [
        pytest.param(None, "ok", "none is installed", id="no such runtime"),
        pytest.param("", "fail", "honours NVIDIA_VISIBLE_DEVICES", id="the default honours it"),
        pytest.param(f"{KEY} = true\n", "fail", "honours NVIDIA_VISIBLE_DEVICES", id="honours it"),
        pytest.param(f"{KEY} = false\n", "ok", "does not honour", id="does not"),
        pytest.param("= nonsense", "warn", "cannot be read", id="damaged"),
    ],
)
def test_a_runtime_that_lets_pods_name_their_devices_is_flagged(tmp_path: Path, config: str | None, state: str, said: str) -> None:
    path = tmp_path / CONFIG
    path.parent.mkdir(parents=True)
    if config is not None:
        path.write_text(config)
    (check,) = doctor.runtimes(tmp_path)
    assert check.state == state
    assert said in check.found
    assert bool(check.do) == (state != "ok")


def test_a_library_must_load_and_be_readable(tmp_path: Path) -> None:
    source = Source(vendor="bench", target=str(tmp_path / "hami_bench.py"), is_file=True)
    assert [check.state for check in doctor.library(source)] == ["warn"]
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libhami_bench.so"
    library.write_bytes(b"no library")
    assert [check.state for check in doctor.library(source)] == ["fail"]
    (tmp_path / "bench.c").write_text("int here;\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "bench.c")], check=True)
    library.chmod(0o755)
    assert [check.state for check in doctor.library(source)] == ["ok"]
    library.chmod(0o700)
    assert [check.state for check in doctor.library(source)] == ["fail"]


def test_the_hosts_own_run_directory_is_looked_at(tmp_path: Path) -> None:
    assert [check.state for check in doctor.run_directory(tmp_path)] == ["ok"]
    place = tmp_path / "run" / "hami"
    place.mkdir(parents=True)
    place.chmod(0o777)
    assert [check.state for check in doctor.run_directory(tmp_path)] == ["fail"]


def test_the_answer_is_for_people_and_for_machines(tmp_path: Path) -> None:
    done = hami("doctor", "--root", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "kernel: OFD locks: yes" in done.stdout
    rows: list[dict[str, Any]] = json.loads(hami("doctor", "--root", str(tmp_path), "-o", "json").stdout)
    assert {"what", "state", "found", "do"} <= rows[0].keys()
    path = tmp_path / CONFIG
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert hami("doctor", "--root", str(tmp_path)).returncode == 1


def test_coverage_says_where_its_tables_come_from() -> None:
    without = subprocess.run([sys.executable, "-c", "import hami_interceptor"], capture_output=True, check=False).returncode != 0
    if without:
        done = hami("interceptor", "coverage")
        assert done.returncode == 1
        assert "pip install hami-interceptor-sdk" in done.stderr
    done = hami("interceptor", "coverage", "--api", "nothing", PYTHONPATH=str(SDK))
    assert (done.returncode, "has no API 'nothing'" in done.stderr) == (1, True)
    done = hami("interceptor", "coverage", "--api", "cuda", "-o", "json", PYTHONPATH=str(SDK))
    assert {row["api"] for row in json.loads(done.stdout)} == {"cuda"}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4GiB", 4 << 30),
        ("4Gi", 4 << 30),
        ("4g", 4 * 10**9),
        ("1.5GiB", 3 << 29),
        ("3000MiB", 3000 << 20),
        ("3000 mib", 3000 << 20),
        ("1048576", 1 << 20),
        ("2MB", 2 * 10**6),
    ],
)
def test_amounts_as_people_write_them(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "4", "lots", "-4GiB", "4GiBs", "4 i", "0", "1e9", "4XiB", "GiB"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_memory(text)
