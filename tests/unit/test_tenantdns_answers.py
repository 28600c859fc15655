"""From the bytes of a question to those of an answer, and what is kept of others' answers."""

from __future__ import annotations

import asyncio

import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from dns.flags import AA, QR, RA, TC
from dns.message import Message
from dns.name import Name
from dns.rdatatype import RdataType
from dns.rrset import RRset

from orlop.errors import ResourceExhausted
from orlop.tenantdns import cache
from orlop.tenantdns.answers import KEPT, PAYLOAD, SMALL, Answers, Outcome, Pending
from orlop.tenantdns.cache import Cache
from orlop.tenantdns.limits import AtOnce, TimeShare
from orlop.tenantdns.zone import NamedEndpoint, NamedService, TenantContents, Zone

WEB, MANY, LOOP = "web.shop.svc.cluster.local", "many.shop.svc.cluster.local", "loop.shop.svc.cluster.local"
OUTSIDE = dns.name.from_text("outside.example")


def zone(*more: NamedService) -> Zone:
    endpoints = tuple(NamedEndpoint(address=f"10.0.{n >> 8}.{n & 255}") for n in range(1, 301))
    services = (
        NamedService(namespace="shop", name="web", addresses=("10.96.7.1",)),
        NamedService(namespace="shop", name="many", endpoints=endpoints),
        NamedService(namespace="shop", name="inner", external=WEB),
        NamedService(namespace="shop", name="outer", external="outside.example"),
        NamedService(namespace="shop", name="loop", external=LOOP),
    )
    return Zone(TenantContents(namespaces=("shop",), services=(*services, *more)))


def rrset(name: str, ttl: int, kind: str, *records: str) -> RRset:
    return dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *records)


class Outsiders:
    """Know one name, at once or only when they are asked."""

    def __init__(self) -> None:
        self.there: Outcome | None = None
        self.said = Outcome(dns.rcode.NOERROR, [rrset("outside.example", 300, "A", "192.0.2.7")])

    def known(self, name: Name, kind: RdataType) -> Outcome | None:
        return self.there

    async def resolve(self, name: Name, kind: RdataType) -> Outcome:
        assert name == OUTSIDE
        return self.said


@pytest.fixture
def outsiders() -> Outsiders:
    return Outsiders()


@pytest.fixture
def answers(outsiders: Outsiders) -> Answers:
    return Answers(zone(), outsiders)


def question(name: str, kind: str = "A", **more: object) -> bytes:
    return dns.message.make_query(name, kind, **more).to_wire()  # type: ignore[arg-type]


def read(answers: Answers, asked: bytes, *, stream: bool = False) -> Message:
    made = answers.at_once(asked, stream=stream)
    assert isinstance(made, bytes)
    assert len(made) <= (65535 if stream else PAYLOAD)
    message = dns.message.from_wire(made)
    assert made[:2] == asked[:2]
    assert message.flags & QR
    return message


def test_a_name_is_answered_and_the_question_repeated_as_it_was_written(answers: Answers) -> None:
    asked = question("wEb.Shop.svc.cluster.local")
    for _ in range(2):  # the second is kept as bytes
        made = read(answers, asked)
        assert made.flags & AA
        assert made.flags & RA
        assert made.question[0].to_text() == "wEb.Shop.svc.cluster.local. IN A"
        assert made.answer[0].to_text() == "wEb.Shop.svc.cluster.local. 5 IN A 10.96.7.1"
    again = b"\x12\x34" + asked[2:]
    assert read(answers, again).id == 0x1234


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        (WEB, "AAAA", 0),
        (WEB, "TXT", 0),
        ("none.shop.svc.cluster.local", "A", 3),
        ("web.bank.svc.cluster.local", "A", 3),
    ],
)
def test_what_is_not_there_is_said_with_how_long(answers: Answers, name: str, kind: str, rcode: int) -> None:
    made = read(answers, question(name, kind))
    assert (made.rcode(), made.answer) == (rcode, [])
    (soa,) = made.authority
    assert soa.name.to_text() == "cluster.local."
    assert (soa.ttl, soa[0].minimum) == (5, 5)


