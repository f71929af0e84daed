# SPDX-License-Identifier: Apache-2.0
"""Admission over HTTPS: what a pod must say before it is stored."""
