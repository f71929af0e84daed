# SPDX-License-Identifier: Apache-2.0
"""What the webhook reads pods with: the installed vendors' names and policies, and the operator's rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hami_framework.codec.admission import Rules
from hami_framework.codec.annotations import POLICIES
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import ConfigError


@dataclass(frozen=True)
class Reading:
    """The means of one webhook."""

    catalog: ResourceCatalog
    policies: Collection[str] = POLICIES
    rules: Rules = Rules()  # noqa: RUF009 — frozen


def make_rules(scheduler_name: str | None, runtime_classes: Sequence[str], catalog: ResourceCatalog) -> Rules:
    """Rules from the command line: `runtime_classes` as `VENDOR=NAME`. Raises ConfigError naming what is wrong."""
    classes: dict[str, str] = {}
    for text in runtime_classes:
        vendor, equals, name = text.partition("=")
        if not (vendor and equals and name):
            raise ConfigError(f"--runtime-class {text!r}: write VENDOR=NAME, e.g. acme=acme")
        if vendor not in catalog.vendors:
            raise ConfigError(f"--runtime-class {text!r}: no vendor is called {vendor!r}; installed: {', '.join(catalog.vendors) or 'none'}")
        if classes.setdefault(vendor, name) != name:
            raise ConfigError(f"--runtime-class {text!r}: vendor {vendor} has {classes[vendor]} already")
    return Rules(scheduler_name=scheduler_name or None, runtime_classes=classes)
