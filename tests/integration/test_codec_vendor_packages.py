# SPDX-License-Identifier: Apache-2.0
"""The manifests that HAMi's users have today, read with the names that the four vendor packages really declare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hami_framework.codec.mutation import apply_patch, mutate_pod
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.model import AnnotationNames, decode
from hami_framework.plugins import load_registry

DATA = Path(__file__).parents[1] / "data"
VENDORS = ("ascend", "cambricon", "hygon", "nvidia")


@pytest.fixture(scope="module")
def catalog() -> ResourceCatalog:
    registry = load_registry()
    assert set(VENDORS) <= registry.vendors.keys(), f"install the vendor packages (make venv); problems: {registry.problems}"
    return registry.catalog()


def published() -> list[Any]:
    return list(_published())


def _published() -> Iterator[Any]:
    for path in sorted((DATA / "hami-examples").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            pod = document if document["kind"] == "Pod" else document["spec"]["template"]
            yield pytest.param(path.stem, pod, id=f"{path.stem}: {document['metadata']['name']}")


@pytest.mark.parametrize(("vendor", "pod"), published())
def test_published_example_is_the_vendors(catalog: ResourceCatalog, vendor: str, pod: dict[str, Any]) -> None:
    request = read_pod(apply_patch(pod, mutate_pod(pod, catalog)), catalog)
    assert {asked.selector.vendors for container in request.containers for asked in container.requests} == {(vendor,)}


def test_the_catalogue_of_the_unit_tests_promises_nothing_that_the_packages_lack(catalog: ResourceCatalog) -> None:
    """`tests/data/resource-families.json` stands in for the packages in unit tests: each spelling in it must be real."""
    for family in decode((DATA / "resource-families.json").read_bytes(), tuple[Family, ...]):
        for spelling, role in family.roles.items():
            real = catalog.meaning(spelling)
            assert real is not None, f"{spelling} is not declared by the package"
            assert (real.family.vendor, real.role, real.name) == (family.vendor, role, spelling)
            assert real.family.names.memory_unit_bytes == family.names.memory_unit_bytes
        for spelling, name in family.names.aliases.items():
            alias = catalog.meaning(spelling)
            assert alias is not None, f"alias {spelling} is not declared by the package"
            assert alias.name == name
        package = catalog.meaning(family.names.count)
        assert package is not None
        for kind in AnnotationNames.__struct_fields__:
            assert set(getattr(family.names.annotations, kind)) <= set(getattr(package.family.names.annotations, kind))
