# SPDX-License-Identifier: Apache-2.0
"""Which rule of the settings a node gets, what the child process prints for it, and what the rule does to devices, offers and fence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hami_framework.config import Settings, load_settings
from hami_framework.deviceplugin import node_settings
from hami_framework.deviceplugin.__main__ import check_settings_alone, parser
from hami_framework.deviceplugin.node_settings import Kept, NodeSettings, Source, changed, first, resolve
from hami_framework.errors import ConfigError, Unavailable
from hami_framework.model import GIB, Capacity, DeviceClass, DeviceRequest, Mode, Offer, Rejection, Terms
from hami_framework.placement.load import Overcommit, limits_of
from hami_framework.plugins import load_registry
from hami_framework.worker.terms import NO_TERMS, NodeTerms, on_terms

FILE = """
nodes:
  - {match: "cpu-*"}
  - {selector: {pool: shared, site: [east, west]}, memoryOvercommit: 1.5, sharesPerDevice: 20, mode: share}
  - {match: "gpu-*", selector: {pool: big}, coreOvercommit: 2, mode: whole}
  - {match: "gpu-*", memoryOvercommit: 1.25}
vendors:
  nvidia: {a: 1}
resources:
  rename: {nvidia.com/gpu: example.com/gpu}
plugins:
  allow: [nvidia]
