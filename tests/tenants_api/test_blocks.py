"""What becomes of the blocks of nodes that are gone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from orlop.tenants.api import connect
from orlop.tenants.returns import BlockReturns
from tests.tenants_api.conftest import Ship
from tests.tenants_api.plane import Plane

OTHER = "agents-other"
NETWORK = "policed"


@pytest.fixture(scope="module")
def nodes(installed: Ship) -> Iterator[Plane]:
    """A cluster with a node that has a block of a network."""
    one = installed.plane
    try:
        one.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": OTHER}})
        about = {"apiVersion": "orlop.dev/v1alpha1", "kind": "Network", "metadata": {"name": NETWORK}}
        one.apply({**about, "spec": {"vni": 99, "cidr": "10.0.0.0/16", "namespaces": []}})
        _say(one, {OTHER: "10.0.1.0/24"})
        yield one
    finally:
        one.kubectl("delete", "network", NETWORK, "--ignore-not-found")
        one.kubectl("delete", "node", OTHER, "--ignore-not-found")


def _say(one: Plane, blocks: dict[str, str | None]) -> None:
    body = json.dumps({"status": {"blocks": blocks}})
    one.kubectl("patch", "network", NETWORK, "--subresource=status", "--type=merge", "-p", body)


async def test_blocks_of_nodes_that_are_gone_are_given_back(installed: Ship, nodes: Plane) -> None:
    _say(nodes, {"agents-gone": "10.0.5.0/24"})
    async with connect(installed.operator.kubeconfig) as api:
        for rest in (3600.0, 0.0):
            blocks = nodes.json("get", "network", NETWORK)["status"]["blocks"]
            assert blocks == {OTHER: "10.0.1.0/24", "agents-gone": "10.0.5.0/24"}
            await BlockReturns(api, rest=rest).look()
    assert nodes.json("get", "network", NETWORK)["status"]["blocks"] == {OTHER: "10.0.1.0/24"}


async def test_a_node_that_comes_back_in_time_keeps_its_block(installed: Ship, nodes: Plane) -> None:
    _say(nodes, {"agents-back": "10.0.6.0/24"})
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "agents-back"}}
    try:
        async with connect(installed.operator.kubeconfig) as api:
            returns = BlockReturns(api, rest=3600.0)
            await returns.look()
            nodes.apply(node)
            await returns.look()
            assert "agents-back" not in returns.leaving
            assert nodes.json("get", "network", NETWORK)["status"]["blocks"]["agents-back"]
    finally:
        nodes.kubectl("delete", "node", "agents-back", "--ignore-not-found")
        _say(nodes, {"agents-back": None})
