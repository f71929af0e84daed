# SPDX-License-Identifier: Apache-2.0
"""Random pods: read or refused with reasons, never anything else; the mutation is idempotent and changes no amount."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_framework.codec.mutation import apply_patch, mutate_pod, review
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.codec.words import sentence, summary
from hami_framework.errors import InvalidRequest
from hami_framework.model import PodRequest, Reason, Rejection, decode

pytestmark = pytest.mark.deep

DEEP = bool(os.environ.get("HAMI_TEST_DEEP"))
EXAMPLES = settings(max_examples=10_000 if DEEP else 250, derandomize=not DEEP, deadline=None)

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)

AMOUNTS = [name for name in CATALOG.extended_resources() if (meaning := CATALOG.meaning(name)) is not None and meaning.role.amount]
NAMES = st.sampled_from([*CATALOG.extended_resources(), "cpu", "memory", "example.com/fpga"])
GOOD = st.sampled_from(["1", 1, "2", "30", "4k", "3Gi", "100", "8"])
QUANTITY = st.one_of(GOOD, st.integers(-5, 10**6), st.sampled_from(["0", "500m", "-1", "1.5Ki", "lots", "", None, 0.5, True, "9E", "Ki"]), st.text(max_size=4))
KEYS = st.sampled_from(
    [
        "hami.io/use-device-type",
        "hami.io/device-mode",
        "hami.io/vendors",
        "hami.io/node-scheduler-policy",
        "hami.io/gpu-scheduler-policy",
        "hami.io/enforcement",
        "nvidia.com/use-gputype",
        "nvidia.com/vgpu-mode",
        "hygon.com/use-hcutype",
    ]
)
TEXT = st.one_of(st.sampled_from(["A100,V100", "mig", "hami-core", "nvidia", "binpack", "hard", "memory=hard", ",", ""]), st.text(max_size=6))


def pods(quantities: st.SearchStrategy[Any], annotations: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    resources = st.dictionaries(NAMES, quantities, max_size=4)
    container = st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b"]), "resources": st.fixed_dictionaries({"limits": resources}, optional={"requests": resources})}
    )
    init = st.builds(lambda base, restart: base | ({"restartPolicy": "Always"} if restart else {}), container, st.booleans())
    spec = st.fixed_dictionaries({"containers": st.lists(container, min_size=1, max_size=3), "initContainers": st.lists(init, max_size=2)})
    return st.fixed_dictionaries({"metadata": st.fixed_dictionaries({"name": st.just("p"), "annotations": annotations}), "spec": spec})


ANY_POD = pods(QUANTITY, st.dictionaries(KEYS, TEXT, max_size=3))
PLAIN_POD = pods(GOOD, st.just({}))


def outcome(pod: dict[str, Any]) -> PodRequest | tuple[Rejection, ...]:
    try:
        return read_pod(pod, CATALOG)
    except InvalidRequest as error:
        return error.rejections


@EXAMPLES
@given(pod=ANY_POD)
def test_any_pod_is_read_or_refused_with_reasons_in_words(pod: dict[str, Any]) -> None:
    found = outcome(pod)
    if isinstance(found, PodRequest):
        return
    assert found
    for rejection in found:
        assert rejection.reason.bad_input
        assert rejection.hint, "a refusal says what to write instead"
        assert sentence(rejection)
    assert summary(found)


@EXAMPLES
@given(pod=ANY_POD)
def test_the_mutation_is_idempotent_and_the_review_always_answers(pod: dict[str, Any]) -> None:
    once = apply_patch(pod, mutate_pod(pod, CATALOG))
    assert mutate_pod(once, CATALOG) == []
    request = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": pod}
    assert review({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}, CATALOG)["response"]["allowed"] is True


@EXAMPLES
@given(pod=PLAIN_POD)
def test_a_readable_pod_asks_for_the_same_after_the_mutation(pod: dict[str, Any]) -> None:
    before = outcome(pod)
    after = outcome(apply_patch(pod, mutate_pod(pod, CATALOG)))
    if isinstance(before, PodRequest):
        assert after == before


@EXAMPLES
@given(name=st.sampled_from(AMOUNTS), amount=st.sampled_from(["1", "30", "100"]))
def test_amounts_alone_are_complete_after_the_mutation_and_refused_without(name: str, amount: str) -> None:
    pod = {"metadata": {}, "spec": {"containers": [{"name": "main", "resources": {"limits": {name: amount}}}]}}
    without = outcome(pod)
    assert isinstance(without, tuple)
    assert [rejection.reason for rejection in without] == [Reason.COUNT_MISSING]
    completed = outcome(apply_patch(pod, mutate_pod(pod, CATALOG)))
    assert isinstance(completed, PodRequest)
    assert not completed.empty
