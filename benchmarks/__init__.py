# SPDX-License-Identifier: Apache-2.0
"""Speed, measured where it matters: ratios and counts, each with the command that gives it (`docs/benchmarks.md`)."""
