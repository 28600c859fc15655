"""What ADD and DEL cost, beside the bridge plug-in and in turn with it: ``python -m tests.tenants.cost``.

In a network namespace of its own. The program for other runtimes stands beside the call that Orlop makes.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from orlop.host import netns
from orlop.net import plugins
from orlop.net.plugins import Invocation
from orlop.tenantnet import program
from tests.tenants.agents import desk
from tests.tenants.world import LIMIT, World

ROUNDS = 40
BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
Call = Callable[[str, str, Path], Awaitable[object]]


async def _timed(call: Call, name: str, directory: Path) -> tuple[float, float]:
    """Milliseconds of ADD and of DEL of one pod."""
    place = directory / name
    await netns.create(place)
    try:
        start = time.perf_counter()
        await call("ADD", name, place)
        middle = time.perf_counter()
        await call("DEL", name, place)
        return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3
    finally:
        await netns.delete(place)


async def measure(directory: Path, standing: int) -> dict[str, list[tuple[float, float]]]:
    """The times, with so many pods of the tenant on the node beside."""
    world = World(directory)
    found: dict[str, list[tuple[float, float]]] = {}
    others = [directory / f"other{number}" for number in range(standing)]
    try:
        await world.build_nodes()
        async with desk(world.nodes[1], directory / "one") as one:
            program.install(directory / "bin", one.socket)
            for place in others:
                await netns.create(place)
                await one.call("ADD", place.name, place)

            async def tenant(command: str, name: str, place: Path) -> object:
                return await one.call(command, name, place)

            def started(document: dict[str, object], *directories: str) -> Call:
                async def call(command: str, name: str, place: Path) -> object:
                    arguments = (
                        ("IgnoreUnknown", "1"),
                        ("K8S_POD_NAMESPACE", "blue"),
                        ("K8S_POD_NAME", name),
                    )
                    invocation = Invocation(
                        container_id=name, netns=str(place), interface="eth0", arguments=arguments
                    )
                    return await plugins.execute(
                        command, document, invocation, bin_dirs=directories, timeout=LIMIT
                    )

                return call

            ipam = {
                "type": "host-local",
                "dataDir": str(directory / "ipam"),
                "ranges": [[{"subnet": "10.99.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
            common = {"cniVersion": "1.0.0", "name": "cluster"}
            bridge = {**common, "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
            calls: dict[str, Call] = {
                "bridge plug-in": started(bridge, *BIN_DIRS),
                "tenant, asked by Orlop": tenant,
                "tenant, as a program": started({**common, "type": program.NAME}, str(directory / "bin")),
            }
            for number in range(ROUNDS):
                for kind, call in calls.items():
                    found.setdefault(kind, []).append(await _timed(call, f"{len(kind)}-{number}", directory))
    finally:
        for place in others:
            await netns.delete(place)
        await world.clear()
    return found


def main() -> None:
    """Print a table."""
    if sys.argv[1:] != ["inside"]:
        sys.exit(subprocess.call(["unshare", "--net", sys.executable, "-m", "tests.tenants.cost", "inside"]))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(
        "| pods of the tenant on the node | | ADD ms, median (p90) | DEL ms, median (p90) |\n"
        "|---|---|---|---|"
    )
    for standing in (0, 100):
        with tempfile.TemporaryDirectory() as directory:
            found = asyncio.run(measure(Path(directory), standing))
        for kind, times in found.items():
            cells = [_cell([one[place] for one in times]) for place in (0, 1)]
            print(f"| {standing} | {kind} | {cells[0]} | {cells[1]} |")


def _cell(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({statistics.quantiles(times, n=10)[-1]:.1f})"


if __name__ == "__main__":
    main()
