"""Metrics of a node's agent: pods, traffic and drops of each tenant, and the calls of the CNI plug-in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orlop.errors import NotFound
from orlop.host.exporter import BoundedReading, CallMetrics, CallWords
from orlop.tenantnet import meter
from orlop.tenantnet.leases import LeaseRecords
from orlop.tenantnet.meter import RouterFigures
from orlop.value import Value

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

FRESH: Final = 10.0
"""Seconds for which what was read of the kernel is good enough: one who asks more often gets it again."""
NODE: Final = ""
"""The label ``tenant`` of what the node's own guards have dropped."""


class NodeFigures(Value, frozen=True):
    """What was read of the kernel: figures of routers by tenant, and drops of the node's own guards."""

    routers: tuple[tuple[str, RouterFigures], ...] = ()
    drops: tuple[tuple[str, int], ...] = ()


async def read(records: LeaseRecords, routers: Path, node: Path) -> NodeFigures:
    """Read it, one router after the other. Raises OSError."""
    found = []
    for network in sorted(records.networks, key=lambda one: one.name):
        try:
            found.append((network.name, await meter.of_router(routers / network.namespace)))
        except NotFound:
            continue  # it went just now
    return NodeFigures(routers=tuple(found), drops=await meter.drops(node))


class AgentMetrics:
    """All that an agent serves. Make it in the event loop of the agent."""

    def __init__(self, records: LeaseRecords, routers: Path, node: Path) -> None:
        self.calls = CallMetrics(
            CallWords(
                seconds="orlop_tenants_cni_seconds",
                calls="orlop_tenants_cni_calls",
                label="command",
                about="calls of the CNI plug-in",
            )
        )
        self._records = records
        self._kernel = BoundedReading(lambda: read(records, routers, node), every=FRESH)

    def into(self, registry: CollectorRegistry) -> None:
        """See :data:`orlop.host.exporter.MetricsInto`."""
        self.calls.into(registry)
        registry.register(self)

    def collect(self) -> Iterator[Any]:
        """The metric families; called on the exporter's threads."""
        from prometheus_client.core import GaugeMetricFamily

        pods = GaugeMetricFamily(
            "orlop_tenants_node_pods", "Pods of tenants with an interface on this node.", labels=["tenant"]
        )
        for tenant, count in sorted(Counter(one.tenant for one in self._records.leases).items()):
            pods.add_metric([tenant], count)
        yield pods
        figures = self._kernel.get()
        yield GaugeMetricFamily(
            "orlop_tenants_kernel_read",
            "Whether the kernel's figures could be read.",
            value=figures is not None,
        )
        if figures is not None:
            yield from _traffic(figures)
            yield _drops(figures)
            yield from _connections(figures)


def _traffic(figures: NodeFigures) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    labels = ["tenant", "link", "direction"]
    families = {
        kind: CounterMetricFamily(
            f"orlop_tenants_{kind}",
            f"{kind.capitalize()} over a router's link, as the router sees it.",
            labels=labels,
        )
        for kind in ("bytes", "packets")
    }
    for tenant, router in figures.routers:
        for link, one in (("uplink", router.uplink), ("vxlan", router.tunnel)):
            families["bytes"].add_metric([tenant, link, "in"], one.rx_bytes)
            families["bytes"].add_metric([tenant, link, "out"], one.tx_bytes)
            families["packets"].add_metric([tenant, link, "in"], one.rx_packets)
            families["packets"].add_metric([tenant, link, "out"], one.tx_packets)
    yield from families.values()


def _drops(figures: NodeFigures) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        "orlop_tenants_drops",
        "Packets that a guard has dropped, in a tenant's router or, without a tenant, on the node itself.",
        labels=["tenant", "guard"],
    )
    for tenant, dropped in [(NODE, figures.drops), *((name, one.drops) for name, one in figures.routers)]:
        for guard, packets in dropped:
            family.add_metric([tenant, guard], packets)
    return family


def _connections(figures: NodeFigures) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    there = GaugeMetricFamily(
        "orlop_tenants_connections", "Connections in a router's table.", labels=["tenant"]
    )
    most = GaugeMetricFamily(
        "orlop_tenants_connections_max", "Connections that a router's table holds.", labels=["tenant"]
    )
    for tenant, router in figures.routers:
        there.add_metric([tenant], router.connections)
        most.add_metric([tenant], router.most)
    yield from (there, most)
