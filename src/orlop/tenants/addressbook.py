"""Who has which address, as the cluster keeps it: one object, written only over the state that was read.

So two operators, or one that was killed between two steps, never give one address to two, nor more to a
tenant than its quota. What stands here comes before any status, and it is what nodes go by: no member of a
tenant can write it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Final

import msgspec

from orlop.errors import Aborted, AlreadyExists
from orlop.tenants import names
from orlop.tenants.allocation import Book, GivenAddress
from orlop.tenants.api import CONFIG_MAPS, Api, Document
from orlop.value import UNREADABLE

log = logging.getLogger(__name__)

NAME: Final = names.ADDRESS_BOOK
"""Also in the rights of nodes' agents, who read it and no other."""
_LATEST: Final = ".latest"
"""Where the search goes on: an address rests as long as it can before another gets it."""


def parse(document: Mapping[str, Any]) -> Book:
    """The book from its object. An entry that cannot be read is nobody's, and is given to nobody."""
    given, closed, latest = {}, set(), ""
    for key, text in (document.get("data") or {}).items():
        if key == _LATEST:
            latest = text
            continue
        try:
            given[str(IPv4Address(key))] = msgspec.json.decode(text, type=GivenAddress)
        except (AddressValueError, *UNREADABLE) as error:
            log.error("the entry %s of %s/%s cannot be read: %s", key, names.SYSTEM, NAME, error)
            closed.add(key)
    return Book(given=given, latest=latest, closed=frozenset(closed))


async def read(api: Api) -> tuple[Book, Document]:
    """The book, and the object that it is in, for :func:`write`."""
    about = {"name": NAME, "namespace": names.SYSTEM}
    fresh: Document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about}
    found = await api.find(CONFIG_MAPS, NAME, names.SYSTEM) or fresh
    return parse(found), found


async def write(api: Api, document: Document, book: Book) -> None:
    """Put the book in its place. Raises Aborted when somebody else has written since it was read."""
    before = document.get("data") or {}
    data = {key: before[key] for key in book.closed if key in before}
    data |= {address: msgspec.json.encode(one).decode() for address, one in book.given.items()}
    if book.latest:
        data[_LATEST] = book.latest
    if data == before:
        return
    if "resourceVersion" in document["metadata"]:
        await api.replace({**document, "data": data})
        return
    try:
        await api.create({**document, "data": data})
    except AlreadyExists as error:
        raise Aborted("another operator has begun to give addresses") from error


async def count(api: Api, tenant: str) -> int:
    """How many addresses a tenant has."""
    found = await api.find(CONFIG_MAPS, NAME, names.SYSTEM)
    return parse(found).count(tenant) if found else 0
