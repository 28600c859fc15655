"""Addresses of the cluster's pools on a real API server: given once, counted, taken back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from orlop.errors import Aborted
from orlop.tenants import addressbook, names
from orlop.tenants.addresses import AddressKeeper
from orlop.tenants.api import connect
from tests.tenants_api.conftest import Ship, pod, tenant
from tests.tenants_api.plane import Plane, eventually

RANGES = ["192.0.2.240/30"]
ALL = {f"192.0.2.{number}" for number in range(240, 244)}
QUOTA = {"floatingIPs": 2}


def pool(*ranges: str) -> dict[str, Any]:
    about = {"apiVersion": "orlop.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "uplink"}}
    return {**about, "spec": {"ranges": list(ranges)}}


def floating(name: str, namespace: str, pod: str = "web", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "orlop.dev/v1alpha1",
        "kind": "FloatingAddress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"pod": pod, **spec},
    }


def balanced(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    about = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
    return {
        **about,
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"a": "b"}, **spec},
    }


def node(plane: Plane, name: str, address: str, *, ready: bool = True) -> None:
    """A node that serves tenants' networks, as far as the API server knows."""
    about = {"name": name, "annotations": {names.ALIASES: "10.64.9.0/24"}}
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": about})
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    status = {"addresses": [{"type": "InternalIP", "address": address}], "conditions": conditions}
    patch(plane, "node", name, "", {"status": status}, status=True)


def becomes(look: Callable[[], object], value: object) -> None:
    """Wait until something is seen to be so."""
    eventually(look, lambda found: found == value)


def patch(
    plane: Plane, kind: str, name: str, namespace: str, change: dict[str, Any], *, status: bool = False
) -> None:
    place = ["-n", namespace] if namespace else []
    where = ["--subresource=status"] if status else []
    plane.kubectl("patch", kind, name, *place, *where, "--type=merge", "-p", json.dumps(change))


def said(plane: Plane, name: str, namespace: str) -> dict[str, Any]:
    """The status of a FloatingAddress, with its conditions by type."""
    found = plane.json("get", "fip", name, "-n", namespace) or {}
    status = dict(found.get("status", {}))
    status["conditions"] = {one["type"]: one for one in status.get("conditions", ())}
    return status


def address(plane: Plane, name: str, namespace: str) -> str:
    """Wait for the address of a FloatingAddress."""
    return str(eventually(lambda: said(plane, name, namespace).get("address", "")))


def outside(plane: Plane, name: str, namespace: str) -> str:
    """The address in a Service's status, "" for none."""
    found = plane.json("get", "service", name, "-n", namespace) or {}
    ingress = found.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    return str(ingress[0]["ip"]) if ingress else ""


def refused(plane: Plane, name: str, namespace: str, reason: str) -> str:
    """Wait until a FloatingAddress has no address, for that reason; what it says."""
    becomes(
        lambda: said(plane, name, namespace).get("conditions", {}).get("AddressGiven", {}).get("reason"),
        reason,
    )
    status = said(plane, name, namespace)
    assert "address" not in status
    return str(status["message"])


def book(plane: Plane) -> dict[str, Any]:
    found = plane.json("get", "configmap", addressbook.NAME, "-n", "orlop-system") or {}
    return {key: json.loads(text) for key, text in found.get("data", {}).items() if key != ".latest"}


def used(plane: Plane, name: str) -> str:
    found = plane.json("get", "tenant", name)["status"]
    return str(found.get("use", {}).get("floatingIPs", ""))


@pytest.fixture
def pooled(ship: Ship) -> Iterator[Ship]:
    """A pool of four, and a tenant that may have two."""
    ship.plane.apply(pool(*RANGES))
    ship.add(tenant("pooled", ["pooled", "pooled-b"], quota=QUOTA, members=[{"user": "dev", "role": "edit"}]))
    yield ship
    ship.end("pooled")
    ship.plane.kubectl("delete", "addresspool", "uplink", "--ignore-not-found")
    becomes(lambda: book(ship.plane), {})


