# SPDX-License-Identifier: Apache-2.0
"""Interceptors from a table: reads `spec/<api>.toml`, writes the wrappers and the fake driver in C, builds shared objects.

`spec.load` reads a table, `generate` writes C from it, `build` compiles, `coverage` counts, `native` says where the C lies.
Nothing here needs more than the standard library; `hatch` is imported by the packager only.
"""
