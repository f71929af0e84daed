# SPDX-License-Identifier: Apache-2.0
"""Our own certificates: making them (`making`), when to make which (`plan`), and how they lie in Secrets (`secrets`). No I/O here."""
