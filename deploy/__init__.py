# SPDX-License-Identifier: Apache-2.0
"""What is deployed: chart, manifests, images; and the script that renders them."""