def test_addresses_are_given_and_counted_over_all_of_a_tenant(pooled: Ship) -> None:
    one = pooled.plane
    one.apply(floating("first", "pooled"), balanced("web", "pooled-b"))
    first = address(one, "first", "pooled")
    second = str(eventually(lambda: outside(one, "web", "pooled-b")))
    assert first in ALL
    assert second in ALL - {first}
    becomes(lambda: used(one, "pooled"), "2/2")
    made = one.json("get", "service", "web", "-n", "pooled-b")
    assert made["spec"]["loadBalancerClass"] == "orlop.dev/tenant", "a policy filled it in"
    assert not any(port.get("nodePort") for port in made["spec"]["ports"])
    assert made["status"]["loadBalancer"]["ingress"] == [{"ip": second, "ipMode": "Proxy"}]

    one.apply(floating("third", "pooled-b"))
    assert "all 2 floatingIPs" in refused(one, "third", "pooled-b", "OverQuota")
    becomes(lambda: one.json("get", "addresspool", "uplink")["status"], {"size": 4, "given": 2})
    # It gets its address when another is given back, whatever that was.
    one.kubectl("patch", "service", "web", "-n", "pooled-b", "-p", '{"spec":{"type":"ClusterIP"}}')
    third = address(one, "third", "pooled-b")
    assert third not in (first, second), "what was given back rests"
    becomes(lambda: outside(one, "web", "pooled-b"), "")
    pooled.change("pooled", quota={"floatingIPs": 1})
    becomes(lambda: used(one, "pooled"), "2/1")
    assert {address(one, "first", "pooled"), third} == book(one).keys()
    row = one.kubectl("get", "fip", "-n", "pooled").splitlines()
    assert row[0].split()[:4] == ["NAME", "ADDRESS", "POD", "NODE"]
    assert row[1].split()[:3] == ["first", first, "web"]


def test_what_a_tenant_had_is_free_after_its_end(pooled: Ship) -> None:
    one = pooled.plane
    pooled.add(tenant("ends", quota=QUOTA))
    one.apply(floating("a", "ends"), balanced("b", "ends"))
    address(one, "a", "ends")
    eventually(lambda: outside(one, "b", "ends"))
    pooled.end("ends")
    becomes(lambda: book(one), {})


def test_a_tenant_whose_quota_does_not_name_them_gets_none(pooled: Ship) -> None:
    pooled.add(tenant("without"))
    pooled.plane.apply(floating("one", "without"))
    assert "has no floatingIPs" in refused(pooled.plane, "one", "without", "OverQuota")
    pooled.end("without")


def test_wishes_are_heard_and_those_for_what_is_others_refused(pooled: Ship) -> None:
    one = pooled.plane
    node(one, "keeper", "192.0.2.243")
    try:
        one.apply(floating("mine", "pooled", address="192.0.2.242"))
        assert address(one, "mine", "pooled") == "192.0.2.242"
        pooled.add(tenant("rival", quota={"floatingIPs": 9}))
        for name, wish, reason in (
            ("theirs", "192.0.2.242", "Taken"),
            ("node", "192.0.2.243", "Taken"),
            ("nowhere", "198.51.100.1", "NotInPool"),
        ):
            one.apply(floating(name, "rival", address=wish))
            assert wish in refused(one, name, "rival", reason)
        one.apply(balanced("odd", "rival", loadBalancerIP="every address"))
        one.apply(balanced("web", "rival", loadBalancerIP="192.0.2.240"))
        becomes(lambda: outside(one, "web", "rival"), "192.0.2.240")
        change = json.dumps({"spec": {"address": "192.0.2.241"}})
        denied = one.refused("patch", "fip", "mine", "-n", "pooled", "--type=merge", "-p", change)
        assert "cannot be changed" in denied
        assert {at: each["tenant"] for at, each in book(one).items()} == {
            "192.0.2.242": "pooled",
            "192.0.2.240": "rival",
        }
        pooled.end("rival")
    finally:
        one.kubectl("delete", "node", "keeper")


@pytest.mark.parametrize("wrong", ["192.0.2.1/24", "fd00::/64", "10.0.0.0/8", "all", "192.0.2.1-", "1-2-3"])
def test_what_is_no_range_is_refused_at_once(ship: Ship, wrong: str) -> None:
    assert "ranges" in ship.plane.refused("create", "-f", "-", stdin=json.dumps(pool(wrong)))


