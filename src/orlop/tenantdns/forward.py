"""Asking others: one question at a time for each name, by resolvers that the tenant or the node has.

A forged answer has to know the port, the number and the question, and to come from the address that was
asked; what it says beside the question is not kept. Who asks while the same is being asked waits for that,
so that resolvers which ask one another end with the time that a question has.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final

import dns.exception
import dns.message
import dns.rcode
from dns.flags import TC
from dns.message import Message, QueryMessage
from dns.name import Name
from dns.rdataclass import IN
from dns.rdatatype import CNAME, SOA, RdataType
from dns.rrset import RRset

from orlop.errors import OrlopError
from orlop.host.tasks import Tasks
from orlop.tenantdns.answers import PAYLOAD, Outcome
from orlop.tenantdns.cache import Cache
from orlop.tenantdns.limits import TimeShare
from orlop.tenantdns.places import SocketSupply

log = logging.getLogger(__name__)

PORT: Final = 53
DATAGRAM_TIME: Final = 2.0
STREAM_TIME: Final = 4.0
WHOLE_TIME: Final = 9.0
"""Seconds for all attempts together: a stub resolver's first two of five are not over then."""
ROUNDS: Final = 2
LONGEST: Final = 16384
"""Bytes of an answer that is read at all: reading a longer one takes too much of everybody's time."""
FORGED: Final = 16
"""Datagrams that may come and be no answer before the resolver counts as silent."""
_CHAIN: Final = 16
_UNUSABLE: Final = (dns.exception.DNSException, ValueError, OSError, OrlopError, asyncio.IncompleteReadError)

SERVFAIL: Final = Outcome(dns.rcode.SERVFAIL)


class Forwarder:
    """Asks resolvers by sockets of one place, and remembers what they said.

    ``resolvers`` are looked up for each question. ``budget`` pays for reading answers.
    """

    def __init__(
        self,
        resolvers: Callable[[], Sequence[str]],
        sockets: SocketSupply,
        budget: TimeShare,
        cache: Cache,
        port: int = PORT,
    ) -> None:
        self._resolvers, self._sockets, self._budget, self._cache = resolvers, sockets, budget, cache
        self._port = port
        self._asking: dict[tuple[Name, RdataType], asyncio.Task[Outcome]] = {}
        self._reading = asyncio.Lock()
        self._tasks = Tasks()

    def known(self, name: Name, kind: RdataType) -> Outcome | None:
        """See :class:`orlop.tenantdns.answers.Others`."""
        return self._cache.find((name.canonicalize(), kind))

    async def resolve(self, name: Name, kind: RdataType) -> Outcome:
        """See :class:`orlop.tenantdns.answers.Others`."""
        question = (name.canonicalize(), kind)
        if (task := self._asking.get(question)) is None:
            task = self._tasks.spawn(self._ask(question), f"question for {name}")
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._tasks.close()
        self._sockets.close()

    async def _ask(self, question: tuple[Name, RdataType]) -> Outcome:
        outcome = SERVFAIL
        try:
            async with asyncio.timeout(WHOLE_TIME):
                outcome = await self._ask_all(*question)
        except TimeoutError:
            pass
        self._cache.keep(question, outcome)
        return outcome

    async def _ask_all(self, name: Name, kind: RdataType) -> Outcome:
        for _ in range(ROUNDS):
            for resolver in self._resolvers():
                try:
                    response = await self._ask_one(resolver, name, kind)
                    if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                        return kept(response, name, kind)
                except (*_UNUSABLE, TimeoutError) as error:
                    log.debug("resolver %s about %s: %s", resolver, name, error)
        return SERVFAIL

    async def _ask_one(self, resolver: str, name: Name, kind: RdataType) -> Message:
        query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
        async with asyncio.timeout(DATAGRAM_TIME):
            response = await self._by_datagram(resolver, query)
        if response.flags & TC:
            async with asyncio.timeout(STREAM_TIME):
                response = await self._by_stream(resolver, query)
        return response

    async def _by_datagram(self, resolver: str, query: QueryMessage) -> Message:
        loop = asyncio.get_running_loop()
        with await self._sockets.take(resolver, socket.SOCK_DGRAM) as line:
            # From now on the kernel hands over what comes from there, and nothing else.
            line.connect((resolver, self._port))
            await loop.sock_sendall(line, query.to_wire())
            for _ in range(FORGED):
                said = await loop.sock_recv(line, LONGEST)
                # Of what is too long for a datagram, the beginning is there.
                if (response := await self._read(said, query)) is not None:
                    return response
        raise OSError("only answers to other questions came")

    async def _by_stream(self, resolver: str, query: QueryMessage) -> Message:
        loop = asyncio.get_running_loop()
        line = await self._sockets.take(resolver, socket.SOCK_STREAM)
        try:
            await loop.sock_connect(line, (resolver, self._port))
            reader, writer = await asyncio.open_connection(sock=line)
        except BaseException:
            line.close()
            raise
        try:
            writer.write(query.to_wire(prepend_length=True))
            length = int.from_bytes(await reader.readexactly(2), "big")
            if length > LONGEST:
                raise OSError(f"an answer of {length} bytes is too long")
            response = await self._read(await reader.readexactly(length), query)
        finally:
            writer.close()
        if response is None:
            raise OSError("the answer is to another question")
        return response

    async def _read(self, said: bytes, query: Message) -> Message | None:
        """The answer, if it is one to that question; one is read at a time, as the budget lets."""
        # Most forgeries end here.
        if said[:2] != query.id.to_bytes(2, "big"):
            return None
        async with self._reading:
            await self._budget.wait()
            with self._budget.spending():
                try:
                    response = dns.message.from_wire(said, ignore_trailing=True)
                except (dns.exception.DNSException, ValueError):
                    return None
                return response if query.is_response(response) else None


def kept(response: Message, name: Name, kind: RdataType) -> Outcome:
    """What an answer says about the question: a chain of aliases with what is at its end, or who denies."""
    chain: list[RRset] = []
    for _ in range(_CHAIN):
        if (found := _of(response.answer, name, kind)) is not None:
            return Outcome(response.rcode(), [*chain, found])
        if (alias := _of(response.answer, name, CNAME)) is None:
            break
        chain.append(alias)
        name = alias[0].target
    denial = [rrset for rrset in response.authority if rrset.rdtype == SOA and rrset.rdclass == IN][:1]
    return Outcome(response.rcode(), chain, denial)


def _of(section: Sequence[RRset], name: Name, kind: RdataType) -> RRset | None:
    return next((one for one in section if one.match(name, IN, kind, dns.rdatatype.NONE) and one), None)
