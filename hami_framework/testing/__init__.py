# SPDX-License-Identifier: Apache-2.0
"""What is shipped to vendor authors: the contract every package must keep, fixtures, and the builder of fake libraries."""