def test_what_was_given_stays_when_the_pool_shrinks_and_when_operators_change(pooled: Ship) -> None:
    one = pooled.plane
    one.apply(floating("first", "pooled"), floating("second", "pooled-b"))
    given = {address(one, "first", "pooled"), address(one, "second", "pooled-b")}
    one.apply(pool("192.0.2.250-192.0.2.250"))
    becomes(lambda: said(one, "first", "pooled")["conditions"]["AddressGiven"]["reason"], "NotInPool")
    pooled.stop()
    pooled.start()
    one.kubectl("delete", "fip", "second", "-n", "pooled-b")
    one.apply(floating("third", "pooled-b"))
    assert address(one, "third", "pooled-b") == "192.0.2.250"
    assert address(one, "first", "pooled") in given
    # Nor is anything lost with the book: it is made again of what objects have.
    pooled.stop()
    before = {key: each["uid"] for key, each in book(one).items() if key == "192.0.2.250"}
    one.kubectl("delete", "configmap", addressbook.NAME, "-n", "orlop-system")
    pooled.start()
    eventually(lambda: {key: each["uid"] for key, each in book(one).items()}.items() >= before.items())


def test_an_address_follows_its_pod(pooled: Ship) -> None:
    one = pooled.plane
    one.apply(floating("first", "pooled", "elsewhere"))
    address(one, "first", "pooled")
    # One of that name in another namespace is another pod.
    one.kubectl("create", "-n", "pooled-b", "-f", "-", stdin=pod("elsewhere"))
    bind(one, "elsewhere", "pooled-b", "node-b")
    one.kubectl("create", "-n", "pooled", "-f", "-", stdin=pod("web"))
    bind(one, "web", "pooled", "node-a")
    eventually(
        lambda: said(one, "first", "pooled")["message"], lambda found: "no pod elsewhere" in str(found)
    )
    patch(one, "fip", "first", "pooled", {"spec": {"pod": "web"}})
    becomes(lambda: said(one, "first", "pooled").get("node"), "node-a")
    for each in ("node-c", "node-d"):
        one.kubectl("delete", "pod", "web", "-n", "pooled", "--force", "--grace-period=0")
        eventually(lambda: said(one, "first", "pooled").get("node"), lambda found: found is None)
        one.kubectl("create", "-n", "pooled", "-f", "-", stdin=pod("web"))
        bind(one, "web", "pooled", each)
        becomes(lambda: said(one, "first", "pooled").get("node"), each)
    uid = one.json("get", "pod", "web", "-n", "pooled")["metadata"]["uid"]
    assert [each["pod"] for each in book(one).values()] == [uid]
    for name, place in (("web", "pooled"), ("elsewhere", "pooled-b")):
        one.kubectl("delete", "pod", name, "-n", place, "--force", "--grace-period=0")


def bind(plane: Plane, name: str, namespace: str, node: str) -> None:
    """Say what a scheduler says."""
    about = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace}}
    body = json.dumps({**about, "target": {"apiVersion": "v1", "kind": "Node", "name": node}})
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
    plane.kubectl("create", "--raw", path, "-f", "-", stdin=body)


def test_a_service_moves_when_its_node_is_not_ready_and_only_then(pooled: Ship) -> None:
    one = pooled.plane
    machines = {"shore-a": "192.0.2.11", "shore-b": "192.0.2.12", "shore-c": "192.0.2.13"}
    try:
        for name, at in machines.items():
            node(one, name, at)
        blocks = {"shore-a": "10.0.0.0/24", "shore-b": "10.0.1.0/24"}
        patch(one, "network", "pooled", "", {"status": {"blocks": blocks}}, status=True)
        one.apply(balanced("web", "pooled"))
        at = str(eventually(lambda: outside(one, "web", "pooled")))
        first = str(eventually(lambda: book(one)[at].get("node", "")))
        assert first in blocks, "one that has pods of the tenant"
        other = next(name for name in blocks if name != first)
        node(one, first, machines[first], ready=False)
        becomes(lambda: book(one)[at].get("node", ""), other)
        node(one, first, machines[first])
        one.kubectl("delete", "node", "shore-c")
        node(one, "shore-c", machines["shore-c"])
        one.apply(floating("noise", "pooled"))
        address(one, "noise", "pooled")
        assert book(one)[at]["node"] == other
        one.kubectl("delete", "node", other)
        becomes(lambda: book(one)[at].get("node", ""), first)
        one.kubectl("delete", "node", first)
        becomes(lambda: book(one)[at].get("node", ""), "")
        assert outside(one, "web", "pooled") == at, "the address stays"
    finally:
        one.kubectl("delete", "node", *machines, "--ignore-not-found")


