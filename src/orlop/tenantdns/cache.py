"""What others have said, for as long as they said it holds: bounded in number, bytes and time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import dns.exception
import dns.message
import dns.rcode
from dns.message import Message
from dns.name import Name
from dns.rdatatype import RdataType

from orlop.tenantdns.answers import Outcome, soa_ttl

ENTRIES: Final = 4096
BYTES: Final = 1 << 20
LONGEST: Final = 3600
"""Seconds after which others are asked again, whatever they said."""
ABSENT: Final = 60
FAILED: Final = 2
"""The same for names that are not there, and for those that nobody said anything about (RFC 9520)."""

Question = tuple[Name, RdataType]


class Cache:
    """Answers by question, as the bytes they came in; the one asked for least lately goes first."""

    def __init__(
        self, *, entries: int = ENTRIES, size: int = BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries, self._size, self._clock = entries, size, clock
        self._kept: OrderedDict[Question, tuple[float, float, bytes]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all answers."""
        return self._bytes

    def find(self, question: Question) -> Outcome | None:
        """An answer that still holds, with the time left of it."""
        if (kept := self._kept.get(question)) is None:
            return None
        since, until, wire = kept
        now = self._clock()
        if now >= until:
            self._forget(question)
            return None
        self._kept.move_to_end(question)
        message = dns.message.from_wire(wire)
        passed = int(now - since)
        for rrset in (*message.answer, *message.authority):
            rrset.ttl = max(rrset.ttl - passed, 1)
        return Outcome(message.rcode(), message.answer, message.authority)

    def keep(self, question: Question, outcome: Outcome) -> None:
        """Keep an answer for as long as it holds, if it does at all."""
        seconds = _lasts(outcome)
        self._forget(question)
        if seconds <= 0:
            return
        try:
            wire = _packed(outcome)
        except dns.exception.DNSException:  # longer than a message, once its names are written out
            return
        now = self._clock()
        self._kept[question] = (now, now + seconds, wire)
        self._bytes += len(wire)
        while len(self._kept) > self._entries or self._bytes > self._size:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._bytes = 0

    def _forget(self, question: Question) -> None:
        if (kept := self._kept.pop(question, None)) is not None:
            self._bytes -= len(kept[2])


def _lasts(outcome: Outcome) -> int:
    if outcome.rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return FAILED
    lives = [rrset.ttl for rrset in outcome.answer]
    if outcome.rcode == dns.rcode.NXDOMAIN or not outcome.answer or outcome.authority:
        lives.append(min(soa_ttl(outcome.authority) or 0, ABSENT))
    return min(*lives, LONGEST) if lives else 0


def _packed(outcome: Outcome) -> bytes:
    message = Message(id=0)
    message.flags = dns.flags.QR
    message.set_rcode(outcome.rcode)
    message.answer, message.authority = list(outcome.answer), list(outcome.authority)
    made: bytes = message.to_wire(max_size=65535)
    return made
