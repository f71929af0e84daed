# SPDX-License-Identifier: Apache-2.0
"""Placement: which devices of which node serve a pod. Pure: no I/O, no clock; the only room that uses NumPy."""
