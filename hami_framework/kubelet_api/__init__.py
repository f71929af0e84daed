# SPDX-License-Identifier: Apache-2.0
"""kubelet's gRPC interfaces: the vendored protos and the stubs generated from them (`make generate`).

Only the kubelet-facing rooms (`deviceplugin/`, and `sandbox/`, which plays kubelet) may import this package.
"""
