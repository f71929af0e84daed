# SPDX-License-Identifier: Apache-2.0
"""The machine a test plays: the one that its parameter names, or the package's usual one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hami_framework.testing.stage import Stage


@pytest.fixture
def stage(request: pytest.FixtureRequest, play: Callable[[str], Stage]) -> Stage:
    return play(getattr(request, "param", "k100-ai"))
