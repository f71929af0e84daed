# SPDX-License-Identifier: Apache-2.0
"""Verdicts in words and as JSON, and how many are kept."""

from __future__ import annotations

from hami_framework.model import GIB, Reason, Rejection
from hami_framework.scheduler import verdicts
from hami_framework.scheduler.verdicts import Record, Verdicts


def memory(device: str, free_gib: int) -> Rejection:
    return Rejection(reason=Reason.MEMORY, device=device, dimension="memory_bytes", wanted=8 * GIB, free=free_gib * GIB)


def record(name: str = "p", asked: int = 3) -> Record:
    return Record(
        uid="u",
        namespace="d",
        name=name,
        asked=asked,
        feasible=0,
        refused={Reason.NO_INVENTORY: ["n3"], Reason.MEMORY: ["n1", "n2"]},
        rejections={"n1": (memory("x1", 1),), "n2": (memory("x2", 6),)},
    )


def test_words_name_each_code_with_its_nearest_miss_the_commonest_first() -> None:
    words = record().words()
    assert words.startswith("0 of 3 nodes can take it: [memory] 2 nodes, nearest n2: device x2")
    assert "; [no-inventory] n3: " in words


def test_an_explanation_holds_every_node_with_its_sentence() -> None:
    told = record().explanation()
    assert told["codes"] == {"no-inventory": 1, "memory": 2}
    assert {node: entry["final"] for node, entry in told["nodes"].items()} == {"n3": True, "n1": False, "n2": False}
    assert told["nodes"]["n1"]["rejections"][0]["free"] == GIB
    assert told["nodes"]["n1"]["rejections"][0]["sentence"]
    assert told["nodes"]["n3"]["rejections"] == [], "a node that would be feasible by now has no reasons"


def test_old_verdicts_make_room_by_the_names_they_hold() -> None:
    kept = Verdicts()
    for number in range(5):
        kept.add(record(f"p{number}", asked=verdicts.NAMES_KEPT // 2))
    assert [kept.get("d", f"p{number}") is not None for number in range(5)] == [False, False, False, True, True]
    kept.forget("d", "p4")
    kept.add(record("small"))
    assert kept.get("d", "p3") is not None
    kept.add(record("huge", asked=verdicts.NAMES_KEPT * 2))
    assert kept.get("d", "huge") is not None
    assert kept.get("d", "p3") is None
