# SPDX-License-Identifier: Apache-2.0
"""The command `hami` as a person uses it: real processes, one sandbox brought up by `hami sandbox up`, every answer read from stdout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hami_framework.plugins import load_registry
from hami_framework.testing.fakes import build_libraries, default_cache

pytestmark = [pytest.mark.xdist_group("sandbox"), pytest.mark.timeout(180)]

Json = dict[str, Any]

_SCRIPT = Path(sysconfig.get_path("scripts")) / "hami"
HAMI = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]

NODES = """
nodes:
  - {name: dgx, machine: dgx-a100-40g}
  - {name: atlas, machine: atlas-800t-a2}
"""


def manifest(name: str, limits: Mapping[str, object], **container: object) -> str:
    spec = {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "x", "resources": {"limits": dict(limits)}, **container}]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


PODS: dict[str, Json] = {
    "share": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30},
    "greedy": {"nvidia.com/gpu": 7},
    "waits": {"nvidia.com/gpu": 7},
    "never": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": "100Gi"},
}
"""On a node of eight GPUs: one shared, seven taken, seven more wanted, and one that no GPU has the memory for."""


class Hami:
    """Runs `hami …` in a home of its own, where it finds no sandbox and no kubeconfig but what was started here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        kept = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")}
        built = str(default_cache().parents[1])  # a home of its own must not mean drivers to be compiled anew, for half a minute
        self.environment = kept | {"XDG_STATE_HOME": str(directory / "state"), "XDG_CACHE_HOME": built, "HOME": str(directory)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*HAMI, *words], cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"hami {' '.join(words)}: {done.stderr}"
        return done.stdout

    def fails(self, *words: str, status: int = 1) -> str:
        done = self.run(*words)
        assert done.returncode == status, f"hami {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stderr

    def rows(self, *words: str) -> list[Json]:
        found: list[Json] = json.loads(self.ok("get", *words, "-o", "json"))
        return found

    def write(self, name: str, text: str) -> str:
        (self.directory / name).write_text(text)
        return name

    def until(self, condition: Callable[[], object], what: str, seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def built() -> None:
    """The libraries that the nodes' machines need are there, however long it took to compile them: no test below is about that."""
    machines = load_registry(["nvidia", "ascend"]).machines()
    for name in ("dgx-a100-40g", "atlas-800t-a2"):
        build_libraries(machines[name][1])


@pytest.fixture(scope="module")
def alone() -> Iterator[Hami]:
    """A home in which nothing runs."""
    directory = Path(tempfile.mkdtemp(prefix="hc-", dir="/tmp"))
    yield Hami(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def hami(built: None) -> Iterator[Hami]:
    """A home with a running sandbox that holds `PODS`."""
    directory = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    home = Hami(directory)
    home.write("nodes.yaml", NODES)
    with (directory / "up.log").open("w+") as log:
        up = subprocess.Popen(
            [*HAMI, "sandbox", "up", "--nodes", "nodes.yaml", "--directory", str(directory / "s")], cwd=directory, env=home.environment, stdout=log
        )
        try:
            home.until(lambda: "Try:" in (directory / "up.log").read_text(), "the sandbox being up", 50)
            home.write("pods.yaml", "\n---\n".join(manifest(name, limits) for name, limits in PODS.items()))
            assert home.ok("sandbox", "apply", "-f", "pods.yaml").splitlines() == [f"pod/{name} created" for name in PODS]
            running = {"share": "Running", "greedy": "Running", "waits": "Pending", "never": "Pending"}
            home.until(lambda: {row["name"]: row["status"] for row in home.rows("pods")} == running, "the pods settling")
            yield home
            home.ok("sandbox", "down")
            assert up.wait(20) == 0
            assert list((directory / "state" / "hami").iterdir()) == []
        finally:
            if up.poll() is None:
                up.send_signal(signal.SIGTERM)
                up.wait(20)
    shutil.rmtree(directory)


# -- looking


def test_get_speaks_to_people_and_to_machines(hami: Hami) -> None:
    table = hami.ok("get", "pods").splitlines()
    assert table[0].split() == ["NAMESPACE", "NAME", "STATUS", "NODE", "DEVICES"]
    assert [line.split()[1] for line in table[1:]] == sorted(PODS)
    assert "main: share, 3000 MiB, 30 %" in hami.ok("get", "pods", "-o", "wide")
    as_yaml = yaml.safe_load(hami.ok("get", "pods", "-o", "yaml"))
    assert as_yaml == hami.rows("pods")
    assert {row["name"]: len(row["devices"]) for row in as_yaml} == {"share": 1, "greedy": 7, "waits": 0, "never": 0}


def test_get_devices_and_grants_agree(hami: Hami) -> None:
    devices = {row["name"]: row for row in hami.rows("devices")}
    held = [row for row in hami.rows("grants") if row["pod"] == "default/share"]
    assert [row["resource"] for row in held] == ["nvidia.com/gpu"]
    device = devices[held[0]["device"]]
    assert (device["node"], device["promised_memory_bytes"], device["promised_core_percent"]) == ("dgx", 3000 << 20, 30)
    assert sum(row["promised_memory_bytes"] == row["memory_bytes"] for row in devices.values()) == 7
    assert {row["name"]: (row["devices"], row["healthy"]) for row in hami.rows("nodes")} == {"dgx": (8, 8), "atlas": (8, 8)}


def test_the_container_sees_what_was_granted(hami: Hami) -> None:
    views: list[Json] = json.loads(hami.ok("sandbox", "containers", "-o", "json"))
    share = next(view for view in views if view["pod"] == "share")
    granted = next(row for row in hami.rows("grants") if row["pod"] == "default/share")
    assert any(granted["device_id"] in value for value in share["env"])


def test_explain_says_where_and_why_not(hami: Hami) -> None:
    assert "default/share is on dgx (Running)." in hami.ok("explain", "pod", "share")
    never = hami.ok("explain", "pod", "never")
    assert "fits nowhere, and never will" in never
    assert "(wanted 100.0 GiB, at most 40.0 GiB); ask for less memory per device" in never
    waits = hami.ok("explain", "pod", "waits")
    assert "waits; no node can take it now" in waits
    assert "the device is not idle, or is held exclusively" in waits
    refused = json.loads(hami.ok("explain", "pod", "waits", "-o", "json"))
    assert {rejection["reason"] for rejection in refused["dgx"]} == {"exclusive"}
    assert "there is no pod default/nobody" in hami.fails("explain", "pod", "nobody")


def test_explain_of_names_that_nobody_declares(hami: Hami) -> None:
    hami.write("odd.yaml", manifest("odd", {"nvidia.com/mig-3g.20bg": 1}))
    hami.ok("sandbox", "apply", "-f", "odd.yaml")
    assert "did you mean 'nvidia.com/mig-3g.20gb' for 'nvidia.com/mig-3g.20bg'?" in hami.fails("explain", "pod", "odd")
    assert hami.ok("sandbox", "delete", "pod", "odd") == "pod/odd deleted\n"
    assert 'pods "odd" not found' in hami.fails("sandbox", "delete", "pod", "odd")


# -- doing


def test_a_device_fails_and_recovers(hami: Hami) -> None:
    def healthy() -> int:
        return next(int(row["healthy"]) for row in hami.rows("nodes") if row["name"] == "atlas")

    assert hami.ok("sandbox", "fail-device", "atlas", "3").endswith("on atlas: health = lost\n")
    hami.until(lambda: healthy() == 7, "the failure being seen")
    assert [row["health"] for row in hami.rows("devices") if row["node"] == "atlas"].count("unhealthy") == 1
    assert hami.ok("sandbox", "recover-device", "atlas", "ascend/3").endswith("on atlas: health = ok\n")
    hami.until(lambda: healthy() == 8, "the recovery being seen")
    assert "on dgx: memory_used_mib=1000" in hami.ok("sandbox", "set-device", "dgx", "0", "memory_used_mib=1000")


def test_an_agent_dies_and_nobody_loses_a_grant(hami: Hami) -> None:
    before = hami.rows("grants")
    assert hami.ok("sandbox", "kill", "agent", "dgx") == "killed agent of dgx\n"
    assert hami.ok("sandbox", "kill", "extender") == "killed extender\n"
    assert hami.rows("grants") == before


def test_a_pod_that_waits_runs_when_another_goes(hami: Hami) -> None:
    hami.ok("sandbox", "delete", "pod", "greedy")
    hami.until(lambda: {row["name"]: row["status"] for row in hami.rows("pods")}.get("waits") == "Running", "the waiting pod's turn")
    hami.write("greedy.yaml", manifest("greedy", PODS["greedy"]))
    assert "default/waits is on dgx" in hami.ok("explain", "pod", "waits")


def test_logs_and_exec_reach_the_program_of_a_container(hami: Hami) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up $HAMI_GRANT; while :; do sleep 0.05; done"
    text = manifest("program", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000}, command=["sh", "-c", script])
    hami.ok("sandbox", "apply", "-f", hami.write("program.yaml", text))
    hami.until(lambda: "up" in hami.run("sandbox", "logs", "program").stdout, "the program's word")
    printed = hami.ok("sandbox", "logs", "program")
    uid = next(row["uid"] for row in hami.rows("pods") if row["name"] == "program")
    assert printed == f"up {uid}/main\n"
    assert hami.ok("sandbox", "exec", "program", "--", "sh", "-c", "echo beside $HAMI_GRANT") == f"beside {uid}/main\n"
    hami.fails("sandbox", "exec", "program", "--", "sh", "-c", "exit 9", status=9)
    hami.fails("sandbox", "exec", "program", "--", "sh", "-c", "kill -9 $$", status=137)
    assert "there is no such program" in hami.fails("sandbox", "exec", "program", "--", "no-such-program", status=127)
    assert "no container 'other' of pod default/program runs a program; those that do: main" in hami.fails("sandbox", "logs", "program", "-c", "other")
    with subprocess.Popen([*HAMI, "sandbox", "logs", "-f", "program"], cwd=hami.directory, env=hami.environment, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == printed
        hami.ok("sandbox", "delete", "pod", "program")
        rest, _ = follow.communicate(timeout=60)
    assert (follow.returncode, rest) == (0, "bye\n")
    assert "no container of pod default/program has been started" in hami.fails("sandbox", "exec", "program", "--", "true")
    assert "its manifest has no `command`" in hami.fails("sandbox", "logs", "share")


# -- doing it wrong

WRONG_MANIFESTS = [
    pytest.param("kind: Pod\nmetadata: {name: x\n", "is not YAML: line 3, column 1: expected ',' or '}'", id="broken YAML"),
    pytest.param("hello\n", "document 1: expected an object with apiVersion, kind and metadata, found 'hello'", id="no object"),
    pytest.param("apiVersion: v1\nkind: Pod\nmetadata: x\n", "document 1: metadata cannot be 'x'; write e.g. metadata:", id="metadata is text"),
    pytest.param("apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n", "the cluster knows no kind 'Podd' in v1: did you mean 'Pod'?", id="unknown kind"),
    pytest.param("apiVersion: nope/v1\nkind: Pod\nmetadata: {name: x}\n", "the cluster knows no apiVersion 'nope/v1'", id="unknown version"),
    pytest.param("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n", 'Pod "x" is invalid: spec.containers: Required value', id="refused"),
]


@pytest.mark.parametrize(("text", "said"), WRONG_MANIFESTS)
def test_a_wrong_manifest_is_named_and_the_status_says_so(hami: Hami, text: str, said: str) -> None:
    answer = hami.fails("sandbox", "apply", "-f", hami.write("wrong.yaml", text))
    assert "wrong.yaml" in answer
    assert said in answer


def test_apply_warns_of_a_pod_that_no_node_will_take(hami: Hami) -> None:
    hami.write("warned.yaml", manifest("warned", {"nvidia.com/gpu": 1, "nvidia.com/gpucores": 101}))
    done = hami.run("sandbox", "apply", "-f", "warned.yaml")
    assert (done.returncode, done.stdout) == (0, "pod/warned created\n")
    assert done.stderr.startswith("Warning: no node will take this pod: container main, nvidia.com/gpucores: '101' is not a percentage from 1 to 100")
    hami.ok("sandbox", "delete", "pod", "warned")


def test_a_pod_with_a_forged_grant_hides_nothing(hami: Hami) -> None:
    body = json.loads(manifest("forged", PODS["never"]))
    body["metadata"]["annotations"] = {"hami.io/grant": "{"}
    hami.ok("sandbox", "apply", "-f", hami.write("forged.yaml", json.dumps(body)))
    assert "forged" in {row["name"] for row in hami.rows("pods")}
    assert "fits nowhere" in hami.ok("explain", "pod", "forged")
    hami.ok("sandbox", "delete", "pod", "forged")


def test_what_is_not_there_is_answered_with_what_is(hami: Hami) -> None:
    assert "there is no node 'nope'; the sandbox has dgx, atlas" in hami.fails("sandbox", "fail-device", "nope", "0")
    assert "node dgx has no one device '99'; it has nvidia/0 (GPU-" in hami.fails("sandbox", "fail-device", "dgx", "99")
    assert "there is no node 'nope'; the sandbox has dgx, atlas" in hami.fails("sandbox", "kill", "agent", "nope")
    assert "a sandbox is running already (pid " in hami.fails("sandbox", "up", "--nodes", "nodes.yaml")


WRONG_FILES = [
    pytest.param("nodes: [", "nodes.yaml is not YAML: line 1, column 9", id="broken YAML"),
    pytest.param("nodes:\n- {name: x, machine: dgx-a100-40}\n", "there is no machine 'dgx-a100-40': did you mean 'dgx-a100-40g'? Known: ", id="machine"),
    pytest.param("nodes:\n- {name: x, machin: y}\n", "nodes.0.machin: there is no such key: did you mean 'machine'?", id="key"),
    pytest.param("nodes:\n- {name: x, cpu: lots}\n", "nodes.0.cpu: 'lots' is not a quantity", id="quantity"),
    pytest.param("nodes:\n- {name: x}\n- {name: x}\n", "two nodes are called x", id="twice"),
]


@pytest.mark.parametrize(("text", "said"), WRONG_FILES)
def test_a_wrong_node_file_is_answered_in_one_line(alone: Hami, text: str, said: str) -> None:
    answer = alone.fails("sandbox", "up", "--nodes", alone.write("nodes.yaml", text))
    assert said in answer
    assert answer.count("\n") == 1


def test_wrong_settings_and_plugins_are_named(alone: Hami) -> None:
    alone.write("settings.yaml", "placement: {nodePolicie: spread}")
    answer = alone.fails("plugins", "--settings", "settings.yaml")
    assert "settings.yaml is wrong: placement.nodePolicie: there is no such key: did you mean 'nodePolicy'?" in answer
    for name, text, said in (
        ("raises", "raise ValueError('boom')", "ValueError: boom"),
        ("exits", "import sys; sys.exit(3)", "SystemExit: 3"),
        ("empty", "HAMI_SPEC_VERSION = '1'\ndef hami_discovr(host): return []", "@hookimpl"),
    ):
        done = alone.run("plugins", "--plugin", alone.write(f"{name}.py", text), "-o", "json")
        refused = next(row for row in json.loads(done.stdout) if row["vendor"] == name)
        assert (done.returncode, refused["state"]) == (1, "refused")
        assert said in refused["reason"]


def test_a_settings_file_that_the_extender_refuses_ends_the_start_at_once(alone: Hami) -> None:
    alone.write("n.yaml", "nodes: [{name: plain}]")
    alone.write("s.yaml", "placement: {nodePolicy: binpak}")
    assert "unknown placement policy 'binpak'; use one of: binpack" in alone.fails("sandbox", "up", "--nodes", "n.yaml", "--settings", "s.yaml")


def test_sigterm_while_it_comes_up_leaves_nothing_behind(alone: Hami, built: None) -> None:
    alone.write("n.yaml", NODES)
    command = [*HAMI, "sandbox", "up", "--nodes", "n.yaml", "--directory", str(alone.directory / "t")]
    with subprocess.Popen(command, cwd=alone.directory, env=alone.environment, stderr=subprocess.PIPE, text=True) as up:
        alone.until(lambda: (alone.directory / "t" / "kubeconfig").exists(), "the beginning", 60)
        up.terminate()
        _, said = up.communicate(timeout=60)
    assert (up.returncode, said) == (128 + signal.SIGTERM, "bringing up 2 nodes …\n")


def test_a_port_in_use_is_named(alone: Hami, hami: Hami) -> None:
    port = json.loads((hami.directory / "state" / "hami" / "sandbox.json").read_text())["api"].rpartition(":")[2]
    alone.write("n.yaml", "nodes: [{name: plain}]")
    answer = alone.fails("sandbox", "up", "--nodes", "n.yaml", "--api-port", port)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port" in answer


@pytest.mark.parametrize("words", [("sandbox", "down"), ("sandbox", "containers"), ("sandbox", "fail-device", "a", "0"), ("sandbox", "kill", "extender")])
def test_without_a_sandbox_one_is_told_how_to_start_one(alone: Hami, words: tuple[str, ...]) -> None:
    assert alone.fails(*words) == "hami: no sandbox is running; start one with `hami sandbox up --nodes FILE`\n"


def test_without_a_cluster_one_is_told_too(alone: Hami) -> None:
    assert "no cluster to speak to" in alone.fails("get", "pods")


# -- finding one's way

COMMANDS = [
    *("", "get", "get pods", "explain", "explain pod", "plugins", "sandbox", "sandbox up", "sandbox apply", "sandbox kill", "sandbox logs", "sandbox exec"),
    *("run", "ps", "limit", "doctor", "interceptor", "interceptor coverage", "demo", "agent", "scheduler"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "hami")
def test_every_command_has_help(alone: Hami, command: str) -> None:
    said = alone.ok(*command.split(), "--help")
    assert said.lower().startswith("usage: hami")
    assert "--help" in said


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param("run --ma", "--machine", id="an option"),
        pytest.param("run --machine dgx-a", "dgx-a100-40g", id="a machine"),
        pytest.param("interceptor coverage --api cu", "cuda", id="a driver API"),
        pytest.param("sandbox lo", "logs", id="a command of a command"),
        pytest.param("lim", "limit", id="a command"),
        pytest.param("web", "webhook", id="a program that stays"),
        pytest.param("scheduler --tls-c", "--tls-cert-file", id="an option of a program that stays"),
        pytest.param("agent --on-bypass s", "suspend", id="a choice of a program that stays"),
    ],
)
def test_the_shell_completes(alone: Hami, words: str, offered: str) -> None:
    environment = alone.environment | {"_HAMI_COMPLETE": "bash_complete", "COMP_WORDS": f"hami {words}", "COMP_CWORD": str(len(words.split()))}
    done = subprocess.run(HAMI, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert f"plain,{offered}" in done.stdout.splitlines()


def test_version_completion_and_slips_of_the_pen(alone: Hami) -> None:
    version = alone.ok("version")
    assert version.startswith("hami-framework ")
    assert "(vendor nvidia)" in version
    assert "_HAMI_COMPLETE" in alone.ok("completion", "bash")
    assert "There is no command 'explan'. Did you mean 'explain'?" in alone.fails("explan", status=2)
    assert "'podz'. Did you mean 'pods'?" in alone.fails("get", "podz", status=2)
