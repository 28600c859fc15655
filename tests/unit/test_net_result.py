"""CNI results: converted, and refused when malformed; capability arguments; masquerading rules."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import Internal, OrlopError
from orlop.net import masquerade, network, result
from orlop.net.model import CniDns
from orlop.sandbox.spec import PortMapping

BRIDGE = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "orlop0", "mac": "aa:bb:cc:00:00:01"},
        {"name": "veth1", "mac": "aa:bb:cc:00:00:02"},
        {"name": "eth0", "mac": "AA:BB:CC:00:00:03", "sandbox": "/run/netns/x"},
        {"name": "net1", "mac": "aa:bb:cc:00:00:04", "sandbox": "/run/netns/x"},
    ],
    "ips": [
        {"interface": 2, "address": "10.88.0.5/16", "gateway": "10.88.0.1"},
        {"interface": 3, "address": "10.99.0.5/16"},
        {"interface": 2, "address": "fd88::5/64", "gateway": "fd88::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.88.0.9"}],
    "dns": {"nameservers": ["10.88.0.1"], "search": ["a"], "domain": "b"},
}


def test_only_what_belongs_to_the_interface_is_taken() -> None:
    found = result.read(result.check(json.dumps(BRIDGE).encode(), "bridge"), "eth0")
    assert found.addresses == ("10.88.0.5/16", "fd88::5/64")
    assert found.ips == ("10.88.0.5", "fd88::5")
    assert found.gateway == "10.88.0.1"
    assert found.mac == "aa:bb:cc:00:00:03"
    assert found.routes[1].gateway == "10.88.0.9"
    assert found.dns.servers == ("10.88.0.1",)


def test_what_was_found_well_formed_can_be_read_for_any_interface() -> None:
    """An interface without a name is nobody's: what it hides must not turn up later."""
    strange = BRIDGE | {
        "interfaces": [{"name": "", "sandbox": "/x"}],
        "ips": [{"interface": 7, "address": "x"}],
    }
    with pytest.raises(Internal, match="ptp"):
        result.check(json.dumps(strange).encode(), "ptp")


def test_older_results_without_interfaces_are_read() -> None:
    old = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.2/24"}]}
    assert result.read(old, "eth0").addresses == ("10.1.0.2/24",)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"null",
        b"[]",
        b'{"ips": 3}',
        b'{"ips": [{"address": "x"}]}',
        b'{"routes": [{"dst": "x"}]}',
        b"\xff",
    ],
)
def test_malformed_results_name_the_plugin(output: bytes) -> None:
    with pytest.raises(Internal, match="ptp"):
        result.check(output, "ptp")


@given(st.binary(max_size=200))
def test_any_output_is_understood_or_refused(output: bytes) -> None:
    with contextlib.suppress(Internal):
        result.check(output, "ptp")


def test_capability_arguments_follow_the_conventions() -> None:
    ports = (
        PortMapping(protocol="TCP", container_port=80, host_port=8080, host_ip="127.0.0.1"),
        PortMapping(protocol="UDP", container_port=53, host_port=0),
    )
    annotations = {"kubernetes.io/egress-bandwidth": "10M"}
    found = network._capabilities(ports, annotations, CniDns(servers=("1.1.1.1",)))
    assert found["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}
    ]
    assert found["bandwidth"] == {"egressRate": 10_000_000, "egressBurst": 2**31 - 1}
    assert found["dns"]["servers"] == ("1.1.1.1",)
    assert network._capabilities((), {}, None) == {}


@pytest.mark.parametrize(("text", "value"), [("", 0), ("12", 12), ("1.5k", 1500), ("2Mi", 2 << 20)])
def test_quantities(text: str, value: int) -> None:
    assert network._quantity(text) == value


@given(st.text(max_size=12))
def test_any_quantity_is_a_number_or_refused(text: str) -> None:
    try:
        network._quantity(text)
    except OrlopError as error:
        assert "bandwidth" in str(error)


def test_masquerade_rules_cover_both_families() -> None:
    text = masquerade.ruleset("orlop_a", ["10.88.0.0/16", "fd88::/64"])
    assert "ip saddr 10.88.0.0/16 ip daddr != { 10.88.0.0/16, 224.0.0.0/4 } masquerade" in text
    assert "ip6 saddr fd88::/64" in text
    assert masquerade.ruleset("orlop_a", []).strip().endswith("delete table inet orlop_a")
    assert masquerade.table("my net!") == "orlop_my_net_"
