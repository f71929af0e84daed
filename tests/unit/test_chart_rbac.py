# SPDX-License-Identifier: Apache-2.0
"""Least privilege: each permission in the chart belongs to a call in the code, and each call has its permission. The table is the proof's middle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploy.render import CHART, helm, rendered
from hami_framework.doctor import needs

HELM = helm()
pytestmark = pytest.mark.skipif(HELM is None, reason="there is no helm: put it on the PATH, or run `make lab`")
ROOT = Path(__file__).parents[2]

Rule = tuple[str, str, str, str]
"""Scope (`cluster`, or the namespace's name), API group, resource, verb."""

OWN = "hami-system"
EVENTS, LEASES = ("cluster", "", "events"), (OWN, "coordination.k8s.io", "leases")
REFLECTOR = r"Reflector\b.*?"
"""A reflector lists and watches."""

Uses = dict[tuple[str, str, str], dict[str, tuple[str, str]]]
"""(scope, group, resource) → verb → (file below hami_framework, pattern in it that makes the call)."""

AGENT: Uses = {
    ("cluster", "", "pods"): {
        "get": ("deviceplugin/cluster.py", r'_get\(kube\.path\("pods", namespace='),
        "list": ("deviceplugin/cluster.py", REFLECTOR + r'kube\.path\("pods"\)'),
        "watch": ("deviceplugin/cluster.py", REFLECTOR + r'kube\.path\("pods"\)'),
    },
    ("cluster", "", "nodes"): {"get": ("deviceplugin/node_settings.py", r'client\.get\(path\("nodes", name=')},
    EVENTS: {"create": ("deviceplugin/cluster.py", r'client\.create, kube\.path\("events"')},
    ("cluster", "hami.io", "nodeinventories"): {
        "get": ("deviceplugin/cluster.py", r"_get\(_inventory_path\(node\)\)"),
        "create": ("deviceplugin/cluster.py", r"client\.create, _inventory_path"),
        "update": ("deviceplugin/cluster.py", r"client\.replace, _inventory_path"),
    },
    ("cluster", "hami.io", "nodeinventories/status"): {"patch": ("deviceplugin/cluster.py", r'client\.patch, f"\{_inventory_path\(node\)\}/status"')},
    LEASES: {
        "get": ("deviceplugin", r'"leases"'),
        "create": ("deviceplugin", r'"leases"'),
        "update": ("deviceplugin", r'"leases"'),
    },
}
EVICT: Uses = {("cluster", "", "pods/eviction"): {"create": ("deviceplugin/cluster.py", r'subresource="eviction"')}}

ELECTION = {
    "get": ("kube/lease.py", r"client\.call\(self\._client\.get|_client\.get"),
    "create": ("kube/lease.py", r"_client\.create"),
    "update": ("kube/lease.py", r"_client\.replace"),
}
EXTENDER: Uses = {
    ("cluster", "", "pods"): {
        "get": ("scheduler/binding.py", r'_client\.get, path\("pods"'),
        "list": ("scheduler/state.py", REFLECTOR + r'path\("pods"\)'),
        "watch": ("scheduler/state.py", REFLECTOR + r'path\("pods"\)'),
    },
    ("cluster", "", "nodes"): dict.fromkeys(("list", "watch"), ("scheduler/state.py", REFLECTOR + r'path\("nodes"\)')),
    ("cluster", "hami.io", "nodeinventories"): dict.fromkeys(("list", "watch"), ("scheduler/state.py", REFLECTOR + r"inventories\.PLURAL")),
    ("cluster", "", "pods/binding"): {"create": ("scheduler/binding.py", r'subresource="binding"')},
    EVENTS: {"create": ("scheduler/events.py", r'_client\.create, path\("events"')},
    ("cluster", "", "pods/eviction"): {"create": ("scheduler/evictions.py", r'subresource="eviction"')},
    ("cluster", "policy", "poddisruptionbudgets"): dict.fromkeys(("list", "watch"), ("scheduler/followup.py", REFLECTOR + r'path\("poddisruptionbudgets"')),
    ("cluster", "", "pods/status"): {"patch": ("scheduler/hints.py", r'subresource="status".*?_client\.patch')},
    LEASES: {**ELECTION, **dict.fromkeys(("list", "watch"), ("scheduler/liveness.py", REFLECTOR + r'path\("leases"'))},
}


def code(place: str) -> str:
    path = ROOT / "hami_framework" / place
    return path.read_text() if path.is_file() else "\n".join(file.read_text() for file in sorted(path.glob("*.py")))


def flat(uses: Uses) -> set[Rule]:
    return {(*where, verb) for where, verbs in uses.items() for verb in verbs}


def granted(component: str, *settings: str) -> set[Rule]:
    """Every rule of the roles that this component's own account is bound to, roles of the cluster's own left out."""
    assert HELM is not None
    objects: list[Any] = rendered(HELM, settings)
    found: set[Rule] = set()
    for binding in objects:
        if binding["kind"] not in ("ClusterRoleBinding", "RoleBinding"):
            continue
        if {subject["name"] for subject in binding["subjects"]} != {f"hami-{component}"}:
            continue
        roles = [each for each in objects if each["kind"] == binding["roleRef"]["kind"] and each["metadata"]["name"] == binding["roleRef"]["name"]]
        scope = binding["metadata"].get("namespace", "cluster")
        for role in roles:
            for rule in role["rules"]:
                found |= {(scope, group, resource, verb) for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}
    return found


TABLES = [pytest.param(AGENT, id="agent"), pytest.param(EVICT, id="agent that evicts"), pytest.param(EXTENDER, id="extender")]


@pytest.mark.parametrize("uses", TABLES)
def test_every_permission_belongs_to_a_call_in_the_code(uses: Uses) -> None:
    missing = [
        f"{'/'.join(where)} {verb}: nothing in {place} looks like {pattern}"
        for where, verbs in uses.items()
        for verb, (place, pattern) in verbs.items()
        if not re.search(pattern, code(place), re.DOTALL)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("component", "settings", "uses"),
    [
        pytest.param("agent", (), AGENT, id="agent"),
        pytest.param("agent", ("agent.onBypass=evict",), {**AGENT, **EVICT}, id="agent that evicts"),
        pytest.param("scheduler", (), EXTENDER, id="extender, own scheduler"),
        pytest.param("scheduler", ("scheduler.mode=existing", "scheduler.remote.enabled=true"), EXTENDER, id="extender, existing scheduler"),
    ],
)
def test_the_chart_allows_just_what_the_code_calls(component: str, settings: tuple[str, ...], uses: Uses) -> None:
    assert granted(component, *settings) == flat(uses)


@pytest.mark.parametrize(
    ("component", "settings", "asked"),
    [
        pytest.param("agent", ("agent.onBypass=evict",), (*needs.AGENT, *needs.EVICTING), id="agent"),
        pytest.param("scheduler", (), needs.SCHEDULER, id="extender"),
        pytest.param("webhook", (), (*needs.WEBHOOK, *needs.KEEPER), id="webhook"),
    ],
)
def test_the_doctor_asks_for_what_the_chart_gives(component: str, settings: tuple[str, ...], asked: tuple[needs.Need, ...]) -> None:
    given = granted(component, *settings)
    wanted = {(OWN if one.own else "cluster", one.group, f"{one.resource}/{one.subresource}".rstrip("/"), one.verb) for one in asked}
    assert wanted <= given
    if component != "webhook":  # its Secrets are asked for by name
        assert wanted == given


CLIENT_CALL = re.compile(r"path\(\s*\"(\w+)\"")


@pytest.mark.parametrize(("rooms", "uses"), [(("deviceplugin",), {**AGENT, **EVICT}), (("scheduler",), EXTENDER)], ids=["agent", "extender"])
def test_no_resource_is_spoken_of_that_the_table_does_not_know(rooms: tuple[str, ...], uses: Uses) -> None:
    known = {resource.partition("/")[0] for _, _, resource in uses}
    assert {plural for room in rooms for plural in CLIENT_CALL.findall(code(room))} <= known


@pytest.mark.parametrize("file", sorted(CHART.glob("templates/**/rbac.yaml")), ids=lambda path: path.parent.name)
def test_each_rule_has_its_reason_above_it(file: Path) -> None:
    lines = file.read_text().splitlines()
    bare = [number for number, line in enumerate(lines, 1) if re.match(r"\s*- apiGroups:", line) and not _reason(lines, number - 2)]
    assert bare == []


def _reason(lines: list[str], above: int) -> bool:
    """A comment above the rule, or above the rule right before it (a group with one reason)."""
    while above >= 0 and not lines[above].strip().startswith("rules:"):
        if lines[above].strip().startswith("#"):
            return True
        above -= 1
    return False
