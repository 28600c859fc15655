"""``orlop tenants trace``."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.tenants import connected
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.tenants.picture import Picture
    from orlop.tenants.tracing import Protocol, TraceAnswer


class TraceQuestion(NamedTuple):
    """What is asked: from, to, PORT[/PROTOCOL], and what the agents were told with ``--closed``."""

    pod: str
    destination: str
    port: str
    closed: tuple[str, ...]


async def command(
    kubeconfig: Path | None, context: str | None, asked: TraceQuestion, *, as_json: bool
) -> int:
    """Trace; the exit code."""
    protocol, port = _port(asked)
    async with connected(kubeconfig, context) as api:
        from orlop.tenants.picture import look
        from orlop.tenants.tracing import trace

        picture = await look(api, closed=asked.closed)
    target, resolved = await _resolved(picture, asked)
    answer = trace(picture, asked.pod, target, protocol, port)
    if as_json:
        output.print_json(msgspec.to_builtins(answer))
    else:
        _show(answer, resolved)
    return 0 if answer.reachable else 1


def _port(asked: TraceQuestion) -> tuple[Protocol, int]:
    if not asked.port:
        # A Service has no answer to pings, and most often one port.
        return ("tcp" if asked.destination.startswith("svc/") else "icmp"), 0
    found = re.fullmatch(r"(\d{1,5})(?:/(tcp|udp))?", asked.port)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise InvalidArgument(f"{asked.port!r} is no port: write PORT or PORT/udp")
    return ("udp" if found[2] == "udp" else "tcp"), int(found[1])


async def _resolved(picture: Picture, asked: TraceQuestion) -> tuple[str, str]:
    """The destination, a name of the world by its address, and what was done about it."""
    from orlop.tenants.tracing import is_name

    if not is_name(picture, asked.pod.partition("/")[0], asked.destination):
        return asked.destination, ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(asked.destination, None, family=socket.AF_INET)
    except OSError as error:
        raise CliError(f"{asked.destination} has no address here: {error.strerror}", exit_code=2) from error
    address = str(found[0][4][0])
    return address, f"{asked.destination} is {address}, as this machine resolves it, and not the pod"


def _show(answer: TraceAnswer, resolved: str) -> None:
    if resolved:
        print(resolved)
    output.table(("WHERE", "WHAT"), [(one.where, one.what) for one in answer.steps])
    if answer.reachable:
        print("reachable")
        return
    print(f"not reachable: {answer.stopped_by}: {answer.reason}")
    for one in answer.behind:
        print(f"  behind that: {one.stopped_by}, {one.where}")
