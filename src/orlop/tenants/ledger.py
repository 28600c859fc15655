"""Who has which VNI: one object, changed only by whoever has read its last state.

So two operators, or one that was killed between two steps, never give one number to two tenants. What is
written here comes before the Network, and goes after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orlop.errors import Aborted, AlreadyExists, ResourceExhausted
from orlop.tenants import names
from orlop.tenants.api import CONFIG_MAPS, NETWORKS, TENANTS, Api, Document

FIRST: Final = 100_000
"""Numbers below are what network plug-ins take for themselves."""
LAST: Final = 2**24 - 1
NAME: Final = "orlop-tenants-vnis"
_LATEST: Final = ".latest"
"""Where the search goes on: a number rests as long as it can before another tenant gets it."""


def choose(taken: Mapping[str, int], latest: int) -> int:
    """The next free number. Raises ResourceExhausted when there is none."""
    used = set(taken.values())
    start = latest + 1 if FIRST <= latest < LAST else FIRST
    # Among one more than are taken one is free.
    for first in (start, FIRST):
        for number in range(first, min(first + len(used), LAST) + 1):
            if number not in used:
                return number
    raise ResourceExhausted(f"all VNIs from {FIRST} to {LAST} are taken: delete tenants that nobody needs")


async def _read(api: Api) -> Document:
    if found := await api.find(CONFIG_MAPS, NAME, names.SYSTEM):
        return found
    fresh: Document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": names.SYSTEM},
        "data": {},
    }
    # Should it have been lost: what the networks have is taken.
    for one in await api.list(NETWORKS):
        fresh["data"][one["metadata"]["name"]] = str(one["spec"]["vni"])
    return await api.create(fresh)


async def claim(api: Api, tenant: str) -> int:
    """The tenant's number, a new one if it has none."""
    while True:
        try:
            book = await _read(api)
            data = book.setdefault("data", {})
            if tenant in data:
                return int(str(data[tenant]))
            taken = {name: int(number) for name, number in data.items() if name != _LATEST}
            number = choose(taken, int(data.get(_LATEST, 0)))
            data[tenant] = data[_LATEST] = str(number)
            await api.replace(book)
            return number
        except (Aborted, AlreadyExists):
            continue  # somebody else has written: read again


async def release(api: Api, tenant: str) -> None:
    """Give a tenant's number back; its Network must be gone."""
    while True:
        try:
            book = await _read(api)
            if book.get("data", {}).pop(tenant, None) is None:
                return
            await api.replace(book)
            return
        except (Aborted, AlreadyExists):
            continue


async def sweep(api: Api) -> None:
    """Drop what an operator wrote that stood still while its tenant went."""
    while True:
        # First the book: who comes in after that changes it, and the writing below fails.
        book = await _read(api)
        data = book.get("data", {})
        there = {one["metadata"]["name"] for kind in (TENANTS, NETWORKS) for one in await api.list(kind)}
        gone = data.keys() - there - {_LATEST}
        if not gone:
            return
        for name in gone:
            del data[name]
        try:
            await api.replace(book)
            return
        except Aborted:
            continue
