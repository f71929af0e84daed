# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from hami_framework.testing.contract import VendorContract


class TestContract(VendorContract):
    vendor = "acme"
    plugin_file = Path(__file__).parents[1] / "hami_acme" / "__init__.py"
