# SPDX-License-Identifier: Apache-2.0
"""CDI as containerd's library judges it: what loads, what is set aside, who wins."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hami_framework.sandbox.runtime.cdi import CdiCache
from hami_framework.sandbox.runtime.container import ContainerConfig, ContainerError, Runtime
from hami_framework.sandbox.runtime.rules import SpecError, check_spec, minimum_version

GOOD: dict[str, Any] = {"cdiVersion": "0.5.0", "kind": "hami.io/slot", "devices": [{"name": "s1", "containerEdits": {"env": ["A=1"]}}]}


def spec(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **changes}


def device(**edits: Any) -> list[dict[str, Any]]:
    return [{"name": "s1", "containerEdits": edits}]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (spec(cdiVersion="2.0.0"), "invalid version"),
        (spec(extra=1), "unknown field 'extra'"),
        (spec(kind="slot"), "invalid vendor"),
        (spec(kind="9.io/slot"), "invalid vendor"),
        (spec(kind="hami.io/slot-"), "invalid class"),
        (spec(devices=[]), "no devices"),
        (spec(devices=GOOD["devices"] * 2), "multiple device 's1'"),
        (spec(devices=[{"name": "-s", "containerEdits": {"env": ["A=1"]}}]), "invalid device name"),
        (spec(devices=device()), "empty device edits"),
        (spec(devices=device(env=[])), "empty device edits"),
        (spec(devices=device(env=["A"])), "invalid environment variable"),
        (spec(devices=device(env=["=1"])), "invalid environment variable"),
        (spec(devices=device(envs=["A=1"])), "unknown field 'envs'"),
        (spec(devices=device(env="A=1")), "must be list"),
        (spec(devices=device(deviceNodes=[{"hostPath": "/dev/x"}])), "empty path"),
        (spec(devices=device(deviceNodes=[{"path": "/dev/x", "permissions": "rx"}])), "invalid permissions"),
        (spec(devices=device(deviceNodes=[{"path": "/dev/x", "type": "z"}])), "invalid type"),
        (spec(devices=device(mounts=[{"hostPath": "/a"}])), "empty containerPath"),
        (spec(devices=device(mounts=[{"hostPath": "/a", "containerPath": "/b", "readOnly": True}])), "unknown field 'readOnly'"),
        (spec(devices=device(hooks=[{"hookName": "before", "path": "/x"}])), "invalid hook name"),
        (spec(devices=device(additionalGids=[-1]), cdiVersion="0.7.0"), "non-negative"),
        (spec(devices=device(additionalGids=[4])), "at least v0.7.0"),
        (spec(cdiVersion="0.4.0", devices=device(deviceNodes=[{"path": "/dev/x", "hostPath": "/dev/y"}])), "at least v0.5.0"),
        (spec(kind="hami.io/slot.v1"), "at least v0.6.0"),
        (spec(annotations={"a": "b"}), "at least v0.6.0"),
        (spec(cdiVersion="0.4.0", devices=[{"name": "1s", "containerEdits": {"env": ["A=1"]}}]), "at least v0.5.0"),
        (spec(cdiVersion="0.3.0", devices=device(mounts=[{"hostPath": "/a", "containerPath": "/b", "type": "bind"}])), "at least v0.4.0"),
        ([], "must be an object"),
    ],
)
def test_what_is_refused(document: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_spec(document)


@pytest.mark.parametrize(
    ("document", "version"),
    [
        (spec(), "0.3.0"),
        (spec(devices=device(netDevices=[{"hostInterfaceName": "e", "name": "f"}])), "1.1.0"),
        (spec(devices=device(intelRdt={"closID": "x"})), "0.7.0"),
        (spec(containerEdits={"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}), "0.4.0"),
    ],
)
def test_the_lowest_version_that_does(document: dict[str, Any], version: str) -> None:
    assert minimum_version(document) == version
    check_spec({**document, "cdiVersion": version})


class Dirs:
    def __init__(self, root: Path) -> None:
        self.static, self.dynamic = root / "etc", root / "run"
        self.static.mkdir()
        self.dynamic.mkdir()
        self.runtime = Runtime((self.static, self.dynamic), (root / "real",))

    @property
    def cache(self) -> CdiCache:
        return self.runtime.cdi

    def run(self, *names: str, **more: Any) -> dict[str, Any]:
        config = ContainerConfig(
            pod_uid="u", namespace="d", pod="p", container="c", kind="app", cdi_devices=tuple(f"hami.io/slot={name}" for name in names), **more
        )
        return self.runtime.run(config).view()


@pytest.fixture
def dirs(tmp_path: Path) -> Dirs:
    return Dirs(tmp_path)


async def test_a_name_is_looked_up_anew_each_time(dirs: Dirs) -> None:
    with pytest.raises(SpecError, match="unresolvable CDI devices hami"):
        dirs.cache.resolve(["hami.io/slot=s1"])
    for value in ("1", "2"):
        (dirs.dynamic / "a.json").write_text(json.dumps(spec(devices=device(env=[f"A={value}"]))))
        assert dirs.run("s1")["env"] == {"A": value}
    (dirs.dynamic / "a.json").unlink()
    with pytest.raises(ContainerError, match="unresolvable") as caught:
        dirs.run("s1")
    assert caught.value.reason == "CreateContainerError"


async def test_the_later_directory_wins(dirs: Dirs) -> None:
    (dirs.static / "a.json").write_text(json.dumps(spec(devices=device(env=["A=static"]))))
    (dirs.dynamic / "b.yaml").write_text("cdiVersion: 0.5.0\nkind: hami.io/slot\ndevices: [{name: s1, containerEdits: {env: [A=dynamic]}}]\n")
    assert dirs.run("s1")["env"] == {"A": "dynamic"}


async def test_two_files_of_one_directory_make_the_device_unresolvable(dirs: Dirs) -> None:
    for name in ("a.json", "b.json"):
        (dirs.dynamic / name).write_text(json.dumps(GOOD))
    with pytest.raises(SpecError, match="conflicting device"):
        dirs.cache.resolve(["hami.io/slot=s1"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", json.dumps(GOOD)[:-1] + ', "kind": "hami.io/slot"}'),
        ("a.json", json.dumps(spec(cdiVersion="9"))),
        (".a.tmp", json.dumps(GOOD)),
    ],
    ids=["half-written", "duplicate-key", "invalid", "other-extension"],
)
async def test_a_bad_file_is_set_aside_and_the_others_serve(dirs: Dirs, name: str, text: str) -> None:
    (dirs.dynamic / name).write_text(text)
    (dirs.dynamic / "other.json").write_text(json.dumps(spec(devices=[{"name": "s2", "containerEdits": {"env": ["B=2"]}}])))
    assert dirs.run("s2")["env"] == {"B": "2"}
    with pytest.raises(SpecError):
        dirs.cache.resolve(["hami.io/slot=s1"])


async def test_edits_of_the_whole_file_come_once_and_before_the_devices(dirs: Dirs) -> None:
    mount = {"hostPath": "/a", "containerPath": "/c", "options": ["ro", "bind"]}
    both = [{"name": name, "containerEdits": {"env": [f"LAST={name}"], "mounts": [{**mount, "hostPath": f"/{name}"}]}} for name in ("s1", "s2")]
    top = {"env": ["LAST=file", "FILE=1"], "deviceNodes": [{"path": "/dev/x"}], "additionalGids": [4]}
    (dirs.dynamic / "a.json").write_text(json.dumps(spec(cdiVersion="0.7.0", devices=both, containerEdits=top)))
    view = dirs.run("s1", "s2", env={"LAST": "pod", "KEPT": "1"})
    assert view["env"] == {"LAST": "s2", "KEPT": "1", "FILE": "1"}
    assert view["mounts"] == [{"hostPath": "/s2", "containerPath": "/c", "options": ["ro", "bind"]}]
    assert view["deviceNodes"] == [{"path": "/dev/x", "hostPath": "/dev/x", "permissions": "rwm"}]
    assert view["additionalGids"] == [4]


async def test_only_host_paths_that_are_real_are_looked_at(dirs: Dirs, tmp_path: Path) -> None:
    def write(host_path: str) -> None:
        (dirs.dynamic / "a.json").write_text(json.dumps(spec(devices=device(mounts=[{"hostPath": host_path, "containerPath": "/c"}]))))

    write("/no/such/path")
    dirs.run("s1")
    write(str(tmp_path / "real" / "limits"))
    with pytest.raises(ContainerError, match="no such file or directory") as caught:
        dirs.run("s1")
    assert caught.value.reason == "RunContainerError"
    (tmp_path / "real" / "limits").mkdir(parents=True)
    dirs.run("s1")
