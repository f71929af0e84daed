# SPDX-License-Identifier: Apache-2.0
"""The names of cuda_calls.PATHS, for tests that must not load a driver: importing that module does."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = (Path(__file__).parent / "cuda_calls.py").read_text()
PATHS = tuple(re.findall(r'^    "([^"]+)": ', _TEXT[_TEXT.index("PATHS: dict") :], re.MULTILINE))
