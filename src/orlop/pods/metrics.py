"""Prometheus metrics: latency and outcome of RPCs, pods and containers by phase, ready VMs.

Off unless a port is configured; then :meth:`RpcMetrics.rpc` costs a few microseconds per call,
and the rest is counted when somebody asks. The exporter is prometheus-client's own server.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from orlop import tracing
from orlop.config import MetricsConfig
from orlop.errors import NAMES, FailedPrecondition, OrlopError
from orlop.host import threads
from orlop.pods.ledger import Ledger

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Upper bounds of the latency histogram, in seconds."""

Gauges = Callable[[], Mapping[str, float]]


class RpcMetrics:
    """Measures the RPCs of the CRI server; with tracing on, each is the root of its spans."""

    def __init__(self) -> None:
        self._observe: Callable[[str, str, float], None] | None = None

    def rpc(self, name: str) -> AbstractContextManager[None]:
        """Around one RPC."""
        if self._observe is None:
            return tracing.span(f"cri.{name}")
        return self._measured(name, self._observe)

    @contextmanager
    def _measured(self, name: str, observe: Callable[[str, str, float], None]) -> Iterator[None]:
        started = time.perf_counter()
        outcome = "ok"
        try:
            with tracing.span(f"cri.{name}"):
                yield
        except OrlopError as error:
            outcome = NAMES[error.code].lower()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException:
            outcome = "internal"
            raise
        finally:
            observe(name, outcome, time.perf_counter() - started)

    def into(self, registry: CollectorRegistry) -> None:
        """Keep the figures in ``registry`` from now on."""
        from prometheus_client import Counter as PrometheusCounter
        from prometheus_client import Histogram

        seconds = Histogram(
            "orlop_rpc_seconds", "Duration of CRI calls.", ["rpc"], buckets=BUCKETS, registry=registry
        )
        calls = PrometheusCounter(
            "orlop_rpcs", "CRI calls by their outcome (gRPC status).", ["rpc", "code"], registry=registry
        )

        def observe(name: str, outcome: str, elapsed: float) -> None:
            seconds.labels(name).observe(elapsed)
            calls.labels(name, outcome).inc()

        self._observe = observe


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
        self._config = config
        self._rpcs = rpcs
        self._ledger = ledger
        self._gauges: Gauges = gauges or dict
        self._server: Any = None

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the address cannot be used."""
        if not self._config.port:
            return
        from prometheus_client import (
            GCCollector,
            PlatformCollector,
            ProcessCollector,
            start_http_server,
        )
        from prometheus_client.registry import CollectorRegistry

        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(_Collector(self._ledger, self._gauges))
        self._rpcs.into(registry)
        try:
            self._server, _ = start_http_server(
                self._config.port, addr=self._config.address, registry=registry
            )
        except OSError as error:
            raise FailedPrecondition(
                f"metrics cannot be served on {self._config.address}:{self._config.port}: {error}"
            ) from error

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await threads.call(self._server.shutdown)
            self._server.server_close()
            self._server = None
