# SPDX-License-Identifier: Apache-2.0
"""Neighbouring releases read each other: in an upgrade, agents and extender of both run side by side, and back again.

`tests/golden/<release>` is what that release wrote, recorded from its sources and never changed. Where the clone has the release's
commit, its own reader is put before today's files too; where it has not, the frozen rules below stand for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec import inventories
from hami_framework.codec.grants import decode_grant
from hami_framework.deviceplugin import cdi, slots, state
from hami_framework.enforcement import layout
from hami_framework.errors import FormatError
from hami_framework.local import ledger

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
COMMITS = {"0.1": "73e246ee3e9a1ce1ef5b48ded8bc7935ac64c95c"}
RELEASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir() and not folder.name.startswith("_"))
UNDERSTOOD = [
    ["7a0c2a46-0d2f-4d8e-9f3b-1f7e4f0d2b11", 2, 3221225472],
    [7, ["X-1", "X-2"], ["healthy", "unhealthy"]],
    ["nvlink", 4, "run-1"],
    [["xpu-2c8dbbbe-3"], "ready", "/var/lib/hami/containers/x_main", 8, "7a0c2a46-0d2f-4d8e-9f3b-1f7e4f0d2b11"],
    [3221225472, 30000, 3, 3],
    [1073741824],
    ["run-1", 4242, ["python", "train.py"], "soft", "7a0c2a46-0d2f-4d8e-9f3b-1f7e4f0d2b11"],
]


def run(script: str, folder: Path, sources: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    done = subprocess.run(
        [sys.executable, str(GOLDEN / script), str(folder)], env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What today's code writes."""
    folder = tmp_path_factory.mktemp("today")
    run("record.py", folder, ROOT)
    return folder


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_wrote_is_read_today(release: str) -> None:
    assert json.loads(run("read_back.py", GOLDEN / release, ROOT)) == UNDERSTOOD


