# SPDX-License-Identifier: Apache-2.0
"""Where this package's interceptor lies: what a vendor's `hami_enforce` declares as its library."""

from pathlib import Path

LIBRARY = Path(__file__).parent / "lib" / "libhami_acme.so"
