"""``orlop top``: what pods use, live or once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from orlop.cli import output
from orlop.cli.observe import figures
from orlop.cli.observe.figures import Moment, PodFigures
from orlop.cli.units import show_size
from orlop.client import session
from orlop.client.calls import CriClient

HEADER = ("POD", "HANDLER", "CPU", "PRIVATE", "SHARED", "USED", "READ/S", "WRITE/S", "RECV/S", "SENT/S")


@dataclass(frozen=True, kw_only=True)
class Use:
    """A pod's figures with rates over an interval: processors in use, bytes per second."""

    pod: PodFigures
    cpus: float
    read: float
    written: float
    received: float
    sent: float


def uses(before: Moment, after: Moment) -> list[Use]:
    """The pods of ``after``, the busiest first. One that is new has no rates yet."""
    seconds = max(after.at - before.at, 1e-9)
    earlier = {pod.id: pod for pod in before.pods}

    def use(pod: PodFigures) -> Use:
        old = earlier.get(pod.id, pod)

        def rate(name: str, scale: float = 1.0) -> float:
            moved: int = getattr(pod, name) - getattr(old, name)
            return max(0.0, moved / scale / seconds)

        return Use(
            pod=pod,
            cpus=rate("cpu_ns", 1e9),
            read=rate("read"),
            written=rate("written"),
            received=rate("received"),
            sent=rate("sent"),
        )

    return sorted(map(use, after.pods), key=lambda one: (-one.cpus, one.pod.namespace, one.pod.name))


def document(found: Sequence[Use], gauges: dict[str, float]) -> dict[str, object]:
    """The same as JSON has it: bytes, bytes per second, processors."""
    rates = ("cpus", "read", "written", "received", "sent")
    pods = [
        {key: value for key, value in asdict(one.pod).items() if key not in rates}
        | {f"{key}_per_second" if key != "cpus" else key: round(getattr(one, key), 4) for key in rates}
        for one in found
    ]
    return {"pods": pods, "node": gauges}


def rows(found: Sequence[Use]) -> list[tuple[str, ...]]:
    """The lines of the table, below :data:`HEADER`."""
    return [
        (
            f"{one.pod.namespace}/{one.pod.name}",
            one.pod.handler,
            f"{one.cpus * 100:.1f} %",
            *(show_size(size) for size in (one.pod.private, one.pod.shared, one.pod.used)),
            *(show_size(int(rate)) for rate in (one.read, one.written, one.received, one.sent)),
        )
        for one in found
    ]


def summary(found: Sequence[Use], gauges: dict[str, float]) -> str:
    """The line above the table."""
    private = show_size(sum(one.pod.private for one in found))
    ready = int(gauges.get("orlop_vm_pool_ready", 0))
    pool = f"{ready} ready VMs in the pool, {show_size(int(gauges.get('orlop_vm_pool_bytes', 0)))}"
    return f"{len(found)} pods, {sum(one.cpus for one in found):.2f} processors, {private} their own; {pool}"


async def top_command(socket: str, *, once: bool, interval: float, as_json: bool) -> None:
    """``orlop top``."""
    async with session.connect(socket) as client:
        handlers: dict[str, str] = {}
        before = await figures.moment(client, handlers)
        if not once and not as_json and output.console().is_terminal:
            await _live(client, before, handlers, interval)
            return
        while True:
            await asyncio.sleep(interval)
            after = await figures.moment(client, handlers)
            found = uses(before, after)
            if as_json:
                print(json.dumps(document(found, after.gauges)), flush=True)
            else:
                print(summary(found, after.gauges))
                output.table(HEADER, rows(found))
            if once:
                return
            before = after


async def _live(client: CriClient, before: Moment, handlers: dict[str, str], interval: float) -> None:
    from rich.live import Live
    from rich.table import Table

    with Live(console=output.console(), screen=True, auto_refresh=False) as screen:
        while True:
            await asyncio.sleep(interval)
            after = await figures.moment(client, handlers)
            found = uses(before, after)
            table = Table(title=summary(found, after.gauges), box=None, title_justify="left")
            for number, name in enumerate(HEADER):
                table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
            for row in rows(found):
                table.add_row(*row)
            screen.update(table, refresh=True)
            before = after
