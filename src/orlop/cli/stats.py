"""``orlop stats``: what containers use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from orlop.cli.formats import Bytes, Id, Printer, Shape
from orlop.client import session
from orlop.cri.api import runtime_v1_pb2 as pb

SHAPE = Shape(
    headings={"ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU", "MemUsage": "MEMORY", "Disk": "DISK"},
    columns=("ID", "Name", "CPUPerc", "MemUsage", "Disk"),
)


async def stats_command(socket: str, names: Sequence[str], interval: float, printer: Printer) -> None:
    """One table of the running containers, or of those named; CPU measured over ``interval`` seconds."""
    async with session.connect(socket) as client:
        chosen = {(await session.find_container(client, name)).id for name in names}
        before = await client.runtime.list_container_stats(pb.ListContainerStatsRequest())
        started = time.monotonic()
        await asyncio.sleep(interval)
        after = await client.runtime.list_container_stats(pb.ListContainerStatsRequest())
        elapsed = time.monotonic() - started
    used = {one.attributes.id: one.cpu.usage_core_nano_seconds.value for one in before.stats}
    rows = []
    for one in after.stats:
        if chosen and one.attributes.id not in chosen:
            continue
        now = one.cpu.usage_core_nano_seconds.value
        share = (now - used.get(one.attributes.id, now)) / 1e9 / elapsed
        rows.append(
            {
                "ID": Id(one.attributes.id),
                "Name": session.name_of(one.attributes),
                "CPUPerc": f"{share * 100:.1f} %",
                "MemUsage": Bytes(one.memory.working_set_bytes.value),
                "Disk": Bytes(one.writable_layer.used_bytes.value),
            }
        )
    printer.show(rows)
