# SPDX-License-Identifier: Apache-2.0
"""The node agent: kubelet's device plugin for every vendor at once, run as `python -m hami_framework.deviceplugin`.

The rooms, in the order a request walks through them: `slots` (the tokens kubelet counts) → `plugin` and `registration`
(kubelet's gRPC) → `identity` and `podresources` (which container is this?) → `grants` and `fence` (what was it given, and
is there room?) → `prestart` (vendor hooks) → `cdi` and `limits` (what the container sees) → `state` (what survives a
crash) → `release` (undoing it) → `publish` (the inventory). `agent` wires them; `docs/agent.md` tells the story.
"""
