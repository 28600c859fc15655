"""``orlop tenants top`` on a real API server, with metrics of an agent behind its proxy of nodes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily

from orlop.host.exporter import Exporter
from tests.conformance.tools import free_port
from tests.tenants_api.conftest import Ship, pod, tenant
from tests.tenants_api.plane import eventually

NODE = "machine7"


class OneAgent:
    """What an agent serves of its routers."""

    def collect(self) -> Iterator[Any]:
        family = CounterMetricFamily("orlop_tenants_bytes", "Bytes.", labels=["tenant", "link", "direction"])
        family.add_metric(["ivory", "uplink", "in"], 2048)
        yield family


def _own_address() -> str:
    """One of this machine's that is not its loopback's: to those the API server leads nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.fixture
async def agents(ship: Ship) -> AsyncIterator[int]:
    """The port on which a node has an agent's metrics."""
    address, port = _own_address(), free_port()
    exporter = Exporter(address, port)
    await exporter.start(lambda registry: registry.register(OneAgent()))  # type: ignore[arg-type]
    status = {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}
    ship.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    ship.plane.kubectl("patch", "node", NODE, *patch)
    yield port
    ship.plane.kubectl("delete", "node", NODE)
    await exporter.stop()


async def test_use_is_shown(ship: Ship, agents: int) -> None:
    await asyncio.to_thread(_shown, ship, agents)


def _shown(ship: Ship, port: int) -> None:
    ship.add(tenant("ivory", quota={"pods": 5}), tenant("jade"))
    ship.plane.kubectl("apply", "-n", "ivory", "-f", "-", stdin=pod(runtimeClassName="vm"))

    def said() -> Any:
        done = ship.plane.orlop("top", "--agents", str(port), "--sort", "received", "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def counted(found: Any) -> bool:
        return bool(found["tenants"][0]["quota"] == {"pods": "1/5"})

    found = eventually(said, counted)
    first = found["tenants"][0]
    assert (first["name"], first["received"], first["dropped"]) == ("ivory", 2048, 0)
    assert next(one for one in found["tenants"] if one["name"] == "jade")["received"] is None
    # No kubelet is behind this node, and no metrics API in this cluster.
    assert any(one.startswith(f"node {NODE}: ") for one in found["missing"])
    done = ship.plane.orlop("top", "ivory")
    assert done.stdout.splitlines()[1].split()[:3] == ["ivory", "Active", "1/5"]
    assert "missing: node machine7" in done.stderr
    assert ship.plane.orlop("top", "none").returncode == 1
    ship.end("ivory", "jade")
