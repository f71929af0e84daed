# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, in one YAML file. Every field says what it means, its unit, and how to turn it off.

One file serves extender, webhook and every node. The node agent does not read it itself (this module is too large for it): a
short-lived child process picks what holds for its node, see `hami_framework.deviceplugin.node_settings`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from hami_framework.config.reading import faults, read_document
from hami_framework.errors import ConfigError


class Section(BaseModel):
    """A part of the settings file: camelCase keys, unknown keys refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Plugins(Section):
    """Which vendors' packages are taken in."""

    allow: tuple[str, ...] | None = None
    """Vendor names that may be loaded. Plugins are code that runs in our processes, so name them in production. Absent: all that are installed."""
    files: tuple[Path, ...] = ()
    """One-file plugins to load beside the installed packages, for experiments."""


class Resources(Section):
    """The names pods use."""

    rename: dict[str, str] = Field(default_factory=dict)
    """A vendor's resource name → the name this cluster uses for it, e.g. `nvidia.com/gpu: example.com/gpu`."""


class Placement(Section):
    """How nodes and devices are chosen when the pod does not say."""

    node_policy: str = "binpack"
    """Policy among nodes; pods override it with `hami.io/node-scheduler-policy`."""
    device_policy: str = "binpack"
    """Policy among the devices of a node; pods override it with `hami.io/gpu-scheduler-policy`."""
    reservation_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a pod that was filtered but never bound keeps the place it was ranked for."""
    authority: Literal["decisive", "advisory"] = "decisive"
    """Whether one step of our ranking outweighs the in-tree scores (`decisive`) or is one voice among them."""
    preemption: bool = True
    """Whether the leading extender evicts pods of lower priority for a pod that only devices refuse. `false`: it waits."""


class NodeRule(Section):
    """Settings of the nodes that it is about: those whose name matches and that have all the labels. The first such rule counts, alone."""

    match: str = "*"
    """Shell pattern of node names."""
    selector: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Labels a node must have: label → its value, or a list of values of which it must be one. Empty: any node."""
    memory_overcommit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """Promised device memory may reach this multiple of the real one. 1.0: none is promised twice."""
    core_overcommit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """The same for compute."""
    shares_per_device: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many containers may share one device. Absent: what the vendor's package says."""
    mode: Annotated[str, Field(min_length=1)] | None = None
    """The one mode in which devices are given out: `share`, `whole`, or a vendor's own (`mig`, `vnpu`, …). Absent: the pod, then the vendor chooses."""

    def about(self, node: str, labels: Mapping[str, str]) -> bool:
        """Whether the rule is about this node."""
        return fnmatch.fnmatchcase(node, self.match) and all(
            labels.get(label) in ((wanted,) if isinstance(wanted, str) else wanted) for label, wanted in self.selector.items()
        )


class Settings(Section):
    """The whole file."""

    plugins: Plugins = Plugins()
    resources: Resources = Resources()
    placement: Placement = Placement()
    nodes: tuple[NodeRule, ...] = ()
    vendors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """A section for each vendor, handed to its package as it stands."""

    def node_rule(self, node: str, labels: Mapping[str, str] | None = None) -> NodeRule:
        """The rule for this node; the defaults where none is about it. Without labels, rules with a selector are about no node."""
        return next((rule for rule in self.nodes if rule.about(node, labels or {})), NodeRule())

    def needs_labels(self, node: str) -> bool:
        """Whether the labels of this node decide which rule it gets."""
        rule = next((rule for rule in self.nodes if fnmatch.fnmatchcase(node, rule.match)), None)
        return rule is not None and bool(rule.selector)

    def check_vendors(self, installed: Iterable[str]) -> None:
        """Raises ConfigError when the file speaks of a vendor whose package is not installed here."""
        known = sorted({*installed})
        named = {**dict.fromkeys(self.plugins.allow or (), "plugins.allow"), **dict.fromkeys(self.vendors, "vendors")}
        if unknown := [f"{place}: {vendor!r}" for vendor, place in named.items() if vendor not in known]:
            raise ConfigError(f"the settings name a vendor that no package here registers ({', '.join(unknown)}); installed: {', '.join(known) or 'none'}")


def load_settings(path: Path | None) -> Settings:
    """Read the file; None gives the defaults. Raises `ConfigError` naming the file, each wrong key, and what is allowed."""
    if path is None:
        return Settings()
    data = read_document(path, "the settings file")
    try:
        return Settings.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigError(f"the settings file {path} is wrong: {faults(error, Settings)}") from error
