"""What pods of tenants may ask, and what resolvers may say."""

from __future__ import annotations

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
from dns.name import Name
from dns.rdatatype import RdataType

from orlop.tenantdns.answers import PAYLOAD, Answers, Outcome, Pending
from orlop.tenantdns.cache import Cache
from orlop.tenantdns.forward import kept
from orlop.tenantdns.zone import NamedEndpoint, NamedPort, NamedService, TenantContents, Zone
from tests.fuzz.kit import target

WEB = "web.shop.svc.cluster.local"


class _Nobody:
    def known(self, name: Name, kind: RdataType) -> Outcome | None:
        return None

    async def resolve(self, name: Name, kind: RdataType) -> Outcome:
        raise AssertionError


_ENDPOINTS = tuple(
    NamedEndpoint(address=f"10.0.1.{number}", ports=(NamedPort(name="http", number=80),))
    for number in range(1, 100)
)
_ANSWERS = Answers(
    Zone(
        TenantContents(
            namespaces=("shop",),
            services=(
                NamedService(namespace="shop", name="web", endpoints=_ENDPOINTS),
                NamedService(namespace="shop", name="out", external="out.example"),
            ),
            ranges=("10.0.0.0/16",),
        )
    ),
    _Nobody(),
)


@target(
    seeds=[
        dns.message.make_query(WEB, "A").to_wire(),
        dns.message.make_query(f"_http._tcp.{WEB}", "SRV", use_edns=0, payload=1232).to_wire(),
        dns.message.make_query("out.shop.svc.cluster.local", "AAAA").to_wire(),
        dns.message.make_query("2.1.0.10.in-addr.arpa", "PTR").to_wire(),
    ],
)
def dns_question(data: bytes) -> None:
    """Whatever a pod asks, it is answered by something that can be read and is no longer than it may be."""
    made = _ANSWERS.at_once(data)
    if isinstance(made, Pending):
        made = _ANSWERS.finish(made, Outcome(dns.rcode.SERVFAIL))
    if made is not None:
        assert len(made) <= PAYLOAD
        assert made[:2] == data[:2]
        assert dns.message.from_wire(made).flags & dns.flags.QR


def _response(*records: str) -> bytes:
    query = dns.message.make_query("a.example", "A")
    response = dns.message.make_response(query)
    for record in records:
        name, kind, said = record.split(" ", 2)
        response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, said))
    return response.to_wire()


@target(
    dns.exception.DNSException,
    ValueError,
    seeds=[
        _response("a.example. A 192.0.2.1"),
        _response("a.example. CNAME b.example.", "b.example. CNAME a.example."),
    ],
)
def dns_response(data: bytes) -> None:
    """What is kept of a resolver's answer can be told to a pod, now and from the cache."""
    response = dns.message.from_wire(data, ignore_trailing=True)
    for question in response.question:
        outcome = kept(response, question.name, question.rdtype)
        cache = Cache()
        cache.keep((question.name, question.rdtype), outcome)
        for one in (outcome, cache.find((question.name, question.rdtype))):
            if one is not None:
                query = dns.message.make_query(question.name, question.rdtype)
                told = dns.message.make_response(query)
                _ANSWERS.finish(Pending(question.name, question.rdtype, told, PAYLOAD), one)
