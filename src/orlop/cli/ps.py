"""``orlop ps``: which containers there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orlop.cli import filters, output
from orlop.cli.formats import Age, Id, Printer, Row, Shape, moment
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.health import Condition, conditions
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument, NotFound

SHAPE = Shape(
    headings={
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "RunningFor": "CREATED",
        "Status": "STATE",
        "Names": "NAME",
        "PodName": "POD",
        "Handler": "HANDLER",
        "IP": "IP",
        "ImageID": "IMAGE ID",
        "Command": "COMMAND",
        "Created": "CREATED",
        "CreatedAt": "CREATED AT",
        "State": "STATE",
        "ExitCode": "EXIT CODE",
        "Health": "HEALTH",
        "Labels": "LABELS",
        "Mounts": "MOUNTS",
        "Ports": "PORTS",
        "Pod": "POD ID",
        "Restarts": "RESTARTS",
    },
    columns=("ID", "Image", "RunningFor", "Status", "Names", "PodName", "Handler", "IP"),
)
FILTERS = ("id", "name", "label", "status", "exited", "health", "ancestor", "pod", "before", "since")
_SORTS = {"id": "ID", "image": "Image", "names": "Names", "status": "State"}
_STATES = (*session.STATES.values(), "paused")
_HEALTHS = ("starting", "healthy", "unhealthy", "none")
_OF_POD = frozenset({"PodName", "Handler", "IP", "Ports"})
_OF_STATUS = frozenset({"Command", "Mounts"})
_OF_END = frozenset({"Status", "ExitCode"})


@dataclass(frozen=True)
class PsOptions:
    """Which containers, in which order, and how they are shown. ``last`` 0 is all of them."""

    printer: Printer
    filters: filters.Filters = field(default_factory=dict)
    sort: str = "created"
    everything: bool = False
    last: int = 0
    quiet: bool = False
    as_json: bool = False
    whole: bool = False


def checked_filters(texts: Sequence[str]) -> filters.Filters:
    """What ``--filter`` says. Raises InvalidArgument."""
    found = filters.parse(texts, FILTERS)
    for state in found.get("status", ()):
        if state not in _STATES:
            raise InvalidArgument(f"--filter status={state}: there are {', '.join(_STATES)}")
    for code in found.get("exited", ()):
        if not (code.isascii() and code.isdecimal() and len(code) < 4):
            raise InvalidArgument(f"--filter exited={code}: write an exit code")
    for health in found.get("health", ()):
        if health not in _HEALTHS:
            raise InvalidArgument(f"--filter health={health}: there are {', '.join(_HEALTHS)}")
    for name in found.get("name", ()):
        filters.pattern(name)
    return found


class _Seen:
    """A container with what other questions tell of it, asked when somebody wants to know."""

    def __init__(self, client: CriClient, one: pb.Container, condition: Condition) -> None:
        self._client = client
        self._status: pb.ContainerStatusResponse | None = None
        self.one = one
        self.state = "paused" if condition.paused else session.STATES.get(one.state, "unknown")
        self.health = condition.health

    @property
    def name(self) -> str:
        return session.name_of(self.one)

    @property
    def image(self) -> str:
        return str(self.one.image.user_specified_image or self.one.image.image)

    @property
    def shown_state(self) -> str:
        """With the health of one that runs."""
        return f"{self.state} ({self.health})" if self.health and self.state == "running" else self.state

    async def status(self) -> pb.ContainerStatusResponse:
        """Empty when it is just going away."""
        if self._status is None:
            request = pb.ContainerStatusRequest(container_id=self.one.id, verbose=True)
            try:
                self._status = await self._client.runtime.container_status(request)
            except NotFound:
                self._status = pb.ContainerStatusResponse()
        return self._status


async def ps_command(socket: str, wanted: PsOptions) -> None:
    """``orlop ps``."""
    async with session.connect(socket) as client:
        request = pb.ListContainersRequest()
        everything = wanted.everything or wanted.last or {"status", "exited"} & wanted.filters.keys()
        if not everything:
            request.filter.state.state = pb.CONTAINER_RUNNING
        answer = await client.runtime.list_containers(request)
        if wanted.as_json:
            output.print_message(answer)
            return
        found = await _matching(client, answer.containers, wanted.filters)
        # By nanoseconds, which rows do not have: several are made within a second.
        found.sort(key=lambda one: one.one.created_at, reverse=True)
        found = found[: wanted.last or None]
        if wanted.sort == "runningfor":
            found.reverse()
        rows = await _rows(client, found, frozenset() if wanted.quiet else wanted.printer.fields)
    if wanted.sort in _SORTS:
        rows.sort(key=lambda row: row[_SORTS[wanted.sort]])
    if wanted.quiet:
        for row in rows:
            print(row["ID"])
        return
    wanted.printer.show(rows)


async def _matching(
    client: CriClient, containers: Sequence[pb.Container], wanted: filters.Filters
) -> list[_Seen]:
    known = await conditions(client) if containers else {}
    seen = [_Seen(client, one, known.get(one.id, Condition())) for one in containers]
    if not wanted:
        return seen
    codes = {}
    if "exited" in wanted:
        codes = {one.one.id: (await one.status()).status.exit_code for one in seen if one.state == "exited"}
    pods = {}
    if "pod" in wanted:
        listed = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
        pods = {one.id: session.name_of(one) for one in listed}
    times = {
        name: (await session.find_container(client, name)).created_at
        for key in ("before", "since")
        for name in wanted.get(key, ())
    }
    tests: dict[str, filters.Test] = {
        "id": lambda one, text: one.one.id.startswith(text),
        "name": lambda one, text: filters.pattern(text).search(one.name) is not None,
        "label": lambda one, text: filters.labelled(one.one.labels, text),
        "status": lambda one, text: one.state == text,
        "exited": lambda one, text: codes.get(one.one.id) == int(text),
        "health": lambda one, text: (one.health or "none") == text,
        "ancestor": _descends,
        "pod": lambda one, text: (
            one.one.pod_sandbox_id.startswith(text) or pods.get(one.one.pod_sandbox_id) == text
        ),
        "before": lambda one, text: one.one.created_at < times[text],
        "since": lambda one, text: one.one.created_at > times[text],
    }
    return [one for one in seen if filters.matches(one, wanted, tests)]


def _descends(one: _Seen, text: str) -> bool:
    """By the image's id, or its name with or without tag and registry."""
    if len(text) >= 3 and one.one.image_id.removeprefix("sha256:").startswith(text.removeprefix("sha256:")):
        return True
    tagged = one.image.rpartition("/")[2].partition(":")[1]
    names = {one.image, one.image if tagged else f"{one.image}:latest"}
    names |= {name.rpartition(":")[0] for name in names}
    return any(name == text or name.endswith(f"/{text}") for name in names)


