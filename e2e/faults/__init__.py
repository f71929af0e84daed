# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a real API server that does to its clients what networks and overloaded servers do. See `proxy` and `orders`."""

from e2e.faults.orders import Fault, Orders
from e2e.faults.proxy import Proxy

__all__ = ["Fault", "Orders", "Proxy"]