def test_new_names_are_known_at_once(answers: Answers) -> None:
    asked = question("new.shop.svc.cluster.local")
    assert read(answers, asked).rcode() == dns.rcode.NXDOMAIN
    answers.told(zone(NamedService(namespace="shop", name="new", addresses=("10.96.7.3",))))
    assert read(answers, asked).answer[0][0].to_text() == "10.96.7.3"


@pytest.mark.parametrize(("payload", "limit"), [(0, SMALL), (1000, 1000), (4096, PAYLOAD)])
def test_an_answer_is_as_long_as_the_asker_can_take(answers: Answers, payload: int, limit: int) -> None:
    asked = question(MANY, use_edns=0 if payload else -1, payload=payload)
    made = answers.at_once(asked)
    assert isinstance(made, bytes)
    assert limit - 32 < len(made) <= limit
    message = dns.message.from_wire(made)
    assert message.flags & TC
    assert len(read(answers, asked, stream=True).answer[0]) == 300


def test_each_answer_begins_with_another_endpoint(answers: Answers) -> None:
    firsts = {read(answers, question(MANY)).answer[0][0].to_text() for _ in range(20)}
    assert len(firsts) > 5


def test_a_chain_within_the_tenant_and_one_that_has_no_end(answers: Answers) -> None:
    made = read(answers, question("inner.shop.svc.cluster.local"))
    assert [one.to_text().split(" ", 1)[1] for one in made.answer] == [
        f"5 IN CNAME {WEB}.",
        "5 IN A 10.96.7.1",
    ]
    assert read(answers, question(LOOP)).rcode() == dns.rcode.SERVFAIL
    assert (
        read(answers, question("inner.shop.svc.cluster.local", "CNAME")).answer[0][0].to_text() == f"{WEB}."
    )


async def test_what_others_know(answers: Answers, outsiders: Outsiders) -> None:
    for name in ("outside.example", "outer.shop.svc.cluster.local"):
        pending = answers.at_once(question(name))
        assert isinstance(pending, Pending)
        message = dns.message.from_wire(answers.finish(pending, await answers.ask(pending)))
        assert message.answer[-1].to_text() == "outside.example. 300 IN A 192.0.2.7"
        assert not message.flags & AA
    outsiders.there = outsiders.said
    assert read(answers, question("outside.example")).answer[0].ttl == 300


def test_what_is_no_question_for_us(answers: Answers) -> None:
    asked = question(WEB)
    for nothing in (b"", asked[:11], asked[:2] + b"\x80" + asked[3:], asked + bytes(5000)):
        assert answers.at_once(nothing) is None
    broken = asked[:12] + b"\xff" * 20
    refused = {
        asked[:2] + b"\x28\0" + asked[4:]: dns.rcode.NOTIMP,
        broken: dns.rcode.FORMERR,
        asked[:12]: dns.rcode.FORMERR,
        asked[:4] + b"\0\0" + asked[6:12]: dns.rcode.FORMERR,
        question(WEB, "AXFR"): dns.rcode.REFUSED,
        question(WEB, "ANY"): dns.rcode.REFUSED,
        question("version.bind", "TXT", rdclass="CH"): dns.rcode.REFUSED,
        question(WEB, use_edns=1): dns.rcode.BADVERS,
    }
    for one, rcode in refused.items():
        made = answers.at_once(one)
        assert isinstance(made, bytes)
        assert made[:2] == one[:2]
        assert dns.message.from_wire(made).rcode() == rcode
    assert Answers(None, Outsiders()).at_once(asked) is None