"""

RULES = [
    pytest.param("gpu-1", {"pool": "shared", "site": "west"}, (150, 100, 20, "share"), id="all labels of the selector, one of the listed values"),
    pytest.param("gpu-1", {"pool": "shared", "site": "north"}, (125, 100, None, None), id="a value that is not listed: the next rule"),
    pytest.param("gpu-1", {"pool": "big"}, (100, 200, None, "whole"), id="name and label"),
    pytest.param("gpu-1", {}, (125, 100, None, None), id="name alone"),
    pytest.param("cpu-1", {"pool": "shared", "site": "west"}, (100, 100, None, None), id="the first rule counts, alone"),
    pytest.param("other", {}, (100, 100, None, None), id="no rule: no factor, and said so"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(("node", "labels", "expected"), RULES)
def test_the_first_rule_about_a_node_counts(file: Path, node: str, labels: dict[str, str], expected: tuple[object, ...]) -> None:
    found = resolve(file, node, lambda: labels, lambda _: ["nvidia"])
    assert found.terms == NodeTerms(memory_percent=expected[0], core_percent=expected[1], shares=expected[2], mode=expected[3])  # type: ignore[arg-type]
    assert (found.allow, found.rename, found.vendors) == (("nvidia",), {"nvidia.com/gpu": "example.com/gpu"}, {"nvidia": {"a": 1}})


def test_labels_are_read_only_where_they_decide(file: Path) -> None:
    def never() -> dict[str, str]:
        raise AssertionError("the API server was asked")

    assert resolve(file, "cpu-1", never, lambda _: ["nvidia"]).terms.memory_percent == 100
    with pytest.raises(AssertionError):
        resolve(file, "gpu-1", never, lambda _: ["nvidia"])


WRONG = [
    pytest.param("nodes: [{sharesPerDevice: 0}]", "nodes.0.sharesPerDevice: input should be greater than or equal to 1", id="no shares"),
    pytest.param("nodes: [{selector: {pool: 3}}]", "nodes.0.selector.pool", id="a label's value is text"),
    pytest.param("nodes: [{labels: {pool: a}}]", "nodes.0.labels: there is no such key", id="another word"),
    pytest.param("nodes: [{mode: ''}]", "nodes.0.mode", id="no mode"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_wrong_rules_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["vendors: {nvdia: {}}", "plugins: {allow: [nvdia]}"])
def test_a_vendor_that_is_not_installed_is_named_with_those_that_are(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"'nvdia'\); installed: ascend, nvidia$"):
        load_settings(path).check_vendors(["nvidia", "ascend"])


def test_the_child_prints_one_json_object_or_one_line_and_its_status(file: Path, tmp_path: Path) -> None:
    def child(settings: Path, node: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hami_framework.deviceplugin.node_settings", "--settings", str(settings), "--node", node]
        return subprocess.run([*command, "--kubeconfig", str(tmp_path / "none")], capture_output=True, text=True, timeout=60, check=False)

    good = child(file, "cpu-1")
    assert (good.returncode, json.loads(good.stdout)["terms"]) == (0, {"memoryPercent": 100, "corePercent": 100})
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("nodes: [{mach: x}]")
    bad = child(wrong, "cpu-1")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'match'" in bad.stderr
    unreachable = child(file, "gpu-1")
    assert unreachable.returncode == 2
    assert "there is no such file" in unreachable.stderr


def _source(file: Path, tmp_path: Path) -> Source:
    return Source(file=file, node="cpu-1", kubeconfig=None, state_directory=tmp_path / "state")


async def test_the_last_answer_is_what_the_agent_starts_with(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(file, tmp_path)
    asked = await first(source)
    assert asked.terms == NodeTerms(memory_percent=100, core_percent=100)

    async def unavailable(_: Source) -> NodeSettings:
        raise AssertionError("there was an answer already")

    monkeypatch.setattr(node_settings, "ask", unavailable)
    assert await first(source) == asked


@pytest.mark.parametrize("damage", ["other file", "other node", "broken"])
async def test_a_kept_answer_to_another_question_is_not_used(file: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(file, tmp_path)
    source.state_directory.mkdir()
    kept = Kept(node="other" if damage == "other node" else source.node, digest="another", settings=NodeSettings(terms=NodeTerms(memory_percent=999)))
    source.kept.write_bytes(b"{" if damage == "broken" else node_settings.msgspec.json.encode(kept))
    answers = [Unavailable("not now"), NodeSettings(terms=NodeTerms(memory_percent=110))]

    async def ask(_: Source) -> NodeSettings:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(node_settings, "ask", ask)
    monkeypatch.setattr(node_settings, "RETRY_SECONDS", 0.01)
    assert (await first(source)).terms.memory_percent == 110


async def test_a_change_is_told_and_trouble_is_not_a_change(file: Path, tmp_path: Path) -> None:
    now = NodeSettings()
    answers: list[Exception | NodeSettings] = [Unavailable("not now"), ConfigError("half written"), now, NodeSettings(rename={"a/b": "c/d"})]

    async def ask(_: Source) -> NodeSettings:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await changed(_source(file, tmp_path), now, look_seconds=0.01, asked=ask)
    assert answers == []


def test_flags_that_the_file_has_words_for_are_refused_beside_it() -> None:
    options = parser().parse_args(["--settings", "/f.yaml", "--rename", "a/b=c/d", "--memory-overcommit-percent", "150", "--worker-user", "nvidia=1"])
    with pytest.raises(ConfigError, match=r"^--rename, --memory-overcommit-percent cannot stand beside --settings"):
        check_settings_alone(options)


CLASS = DeviceClass(model="X", vendor="acme", capacity=Capacity(memory_bytes=16 * GIB, shares=10), modes=(Mode(name="whole"), Mode(name="share")))


def test_terms_are_put_on_a_class_and_without_settings_nothing_changes() -> None:
    assert on_terms(CLASS, NO_TERMS) == CLASS
    shaped = on_terms(CLASS, NodeTerms(memory_percent=150, core_percent=100, shares=20, mode="share"))
    assert shaped.terms == Terms(memory_percent=150, core_percent=100, only_mode="share")
    assert shaped.capacity.shares == 20


def test_a_mode_that_a_class_does_not_have_leaves_it_alone_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert on_terms(CLASS, NodeTerms(mode="mig")).terms.only_mode is None
    assert "'mig', which X does not have (it has: whole, share)" in caplog.text


def test_published_terms_come_before_the_extenders_own_factor() -> None:
    assert limits_of(on_terms(CLASS, NodeTerms(memory_percent=100, core_percent=100)), Overcommit(memory_percent=300))["memory_bytes"] == 16 * GIB
    assert limits_of(CLASS, Overcommit(memory_percent=300))["memory_bytes"] == 48 * GIB


@pytest.mark.parametrize("only", ["whole", "share"])
@pytest.mark.parametrize("vendor", ["nvidia", "ascend", "cambricon", "hygon"])
def test_every_vendor_offers_the_nodes_mode_or_says_why_not(vendor: str, only: str) -> None:
    registry = load_registry([vendor])
    device_class = on_terms(DeviceClass(model="X", vendor=vendor, capacity=Capacity(memory_bytes=16 * GIB)), NodeTerms(mode=only))
    for request in (DeviceRequest(), DeviceRequest(memory_bytes=GIB), DeviceRequest(memory_bytes=GIB, core_percent=30), DeviceRequest(profile="1g.5gb")):
        answer = registry.partition(device_class, request)
        assert answer
        assert {item.mode for item in answer if isinstance(item, Offer)} <= {only}
    other = "share" if only == "whole" else "whole"
    (refused,) = registry.partition(device_class, DeviceRequest(mode=other))
    assert isinstance(refused, Rejection)
    assert f"in mode {only!r} only" in refused.hint


def test_the_files_rules_by_name_need_no_labels() -> None:
    settings = Settings.model_validate({"nodes": [{"selector": {"a": "b"}, "memoryOvercommit": 2}, {"match": "x*", "memoryOvercommit": 3}]})
    assert settings.node_rule("x1").memory_overcommit == 3
    assert settings.node_rule("x1", {"a": "b"}).memory_overcommit == 2
