# SPDX-License-Identifier: Apache-2.0
"""The promises every vendor's package keeps."""

from __future__ import annotations

from typing import ClassVar

from hami_framework.testing.contract import VendorContract


class TestContract(VendorContract):
    vendor: ClassVar[str] = "ascend"
