"""Metrics of operators, and the endpoint that all processes of Orlop's have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.registry import CollectorRegistry

from orlop.errors import InvalidArgument, Unavailable
from orlop.host.exporter import BoundedReading, listen_at
from orlop.tenants import operatormetrics
from orlop.tenants.operatormetrics import OperatorMetrics, figures

BLUE = {
    "metadata": {"name": "blue"},
    "status": {
        "phase": "Active",
        "namespaces": ["blue", "blue-test"],
        "use": {"pods": "3/10", "memory": "1.5Gi/4Gi", "odd": "much/4"},
    },
}
GREEN = {"metadata": {"name": "green"}}


class Listed:
    """What an API server lists, or that it does not answer."""

    def __init__(self) -> None:
        self.answers = True

    async def list(self, kind: Any) -> list[dict[str, Any]]:
        if not self.answers:
            raise Unavailable("the API server does not answer")
        return [BLUE, GREEN]


async def _asked(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return await asyncio.to_thread(registry.get_sample_value, name, labels)


async def test_what_an_operator_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operatormetrics, "FRESH", 0.0)
    api, registry = Listed(), CollectorRegistry()
    metrics = OperatorMetrics(api)  # type: ignore[arg-type]
    await asyncio.to_thread(metrics.into, registry)
    # One that waits for the lease says nothing of tenants: another one does.
    assert await _asked(registry, "orlop_tenants_leader") == 0
    assert await _asked(registry, "orlop_tenants", phase="Active") is None
    metrics.leads = True
    with metrics.rounds.call("whole"):
        pass
    assert await _asked(registry, "orlop_tenants_leader") == 1
    assert await _asked(registry, "orlop_tenants", phase="Active") == 1
    assert await _asked(registry, "orlop_tenants", phase="Pending") == 1
    assert await _asked(registry, "orlop_tenants", phase="Failed") == 0
    assert await _asked(registry, "orlop_tenant_quota_used", tenant="blue", resource="memory") == 1.5 * 2**30
    assert await _asked(registry, "orlop_tenant_quota", tenant="blue", resource="pods") == 10
    told = await _asked(registry, "orlop_tenant_namespace_info", tenant="blue", namespace="blue-test")
    assert told == 1
    assert await _asked(registry, "orlop_tenants_rounds_total", kind="whole", code="ok") == 1
    api.answers = False
    assert await _asked(registry, "orlop_tenants_leader") == 1
    assert await _asked(registry, "orlop_tenants", phase="Active") is None


def test_amounts_that_cannot_be_read_are_left_out() -> None:
    assert figures(BLUE).use == (("pods", 3.0, 10.0), ("memory", 1.5 * 2**30, 4 * 2.0**30))


async def test_what_is_read_serves_all_who_ask_for_a_while() -> None:
    count = 0

    async def read() -> int:
        nonlocal count
        count += 1
        return count

    reading = BoundedReading(read, every=3600.0)
    found = await asyncio.gather(*(asyncio.to_thread(reading.get) for _ in range(8)))
    assert found == [1] * 8


async def test_what_takes_too_long_is_not_waited_for() -> None:
    async def read() -> None:
        await asyncio.Event().wait()

    assert await asyncio.to_thread(BoundedReading(read, every=0.0, within=0.01).get) is None


@pytest.mark.parametrize("words", ["9465", ":9465", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000"])
def test_what_is_no_place_to_listen(words: str) -> None:
    with pytest.raises(InvalidArgument, match="ADDRESS:PORT"):
        listen_at(words)


async def test_without_an_address_nothing_listens() -> None:
    exporter = listen_at("")
    await exporter.start()
    await exporter.stop()
