"""What tenants use, of what kubelets, the metrics API and agents say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orlop.errors import InvalidArgument, NotFound, Unavailable
from orlop.tenants.api import NAMESPACES, NODES, TENANTS
from orlop.tenants.use import POD_METRICS, pod_metrics, summary, traffic, use

SUMMARY = {
    "node": {"nodeName": "node1"},
    "pods": [
        {
            "podRef": {"name": "web", "namespace": "blue", "uid": "1"},
            "cpu": {"usageNanoCores": 250_000_000},
            "memory": {"workingSetBytes": 1 << 20},
        },
        {"podRef": {"name": "young", "namespace": "blue", "uid": "2"}},
    ],
}
METRICS = b"""# TYPE orlop_tenants_bytes counter
orlop_tenants_bytes_total{tenant="blue",link="uplink",direction="in"} 100.0
orlop_tenants_bytes_total{tenant="blue",link="vxlan",direction="in"} 20.0
orlop_tenants_bytes_total{tenant="blue",link="uplink",direction="out"} 7.0
# TYPE orlop_tenants_drops counter
orlop_tenants_drops_total{tenant="blue",guard="nodes"} 3.0
orlop_tenants_drops_total{tenant="",guard="node"} 9.0
"""
POD = {
    "metadata": {"name": "web", "namespace": "blue"},
    "containers": [
        {"name": "a", "usage": {"cpu": "250m", "memory": "1Mi"}},
        {"name": "b", "usage": {"cpu": "1000000n", "memory": "512Ki"}},
    ],
}


class Answers:
    """An API server with two nodes, of which the second does not answer; ``metrics`` is its metrics API."""

    def __init__(self, metrics: list[dict[str, Any]] | None) -> None:
        self._metrics = metrics

    async def list(self, kind: Any) -> list[dict[str, Any]]:
        if kind is POD_METRICS:
            if self._metrics is None:
                raise NotFound("the server could not find the requested resource")
            return self._metrics
        return {
            TENANTS: [
                {"metadata": {"name": "blue"}, "status": {"phase": "Active", "use": {"pods": "2/10"}}},
                {"metadata": {"name": "green"}},
            ],
            NAMESPACES: [
                {"metadata": {"name": "blue", "labels": {"orlop.dev/tenant": "blue"}}},
                {"metadata": {"name": "plain"}},
            ],
            NODES: [{"metadata": {"name": name}} for name in ("node1", "node2")],
        }[kind]

    async def read(self, path: str) -> bytes:
        if "node1" not in path:
            raise Unavailable("the API server says: no route to it")
        return METRICS if path.endswith("/metrics") else json.dumps(SUMMARY).encode()


def test_a_kubelets_summary() -> None:
    web, young = summary(json.dumps(SUMMARY).encode())
    assert (web.cpu, web.memory, young.cpu, young.memory) == (0.25, 1 << 20, 0.0, 0)


def test_the_metrics_api() -> None:
    found = pod_metrics(POD)
    assert (found.cpu, found.memory) == (0.251, (1 << 20) + (512 << 10))
    with pytest.raises(InvalidArgument):
        pod_metrics({**POD, "containers": [{"usage": {"cpu": "much"}}]})


def test_an_agents_metrics() -> None:
    assert traffic(METRICS) == {"blue": (120, 7, 3)}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"pods": 3}', b"\xff", b'{"pods": [{}]}'])
def test_what_is_no_summary(data: bytes) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        summary(data)


@pytest.mark.parametrize(
    "data", [b"orlop_tenants_bytes_total{tenant=", b"\xff\xfe", b'a{tenant="b"} Inf x y']
)
def test_what_are_no_metrics(data: bytes) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        traffic(data)


async def test_without_a_metrics_api_kubelets_are_asked() -> None:
    found = await use(Answers(None), 9465)  # type: ignore[arg-type]
    blue, green = found.tenants
    assert (blue.quota, blue.cpu, blue.memory) == ({"pods": "2/10"}, 0.25, 1 << 20)
    assert (blue.received, blue.sent, blue.dropped) == (120, 7, 3)
    assert (green.phase, green.cpu, green.dropped) == ("Pending", 0.0, None)
    assert [one.partition(":")[0] for one in found.missing] == ["node node2", "node node2"]


async def test_with_one_nobody_else_is_asked() -> None:
    found = await use(Answers([POD]), 0)  # type: ignore[arg-type]
    assert found.tenants[0].cpu == 0.251
    assert found.tenants[0].received is None
    assert found.missing == []
