# SPDX-License-Identifier: Apache-2.0
"""The one command, `hami`: one file per sub-command, each importing what it needs only when it runs."""