def test_what_is_kept_as_bytes_is_bounded(answers: Answers) -> None:
    for number in range(KEPT + 50):
        answers.at_once(question(f"n{number}.shop.svc.cluster.local"))
    assert len(answers._kept) == KEPT


KEY = (OUTSIDE, RdataType.A)
SOA = "ns.example. root.example. 1 2 3 4 30"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_others_said_is_kept_as_long_as_it_holds() -> None:
    clock = Clock()
    kept = Cache(clock=clock)
    chain = [rrset("outside.example", 60, "CNAME", "b.example."), rrset("b.example", 20, "A", "192.0.2.7")]
    kept.keep(KEY, Outcome(dns.rcode.NOERROR, chain))
    clock.now += 15
    found = kept.find(KEY)
    assert found is not None
    assert [one.ttl for one in found.answer] == [45, 5]
    clock.now += 5
    assert kept.find(KEY) is None
    assert (len(kept), kept.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (Outcome(dns.rcode.NXDOMAIN, (), [rrset("example", 900, "SOA", SOA)]), 30),
        (Outcome(dns.rcode.NOERROR, (), [rrset("example", 10, "SOA", SOA)]), 10),
        (Outcome(dns.rcode.NOERROR), 0),
        (Outcome(dns.rcode.NXDOMAIN), 0),
        (Outcome(dns.rcode.SERVFAIL), cache.FAILED),
        (Outcome(dns.rcode.NOERROR, [rrset("a.example", 1 << 30, "A", "192.0.2.7")]), cache.LONGEST),
        (Outcome(dns.rcode.NOERROR, [rrset("a.example", 0, "A", "192.0.2.7")]), 0),
    ],
)
def test_how_long_an_answer_is_kept(outcome: Outcome, seconds: int) -> None:
    clock = Clock()
    kept = Cache(clock=clock)
    kept.keep(KEY, outcome)
    clock.now += max(seconds - 0.5, 0)
    found = kept.find(KEY)
    assert (found is not None and found.rcode == outcome.rcode) == (seconds > 0)
    clock.now += 0.5
    assert kept.find(KEY) is None


def test_what_is_kept_is_bounded() -> None:
    kept = Cache(entries=10, size=2000)
    for number in range(30):
        kept.keep((dns.name.from_text(f"n{number}.example"), RdataType.A), Outcome(dns.rcode.SERVFAIL))
    assert len(kept) == 10
    large = Outcome(
        dns.rcode.NOERROR, [rrset("a.example", 60, "TXT", *(f'"{"x" * 200}{n}"' for n in range(6)))]
    )
    kept.keep(KEY, large)
    kept.keep((OUTSIDE, RdataType.TXT), large)
    assert kept.bytes <= 2000
    assert len(kept) == 1


def test_processor_time_is_saved_up_and_spent() -> None:
    clock = Clock()
    share = TimeShare(0.2, 0.1, clock)
    clock.now += 1000
    assert share.pause() == 0
    share.spend(0.1)
    assert share.pause() == 0
    share.spend(0.02)
    assert share.pause() == pytest.approx(0.1)
    clock.now += 0.1
    assert share.pause() == pytest.approx(0, abs=1e-6)


async def test_of_those_who_wait_for_time_one_goes_after_the_other() -> None:
    share = TimeShare(share=0.5, burst=0.0)
    share.spend(0.005)
    gone: list[float] = []

    async def one() -> None:
        await share.wait()
        gone.append(share.pause())
        share.spend(0.001)

    await asyncio.gather(*(one() for _ in range(5)))
    assert gone == [0.0] * 5


def test_so_much_at_once_and_no_more() -> None:
    limit = AtOnce("questions", together=3, each=2)
    with limit.one("a"), limit.one("a"):
        with pytest.raises(ResourceExhausted), limit.one("a"):
            pass
        with limit.one("b"), pytest.raises(ResourceExhausted), limit.one("c"):
            pass
    with limit.one("c"), limit.one("a"):
        pass
