"""What tenants use now: of their quotas, of processors and memory; their traffic, and what was dropped.

Processors and memory come from the metrics API where the cluster has it, and else from each kubelet; traffic
and drops from the agents' metrics. Both of the latter go through the API server's proxy of nodes. A node that
does not answer is named, and what is on it is missing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from orlop.errors import InvalidArgument, NotFound, OrlopError, Unavailable
from orlop.host.tasks import together
from orlop.tenants import names
from orlop.tenants.api import NAMESPACES, NODES, TENANTS, Api, Document, Resource
from orlop.tenants.model import quantity
from orlop.value import UNREADABLE

T = TypeVar("T")

POD_METRICS: Final = Resource(
    group="metrics.k8s.io", version="v1beta1", kind="PodMetrics", plural="pods", namespaced=True
)
AT_ONCE: Final = 16
NODE_TIME: Final = 15.0
"""Seconds for which a node is waited for."""


@dataclass(kw_only=True)
class PodNow:
    """What a pod uses: processors, and bytes of memory that cannot be given back at once."""

    namespace: str
    name: str
    cpu: float = 0.0
    memory: int = 0


@dataclass(kw_only=True)
class TenantUse:
    """What a tenant uses. ``quota`` is used and allowed by resource, as the Tenant says it.

    ``cpu`` is processors, ``memory`` bytes. ``received`` and ``sent`` are bytes over all its routers' links
    since these were made, ``dropped`` packets of its that guards stopped; None when no agent told.
    """

    name: str
    phase: str
    quota: dict[str, str] = field(default_factory=dict)
    cpu: float = 0.0
    memory: int = 0
    received: int | None = None
    sent: int | None = None
    dropped: int | None = None
    pods: list[PodNow] = field(default_factory=list)


@dataclass(kw_only=True)
class ClusterUse:
    """All tenants, and what could not be found out."""

    tenants: list[TenantUse]
    missing: list[str] = field(default_factory=list)


class _Amount(msgspec.Struct):
    usage_nano_cores: int = msgspec.field(name="usageNanoCores", default=0)
    working_set_bytes: int = msgspec.field(name="workingSetBytes", default=0)


class _Named(msgspec.Struct):
    name: str
    namespace: str


class _PodSummary(msgspec.Struct):
    pod_ref: _Named = msgspec.field(name="podRef")
    cpu: _Amount = msgspec.field(default_factory=_Amount)
    memory: _Amount = msgspec.field(default_factory=_Amount)


class _Summary(msgspec.Struct):
    """The part of a kubelet's summary that is read (k8s.io/kubelet/pkg/apis/stats/v1alpha1)."""

    pods: list[_PodSummary] = msgspec.field(default_factory=list)


def summary(data: bytes) -> list[PodNow]:
    """The pods of a kubelet's summary. Raises Unavailable when it is none."""
    try:
        read = msgspec.json.decode(data, type=_Summary)
    except UNREADABLE as error:
        raise Unavailable(f"its summary cannot be read: {error}") from error
    return [
        PodNow(
            namespace=one.pod_ref.namespace,
            name=one.pod_ref.name,
            cpu=one.cpu.usage_nano_cores / 1e9,
            memory=one.memory.working_set_bytes,
        )
        for one in read.pods
    ]


def pod_metrics(document: Document) -> PodNow:
    """A pod of the metrics API. Raises InvalidArgument for an amount that is none."""
    about = document["metadata"]
    used = [one.get("usage", {}) for one in document.get("containers") or ()]
    return PodNow(
        namespace=about["namespace"],
        name=about["name"],
        cpu=float(sum(quantity(one.get("cpu", "0")) for one in used)),
        memory=int(sum(quantity(one.get("memory", "0")) for one in used)),
    )


