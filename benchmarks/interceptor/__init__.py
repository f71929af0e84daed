# SPDX-License-Identifier: Apache-2.0
"""What the interceptor costs and how well it holds: `python -m benchmarks.interceptor`."""
