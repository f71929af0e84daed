# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, in one YAML file. Every field says what it means, its unit, and how to turn it off.

Only programs that people configure by hand read this (extender, command line, sandbox); the node agent takes flags.
"""

from __future__ import annotations

import fnmatch
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


class NodeRule(Section):
    """Settings of the nodes whose name matches; the first rule that matches counts."""

    match: str = "*"
    """Shell pattern of node names."""
    memory_overcommit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """Promised device memory may reach this multiple of the real one. 1.0: none is promised twice."""
    core_overcommit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """The same for compute."""


class Settings(Section):
    """The whole file."""

    plugins: Plugins = Plugins()
    resources: Resources = Resources()
    placement: Placement = Placement()
    nodes: tuple[NodeRule, ...] = ()
    vendors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """A section for each vendor, handed to its package as it stands."""

    def node_rule(self, node: str) -> NodeRule:
        """The rule for this node; the defaults where none matches."""
        return next((rule for rule in self.nodes if fnmatch.fnmatchcase(node, rule.match)), NodeRule())


def load_settings(path: Path | None) -> Settings:
    """Read the file; None gives the defaults. Raises `ConfigError` naming the file, each wrong key, and what is allowed."""
    if path is None:
        return Settings()
    data = read_document(path, "the settings file")
    try:
        return Settings.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigError(f"the settings file {path} is wrong: {faults(error, Settings)}") from error
