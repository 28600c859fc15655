"""Whether a pod's packet gets where it is to go, what it meets, and what stops it: pure.

In a tenant's network the packet goes the way of :mod:`orlop.tenantnet.journey`; a pod that has the cluster's
own network is held by NetworkPolicies. What the other end does with the packet is not known here.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from orlop.errors import InvalidArgument, NotFound
from orlop.tenantnet import journey
from orlop.tenantnet.guards import GUARDS
from orlop.tenantnet.journey import OUTSIDE, PLAIN, Journey
from orlop.tenantnet.model import Lease
from orlop.tenantnet.verdicts import Packet
from orlop.tenants.picture import Picture
from orlop.tenants.places import number
from orlop.tenants.policies import Direction, stopped_by
from orlop.tenants.seen import PodSeen, ServiceSeen
from orlop.value import Value

Protocol = Literal["tcp", "udp", "icmp"]

_NAME: Final = re.compile(r"[a-z0-9_]([-a-z0-9_.]{0,251}[a-z0-9])?\.?", re.IGNORECASE)
_SERVICE: Final = "svc"


class TraceStep(Value, frozen=True):
    """Something on the way: where, what, and the guard or policy that stops the packet there, if one does."""

    where: str
    what: str
    stopped_by: str = ""


class TraceAnswer(Value, frozen=True):
    """What a trace says. ``stopped_by`` is a guard, ``NetworkPolicy NAME``, or what is missing.

    ``behind`` are the guards that would stop the packet if the first did not.
    """

    source: str
    destination: str
    reachable: bool
    steps: tuple[TraceStep, ...]
    stopped_by: str = ""
    reason: str = ""
    behind: tuple[TraceStep, ...] = ()


class TraceTarget(Value, frozen=True):
    """Where a packet is to go: an address, and the pod that has it if one is meant."""

    words: str
    address: str
    port: int
    pod: PodSeen | None = None


class _Ended(Exception):
    """The packet is stopped before it is sent."""

    def __init__(self, by: str, reason: str) -> None:
        super().__init__(reason)
        self.by, self.reason = by, reason


def is_name(picture: Picture, namespace: str, destination: str) -> bool:
    """Whether a destination is a name that no Service of the cluster has: somebody has to resolve it."""
    return (
        "/" not in destination
        and number(destination) is None
        and _NAME.fullmatch(destination) is not None
        and _service_named(picture, namespace, destination) is None
    )


def trace(
    picture: Picture, source: str, destination: str, protocol: Protocol = "tcp", port: int = 0
) -> TraceAnswer:
    """Follow a packet from a pod, NAMESPACE/POD, to where ``destination`` says.

    Raises NotFound for what is not there, InvalidArgument for what cannot be read.
    """
    pod = _pod(picture, source)
    one = _Trace(picture, pod, protocol)
    try:
        one.begin()
        place = one.destination(destination, port)
        one.follow(place)
    except _Ended as stopped:
        return one.answer(source, destination, stopped.by, stopped.reason)
    return one.answer(source, place.words)


def _pod(picture: Picture, words: str) -> PodSeen:
    namespace, _, name = words.partition("/")
    if not name or "/" in name:
        raise InvalidArgument(f"{words!r} is no pod: write NAMESPACE/POD")
    if (found := picture.pods.get((namespace, name))) is None:
        raise NotFound(f"there is no pod {words}")
    return found


def _service_named(picture: Picture, namespace: str, name: str) -> ServiceSeen | None:
    """The Service that a name stands for, in a pod of a namespace."""
    labels = name.rstrip(".").split(".")
    if len(labels) > 2 and labels[2] != _SERVICE:
        return None
    space = labels[1] if len(labels) > 1 else namespace
    return picture.services.get((space, labels[0]))


class _Trace:
    """One packet, and what is said of it."""

    def __init__(self, picture: Picture, pod: PodSeen, protocol: Protocol) -> None:
        self._picture, self._pod, self._protocol = picture, pod, protocol
        self._lease: Lease | None = picture.inside.get((pod.namespace, pod.name))
        self._steps: list[TraceStep] = []
        self._journey: Journey | None = None

    def answer(self, source: str, destination: str, by: str = "", reason: str = "") -> TraceAnswer:
        """All that was found."""
        behind: tuple[TraceStep, ...] = ()
        if self._journey is not None and self._journey.guards:
            behind = tuple(_step(one) for one in self._journey.guards[1:])
        return TraceAnswer(
            source=source,
            destination=destination,
            reachable=not by,
            steps=tuple(self._steps),
            stopped_by=by,
            reason=reason,
            behind=behind,
        )

    def _note(self, where: str, what: str, by: str = "") -> None:
        self._steps.append(TraceStep(where=where, what=what, stopped_by=by))

    def begin(self) -> None:
        """Say where the packet comes from. Raises _Ended when the pod cannot send."""
        words = f"pod {self._pod.namespace}/{self._pod.name}"
        if self._pod.ended or not self._pod.alias:
            raise _Ended("pod", f"{words} does not run")
        if self._lease is not None:
            self._note(words, f"sends from {self._lease.address}, PodIP {self._lease.alias}, in {self._home}")
        else:
            kind = "its node's network" if self._picture.uses_host(self._pod) else "the cluster's own network"
            self._note(words, f"sends from {self._pod.alias}, on {self._pod.node}, in {kind}")

    @property
    def _home(self) -> str:
        assert self._lease is not None
        return f"the network of tenant {self._lease.tenant} on {self._pod.node}"

    # Where to

    def destination(self, words: str, port: int) -> TraceTarget:
        """Read where it is to go. Raises NotFound, InvalidArgument, _Ended."""
        if words.startswith("svc/"):
            namespace, _, name = words.removeprefix("svc/").partition("/")
            if (service := self._picture.services.get((namespace, name))) is None:
                raise NotFound(
                    f"there is no Service {name!r} in namespace {namespace!r}: write svc/NAMESPACE/NAME"
                )
            return self._to_service(service, port)
        if words.startswith("node/"):
            node = self._picture.nodes.get(words.removeprefix("node/"))
            if node is None or not node.address:
                raise NotFound(f"there is no node {words.removeprefix('node/')} with an InternalIP")
            return TraceTarget(words=words, address=node.address, port=port)
        if "/" in words:
            return self._to_pod(_pod(self._picture, words), port)
        if number(words) is not None:
            return TraceTarget(words=words, address=words, port=port)
        if (service := _service_named(self._picture, self._pod.namespace, words)) is not None:
            self._note("name", f"{words} is the Service {service.namespace}/{service.name}")
            return self._to_service(service, port)
        raise InvalidArgument(
            f"{words!r} is no destination: write NAMESPACE/POD, svc/NAMESPACE/NAME, node/NAME or an address"
        )

    def _to_pod(self, pod: PodSeen, port: int) -> TraceTarget:
        words = f"pod {pod.namespace}/{pod.name}"
        if pod.ended or not pod.alias:
            raise _Ended("pod", f"{words} does not run")
        lease = self._picture.inside.get((pod.namespace, pod.name))
        mates = lease is not None and self._lease is not None and lease.tenant == self._lease.tenant
        address = lease.address if mates and lease is not None else pod.alias
        return TraceTarget(words=words, address=address, port=port, pod=pod)

    def _to_service(self, service: ServiceSeen, port: int) -> TraceTarget:
        words = f"Service {service.namespace}/{service.name}"
        if service.external_name:
            raise _Ended("Service", f"{words} stands for the name {service.external_name}: trace that one")
        wanted = [one for one in service.ports if one.protocol.lower() == self._protocol]
        if not port and len(wanted) == 1:
            port = wanted[0].port
        if service.ports and not any(one.port == port for one in wanted):
            told = ", ".join(f"{one.port}/{one.protocol.lower()}" for one in service.ports)
            raise _Ended("Service", f"{words} has the ports {told}, and not {port}/{self._protocol}")
        ready, others = self._endpoints(service, port)
        if not ready:
            said = f"; not ready: {', '.join(others)}" if others else ", and no pod that it selects runs"
            raise _Ended("endpoint", f"{words} has no endpoint that is ready{said}")
        if service.addresses and self._lease is not None:
            if len(ready) > 1 and self._picture.owner(service.namespace) == self._lease.tenant:
                self._note(words, f"leads to one of {len(ready)} endpoints: one of them is followed")
            return TraceTarget(words=words, address=service.addresses[0], port=port)
        who = "kube-proxy leads it to" if service.addresses else "has no address of its own, but those of"
        self._note(words, f"{who} {' or '.join(address for address, _ in ready)}")
        address, inner = ready[0]
        pod = self._picture.at(address)
        port = inner if service.addresses else port
        return self._to_pod(pod, port) if pod else TraceTarget(words=words, address=address, port=port)

    def _endpoints(self, service: ServiceSeen, port: int) -> tuple[list[tuple[str, int]], list[str]]:
        """A Service's endpoints that are ready, as address and port, and the names of the others."""
        ready, others = [], []
        name = next((one.name for one in service.ports if one.port == port), "")
        for one in self._picture.slices.values():
            if (one.namespace, one.service) != (service.namespace, service.name):
                continue
            inner = next((each.port for each in one.ports if each.name == name), port)
            for endpoint in one.endpoints:
                if endpoint.ready or service.unready:
                    ready.append((endpoint.address, inner))
                else:
                    others.append(f"pod {endpoint.pod}" if endpoint.pod else endpoint.address)
        return sorted(ready), sorted(others)

    # The way

    def follow(self, place: TraceTarget) -> None:
        """Follow it there. Raises _Ended."""
        if self._lease is None and not self._picture.uses_host(self._pod):
            self._policies("Egress", self._pod, place.address, place.pod, place)
        packet = Packet(
            source=self._lease.address if self._lease else self._pod.alias,
            destination=place.address,
            protocol=self._protocol,
            port=place.port,
        )
        self._journey = way = self._way(packet)
        for one in way.steps:
            step = _step(one)
            self._steps.append(step)
            if one.guard:
                raise _Ended(one.guard, GUARDS[one.guard])
        self._arrived(way, place)

    def _way(self, packet: Packet) -> Journey:
        concerned = {self._lease.tenant} if self._lease else set()
        concerned |= {one.tenant for one in self._picture.inside.values() if one.alias == packet.destination}
        if (given := self._picture.book.given.get(packet.destination)) is not None:
            concerned |= {given.tenant} & self._picture.tenants.keys()
        machines = self._picture.machines(concerned)
        own = next((one for one in machines if one.name == self._pod.node), None)
        if own is not None and self._lease is not None:
            return journey.frame_from(machines, own, self._lease, packet)
        if own is not None and self._picture.uses_host(self._pod):
            return journey.from_node(machines, own, packet)
        if own is not None:
            return journey.into_node(machines, own, packet, PLAIN)
        # A node without routers stops nothing.
        other = journey.owner(machines, packet.destination)
        if other is not None:
            return journey.into_node(machines, other, packet, OUTSIDE)
        return Journey(steps=(), end=journey.JourneyEnd(kind="world", name=packet.destination), packet=packet)

    def _arrived(self, way: Journey, place: TraceTarget) -> None:
        end = way.end
        match end.kind:
            case "nobody":
                self._note("nobody", end.why)
                raise _Ended("nobody", end.why)
            case "pod":
                self._met(self._picture.pods[tuple(end.name.split("/", 1))])  # type: ignore[index]
            case "router":
                self._note(f"router of {end.name}", "answers itself")
            case "node":
                self._note(f"node {end.name}", "it comes to a port of the node")
            case _:
                self._outside(end.name, place)

    def _outside(self, address: str, place: TraceTarget) -> None:
        """It came to a pod of no tenant's network, or left the cluster."""
        pod = place.pod or self._picture.at(address)
        if pod is None:
            self._note(
                "outside", f"{address} is no pod and no node: the cluster's own network goes on with it"
            )
            return
        own = self._pod if self._lease is None else None
        self._policies("Ingress", pod, self._pod.alias, own, place)
        self._met(pod)

    def _met(self, pod: PodSeen) -> None:
        ready = "" if pod.ready else "; it is not ready, so that no Service sends to it"
        self._note(f"pod {pod.namespace}/{pod.name}", f"it arrives{ready}")

    def _policies(
        self, direction: Direction, own: PodSeen, address: str, other: PodSeen | None, place: TraceTarget
    ) -> None:
        picture = self._picture
        other = other or picture.at(address)
        by = stopped_by(
            picture.policies,
            direction,
            picture.side(own.alias, own),
            picture.side(address, other),
            self._protocol,
            place.port,
        )
        if by:
            names = ", ".join(f"NetworkPolicy {own.namespace}/{one}" for one in by)
            said = "lets nothing out to it" if direction == "Egress" else "lets nothing in from it"
            self._note(f"pod {own.namespace}/{own.name}", f"{names} {said}", names)
            raise _Ended(names, f"{names} {said}")


def _step(one: journey.JourneyStep) -> TraceStep:
    where = f"router of {one.tenant} on {one.node}" if one.tenant else f"node {one.node}"
    what = f"dropped by the guard {one.guard}" if one.guard else one.what
    return TraceStep(where=where, what=what, stopped_by=one.guard)
