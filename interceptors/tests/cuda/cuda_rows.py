# SPDX-License-Identifier: Apache-2.0
"""For each hooked symbol of the CUDA driver, what its hook does: how to see it, and what is seen.

A row's function drives the symbol in a process of its own and answers what it saw, mostly MiB charged; `expected` is what it must
be. The same, with only that symbol's hook bypassed, must look different.
"""

from __future__ import annotations

import cuda_rows_contexts
import cuda_rows_graphs
import cuda_rows_imports
import cuda_rows_memory
from cuda_row import LIMIT, ROWS, Drive
from cuda_rows_imports import UNCHARGED

__all__ = ["LIMIT", "ROWS", "UNCHARGED", "Drive"]

TABLES = (cuda_rows_memory, cuda_rows_imports, cuda_rows_contexts, cuda_rows_graphs)
"""Each enters its rows where it is imported."""
