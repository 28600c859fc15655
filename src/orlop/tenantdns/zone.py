"""What a tenant's names stand for: pure, from its Services and pods.

Kubernetes' specification of DNS-based service discovery, 1.1.0, for one tenant: names of its own namespaces
exist, and no other's. Nothing is spelled out in advance: a name is taken apart and looked up, so that a
tenant with thousands of pods costs a few dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any, Final, NamedTuple

import dns.exception
import dns.name
import dns.rdata
from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import CNAME, NS, PTR, SOA, SRV, TXT, A, RdataType

from orlop.errors import InvalidArgument
from orlop.value import Value

VERSION: Final = b"1.1.0"
"""Of the specification, as ``dns-version`` tells it."""
TTL: Final = 5
"""Seconds that a pod may remember an answer: what it stands for changes with every pod."""
DOMAIN: Final = "cluster.local"
LONGEST: Final = 57
"""Characters of a domain: three labels of any length and ``svc`` fit in front of it."""
_REVERSE: Final = (b"in-addr", b"arpa")
_RANGE_BITS: Final = 24
"""Of the piece of a range that says which of its addresses have no name."""

Labels = tuple[bytes, ...]
Records = Mapping[RdataType, Sequence[Rdata]]
NOTHING: Final[Records] = {}


class NamedPort(Value, frozen=True):
    """A port with a name: SRV records are about these. ``protocol`` is TCP, UDP or SCTP."""

    name: str
    number: int
    protocol: str = "TCP"


class NamedEndpoint(Value, frozen=True):
    """A ready endpoint of a headless Service, by its address in the tenant's network."""

    address: str
    hostname: str = ""
    ports: tuple[NamedPort, ...] = ()


class NamedService(Value, frozen=True):
    """A Service: ``addresses`` of its own, or ``endpoints`` if it is headless, or a name for ``external``."""

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    endpoints: tuple[NamedEndpoint, ...] = ()
    external: str = ""


class NamedPod(Value, frozen=True):
    """A pod by both its addresses."""

    namespace: str
    address: str
    alias: str = ""


class TenantContents(Value, frozen=True):
    """Everything that a tenant has names for. All IPv4 addresses in ``ranges`` have names here or nowhere."""

    namespaces: tuple[str, ...] = ()
    services: tuple[NamedService, ...] = ()
    pods: tuple[NamedPod, ...] = ()
    ranges: tuple[str, ...] = ()


class Found(NamedTuple):
    """A name of the zone below ``origin``; ``records`` are None when there is no such name."""

    origin: Name
    records: Records | None


class Zone:
    """A tenant's names below ``domain`` and, when it has one, below ``own``.

    ``own`` is another name for ``svc.DOMAIN``: ``web.shop.blue.example`` is ``web.shop.svc.cluster.local``.
    ``server`` are the addresses at which pods ask. Raises InvalidArgument for what is no domain.
    """

    def __init__(
        self,
        contents: TenantContents,
        *,
        domain: str = DOMAIN,
        own: str = "",
        server: Sequence[str] = (),
        serial: int = 1,
    ) -> None:
        self.domain, self._server, self._serial = parse(domain), tuple(server), serial
        self._own = parse(own) if own else None
        self._namespaces = frozenset(map(_label, contents.namespaces))
        self._services = {
            (_label(one.namespace), _label(one.name)): one
            for one in contents.services
            if _label(one.namespace) in self._namespaces
        }
        self._pods = {
            (_label(one.namespace), address): one.address
            for one in contents.pods
            for address in (one.alias, one.address)
            if address
        }
        self._ranges = tuple(IPv4Network(one, strict=False) for one in contents.ranges)
        self._names = dict(self._reverse(contents))

    def soa(self, origin: Name) -> Rdata:
        """What says that a name below ``origin`` is not there, or not of that type, and for how long."""
        server, person = self._below(b"ns", b"dns"), self._below(b"hostmaster")
        return _data(SOA, server, person, self._serial & 0xFFFFFFFF, 7200, 1800, 86400, TTL)

    def find(self, name: Name) -> Found | None:
        """What a name stands for; None for one that is not of this zone, and that others are asked for."""
        labels = tuple(label.lower() for label in name.labels[:-1])
        if (inner := _inside(labels, self.domain)) is not None:
            return Found(self.domain, self._of_cluster(inner))
        if self._own is not None and (inner := _inside(labels, self._own)) is not None:
            records = self._of_services(inner, self._own) if inner else self._apex(self._own)
            return Found(self._own, records)
        if len(labels) == 6 and labels[-2:] == _REVERSE:
            return self._of_address(labels)
        return None

    def _below(self, *labels: bytes) -> Name:
        return Name((*labels, *self.domain.labels))

    def _apex(self, origin: Name) -> Records:
        return {SOA: (self.soa(origin),), NS: (_data(NS, self._below(b"ns", b"dns")),)}

    def _of_cluster(self, labels: Labels) -> Records | None:
        match labels:
            case ():
                return self._apex(self.domain)
            case (b"dns-version",):
                return {TXT: (_data(TXT, (VERSION,)),)}
            case (b"dns",):
                return NOTHING
            case (b"ns", b"dns"):
                return _addresses(self._server)
            case (*inner, b"svc"):
                return self._of_services(tuple(inner), self._below(b"svc"))
            case (b"pod",):
                return NOTHING
            case (namespace, b"pod") if namespace in self._namespaces:
                return NOTHING
            case (dashed, namespace, b"pod") if namespace in self._namespaces:
                address = self._pods.get((namespace, dashed.decode("ascii", "replace").replace("-", ".")))
                return _addresses((address,)) if address else None
        return None

    def _of_services(self, labels: Labels, origin: Name) -> Records | None:
        """What is ``labels`` below ``origin``, at which namespaces begin."""
        if not labels:
            return NOTHING
        *inner, namespace = labels
        if namespace not in self._namespaces:
            return None
        if not inner:
            return NOTHING
        service = self._services.get((namespace, inner.pop()))
        if service is None:
            return None
        own = Name((_label(service.name), namespace, *origin.labels))
        match inner:
            case []:
                return _of_service(service)
            case [label] if label.startswith(b"_"):
                return NOTHING if any(_transport(port) == label for port in _ports(service)) else None
            case [hostname]:
                found = [one.address for one in service.endpoints if _hostname(one) == hostname]
                return _addresses(found) if found else None
            case [port, transport]:
                return _ways(service, own, port, transport)
        return None

    def _of_address(self, labels: Labels) -> Found | None:
        try:
            address = IPv4Address(b".".join(labels[3::-1]).decode("ascii", "replace"))
        except AddressValueError:
            return None
        name = self._names.get(str(address))
        if name is None and not any(address in one for one in self._ranges):
            return None
        records = None if name is None else {PTR: (_data(PTR, name),)}
        return Found(Name((*labels[1:], b"")), records)

    def _reverse(self, contents: TenantContents) -> Iterator[tuple[str, Name]]:
        """A name for each address; later ones win."""
        for pod in contents.pods:
            if _label(pod.namespace) in self._namespaces:
                name = self._below(_dashed(pod.address), _label(pod.namespace), b"pod")
                yield from ((address, name) for address in (pod.address, pod.alias) if address)
        aliases = {pod.address: pod.alias for pod in contents.pods if pod.alias}
        for service in self._services.values():
            name = self._below(_label(service.name), _label(service.namespace), b"svc")
            for one in service.endpoints:
                below = Name((_hostname(one), *name.labels))
                yield one.address, below
                if alias := aliases.get(one.address):
                    yield alias, below
            yield from ((address, name) for address in service.addresses)


