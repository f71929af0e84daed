# SPDX-License-Identifier: Apache-2.0
"""The numbers a kubelet double runs with. Defaults are a real 1.36.3's, but for waits that only slow a sandbox down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_RECEIVE_BYTES = 4 * 1024 * 1024
"""gRPC's default for received messages, which kubelet keeps: about 60,000 devices in one ListAndWatch message."""


@dataclass(frozen=True, kw_only=True)
class KubeletOptions:
    """Times in seconds. `time_scale` multiplies the waits marked with (s); tests use 0.01 or so."""

    seed: int = 0
    """Go's map order is random: device and resource orders are drawn with this seed."""
    time_scale: float = 1.0
    first_retry_s: float = 0.2
    """(s) Before a container that could not be created is tried again, the first time (measured)."""
    next_retry_s: tuple[float, float] = (12.0, 14.0)
    """(s) The same from the second time on, drawn between the two (measured)."""
    admission_delay_s: float = 0.7
    """From kubelet.sock to the first admission after kubelet's start (measured: 0.7 to 1 s). Not scaled: it is the time a
    device plugin has to register before pods that do not run yet are refused for good."""
    node_status_lag_s: float = 0.05
    """How long a change of devices takes to reach the Node object; up to 10 s on a real node."""
    prestart_deadline_s: float = 30.0
    """`KubeletPreStartContainerRPCTimeoutInSecs`."""
    dial_timeout_s: float = 10.0
    endpoint_stop_grace_s: float = 300.0
    """How long a resource stays in the capacity after its plugin went (`endpointStopGracePeriod`)."""
    pod_resources_qps: float = 100.0
    pod_resources_burst: int = 10
    init_seconds: float = 0.02
    """How long a non-restartable init container runs."""
    stop_seconds: float = 0.0
    """How long a container takes to stop."""
    allocated_resources_status: bool = False
    """Report device health in the container statuses (gate ResourceHealthStatus)."""
    register_node: bool = True
    """Create the Node object when it is not there, as kubelet's `registerNode` does."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Labels of the Node object when it is created here."""
    capacity: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"cpu": "64", "memory": "512Gi", "pods": "250"}))
    """What the node has beside device-plugin resources."""

    def scaled(self, seconds: float) -> float:
        return seconds * self.time_scale
