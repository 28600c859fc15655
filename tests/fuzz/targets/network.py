"""What CNI plug-ins, and the files that name them, may say."""

from __future__ import annotations

import json

from orlop.errors import OrlopError
from orlop.net import conflist, masquerade, network, result
from orlop.wire.codec import ProtocolError, decode, encode
from orlop.wire.values import Interface
from tests.fuzz.kit import target

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "veth1", "mac": "aa:bb:cc:00:00:02"},
        {"name": "eth0", "mac": "AA:B", "sandbox": "/x"},
    ],
    "ips": [{"interface": 1, "address": "10.88.0.5/16", "gateway": "10.88.0.1"}, {"address": "fd88::5/64"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.88.0.9", "priority": 5}],
    "dns": {"nameservers": ["10.88.0.1"], "search": ["a"], "domain": "b", "options": ["ndots:5"]},
}


@target(
    OrlopError,
    ProtocolError,
    seeds=[json.dumps(RESULT).encode(), b'{"ips": [{"address": "10.1.0.2/24", "version": "4"}]}'],
)
def cni_result(data: bytes) -> None:
    """A plug-in's result that is accepted can be sent to a guest, or is refused there by the protocol."""
    found = result.read(result.check(data, "ptp"), "eth0")
    inside = Interface(
        at="pci:0", mac=found.mac, mtu=found.mtu, addresses=found.addresses, routes=found.routes
    )
    decode(Interface, json.loads(json.dumps(encode(inside))))


@target(
    OrlopError,
    seeds=[conflist.default_conflist().encode(), b'{"name":"a","type":"ptp","cniVersion":"0.4.0"}'],
)
def cni_list(data: bytes) -> None:
    found = conflist.parse(data, "10-a.conflist")
    found.at_least(conflist.STATUS_SINCE)
    masquerade.ruleset(masquerade.table(found.name), list(found.masquerade))
    json.dumps([plugin.document for plugin in found.plugins]).encode()


@target(OrlopError, seeds=[b"10M", b"1.5Gi", b"1e400", b"nan"])
def quantity(data: bytes) -> None:
    network._quantity(data.decode("utf-8", "replace"))
