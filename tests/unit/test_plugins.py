# SPDX-License-Identifier: Apache-2.0
"""Loading plugins: what is wrong is named, with the vendor and a hint; the rest goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hami_framework.errors import PluginError
from hami_framework.model import Capacity, DeviceClass, DeviceRequest, Offer, Reason, Rejection
from hami_framework.plugins import load_registry
from hami_framework.quarantine import Guarded

GOOD = (Path(__file__).parents[1] / "data" / "plugins" / "good.py").read_text()
SMALL = 'from hami_framework import *\nfrom hami_framework import hookimpl, ResourceNames\nHAMI_SPEC_VERSION = "1"\n'


def plugin(directory: Path, name: str, text: str) -> Path:
    path = directory / f"{name}.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(SMALL + "@hookimpl\ndef hami_discovr(host): ...", "hami_discovr: there is no such hook: did you mean 'hami_discover'?", id="unknown hook"),
        pytest.param(SMALL + "@hookimpl\ndef hami_discover(hots): ...", "takes 'hots'; the hook has (host): did you mean 'host'?", id="unknown argument"),
        pytest.param(SMALL + "def hami_discover(host): ...", "lacks the decorator @hookimpl", id="no decorator"),
        pytest.param("import no_such_library", "No module named 'no_such_library'", id="import error"),
        pytest.param("raise SystemError('boom')", "SystemError: boom", id="raises on import"),
        pytest.param("x = 1", 'add HAMI_SPEC_VERSION = "1"', id="no spec version"),
        pytest.param('HAMI_SPEC_VERSION = "2.1"', "was written for hook specification 2.1, this core speaks 1.0", id="wrong spec version"),
        pytest.param(SMALL + "@hookimpl\ndef hami_resources(): return ['x']", "answered str, expected ResourceNames", id="wrong names"),
        pytest.param(SMALL + "@hookimpl\ndef hami_resources(): return 1/0", "ZeroDivisionError", id="names raise"),
    ],
)
def test_a_plugin_that_cannot_be_taken_in_is_named_and_the_rest_goes_on(tmp_path: Path, text: str, expected: str) -> None:
    files = [plugin(tmp_path, "bad", text), plugin(tmp_path, "good", GOOD)]
    registry = load_registry(allow=(), plugin_files=files)
    assert list(registry.vendors) == ["good"]
    (problem,) = registry.problems
    assert problem.vendor == "bad"
    assert expected in problem.what


def test_a_plugin_may_ignore_arguments(tmp_path: Path) -> None:
    registry = load_registry(allow=(), plugin_files=[plugin(tmp_path, "brief", SMALL + "@hookimpl\ndef hami_discover(): return []")])
    assert registry.vendors["brief"].call("hami_discover", host=None) == []


def test_two_vendors_that_claim_one_resource_are_both_refused(tmp_path: Path) -> None:
    files = [plugin(tmp_path, "one", GOOD), plugin(tmp_path, "two", GOOD), plugin(tmp_path, "three", GOOD.replace('"acme"', '"other"'))]
    registry = load_registry(allow=(), plugin_files=files)
    assert list(registry.vendors) == ["three"]
    assert {problem.vendor for problem in registry.problems} == {"one", "two"}
    assert "resource name acme.com/xpu is claimed by one and by two" in registry.problems[0].what


def test_a_file_that_settings_and_flags_both_name_is_one_plugin(tmp_path: Path) -> None:
    file = plugin(tmp_path, "acme", GOOD)
    registry = load_registry(allow=(), plugin_files=[file, file.parent / "." / file.name])
    assert (list(registry.vendors), registry.problems) == (["acme"], [])


def test_an_operator_can_rename_resources(tmp_path: Path) -> None:
    registry = load_registry(allow=(), plugin_files=[plugin(tmp_path, "acme", GOOD)], rename={"acme.com/xpu": "example.com/gpu"})
    assert "example.com/gpu" in registry.catalog().slot_resources()
    assert "acme.com/xpu" not in registry.catalog().extended_resources()


def test_policies_are_gathered_from_all_packages(tmp_path: Path) -> None:
    """`hami_policies` of each package counts."""
    files = [plugin(tmp_path, "one", GOOD), plugin(tmp_path, "two", GOOD.replace('"acme"', '"other"'))]
    assert load_registry(allow=(), plugin_files=files).policies() == ["a policy", "a policy"]


def test_an_allowed_vendor_that_is_not_installed_is_a_problem() -> None:
    registry = load_registry(allow=("nobody",))
    assert registry.vendors == {}
    assert "no installed package registers it" in registry.problems[0].what


ACME = DeviceClass(model="Acme XPU", vendor="acme", capacity=Capacity(memory_bytes=16 << 30))


def test_partition_is_cached_by_class_and_request(tmp_path: Path) -> None:
    counting = GOOD.replace("    if request.whole:", "    import builtins; builtins.asked = getattr(builtins, 'asked', 0) + 1\n    if request.whole:")
    registry = load_registry(allow=(), plugin_files=[plugin(tmp_path, "acme", counting)])
    import builtins

    try:
        first = registry.partition(ACME, DeviceRequest(memory_bytes=1 << 30))
        assert registry.partition(ACME, DeviceRequest(memory_bytes=1 << 30)) is first
        assert builtins.asked == 1  # type: ignore[attr-defined]  # put there by the plugin above
    finally:
        del builtins.asked  # type: ignore[attr-defined]
    assert isinstance(first[0], Offer)


def test_a_vendor_that_is_not_installed_here_is_vendor_missing() -> None:
    (refusal,) = load_registry(allow=()).partition(ACME, DeviceRequest())
    assert isinstance(refusal, Rejection)
    assert refusal.reason is Reason.VENDOR_MISSING


@pytest.mark.parametrize(
    ("body", "what"),
    [
        pytest.param("raise ValueError('odd')", "ValueError: odd", id="raises"),
        pytest.param("return [42]", "answered int", id="wrong type"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", id="exits"),
        pytest.param("import time; time.sleep(1)", "overran its budget of 100 ms", id="overruns"),
    ],
)
def test_partition_always_answers_in_time(tmp_path: Path, body: str, what: str) -> None:
    text = SMALL + f"@hookimpl\ndef hami_partition(device_class, request):\n    {body}\n"
    registry = load_registry(allow=(), plugin_files=[plugin(tmp_path, "acme", text)])
    begun = time.monotonic()
    (refusal,) = registry.partition(ACME, DeviceRequest())
    assert time.monotonic() - begun < 0.9
    assert isinstance(refusal, Rejection)
    assert refusal.reason is Reason.VENDOR_QUARANTINED
    assert what in (refusal.message or "")
    assert what in registry.quarantined()["acme"]


def test_quarantine_ends_when_the_vendor_behaves_again() -> None:
    now = 0.0
    guard = Guarded("acme", "hami_partition", 1.0, clock=lambda: now)
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        guard.run(lambda: 1 // 0)
    with pytest.raises(PluginError, match="in quarantine"):
        guard.run(lambda: 1)
    now = 2.0
    assert guard.run(lambda: 1) == 1
    assert guard.reason == ""