def test_today_reads_its_own(today: Path) -> None:
    assert json.loads(run("read_back.py", today, ROOT)) == UNDERSTOOD


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_reads_what_is_written_today(release: str, today: Path, tmp_path: Path) -> None:
    """With the release's own sources, from the history; a shallow clone has none, and the frozen rules stand alone."""
    kept = subprocess.run(["git", "archive", COMMITS[release], "hami_framework"], cwd=ROOT, capture_output=True, check=False)
    if kept.returncode != 0:
        pytest.skip(f"this clone has no commit {COMMITS[release][:7]}: release {release}'s own reader was not tried")
    with tarfile.open(fileobj=io.BytesIO(kept.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert json.loads(run("read_back.py", today, tmp_path)) == UNDERSTOOD


# The rules by which 0.1 reads, frozen. Fields beyond these are ignored by it; a field that goes missing, or changes its kind, is not.
GRANT_0_1: dict[str, Any] = {
    "version": "1.", "owner": {"kind": ("pod", "claim", "local"), "uid": str}, "node": str,
    "containers": [{"container": str, "devices?": [{"deviceId": str, "deviceName": str, "vendor": str, "resource": str, "offer": {"mode": str}}]}],
}  # fmt: skip
INVENTORY_0_1: dict[str, Any] = {
    "apiVersion": "hami.io/v1alpha1", "kind": "NodeInventory", "metadata": {"name": str},
    "spec": {
        "generation": int, "vendors": [{"name": str}], "classes": [{"name": str, "model": str, "capacity": {"memoryBytes": int}}],
        "devices": [{"id": str, "classRef": str, "health?": {"state?": ("healthy", "unhealthy")}}], "held?": [str],
    },
}  # fmt: skip
RECORD_0_1: dict[str, Any] = {
    "owner": {"kind": ("pod", "claim", "local"), "uid": str}, "container": str, "kind": ("init", "sidecar", "app"), "resource": str,
    "slots": [str], "devices": list, "at": (int, float), "boot": str,
}  # fmt: skip


def violations(rule: Any, found: Any, place: str = "") -> list[str]:
    """Where a document breaks a frozen rule."""
    if isinstance(rule, dict):
        wrong = [] if isinstance(found, dict) else [f"{place} is no object"]
        for key, inner in rule.items() if not wrong else ():
            name = key.rstrip("?")
            if name in found:
                wrong += violations(inner, found[name], f"{place}.{name}")
            elif name == key:
                wrong.append(f"{place}.{name} is missing")
        return wrong
    if isinstance(rule, list):
        return [text for number, one in enumerate(found) for text in violations(rule[0], one, f"{place}[{number}]")]
    if isinstance(rule, str):
        return [] if str(found).startswith(rule) else [f"{place} is {found!r}"]
    if isinstance(rule, tuple) and isinstance(rule[0], str):
        return [] if found in rule else [f"{place} is {found!r}, which 0.1 does not know"]
    return [] if isinstance(found, rule) else [f"{place} is {found!r}"]


@pytest.mark.parametrize("folder", ["today", *RELEASES])
def test_the_frozen_rules_of_0_1_hold(folder: str, today: Path) -> None:
    where = today if folder == "today" else GOLDEN / folder
    head, _, body = (where / "agent.json").read_bytes().partition(b"\n")
    assert head.decode() == f"hami-agent-state/1 {hashlib.sha256(body).hexdigest()}"
    broken = violations(GRANT_0_1, json.loads((where / "grant.json").read_text()), "grant")
    broken += violations(INVENTORY_0_1, json.loads((where / "inventory.json").read_text()), "inventory")
    broken += [text for record in json.loads(body)["records"] for text in violations(RECORD_0_1, {"kind": "app", **record}, "record")]
    assert not broken


def test_the_rules_can_fail() -> None:
    document = json.loads((GOLDEN / "0.1" / "grant.json").read_text())
    assert violations(GRANT_0_1, {**document, "version": "2.0"}, "grant") == ["grant.version is '2.0'"]
    assert violations(GRANT_0_1, {**document, "owner": {"kind": "job", "uid": "u"}}, "grant") == ["grant.owner.kind is 'job', which 0.1 does not know"]
    assert violations(GRANT_0_1, {key: document[key] for key in document if key != "node"}, "grant") == ["grant.node is missing"]


@pytest.mark.parametrize("release", RELEASES)
def test_slots_keep_their_names(release: str) -> None:
    """Kubelet's checkpoint holds them: a slot that is called otherwise after an upgrade would fail its pod at the next reboot."""
    for resource, names in json.loads((GOLDEN / release / "slots.json").read_text()).items():
        assert [slots.slot_id(resource, 0), cdi.qualified_name(slots.slot_id(resource, 0))] == names
    (file,) = (GOLDEN / release).glob("hami.io-slot_*.json")
    assert cdi.CdiDirectory(GOLDEN / release).slots() == {"xpu-2c8dbbbe-3"}
    assert json.loads(file.read_text())["cdiVersion"] == "0.3.0"


def test_the_layout_of_the_shared_files_is_that_of_0_1() -> None:
    """A container keeps the library it started with: a new layout version needs an agent that still writes the old one."""
    assert layout.LAYOUT_VERSION == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"apiVersion": "hami.io/v1"}, id="a newer version of the API"),
        pytest.param({"spec": {"generation": "seven"}}, id="a value of another kind"),
        pytest.param({"spec": {"generation": 7, "devices": [{"id": "X-1", "classRef": "gone"}]}}, id="a class that is not there"),
        pytest.param({"spec": {"generation": 7, "held": ["nonsense"]}}, id="a grant that is none"),
        pytest.param({"spec": None}, id="no spec at all reads as a node without devices"),
    ],
)
def test_an_inventory_that_cannot_be_read_is_refused_by_name(change: dict[str, Any], request: pytest.FixtureRequest) -> None:
    document = json.loads((GOLDEN / "0.1" / "inventory.json").read_text()) | change
    if change == {"spec": None}:
        assert inventories.from_object(document).devices == ()
        return
    with pytest.raises(FormatError, match="node-1"):
        inventories.from_object(document)


def test_damage_and_other_versions_are_told_apart_from_nothing() -> None:
    good = (GOLDEN / "0.1" / "agent.json").read_bytes()
    for bad in (good[:-9], good.replace(b"hami-agent-state/1", b"hami-agent-state/2"), b""):
        with pytest.raises(FormatError):
            state.parse(bad)
    with pytest.raises(FormatError, match=r"2\.0"):
        decode_grant((GOLDEN / "0.1" / "grant.json").read_text().replace('"version":"1.0"', '"version":"2.0"'))
    assert ledger.AGENT_FORMAT == state.FORMAT
