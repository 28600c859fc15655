"""What an agent may write: what is its node's. And what becomes of the blocks of nodes that are gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orlop.tenants.api import connect
from orlop.tenants.returns import BlockReturns
from tests.tenants_api.conftest import Ship
from tests.tenants_api.plane import Plane, eventually
from tests.tenants_api.test_guards import without

OWN, OTHER = "agents-own", "agents-other"
NETWORK = "policed"
FREE = {OWN: "10.0.2.0/24"}
FALSE: dict[str, dict[str, str | None]] = {
    "takes another's block away": {OTHER: None},
    "gives another a block": {"agents-third": "10.0.9.0/24"},
    "changes another's block": {OTHER: "10.0.9.0/24"},
    "takes a part of another's": {OWN: "10.0.1.128/28"},
    "takes another's and more": {OWN: "10.0.0.0/23"},
    "takes what is not the tenant's": {OWN: "10.9.0.0/24"},
    "takes an address in a network": {OWN: "10.0.2.1/24"},
    "takes no network": {OWN: "everything"},
}


@pytest.fixture(scope="module")
def nodes(installed: Ship) -> Iterator[Plane]:
    """A cluster with two nodes, of which the other one has a block, and a pod on each."""
    one = installed.plane
    pods = []
    try:
        for name in (OWN, OTHER):
            one.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
            spec = {"nodeName": name, "containers": [{"name": "main", "image": "busybox"}]}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"on-{name}"}, "spec": spec})
        eventually(lambda: one.try_kubectl("get", "serviceaccount", "default").returncode == 0)
        one.apply(*pods)
        about = {"apiVersion": "orlop.dev/v1alpha1", "kind": "Network", "metadata": {"name": NETWORK}}
        one.apply({**about, "spec": {"vni": 99, "cidr": "10.0.0.0/16", "namespaces": []}})
        _say(one, {OTHER: "10.0.1.0/24"})
        # kubectl reads what it patches, which the agent has no need of.
        one.kubectl("create", "clusterrole", "looking", "--verb=get", "--resource=networks.orlop.dev/status")
        account = "--serviceaccount=orlop-system:orlop-tenants-agent"
        one.kubectl("create", "clusterrolebinding", "looking", "--clusterrole=looking", account)
        yield one
    finally:
        one.kubectl("delete", "clusterrole,clusterrolebinding", "looking", "--ignore-not-found")
        one.kubectl(
            "delete", "pod", "--force", *(f"on-{name}" for name in (OWN, OTHER)), "--ignore-not-found"
        )
        one.kubectl("delete", "network", NETWORK, "--ignore-not-found")
        one.kubectl("delete", "node", OWN, OTHER, "--ignore-not-found")


@pytest.fixture(scope="module")
def agent(nodes: Plane) -> Plane:
    """The cluster as the agent of a node sees it."""
    return nodes.account("orlop-system", "orlop-tenants-agent", node=OWN)


def _patch(blocks: dict[str, str | None]) -> list[str]:
    body = json.dumps({"status": {"blocks": blocks}})
    return ["patch", "network", NETWORK, "--subresource=status", "--type=merge", "-p", body]


def _say(one: Plane, blocks: dict[str, str | None]) -> None:
    one.kubectl(*_patch(blocks))


def _try(one: Plane, *arguments: str) -> Any:
    return one.try_kubectl(*arguments, "--dry-run=server")


def test_an_agent_claims_a_block_of_its_own(nodes: Plane, agent: Plane) -> None:
    eventually(lambda: _try(agent, *_patch(dict(FREE))), lambda done: done.returncode == 0)
    _say(nodes, {OWN: "10.0.3.0/24"})
    try:
        assert "is no block of the tenant" in _try(agent, *_patch(dict(FREE))).stderr, "it has one already"
        assert _try(agent, *_patch({OWN: None})).returncode == 0
    finally:
        _say(nodes, {OWN: None})


def test_an_agent_leaves_the_blocks_of_others_alone(installed: Ship, agent: Plane) -> None:
    eventually(lambda: _try(agent, *_patch(FALSE["changes another's block"])).stderr, _refused)
    for what, blocks in FALSE.items():
        assert _refused(_try(agent, *_patch(blocks)).stderr), what
    with without(installed, "orlop-tenants-agent-blocks"):
        for blocks in FALSE.values():
            eventually(lambda blocks=blocks: _try(agent, *_patch(blocks)), _let)  # type: ignore[misc]
    eventually(lambda: _try(agent, *_patch(FALSE["changes another's block"])).stderr, _refused)


def _refused(said: str) -> bool:
    return "orlop-tenants-agent-" in said


def _let(done: Any) -> bool:
    return bool(done.returncode == 0)


def test_a_token_that_is_bound_to_no_node_claims_nothing(nodes: Plane) -> None:
    unbound = nodes.account("orlop-system", "orlop-tenants-agent")
    eventually(lambda: _try(unbound, *_patch(dict(FREE))).stderr, lambda said: "has to be bound" in said)


def _pod_patch(name: str, change: dict[str, Any]) -> list[str]:
    return ["patch", "pod", f"on-{name}", "--type=merge", "-p", json.dumps(change)]


def test_an_agent_says_the_address_of_its_own_pods_and_nothing_else(
    installed: Ship, nodes: Plane, agent: Plane
) -> None:
    address = {"metadata": {"annotations": {"orlop.dev/tenant-address": "10.0.2.2"}}}
    ways = [
        _pod_patch(OTHER, address),
        _pod_patch(OWN, {"metadata": {"annotations": {"other": "word"}}}),
        _pod_patch(OWN, {"metadata": {"labels": {"app": "web"}}}),
        _pod_patch(OWN, {"metadata": {"finalizers": ["orlop.dev/stays"]}}),
        _pod_patch(OWN, {"spec": {"activeDeadlineSeconds": 3600}}),
    ]
    eventually(lambda: _try(agent, *ways[0]).stderr, _refused)
    assert _try(agent, *_pod_patch(OWN, address)).returncode == 0
    for way in ways:
        assert _refused(_try(agent, *way).stderr), way
    with without(installed, "orlop-tenants-agent-pods"):
        for way in ways:
            eventually(lambda way=way: _try(agent, *way), _let)  # type: ignore[misc]
    eventually(lambda: _try(agent, *ways[0]).stderr, _refused)


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
