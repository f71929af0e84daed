# SPDX-License-Identifier: Apache-2.0
"""The way to the API server: credentials, a thin client over raw JSON, and a list+watch reflector.

Nothing here imports more than the standard library and msgspec: the node agent lives on every node and must stay small.
"""
