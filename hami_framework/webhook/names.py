# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_framework.webhook.names`: vendor → resource names, as the chart needs them for the webhook's matchConditions.

Its output for the packages of this repository is `deploy/chart/files/resource-names.yaml`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import yaml

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.plugins import load_registry

NEUTRAL_KEY = "any"
"""Stands for the names that belong to no vendor."""


def names_by_vendor(catalog: ResourceCatalog) -> Mapping[str, list[str]]:
    """Every name that means something here, aliases too, by the vendor that declares it."""
    result: dict[str, list[str]] = {}
    for family in catalog.families:
        result.setdefault(family.vendor or NEUTRAL_KEY, []).extend([*family.roles, *family.names.aliases])
    return {vendor: sorted(set(names)) for vendor, names in sorted(result.items())}


def page(catalog: ResourceCatalog) -> str:
    """The file's text."""
    head = "# SPDX-License-Identifier: Apache-2.0\n# Made by: python -m hami_framework.webhook.names\n"
    return head + yaml.safe_dump(dict(names_by_vendor(catalog)), sort_keys=True, width=200)


if __name__ == "__main__":
    sys.stdout.write(page(load_registry().catalog()))
