# SPDX-License-Identifier: Apache-2.0
"""A kubelet double: kubelet's real device manager, pod-resources server and pod lifecycle, without containers.

`devices` and `checkpoint` are pure; `registration` and `podresources` speak gRPC; `admission` joins the two; `lifecycle` runs
pods; `node.KubeletDouble` is the door. What each part copies from kubelet, and what it leaves out, is in `docs/kubelet-double.md`.
"""
