# SPDX-License-Identifier: Apache-2.0
"""Between JSON and values: what pods ask for, and how grants and inventories travel.

`pods` reads a pod into a `PodRequest` (with `quantity`, `resources`, `containers`, `annotations`); `mutation` completes a
pod at admission; `grants` and `inventories` write and read what we keep in the cluster; `words` turns refusals into
sentences. Everything here is pure: JSON in, values out, and back.
"""
