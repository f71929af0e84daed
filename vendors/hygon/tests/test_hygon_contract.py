# SPDX-License-Identifier: Apache-2.0
"""The promises that every vendor's package keeps."""

from hami_framework.testing.contract import VendorContract


class TestContract(VendorContract):
    vendor = "hygon"
