# SPDX-License-Identifier: Apache-2.0
"""The file that says which nodes a sandbox has, read strictly: an unknown key or machine is an error with a suggestion.

nodes:
  - {name: a, machine: SOME-MACHINE}
  - {name: b, machine: [ONE-MACHINE, ANOTHER], cpu: 32, memory: 128Gi, labels: {zone: x}, taints: [{key: k, effect: NoSchedule}]}
  - {name: c, machine: ./mine.ini, vendor: VENDOR}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hami_framework.config import faults, read_document
from hami_framework.errors import ConfigError
from hami_framework.model import Machine, Value, read_machine_file
from hami_framework.sandbox import quantities

Machines = Mapping[str, tuple[str, Machine]]
"""Machine name → (vendor, machine), as `Registry.machines()` gives it."""

NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Placed(Value, frozen=True, kw_only=True):
    """A machine on a node, and whose it is."""

    vendor: str
    machine: Machine


class NodeSpec(Value, frozen=True, kw_only=True):
    """One node of the sandbox."""

    name: str
    machines: tuple[Placed, ...] = ()
    """At most one per vendor; none: a node without accelerators."""
    cpu: str = "64"
    memory: str = "512Gi"
    pods: str = "250"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Taint(_Strict):
    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class _Node(_Strict):
    name: str
    machine: str | tuple[str, ...] = ()
    vendor: str | None = None
    cpu: str | int | float = "64"
    memory: str | int = "512Gi"
    pods: int = Field(default=250, gt=0)
    labels: dict[str, str] = Field(default_factory=dict)
    taints: tuple[_Taint, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_node_name(cls, name: str) -> str:
        if not NODE_NAME.fullmatch(name) or len(name) > 63:
            raise ValueError("a node name has lower-case letters, digits, '-' and '.', at most 63 characters")
        return name

    @field_validator("cpu", "memory")
    @classmethod
    def _is_quantity(cls, raw: str | int | float) -> str:
        return quantities.canonical(raw)


class _File(_Strict):
    nodes: Annotated[tuple[_Node, ...], Field(min_length=1)]


def load_nodes(path: Path, machines: Machines) -> tuple[NodeSpec, ...]:
    """Read a node file. Raises `ConfigError` naming the file, the node, what is wrong and what would do."""
    return parse_nodes(read_document(path, "the node file"), machines, path)


def parse_nodes(data: Any, machines: Machines, path: Path = Path("nodes.yaml")) -> tuple[NodeSpec, ...]:
    """The nodes of a file's contents; machine files of one's own are looked for beside `path`. Raises `ConfigError`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: write `nodes:` and a list, e.g. nodes: [{{name: node-a, machine: {next(iter(sorted(machines)), 'MACHINE')}}}]")
    try:
        parsed = _File.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"the node file {path} is wrong: {faults(error, _File)}") from error
    names = [node.name for node in parsed.nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two nodes are called {', '.join(twice)}")
    return tuple(_node(node, machines, path) for node in parsed.nodes)


def _node(node: _Node, machines: Machines, path: Path) -> NodeSpec:
    wanted = (node.machine,) if isinstance(node.machine, str) else node.machine
    placed = tuple(_placed(name, node, machines, path) for name in wanted)
    vendors = [each.vendor for each in placed]
    if len(set(vendors)) != len(vendors):
        raise ConfigError(f"{path}: node {node.name} has two machines of vendor {vendors[0]}: put the devices of both in one machine file of your own")
    return NodeSpec(
        name=node.name,
        machines=placed,
        cpu=str(node.cpu),
        memory=str(node.memory),
        pods=str(node.pods),
        labels=node.labels,
        taints=tuple({key: value for key, value in taint.model_dump().items() if value} for taint in node.taints),
    )


def _placed(name: str, node: _Node, machines: Machines, path: Path) -> Placed:
    if name in machines:
        vendor, machine = machines[name]
        return Placed(vendor=vendor, machine=machine)
    if "/" in name or name.endswith(".ini"):
        return _own(path.parent / name, node, machines, path)
    close = difflib.get_close_matches(name, list(machines), n=1, cutoff=0.4)
    hint = f": did you mean {close[0]!r}?" if close else "."
    known = ", ".join(sorted(machines)) or "none: no installed vendor package brings any"
    raise ConfigError(f"{path}: node {node.name}: there is no machine {name!r}{hint} Known: {known}; a file of your own is written as ./FILE.ini with vendor:")


def _own(file: Path, node: _Node, machines: Machines, path: Path) -> Placed:
    """A machine file of the user's own, played by the fake library of the vendor named."""
    vendors = sorted({vendor for vendor, _ in machines.values()})
    if node.vendor not in vendors:
        said = f"no vendor {node.vendor!r}" if node.vendor else "no vendor: line"
        raise ConfigError(f"{path}: node {node.name}: machine file {file} has {said}; name one of {', '.join(vendors) or '(none installed)'}")
    try:
        state, files = read_machine_file(file.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: node {node.name}: machine file {file} cannot be read: {error.strerror}") from error
    template = next(machine for vendor, machine in machines.values() if vendor == node.vendor)
    own = msgspec.structs.replace(template, name=file.stem, description=f"from {file.name}", state=state, files=files)
    return Placed(vendor=node.vendor, machine=own)


def all_machines(nodes: Iterable[NodeSpec]) -> list[Machine]:
    """Every machine once per name, for building."""
    return list({placed.machine.name: placed.machine for node in nodes for placed in node.machines}.values())
