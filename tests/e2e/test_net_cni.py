"""Pod networks with the reference CNI plug-ins, on the real kernel. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.config import NetworkConfig
from orlop.errors import Unavailable
from orlop.host import netns as namespaces
from orlop.host import process
from orlop.linux.netlink import Netlink
from orlop.net import conflist, links, tap
from orlop.net.chain import Attachment, AttachmentRecords
from orlop.net.network import PodNetwork
from orlop.sandbox.spec import PortMapping
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NUMBER = os.getpid() % 250  # runs at the same time must not share a bridge, a network or a port
SUBNET, SUBNET6 = f"10.213.{NUMBER}.0/24", f"fd13:{NUMBER:x}::/64"
BRIDGE = f"orlopcni{NUMBER}"
HOST_PORT = 18000 + NUMBER
BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")


def _conflist(leases: Path) -> str:
    document = json.loads(conflist.default_conflist([SUBNET, SUBNET6], name="orloptest", bridge=BRIDGE))
    document["plugins"][0]["ipam"]["dataDir"] = str(leases)
    del document["orlop.masquerade"]  # the table of a real daemon on this machine stays as it is
    return json.dumps(document)


def _leases(tmp_path: Path) -> list[str]:
    directory = tmp_path / "leases" / "orloptest"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(name for name in names if name.startswith(("10.", "fd")))


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[PodNetwork]:
    conf = tmp_path / "net.d"
    conf.mkdir()
    (conf / "10-test.conflist").write_text(_conflist(tmp_path / "leases"))
    config = NetworkConfig(conf_dir=str(conf), bin_dirs=BIN_DIRS, timeout=20 * PATIENCE)
    yield PodNetwork(config, tmp_path / "attached")
    await process.run(["ip", "link", "delete", BRIDGE], check=False)


@contextlib.asynccontextmanager
async def _netns(path: Path) -> AsyncIterator[Path]:
    await namespaces.create(path)
    try:
        yield path
    finally:
        await namespaces.delete(path)


async def _attach(network: PodNetwork, pod: str, path: Path, *ports: PortMapping) -> tuple[str, ...]:
    found = await network.attach(pod, path, name="web", namespace="default", uid="u1", port_mappings=ports)
    return found.ips


def _listen(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, 8080))
    server.listen()
    return server


async def _listening(place: Path, address: str) -> socket.socket:
    """A server in a network namespace. IPv6 looks for duplicates before anybody has the address."""
    async with asyncio.timeout(60 * PATIENCE):
        while True:
            try:
                return await namespaces.within(place, lambda: _listen(address))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                await asyncio.sleep(0.1)


def _call(address: str, port: int = 8080) -> None:
    socket.create_connection((address, port), timeout=30).close()


def _reach(address: str) -> None:
    """The caller's own address may not be there yet, for the same reason."""
    limit = time.monotonic() + 60 * PATIENCE
    while True:
        try:
            return _call(address)
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


async def test_an_address_that_comes_round_is_reached_at_once(network: PodNetwork, tmp_path: Path) -> None:
    """The kernel remembers the MAC of the pod that had it before."""
    async with _netns(tmp_path / "first") as first, _netns(tmp_path / "second") as second:
        # One stays, or the bridge loses its carrier and the kernel forgets everything.
        taken = await _attach(network, "first", first)
        following = [str(ipaddress.ip_address(ip) + 1) for ip in taken]
        for ip in following:
            known = ["ip", "neigh", "replace", ip, "lladdr", "02:00:00:00:00:01", "dev", BRIDGE]
            await process.run([*known, "nud", "reachable"])
        assert list(await _attach(network, "second", second)) == following
        (mac,) = {link.mac for link in await namespaces.within(second, _links) if link.name == "eth0"}
        for ip in following:
            await _until_known(ip, mac)
        await network.detach("second", second)
        await network.detach("first", first)


def _links() -> list[links.Link]:
    with Netlink() as kernel:
        return links.links(kernel)


async def _until_known(ip: str, mac: str) -> None:
    """Until the host has the address at that MAC. It asks nobody: what it knows was said to it."""
    limit = time.monotonic() + 5 * PATIENCE
    while True:
        done = await process.run(["ip", "neigh", "show", ip, "dev", BRIDGE])
        if mac in done.stdout.decode():
            return
        assert time.monotonic() < limit, done.stdout.decode()
        await asyncio.sleep(0.02)


async def test_two_pods_reach_each_other_over_both_families(network: PodNetwork, tmp_path: Path) -> None:
    assert await network.ready() == ""
    async with _netns(tmp_path / "a") as a, _netns(tmp_path / "b") as b:
        first = await _attach(network, "pod-a", a)
        second = await _attach(network, "pod-b", b)
        assert len(first) == 2
        assert not set(first) & set(second)
        assert network.result("pod-a").ips == first  # type: ignore[union-attr]
        for address in first:
            server = await _listening(a, address)
            with server:
                await namespaces.within(b, lambda address=address: _reach(address))
                await asyncio.to_thread(_reach, address)
        await network.check("pod-a")
        assert len(_leases(tmp_path)) == 4
        await network.detach("pod-a", a)
        await network.detach("pod-a", a)
        await network.detach("pod-b", b)
        assert _leases(tmp_path) == []
        with pytest.raises(Unavailable, match="not attached"):
            await network.check("pod-a")


