"""Prometheus metrics: latency and outcome of RPCs, pods and containers by phase, ready VMs.

Off unless a port is configured; then :meth:`RpcMetrics.rpc` costs a few microseconds per call,
and the rest is counted when somebody asks (:mod:`orlop.host.exporter`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from orlop import tracing
from orlop.config import MetricsConfig
from orlop.host.exporter import CallMetrics, CallWords, Exporter
from orlop.pods.ledger import Ledger

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

Gauges = Callable[[], Mapping[str, float]]


class RpcMetrics:
    """Measures the RPCs of the CRI server; with tracing on, each is the root of its spans."""

    def __init__(self) -> None:
        names = CallWords(seconds="orlop_rpc_seconds", calls="orlop_rpcs", label="rpc", about="CRI calls")
        self._calls = CallMetrics(names)

    def rpc(self, name: str) -> AbstractContextManager[None]:
        """Around one RPC."""
        if not self._calls.measured:
            return tracing.span(f"cri.{name}")
        return self._measured(name)

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        with self._calls.call(name), tracing.span(f"cri.{name}"):
            yield

    def into(self, registry: CollectorRegistry) -> None:
        """Keep the figures in ``registry`` from now on."""
        self._calls.into(registry)


class _Collector:
    """Counts at the time of asking. Called from the exporter's thread; copies before it counts."""

    def __init__(self, ledger: Ledger, gauges: Gauges) -> None:
        self._ledger = ledger
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:
        """The metric families."""
        from prometheus_client.core import GaugeMetricFamily

        pods = GaugeMetricFamily("orlop_pods", "Pods by handler and phase.", labels=["handler", "phase"])
        by_pod = Counter((record.handler, str(record.phase)) for record in self._ledger.all_pods())
        for (handler, phase), count in by_pod.items():
            pods.add_metric([handler, phase], count)
        yield pods
        containers = GaugeMetricFamily("orlop_containers", "Containers by phase.", labels=["phase"])
        for name, count in Counter(str(item.phase) for item in self._ledger.all_containers()).items():
            containers.add_metric([name], count)
        yield containers
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, f"{name.replace('_', ' ').capitalize()}.", value=value)


class MetricsServer:
    """The HTTP endpoint ``/metrics``; does nothing when the port is 0."""

    def __init__(
        self, config: MetricsConfig, rpcs: RpcMetrics, ledger: Ledger, gauges: Gauges | None = None
    ) -> None:
        self._rpcs = rpcs
        self._ledger = ledger
        self._gauges: Gauges = gauges or dict
        self._exporter = Exporter(config.address, config.port)

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the address cannot be used."""
        collector = _Collector(self._ledger, self._gauges)
        await self._exporter.start(lambda registry: registry.register(collector), self._rpcs.into)

    async def stop(self) -> None:
        """Stop listening."""
        await self._exporter.stop()
