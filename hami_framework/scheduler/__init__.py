# SPDX-License-Identifier: Apache-2.0
"""The scheduler extender: kube-scheduler asks over HTTP, the placement engine answers, bindings carry the grant.

`wire` speaks kube-scheduler's JSON, `service` holds the use cases, `binding` the one write and its unknown outcomes,
`state` follows the cluster, `app` is the HTTP rim. The engine has one thread: the event loop's.
"""