def test_members_make_them_and_nobody_writes_what_is_said_of_them(pooled: Ship) -> None:
    one, dev = pooled.plane, pooled.member("pooled", "dev")
    becomes(lambda: dev.try_kubectl("get", "fip", "-n", "pooled").returncode, (0))
    made = json.dumps(floating("mine", "pooled"))
    dev.kubectl("create", "-f", "-", stdin=made)
    at = address(one, "mine", "pooled")
    lie = json.dumps({"status": {"address": "192.0.2.1", "node": "node-a"}})
    for kind in ("fip/mine", "service/web"):
        if kind.startswith("service"):
            dev.kubectl("create", "-f", "-", stdin=json.dumps(balanced("web", "pooled")))
            eventually(lambda: outside(one, "web", "pooled"))
        denied = dev.refused("patch", kind, "-n", "pooled", "--subresource=status", "--type=merge", "-p", lie)
        assert "Forbidden" in denied or "forbidden" in denied
    # Written as a part of the object it is left out.
    dev.try_kubectl("patch", "fip", "mine", "-n", "pooled", "--type=merge", "-p", lie)
    assert said(one, "mine", "pooled")["address"] == at
    for call in (
        ("get", "configmap", addressbook.NAME, "-n", "orlop-system"),
        ("create", "-f", "-"),
        ("patch", "addresspool", "uplink", "--type=merge", "-p", '{"spec":{"ranges":[]}}'),
    ):
        stdin = json.dumps(floating("foreign", "default")) if "create" in call else ""
        assert "forbidden" in dev.refused(*call, stdin=stdin)


class Slow:
    """An API as an operator sees it that another operator always overtakes before it writes."""

    def __init__(self, api: Any, barrier: asyncio.Barrier) -> None:
        self._api, self._barrier = api, barrier

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._api, name)
        if name not in ("replace", "create"):
            return inner

        async def call(document: Any) -> Any:
            # Both have read the same before one writes.
            with contextlib.suppress(TimeoutError, asyncio.BrokenBarrierError):
                async with asyncio.timeout(1):
                    await self._barrier.wait()
            return await inner(document)

        return call


@contextlib.asynccontextmanager
async def keeper(ship: Ship, barrier: asyncio.Barrier) -> AsyncIterator[AddressKeeper]:
    """An operator's part in addresses that has read all there is, and has no lease."""
    async with connect(ship.operator.kubeconfig) as api:
        one = AddressKeeper(Slow(api, barrier), lambda tenant: None)  # type: ignore[arg-type]
        await one.load()
        yield one


async def test_two_operators_at_once_give_no_address_twice(pooled: Ship) -> None:
    plane = pooled.plane
    pooled.add(tenant("twin", quota={"floatingIPs": 1}))
    pooled.stop()
    plane.apply(*(floating(f"f{number}", space) for number in range(2) for space in ("pooled", "twin")))
    barrier = asyncio.Barrier(2)
    async with keeper(pooled, barrier) as first, keeper(pooled, barrier) as second:

        async def work(one: AddressKeeper) -> int:
            lost = 0
            for _ in range(3):
                try:
                    await one.round()
                except Aborted:
                    lost += 1
            return lost

        lost = await asyncio.gather(work(first), work(second))
        assert sum(lost) == 1, "one was overtaken, and read again"
    found = book(plane)
    assert len({each["uid"] for each in found.values()}) == len(found) == 3
    assert [each["tenant"] for each in found.values()].count("twin") == 1
    pooled.start()
    pooled.end("twin")
