# SPDX-License-Identifier: Apache-2.0
"""How fast a real kube-scheduler places pods on fake nodes, with the extender and without it."""
