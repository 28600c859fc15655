"""CNI results (CNI specification 1.0, section 5): checked, and turned into :class:`NetworkResult`."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from orlop.errors import Internal
from orlop.net.model import CniDns, NetworkResult
from orlop.value import UNREADABLE
from orlop.wire.values import Route

_MAX_ITEMS = 1024


class _Ip(msgspec.Struct):
    address: str
    gateway: str = ""
    interface: int | None = None


class _Interface(msgspec.Struct):
    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class _Route(msgspec.Struct):
    dst: str
    gw: str = ""
    priority: int = 0


class _Dns(msgspec.Struct):
    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class _Result(msgspec.Struct):
    interfaces: list[_Interface] = []
    ips: list[_Ip] = []
    routes: list[_Route] = []
    dns: _Dns = msgspec.field(default_factory=_Dns)


def check(output: bytes, plugin: str) -> dict[str, Any]:
    """The result document that a plug-in wrote, known to be well-formed. Raises Internal."""
    try:
        document: dict[str, Any] = msgspec.json.decode(output, type=dict[str, Any])
        read(document, "")
    except (ValueError, *UNREADABLE) as error:
        raise Internal(f"CNI plug-in {plugin} wrote no valid result: {error}") from error
    return document


def read(document: dict[str, Any], interface: str) -> NetworkResult:
    """The part of a result that is about the pod's ``interface``. Raises ValueError.

    An address that belongs to no interface in particular counts as one of it.
    """
    result = msgspec.convert(document, _Result)
    if max(len(result.ips), len(result.routes), len(result.interfaces)) > _MAX_ITEMS:
        raise ValueError(f"more than {_MAX_ITEMS} addresses, routes or interfaces")
    own = [n for n, found in enumerate(result.interfaces) if found.sandbox and found.name == interface]
    addresses = [ip for ip in result.ips if ip.interface is None or ip.interface in own or not own]
    # Those of other interfaces as well: what was found well-formed for one is so for any.
    for ip in result.ips:
        ipaddress.ip_interface(ip.address)
        if ip.gateway:
            ipaddress.ip_address(ip.gateway)
    inside = result.interfaces[own[0]] if own else _Interface()
    return NetworkResult(
        name=interface,
        addresses=tuple(dict.fromkeys(ip.address for ip in addresses)),
        gateway=next((ip.gateway for ip in addresses if ip.gateway), ""),
        routes=tuple(
            Route(destination=str(ipaddress.ip_network(route.dst)), gateway=route.gw, metric=route.priority)
            for route in result.routes
        ),
        mac=inside.mac.lower(),
        mtu=inside.mtu,
        dns=CniDns(
            servers=tuple(result.dns.nameservers),
            searches=tuple(result.dns.search),
            options=tuple(result.dns.options),
            domain=result.dns.domain,
        ),
    )
