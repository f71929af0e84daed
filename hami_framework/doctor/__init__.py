# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an installation, and what to do about it. `reading` asks the API server; all else looks at what was read."""

from __future__ import annotations

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.config.settings import Settings
from hami_framework.doctor import installation, nodes, promises, versions, webhook
from hami_framework.doctor.cluster import Cluster
from hami_framework.doctor.finding import Finding, unread


def examine(cluster: Cluster, catalog: ResourceCatalog, settings: Settings | None = None) -> list[Finding]:
    """Every check, in the order in which a person would mend things. Pure: nothing is asked or changed any more."""
    return [
        *unread(cluster),
        *versions.server(cluster),
        *versions.kubelets(cluster),
        *versions.components(cluster),
        *versions.clock(cluster),
        *installation.definition(cluster),
        *installation.permissions(cluster),
        *installation.scheduler(cluster),
        *installation.policies(cluster),
        *webhook.configuration(cluster),
        *webhook.trial(cluster),
        *nodes.agents(cluster),
        *nodes.runtimes(cluster),
        *nodes.inventories(cluster),
        *nodes.device_plugins(cluster),
        *nodes.resources(cluster, catalog),
        *nodes.settings(cluster, settings),
        *promises.ungranted(cluster, catalog),
        *promises.sums(cluster, settings),
        *promises.waiting(cluster),
        *promises.leftovers(cluster),
    ]
