"""One node with many tenants, a pod of each: ``python -m tests.tenants.many [TENANTS]``.

How long its agent takes for all of them, from nothing, when it is started again and when the cluster changes,
and what memory it has. The agent is a process of its own, in a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orlop.host import netns
from orlop.tenantnet.model import LocalNetwork, Peer
from tests.tenants.agents import desk
from tests.tenants.world import BLOCKS, CIDR, NODES, TestNode, World

TENANTS = 200
POD = "pod"


def _network(number: int, *, peers: bool = True) -> LocalNetwork:
    return LocalNetwork(
        name=f"tenant{number}",
        vni=1000 + number,
        cidr=CIDR,
        block=BLOCKS[1],
        peers=(Peer(address=NODES[2], block=BLOCKS[2]),) if peers else (),
        allow=("0.0.0.0/0",),
        deny=("169.254.0.0/16",),
    )


def _memory() -> float:
    """Resident memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextmanager
def _timed(name: str, found: dict[str, float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    found[name] = time.perf_counter() - begin


async def _agent(directory: Path, count: int) -> None:
    """Be the agent, once from nothing and once again."""
    found: dict[str, float] = {}
    node = TestNode(directory, 1)
    node.ground = node.ground.__class__(
        address=node.address, aliases="10.64.1.0/24", nodes=node.ground.nodes, closed=node.ground.closed
    )
    node.networks = {f"tenant{number}": _network(number) for number in range(count)}
    fresh = not (directory / "one").exists()
    with _timed("start", found):
        serving = desk(node, directory / "one")
        one = await serving.__aenter__()
    try:
        if fresh:
            with _timed("first pods", found):
                for name in node.networks:
                    await one.call("ADD", f"{POD}-{name}", directory / POD / name, tenant=name)
        else:
            networks = list(node.networks.values())
            with _timed("nothing is new", found):
                await one.agent.renew(node.ground, networks)
            with _timed("one network is new", found):
                await one.agent.renew(node.ground, [_network(0, peers=False), *networks[1:]])
            with _timed("all networks are new", found):
                await one.agent.renew(node.ground, [_network(at, peers=False) for at in range(count)])
        found["memory"] = _memory()
    finally:
        await serving.__aexit__(None, None, None)
    print(json.dumps(found))


def _run(directory: Path, count: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "tests.tenants.many", str(count), str(directory)]
    found: dict[str, float] = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return found


async def _measure(directory: Path, count: int) -> tuple[dict[str, float], dict[str, float]]:
    world = World(directory)
    places = [directory / POD / f"tenant{number}" for number in range(count)]
    try:
        await world.build_nodes()
        for place in places:
            await netns.create(place)
        return _run(directory, count), _run(directory, count)
    finally:
        for place in places:
            await netns.delete(place)
        for router in (directory / "routers1").glob("*"):
            await netns.delete(router)
        await world.clear()


def main() -> None:
    """Print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else TENANTS
    if len(sys.argv) > 2:
        asyncio.run(_agent(Path(sys.argv[2]), count))
        return
    with tempfile.TemporaryDirectory() as scratch:
        first, again = asyncio.run(_measure(Path(scratch), count))
    print(f"| {count} tenants on a node, one pod each | |\n|---|---|")
    print(f"| their first pods, one after the other, each with its router | {first['first pods']:.1f} s |")
    print(f"| an agent that is started again has all of them as they should be | {again['start']:.1f} s |")
    for name in ("nothing is new", "one network is new", "all networks are new"):
        print(f"| the cluster says something, {name} | {again[name]:.2f} s |")
    print(
        f"| memory of the agent, first and started again | {first['memory']:.0f}, {again['memory']:.0f} MB |"
    )


if __name__ == "__main__":
    main()
