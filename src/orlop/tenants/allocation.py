"""Who gets which address of the pool, and which node has it: pure.

What was given stays given, whatever becomes of the pool and of quotas, until who has it is gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from orlop.tenants.pool import AddressRanges
from orlop.value import Value

TOLD: Final = 50
"""Objects of a tenant that are told why they have no address: members may make any number of them."""
_SHOWN: Final = 64
"""Characters of a wish that are said back."""

Kind = Literal["FloatingAddress", "Service"]


class GivenAddress(Value, frozen=True):
    """Whose an address is: an object of a tenant's, by its uid.

    ``node`` is the node that answers for it now, "" for none; ``pod`` is the uid of the pod behind a
    FloatingAddress.
    """

    tenant: str
    kind: Kind
    namespace: str
    name: str
    uid: str
    node: str = ""
    pod: str = ""


class AddressWish(Value, frozen=True):
    """An object that is to have an address.

    ``address`` is the one it asks for, "" for any; ``had`` is what it had by its own status; ``created`` is
    RFC 3339, which sorts as time goes.
    """

    tenant: str
    kind: Kind
    namespace: str
    name: str
    uid: str
    address: str = ""
    had: str = ""
    created: str = ""


class Refusal(Value, frozen=True):
    """Why an object has no address: a word for programs, a sentence for people."""

    reason: str
    message: str


class Book(Value, frozen=True):
    """Who has which address, the one given last, and what nobody can be given."""

    given: dict[str, GivenAddress] = msgspec.field(default_factory=dict)
    latest: str = ""
    closed: frozenset[str] = frozenset()

    def count(self, tenant: str) -> int:
        """How many addresses a tenant has."""
        return sum(one.tenant == tenant for one in self.given.values())

    def without(self, uids: Collection[str]) -> Book:
        """The same when these objects are gone."""
        kept = {address: one for address, one in self.given.items() if one.uid not in uids}
        return msgspec.structs.replace(self, given=kept)


def give(
    book: Book,
    wishes: Iterable[AddressWish],
    pool: AddressRanges,
    quotas: Mapping[str, int],
    nodes: Collection[str],
) -> tuple[Book, dict[str, Refusal]]:
    """The book once all who may have an address have one, and why others have none, by their uids.

    Of each tenant only the oldest :data:`TOLD` are among these.
    ``quotas`` are addresses by tenant, ``nodes`` the addresses of nodes, which nobody gets.
    """
    given, latest, refused = dict(book.given), book.latest, dict[str, Refusal]()
    served = {one.uid for one in given.values()}
    taken = {*given, *book.closed, *nodes}
    counts, told = Counter(one.tenant for one in given.values()), Counter[str]()
    # Those that had one come first: should the book have been lost, it is made of what they say.
    order = sorted(wishes, key=lambda one: (one.had not in pool, one.created, one.namespace, one.uid))
    for wish in order:
        if wish.uid in served or told[wish.tenant] >= TOLD:
            continue
        again = wish.had in pool and wish.had not in taken
        quota = quotas.get(wish.tenant, 0)
        address: str | Refusal
        if again:
            address = wish.had
        elif counts[wish.tenant] >= quota:
            address = _over_quota(wish.tenant, quota)
        else:
            address = _choose(wish, pool, taken, latest)
        if isinstance(address, Refusal):
            refused[wish.uid] = address
            told[wish.tenant] += 1
        else:
            if not (wish.address or again):
                latest = address
            counts[wish.tenant] += 1
            taken.add(address)
            given[address] = GivenAddress(
                tenant=wish.tenant, kind=wish.kind, namespace=wish.namespace, name=wish.name, uid=wish.uid
            )
    return msgspec.structs.replace(book, given=given, latest=latest), refused


def _over_quota(tenant: str, quota: int) -> Refusal:
    if not quota:
        return Refusal(reason="OverQuota", message=f"the quota of tenant {tenant} has no floatingIPs")
    message = (
        f"tenant {tenant} has all {quota} floatingIPs of its quota: this one waits until one is given back"
    )
    return Refusal(reason="OverQuota", message=message)


def _choose(wish: AddressWish, pool: AddressRanges, taken: Collection[str], latest: str) -> str | Refusal:
    if not pool.size:
        return Refusal(reason="NoPool", message="the cluster has no AddressPool with addresses")
    if not wish.address:
        full = Refusal(reason="PoolEmpty", message="all addresses of the cluster's pool are given")
        return pool.after(latest, taken) or full
    if wish.address not in pool:
        message = f"{wish.address[:_SHOWN]} is not in the cluster's pool"
        return Refusal(reason="NotInPool", message=message)
    if wish.address in taken:
        message = f"{wish.address} is somebody else's: ask for another, or for none"
        return Refusal(reason="Taken", message=message)
    return wish.address


def chosen(address: str, candidates: Sequence[str], before: str) -> str:
    """The node that has an address: the one before as long as it can, or one by rendezvous hashing.

    It is "" when there is none. So the addresses of a node that is gone are spread over all others, and no
    other address moves.
    """
    if before in candidates:
        return before
    return max(
        candidates, key=lambda node: hashlib.blake2s(f"{address} {node}".encode()).digest(), default=""
    )
