# SPDX-License-Identifier: Apache-2.0
"""The certificates of an installation: what is wanted, when it is renewed, and where it is kept."""
