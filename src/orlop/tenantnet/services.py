"""Services of a tenant in its router: which endpoint a call goes to.

The rules are always the same, and Services are elements of three maps: that one of them comes, goes or gets
another endpoint writes no rule. A call draws a number in the table of its Service; with affinity the numbers
lead to endpoints that are remembered by their callers.

A call is led on before it is judged: the guards see the address that it really goes to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Final

from orlop.tenantnet.model import BRIDGE, Frontend
from orlop.tenantnet.tables import ElementSet

CHAIN: Final = "services"
ENDPOINTS: Final = 1000
"""Endpoints that one port of a Service has at most."""

_SIZES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 64, 256, 1024, 4096)
"""Lengths of tables: as many as endpoints, or so much longer that none has a quarter more than others."""
_SECONDS: Final = (10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400)
"""How long a caller may keep its endpoint; what is between is taken for the next."""
_NOBODY: Final = 0xFF
"""In the mark of a connection: the number of a length, this one for none, and in the next byte of seconds."""
_CALLERS: Final = 65536
"""Callers that are remembered."""

_KEY: Final = "ip daddr . meta l4proto . th dport"
_TYPES: Final = ("ipv4_addr", "inet_proto", "inet_service")


def length(endpoints: int) -> int:
    """How many elements so many endpoints need."""
    if endpoints <= 8:
        return endpoints
    return next((size for size in _SIZES if size >= 4 * endpoints), _SIZES[-1])


def _mark(one: Frontend) -> int:
    if not one.endpoints:
        return _NOBODY
    seconds = 0
    if one.affinity:
        fitting = (number for number, most in enumerate(_SECONDS, 1) if most >= one.affinity)
        seconds = next(fitting, len(_SECONDS))
    return seconds << 8 | 1 + _SIZES.index(length(len(one.endpoints)))


@functools.lru_cache(maxsize=256)
def sets(frontends: tuple[Frontend, ...]) -> tuple[ElementSet, ...]:
    """The maps with these Services."""
    marks, slots, choices = set(), set(), set()
    for one in frontends:
        key = (one.address, one.protocol, str(one.port))
        marks.add((*key, str(_mark(one))))
        count = len(one.endpoints)
        table = [one.endpoints[number % count] for number in range(length(count))]
        for number, (address, port) in enumerate(table):
            # With affinity the endpoint is known by its address, whatever its number is by then.
            name = int(IPv4Address(address)) if one.affinity else number
            slots.add((*key, str(name), address, str(port)))
            if one.affinity:
                choices.add((*key, str(number), str(name)))
    return (
        ElementSet(name="services", types=_TYPES, to=("mark",), elements=frozenset(marks)),
        ElementSet(
            name="slots",
            types=(*_TYPES, "mark"),
            to=("ipv4_addr", "inet_service"),
            elements=frozenset(slots),
        ),
        ElementSet(name="choices", types=(*_TYPES, "mark"), to=("mark",), elements=frozenset(choices)),
    )


def _chain(name: str, rules: Sequence[str]) -> str:
    return f"  chain {name} {{\n" + "".join(f"    {rule}\n" for rule in rules) + "  }\n"


def chains() -> str:
    """What a new connection goes through, from the chain :data:`CHAIN`."""
    draw = [
        f"ct mark and 0xff == {number} meta mark set {f'numgen random mod {size}' if size > 1 else 0}"
        for number, size in enumerate(_SIZES, 1)
    ]
    caller = f"{_KEY} . ip saddr"
    keep = [
        f"ct mark and 0xff00 == {number << 8} update @kept {{ {caller} timeout {seconds}s : meta mark }}"
        for number, seconds in enumerate(_SECONDS, 1)
    ]
    lead = f"dnat ip to {_KEY} . meta mark map @slots"
    text = f"""\
  map kept {{
    type {" . ".join(_TYPES)} . ipv4_addr : mark
    size {_CALLERS}
    flags dynamic,timeout
  }}
"""
    text += _chain("services-draw", draw) + _chain("services-keep", keep)
    text += _chain("services-any", ["jump services-draw", lead])
    return text + _chain(
        CHAIN,
        [
            f"ct mark set {_KEY} map @services",
            f"ct mark and 0xff == {{ 0, {_NOBODY} }} return",
            "meta mark set 0",
            "ct mark and 0xff00 == 0 goto services-any",
            # The endpoint of before, if it is one still: a rule whose map has no such element ends there.
            f"meta mark set {caller} map @kept",
            "meta mark != 0 jump services-keep",
            lead,
            f"delete @kept {{ {caller} : meta mark }}",
            "jump services-draw",
            f"meta mark set {_KEY} . meta mark map @choices",
            "jump services-keep",
            lead,
        ],
    )


REFUSAL: Final = f'iifname {BRIDGE} ct mark and 0xff == {_NOBODY} counter reject comment "no-endpoint"'
"""The rule, for the chain that forwards, which refuses calls of Services without endpoints at once."""
