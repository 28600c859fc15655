"""What pods use at a moment, from the daemon's socket."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from orlop.client import session
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.host.tasks import together

_MEMORY = {name: f"orlop_pod_memory_{name}_bytes" for name in ("private", "shared", "used")}
_READ, _WRITTEN = "container_fs_reads_bytes_total", "container_fs_writes_bytes_total"


@dataclass(frozen=True, kw_only=True)
class PodFigures:
    """One pod: bytes, nanoseconds, and what it moved since it began.

    ``private`` is the host's memory that is its alone, ``shared`` what its VM shares with others, ``used``
    what its own kernel cannot reclaim.
    """

    id: str
    namespace: str
    name: str
    handler: str
    cpu_ns: int = 0
    private: int = 0
    shared: int = 0
    used: int = 0
    read: int = 0
    written: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """All ready pods, and what the handlers count, at a time of the monotonic clock (seconds)."""

    at: float
    pods: tuple[PodFigures, ...]
    gauges: dict[str, float]


async def moment(client: CriClient, handlers: dict[str, str]) -> Moment:
    """Ask the daemon. ``handlers`` are those of pods by their ids as far as they are known, and more then."""
    ready = pb.ListPodSandboxRequest()
    ready.filter.state.state = pb.SANDBOX_READY
    listed, stats, metrics, status = await together(
        client.runtime.list_pod_sandbox(ready),
        client.runtime.list_pod_sandbox_stats(pb.ListPodSandboxStatsRequest()),
        client.runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest()),
        client.runtime.status(pb.StatusRequest(verbose=True)),
    )
    at = time.monotonic()
    handlers |= await session.handlers_of(client, [one for one in listed.items if one.id not in handlers])
    used = {one.attributes.id: one for one in stats.stats}
    told = {one.pod_sandbox_id: one for one in metrics.pod_metrics}
    pods = tuple(
        _pod(one, handlers.get(one.id, ""), used.get(one.id), told.get(one.id)) for one in listed.items
    )
    return Moment(at=at, pods=pods, gauges=json.loads(status.info.get("gauges", "{}")))


def _pod(
    pod: pb.PodSandbox,
    handler: str,
    stats: pb.PodSandboxStats | None,
    metrics: pb.PodSandboxMetrics | None,
) -> PodFigures:
    stats, metrics = stats or pb.PodSandboxStats(), metrics or pb.PodSandboxMetrics()
    own = {one.name: one.value.value for one in metrics.metrics}
    moved = {_READ: 0, _WRITTEN: 0}
    for container in metrics.container_metrics:
        for one in container.metrics:
            if one.name in moved:
                moved[one.name] += one.value.value
    network = stats.linux.network.default_interface
    return PodFigures(
        id=pod.id,
        namespace=pod.metadata.namespace,
        name=session.name_of(pod),
        handler=handler,
        cpu_ns=stats.linux.cpu.usage_core_nano_seconds.value,
        **{key: own.get(name, 0) for key, name in _MEMORY.items()},
        read=moved[_READ],
        written=moved[_WRITTEN],
        received=network.rx_bytes.value,
        sent=network.tx_bytes.value,
    )