def _data(kind: RdataType, *fields: object) -> Rdata:
    class_of: Callable[..., Any] = dns.rdata.get_rdata_class  # the library has no types for the classes' own
    made: Rdata = class_of(IN, kind)(IN, kind, *fields)
    return made


def parse(domain: str) -> Name:
    """A domain as a name, in lower case. Raises InvalidArgument."""
    try:
        found = dns.name.from_text(domain).canonicalize()
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidArgument(f"{domain!r} is no domain: {error}") from error
    if found == dns.name.root or len(domain) > LONGEST:
        raise InvalidArgument(
            f"{domain!r} is no domain for a cluster or tenant: take 1 to {LONGEST} characters"
        )
    return found


def _inside(labels: Labels, origin: Name) -> Labels | None:
    """What comes before ``origin``; None when the name is not below it."""
    end = origin.labels[:-1]
    return labels[: -len(end)] if labels[-len(end) :] == end else None


def _label(text: str) -> bytes:
    return text.lower().encode()


def _dashed(address: str) -> bytes:
    return address.replace(".", "-").encode()


def _hostname(endpoint: NamedEndpoint) -> bytes:
    return _label(endpoint.hostname) if endpoint.hostname else _dashed(endpoint.address)


def _transport(port: NamedPort) -> bytes:
    return b"_" + _label(port.protocol)


def _ports(service: NamedService) -> Iterator[NamedPort]:
    yield from service.ports
    for one in service.endpoints:
        yield from one.ports


def _addresses(found: Iterable[str]) -> Records:
    return {A: tuple(_data(A, address) for address in dict.fromkeys(found) if _is_address(address))}


def _is_address(text: str) -> bool:
    """Whether it is one of IPv4: there are no others in a tenant's network, whatever an object says."""
    try:
        return IPv4Address(text) is not None
    except AddressValueError:
        return False


def _of_service(service: NamedService) -> Records:
    if service.external:
        try:
            return {CNAME: (_data(CNAME, dns.name.from_text(service.external)),)}
        except (dns.exception.DNSException, UnicodeError):
            return NOTHING
    return _addresses([*service.addresses, *(one.address for one in service.endpoints)])


def _ways(service: NamedService, own: Name, port: bytes, transport: bytes) -> Records | None:
    """The SRV records of a port: of the Service itself, or of each of its endpoints when it is headless."""

    def wanted(one: NamedPort) -> bool:
        return bool(one.name) and b"_" + _label(one.name) == port and _transport(one) == transport

    found = [(own, one.number) for one in service.ports if service.addresses and wanted(one)]
    if not service.addresses:
        found = [
            (Name((_hostname(endpoint), *own.labels)), one.number)
            for endpoint in service.endpoints
            for one in endpoint.ports
            if wanted(one)
        ]
    if not found:
        return None
    weight = max(100 // len(found), 1)
    return {SRV: tuple(_data(SRV, 0, weight, number, target) for target, number in found)}
