# SPDX-License-Identifier: Apache-2.0
"""A container runtime double: resolves CDI names as containerd does and remembers what each container would have seen."""
