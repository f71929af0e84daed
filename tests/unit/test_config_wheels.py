# SPDX-License-Identifier: Apache-2.0
"""Wheels of a volume, unpacked without pip: all of a good one, nothing of a bad one."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hami_framework.config.wheels import install, main
from hami_framework.errors import ConfigError

GOOD = {
    "hami_acme/__init__.py": b"HAMI_SPEC_VERSION = '1'\n",
    "hami_acme-1.0.dist-info/entry_points.txt": b"[hami_framework]\nacme = hami_acme\n",
    "hami_acme-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: hami-acme\nVersion: 1.0\n",
    "hami_acme-1.0.data/purelib/hami_acme/more.py": b"MORE = 1\n",
    "hami_acme-1.0.data/scripts/acme": b"#!python\n",
}
FILE = "hami_acme-1.0-py3-none-any.whl"
RECORD = "hami_acme-1.0.dist-info/RECORD"


def wheel(folder: Path, files: dict[str, bytes], name: str = FILE, record: str | None = RECORD, lie: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        lines = []
        for path, data in files.items():
            archive.writestr(path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(b"lie" if path == lie else data).digest()).decode().rstrip("=")
            lines.append(f"{path},sha256={digest},{len(data)}")
        if record is not None:
            archive.writestr(record, "\n".join([*lines, f"{record},,"]))
    return folder


def test_a_vendors_package_is_found_after_that(tmp_path: Path) -> None:
    assert install(wheel(tmp_path / "from", GOOD), tmp_path / "to") == ["hami_acme 1.0"]
    found = "from hami_framework.plugins import find_sources; import hami_acme.more; print([s.vendor for s in find_sources(['acme'])[0]])"
    done = subprocess.run([sys.executable, "-c", found], env={"PYTHONPATH": str(tmp_path / "to")}, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['acme']\n"
    assert not list((tmp_path / "to").glob("**/scripts"))


BAD = [
    pytest.param({"files": GOOD, "lie": "hami_acme/__init__.py"}, "hami_acme/__init__.py is not what the wheel's list says", id="a changed file"),
    pytest.param({"files": {**GOOD, "../evil.py": b""}}, "points out of the wheel", id="a path that leaves"),
    pytest.param({"files": {**GOOD, "/etc/evil": b""}}, "points out of the wheel", id="an absolute path"),
    pytest.param({"files": GOOD, "record": None}, "is no wheel: it has 0 lists of files", id="a plain zip"),
    pytest.param({"files": GOOD, "name": "other-1.0-py3-none-any.whl"}, "says that it is hami_acme-1.0: a wheel may not be renamed", id="renamed"),
]


@pytest.mark.parametrize(("made", "said"), BAD)
def test_a_bad_wheel_is_named_and_leaves_nothing(tmp_path: Path, made: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = wheel(tmp_path / "from", **made)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        install(folder, tmp_path / "to")
    assert said in str(caught.value)
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "evil.py").exists()
    assert main([str(folder), str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_broken_files_and_an_empty_volume_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no \*\.whl file"):
        install(tmp_path, tmp_path / "to")
    (tmp_path / FILE).write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match=f"{FILE} cannot be unpacked"):
        install(tmp_path, tmp_path / "to")
