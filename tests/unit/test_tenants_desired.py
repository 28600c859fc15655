"""What a Tenant means in Kubernetes' own objects."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import yaml

from orlop.errors import InvalidArgument
from orlop.tenants import desired, manifests, names
from orlop.tenants.ledger import FIRST, LAST, choose
from orlop.tenants.model import Tenant, parse, quantity
from orlop.tenants.status import Observation, phase, status


def tenant(name: str = "blue", uid: str = "u1", **spec: Any) -> Tenant:
    spec = {"namespaces": [name], **spec}
    return parse({"metadata": {"name": name, "uid": uid, "generation": 2}, "spec": spec})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", "20"),
        (20, "20"),
        ("500m", "0.5"),
        ("64Gi", 64 * 2**30),
        ("1k", 1000),
        ("1e3", 1000),
        (".5", "0.5"),
    ],
)
def test_quantities_are_those_of_kubernetes(text: str | int, value: str | int) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1ki", "one", "-1", "1 Gi", "1GiB", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        quantity(text)


def test_a_spec_that_cannot_be_read_names_the_field() -> None:
    with pytest.raises(InvalidArgument, match=r"blue.*members\[0\]\.role"):
        tenant(members=[{"user": "dev-1", "role": "owner"}])


def test_a_user_and_its_account_get_the_role_and_a_group_the_group() -> None:
    members = [
        {"user": "dev-1", "role": "admin"},
        {"group": "devs", "role": "view"},
        {"user": "a@b.c", "role": "view"},
    ]
    one = tenant(members=members)
    by_role = {each["roleRef"]["name"]: each["subjects"] for each in desired.bindings(one, "blue")}
    assert [each["name"] for each in by_role["admin"]] == ["dev-1", "blue.dev-1"]
    assert [(each["kind"], each["name"]) for each in by_role["view"]] == [
        ("Group", "devs"),
        ("User", "a@b.c"),
    ]
    assert "edit" not in by_role
    assert [each["metadata"]["name"] for each in desired.accounts(one)] == ["blue.dev-1"]
    assert {each["metadata"]["namespace"] for each in desired.accounts(one)} == {names.MEMBERS}


def test_a_tenant_without_members_lets_nobody_in() -> None:
    assert not [*desired.bindings(tenant(), "blue"), *desired.accounts(tenant()), *desired.reading(tenant())]


def test_a_namespace_belongs_to_the_tenant_that_it_was_made_for_and_to_none_of_its_name() -> None:
    made = desired.namespace(tenant(), "blue", runtime=True)
    assert desired.owns(tenant(), made)
    assert not desired.owns(tenant(uid="u2"), made)
    assert not desired.owns(tenant("green"), made)
    assert not desired.owns(tenant(), {"metadata": {"name": "blue"}})


def test_without_a_runtime_class_a_namespace_names_none() -> None:
    assert names.RUNTIME not in desired.namespace(tenant(), "blue", runtime=False)["metadata"]["labels"]


@pytest.mark.parametrize(
    ("allow", "deny", "blocks"),
    [
        (["0.0.0.0/0"], ["169.254.0.0/16"], [{"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}]),
        (["192.0.2.0/24"], ["169.254.0.0/16"], [{"cidr": "192.0.2.0/24"}]),
        (["192.0.2.0/24"], ["192.0.0.0/16"], []),
        (["192.0.2.0/24"], ["192.0.2.0/24"], []),
        ([], ["192.0.2.0/24"], []),
    ],
)
def test_what_is_denied_is_taken_out_of_what_is_allowed(
    allow: list[str], deny: list[str], blocks: list[dict[str, Any]]
) -> None:
    assert desired.outside(allow, deny) == [{"ipBlock": block} for block in blocks]


def test_without_anything_allowed_outside_there_is_no_rule_for_it() -> None:
    one = tenant(network={"egress": {"allow": []}})
    assert len(desired.network_policy(one, "blue")["spec"]["egress"]) == 2  # its own pods, and DNS


def test_limits_are_filled_in_where_a_quota_counts_them() -> None:
    assert not desired.limits(tenant(quota={"pods": 3}), "blue")
    (one,) = desired.limits(tenant(quota={"cpu": "2"}), "blue")
    assert one["spec"]["limits"][0]["default"] == {"cpu": "500m"}


def test_a_number_is_new_as_long_as_it_can_be() -> None:
    assert choose({}, 0) == FIRST
    assert choose({"a": FIRST}, FIRST) == FIRST + 1
    assert choose({}, FIRST + 7) == FIRST + 8
    assert choose({"a": FIRST, "b": LAST}, LAST) == FIRST + 1
    assert choose({"a": FIRST + 1}, FIRST) == FIRST + 2
    assert choose({"a": LAST, "b": FIRST}, LAST - 1) == FIRST + 1


def test_the_phase_is_that_of_the_worst_condition() -> None:
    states = {"holds": "Active", "starting": "Initializing", "waits": "Pending", "failed": "Failed"}
    seen: list[Observation] = []
    for state, word in states.items():
        seen.append(Observation(kind=state, state=state))  # type: ignore[arg-type]
        assert phase(seen) == word


def test_a_condition_that_stays_keeps_its_time() -> None:
    bad = Observation(kind="Guarded", state="waits", message="a policy is missing")
    first = status(tenant(), {}, [bad], "t1")
    again = status(tenant(), first, [bad], "t2")
    assert first == again
    assert first["message"] == "a policy is missing"
    well = status(tenant(), first, [Observation(kind="Guarded")], "t3")
    assert well["conditions"][0]["lastTransitionTime"] == "t3"


def test_all_that_is_printed_is_whole_objects_and_the_guards_come_before_the_operator() -> None:
    text = manifests.manifests("example/operator:1", handlers=("orlop",))
    assert "image: example/operator:1" in text
    assert "*id" not in text
    kinds = [line.partition(" ")[2] for line in text.splitlines() if line.startswith("kind:")]
    assert kinds[0] == "CustomResourceDefinition"
    policies = [at for at, kind in enumerate(kinds) if "AdmissionPolicy" in kind]
    assert "MutatingAdmissionPolicy" in kinds and max(policies) < kinds.index("Deployment")
    assert "MutatingAdmissionPolicy" not in manifests.manifests("i", defaults=False)
    assert len(manifests.guards()) == 8


def test_agents_are_printed_with_the_ranges_that_they_close() -> None:
    def sets(**options: Any) -> list[dict[str, Any]]:
        objects = yaml.safe_load_all(manifests.manifests("example/tenants:1", **options))
        return [one for one in objects if one["kind"] == "DaemonSet"]

    assert sets() == []
    (one,) = sets(closed=("10.64.0.0/16", "10.96.0.0/16"))
    container = one["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example/tenants:1"
    assert container["command"][-4:] == ["--closed", "10.64.0.0/16", "--closed", "10.96.0.0/16"]


def test_metrics_are_served_where_somebody_asks_for_them() -> None:
    def commands(**options: Any) -> list[list[str]]:
        text = manifests.manifests("i", closed=("10.64.0.0/16",), **options)
        found = [one for one in yaml.safe_load_all(text) if one["kind"] in ("DaemonSet", "Deployment")]
        return [one["spec"]["template"]["spec"]["containers"][0]["command"] for one in found]

    assert not any("--metrics" in words for words in commands())
    both = commands(metrics=9465)
    assert [words[-2:] for words in both] == [["--metrics", "0.0.0.0:9465"]] * 2
