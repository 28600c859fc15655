"""A tenant's life on a real API server: made, changed, refused, deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tenants_api.conftest import Ship, pod, tenant
from tests.tenants_api.plane import Plane, eventually

MEMBERS = [{"user": "dev-1", "role": "admin"}, {"group": "blue-devs", "role": "edit"}]
QUOTA = {"pods": 10, "cpu": "4", "memory": "8Gi", "storage": "1Ti"}


def bound(plane: Plane, namespace: str) -> dict[str, set[str]]:
    """Who has which role by the operator."""
    found = plane.json("get", "rolebindings", "-n", namespace, "-l", "orlop.dev/tenant")["items"]
    return {one["roleRef"]["name"]: {each["name"] for each in one["subjects"]} for one in found}


def runtime(name: str, handler: str) -> dict[str, Any]:
    about = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}}
    return {**about, "handler": handler}


def hard(plane: Plane, namespace: str) -> dict[str, str]:
    found = plane.json("get", "resourcequota", "orlop-tenant", "-n", namespace)
    return dict(found["spec"]["hard"]) if found else {}


def test_a_tenant_gets_all_that_it_asks_for(ship: Ship) -> None:
    network = {
        "cidr": "10.0.0.0/16",
        "dns": "blue.example",
        "egress": {"allow": ["192.0.2.0/24"], "deny": []},
    }
    ship.add(tenant("blue", ["blue", "blue-test"], members=MEMBERS, quota=QUOTA, network=network))
    one = ship.plane
    for place in ("blue", "blue-test"):
        labels = one.json("get", "namespace", place)["metadata"]["labels"]
        assert labels["orlop.dev/tenant"] == "blue"
        assert labels["orlop.dev/runtime-class"] == "vm"
        assert bound(one, place) == {"admin": {"dev-1", "blue.dev-1"}, "edit": {"blue-devs"}}
        assert hard(one, place)["pods"] == "5"
        assert one.json("get", "limitrange", "orlop-tenant", "-n", place)
        rules = one.json("get", "networkpolicy", "orlop-tenant", "-n", place)["spec"]
        assert rules["egress"][-1] == {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}
    made = one.json("get", "network", "blue")["spec"]
    assert (made["cidr"], made["dns"]) == ("10.0.0.0/16", "blue.example")
    assert made["namespaces"] == ["blue", "blue-test"]
    status = one.json("get", "tenant", "blue")["status"]
    assert status["vni"] == made["vni"]
    assert status["use"] == {"pods": "0/10", "cpu": "0/4", "memory": "0/8Gi", "storage": "0/1Ti"}
    assert {each["status"] for each in status["conditions"]} == {"True"}
    columns = one.kubectl("get", "tenants").splitlines()
    assert columns[0].split() == ["NAME", "PHASE", "MEMBERS", "PODS", "CPU", "MEMORY", "STORAGE", "AGE"]
    row = next(line.split() for line in columns if line.startswith("blue "))
    assert row[1:7] == ["Active", "2", "0/10", "0/4", "0/8Gi", "0/1Ti"]
    assert "blue,blue-test" in one.orlop("ls").stdout
    assert "10.0.0.0/16, VNI" in one.orlop("show", "blue").stdout
    ship.end("blue")


def test_each_field_can_be_changed(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("fields", ["fields", "fields-b"], members=MEMBERS, quota=QUOTA))
    vni = one.json("get", "network", "fields")["spec"]["vni"]

    ship.change("fields", members=[{"user": "dev-2", "role": "view"}])
    assert bound(one, "fields") == {"view": {"dev-2", "fields.dev-2"}}
    accounts = one.names("serviceaccounts", "-n", "orlop-members", "-l", "orlop.dev/tenant=fields")
    assert accounts == {"fields.dev-2"}

    ship.change("fields", quota={"pods": 4, "cpu": None, "memory": None, "storage": None})
    eventually(
        lambda: [hard(one, place) for place in ("fields", "fields-b")], [{"pods": "2"}, {"pods": "2"}].__eq__
    )
    assert one.json("get", "limitrange", "orlop-tenant", "-n", "fields") is None

    ship.change("fields", quota={"pods": None})
    assert hard(one, "fields") == {}

    ship.change("fields", namespaces=["fields", "fields-c"])
    ship.gone("namespace", "fields-b")
    assert bound(one, "fields-c") == {"view": {"dev-2", "fields.dev-2"}}

    ship.change("fields", network={"dns": "new.example", "egress": {"allow": [], "deny": []}})
    network = one.json("get", "network", "fields")["spec"]
    assert network["dns"] == "new.example"
    assert network["egress"] == {"allow": [], "deny": []}
    assert network["namespaces"] == ["fields", "fields-c"]
    assert network["vni"] == vni
    assert len(one.json("get", "networkpolicy", "orlop-tenant", "-n", "fields")["spec"]["egress"]) == 2

    one.apply(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "vm-2"},
            "handler": "vm",
        }
    )
    ship.change("fields", runtimeClass="vm-2")
    labels = one.json("get", "namespace", "fields")["metadata"]["labels"]
    assert labels["orlop.dev/runtime-class"] == "vm-2"

    change = json.dumps({"spec": {"network": {"cidr": "10.1.0.0/16"}}})
    assert "cannot be changed" in one.refused("patch", "tenant", "fields", "--type=merge", "-p", change)
    ship.end("fields")


@pytest.mark.parametrize(
    ("name", "spec", "why"),
    [
        ("a.b", {}, "a tenant's name"),
        ("kube", {"namespaces": ["kube-system"]}, "no tenant's"),
        ("own", {"namespaces": ["orlop-members"]}, "no tenant's"),
        ("none", {"namespaces": []}, "spec.namespaces"),
        ("both", {"members": [{"user": "a", "group": "b", "role": "view"}]}, "a user or a group"),
        ("nobody", {"members": [{"role": "view"}]}, "a user or a group"),
        ("all", {"members": [{"group": "system:authenticated", "role": "view"}]}, "Kubernetes' own"),
        ("root", {"members": [{"user": "system:admin", "role": "view"}]}, "Kubernetes' own"),
        ("owner", {"members": [{"user": "a", "role": "cluster-admin"}]}, "Unsupported value"),
        ("less", {"quota": {"pods": -1}}, "spec.quota.pods"),
        ("minus", {"quota": {"cpu": -1}}, "not negative"),
        ("words", {"quota": {"memory": "much"}}, "spec.quota.memory"),
        ("unknown", {"quota": {"gpus": 2}}, "unknown field"),
        ("owing", {"quota": {"floatingIPs": -1}}, "spec.quota.floatingIPs"),
        ("host", {"network": {"cidr": "10.0.0.1/16"}}, "first address"),
        ("six", {"network": {"cidr": "fd00::/64"}}, "IPv4"),
        ("tiny", {"network": {"cidr": "10.0.0.0/30"}}, "IPv4"),
        ("where", {"network": {"egress": {"deny": ["10.0.0.0/33"]}}}, "egress.deny"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    ship: Ship, name: str, spec: dict[str, Any], why: str
) -> None:
    document = tenant(name)
    document["spec"].update(spec)
    assert why in ship.plane.refused("create", "-f", "-", stdin=json.dumps(document))


def test_a_namespace_that_somebody_else_made_is_refused_and_left_alone(ship: Ship) -> None:
    one = ship.plane
    one.kubectl("create", "namespace", "theirs")
    one.kubectl("create", "configmap", "kept", "-n", "theirs")
    before = one.json("get", "namespace", "theirs")
    ship.add(tenant("greedy", ["greedy", "theirs"], members=MEMBERS), phase="Failed")
    status = one.json("get", "tenant", "greedy")["status"]
    assert "namespace theirs is not made by a tenant" in status["message"]
    assert status["namespaces"] == ["greedy"], "what can be made is made"
    assert not bound(one, "theirs")
    ship.end("greedy")
    assert one.json("get", "namespace", "theirs") == before
    assert "kept" in one.names("configmaps", "-n", "theirs")
    one.kubectl("delete", "namespace", "theirs")


def test_a_namespace_is_of_the_tenant_that_was_first(ship: Ship) -> None:
    ship.add(tenant("first", ["shared"]))
    ship.add(tenant("second", ["shared"], members=MEMBERS), phase="Failed")
    assert "of tenant first" in ship.plane.json("get", "tenant", "second")["status"]["message"]
    assert not bound(ship.plane, "shared")
    ship.end("second")
    assert ship.plane.json("get", "namespace", "shared")["metadata"]["labels"]["orlop.dev/tenant"] == "first"
    ship.end("first")


def test_a_tenant_of_an_old_name_is_another_tenant(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("again", members=MEMBERS))
    member, vni = ship.member("again", "dev-1"), one.json("get", "tenant", "again")["status"]["vni"]
    one.kubectl("create", "configmap", "old", "-n", "again")
    one.kubectl("delete", "tenant", "again", "--wait=false")
    # The one that goes takes no more wishes; the next one waits until it has gone.
    eventually(
        lambda: (
            one.try_kubectl(
                "create", "-f", "-", stdin=json.dumps(tenant("again", members=MEMBERS))
            ).returncode
            == 0
        )
    )
    ship.settled("again")
    assert "old" not in one.names("configmaps", "-n", "again")
    assert one.json("get", "tenant", "again")["status"]["vni"] != vni
    assert "Unauthorized" in member.refused("get", "pods") or "must be logged in" in member.refused(
        "get", "pods"
    )
    ship.end("again")


def test_without_its_runtime_class_nobody_gets_in(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("early", runtimeClass="late", members=MEMBERS), phase="Pending")
    assert "there is no RuntimeClass late" in one.json("get", "tenant", "early")["status"]["message"]
    assert not bound(one, "early")
    assert "no RuntimeClass for its pods" in one.refused("create", "-n", "early", "-f", "-", stdin=pod())
    late = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "late"},
        "handler": "process",
    }
    one.apply(late)
    ship.settled("early", "Failed")
    assert "give a pod a virtual machine" in one.json("get", "tenant", "early")["status"]["message"]
    assert not bound(one, "early")
    one.kubectl("delete", "runtimeclass", "late")
    one.apply(runtime("late", "vm"))
    ship.settled("early")
    assert bound(one, "early")
    ship.end("early")


def test_the_quota_goes_where_it_is_used_and_never_beyond(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("count", ["count", "count-b"], quota={"pods": 6, "cpu": "30"}))

    def started(place: str) -> int:
        """How many pods a namespace takes within a while."""
        taken = 0
        for number in range(8):
            # What the other namespace has is moved when this one needs it.
            for _ in range(60):
                done = one.try_kubectl("create", "-n", place, "-f", "-", stdin=pod(f"p{number}"))
                if done.returncode == 0 or taken == 6:
                    break
                assert "exceeded quota" in done.stderr, done.stderr
            taken += done.returncode == 0
        return taken

    assert started("count") == 6
    assert "exceeded quota" in one.refused("create", "-n", "count-b", "-f", "-", stdin=pod())
    eventually(
        lambda: one.json("get", "tenant", "count")["status"]["use"], {"pods": "6/6", "cpu": "3600m/30"}.__eq__
    )
    assert "limits.cpu" in hard(one, "count")
    one.kubectl("delete", "pods", "--all", "-n", "count", "--force", "--grace-period=0")
    eventually(lambda: hard(one, "count-b").get("pods"), lambda found: found == "3")
    one.kubectl("create", "-n", "count-b", "-f", "-", stdin=pod())
    ship.end("count")


def everything(plane: Plane) -> dict[str, str]:
    """Every object of the cluster but those that come and go by themselves, with its uid."""
    kinds = plane.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    left_out = {"events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses"}
    wanted = ",".join(kind for kind in kinds if kind not in left_out)
    found = plane.json("get", wanted, "--all-namespaces")["items"]
    return {
        f"{one['kind']} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}": one["metadata"][
            "uid"
        ]
        for one in found
    }


def test_the_end_takes_all_of_a_tenant_and_nothing_else(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("stays", members=MEMBERS, quota=QUOTA))
    ship.add(tenant("warm-up"))  # so that the numbers' ledger is there
    ship.end("warm-up")
    before = everything(one)
    ship.add(tenant("leaves", ["leaves", "leaves-b"], members=MEMBERS, quota=QUOTA))
    one.kubectl("create", "-n", "leaves", "-f", "-", stdin=pod())
    one.kubectl("create", "secret", "generic", "kept", "-n", "leaves-b")
    assert len(everything(one)) > len(before) + 15
    one.kubectl("delete", "-n", "leaves", "pod", "one", "--force", "--grace-period=0")
    ship.end("leaves")
    assert everything(one) == before
    assert "leaves" not in one.json("get", "configmap", "orlop-tenants-vnis", "-n", "orlop-system")["data"]
    ship.end("stays")


def test_an_end_that_waits_says_what_for(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("held", members=MEMBERS))
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "finalizers": ["example.org/stays"]},
    }
    one.kubectl("create", "-n", "held", "-f", "-", stdin=json.dumps(held))
    member = ship.member("held", "dev-1")
    one.kubectl("delete", "tenant", "held", "--wait=false")
    eventually(
        lambda: (one.json("get", "tenant", "held")["status"]).get("waitsFor", []),
        lambda found: any("example.org/stays" in each for each in found),
    )
    assert one.json("get", "tenant", "held")["status"]["phase"] == "Terminating"
    assert member.try_kubectl("get", "pods").returncode != 0, "its members are out by now"
    one.kubectl(
        "patch", "configmap", "held", "-n", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
    )
    ship.gone("tenant", "held")


def test_what_is_settled_is_not_written_again(ship: Ship) -> None:
    one = ship.plane
    ship.add(tenant("quiet", members=MEMBERS, quota=QUOTA))

    def versions() -> dict[str, str]:
        kinds = "networks,namespaces,resourcequotas,limitranges,rolebindings,networkpolicies,serviceaccounts"
        found = one.json("get", kinds, "-A", "-l", "orlop.dev/tenant=quiet")["items"]
        found.append(one.json("get", "tenant", "quiet"))
        return {
            f"{each['kind']} {each['metadata']['name']}": each["metadata"]["resourceVersion"]
            for each in found
        }

    # Its own writes are told to the operator, and lead to one more look.
    eventually(
        lambda: (versions(), ship.add(tenant("noise")), ship.end("noise"), versions()),
        lambda it: it[0] == it[3],
    )
    ship.end("quiet")


def test_what_somebody_changes_by_hand_is_put_right(ship: Ship) -> None:
    one = ship.plane

    def about(namespace: str) -> dict[str, Any]:
        return dict((one.json("get", "namespace", namespace) or {}).get("metadata", {}))

    ship.add(tenant("mended", members=MEMBERS, quota=QUOTA))
    one.kubectl("delete", "networkpolicy,resourcequota,limitrange,rolebinding", "--all", "-n", "mended")
    one.kubectl("label", "namespace", "mended", "orlop.dev/runtime-class-", "--overwrite")
    one.kubectl("patch", "clusterrole", "orlop:tenant:mended", "--type=merge", "-p", '{"rules":[]}')
    eventually(lambda: bound(one, "mended"), lambda found: set(found) == {"admin", "edit"})
    eventually(lambda: hard(one, "mended").get("pods"), lambda found: found == "10")
    for kind in ("networkpolicy", "limitrange"):
        eventually(lambda kind=kind: one.json("get", kind, "orlop-tenant", "-n", "mended"))  # type: ignore[misc]
    eventually(lambda: about("mended")["labels"].get("orlop.dev/runtime-class"))
    eventually(lambda: one.json("get", "clusterrole", "orlop:tenant:mended")["rules"])
    old = about("mended")["uid"]
    one.kubectl("delete", "namespace", "mended", "--wait=false")
    uid = one.json("get", "tenant", "mended")["metadata"]["uid"]
    eventually(lambda: about("mended").get("uid", old), lambda found: found != old)
    ship.settled("mended")
    assert about("mended")["annotations"]["orlop.dev/tenant-uid"] == uid
    ship.end("mended")
