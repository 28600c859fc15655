"""Metrics of the operator: its rounds, and what the tenants' statuses say while it is the one that works."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from orlop.errors import InvalidArgument
from orlop.host.exporter import BoundedReading, CallMetrics, CallWords
from orlop.tenants.api import TENANTS, Api, Document
from orlop.tenants.model import quantity
from orlop.tenants.status import Phase
from orlop.value import Value

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

log = logging.getLogger(__name__)

FRESH: Final = 15.0
"""Seconds for which a list of all tenants is good enough."""


class TenantFigures(Value, frozen=True):
    """What a Tenant's status says: its phase, its namespaces, and by resource what it uses and may use."""

    name: str
    phase: str
    use: tuple[tuple[str, float, float], ...] = ()
    namespaces: tuple[str, ...] = ()


def figures(tenant: Document) -> TenantFigures:
    """Those of a Tenant; amounts that cannot be read are left out."""
    status: Mapping[str, Any] = tenant.get("status", {})
    use = []
    for resource, said in (status.get("use") or {}).items():
        used, _, most = said.partition("/")
        try:
            use.append((resource, float(quantity(used)), float(quantity(most))))
        except InvalidArgument:
            continue
    return TenantFigures(
        name=tenant["metadata"]["name"],
        phase=status.get("phase", "Pending"),
        use=tuple(use),
        namespaces=tuple(status.get("namespaces") or ()),
    )


class OperatorMetrics:
    """All that an operator serves. Make it in the event loop of the operator."""

    def __init__(self, api: Api) -> None:
        self.leads = False
        """Whether this operator has the lease just now."""
        self.rounds = CallMetrics(
            CallWords(
                seconds="orlop_tenants_round_seconds",
                calls="orlop_tenants_rounds",
                label="kind",
                about="rounds of the operator",
            )
        )

        async def read() -> list[TenantFigures]:
            return [figures(one) for one in await api.list(TENANTS)]

        self._tenants = BoundedReading(read, every=FRESH)

    def into(self, registry: CollectorRegistry) -> None:
        """See :data:`orlop.host.exporter.MetricsInto`."""
        self.rounds.into(registry)
        registry.register(self)

    def collect(self) -> Iterator[Any]:
        """The metric families; called on the exporter's threads."""
        from prometheus_client.core import GaugeMetricFamily

        leads = self.leads
        yield GaugeMetricFamily(
            "orlop_tenants_leader", "Whether this operator is the one that works.", value=leads
        )
        # One that waits would tell everything a second time.
        found = self._tenants.get() if leads else None
        if found is None:
            return
        phases = GaugeMetricFamily("orlop_tenants", "Tenants by phase.", labels=["phase"])
        counts = Counter(one.phase for one in found)
        for phase in get_args(Phase):
            phases.add_metric([phase], counts[phase])
        yield phases
        labels = ["tenant", "resource"]
        used = GaugeMetricFamily(
            "orlop_tenant_quota_used", "What a tenant takes of its quota.", labels=labels
        )
        most = GaugeMetricFamily("orlop_tenant_quota", "What a tenant may take.", labels=labels)
        for one in found:
            for resource, amount, limit in one.use:
                used.add_metric([one.name, resource], amount)
                most.add_metric([one.name, resource], limit)
        spaces = GaugeMetricFamily(
            "orlop_tenant_namespace_info", "The namespaces of a tenant.", labels=["tenant", "namespace"]
        )
        for one in found:
            for space in one.namespaces:
                spaces.add_metric([one.name, space], 1)
        yield from (used, most, spaces)