def traffic(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Of an agent's metrics, by tenant: bytes received and sent by its pods, packets dropped in its router.

    Raises Unavailable when they are none.
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    try:
        for family in text_string_to_metric_families(data.decode()):
            for sample in family.samples:
                tenant = sample.labels.get("tenant", "")
                if not tenant:
                    continue
                if sample.name == "orlop_tenants_bytes_total":
                    # What comes into the router over these links goes to pods.
                    found[tenant][0 if sample.labels.get("direction") == "in" else 1] += int(sample.value)
                elif sample.name == "orlop_tenants_drops_total":
                    found[tenant][2] += int(sample.value)
    except (ValueError, OverflowError) as error:
        raise Unavailable(f"its agent's metrics cannot be read: {error}") from error
    return {tenant: (one[0], one[1], one[2]) for tenant, one in found.items()}


async def use(api: Api, port: int) -> ClusterUse:
    """Ask for all of it; ``port`` is where agents serve metrics on their node's address, 0 for nowhere.

    Raises OrlopError when the API server does not answer.
    """
    tenants, spaces, nodes = await together(api.list(TENANTS), api.list(NAMESPACES), api.list(NODES))
    missing: list[str] = []
    everywhere = [one["metadata"]["name"] for one in nodes]
    pods = await _pods(api, everywhere, missing)
    moved = await _moved(api, everywhere, port, missing) if port else {}
    owners = {
        one["metadata"]["name"]: (one["metadata"].get("labels") or {}).get(names.TENANT, "") for one in spaces
    }
    found = {one["metadata"]["name"]: _tenant(one) for one in tenants}
    for pod in pods:
        if (one := found.get(owners.get(pod.namespace, ""))) is not None:
            one.pods.append(pod)
            one.cpu += pod.cpu
            one.memory += pod.memory
    for name, (received, sent, dropped) in moved.items():
        if (one := found.get(name)) is not None:
            one.received, one.sent, one.dropped = received, sent, dropped
    return ClusterUse(tenants=list(found.values()), missing=missing)


def _tenant(document: Mapping[str, Any]) -> TenantUse:
    status = document.get("status", {})
    return TenantUse(
        name=document["metadata"]["name"],
        phase=status.get("phase", "Pending"),
        quota=dict(status.get("use") or {}),
    )


async def _pods(api: Api, nodes: Iterable[str], missing: list[str]) -> list[PodNow]:
    try:
        listed = await api.list(POD_METRICS)
    except (NotFound, Unavailable):
        # There is none, or what serves it is not there.
        told = await _each(
            nodes, lambda node: api.read(f"/api/v1/nodes/{node}/proxy/stats/summary"), summary, missing
        )
        return [pod for pods in told for pod in pods]
    found = []
    for one in listed:
        try:
            found.append(pod_metrics(one))
        except InvalidArgument as error:
            missing.append(f"pod {one['metadata']['namespace']}/{one['metadata']['name']}: {error}")
    return found


async def _moved(
    api: Api, nodes: Iterable[str], port: int, missing: list[str]
) -> dict[str, tuple[int, int, int]]:
    told = await _each(
        nodes, lambda node: api.read(f"/api/v1/nodes/http:{node}:{port}/proxy/metrics"), traffic, missing
    )
    found: dict[str, tuple[int, int, int]] = {}
    for one in told:
        for tenant, amounts in one.items():
            before = found.get(tenant, (0, 0, 0))
            found[tenant] = (before[0] + amounts[0], before[1] + amounts[1], before[2] + amounts[2])
    return found


async def _each(
    nodes: Iterable[str],
    ask: Callable[[str], Coroutine[Any, Any, bytes]],
    read: Callable[[bytes], T],
    missing: list[str],
) -> list[T]:
    """What each node says; those that do not are among ``missing``."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(node: str) -> T | None:
        try:
            async with turns, asyncio.timeout(NODE_TIME):
                return read(await ask(node))
        except TimeoutError:
            missing.append(f"node {node}: it does not answer")
        except OrlopError as error:
            missing.append(f"node {node}: {error}")
        return None

    told = await together(*(one(node) for node in nodes))
    return [found for found in told if found is not None]