async def _rows(client: CriClient, found: Sequence[_Seen], fields: frozenset[str]) -> list[Row]:
    pods: dict[str, dict[str, Any]] = {}
    if _OF_POD & fields:
        for one in found:
            if one.one.pod_sandbox_id not in pods:
                pods[one.one.pod_sandbox_id] = await _pod_facts(client, one.one.pod_sandbox_id)
    nothing = dict.fromkeys(_OF_POD, "")
    return [await _row(one, pods.get(one.one.pod_sandbox_id, nothing), fields) for one in found]


async def _row(seen: _Seen, pod: Row, fields: frozenset[str]) -> Row:
    one = seen.one
    told = pb.ContainerStatusResponse()
    if _OF_STATUS & fields or (_OF_END & fields and one.state == pb.CONTAINER_EXITED):
        told = await seen.status()
    status, info = told.status, json.loads(told.info.get("info", "{}"))
    reason = f", {status.reason}" if status.reason not in ("", "Completed", "Error") else ""
    ended = seen.state == "exited"
    image = seen.image
    return {
        **pod,
        "ID": Id(one.id),
        "Image": image,
        "ImageID": Id(one.image_id),
        "Command": list(info.get("runtimeSpec", {}).get("process", {}).get("args", [])),
        "Created": Age(one.created_at // 1_000_000_000),
        "CreatedAt": moment(one.created_at),
        "RunningFor": str(Age(one.created_at // 1_000_000_000)),
        "State": seen.state,
        "Status": f"{seen.state} ({status.exit_code}{reason})" if ended else seen.shown_state,
        "ExitCode": status.exit_code if ended else None,
        "Health": seen.health,
        "Names": seen.name,
        "Labels": dict(one.labels),
        "Mounts": [mount.container_path for mount in status.mounts],
        "Pod": Id(one.pod_sandbox_id),
        "Restarts": one.metadata.attempt,
    }


async def _pod_facts(client: CriClient, pod_id: str) -> dict[str, Any]:
    """Of a pod; nothing when it is just going away."""
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    try:
        answer = await client.runtime.pod_sandbox_status(request)
    except NotFound:
        return dict.fromkeys(_OF_POD, "")
    status = answer.status
    info = json.loads(answer.info.get("info", "{}"))
    return {
        "PodName": f"{status.metadata.namespace}/{session.name_of(status)}",
        # The status has the handler that was asked for, "" for the node's default; the info the one it got.
        "Handler": str(info.get("handler") or status.runtime_handler),
        "IP": status.network.ip,
        "Ports": [shown_port(one) for one in info.get("ports") or ()],
    }


def shown_port(one: Row) -> str:
    """A port of this machine that leads into a pod, as podman's lists have it."""
    return f"{shown_address(one)}->{one['inside']}/{one['protocol'].lower()}"


def shown_address(one: Row) -> str:
    """Where it is on this machine."""
    address = one["address"] or "0.0.0.0"
    return f"[{address}]:{one['port']}" if ":" in address else f"{address}:{one['port']}"
