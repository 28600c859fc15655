"""Two tenants with equal addresses on two nodes: what serves, what is reached, and what is not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from orlop.tenants import names
from tests.cluster import layout
from tests.cluster.room import eventually
from tests.tenants_cluster.conftest import BOTH
from tests.tenants_cluster.room import PORT, TenantCluster, server

KUBELET, API = 10250, layout.API_PORT


def _pods(namespace: str) -> list[str]:
    return [f"{namespace}{number}" for number in (1, 2)]


def test_tenants_have_the_same_addresses_and_pods_the_cluster_can_tell_apart(here: TenantCluster) -> None:
    aliases = set()
    for name in BOTH:
        assert [here.address(name, pod) for pod in _pods(name)] == ["10.0.0.2", "10.0.1.2"]
        for pod, node in zip(_pods(name), here.nodes, strict=True):
            alias = here.alias(name, pod)
            assert alias.startswith(node.place.pods.removesuffix("0/24"))
            aliases.add(alias)
    assert len(aliases) == 4


def test_a_pod_sees_its_tenants_address_and_the_cluster_its_alias(here: TenantCluster) -> None:
    said = here.inside("blue", "blue1", "ip", "-4", "address", "show", "eth0").out
    assert "10.0.0.2/32" in said
    assert here.alias("blue", "blue1") not in said
    routes = here.inside("blue", "blue1", "ip", "route").out
    assert "default via 10.0.0.1" in routes


def test_pods_of_a_tenant_reach_each_other_on_both_nodes(here: TenantCluster) -> None:
    for name in BOTH:
        for one, other in itertools.product(_pods(name), _pods(name)):
            done = here.fetch(name, one, f"http://{here.address(name, other)}:{PORT}/hostname")
            assert done.out == other, f"{one} to {other}: {done}"


@pytest.fixture(scope="module")
def third(here: TenantCluster) -> Iterator[str]:
    """The address of a pod of green that no pod of blue has."""
    here.run_pods(server("green3", "green", here.nodes[1]))
    yield here.address("green", "green3")
    here.cluster.kubectl("delete", "pod", "green3", "--namespace=green")


@pytest.fixture(scope="module")
def stranger(here: TenantCluster) -> Iterator[str]:
    """A pod of no tenant, with ports of nodes; the address that the cluster gave it."""
    one = server("stranger", "default", here.nodes[1])
    one["spec"]["runtimeClassName"] = "process"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "stranger"},
        "spec": {"type": "NodePort", "selector": {"app": "stranger"}, "ports": [{"port": PORT}]},
    }
    here.run_pods(one)
    here.cluster.apply(service)
    yield here.alias("default", "stranger")
    here.cluster.kubectl("delete", "pod,service", "stranger")


def test_a_tenant_is_reached_by_nobody_elses_pods(here: TenantCluster, third: str, stranger: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "green"},
        "spec": {"selector": {"app": "green1"}, "ports": [{"port": PORT}]},
    }
    here.cluster.apply(service)
    cluster_ip = here.cluster.json("get", "service", "web", "--namespace=green")["spec"]["clusterIP"]
    # The Service works, as who is on a node sees.
    eventually(
        lambda: (
            here.nodes[0]
            .run("curl", "-sS", "-m", "5", f"http://{cluster_ip}:{PORT}/hostname", check=False)
            .out
        ),
        lambda said: said == "green1",
    )
    aliases = [here.alias("green", pod) for pod in (*_pods("green"), "green3")]
    urls = [f"http://{address}:{PORT}/hostname" for address in (third, cluster_ip, *aliases)]
    assert here.answered("blue", "blue1", *urls) == []
    assert here.answered("default", "stranger", *urls) == []
    here.cluster.kubectl("delete", "service", "web", "--namespace=green")


def test_a_tenant_reaches_neither_nodes_nor_the_cluster(here: TenantCluster, stranger: str) -> None:
    service = here.cluster.json("get", "service", "stranger")["spec"]
    node_port = service["ports"][0]["nodePort"]
    urls = [f"http://{stranger}:{PORT}/hostname", f"http://{service['clusterIP']}:{PORT}/hostname"]
    for node in here.nodes:
        urls += [f"https://{node.address}:{KUBELET}/healthz", f"http://{node.address}:{node_port}/hostname"]
    urls += [f"https://{layout.API_SERVICE}/healthz", "http://169.254.169.254/", "http://169.254.1.1/"]
    assert here.answered("blue", "blue1", *urls) == []
    # They are there: a pod of no tenant reaches them.
    for url in urls[1:2] + urls[3:4]:
        done = here.fetch("default", "stranger", url)
        assert done.out == "stranger", f"{url}: {done}"


def test_a_pod_reaches_the_world_as_its_node(here: TenantCluster) -> None:
    """The world is where the control plane is: it is no node."""
    for pod, node in zip(_pods("blue"), here.nodes, strict=True):
        script = 'curl -k -sS -m 30 -o /dev/null -w %{http_code} "$0"'
        done = here.inside("blue", pod, "sh", "-c", script, f"https://{layout.CONTROL}:{API}/healthz")
        assert done.out == "200", f"{node.name}: {done}"


def test_pods_of_no_tenant_are_as_before(here: TenantCluster, stranger: str) -> None:
    assert stranger.rsplit(".", 1)[0] == here.nodes[1].place.pods.rsplit(".", 1)[0]
    assert int(stranger.rsplit(".", 1)[1]) < 128
    name = f"http://stranger.default.svc.{layout.DOMAIN}:{PORT}/hostname"
    eventually(lambda: here.fetch("default", "stranger", name).out, lambda said: said == "stranger")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80, "hostPort": 80}]}]},
            "hostPort",
        ),
        ({"runtimeClassName": "process"}, "runtimeClassName: vm"),
        ({"hostNetwork": True}, "hostNetwork"),
        ({"nodeName": "node1"}, "nodeName"),
    ],
    ids=["port of the node", "process", "network of the node", "node"],
)
def test_no_pod_of_a_tenant_gets(change: dict[str, object], says: str, here: TenantCluster) -> None:
    one = server("refused", "blue", here.nodes[0])
    one["spec"] |= change
    done = here.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(one), check=False)
    assert done.code != 0
    assert says in done.err


def test_the_address_is_told_in_an_annotation(here: TenantCluster) -> None:
    one = server("told", "blue", here.nodes[0])
    main = one["spec"]["containers"][0]
    main["env"] = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    main["volumeMounts"] = [{"name": "about", "mountPath": "/about"}]
    field = {"fieldPath": f"metadata.annotations['{names.ADDRESS}']"}
    items = [{"path": "address", "fieldRef": field}]
    one["spec"]["volumes"] = [{"name": "about", "downwardAPI": {"items": items}}]
    here.run_pods(one)
    try:
        assert here.inside("blue", "told", "printenv", "POD_IP").out.strip() == here.alias("blue", "told")
        address = here.address("blue", "told")
        # The kubelet renews it when it looks at the pod the next time.
        eventually(
            lambda: here.inside("blue", "told", "cat", "/about/address").out, lambda said: said == address
        )
    finally:
        here.cluster.kubectl("delete", "pod", "told", "--namespace=blue")
