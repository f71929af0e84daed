# SPDX-License-Identifier: Apache-2.0
"""Whose resource names mean what: families, aliases, profiles, renames, and quarrels about a name."""

from __future__ import annotations

import pytest

from hami_framework.codec.resources import ResourceCatalog, Role, clashes, renamed
from hami_framework.errors import ConfigError
from hami_framework.model import MIB, NEUTRAL, AnnotationNames, ResourceNames

ACME = ResourceNames(
    count="acme.com/xpu",
    memory="acme.com/xpumem",
    memory_unit_bytes=512 * MIB,
    cores="acme.com/xpucores",
    aliases={"acme.com/oldxpu": "acme.com/xpu", "acme.com/oldmem": "acme.com/xpumem"},
    profiles={"acme.com/half": "half"},
    annotations=AnnotationNames(use_type=("acme.com/use-xputype",)),
)
CATALOG = ResourceCatalog([("acme", ACME)])


@pytest.mark.parametrize(
    ("spelling", "vendor", "role", "name"),
    [
        ("acme.com/xpu", "acme", Role.COUNT, "acme.com/xpu"),
        ("acme.com/oldxpu", "acme", Role.COUNT, "acme.com/xpu"),
        ("acme.com/xpumem", "acme", Role.MEMORY, "acme.com/xpumem"),
        ("acme.com/oldmem", "acme", Role.MEMORY, "acme.com/xpumem"),
        ("acme.com/xpucores", "acme", Role.CORES, "acme.com/xpucores"),
        ("acme.com/half", "acme", Role.PROFILE, "acme.com/half"),
        ("hami.io/accelerator", "", Role.COUNT, "hami.io/accelerator"),
        ("hami.io/memory-percent", "", Role.MEMORY_PERCENT, "hami.io/memory-percent"),
    ],
)
def test_meaning(spelling: str, vendor: str, role: Role, name: str) -> None:
    meaning = CATALOG.meaning(spelling)
    assert meaning is not None
    assert (meaning.family.vendor, meaning.role, meaning.name) == (vendor, role, name)


def test_other_names_mean_nothing() -> None:
    assert CATALOG.meaning("cpu") is None
    assert CATALOG.meaning("acme.com/other") is None


def test_what_kubelet_and_scheduler_are_told() -> None:
    assert CATALOG.slot_resources() == ("acme.com/xpu", "acme.com/half", "hami.io/accelerator")
    assert {"acme.com/oldxpu", "acme.com/xpumem", "hami.io/memory-mib", "acme.com/half"} < set(CATALOG.extended_resources())
    assert set(CATALOG.amount_resources()) == set(CATALOG.extended_resources()) - set(CATALOG.slot_resources())


def test_vendors_that_may_be_named() -> None:
    assert ResourceCatalog([("acme", ACME)], vendors=["nameless"]).vendors == ("acme", "nameless")


def test_two_vendors_that_claim_one_name_are_both_named() -> None:
    rival = ResourceNames(count="rival.com/xpu", aliases={"acme.com/oldxpu": "rival.com/xpu"})
    (clash,) = clashes([("acme", ACME), ("rival", rival)])
    assert (clash.name, clash.vendors) == ("acme.com/oldxpu", ("acme", "rival"))
    with pytest.raises(ConfigError, match=r"acme\.com/oldxpu is claimed by acme and by rival"):
        ResourceCatalog([("acme", ACME), ("rival", rival)])


def test_the_neutral_names_are_the_cores() -> None:
    with pytest.raises(ConfigError, match=r"hami\.io/accelerator is claimed by acme and by the core"):
        ResourceCatalog([("acme", NEUTRAL)])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param(ResourceNames(count="xpu"), "write domain/name", id="no domain"),
        pytest.param(ResourceNames(count="acme.com/" + "x" * 64), "write domain/name", id="longer than 63"),
        pytest.param(ResourceNames(count="acme.com/x", aliases={"acme.com/y": "acme.com/z"}), r"stands for acme\.com/z", id="alias of nothing"),
        pytest.param(ResourceNames(count="acme.com/x", memory="acme.com/x"), r"acme\.com/x is declared for 2 things", id="one name, two meanings"),
        pytest.param(ResourceNames(count="acme.com/x", memory_unit_bytes=0), "memory_unit_bytes must be at least 1", id="no unit"),
        pytest.param(ResourceNames(count="acme.com/x", minimum_count=0), "minimum_count must be at least 1", id="no minimum"),
    ],
)
def test_malformed_declarations(names: ResourceNames, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ResourceCatalog([("acme", names)])


def test_an_operators_names() -> None:
    names = renamed(ACME, {"acme.com/xpu": "corp.example/card", "acme.com/half": "corp.example/half-card"})
    assert names.count == "corp.example/card"
    assert names.aliases == {"acme.com/oldxpu": "corp.example/card", "acme.com/oldmem": "acme.com/xpumem"}
    assert names.profiles == {"corp.example/half-card": "half"}
    assert (names.memory, names.memory_unit_bytes, names.annotations) == (ACME.memory, ACME.memory_unit_bytes, ACME.annotations)
    catalog = ResourceCatalog([("acme", names)])
    assert catalog.meaning("acme.com/xpu") is None
    assert catalog.slot_resources()[:2] == ("corp.example/card", "corp.example/half-card")