async def test_host_port_leads_into_the_pod(network: PodNetwork, tmp_path: Path) -> None:
    async with _netns(tmp_path / "a") as a:
        mapping = PortMapping(protocol="tcp", container_port=8080, host_port=HOST_PORT)
        (address, *_) = await _attach(network, "pod-a", a, mapping)
        server = await _listening(a, address)
        gateway = address.rpartition(".")[0] + ".1"
        with server:
            await asyncio.to_thread(_call, gateway, HOST_PORT)
        await network.detach("pod-a", a)
        with pytest.raises(OSError):
            await asyncio.to_thread(_call, gateway, HOST_PORT)


async def test_failing_plugin_is_named_and_leaves_no_lease(network: PodNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-test.conflist"
    document = json.loads(path.read_text())
    document["plugins"].append({"type": "tuning", "sysctl": {"net.core.no_such_thing": "1"}})
    path.write_text(json.dumps(document))
    async with _netns(tmp_path / "a") as a:
        with pytest.raises(Unavailable, match=r"tuning of network orloptest failed to ADD.*no_such_thing"):
            await _attach(network, "pod-a", a)
        assert _leases(tmp_path) == []
        assert network.result("pod-a") is None
        document["plugins"][-1] = {"type": "absent"}
        path.write_text(json.dumps(document))
        assert "absent" in await network.ready()
        with pytest.raises(Unavailable, match="absent"):
            await _attach(network, "pod-a", a)
        assert _leases(tmp_path) == []


async def test_cancelled_attach_leaves_no_lease(network: PodNetwork, tmp_path: Path) -> None:
    async with _netns(tmp_path / "a") as a:
        for delay in (0.001, 0.004, 0.008, 0.012):
            task = asyncio.ensure_future(_attach(network, "pod-a", a))
            await asyncio.sleep(delay)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
                await network.detach("pod-a", a)
            assert _leases(tmp_path) == []


async def test_detach_works_after_a_crash_between_record_and_result(
    network: PodNetwork, tmp_path: Path
) -> None:
    async with _netns(tmp_path / "a") as a:
        await _attach(network, "pod-a", a)
        records = AttachmentRecords(tmp_path / "attached")
        found = records.load("pod-a")
        assert found is not None
        records.save(
            Attachment(network=found.network, invocation=found.invocation, capabilities=found.capabilities)
        )
    await network.detach("pod-a", a)  # the namespace is gone as well
    assert _leases(tmp_path) == []


async def test_no_configuration_is_said(tmp_path: Path) -> None:
    network = PodNetwork(NetworkConfig(conf_dir=str(tmp_path)), tmp_path)
    assert str(tmp_path) in await network.ready()


async def test_tap_takes_the_place_of_the_interface(network: PodNetwork, tmp_path: Path) -> None:
    async with _netns(tmp_path / "a") as a:
        descriptor = await tap.create_tap(a)
        try:
            addresses = await _attach(network, "pod-a", a)
            info = await tap.described(a, "eth0", "pci:0000:00:05.0")
            await tap.join_tap(a, "eth0")
            assert tuple(address.partition("/")[0] for address in info.addresses) == addresses
            assert info.mac == network.result("pod-a").mac  # type: ignore[union-attr]
            assert {route.destination for route in info.routes} == {"0.0.0.0/0", "::/0"}
            assert await tap.interfaces(a) == ("eth0",)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"anyone there?", (addresses[0], 9))
            # vnet header of 10 bytes, then an ARP request of the host for the pod's address
            async with asyncio.timeout(60 * PATIENCE):
                while (await _frame(descriptor))[22:24] != b"\x08\x06":
                    pass
            (counters,) = await tap.interface_stats(a)
            assert counters.rx_packets > 0
            await network.check("pod-a")
            await network.detach("pod-a", a)
        finally:
            os.close(descriptor)


async def _frame(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, 4096)
        except BlockingIOError:
            await asyncio.sleep(0.02)


_CLOSED_HOST = """
import asyncio, subprocess, sys
from orlop.net import masquerade

def iptables(*arguments: str) -> str:
    return subprocess.run(["iptables", *arguments], check=True, capture_output=True, text=True).stdout

async def main() -> None:
    iptables("-P", "FORWARD", "DROP")
    sys.stdout.reconfigure(line_buffering=True)
    for _ in range(2):
        await masquerade.apply("n", ["10.1.0.0/16"])
    print(iptables("-S", "FORWARD"))
    subprocess.run(["nft", "list", "table", "inet", "orlop_n"], check=True)

asyncio.run(main())
"""


async def test_pods_get_through_a_host_that_is_closed_for_forwarding() -> None:
    done = await process.run(["unshare", "--net", sys.executable, "-c", _CLOSED_HOST], env=dict(os.environ))
    rules = done.stdout.decode()
    assert rules.count("-s 10.1.0.0/16") == 1
    assert rules.count("-d 10.1.0.0/16") == 1
    assert "ip saddr 10.1.0.0/16" in rules
    assert "masquerade" in rules
