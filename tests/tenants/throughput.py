"""What goes through routers and VXLAN, beside a plain bridge: ``python -m tests.tenants.throughput``.

iperf3 between network namespaces of one machine, which does the work of sender, way and receiver.
Rounds take turns, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orlop.host import netns
from tests.conformance import tools
from tests.tenants.world import PLAIN, World, command, eventually, world

ROUNDS, SECONDS, TRIES = 5, 2, 5
PORT = 5201
LIMIT = 60.0
SMALL = 64
"""Bytes in a datagram of those that are counted."""


class Way:
    """From one network namespace to an address in another."""

    def __init__(self, sender: Path, receiver: Path, address: str) -> None:
        self.sender, self.receiver, self.address = sender, receiver, address


async def _bridge(directory: Path) -> Way:
    """Two pods on a bridge as the reference plug-in makes it, without anything that filters."""
    middle, one, other = (directory / name for name in ("bridge", "bridge-one", "bridge-other"))
    for place in (middle, one, other):
        await netns.create(place)
    command(middle, "ip", "link", "add", "plain", "type", "bridge")
    command(middle, "ip", "link", "set", "plain", "up")
    for number, place in ((2, one), (3, other)):
        ends = ["name", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", str(place)]
        command(middle, "ip", "link", "add", *ends)
        command(middle, "ip", "link", "set", f"p{number}", "master", "plain", "up")
        command(place, "ip", "address", "add", f"10.99.0.{number}/24", "dev", "eth0")
        command(place, "ip", "link", "set", "eth0", "up")
    return Way(one, other, "10.99.0.3")


def _ways(one: World, bridge: Way) -> dict[str, Way]:
    first, second = one.nodes[1], one.nodes[2]
    return {
        "a plain bridge, two pods of a node": bridge,
        "the router, two pods of a node": Way(one.pod("blue", 1, 2), one.pod("blue", 1, 3), "10.0.1.3"),
        "plain routing, pods of two nodes": Way(first.plain, second.plain, PLAIN[2]),
        "routers and VXLAN, pods of two nodes": Way(one.pod("blue", 1), one.pod("blue", 2), "10.0.2.2"),
    }


class Iperf:
    """Debian's iperf3, which is not installed."""

    def __init__(self) -> None:
        root = tools.debian_packages(["iperf3", "libiperf0", "libsctp1"])
        self._program = root / "usr/bin/iperf3"
        libraries = ":".join(os.fspath(path) for path in (root / "usr/lib").glob("*-linux-gnu"))
        self._environment = {**os.environ, "LD_LIBRARY_PATH": libraries}

    @contextmanager
    def server(self, place: Path) -> Iterator[None]:
        """One that waits in a network namespace."""
        argv = ["nsenter", f"--net={place}", self._program, "--server"]
        with subprocess.Popen(argv, env=self._environment, stdout=subprocess.DEVNULL) as child:
            try:
                eventually(lambda: f":{PORT}" in command(place, "ss", "-Htln"), "iperf3 does not listen")
                yield
            finally:
                child.kill()

    def measure(self, way: Way, what: str, *arguments: str) -> Mapping[str, Any]:
        """What it counted at the end, under the name ``what``."""
        argv = ["nsenter", f"--net={way.sender}", self._program, "--client", way.address, "--json"]
        argv += [f"--time={SECONDS}", *arguments]
        for _ in range(TRIES):
            done = subprocess.run(
                argv, env=self._environment, capture_output=True, timeout=LIMIT, check=False
            )
            said: dict[str, Any] = json.loads(done.stdout)
            # On a busy machine the datagrams with which it begins and ends are lost as well.
            if found := said.get("end", {}).get(what):
                return dict(found)
        raise RuntimeError(f"iperf3 to {way.address}: {said.get('error')}")


def _once(iperf: Iperf, way: Way) -> tuple[float, float]:
    """Gbit/s of one TCP connection, and thousands of small datagrams that arrive in a second."""
    with iperf.server(way.receiver):
        stream = iperf.measure(way, "sum_received")
        small = iperf.measure(way, "sum", "--udp", "--bitrate=0", f"--length={SMALL}")
    arrived = (small["packets"] - small["lost_packets"]) / small["seconds"]
    return stream["bits_per_second"] / 1e9, arrived / 1e3


def main() -> None:
    """Print a table."""
    iperf = Iperf()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with world(directory) as one:
            bridge = asyncio.run(_bridge(directory))
            try:
                for _ in range(ROUNDS):
                    for name, way in _ways(one, bridge).items():
                        found.setdefault(name, []).append(_once(iperf, way))
            finally:
                for name in ("bridge", "bridge-one", "bridge-other"):
                    asyncio.run(netns.delete(directory / name))
    print(f"| way | TCP, Gbit/s | datagrams of {SMALL} bytes, thousands/s |\n|---|---|---|")
    for name, pairs in found.items():
        streams, small = ([pair[place] for pair in pairs] for place in (0, 1))
        print(f"| {name} | {_cell(streams)} | {_cell(small)} |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
