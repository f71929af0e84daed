# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes for tests, built from Go modules and run in namespaces of its own. See docs/lab.md."""

from e2e.lab.cluster import Lab
from e2e.lab.components import NODE
from e2e.lab.machine import LabError, Machine

__all__ = ["NODE", "Lab", "LabError", "Machine"]
