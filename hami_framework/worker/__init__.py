# SPDX-License-Identifier: Apache-2.0
"""One process per vendor on a node: what a plugin or its native library does wrong stays inside.

The agent never loads a vendor's library. It starts a worker for each vendor, speaks to it over a unix socket, and kills
and restarts it when it hangs, crashes or answers nonsense; the neighbours notice nothing.
"""

from hami_framework.worker.pool import WorkerPool

__all__ = ["WorkerPool"]
