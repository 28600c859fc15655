"""``orlop events``: what happened to pods and containers, and what happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from orlop.cli.filters import Test, matches
from orlop.cli.filters import parse as checked
from orlop.cli.formats import Row, TextTemplate
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.events import Told, happening
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import NotFound
from orlop.host.tasks import beside
from orlop.native.api import native_v1_pb2 as native

_HEALTH = "health_status"
FILTERS = ("event", "type", "container", "pod")
_TESTS: dict[str, Test] = {
    "event": lambda one, text: one.event == text,
    "type": lambda one, text: one.row()["Type"] == text,
    "container": lambda one, text: bool(one.container) and _is_called(one.id, one.container, text),
    "pod": lambda one, text: text in (one.pod, one.pod.rpartition("/")[2]),
}


def _is_called(own: str, name: str, text: str) -> bool:
    return text == name or (len(text) >= 3 and own.startswith(text))


class Happening(NamedTuple):
    """One event. ``container`` is "" for what happened to the pod itself; ``at`` is in nanoseconds."""

    at: int
    event: str
    pod: str
    container: str
    id: str
    exit_code: int | None = None
    reason: str = ""
    health: str = ""

    @property
    def when(self) -> str:
        """As RFC 3339 has it."""
        return datetime.fromtimestamp(self.at / 1e9, UTC).isoformat(timespec="milliseconds")

    def row(self) -> Row:
        """By the names of podman's fields."""
        return {
            "Time": self.when,
            "Type": "container" if self.container else "pod",
            "Status": self.event,
            "ID": self.id,
            "Name": self.container or self.pod,
            "PodName": self.pod,
            "ContainerExitCode": self.exit_code,
            "Reason": self.reason,
            "HealthStatus": self.health,
        }

    def line(self) -> str:
        """For people."""
        ending = f"  {self.health}" if self.health else ""
        if self.exit_code is not None:
            ending = f"  exit code {self.exit_code} {self.reason}".rstrip()
        where = f"{self.pod} {self.container}".rstrip()
        return f"{self.when}  {self.event:<13} {self.id[:13]}  {where}{ending}"


class Telling:
    """Prints events that ``filters`` let pass: a line for each, an object for ``json``, or by a template."""

    def __init__(self, text: str, filters: Sequence[str]) -> None:
        self._filters = checked(filters, FILTERS)
        self._json = text == "json"
        self._template = TextTemplate(text) if text and not self._json else None
        if self._template is not None:
            self._template.check(Happening(0, "", "", "", "").row())

    def show(self, found: Iterable[Happening]) -> None:
        """Print them in their order."""
        for one in sorted(found, key=lambda one: one.at):
            if matches(one, self._filters, _TESTS):
                print(self._text(one), flush=True)

    def _text(self, one: Happening) -> str:
        if self._json:
            return json.dumps(one._asdict() | {"time": one.when})
        return one.line() if self._template is None else self._template.fill(one.row())


async def events_command(socket: str, telling: Telling, *, follow: bool) -> None:
    """``orlop events``: what is known of what exists; with ``follow``, what happens from then on as well."""
    async with session.connect(socket) as client:
        if not follow:
            telling.show(await _past(client))
            return
        stream = happening(client)

        async def one() -> Told:
            return await anext(stream)

        # Asked for before the past is: what happens in between may be there twice, but is never missed.
        async with beside(one()) as first:
            telling.show(await _past(client))
            telling.show([_happening(await first)])
        async for event in stream:
            telling.show([_happening(event)])


async def _past(client: CriClient) -> list[Happening]:
    pods = {one.id: one for one in (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items}
    found = [Happening(one.created_at, "created", _pod_name(one), "", one.id) for one in pods.values()]
    containers = await client.runtime.list_containers(pb.ListContainersRequest())
    for one in containers.containers:
        if (pod := pods.get(one.pod_sandbox_id)) is None:
            continue
        try:
            request = pb.ContainerStatusRequest(container_id=one.id, verbose=True)
            told = await client.runtime.container_status(request)
        except NotFound:
            continue
        info = json.loads(told.info.get("info", "{}"))
        found += _of_container(_pod_name(pod), told.status, info.get("health", {}))
    return found


def _of_container(pod: str, status: pb.ContainerStatus, health: Mapping[str, Any]) -> Iterable[Happening]:
    name, own = session.name_of(status), status.id
    yield Happening(status.created_at, "created", pod, name, own)
    if status.started_at:
        yield Happening(status.started_at, "started", pod, name, own)
    if results := health.get("log"):
        yield Happening(results[-1]["end"], _HEALTH, pod, name, own, health=health["status"])
    if status.finished_at:
        yield Happening(status.finished_at, "stopped", pod, name, own, status.exit_code, status.reason)


def _happening(event: Told) -> Happening:
    if isinstance(event, native.WatchHealthResponse):
        name, own = event.container_name, event.container_id
        return Happening(event.at, _HEALTH, event.pod_name, name, own, health=event.health)
    pod = _pod_name(event.pod_sandbox_status)
    kind = session.EVENTS.get(event.container_event_type, "unknown")
    status = next((one for one in event.containers_statuses if one.id == event.container_id), None)
    if status is None:
        return Happening(event.created_at, kind, pod, "", event.container_id)
    ended = kind == "stopped"
    return Happening(
        event.created_at,
        kind,
        pod,
        session.name_of(status),
        event.container_id,
        status.exit_code if ended else None,
        status.reason if ended else "",
    )


def _pod_name(pod: pb.PodSandbox | pb.PodSandboxStatus) -> str:
    return f"{pod.metadata.namespace}/{session.name_of(pod)}"
