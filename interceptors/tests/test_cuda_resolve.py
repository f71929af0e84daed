# SPDX-License-Identifier: Apache-2.0
"""cuGetProcAddress and dlsym: for whatever name, version and stream flags, our hook stands before the driver's function, and nothing else does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import FAKE_INCLUDES, Container, record

from hami_interceptor import spec

VERSIONS = (11000, 11030, 12000, 12080, 12090, 13000, 13050)
SUFFIX = re.compile(r"(_v\d)?(_pts[zd])?$")


@pytest.fixture
def container(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Container:
    libraries = [fake_driver("cuda", FAKE_INCLUDES)]
    return Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), libraries, (record(0), record(1)))


def base(symbol: str) -> str:
    return SUFFIX.sub("", symbol)


def test_every_hooked_name_resolves_to_our_hook_at_every_version_and_flag(container: Container) -> None:
    rows = spec.load("cuda").rows
    hooked = {row.symbol for row in rows if row.hooked}
    asked = sorted({base(symbol) for symbol in hooked})
    answers = container.run("resolve", NAMES=json.dumps(asked), VERSIONS=json.dumps(VERSIONS))["answers"]
    assert len(answers) > len(asked)
    for question, owner in answers.items():
        library, symbol = owner.split(":")
        name = question.split()[0]
        assert base(symbol.removeprefix("hook_").removesuffix("_")) == name, (question, owner)
        assert library.startswith("libhami") or symbol not in hooked, (question, owner)


def test_names_that_are_not_hooked_pass(container: Container) -> None:
    answers = container.run("resolve", NAMES=json.dumps(["cuDriverGetVersion", "cuMemcpyHtoD", "cuNoSuchFunction"]), VERSIONS="[12090]")["answers"]
    assert answers
    assert {owner.split(":")[0] for owner in answers.values()} == {"libcuda.so.1"}
    assert not any(question.startswith("cuNoSuchFunction") for question in answers)


def test_2903_repeated_rtld_next_lookup(container: Container) -> None:
    """#2903: the second identical lookup answered NULL."""
    assert container.run("repeated", 200) == {"scenario": "repeated", "addresses": 1, "none": False}
