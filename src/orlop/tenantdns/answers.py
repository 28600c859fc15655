"""From a question's bytes to an answer's: at once for the tenant's own names, later for those of others.

Whatever a pod sends, it gets an answer that is no longer than it can take, or none.
"""

from __future__ import annotations

import random
import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import dns.exception
import dns.message
import dns.rcode
import dns.rrset
from dns.flags import AA, TC
from dns.message import Message
from dns.name import Name
from dns.opcode import QUERY
from dns.rcode import Rcode
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import CNAME, SOA, A, RdataType
from dns.rrset import RRset

from orlop.tenantdns.zone import TTL, Zone

PAYLOAD: Final = 1232
"""Bytes of the longest answer as a datagram: no link between the tenant's pods has to cut it in pieces."""
SMALL: Final = 512
"""What a pod takes that does not say more (RFC 1035, 4.2.1)."""
WHOLE: Final = 65535
LONGEST_QUESTION: Final = 4096
ADDRESSES: Final = 500
"""Of the endpoints of a NamedService, as many as one answer has; each answer has others."""
KEPT: Final = 2048
"""Answers that are kept as bytes."""
_CHAIN: Final = 8
_HEADER: Final = struct.Struct("!HHHHHH")
_A_BYTES: Final = 16
_OPT_BYTES: Final = 11
_META: Final = range(128, 256)
"""Types that ask for something else than records: transfers, everything."""


class Outcome(NamedTuple):
    """What others say about a name."""

    rcode: Rcode
    answer: Sequence[RRset] = ()
    authority: Sequence[RRset] = ()


class Others(Protocol):
    """Who knows the names that are not the tenant's."""

    def known(self, name: Name, kind: RdataType) -> Outcome | None:
        """What they said before, if that still holds."""
        ...

    async def resolve(self, name: Name, kind: RdataType) -> Outcome:
        """What they say; SERVFAIL when nobody says anything. Raises Unavailable at their end."""
        ...


class Pending(NamedTuple):
    """A question that others have to be asked about: ``name`` is what is still unknown of it."""

    name: Name
    kind: RdataType
    response: Message
    limit: int


class Answers:
    """Answers the questions of one tenant's pods."""

    def __init__(self, zone: Zone | None, others: Others) -> None:
        self._zone, self._others = zone, others
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def told(self, zone: Zone) -> None:
        """These are the tenant's names from now on."""
        self._zone = zone
        self._kept.clear()

    def at_once(self, question: bytes, *, stream: bool = False) -> bytes | Pending | None:
        """An answer; what has to be asked first; or None for what deserves no answer."""
        if len(question) < _HEADER.size or len(question) > LONGEST_QUESTION:
            return None
        key = question[2:] + bytes((stream,))
        if (kept := self._kept.get(key)) is not None and kept[0] > time.monotonic():
            return question[:2] + kept[1]
        made = self._made(question, stream=stream)
        # Addresses in changing order are worth more than the time to put them in it.
        if isinstance(made, bytes) and _HEADER.unpack_from(made)[3] < 2:
            self._keep(key, made)
        return made

    def _keep(self, key: bytes, answer: bytes) -> None:
        # Of others' answers the time that they hold for is counted down by the second.
        seconds = TTL if _HEADER.unpack_from(answer)[1] & AA else 1
        self._kept[key] = (time.monotonic() + seconds, answer[2:])
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _made(self, question: bytes, *, stream: bool) -> bytes | Pending | None:
        number, flags, questions, *_ = _HEADER.unpack_from(question)
        if flags & dns.flags.QR or self._zone is None:
            return None
        if (flags >> 11) & 0xF != QUERY:
            return _refusal(number, flags, dns.rcode.NOTIMP)
        try:
            query = dns.message.from_wire(question)
        except (dns.exception.DNSException, ValueError, struct.error):
            return _refusal(number, flags, dns.rcode.FORMERR)
        if questions != 1 or len(query.question) != 1:
            return _refusal(number, flags, dns.rcode.FORMERR)
        response = dns.message.make_response(query, recursion_available=True, our_payload=PAYLOAD, pad=0)
        limit = WHOLE if stream else min(max(query.payload, SMALL), PAYLOAD)
        (asked,) = query.question
        if query.edns > 0:
            response.set_rcode(dns.rcode.BADVERS)
        elif asked.rdclass != IN or asked.rdtype in _META:
            response.set_rcode(dns.rcode.REFUSED)
        elif (unknown := self._look(self._zone, asked.name, asked.rdtype, response, limit)) is not None:
            pending = Pending(unknown, asked.rdtype, response, limit)
            known = self._others.known(unknown, asked.rdtype)
            return pending if known is None else self.finish(pending, known)
        return _written(response, limit)

    def _look(self, zone: Zone, name: Name, kind: RdataType, response: Message, limit: int) -> Name | None:
        """Answer from the zone, and give the name back that others have to be asked about."""
        for _ in range(_CHAIN):
            found = zone.find(name)
            if found is None:
                return name
            response.flags |= AA
            records = found.records or {}
            if there := records.get(kind):
                _add(response, name, kind, there, limit)
                return None
            if (alias := records.get(CNAME)) is None:
                if found.records is None:
                    response.set_rcode(dns.rcode.NXDOMAIN)
                soa = dns.rrset.from_rdata(found.origin, TTL, zone.soa(found.origin))
                response.authority.append(soa)
                return None
            _add(response, name, CNAME, alias, limit)
            to: Any = alias[0]
            name = to.target
        response.set_rcode(dns.rcode.SERVFAIL)
        return None

    async def ask(self, pending: Pending) -> Outcome:
        """What others say. Raises Unavailable."""
        return await self._others.resolve(pending.name, pending.kind)

    def finish(self, pending: Pending, outcome: Outcome) -> bytes:
        """The answer with what others said."""
        response = pending.response
        response.flags &= ~AA
        response.set_rcode(outcome.rcode)
        response.answer.extend(outcome.answer)
        response.authority.extend(outcome.authority)
        return _written(response, pending.limit)


def _written(response: Message, limit: int) -> bytes:
    wire: bytes = response.to_wire(max_size=limit, prefer_truncation=True)
    return wire


def _add(response: Message, name: Name, kind: RdataType, records: Sequence[Rdata], limit: int) -> None:
    """Add records, in changing order, as many as there is room for."""
    if len(records) > 1:
        records = random.sample(records, min(len(records), ADDRESSES))
    if kind == A and len(records) > 1 and limit < WHOLE:
        before = _written(response, limit)
        room = (limit - len(before) - _OPT_BYTES) // _A_BYTES
        if room < len(records):
            # Some of them now are worth more than all of them after a second question.
            response.flags |= TC
            records = records[: max(room, 1)]
    rrset = RRset(name, IN, kind)
    rrset.update_ttl(TTL)
    for one in records:
        rrset.add(one)
    response.answer.append(rrset)


def _refusal(number: int, flags: int, rcode: Rcode) -> bytes:
    """An answer to what cannot be read, or not be done: nothing of it is repeated."""
    said = dns.flags.QR | (flags & 0x7800) | (flags & dns.flags.RD) | int(rcode)
    return _HEADER.pack(number, said, 0, 0, 0, 0)


def soa_ttl(authority: Sequence[RRset]) -> int | None:
    """Seconds that an absence may be remembered (RFC 2308, 5)."""
    for rrset in authority:
        if rrset.rdtype == SOA and rrset:
            return min(int(rrset.ttl), int(rrset[0].minimum))
    return None
