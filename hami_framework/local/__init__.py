# SPDX-License-Identifier: Apache-2.0
"""One box: limits for programs on this machine, without Kubernetes, beside a node agent that may run here too."""
