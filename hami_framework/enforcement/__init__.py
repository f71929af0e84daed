# SPDX-License-Identifier: Apache-2.0
"""The host's side of the interceptors: the policy that a container is held to, the agent's word while it runs, and its books.

`layout` is generated. The library inside the container is `interceptors/`; the two sides share three files and nothing else.
What a tenant can write is the state file, and nothing here believes it above the policy.
"""
