"""What a member can do with its kubeconfig, and what not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.tenants_api.conftest import Ship, pod, tenant
from tests.tenants_api.plane import Plane, eventually

ROLES = {"admin": "boss", "edit": "dev", "view": "guest"}


@pytest.fixture(scope="module")
def tenants(installed: Ship) -> Iterator[Ship]:
    """Two tenants, one with a member of each role."""
    if not installed.running():
        installed.start()
    members = [{"user": user, "role": role} for role, user in ROLES.items()]
    quota = {"pods": 10, "cpu": "4"}
    installed.add(tenant("mine", ["mine", "mine-b"], members=members, quota=quota))
    installed.add(tenant("other", members=[{"user": "boss", "role": "admin"}], quota=quota))
    yield installed
    installed.end("mine", "other")


@pytest.fixture(scope="module")
def by_role(tenants: Ship) -> dict[str, Plane]:
    """The cluster as a member of each role sees it."""
    found = {role: tenants.member("mine", user) for role, user in ROLES.items()}
    for member in found.values():
        # Authorizers hear of new bindings a moment after they are there.
        eventually(lambda member=member: member.try_kubectl("get", "pods", "-n", "mine-b").returncode == 0)  # type: ignore[misc]
    return found


def granted(plane: Plane, verb: str, what: str, *place: str) -> bool:
    done = plane.try_kubectl("auth", "can-i", verb, what, *place)
    return done.stdout.strip() == "yes"


@pytest.mark.parametrize(
    ("role", "reads", "writes", "grants"),
    [("admin", True, True, True), ("edit", True, True, False), ("view", True, False, False)],
)
def test_each_role_can_what_it_says_in_the_tenants_namespaces(
    by_role: dict[str, Plane], role: str, reads: bool, writes: bool, grants: bool
) -> None:
    member = by_role[role]
    assert member.kubectl("config", "view", "--minify", "-o", "jsonpath={..namespace}") == "mine"
    for place in ("mine", "mine-b"):
        done = member.try_kubectl("create", "configmap", f"by-{role}", "-n", place)
        assert (done.returncode == 0) is writes, done.stderr
        assert granted(member, "list", "pods", "-n", place) is reads
        assert granted(member, "create", "rolebindings", "-n", place) is grants
        assert granted(member, "get", "secrets", "-n", place) is writes
    assert "Active" in member.kubectl("get", "tenant", "mine")


def test_a_member_runs_a_pod_and_sees_what_is_left(by_role: dict[str, Plane]) -> None:
    member = by_role["edit"]
    member.kubectl("create", "-f", "-", stdin=pod("hello"))
    assert member.json("get", "pod", "hello")["spec"]["runtimeClassName"] == "vm"
    eventually(
        lambda: member.json("get", "tenant", "mine")["status"]["use"]["pods"], lambda found: found == "1/10"
    )
    member.kubectl("delete", "pod", "hello", "--force", "--grace-period=0")


@pytest.mark.parametrize(
    ("verb", "what", "place"),
    [
        ("list", "namespaces", ["-A"]),
        ("create", "namespaces", []),
        ("update", "namespaces", ["-n", "mine"]),
        ("delete", "namespaces", ["-n", "mine"]),
        ("list", "tenants", []),
        ("get", "tenants/other", []),
        ("update", "tenants/mine", []),
        ("get", "networks/mine", []),
        ("list", "nodes", []),
        ("list", "pods", ["-A"]),
        ("create", "clusterrolebindings", []),
        ("get", "pods", ["-n", "other"]),
        ("get", "secrets", ["-n", "other"]),
        ("get", "secrets", ["-n", "orlop-members"]),
        ("create", "serviceaccounts/token", ["-n", "orlop-members"]),
        ("impersonate", "serviceaccounts", ["-n", "orlop-members"]),
        ("get", "configmaps", ["-n", "orlop-system"]),
        ("get", "pods", ["-n", "kube-system"]),
        ("create", "resourcequotas", ["-n", "mine"]),
        ("create", "bindings", ["-n", "mine"]),
        ("delete", "validatingadmissionpolicies", []),
        ("create", "persistentvolumes", []),
        ("create", "runtimeclasses", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:]) or "cluster",
)
def test_no_role_can_more(by_role: dict[str, Plane], verb: str, what: str, place: list[str]) -> None:
    assert not [role for role, member in by_role.items() if granted(member, verb, what, *place)]


def test_an_account_of_one_tenant_is_none_of_another_of_the_same_user(tenants: Ship) -> None:
    boss = tenants.member("other", "boss")
    eventually(lambda: granted(boss, "get", "pods", "-n", "other"))
    assert not granted(boss, "get", "pods", "-n", "mine")


def test_an_admin_cannot_give_what_it_has_not(by_role: dict[str, Plane]) -> None:
    boss = by_role["admin"]
    more = ["create", "rolebinding", "more", "-n", "mine", "--user=guest", "--clusterrole"]
    assert "forbidden" in boss.refused(*more, "cluster-admin")
    boss.kubectl("create", "rolebinding", "fine", "-n", "mine", "--user=guest", "--clusterrole", "edit")


def test_an_admin_cannot_touch_what_the_operator_made(by_role: dict[str, Plane]) -> None:
    boss = by_role["admin"]
    belongs = "belongs to the tenant's operator"
    for kind, name in (("networkpolicy", "orlop-tenant"), ("rolebinding", "orlop:edit")):
        assert belongs in boss.refused("delete", kind, name, "-n", "mine")
        # Not by the label that marks it, either.
        assert belongs in boss.refused("label", kind, name, "-n", "mine", "app.kubernetes.io/managed-by-")
        assert belongs in boss.refused("delete", kind, "--all", "-n", "mine")
    boss.kubectl("create", "role", "own", "-n", "mine", "--verb=get", "--resource=pods")
    own = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "own", "labels": {"app.kubernetes.io/managed-by": "orlop-tenants"}},
        "spec": {"podSelector": {}},
    }
    assert belongs in boss.refused("create", "-n", "mine", "-f", "-", stdin=json.dumps(own))
    del own["metadata"]["labels"]  # type: ignore[attr-defined]
    boss.kubectl("create", "-n", "mine", "-f", "-", stdin=json.dumps(own))


def test_who_is_no_member_any_more_is_out_at_once(tenants: Ship) -> None:
    ship = tenants
    ship.add(tenant("leaving", members=[{"user": "gone", "role": "admin"}, {"user": "here", "role": "view"}]))
    gone = ship.member("leaving", "gone")
    eventually(lambda: gone.try_kubectl("get", "pods").returncode == 0)
    ship.change("leaving", members=[{"user": "here", "role": "view"}])
    eventually(lambda: gone.try_kubectl("get", "pods").returncode != 0)
    done = ship.plane.orlop("kubeconfig", "leaving", "gone")
    assert done.returncode == 1
    assert "gone is no user of tenant leaving" in done.stderr
    ship.end("leaving")


def test_who_has_no_account_is_told_so(tenants: Ship) -> None:
    ship = tenants
    ship.add(tenant("mail", members=[{"user": "a@example.org", "role": "view"}]))
    assert "OpenID" in ship.plane.orlop("kubeconfig", "mail", "a@example.org").stderr
    assert "there is no tenant nobody" in ship.plane.orlop("kubeconfig", "nobody", "dev-1").stderr
    # The cluster's own authentication says who that is; here the administrator says it.
    as_user = ["--as=a@example.org", "-n", "mail"]
    eventually(lambda: ship.plane.try_kubectl("get", "pods", *as_user).returncode == 0)
    assert "forbidden" in ship.plane.refused("create", "configmap", "c", *as_user)
    ship.end("mail")
