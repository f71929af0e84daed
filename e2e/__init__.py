# SPDX-License-Identifier: Apache-2.0
"""The end-to-end suite and the lab it runs on."""
