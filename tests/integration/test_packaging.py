# SPDX-License-Identifier: Apache-2.0
"""The distributions: each builds sdist → wheel in an empty directory; core + one vendor is a working installation with one vendor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENDORS = ("nvidia", "ascend", "cambricon", "hygon")
PROJECTS = {
    "hami_framework": ROOT,
    **{f"hami_framework_{vendor}": ROOT / "vendors" / vendor for vendor in VENDORS},
    "hami_framework_acme": ROOT / "examples" / "vendor-acme",
    "hami_interceptor_sdk": ROOT / "interceptors",
    "hami_interceptor_acme": ROOT / "examples" / "interceptor-acme",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every distribution, built through its sdist; the files that the build leaves lie outside the tree."""
    out = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)], check=True, capture_output=True)
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third-party packages of this environment without our own editable installs."""
    farm = tmp_path_factory.mktemp("dependencies")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "hami_" not in entry.name:
            (farm / entry.name).symlink_to(entry)
    return farm


def run(dependencies: Path, packages: list[Path], *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with nothing but the standard library, the dependencies and these wheels (unpacked)."""
    base: str = sys._base_executable  # type: ignore[attr-defined]  # the interpreter behind the virtual environment
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*packages, dependencies]))}
    return subprocess.run([base, "-s", *command], capture_output=True, text=True, check=False, env=environment, cwd=packages[0])


def unpacked(wheel: Path, directory: Path) -> Path:
    target = directory / wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_each_project_builds(wheels: dict[str, Path]) -> None:
    assert wheels.keys() == PROJECTS.keys()


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_wheel_carries_its_fakes(wheels: dict[str, Path], vendor: str) -> None:
    names = zipfile.ZipFile(wheels[f"hami_framework_{vendor}"]).namelist()
    assert any(name.endswith(".c") for name in names)
    assert any(name.endswith(".ini") for name in names)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_wheel_carries_its_interceptor_and_no_other_binary(wheels: dict[str, Path], vendor: str) -> None:
    wheel = wheels[f"hami_framework_{vendor}"]
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".so" in name or name.endswith((".o", ".a"))] == [f"hami_{vendor}/lib/libhami_{vendor}.so"]
    assert not wheel.name.endswith("-any.whl")


def test_the_sdk_carries_the_c_and_no_binary(wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels["hami_interceptor_sdk"]).namelist()
    sources = {name.split("/")[2] for name in names if name.startswith("hami_interceptor/sources/")}
    assert sources == {"core", "spec", "shim", "fakes"}
    assert not any(name.endswith((".so", ".o", ".a", ".pyc")) for name in names)


def test_the_core_carries_the_protos_and_the_fake_header(wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels["hami_framework"]).namelist()
    assert any(name.endswith("hami_fake.h") for name in names)
    assert any(name.endswith(".proto") for name in names)
    assert not any("vendors/" in name or "tests/" in name for name in names)


@pytest.mark.parametrize(
    "vendors", [pytest.param(("nvidia",), id="one"), pytest.param(("hygon", "acme"), id="one of ours and a stranger"), pytest.param((), id="none")]
)
def test_what_is_installed_is_what_is_listed(wheels: dict[str, Path], dependencies: Path, tmp_path: Path, vendors: tuple[str, ...]) -> None:
    packages = [unpacked(wheels[name], tmp_path) for name in ("hami_framework", *(f"hami_framework_{vendor}" for vendor in vendors))]
    done = run(dependencies, packages, "-c", "import sys; sys.argv = ['hami', 'plugins', '-o', 'json']; from hami_framework.cli.main import main; main()")
    assert done.returncode == 0, done.stderr
    assert {row["vendor"]: row["state"] for row in json.loads(done.stdout)} == dict.fromkeys(vendors, "ready")
