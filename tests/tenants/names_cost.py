"""How long a pod waits for a name while another tenant's pods ask as much as they can.

``python -m tests.tenants.names_cost``, as root: it makes the two nodes of the tests, floods from two pods of
the tenant green, and asks from one of blue, first under the router's limit, then without it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.tenants.test_names import serving
from tests.tenants.world import DNS, World

FLOOD, ASKED = 6.0, 2.0
"""Seconds of flooding, and of asking meanwhile."""


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return random.randbytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def flood(line: socket.socket, tenant: str, seconds: float) -> str:
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        line.send(question(f"x{random.randrange(10**9)}.{tenant}.svc.cluster.local"))
        sent += 1
    return f"{sent / seconds:.0f} questions a second"


def ask(line: socket.socket, tenant: str, seconds: float) -> str:
    took, lost, end = [], 0, time.monotonic() + seconds
    while time.monotonic() < end:
        asked, begun = question(f"web.{tenant}.svc.cluster.local"), time.perf_counter()
        line.send(asked)
        try:
            while line.recv(2000)[:2] != asked[:2]:
                pass
            took.append(1000 * (time.perf_counter() - begun))
        except TimeoutError:
            lost += 1
        time.sleep(0.005)
    took.sort()
    middle, late = took[len(took) // 2], took[int(len(took) * 0.99)]
    return f"{len(took)} answered, {lost} lost, half within {middle:.2f} ms, 99 of 100 within {late:.1f} ms"


def caller(what: str, tenant: str, seconds: float) -> None:
    """Be a pod."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect((DNS, 53))
        line.settimeout(2)
        print((flood if what == "flood" else ask)(line, tenant, seconds))


async def pod(place: Path, what: str, tenant: str, seconds: float) -> str:
    argv = [sys.executable, "-m", "tests.tenants.names_cost", what, tenant, str(seconds)]
    child = await asyncio.create_subprocess_exec("nsenter", f"--net={place}", *argv, stdout=-1)
    said, _ = await child.communicate()
    return said.decode().strip()


async def flooded(world: World, about: str) -> None:
    spent, begun = time.process_time(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        floods = [
            group.create_task(pod(world.pod("green", 1, number), "flood", "green", FLOOD))
            for number in (2, 3)
        ]
        await asyncio.sleep(1)
        print(f"{about}:", await pod(world.pod("blue", 1), "ask", "blue", ASKED))
    share = (time.process_time() - spent) / (time.monotonic() - begun)
    print("  flooded with", " and ".join(one.result() for one in floods), f"; of a processor {share:.2f}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        world = World(Path(scratch))
        try:
            await world.build()
            async with serving(world.nodes[1], Path(scratch, "none")):
                print("quiet:", await pod(world.pod("blue", 1), "ask", "blue", ASKED))
                await flooded(world, "under the router's limit")
                world.nodes[1].guards("green").take_away("dns-questions")
                await flooded(world, "without it")
        finally:
            await world.clear()


if __name__ == "__main__":
    if sys.argv[1:]:
        caller(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    else:
        asyncio.run(main())
