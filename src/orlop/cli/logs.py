"""``orlop logs``."""

from __future__ import annotations

from typing import NamedTuple

from orlop.cli import streams
from orlop.client import session
from orlop.client.node import Node


class Excerpt(NamedTuple):
    """Which part of a log. ``tail`` -1 is all of it; times are seconds since 1970."""

    tail: int
    since: float
    until: float


async def logs_command(socket: str, name: str, span: Excerpt, *, follow: bool, timestamps: bool) -> None:
    """``orlop logs``."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        lines = container.logs(follow=follow, tail=span.tail, since=span.since, until=span.until)
        async for line in lines:
            streams.show(line, timestamps=timestamps)
